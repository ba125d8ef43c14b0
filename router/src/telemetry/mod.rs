//! What an operator sees: logs and metrics.

mod logs;
mod metrics;
mod pages;

pub use logs::{RequestRecord, init_logs, log_panics, log_request, log_start};
pub use metrics::{Metrics, Recorder};
