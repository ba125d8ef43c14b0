//! How the router reaches its workers: one gRPC stream per rank, one plan down and one answer up per step.
//!
//! [`Workers`] is what the engine drives. [`ShardedClient`] implements it over sockets; [`fake::FakeGroup`] implements
//! it in process, through the same code but for the sockets.

mod bound;
mod codec;
mod columns;
mod connection;
pub mod convert;
pub mod fake;
mod pulse;
mod sharded;
mod steps;

/// The contract of `proto/worker.proto`, generated.
#[allow(clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("millrace.v1");
}

pub use bound::Bound;
pub use columns::Malformed;
pub use connection::{Client, Unreachable};
pub use pulse::{LOADING_SILENCE, SILENCE, Vital, Vitals};
pub use sharded::{Backoff, Connected, ShardedClient, StartError, Workers, connect_with_retry};
pub use steps::{Hang, LostReason, MAX_STEPS_IN_FLIGHT, StepStream, WorkersLost};
pub use v1::{ModelDescription, PrepareRequest, Prepared};
