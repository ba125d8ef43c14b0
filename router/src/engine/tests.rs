//! The engine with workers in this process, whose every token is known beforehand.

mod faults;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_client::fake::{FakeGroup, FakeOptions, Fault, Malformation, ToyModel};
use millrace_scheduler::Sampling;
use tokio::task::JoinHandle;

use super::*;
use crate::detokenize::tests::byte_level;
use crate::health::Phase;
use crate::request::{Stopping, ValidRequest};

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
        text,
        patience,
    };
    let task = tokio::spawn(engine.run());
    Server { handle, health, workers, metrics, task, _recording: recording }
}

fn start(options: &FakeOptions, flags: &str) -> Server {
    start_with(FakeGroup::single(options), flags, READER_PATIENCE)
}

impl Server {
    fn expected(&self, request: &ValidRequest, sequence: usize) -> Vec<u32> {
        let n = request.stopping.max_new_tokens as usize;
        self.workers.rank(0).expected(&request.prompt, &request.sampling[sequence], n)
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
            let generation = server.handle.generate(request);
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

#[tokio::test]
async fn concurrent_requests_get_their_own_tokens() {
    let server = start(&options(), "");
    check_all(&server, mixed_load(64)).await;
    assert!(server.metric("millrace_steps_total") > 40.0);
    assert!(server.metric("tgi_batch_inference_success{method=\"decode\"}") > 0.0);
    for gauge in ["tgi_queue_size", "tgi_batch_current_size", "millrace_rows_used", "millrace_kv_pages_used"] {
        // The engine shows its gauges once more after the last event; let it.
        while server.metric(gauge) > 0.0 {
            tokio::task::yield_now().await;
        }
    }
    server.end().await;
}

#[tokio::test]
async fn a_pool_too_small_for_the_load_changes_no_token() {
    let server = start(&FakeOptions { num_pages: 12, page_size: 8, ..options() }, "--max-batch-prefill-tokens 16");
    check_all(&server, mixed_load(24).into_iter().filter(|request| request.prompt.len() < 60).collect()).await;
    assert!(server.metric("millrace_preemptions_total") > 0.0);
    assert!(server.metric("tgi_batch_concat{reason=\"chunking\"}") > 0.0, "preempted sequences joined others");
    server.end().await;
}

#[tokio::test]
async fn why_a_request_joined_others_is_counted() {
    let slow = FakeOptions { delay: Duration::from_millis(1), ..options() };
    for (flags, counted) in [
        ("--waiting-served-ratio 1 --max-waiting-tokens 1000000", [1, 0, 0]),
        ("--waiting-served-ratio 9 --max-waiting-tokens 3", [0, 1, 0]),
    ] {
        let server = start(&slow, flags);
        let mut first = server.handle.generate(request(prompt(1, 20), 2000));
        read_tokens(&mut first, &mut Outcome::default(), 1).await;
        collect(server.handle.generate(request(prompt(2, 20), 3)), 1).await;
        let joined = ["backpressure", "wait_exceeded", "chunking"]
            .map(|reason| server.metric(&format!("tgi_batch_concat{{reason=\"{reason}\"}}")) as u32);
        assert_eq!(joined, counted, "{flags}");
        drop(first);
        server.end().await;
    }
}

#[tokio::test]
async fn best_of_computes_its_prompt_once() {
    let server = start(&options(), "");
    let request = seeded(prompt(1, 40), 12, &[5, 6, 7]);
    let generation = server.handle.generate(request.clone());
    let outcome = collect(generation, 3).await;
    for sequence in 0..3 {
        assert_eq!(outcome.ids(sequence), server.expected(&request, sequence));
        assert_eq!(outcome.finished[&sequence].seed, Some(5 + sequence as u64));
    }
    assert_eq!(outcome.prefilled.len(), 1);
    assert!(server.metric("millrace_prompt_tokens_computed_total") < 40.0 + 3.0);
    server.end().await;
}

#[tokio::test]
async fn a_prefix_that_is_known_is_not_computed_again() {
    let server = start(&options(), "");
    let first = collect(server.handle.generate(request(prompt(3, 64), 4)), 1).await;
    assert_eq!(first.prefilled[0].cached_tokens, 0);
    let second = collect(server.handle.generate(request(prompt(3, 64), 4)), 1).await;
    assert_eq!(second.prefilled[0].cached_tokens, 48);
    assert_eq!(first.ids(0), second.ids(0));
    server.end().await;
}

#[tokio::test]
async fn workers_that_die_cost_no_token() {
    for step in [1, 2, 3, 7, 12] {
        let server = start(&options(), "");
        server.workers.rank(0).inject(step, Fault::Die);
        check_all(&server, mixed_load(16)).await;
        assert_eq!(server.workers.rank(0).streams(), 2);
        assert_eq!(server.health.phase(), Phase::Serving);
        assert!((server.metric("millrace_worker_restarts_total") - 1.0).abs() < f64::EPSILON);
        server.end().await;
    }
}

#[tokio::test]
async fn workers_without_pages_serve_as_many_as_they_have_rows() {
    let options = FakeOptions { page_size: 0, num_pages: 0, max_rows: 3, ..options() };
    let server = start(&options, "--max-batch-prefill-tokens 16");
    server.workers.rank(0).inject(7, Fault::Die);
    check_all(&server, mixed_load(16)).await;
    check_all(&server, vec![seeded(prompt(1, 40), 12, &[5, 6, 7])]).await;
    assert_eq!(server.workers.rank(0).streams(), 2);
    for unknown in ["millrace_kv_pages_used", "millrace_kv_pages_free", "millrace_kv_pages_cached"] {
        assert!(server.metric(unknown).abs() < f64::EPSILON, "{unknown}");
    }
    assert!(server.metric("millrace_prompt_tokens_cached_total").abs() < f64::EPSILON);
    server.end().await;
}

#[tokio::test]
async fn a_budget_of_tokens_holds_without_pages() {
    let options = FakeOptions { page_size: 0, delay: Duration::from_millis(1), ..options() };
    let server = start(&options, "--max-batch-total-tokens 100 --max-batch-prefill-tokens 100");
    let mut first = server.handle.generate(request(prompt(1, 20), 80));
    let mut outcome = Outcome::default();
    read_tokens(&mut first, &mut outcome, 1).await;
    let second = server.handle.generate(request(prompt(2, 20), 3));
    read_tokens(&mut first, &mut outcome, 6).await;
    assert!((server.metric("tgi_batch_current_size") - 1.0).abs() < f64::EPSILON, "100 tokens are promised");
    drop(first);
    assert_eq!(collect(second, 1).await.ids(0).len(), 3);
    server.end().await;
}

#[tokio::test]
async fn one_dead_rank_of_three_costs_no_token() {
    let server = start_with(FakeGroup::new(&options(), 3), "--num-shard 3", READER_PATIENCE);
    server.workers.rank(2).inject(9, Fault::Die);
    check_all(&server, mixed_load(16)).await;
    assert_eq!(server.workers.rank(0).streams(), 2);
    server.end().await;
}

#[tokio::test]
async fn workers_that_talk_nonsense_are_replaced() {
    for nonsense in
        [Malformation::Ragged, Malformation::ExtraToken, Malformation::ForeignToken, Malformation::WrongStep]
    {
        let server = start(&options(), "");
        server.workers.rank(0).inject(5, Fault::Malformed(nonsense));
        check_all(&server, mixed_load(8)).await;
        assert_eq!(server.workers.rank(0).streams(), 2);
        server.end().await;
    }
}

#[tokio::test]
async fn requests_wait_while_workers_are_gone() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let (first, second) = (request(prompt(1, 20), 50), request(prompt(2, 20), 5));
    let (first_ids, second_ids) = (server.expected(&first, 0), server.expected(&second, 0));
    let mut generation = server.handle.generate(first);
    let mut outcome = Outcome::default();
    read_tokens(&mut generation, &mut outcome, 3).await;
    server.workers.rank(0).set_reachable(false);
    server.workers.rank(0).die();
    while server.health.phase() != Phase::Recovering {
        tokio::task::yield_now().await;
    }
    let waiting = server.handle.generate(second);
    drop(server.handle.generate(request(prompt(3, 20), 5)));
    server.workers.rank(0).set_reachable(true);
    assert_eq!(collect(waiting, 1).await.ids(0), second_ids);
    read_tokens(&mut generation, &mut outcome, 50).await;
    assert_eq!(outcome.ids(0), first_ids);
    assert_eq!(server.health.phase(), Phase::Serving);
    drop(generation);
    server.end().await;
}

#[tokio::test]
async fn dropping_a_generation_ends_its_sequences() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    for read in [0, 1, 5] {
        let mut generation = server.handle.generate(seeded(prompt(read, 30), 2000, &[1, 2]));
        read_tokens(&mut generation, &mut Outcome::default(), read as usize).await;
        drop(generation);
    }
    check_all(&server, mixed_load(4)).await;
    while server.metric("millrace_rows_used") > 0.0 || server.metric("millrace_kv_pages_used") > 0.0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.end().await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_given_up() {
    let options = FakeOptions { delay: Duration::from_millis(2), ..options() };
    let server = start_with(FakeGroup::single(&options), "", Duration::from_millis(20));
    let unread = server.handle.generate(request(prompt(1, 20), 2000));
    // While somebody else reads 200 steps, the first reader's patience is long over.
    let read = request(prompt(2, 20), 200);
    let expected = server.expected(&read, 0);
    assert_eq!(collect(server.handle.generate(read), 1).await.ids(0), expected);
    assert_eq!(collect(unread, 1).await.failed, Some(Failed::Incomplete));
    server.end().await;
}

#[tokio::test]
async fn a_failed_sequence_fails_its_request_alone() {
    let server = start(&options(), "");
    server.workers.rank(0).inject(6, Fault::FailSequence(1));
    let requests = (0..4).map(|number| request(prompt(number, 20), 30));
    let running: Vec<_> = requests
        .map(|request| (server.expected(&request, 0), tokio::spawn(collect(server.handle.generate(request), 1))))
        .collect();
    let mut num_failed = 0;
    for (expected, task) in running {
        let outcome = task.await.unwrap();
        match &outcome.failed {
            Some(failed) => {
                num_failed += 1;
                assert!(matches!(failed, Failed::Generation(_)));
                assert_eq!(outcome.ids(0), expected[..outcome.ids(0).len()]);
            }
            None => assert_eq!(outcome.ids(0), expected),
        }
    }
    assert_eq!(num_failed, 1);
    assert_eq!(server.workers.rank(0).streams(), 1);
    server.end().await;
}

#[tokio::test]
async fn a_failed_sequence_takes_its_siblings_along() {
    let server = start(&options(), "");
    server.workers.rank(0).inject(8, Fault::FailSequence(0));
    let outcome = collect(server.handle.generate(seeded(prompt(1, 20), 1000, &[1, 2])), 2).await;
    assert!(matches!(outcome.failed, Some(Failed::Generation(_))));
    check_all(&server, mixed_load(3)).await;
    assert!(server.workers.rank(0).steps() < 200, "the sibling ended too");
    server.end().await;
}

#[tokio::test]
async fn a_stop_string_ends_the_sequence() {
    let server = start(&options(), "");
    let mut request = request(prompt(1, 20), 200);
    let expected = server.expected(&request, 0);
    let text = text_of(&expected);
    request.stopping.stop = vec![text[10..14].to_owned()];
    let end = text.find(&text[10..14]).unwrap() + 4;
    let outcome = collect(server.handle.generate(request), 1).await;
    let finished = &outcome.finished[&0];
    assert_eq!(finished.reason, FinishReason::StopSequence);
    assert_eq!(finished.generated_text, text[..end]);
    assert_eq!(finished.generated_tokens as usize, end);
    let shown: String = outcome.tokens[&0].iter().map(|token| token.delta.as_str()).collect();
    assert_eq!(shown + &finished.delta, text[..end - 4]);
    server.end().await;
}

#[tokio::test]
async fn the_reason_is_length_before_end_before_stop() {
    let model = ToyModel { token_ids: LETTERS, at_output: BTreeMap::from([(4, EOS)]), ..ToyModel::default() };
    let server = start(&FakeOptions { model, ..options() }, "");
    let run = |max_new_tokens: u32, ignore_eos: bool, stop: &[&str]| {
        let mut request = request(prompt(1, 9), max_new_tokens);
        request.stopping.ignore_eos = ignore_eos;
        request.stopping.stop = stop.iter().map(ToString::to_string).collect();
        collect(server.handle.generate(request), 1)
    };
    let ended = run(20, false, &[]).await;
    assert_eq!((ended.finished[&0].reason, ended.ids(0).len()), (FinishReason::EosToken, 5));
    assert!(ended.tokens[&0][4].special && ended.tokens[&0][4].delta.is_empty());
    assert_eq!((ended.tokens[&0][4].text.as_str(), ended.finished[&0].generated_text.len()), ("<s>", 4));
    assert_eq!(run(5, false, &[]).await.finished[&0].reason, FinishReason::Length);
    assert_eq!(run(5, false, &["<s>"]).await.finished[&0].reason, FinishReason::Length);
    assert_eq!(run(6, false, &["<s>"]).await.finished[&0].reason, FinishReason::EosToken);
    assert_eq!(run(6, true, &["<s>"]).await.finished[&0].reason, FinishReason::StopSequence);
    let ignored = run(20, true, &[]).await;
    assert_eq!((ignored.finished[&0].reason, ignored.ids(0).len()), (FinishReason::Length, 20));
    server.end().await;
}

#[tokio::test]
async fn prompt_logprobs_and_top_tokens_are_passed_on() {
    let server = start(&options(), "--max-batch-prefill-tokens 16");
    let mut request = request(prompt(1, 40), 3);
    request.prompt_logprobs = true;
    request.sampling = vec![Arc::new(Sampling { top_n_tokens: 2, prompt_top_tokens: 2, ..Sampling::default() })];
    let expected = server.workers.rank(0).expected_samples(&request.prompt, &request.sampling[0], 3);
    let outcome = collect(server.handle.generate(request.clone()), 1).await;
    let logprobs = &outcome.prefilled[0].prompt_logprobs;
    assert_eq!(logprobs[0], None);
    let known: Vec<f32> = logprobs[1..].iter().map(|logprob| logprob.unwrap()).collect();
    assert_eq!(known, ToyModel::prompt_logprobs(&request.prompt));
    for (at, top) in outcome.prefilled[0].prompt_top_tokens.iter().enumerate() {
        assert_eq!(top.len(), if at == 0 { 0 } else { 2 });
        assert!(top.first().is_none_or(|first| first.id == request.prompt[at] && Some(first.logprob) == logprobs[at]));
    }
    assert_eq!(outcome.prefilled[0].prompt_top_tokens.len(), request.prompt.len());
    for (token, expected) in outcome.tokens[&0].iter().zip(&expected) {
        assert_eq!(token.logprob.to_bits(), expected.logprob.to_bits());
        let texts: Vec<String> = token.top_tokens.iter().map(|top| top.text.clone()).collect();
        let expected: Vec<String> = expected.top_tokens.iter().map(|top| letter(top.token_id).to_string()).collect();
        assert_eq!(texts, expected);
    }
    assert_eq!(outcome.finished[&0].seed, None);
    server.end().await;
}

#[tokio::test]
async fn running_requests_finish_when_every_handle_is_dropped() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let request = request(prompt(1, 20), 40);
    let expected = server.expected(&request, 0);
    let generation = server.handle.generate(request);
    drop(server.handle);
    assert_eq!(collect(generation, 1).await.ids(0), expected);
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_engine_that_ends_leaves_nobody_waiting() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let mut generation = server.handle.generate(request(prompt(1, 20), 2000));
    let mut outcome = Outcome::default();
    read_tokens(&mut generation, &mut outcome, 1).await;
    server.task.abort();
    while outcome.failed.is_none() {
        let events = generation.next().await;
        assert!(!events.is_empty());
        outcome.note_all(events);
    }
    assert_eq!(outcome.failed, Some(Failed::Incomplete));
    assert!(server.handle.generate(request(prompt(1, 20), 1)).next().await.is_empty());
}

