//! What an operator sees: logs and metrics.

mod logs;
mod metrics;

pub use logs::{RequestRecord, init_logs, log_request};
pub use metrics::{Metrics, Recorder};
