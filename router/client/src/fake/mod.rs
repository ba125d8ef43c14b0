//! The router's test and benchmark partner: workers without a model.
//!
//! A [`FakeWorker`] keeps the contract as a real one does, checks every plan against what its pages hold, and goes wrong
//! when told to. It is driven in process as a [`FakeGroup`], or over a real socket ([`FakeWorker::serve`]).

mod memory;
mod model;
mod server;
mod service;
mod worker;

pub use model::{Prefix, ToyModel};
pub use server::ServedFake;
pub use worker::{FakeOptions, FakeWorker, Fault, Malformation};

use crate::connection::{Client, Unreachable};
use crate::pulse::Vitals;
use crate::sharded::{Connected, StartError, Workers};
use service::{Death, FakeService};

/// Fake workers in this process: everything but the sockets is what [`ShardedClient`](crate::ShardedClient) does.
/// Clones are handles on the same workers.
#[derive(Clone, Debug)]
pub struct FakeGroup {
    ranks: Vec<FakeWorker>,
    vitals: Vitals,
}

impl FakeGroup {
    /// One worker. Call within a tokio runtime, as everything else here.
    pub fn single(options: &FakeOptions) -> Self {
        Self::new(options, 1)
    }

    pub fn new(options: &FakeOptions, world_size: u32) -> Self {
        let rank = |rank| FakeWorker::of_group(options.clone(), rank, world_size);
        Self { ranks: (0..world_size).map(rank).collect(), vitals: Vitals::default() }
    }

    /// Panics when there is no such rank.
    pub fn rank(&self, rank: usize) -> &FakeWorker {
        &self.ranks[rank]
    }

    /// What was wrong with the plans, over all ranks. Correct schedulers leave it empty.
    pub fn violations(&self) -> Vec<String> {
        self.ranks.iter().flat_map(FakeWorker::violations).collect()
    }
}

impl Workers for FakeGroup {
    async fn connect(&mut self) -> Result<Connected, StartError> {
        if let Some(rank) = self.ranks.iter().position(|worker| !worker.is_reachable()) {
            let cause = Unreachable { endpoint: format!("fake worker {rank}"), reason: "not reachable".to_owned() };
            return Err(StartError::Unreachable { rank, cause });
        }
        let client = |worker: &FakeWorker| Client::over(FakeService::server(worker.clone(), Death::Status));
        Connected::meet(self.ranks.iter().map(client).collect(), &self.vitals).await
    }

    fn vitals(&self) -> &Vitals {
        &self.vitals
    }
}
