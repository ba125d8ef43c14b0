//! Logs: text with file and line, or one flat JSON object per line.

use std::io::IsTerminal;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Config;

/// Starts logging to standard output. Levels `warn`, `info` and `debug` are ours alone; any other value is a filter as
/// `tracing` writes them, for every target. A second call changes nothing.
pub fn init_logs(config: &Config) {
    let colours = config.log_colorize.unwrap_or_else(|| std::io::stdout().is_terminal());
    let subscriber = subscriber(&config.log_level, config.json_output, colours, std::io::stdout);
    if subscriber.try_init().is_err() {
        tracing::debug!("logging has already been started");
    }
}

/// Panics are told with their place. What they say may quote what a client has sent (as where a text is cut within a
/// character): it is told at level `debug` only.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a thread panicked");
        tracing::debug!(place, "{panic}");
    }));
}

fn subscriber<W>(level: &str, json: bool, colours: bool, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_file(true)
        .with_line_number(true)
        .with_ansi(colours)
        .with_writer(writer);
    if json { Box::new(builder.json().flatten_event(true).finish()) } else { Box::new(builder.finish()) }
}

/// What a person wants to know of a start, in a few lines; all of it at level `debug`.
pub fn log_start(config: &Config) {
    let Config { model_id, hostname, port, num_shard, .. } = config;
    if config.await_model {
        tracing::info!("going to serve {model_id}");
    } else {
        tracing::info!("serving {model_id} (files in {})", config.model_path().display());
    }
    tracing::info!("listening on {hostname}:{port}, {num_shard} shard(s) behind {}", config.worker_uds_path);
    tracing::info!("limits given: {}", given_limits(config));
    tracing::debug!(?config, "configuration");
}

/// The limits that decide what is admitted; an open one is settled when the workers have said what they hold.
fn given_limits(config: &Config) -> String {
    let given = |limit: Option<u32>| limit.map_or_else(|| "open".to_owned(), |limit| limit.to_string());
    format!(
        "max_concurrent_requests {}, max_input_tokens {}, max_total_tokens {}, max_batch_prefill_tokens {}, \
         max_batch_total_tokens {}, max_batch_size {}",
        config.max_concurrent_requests,
        given(config.max_input_tokens),
        given(config.max_total_tokens),
        config.max_step_tokens(),
        given(config.max_batch_total_tokens),
        config.max_rows(),
    )
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
    /// Whose key came with it.
    pub tenant: &'a str,
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
        tenant = record.tenant,
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
    use std::sync::{Arc, Mutex};

    use super::*;

    /// All that is written while `log` runs.
    fn written(level: &str, json: bool, colours: bool, log: impl FnOnce()) -> String {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&lines);
        let subscriber = subscriber(level, json, colours, move || Lines(Arc::clone(&writer)));
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn colours_are_in_text_logs_that_want_them_and_nowhere_else() {
        let say = || tracing::info!(request_id = "x", "something");
        let coloured = written("info", false, true, say);
        assert!(coloured.contains("\u{1b}[") && coloured.contains("something"), "{coloured:?}");
        let plain = written("info", false, false, say);
        assert!(!plain.contains('\u{1b}') && plain.contains("something"), "{plain:?}");
        let json: serde_json::Value = written("info", true, true, say).parse().unwrap();
        assert_eq!(json["message"], "something");
    }

    #[test]
    fn a_start_is_told_in_short_lines_without_a_secret_and_whole_for_debugging() {
        let flags = ["millrace-router", "--model-id", "org/model", "--num-shard", "2", "--max-total-tokens", "77"];
        let secret = |name: &str| (name == "API_KEY").then(|| "hunter2".to_owned());
        let config = Config::read(flags, secret).unwrap();
        let lines = written("info", false, false, || log_start(&config));
        assert!(lines.lines().all(|line| line.len() < 300), "{lines}");
        for said in ["org/model", "0.0.0.0:3000", "2 shard(s)", "max_total_tokens 77", "max_input_tokens open"] {
            assert!(lines.contains(said), "{said}: {lines}");
        }
        let all = written("debug", false, false, || log_start(&config));
        assert!(all.contains("validation_workers") && !all.contains("hunter2"), "{all}");
    }

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
