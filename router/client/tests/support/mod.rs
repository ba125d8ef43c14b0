//! What the tests share: groups of fake workers behind every transport, and the smallest scheduler that can drive them.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use millrace_client::fake::{FakeGroup, FakeOptions, FakeWorker, ServedFake};
use millrace_client::{Connected, PrepareRequest, ShardedClient, StartError, StepStream, Workers, WorkersLost};
use millrace_scheduler::{Admission, PageId, Row, Sampling, SequenceId, StepPlan, StepResult, Work};

pub(crate) const REQUEST: PrepareRequest = PrepareRequest {
    max_rows: 8,
    max_step_tokens: 512,
    max_sequence_tokens: 0,
    max_pool_tokens: 0,
    max_top_n_tokens: 5,
    prompt_logprobs: true,
    grammars: true,
};

/// Fails a test that would wait for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(300), future).await.expect("this should not take long")
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Transport {
    InProcess,
    Unix,
    Tcp,
}

pub(crate) const EVERYWHERE: [(Transport, u32); 6] = [
    (Transport::InProcess, 1),
    (Transport::InProcess, 3),
    (Transport::Unix, 1),
    (Transport::Unix, 3),
    (Transport::Tcp, 1),
    (Transport::Tcp, 3),
];

/// Fake workers and the way to them.
pub(crate) struct Group {
    pub(crate) workers: Vec<FakeWorker>,
    served: Vec<ServedFake>,
    way: Way,
    _folder: tempfile::TempDir,
}

enum Way {
    InProcess(FakeGroup),
    Sockets(ShardedClient),
}

impl Group {
    pub(crate) fn new(transport: Transport, world_size: u32, options: &FakeOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let in_process = FakeGroup::new(options, world_size);
        let workers: Vec<FakeWorker> = (0..world_size as usize).map(|rank| in_process.rank(rank).clone()).collect();
        let prefix = folder.path().join("worker");
        let endpoint = |rank| match transport {
            Transport::Tcp => "http://127.0.0.1:0".to_owned(),
            _ => format!("unix:{}-{rank}", prefix.display()),
        };
        let serve = |(rank, worker): (usize, &FakeWorker)| worker.serve(&endpoint(rank)).unwrap();
        let (served, way): (Vec<ServedFake>, Way) = match transport {
            Transport::InProcess => (Vec::new(), Way::InProcess(in_process)),
            Transport::Unix => {
                let served = workers.iter().enumerate().map(serve).collect();
                (served, Way::Sockets(ShardedClient::unix(&prefix, workers.len())))
            }
            Transport::Tcp => {
                let served: Vec<ServedFake> = workers.iter().enumerate().map(serve).collect();
                let endpoints = served.iter().map(|served| served.endpoint().to_owned()).collect();
                (served, Way::Sockets(ShardedClient::new(endpoints)))
            }
        };
        Self { workers, served, way, _folder: folder }
    }

    pub(crate) async fn connect(&mut self) -> Result<Connected, StartError> {
        match &mut self.way {
            Way::InProcess(group) => soon(group.connect()).await,
            Way::Sockets(client) => soon(client.connect()).await,
        }
    }

    pub(crate) async fn run(&mut self) -> StepStream {
        let connected = self.connect().await.unwrap();
        soon(connected.prepare(REQUEST)).await.unwrap();
        soon(connected.run()).await.unwrap()
    }

    /// As a process that is gone: sockets closed, nobody listens.
    pub(crate) fn kill(&mut self, rank: usize) {
        match self.served.get_mut(rank) {
            Some(served) => served.kill(),
            None => self.workers[rank].die(),
        }
    }

    /// Whatever has died lives again.
    pub(crate) fn restart(&mut self) {
        self.served.iter_mut().for_each(|served| served.restart().unwrap());
    }

    pub(crate) fn assert_no_violations(&self) {
        for worker in &self.workers {
            assert_eq!(worker.violations(), Vec::<String>::new());
        }
    }
}

/// One sequence to drive.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) prompt: Vec<u32>,
    pub(crate) sampling: Sampling,
    pub(crate) num_new_tokens: u32,
}

impl Job {
    pub(crate) fn greedy(prompt: impl IntoIterator<Item = u32>, num_new_tokens: u32) -> Self {
        Self { prompt: prompt.into_iter().collect(), sampling: Sampling::default(), num_new_tokens }
    }

    pub(crate) fn expected(&self, worker: &FakeWorker) -> Vec<u32> {
        worker.expected(&self.prompt, &self.sampling, self.num_new_tokens as usize)
    }
}

/// Plans jobs side by side: the first step computes the prompts, each later one a token more; then rows are released.
pub(crate) struct Plans<'a> {
    jobs: &'a [Job],
    page_size: u32,
}

impl Plans<'_> {
    pub(crate) fn of(jobs: &[Job], page_size: u32) -> Plans<'_> {
        Plans { jobs, page_size }
    }

    pub(crate) fn num_steps(&self) -> u64 {
        self.jobs.iter().map(|job| job.num_new_tokens).max().unwrap_or(0).into()
    }

    /// The plan of a step, from 1 on.
    pub(crate) fn plan(&self, step: u64) -> StepPlan {
        let mut plan = StepPlan { step, ..StepPlan::default() };
        let mut next_page = 0;
        for (row, job) in (0..).map(Row).zip(self.jobs) {
            let sequence = SequenceId(100 + u64::from(row.0));
            let num_prompt_tokens = job.prompt.len() as u32;
            let num_pages = (num_prompt_tokens + job.num_new_tokens).div_ceil(self.page_size);
            let pages = (next_page..next_page + num_pages).map(PageId);
            next_page += num_pages;
            let known = num_prompt_tokens + step as u32 - 1;
            if step == 1 {
                plan.admitted.push(Admission {
                    sequence,
                    row,
                    token_ids: job.prompt.clone(),
                    num_prompt_tokens,
                    pages: pages.collect(),
                    sampling: Arc::new(job.sampling.clone()),
                    prompt_logprobs: false,
                });
                plan.work.push(Work { sequence, row, start: 0, count: num_prompt_tokens, samples: true });
            } else if step <= job.num_new_tokens.into() {
                plan.work.push(Work { sequence, row, start: known - 1, count: 1, samples: true });
            } else if step == u64::from(job.num_new_tokens) + 1 {
                plan.released.push(row);
            }
        }
        plan
    }
}

/// Runs jobs with two steps in flight. Answers every token and the results as they came.
pub(crate) async fn generate(
    steps: &mut StepStream,
    jobs: &[Job],
    page_size: u32,
) -> Result<(Vec<Vec<u32>>, Vec<StepResult>), WorkersLost> {
    let plans = Plans::of(jobs, page_size);
    let mut outputs = vec![Vec::new(); jobs.len()];
    let mut results = Vec::new();
    let mut in_flight: BTreeMap<u64, StepPlan> = BTreeMap::new();
    let mut next_step = 1;
    while results.len() < plans.num_steps() as usize {
        while in_flight.len() < 2 && next_step <= plans.num_steps() {
            let plan = plans.plan(next_step);
            steps.send(&plan);
            in_flight.insert(next_step, plan);
            next_step += 1;
        }
        let result = soon(steps.next()).await?;
        let plan = in_flight.remove(&result.step).expect("a result of a step in flight");
        for (work, sampled) in plan.work.iter().filter(|work| work.samples).zip(&result.sampled) {
            outputs[work.row.0 as usize].push(sampled.token_id);
        }
        results.push(result);
    }
    Ok((outputs, results))
}
