//! The language of the pictures. One line each:
//!
//! ```text
//! pages 4 of 4 tokens, budget 8        the pool; also: rows 4, ratio 0.3, patience 20, flight 2, no cache;
//!                                      pages 0 of 0: none; then also: total 40; window 6 (a page that is not
//!                                      read any more is drawn as -), switch 20
//! add a prompt 6                       one sequence; also: new 10, like b, like b:4, space 2, logprobs;
//!                                      tenant 1, weight 2, priority -1
//! add a b c prompt 6                   a group
//! step a+4@0,1 b:8+2@3,4 2>4           plan, compute and apply one step: a computes 4 tokens in pages 0 and 1; b joins
//!                                      at position 8; page 2 is copied to page 4
//! send …                               plan and compute it, but leave it in flight
//! back -> a.prefilled(0) a.token       apply the oldest result and see these events; `step … -> …` too
//! nothing                              no step is planned
//! eos a | fail a                       what the next step does to a
//! poison a 5                           steps that compute a beyond so many tokens fail as a whole
//! guests 2 step 9 used 5 3             so many prompt tokens beside another tenant's decodes, so many in a step, and what
//!                                      tenants 1, 2, … have used
//! huge a | memory 9                    there is no memory for steps with a | of more than so many tokens
//! stop a | cancel a | gone a           a ends | a has ended already
//! lose                                 the workers die, new ones with the same pool come
//! capacity 3 -> b.failed               new workers with another pool come; also: rows 2
//! stats waiting 1, cached 2            some of the gauges and counters
//! ```

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use millrace_scheduler::{
    Capacity, Config, FinishReason, GenerationEvent, PageId, Request, Sampling, Scheduler, SequenceId, Share, StepPlan,
    StepResult, TenantId, Terms,
};

use crate::fake_worker::{EOS, FakeWorker, Model};

/// Runs a picture, checking integrity after every line.
///
/// # Panics
/// At the first line that is not what happens.
pub(crate) fn picture(text: &str) {
    let mut world: Option<World> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap().trim();
        if line.is_empty() {
            continue;
        }
        let done = match (&mut world, line.strip_prefix("pages ")) {
            (_, Some(pool)) => {
                world = Some(World::new(pool));
                Ok(())
            }
            (Some(world), None) => world.line(line).and_then(|()| world.scheduler.check_integrity()),
            (None, None) => panic!("a picture begins with its pages"),
        };
        done.unwrap_or_else(|error| panic!("line {}: {line}\n{error}\n{text}", number + 1));
    }
}

fn terms(words: &[&str]) -> Terms {
    let after = |word: &'static str| words.iter().skip_while(move |other| **other != word).skip(1);
    let used = after("used").map(|word| word.parse().unwrap());
    Terms {
        guest_tokens: words[0].parse().ok(),
        step_tokens: after("step").next().map(|word| word.parse().unwrap()),
        shut_out: Vec::new(),
        used: (1..).map(TenantId).zip(used).collect(),
    }
}

struct World {
    config: Config,
    scheduler: Scheduler,
    worker: FakeWorker,
    /// By letter: the id, and the prompt.
    names: HashMap<String, (SequenceId, Vec<u32>)>,
}

fn model(config: &Config) -> Model {
    let (window, switch) = (config.attention_window as usize, config.position_switch as usize);
    Model { vocab: 1 << 30, eos_one_in: 0, window, switch }
}

/// The value of the word after `name`.
fn value<T: std::str::FromStr>(words: &[&str], name: &str) -> Option<T> {
    let at = words.iter().position(|word| *word == name)?;
    words.get(at + 1)?.parse().ok()
}

