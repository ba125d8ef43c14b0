//! The contract, as a fake worker keeps it: the same service in process and over sockets.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_scheduler::{StepPlan, StepResult};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::memory::{Limits, Memory};
use super::worker::{FakeWorker, Fault, Malformation};
use crate::connection::MAX_MESSAGE_BYTES;
use crate::convert::{plan_from_proto, result_to_proto};
use crate::steps::MAX_STEPS_IN_FLIGHT;
use crate::v1::worker_server::{Worker, WorkerServer};
use crate::v1::{self, DescribeRequest, ModelDescription, PrepareRequest, Prepared};

/// What dying looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Death {
    /// In process: streams end with a status.
    Status,
    /// Served: whoever serves it drops the sockets; until then there is silence.
    Silence,
}

#[derive(Clone, Debug)]
pub(super) struct FakeService {
    worker: FakeWorker,
    death: Death,
    prepared: Arc<Mutex<Option<Limits>>>,
}

impl FakeService {
    pub(super) fn server(worker: FakeWorker, death: Death) -> WorkerServer<Self> {
        WorkerServer::new(Self { worker, death, prepared: Arc::default() })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

#[tonic::async_trait]
impl Worker for FakeService {
    type RunStream = ReceiverStream<Result<v1::StepResult, Status>>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<ModelDescription>, Status> {
        self.worker.has_a_pulse().await;
        self.unless_it_dies(self.worker.loaded()).await?;
        let options = self.worker.options();
        Ok(Response::new(ModelDescription {
            architecture: "ToyForCausalLM".to_owned(),
            implementation: "fake".to_owned(),
            dtype: "float32".to_owned(),
            device: "cpu".to_owned(),
            device_name: "cpu".to_owned(),
            rank: self.worker.rank(),
            world_size: self.worker.world_size(),
            vocab_size: options.vocab_size,
            max_positions: options.max_positions,
            page_size: options.page_size,
            instance: self.worker.instance(),
            capabilities: vec!["prompt_logprobs".to_owned()],
            ..ModelDescription::default()
        }))
    }

    async fn beat(&self, _: Request<v1::BeatRequest>) -> Result<Response<v1::Heartbeat>, Status> {
        let worker = &self.worker;
        worker.has_a_pulse().await;
        if worker.is_mute() {
            std::future::pending::<()>().await;
        }
        let (stage, done) = if worker.is_loaded() { ("", 1) } else { ("loading the weights", 0) };
        Ok(Response::new(v1::Heartbeat {
            progress: worker.steps(),
            is_computing: false,
            generation: worker.generation(),
            stage: stage.to_owned(),
            done,
            total: 1,
            ..v1::Heartbeat::default()
        }))
    }

    async fn prepare(&self, request: Request<PrepareRequest>) -> Result<Response<Prepared>, Status> {
        self.worker.has_a_pulse().await;
        self.worker.loaded().await;
        match self.worker.take_fault(0) {
            Some(Fault::Die) => {
                self.worker.die();
                return Err(death_status());
            }
            Some(Fault::Hang) => self.unless_it_dies(self.worker.released()).await?,
            _ => {}
        }
        if let Some(message) = self.worker.refusal() {
            return Err(Status::failed_precondition(message));
        }
        let limits = self.limits(request.get_ref()).map_err(Status::invalid_argument)?;
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(limits);
        Ok(Response::new(Prepared {
            num_pages: limits.num_pages,
            max_sequence_tokens: limits.max_sequence_tokens,
            page_bytes: u64::from(limits.page_size) * 8,
            weight_bytes: 0,
            workspace_bytes: 0,
            free_bytes: 1 << 30,
            max_rows: limits.max_rows,
            trial_tokens: if self.worker.options().trial.is_zero() { 0 } else { limits.max_step_tokens },
            trial_us: self.worker.options().trial.as_micros() as u64,
            prepare_us: 0,
        }))
    }

    async fn run(&self, request: Request<Streaming<v1::StepPlan>>) -> Result<Response<Self::RunStream>, Status> {
        let limits = *self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let limits = limits.ok_or_else(|| Status::failed_precondition("Run before Prepare"))?;
        self.worker.count_stream();
        let (answers, stream) = mpsc::channel(MAX_STEPS_IN_FLIGHT);
        let run = Run {
            worker: self.worker.clone(),
            memory: Memory::new(limits, self.worker.options().verify),
            due: 1,
            answers,
        };
        tokio::spawn(run.until_its_end(request.into_inner(), self.death));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl FakeService {
    async fn unless_it_dies(&self, work: impl Future<Output = ()>) -> Result<(), Status> {
        let mut deaths = self.worker.watch_deaths();
        tokio::select! {
            biased;
            _ = deaths.changed() => Err(death_status()),
            () = work => Ok(()),
        }
    }

    fn limits(&self, request: &PrepareRequest) -> Result<Limits, String> {
        let options = self.worker.options();
        if request.max_rows == 0 || request.max_step_tokens < request.max_rows {
            return Err("max_rows must be at least 1 and max_step_tokens at least max_rows".to_owned());
        }
        if request.max_sequence_tokens > options.max_positions {
            return Err(format!("max_sequence_tokens must be at most {} (max_positions)", options.max_positions));
        }
        let or_all = |limit, all| if limit == 0 { all } else { limit };
        let cap = or_all(request.max_pool_tokens, u64::MAX).checked_div(options.page_size.into()).unwrap_or(0);
        let num_pages = u64::from(options.num_pages).min(cap) as u32;
        if num_pages == 0 && options.page_size > 0 {
            return Err(format!("max_pool_tokens must be 0 or at least {} (page_size)", options.page_size));
        }
        Ok(Limits {
            max_rows: request.max_rows.min(if options.max_rows == 0 { u32::MAX } else { options.max_rows }),
            max_step_tokens: request.max_step_tokens,
            // Left open, the longest sequence is what the pool holds.
            max_sequence_tokens: match request.max_sequence_tokens {
                0 if options.page_size == 0 => options.max_positions,
                0 => options.max_positions.min(num_pages.saturating_mul(options.page_size)),
                asked => asked,
            },
            max_top_n_tokens: request.max_top_n_tokens,
            prompt_logprobs: request.prompt_logprobs,
            num_pages,
            page_size: options.page_size,
        })
    }
}

/// One step stream.
struct Run {
    worker: FakeWorker,
    memory: Memory,
    /// The number of the next plan.
    due: u64,
    answers: mpsc::Sender<Result<v1::StepResult, Status>>,
}

impl Run {
    /// Until the router has gone, a plan was impossible, or the worker dies.
    async fn until_its_end(mut self, mut plans: Streaming<v1::StepPlan>, death: Death) {
        let answers = self.answers.clone();
        let instance = self.worker.instance();
        let mut deaths = self.worker.watch_deaths();
        let outcome = tokio::select! {
            biased;
            _ = deaths.changed() => Err(death_status()),
            () = answers.closed() => Ok(()),
            outcome = self.answer_all(&mut plans) => outcome,
        };
        if self.worker.instance() != instance && death == Death::Silence {
            return answers.closed().await;
        }
        if let Err(status) = outcome {
            // Nobody is listening any more when this fails.
            let _ = answers.send(Err(status)).await;
        }
    }

    async fn answer_all(&mut self, plans: &mut Streaming<v1::StepPlan>) -> Result<(), Status> {
        while let Some(plan) = plans.message().await? {
            self.answer(&plan).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, plan: &v1::StepPlan) -> Result<(), Status> {
        let started = Instant::now();
        let fault = self.worker.take_fault(plan.step);
        match fault {
            Some(Fault::Die) => {
                self.worker.die();
                return Err(death_status());
            }
            Some(Fault::Hang) => self.worker.released().await,
            _ => {}
        }
        self.worker.has_a_pulse().await;
        let mut result = self.compute(plan, fault).map_err(|violation| {
            let status = Status::internal(format!("step {}: {violation}", plan.step));
            self.worker.report([format!("rank {}: {}", self.worker.rank(), status.message())]);
            status
        })?;
        pause(self.worker.options().delay).await;
        result.timings.total_us = started.elapsed().as_micros() as u32;
        result.timings.forward_us = result.timings.total_us;
        self.send(&result, fault).await;
        Ok(())
    }

    fn compute(&mut self, plan: &v1::StepPlan, fault: Option<Fault>) -> Result<StepResult, String> {
        if plan.step != self.due {
            return Err(format!("step {} was due", self.due));
        }
        self.due += 1;
        let memory = &mut self.memory;
        let plan = plan_from_proto(plan, |row| memory.sequence_of(row)).map_err(|malformed| malformed.to_string())?;
        memory.update(&plan)?;
        script_failures(memory, &plan, fault);
        let (mut result, violations) = memory.compute(&plan, &self.worker.options().model)?;
        self.worker.report(violations);
        result.whole_step = fault == Some(Fault::FailStep);
        result.progress = self.worker.count_step(plan.work.iter().map(|work| u64::from(work.count)).sum());
        Ok(result)
    }

    async fn send(&self, result: &StepResult, fault: Option<Fault>) {
        let answer = if self.worker.rank() == 0 {
            result_to_proto(result)
        } else {
            v1::StepResult { step: result.step, progress: result.progress, ..v1::StepResult::default() }
        };
        let mut answers = vec![answer];
        if let Some(Fault::Malformed(malformation)) = fault {
            malform(&mut answers, malformation);
        }
        for answer in answers {
            // Fails when the router has gone, which ends the stream elsewhere.
            let _ = self.answers.send(Ok(answer)).await;
        }
    }
}

fn death_status() -> Status {
    Status::unavailable("the fake worker died")
}

fn script_failures(memory: &mut Memory, plan: &StepPlan, fault: Option<Fault>) {
    match fault {
        Some(Fault::FailSequence(index)) if !plan.work.is_empty() => {
            let work = &plan.work[index % plan.work.len()];
            memory.fail(work.row, "scripted failure of one sequence");
        }
        Some(Fault::FailStep) => {
            plan.work.iter().for_each(|work| memory.fail(work.row, "scripted failure of the step"));
        }
        _ => {}
    }
}

fn malform(answers: &mut Vec<v1::StepResult>, malformation: Malformation) {
    let answer = &mut answers[0];
    match malformation {
        Malformation::Ragged => answer.logprobs.push(0),
        Malformation::ExtraToken => answer.token_ids.extend(1_u32.to_le_bytes()),
        Malformation::ForeignToken => {
            let num_bytes = answer.token_ids.len();
            answer.token_ids = (u32::MAX - 1).to_le_bytes().repeat(num_bytes / 4);
        }
        Malformation::WrongStep => answer.step += 1,
        Malformation::Twice => {
            let again = answer.clone();
            answers.push(again);
        }
        Malformation::NoPromptLogprobs => answer.prompt_logprobs = None,
    }
}

/// Timers tick in milliseconds: shorter pauses block the thread, which is harmless because they are short.
async fn pause(duration: Duration) {
    if duration >= Duration::from_millis(1) {
        tokio::time::sleep(duration).await;
    } else if !duration.is_zero() {
        std::thread::sleep(duration);
    }
}
