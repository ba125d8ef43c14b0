//! A long random run against the fake worker. Whatever happens, every sequence ends exactly once, nobody reads a wrong
//! page, no page or row is lost, and what a sequence says is what it would have said alone.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use millrace_scheduler::{
    Capacity, Config, FinishReason, GenerationEvent, Request, Sampling, Scheduler, SequenceId, Share, StepPlan,
    TenantId, Terms,
};

use crate::fake_worker::{EOS, FakeWorker, Model};
use crate::rng::{Rng, fresh_seed, mix};

const OPS_PER_EPISODE: usize = 400;
/// Steps in a row without a prompt's token, though a prompt runs, there are pages, and nobody is shut out. Some are right:
/// somebody who has used less joins when the steps in flight are back.
const MOST_IDLE_STEPS: usize = 8;

fn model(config: &Config) -> Model {
    let (window, switch) = (config.attention_window as usize, config.position_switch as usize);
    Model { vocab: 3, eos_one_in: 24, window, switch }
}

#[test]
fn whatever_happens_every_sequence_says_what_it_would_have_said_alone() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let num_ops = variable("MILLRACE_SOAK_OPS").unwrap_or(100_000) as usize;
    let fixed = variable("MILLRACE_SEED");
    let first_seed = fixed.unwrap_or_else(fresh_seed);
    let num_episodes = if fixed.is_some() { 1 } else { num_ops.div_ceil(OPS_PER_EPISODE) };
    let mut coverage = Coverage::default();
    for episode in 0..num_episodes {
        let seed = if episode == 0 { first_seed } else { mix(first_seed, episode as u64) };
        let mut world = World::new(seed);
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| world.episode()));
        let problem = match outcome {
            Ok(Ok(())) => {
                coverage.add(&world);
                continue;
            }
            Ok(Err(problem)) => problem,
            Err(_) => "the scheduler panicked, see above".to_owned(),
        };
        let ops = world.ops.iter().fold(String::new(), |all, op| all + "\n  " + op);
        panic!("{problem}\nrepeat with MILLRACE_SEED={seed}\n{:?}\nlast operations:{ops}", world.config);
    }
    if fixed.is_none() {
        coverage.check();
    }
}

/// What the random runs have met in all: a run that never preempts proves nothing about preemption.
#[derive(Debug, Default)]
struct Coverage {
    steps: u64,
    steps_without_pages: u64,
    preemptions: u64,
    hits: u64,
    copies: usize,
    switches: u64,
    /// Sequences that came to their end though the pool never had room for all of it.
    outgrown: usize,
    losses: usize,
    shortages: u64,
    failures: usize,
    undisturbed: usize,
}

impl Coverage {
    fn add(&mut self, world: &World) {
        let stats = world.scheduler.stats();
        self.steps += stats.steps_total;
        if world.config.page_size == 0 {
            self.steps_without_pages += stats.steps_total;
            let of_pages = [stats.pages_used, stats.pages_free, stats.pages_cached, world.num_copies];
            assert_eq!((of_pages, stats.cached_prompt_tokens_total), ([0; 4], 0));
        }
        self.preemptions += stats.preemptions_total;
        self.hits += stats.cached_prompt_tokens_total;
        self.copies += world.num_copies;
        self.switches += stats.position_switches_total;
        let room = (world.config.num_pages * world.config.page_size) as usize;
        let has_outgrown = |client: &&Client| room > 0 && client.prompt.len() + client.received > room + 1;
        self.outgrown += world.clients.values().filter(has_outgrown).count();
        self.losses += world.num_losses;
        self.shortages += stats.out_of_memory_steps_total;
        self.failures += world.clients.values().filter(|client| client.is_failing).count();
        let is_whole =
            |client: &&Client| matches!(client.finished, Some(FinishReason::Length | FinishReason::EosToken));
        self.undisturbed += world.clients.values().filter(is_whole).count();
    }

