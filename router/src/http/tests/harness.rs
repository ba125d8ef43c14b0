use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::{Router, http};
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tower::ServiceExt;

use crate::config::Config;
use crate::detokenize::Detokenizer;
use crate::engine::api::{
    Command, EngineHandle, Event, FinishReason, Finished, Mailbox, Prefilled, Times, Token, TopToken,
};
use crate::health::{Health, Limits};
use crate::http::{Context, router};
use crate::overload::{Backlog, Progress, Reservation, Room, StepCost};
use crate::request::ValidRequest;
use crate::telemetry::Metrics;
use crate::tenants::Tenants;
use crate::tokenizer::fixture;

/// What the engine does with a request: batches of events, one mailbox push each. No end means that it hangs.
pub(super) type Script = fn(&ValidRequest) -> Vec<Vec<Event>>;

/// A server in this process.
pub(super) struct Server {
    pub(super) router: Router,
    pub(super) context: Context,
    pub(super) health: Health,
    pub(super) metrics: Metrics,
    pub(super) backlog: Backlog,
    /// What reached the engine.
    pub(super) requests: Arc<Mutex<Vec<ValidRequest>>>,
    /// How many requests were cancelled.
    pub(super) cancelled: Arc<Mutex<usize>>,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

pub(super) fn detokenizer() -> Detokenizer {
    Detokenizer::new(fixture::text_model().tokenizer())
}

pub(super) const LIMITS: Limits =
    Limits { max_input_tokens: 64, max_total_tokens: 100, vocab_size: fixture::VOCAB_SIZE };

impl Server {
    pub(super) fn start() -> Self {
        Self::with(&[], &[], speak)
    }

    pub(super) fn flags(flags: &[&str]) -> Self {
        Self::with(flags, &[], speak)
    }

    pub(super) fn playing(script: Script) -> Self {
        Self::with(&[], &[], script)
    }

    pub(super) fn with(flags: &[&str], environment: &[(&str, &str)], script: Script) -> Self {
        let text = fixture::text_model();
        let arguments = ["millrace-router", "--model-id", "test/model"].iter().chain(flags).copied();
        let variable = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let config = Config::read(arguments, variable).unwrap();
        let health = Health::default();
        health.serve(LIMITS);
        let (engine, commands) = EngineHandle::new();
        let (requests, cancelled) = (Arc::default(), Arc::default());
        let backlog = Backlog::new(&config);
        backlog.workers_ready(Room { rows: 2, step_tokens: 64 });
        tokio::spawn(play(commands, script, Arc::clone(&requests), Arc::clone(&cancelled)));
        let (metrics, recorder) = Metrics::new();
        metrics.set_limits(&LIMITS);
        let context = Context {
            places: Arc::new(Semaphore::new(config.max_places() as usize)),
            unwritten: Arc::new(Semaphore::new(1000)),
            tenants: metrics::with_local_recorder(&recorder, || Tenants::load(&config).unwrap()),
            config: Arc::new(config),
            health: health.clone(),
            engine,
            detokenizer: Arc::new(detokenizer()),
            text: Arc::new(text),
            metrics: metrics.clone(),
            backlog: backlog.clone(),
        };
        let router = metrics::with_local_recorder(&recorder, || router(context.clone()));
        Self { router, context, health, metrics, backlog, requests, cancelled }
    }

    /// The engine has made a step of this cost, and has so many tokens of prompts to compute.
    pub(super) fn step(&self, step_seconds: f64, uncomputed_tokens: u64) {
        self.backlog.publish(Progress {
            steps: 1,
            cost: StepCost { step: step_seconds, token: 0.0 },
            uncomputed_tokens,
            free_tokens: u64::MAX,
            used_tokens: 0,
            num_preempted: 0,
            prompt_tokens: u32::MAX,
        });
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body: String::from_utf8(body.into()).unwrap() }
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(post(path, body.to_string())).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// The chunks of a body as they were written.
    pub(super) async fn chunks(&self, path: &str, body: Value) -> Vec<String> {
        let response = self.router.clone().oneshot(post(path, body.to_string())).await.unwrap();
        let chunks = response.into_body().into_data_stream();
        chunks.map(|chunk| String::from_utf8(chunk.unwrap().into()).unwrap()).collect().await
    }

