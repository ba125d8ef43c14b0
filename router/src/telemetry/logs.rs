//! Logs: text with file and line, or one flat JSON object per line.

use std::io::IsTerminal;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

/// Starts logging to standard output. Levels `warn`, `info` and `debug` are ours alone; any other value is a filter as
/// `tracing` writes them, for every target. A second call changes nothing.
pub fn init_logs(level: &str, json: bool) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level)).with_file(true).with_line_number(true);
    let outcome = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::stdout().is_terminal()).try_init()
    };
    if outcome.is_err() {
        tracing::debug!("logging has already been started");
    }
}

fn filter(level: &str) -> EnvFilter {
    let directives = match level {
        "error" | "warn" | "info" | "debug" | "trace" => {
            format!("off,millrace_router={level},millrace_client={level},millrace_scheduler={level}")
        }
        other => other.to_owned(),
    };
    EnvFilter::try_new(&directives).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// What is logged of a request that ended well.
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord<'a> {
    pub request_id: &'a str,
    /// From its arrival to its last token.
    pub total_time: Duration,
    pub validation_time: Duration,
    /// From validated to first scheduled.
    pub queue_time: Duration,
    /// From first scheduled to its last token.
    pub inference_time: Duration,
    pub time_per_token: Duration,
    /// `None` for greedy requests.
    pub seed: Option<u64>,
}

/// One record per request, with the original's field names.
pub fn log_request(record: &RequestRecord<'_>) {
    tracing::info!(
        request_id = record.request_id,
        total_time = ?record.total_time,
        validation_time = ?record.validation_time,
        queue_time = ?record.queue_time,
        inference_time = ?record.inference_time,
        time_per_token = ?record.time_per_token,
        seed = ?record.seed,
        "Success"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_levels_are_narrowed_to_our_targets() {
        assert_eq!(filter("debug").to_string().matches("millrace_").count(), 3);
        assert!(!filter("info").to_string().contains("hyper"));
    }

    #[test]
    fn other_values_are_filters_and_nonsense_is_info() {
        assert_eq!(filter("hyper=trace").to_string(), "hyper=trace");
        assert_eq!(filter("a=b=c").to_string(), "info");
    }
}