    fn check(&self) {
        let by_length = [self.switches as usize, self.outgrown];
        assert!(by_length.iter().all(|&count| count > 100), "too little happened: {self:?}");
        let rare = [
            self.preemptions as usize,
            self.shortages as usize,
            self.hits as usize,
            self.copies,
            self.losses,
            self.failures,
        ];
        assert!(self.steps_without_pages > 1000, "too few steps without pages: {self:?}");
        assert!(rare.iter().all(|&count| count > 100) && self.undisturbed > 1000, "too little happened: {self:?}");
    }
}

/// How far a client has seen its sequence come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Submitted,
    Started,
    Prefilled,
}

/// One sequence as its client sees it.
struct Client {
    prompt: Vec<u32>,
    sampling: Arc<Sampling>,
    wants_logprobs: bool,
    expected: Vec<u32>,
    received: usize,
    stage: Stage,
    /// A fault was scripted for it, the pool became too small, or the workers died of it.
    is_failing: bool,
    finished: Option<FinishReason>,
}

struct World {
    rng: Rng,
    config: Config,
    scheduler: Scheduler,
    worker: FakeWorker,
    clients: HashMap<SequenceId, Client>,
    alive: Vec<SequenceId>,
    has_faults: bool,
    poisonous: HashMap<SequenceId, usize>,
    huge: HashSet<SequenceId>,
    num_copies: usize,
    num_losses: usize,
    num_tenants: usize,
    /// For so many more steps.
    terms: (Terms, usize),
    num_idle_steps: usize,
    ops: VecDeque<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let config = Config {
            max_rows: rng.between(1..=8) as u32,
            max_step_tokens: rng.between(1..=24) as u32,
            page_size: rng.between(0..=5) as u32,
            num_pages: rng.between(4..=40) as u32,
            attention_window: if rng.one_in(2) { rng.between(1..=25) as u32 } else { 0 },
            position_switch: if rng.one_in(3) { rng.between(2..=40) as u32 } else { 0 },
            max_sequence_tokens: 60,
            waiting_served_ratio: *rng.pick(&[0.0, 0.3, 1.2, 10.0]),
            max_waiting_tokens: rng.between(0..=20) as u32,
            max_batch_total_tokens: rng.one_in(2).then(|| rng.between(50..=200) as u32),
            prefix_caching: !rng.one_in(4),
            max_steps_in_flight: rng.between(1..=3) as u32,
        };
        let worker = FakeWorker::new(model(&config), config.max_rows, config.num_pages, config.page_size);
        Self {
            poisonous: HashMap::new(),
            huge: HashSet::new(),
            has_faults: rng.one_in(2),
            num_tenants: if rng.one_in(2) { 1 } else { 3 },
            rng,
            scheduler: Scheduler::new(config),
            worker,
            config,
            clients: HashMap::new(),
            alive: Vec::new(),
            num_copies: 0,
            num_losses: 0,
            terms: (Terms::default(), 0),
            num_idle_steps: 0,
            ops: VecDeque::new(),
        }
    }

    fn episode(&mut self) -> Result<(), String> {
        for _ in 0..OPS_PER_EPISODE {
            self.random_op()?;
            self.scheduler.check_integrity()?;
        }
        self.drain()
    }

    fn log(&mut self, op: String) {
        self.ops.push_back(op);
        if self.ops.len() > 60 {
            self.ops.pop_front();
        }
    }

    fn random_op(&mut self) -> Result<(), String> {
        match self.rng.between(0..=999) {
            0..=149 if self.alive.len() < 24 => return self.submit(),
            150..=179 => return self.end(true),
            180..=209 => return self.end(false),
            210..=214 if self.has_faults => self.lose(),
            215..=218 if self.has_faults => return self.change_capacity(),
            219..=599 => return self.step(),
            _ => return self.apply(),
        }
        Ok(())
    }

    fn submit(&mut self) -> Result<(), String> {
        // Few templates and few tokens: prompts share prefixes, and outputs continue into other prompts.
        let mut rng = Rng::new(self.rng.between(1..=4) as u64);
        let template: Vec<u32> = (0..40).map(|_| rng.between(1..=3) as u32).collect();
        let num_prompt_tokens = self.rng.between(1..=30);
        let mut tokens = template[..num_prompt_tokens].to_vec();
        if self.rng.one_in(3) {
            let changed = self.rng.between(0..=num_prompt_tokens - 1);
            tokens[changed] = 1 + tokens[changed] % 3;
        }
        let namespace = u64::from(self.rng.one_in(6));
        let tenant = TenantId(self.rng.between(1..=self.num_tenants) as u32);
        let priority = *self.rng.pick(&[0, 0, 0, 0, -1, 1]);
        let share = Share { tenant, weight: 1 + tenant.0 % 3, priority };
        let max_new_tokens = self.rng.between(1..=20) as u32;
        let stops_at_eos = !self.rng.one_in(5);
        let wants_logprobs = self.rng.one_in(5);
        let group_size = if self.rng.one_in(4) { self.rng.between(2..=3) } else { 1 };
        let mut sequences = Vec::new();
        for index in 0..group_size {
            let id = SequenceId((self.clients.len() + index) as u64);
            let seed = self.rng.between(0..=9) as u64;
            sequences.push((id, Arc::new(Sampling { seed, top_k: namespace as u32, ..Sampling::default() })));
        }
        self.log(format!("submit {} prompt {tokens:?} new {max_new_tokens} {sequences:?}", sequences[0].0.0));
        let request = Request {
            sequences: sequences.clone(),
            tokens: tokens.clone(),
            max_new_tokens,
            eos_token_ids: if stops_at_eos { Arc::from([EOS]) } else { Arc::from([]) },
            prompt_logprobs: wants_logprobs,
            namespace,
            share,
        };
        let num_computed = tokens.len() + max_new_tokens as usize - 1;
        let is_too_long = self.num_pages_at_once(num_computed) > self.config.num_pages as usize;
        match self.scheduler.submit(request) {
            Err(refused) if !is_too_long => return Err(format!("refused: {refused}")),
            Ok(()) if is_too_long => return Err("not refused".to_owned()),
            Err(_) => return Ok(()),
            Ok(()) => {}
        }
        for (id, sampling) in sequences {
            let expected = model(&self.config).generate(&tokens, &sampling, max_new_tokens, stops_at_eos);
            let client = Client {
                prompt: tokens.clone(),
                sampling,
                wants_logprobs,
                expected,
                received: 0,
                stage: Stage::Submitted,
                is_failing: false,
                finished: None,
            };
            self.clients.insert(id, client);
            self.alive.push(id);
            self.curse(id, tokens.len());
        }
        Ok(())
    }

    /// With some bad luck the steps of a sequence will fail.
    fn curse(&mut self, id: SequenceId, num_prompt_tokens: usize) {
        if self.has_faults && self.rng.one_in(20) {
            self.poisonous.insert(id, num_prompt_tokens + self.rng.between(0..=3));
        } else if self.has_faults && self.rng.one_in(40) {
            self.huge.insert(id);
        } else {
            return;
        }
        self.clients.get_mut(&id).unwrap().is_failing = true;
    }

    fn end(&mut self, by_stop: bool) -> Result<(), String> {
        if self.alive.is_empty() {
            return Ok(());
        }
        let id = *self.rng.pick(&self.alive);
        self.log(format!("{} {}", if by_stop { "stop" } else { "cancel" }, id.0));
        let event = if by_stop { self.scheduler.stop(id) } else { self.scheduler.cancel(id) };
        if event.is_none() || self.scheduler.cancel(id).is_some() || self.scheduler.stop(id).is_some() {
            return Err(format!("ending {} answers {event:?}, or answers twice", id.0));
        }
        self.events(event.into_iter().collect())
    }

    fn lose(&mut self) {
        self.log("workers lost".to_owned());
        self.num_losses += 1;
        self.scheduler.workers_lost();
        self.new_worker();
    }

    fn change_capacity(&mut self) -> Result<(), String> {
        // Mostly the same: then only those fail of whom the workers have died again and again.
        if self.rng.one_in(4) {
            self.config.num_pages = self.rng.between(4..=40) as u32;
            self.config.max_rows = self.rng.between(1..=8) as u32;
        }
        let capacity = Capacity { num_pages: self.config.num_pages, max_rows: self.config.max_rows };
        self.log(format!("{capacity:?}"));
        let events = self.scheduler.set_capacity(capacity);
        self.new_worker();
        for event in &events {
            if let GenerationEvent::Finished { sequence, .. } = event {
                self.clients.get_mut(sequence).unwrap().is_failing = true;
            }
        }
        self.events(events)
    }

    /// The most pages that computing one token after another needs, of `num_tokens`.
    fn num_pages_at_once(&self, num_tokens: usize) -> usize {
        let Some(page_of) = std::num::NonZeroUsize::new(self.config.page_size as usize) else { return 0 };
        let model = model(&self.config);
        let at_once = |position: usize| position / page_of - model.first_read(position) / page_of + 1;
        (0..num_tokens).map(at_once).max().unwrap_or(0)
    }

    fn new_worker(&mut self) {
        self.worker =
            FakeWorker::new(model(&self.config), self.config.max_rows, self.config.num_pages, self.config.page_size);
    }

    fn step(&mut self) -> Result<(), String> {
        let terms = self.terms();
        let is_nobody_shut_out = terms.shut_out.is_empty() && terms.guest_tokens != Some(0);
        self.scheduler.set_terms(terms);
        let Some(plan) = self.scheduler.schedule() else {
            if self.worker.num_unanswered() == 0 && !self.scheduler.is_idle() {
                return Err("nothing is planned, nothing is in flight, but somebody waits".to_owned());
            }
            return Ok(());
        };
        let mut op = format!("step {}", plan.step);
        for work in &plan.work {
            write!(op, " {}:{}+{}", work.sequence.0, work.start, work.count).unwrap();
            let is_likely = work.count > 1;
            if self.has_faults && self.rng.one_in(if is_likely { 12 } else { 300 }) {
                self.worker.failing.insert(work.sequence);
                self.clients.get_mut(&work.sequence).unwrap().is_failing = true;
                op.push_str("(fails)");
            }
        }
        self.log(op);
        self.worker.poisonous.clone_from(&self.poisonous);
        self.worker.huge.clone_from(&self.huge);
        self.worker.is_short = self.has_faults && self.rng.one_in(20);
        let num_tokens: u32 = plan.work.iter().map(|work| work.count).sum();
        if num_tokens > self.config.max_step_tokens.max(self.config.max_rows) {
            return Err(format!("step {} has {num_tokens} tokens", plan.step));
        }
        if is_nobody_shut_out && !self.has_faults {
            self.note_idleness(&plan)?;
        }
        self.num_copies += plan.copies.len();
        for id in self.scheduler.take_started() {
            let client = self.clients.get_mut(&id).unwrap();
            if std::mem::replace(&mut client.stage, Stage::Started) != Stage::Submitted {
                return Err(format!("{} starts twice", id.0));
            }
        }
        self.worker.run(&plan)
    }

    /// The same for a while, so that who is first stays so.
    fn terms(&mut self) -> Terms {
        if self.terms.1 == 0 {
            let rng = &mut self.rng;
            let [guest_tokens, step_tokens] =
                [(); 2].map(|()| Some(rng.between(0..=9) as u32).filter(|tokens| *tokens < 8));
            let is_any_shut_out = rng.one_in(2);
            let shut_out = (1..=3).map(TenantId).filter(|_| is_any_shut_out && rng.one_in(2)).collect();
            let used = (1..=3).map(|tenant| (TenantId(tenant), rng.between(0..=9) as u64)).collect();
            self.terms = (Terms { step_tokens, guest_tokens, shut_out, used }, rng.between(1..=100));
        }
        self.terms.1 -= 1;
        self.terms.0.clone()
    }

    fn note_idleness(&mut self, plan: &StepPlan) -> Result<(), String> {
        let stats = self.scheduler.stats();
        let has_pages = self.config.page_size == 0 || stats.pages_free + stats.pages_cached > 0;
        // Without preempted ones these are tokens of prompts that run.
        let could_go_on = has_pages && stats.preempted == 0 && stats.uncomputed_tokens > 0;
        let has_prompt = !plan.admitted.is_empty() || plan.work.iter().any(|work| work.count > 1 || !work.samples);
        self.num_idle_steps = if could_go_on && !has_prompt { self.num_idle_steps + 1 } else { 0 };
        if self.num_idle_steps > MOST_IDLE_STEPS {
            return Err(format!("prompts stand still: {stats:?}, {:?}", self.terms.0));
        }
        Ok(())
    }

    fn apply(&mut self) -> Result<(), String> {
        let Some(result) = self.worker.answer() else { return Ok(()) };
        self.log(format!("apply {}", result.step));
        let events = self.scheduler.apply(result).map_err(|wrong| wrong.to_string())?;
        self.events(events)
    }

    fn events(&mut self, events: Vec<GenerationEvent>) -> Result<(), String> {
        for event in events {
            self.event(&event).map_err(|problem| format!("{problem}: {event:?}"))?;
        }
        Ok(())
    }

    fn event(&mut self, event: &GenerationEvent) -> Result<(), &'static str> {
        let (GenerationEvent::Prefilled { sequence, .. }
        | GenerationEvent::Token { sequence, .. }
        | GenerationEvent::Finished { sequence, .. }) = event;
        let client = self.clients.get_mut(sequence).ok_or("of nobody")?;
        if client.finished.is_some() {
            return Err("after the end");
        }
        match event {
            GenerationEvent::Prefilled { prompt_logprobs, cached_tokens, .. } => {
                let expected = if client.wants_logprobs {
                    model(&self.config).prompt_logprobs(&client.prompt, &client.sampling)
                } else {
                    vec![]
                };
                let is_expected = *prompt_logprobs == expected && (*cached_tokens as usize) < client.prompt.len();
                let is_first = std::mem::replace(&mut client.stage, Stage::Prefilled) == Stage::Started;
                (is_expected && is_first).then_some(()).ok_or("wrong, late or twice")
            }
            GenerationEvent::Token { sampled, .. } => {
                let expected = client.expected.get(client.received);
                client.received += 1;
                let is_expected = expected == Some(&sampled.token_id) && client.stage == Stage::Prefilled;
                is_expected.then_some(()).ok_or("not what it would have said alone")
            }
            GenerationEvent::Finished { reason, sequence } => {
                let is_whole = client.received == client.expected.len();
                let is_expected = match reason {
                    FinishReason::Length => is_whole,
                    FinishReason::EosToken => is_whole && client.expected.last() == Some(&EOS),
                    FinishReason::StopSequence | FinishReason::Cancelled => !is_whole,
                    FinishReason::Failed(_) => client.is_failing,
                };
                client.finished = Some(reason.clone());
                self.alive.retain(|other| other != sequence);
                is_expected.then_some(()).ok_or("the wrong end")
            }
        }
    }

    /// Everybody finishes in a bounded number of steps, and then nothing is left.
    fn drain(&mut self) -> Result<(), String> {
        self.has_faults = false;
        let num_tokens: usize = self.alive.iter().map(|id| self.clients[id].prompt.len() + 20).sum();
        let mut num_turns = 0;
        while !self.scheduler.is_idle() {
            self.step()?;
            self.scheduler.check_integrity()?;
            if self.rng.one_in(2) || self.worker.num_unanswered() == self.config.max_steps_in_flight as usize {
                self.apply()?;
                self.scheduler.check_integrity()?;
            }
            num_turns += 1;
            if num_turns > 20 * num_tokens + 100 {
                return Err(format!("no end after {num_turns} turns: {:?}", self.scheduler.stats()));
            }
        }
        let unfinished = self.clients.values().filter(|client| client.finished.is_none()).count();
        let stats = self.scheduler.stats();
        let left =
            [stats.waiting, stats.running, stats.preempted, stats.rows_used, stats.pages_used, stats.reserved_tokens];
        if unfinished > 0 || left != [0; 6] {
            return Err(format!("{unfinished} sequences never ended; left are {stats:?}"));
        }
        Ok(())
    }
}