    /// What the engine got last.
    pub(super) fn last_request(&self) -> ValidRequest {
        self.requests.lock().unwrap().last().cloned().expect("a request should have reached the engine")
    }

    pub(super) fn num_requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// The value of one series of `/metrics`.
    pub(super) fn metric(&self, series: &str) -> Option<f64> {
        let text = self.metrics.render();
        text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
    }
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The JSON of each event; `[DONE]` as a string.
    pub(super) fn events(&self) -> Vec<Value> {
        let datas = self.body.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
        datas.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
    }
}

pub(super) fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header(http::header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
}

async fn play(
    mut commands: UnboundedReceiver<Command>,
    script: Script,
    requests: Arc<Mutex<Vec<ValidRequest>>>,
    cancelled: Arc<Mutex<usize>>,
) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Submit { request, reservation, mailbox } => {
                let batches = script(&request);
                requests.lock().unwrap().push(*request);
                reservation.started();
                tokio::spawn(deliver(batches, mailbox, reservation));
            }
            Command::EndAll => {}
            Command::Cancel { .. } => *cancelled.lock().unwrap() += 1,
        }
    }
}

/// Without a batch it hangs, for as long as somebody reads.
async fn deliver(batches: Vec<Vec<Event>>, mailbox: Arc<Mailbox>, _reservation: Reservation) {
    while batches.is_empty() && Arc::strong_count(&mailbox) > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    for batch in batches {
        mailbox.push(batch);
        // Lets the reader come in between, so that each batch is a chunk of its own.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

/// ` t1 t2 t3 …` until the length is reached; every sequence one logprob point worse than the one before.
pub(super) fn speak(request: &ValidRequest) -> Vec<Vec<Event>> {
    let length = request.stopping.max_new_tokens;
    let prompt_logprobs = if request.prompt_logprobs { prompt_logprobs(request) } else { Vec::new() };
    let mut batches = vec![vec![Event::Prefilled(Prefilled { prompt_logprobs, ..Prefilled::default() })]];
    for index in 1..=length {
        let mut batch = Vec::new();
        for (sequence, sampling) in request.sampling.iter().enumerate() {
            let token = token(index, -1.0 - sequence as f32, sampling.top_n_tokens);
            batch.push(Event::Token { sequence, token });
            if index == length {
                let finished = finished(length, FinishReason::Length, sampling.do_sample.then_some(sampling.seed));
                batch.push(Event::Finished { sequence, finished });
            }
        }
        batches.push(batch);
    }
    batches
}

fn prompt_logprobs(request: &ValidRequest) -> Vec<Option<f32>> {
    let known = (1..request.prompt.len()).map(|position| Some(-(position as f32)));
    if request.prompt.len() > 1 { std::iter::once(None).chain(known).collect() } else { Vec::new() }
}

pub(super) fn token(index: u32, logprob: f32, top_n: u32) -> Token {
    let text = format!(" t{index}");
    let top = |rank| TopToken { id: 10 + rank, text: format!(" top{rank}"), logprob: -0.5, special: false };
    let top_tokens = (0..top_n).map(top).collect();
    Token { id: 100 + index, delta: text.clone(), text, logprob, special: false, top_tokens }
}

pub(super) fn finished(length: u32, reason: FinishReason, seed: Option<u64>) -> Finished {
    let now = Instant::now();
    Finished {
        reason,
        generated_text: (1..=length).map(|index| token(index, 0.0, 0).text).collect(),
        delta: String::new(),
        generated_tokens: length,
        seed,
        times: Times { started: now, first_token: now, ended: now },
    }
}