impl World {
    fn new(pool: &str) -> Self {
        let words: Vec<&str> = pool.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let config = Config {
            max_rows: value(&words, "rows").unwrap_or(8),
            max_step_tokens: value(&words, "budget").unwrap_or(64),
            page_size: value(&words, "of").unwrap(),
            num_pages: words[0].parse().unwrap(),
            attention_window: value(&words, "window").unwrap_or(0),
            position_switch: value(&words, "switch").unwrap_or(0),
            max_sequence_tokens: 1000,
            waiting_served_ratio: value(&words, "ratio").unwrap_or(0.0),
            max_waiting_tokens: value(&words, "patience").unwrap_or(20),
            max_batch_total_tokens: value(&words, "total"),
            prefix_caching: !words.contains(&"no"),
            max_steps_in_flight: value(&words, "flight").unwrap_or(2),
        };
        let worker = FakeWorker::new(model(&config), config.max_rows, config.num_pages, config.page_size);
        Self { config, scheduler: Scheduler::new(config), worker, names: HashMap::new() }
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (rest, events) = rest.split_once("->").map_or((rest, None), |(rest, events)| (rest, Some(events.trim())));
        let words: Vec<&str> = rest.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        match command {
            "add" => self.add(&words),
            "step" => self.send(rest.trim()).and_then(|()| self.back(events)),
            "send" => self.send(rest.trim()),
            "back" => self.back(events.or(Some(rest.trim()).filter(|rest| !rest.is_empty()))),
            "nothing" => same("none", &self.scheduler.schedule().map_or("none".to_owned(), |plan| self.draw(&plan))),
            "eos" => {
                self.worker.forced.insert(self.id(words[0]), EOS);
                Ok(())
            }
            "fail" => {
                self.worker.failing.insert(self.id(words[0]));
                Ok(())
            }
            "poison" => {
                self.worker.poisonous.insert(self.id(words[0]), words[1].parse().unwrap());
                Ok(())
            }
            "guests" => {
                self.scheduler.set_terms(terms(&words));
                Ok(())
            }
            "huge" => {
                self.worker.huge.insert(self.id(words[0]));
                Ok(())
            }
            "memory" => {
                self.worker.memory = words[0].parse().unwrap();
                Ok(())
            }
            "stop" | "cancel" | "gone" => self.end(command, words[0]),
            "lose" => {
                self.scheduler.workers_lost();
                self.new_worker();
                Ok(())
            }
            "capacity" => {
                self.config.num_pages = words[0].parse().unwrap();
                self.config.max_rows = value(&words, "rows").unwrap_or(self.config.max_rows);
                let capacity = Capacity { num_pages: self.config.num_pages, max_rows: self.config.max_rows };
                let happened = self.scheduler.set_capacity(capacity);
                self.new_worker();
                same(events.unwrap_or(""), &self.tell(&happened))
            }
            "stats" => self.stats(&words),
            _ => panic!("no such command: {command}"),
        }
    }

    fn id(&self, name: &str) -> SequenceId {
        self.names.get(name).unwrap_or_else(|| panic!("nobody is called {name}")).0
    }

    fn name(&self, id: SequenceId) -> &str {
        self.names.iter().find(|(_, (other, _))| *other == id).unwrap().0
    }

    fn new_worker(&mut self) {
        self.worker =
            FakeWorker::new(model(&self.config), self.config.max_rows, self.config.num_pages, self.config.page_size);
    }

    fn add(&mut self, words: &[&str]) -> Result<(), String> {
        let length: usize = value(words, "prompt").unwrap();
        let names = words.iter().take_while(|word| **word != "prompt");
        let first_id = self.names.len() as u64;
        let mut tokens: Vec<u32> = (0..length).map(|at| 1_000_000 * (first_id as u32 + 1) + at as u32).collect();
        if let Some(like) = value::<String>(words, "like") {
            let (other, shared) = like.split_once(':').unwrap_or((&like, "1000"));
            let other = &self.names[other].1;
            let shared = shared.parse::<usize>().unwrap().min(other.len()).min(length);
            tokens[..shared].copy_from_slice(&other[..shared]);
        }
        let namespace = value(words, "space").unwrap_or(0);
        let mut sequences = Vec::new();
        for (index, name) in names.enumerate() {
            let id = SequenceId(first_id + index as u64);
            let sampling = Sampling { seed: id.0, top_k: namespace as u32, ..Sampling::default() };
            sequences.push((id, Arc::new(sampling)));
            self.names.insert((*name).to_owned(), (id, tokens.clone()));
        }
        let request = Request {
            sequences,
            tokens,
            max_new_tokens: value(words, "new").unwrap_or(10),
            eos_token_ids: Arc::from([EOS]),
            prompt_logprobs: words.contains(&"logprobs"),
            namespace,
            share: Share {
                tenant: TenantId(value(words, "tenant").unwrap_or(0)),
                weight: value(words, "weight").unwrap_or(1),
                priority: value(words, "priority").unwrap_or(0),
            },
        };
        self.scheduler.submit(request).map_err(|refused| refused.to_string())
    }

    fn send(&mut self, expected: &str) -> Result<(), String> {
        let plan = self.scheduler.schedule().ok_or("nothing is planned")?;
        let drawn = self.draw(&plan);
        self.worker.run(&plan)?;
        same(expected, &drawn)
    }

