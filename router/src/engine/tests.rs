//! The engine with workers in this process, whose every token is known beforehand.

mod ends;
mod faults;
mod hangs;
mod life;
mod losses;
mod reservations;
mod schedules;
mod serving;
mod tenants;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_client::fake::{FakeGroup, FakeOptions, Fault, Malformation, ToyModel};
use millrace_scheduler::{Sampling, TenantId};
use tokio::task::JoinHandle;

use super::*;
use crate::detokenize::tests::byte_level;
use crate::health::Phase;
use crate::overload::Demand;
use crate::request::{Stopping, ValidRequest};
use crate::tenants::Tenant;

/// In the test tokenizer these ids are the letters a to z.
const LETTERS: std::ops::Range<u32> = 66..92;

const EOS: u32 = 0;

fn letter(id: u32) -> char {
    char::from(u8::try_from(id - LETTERS.start).unwrap() + b'a')
}

fn text_of(ids: &[u32]) -> String {
    ids.iter().copied().map(letter).collect()
}

fn options() -> FakeOptions {
    FakeOptions { model: ToyModel { token_ids: LETTERS, ..ToyModel::default() }, ..FakeOptions::default() }
}

/// An engine at work.
struct Server {
    handle: EngineHandle,
    health: Health,
    workers: FakeGroup,
    metrics: Metrics,
    backlog: Backlog,
    task: JoinHandle<Result<(), EngineError>>,
    _recording: metrics::LocalRecorderGuard<'static>,
}

fn start_with(workers: FakeGroup, flags: &str, patience: Duration) -> Server {
    let (metrics, recorder) = Metrics::new();
    let recording = metrics::set_default_local_recorder(Box::leak(Box::new(recorder)));
    let arguments = ["millrace-router", "--model-id", "m"].into_iter().chain(flags.split_whitespace());
    let config = Arc::new(Config::read(arguments, |_| None).unwrap());
    let (handle, commands) = EngineHandle::new();
    let health = Health::default();
    let backlog = Backlog::new(&config);
    let text = EngineText {
        detokenizer: Arc::new(Detokenizer::new(&byte_level())),
        eos_token_ids: Arc::from([EOS]),
        model_max_length: None,
    };
    let (engine_health, engine_metrics) = (health.clone(), metrics.clone());
    let engine = Engine {
        config,
        workers: workers.clone(),
        commands,
        health: engine_health,
        metrics: engine_metrics,
        backlog: backlog.clone(),
        text,
        patience,
    };
    let task = tokio::spawn(engine.run());
    Server { handle, health, workers, metrics, backlog, task, _recording: recording }
}

fn start(options: &FakeOptions, flags: &str) -> Server {
    start_with(FakeGroup::single(options), flags, READER_PATIENCE)
}

impl Server {
    fn expected(&self, request: &ValidRequest, sequence: usize) -> Vec<u32> {
        let n = request.stopping.max_new_tokens as usize;
        self.workers.rank(0).expected(&request.prompt, &request.sampling[sequence], n)
    }

    fn generate(&self, request: ValidRequest) -> Generation {
        let reservation = self.backlog.reserve(Demand::of(&request), None).unwrap();
        self.handle.generate(request, reservation)
    }

    /// Ends the server; nothing may have gone wrong.
    async fn end(self) {
        drop(self.handle);
        self.task.await.unwrap().unwrap();
        assert_eq!(self.workers.violations(), Vec::<String>::new());
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.render();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

fn request(prompt: Vec<u32>, max_new_tokens: u32) -> ValidRequest {
    let now = Instant::now();
    ValidRequest {
        request_id: Arc::from("test"),
        tenant: Arc::default(),
        priority: 0,
        cache_salt: None,
        prompt,
        sampling: vec![Arc::new(Sampling::default())],
        stopping: Stopping { max_new_tokens, stop: Vec::new(), ignore_eos: false },
        shown: Arc::from([]),
        prompt_logprobs: false,
        received: now,
        deadline: None,
        validated: now,
    }
}

fn seeded(prompt: Vec<u32>, max_new_tokens: u32, seeds: &[u64]) -> ValidRequest {
    let sampling = |seed: &u64| Arc::new(Sampling { do_sample: true, seed: *seed, ..Sampling::default() });
    ValidRequest { sampling: seeds.iter().map(sampling).collect(), ..request(prompt, max_new_tokens) }
}

fn tenant(number: u32) -> Arc<Tenant> {
    Arc::new(Tenant { id: TenantId(number), ..Tenant::default() })
}

fn prompt(number: u32, length: u32) -> Vec<u32> {
    (0..length).map(|position| LETTERS.start + (number * 7 + position * position) % 26).collect()
}

/// All that came of a request.
#[derive(Debug, Default)]
struct Outcome {
    prefilled: Vec<Prefilled>,
    tokens: BTreeMap<usize, Vec<Token>>,
    finished: BTreeMap<usize, Finished>,
    failed: Option<Failed>,
}

impl Outcome {
    fn ids(&self, sequence: usize) -> Vec<u32> {
        self.tokens.get(&sequence).into_iter().flatten().map(|token| token.id).collect()
    }

    fn note_all(&mut self, events: Vec<Event>) {
        for event in events {
            self.note(event);
        }
    }

    /// Notes an event; checks that each comes in its place.
    fn note(&mut self, event: Event) {
        assert_eq!(self.failed, None, "nothing follows a failure");
        match event {
            Event::Prefilled(prefilled) => {
                assert!(self.tokens.is_empty() && self.prefilled.is_empty());
                self.prefilled.push(prefilled);
            }
            Event::Token { sequence, token } => {
                assert!(!self.prefilled.is_empty() && !self.finished.contains_key(&sequence));
                self.tokens.entry(sequence).or_default().push(token);
            }
            Event::Finished { sequence, finished } => {
                assert!(self.finished.insert(sequence, finished).is_none(), "one terminal event each");
            }
            Event::Failed(failed) => self.failed = Some(failed),
        }
    }
}

async fn collect(mut generation: Generation, num_sequences: usize) -> Outcome {
    let mut outcome = Outcome::default();
    while outcome.failed.is_none() && outcome.finished.len() < num_sequences {
        let events = generation.next().await;
        assert!(!events.is_empty(), "the engine is gone");
        outcome.note_all(events);
    }
    generation.complete();
    outcome
}

/// Reads until so many tokens have come.
async fn read_tokens(generation: &mut Generation, outcome: &mut Outcome, num_tokens: usize) {
    while outcome.tokens.values().map(Vec::len).sum::<usize>() < num_tokens {
        outcome.note_all(generation.next().await);
    }
}

/// Sends all at once; every request must get exactly its tokens.
async fn check_all(server: &Server, requests: Vec<ValidRequest>) {
    let running: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let expected: Vec<_> = (0..request.sampling.len()).map(|index| server.expected(&request, index)).collect();
            let generation = server.generate(request);
            tokio::spawn(async move { (collect(generation, expected.len()).await, expected) })
        })
        .collect();
    for task in running {
        let (outcome, expected) = task.await.unwrap();
        for (sequence, expected) in expected.iter().enumerate() {
            assert_eq!(&outcome.ids(sequence), expected);
            let finished = &outcome.finished[&sequence];
            assert_eq!(finished.generated_text, text_of(expected));
            assert_eq!(finished.generated_tokens as usize, expected.len());
            assert!(finished.times.started <= finished.times.first_token);
        }
    }
}

fn mixed_load(count: u32) -> Vec<ValidRequest> {
    (0..count).map(|n| seeded(prompt(n, 1 + n * 5 % 70), 1 + n % 40, &[u64::from(n)])).collect()
}