#[tokio::test]
async fn requests_that_come_before_the_workers_are_served() {
    let server = start(&FakeOptions { load_time: Duration::from_millis(30), ..options() }, "--max-total-tokens 100");
    assert_eq!((server.health.phase(), server.health.limits()), (Phase::Starting, None));
    check_all(&server, mixed_load(2)).await;
    let limits = server.health.limits().unwrap();
    assert_eq!((limits.max_input_tokens, limits.max_total_tokens, limits.vocab_size), (99, 100, 1000));
    server.end().await;
}

#[tokio::test]
async fn workers_that_refuse_at_the_start_end_the_engine() {
    let workers = FakeGroup::single(&options());
    workers.rank(0).refuse_prepare(Some("out of memory"));
    let server = start_with(workers, "", READER_PATIENCE);
    let error = server.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
}

#[tokio::test]
async fn limits_that_the_workers_cannot_hold_end_the_engine() {
    let server = start(&options(), "--max-total-tokens 5000");
    assert!(matches!(server.task.await.unwrap(), Err(EngineError::Limits(BadLimits::TotalAbovePositions { .. }))));
}

#[tokio::test]
async fn draining_outlives_a_restart_of_the_workers() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let request = request(prompt(1, 20), 30);
    let expected = server.expected(&request, 0);
    server.workers.rank(0).inject(10, Fault::Die);
    let generation = server.handle.generate(request);
    server.health.drain();
    assert_eq!(collect(generation, 1).await.ids(0), expected);
    assert_eq!(server.health.phase(), Phase::Draining);
    server.end().await;
}