    fn back(&mut self, expected: Option<&str>) -> Result<(), String> {
        let result: StepResult = self.worker.answer().ok_or("no step is in flight")?;
        let events = self.scheduler.apply(result).map_err(|wrong| wrong.to_string())?;
        expected.map_or(Ok(()), |expected| same(expected, &self.tell(&events)))
    }

    fn end(&mut self, how: &str, name: &str) -> Result<(), String> {
        let id = self.id(name);
        let event = if how == "stop" { self.scheduler.stop(id) } else { self.scheduler.cancel(id) };
        let expected = match how {
            "stop" => format!("{name}.stop_sequence"),
            "cancel" => format!("{name}.cancelled"),
            _ => String::new(),
        };
        same(&expected, &self.tell(event.as_slice()))
    }

    fn stats(&self, words: &[&str]) -> Result<(), String> {
        let stats = self.scheduler.stats();
        let actual = |name: &str| match name {
            "waiting" => stats.waiting,
            "running" => stats.running,
            "preempted" => stats.preempted,
            "rows" => stats.rows_used,
            "free" => stats.pages_free,
            "cached" => stats.pages_cached,
            "used" => stats.pages_used,
            "uncomputed" => stats.uncomputed_tokens,
            "reserved" => stats.reserved_tokens,
            "computed" => stats.computed_prompt_tokens_total as usize,
            "hits" => stats.cached_prompt_tokens_total as usize,
            "admissions" => stats.admissions_total as usize,
            "preemptions" => stats.preemptions_total as usize,
            "switches" => stats.position_switches_total as usize,
            "short" => stats.out_of_memory_steps_total as usize,
            "tokens" => stats.step_tokens as usize,
            "sequences" => stats.step_sequences as usize,
            _ => panic!("no such gauge: {name}"),
        };
        let told: Vec<String> = words.chunks(2).map(|pair| format!("{} {}", pair[0], actual(pair[0]))).collect();
        same(&words.join(" "), &told.join(" "))
    }

    fn draw(&self, plan: &StepPlan) -> String {
        let mut drawn = String::new();
        for work in &plan.work {
            let joins = plan.admitted.iter().any(|admission| admission.row == work.row) && work.start > 0;
            let start = if joins { format!(":{}", work.start) } else { String::new() };
            let pages = self.worker.table_after(plan, work.row);
            let num_unread = self.worker.num_unread_pages(work);
            let shown =
                |(index, page): (usize, &PageId)| if index < num_unread { "-".to_owned() } else { page.0.to_string() };
            let pages: Vec<String> = pages.iter().enumerate().map(shown).collect();
            write!(drawn, "{}{start}+{}@{} ", self.name(work.sequence), work.count, pages.join(",")).unwrap();
        }
        for copy in &plan.copies {
            write!(drawn, "{}>{} ", copy.source.0, copy.target.0).unwrap();
        }
        drawn
    }

    fn tell(&self, events: &[GenerationEvent]) -> String {
        let mut told = String::new();
        for event in events {
            match event {
                GenerationEvent::Prefilled { sequence, cached_tokens, prompt_logprobs } => {
                    let (name, prompt) = (self.name(*sequence), &self.names[self.name(*sequence)].1);
                    write!(told, "{name}.prefilled({cached_tokens}) ").unwrap();
                    if !prompt_logprobs.is_empty() {
                        let expected = model(&self.config).prompt_logprobs(prompt, &Sampling::default());
                        assert_eq!(*prompt_logprobs, expected, "prompt logprobs of {name}");
                        write!(told, "{name}.logprobs ").unwrap();
                    }
                }
                GenerationEvent::Token { sequence, .. } => write!(told, "{}.token ", self.name(*sequence)).unwrap(),
                GenerationEvent::Finished { sequence, reason } => {
                    let reason = match reason {
                        FinishReason::Length => "length",
                        FinishReason::EosToken => "eos",
                        FinishReason::StopSequence => "stop_sequence",
                        FinishReason::Cancelled => "cancelled",
                        FinishReason::Failed(_) => "failed",
                    };
                    write!(told, "{}.{reason} ", self.name(*sequence)).unwrap();
                }
            }
        }
        told
    }
}

/// Compares word by word.
fn same(expected: &str, actual: &str) -> Result<(), String> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let (expected, actual) = (words(expected), words(actual));
    if expected == actual { Ok(()) } else { Err(format!("expected: {expected}\n  actual: {actual}")) }
}
