//! The one place where flags and environment are read. Every flag has its environment name (upper snake); secrets come
//! from the environment only, so that no process list shows them.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::builder::BoolishValueParser;
use tokio::sync::Semaphore;

use crate::tools::{ReasoningFamily, ToolFamily, Wish};

/// What an operator decided. Read once at start, then shared read-only.
#[derive(Clone, Debug, Parser)]
#[command(name = "millrace-router", version, about = "Millrace's HTTP server: validates, schedules and streams")]
#[expect(clippy::struct_excessive_bools, reason = "each is one flag of the command line")]
pub struct Config {
    /// Address to listen on; 0.0.0.0 if it does not parse.
    #[arg(long, env, default_value = "0.0.0.0")]
    pub hostname: String,
    #[arg(long, short, env, default_value_t = 3000)]
    pub port: u16,

    /// Name under which the model is served.
    #[arg(long, env)]
    pub model_id: String,
    /// Folder with tokenizer.json, `tokenizer_config.json` and config.json; the model id if absent.
    #[arg(long, env)]
    pub model_path: Option<PathBuf>,
    /// Open the port at once and wait for the model's folder, which whoever starts this program says on standard input.
    #[arg(long)]
    pub await_model: bool,
    #[arg(long, env)]
    pub revision: Option<String>,
    /// Further names that requests may use for this model.
    #[arg(long, env, value_delimiter = ',')]
    pub served_model_name: Vec<String>,
    /// Refuse names of models that are not served; else they mean the model that is.
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub strict_model_names: bool,
    /// File with the chat template, instead of the model's `tokenizer_config.json`.
    #[arg(long, env)]
    pub tokenizer_config_path: Option<PathBuf>,

    /// Rank r listens on `unix:PREFIX-r`.
    #[arg(long, env, default_value = "/tmp/millrace-worker")]
    pub worker_uds_path: String,
    /// Ranks in the tensor-parallel group.
    #[arg(long, env, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub num_shard: u32,

    /// How the model writes calls of tools: auto (by its chat template), none, or a family's name.
    #[arg(long, env, default_value = "auto")]
    pub tool_call_parser: Wish<ToolFamily>,
    /// How the model writes its thoughts: auto (by its chat template), none, or a family's name.
    #[arg(long, env, default_value = "auto")]
    pub reasoning_parser: Wish<ReasoningFamily>,

    /// Requests inside the server before newcomers get 429.
    #[arg(long, env, default_value_t = 128)]
    pub max_concurrent_requests: usize,
    #[arg(long, env, default_value_t = 2)]
    pub max_best_of: usize,
    #[arg(long, env, default_value_t = 4)]
    pub max_stop_sequences: usize,
    #[arg(long, env, default_value_t = 5)]
    pub max_top_n_tokens: u32,
    /// Prompt tokens that may wait to be computed before newcomers get 429; any number if absent.
    #[arg(long, env, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_queued_tokens: Option<u64>,
    /// Seconds that a newcomer may have to wait, by estimate, before it gets 429 instead; any number if absent.
    #[arg(long, env, value_parser = seconds)]
    pub max_queue_seconds: Option<f64>,
    /// Refuse streams for overload as the original does: status 200 and an error event, instead of 429.
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub refuse_in_stream: bool,
    /// Prompt tokens of one request; `max_total_tokens - 1` if absent.
    #[arg(long, env)]
    pub max_input_tokens: Option<u32>,
    /// Prompt and output tokens of one request; what model, tokenizer and memory allow if absent.
    #[arg(long, env)]
    pub max_total_tokens: Option<u32>,
    /// Prompts in one completions request.
    #[arg(long, env, default_value_t = 4)]
    pub max_client_batch_size: usize,
    /// Bytes of a request's body.
    #[arg(long, env, default_value_t = 2_000_000)]
    pub payload_limit: usize,

    /// Waiting sequences join a running batch when there are at least this many per running one; then all of them do.
    #[arg(long, env, default_value_t = 0.3)]
    pub waiting_served_ratio: f32,
    /// Tokens that one step may compute; 4096 or `max_batch_total_tokens`, whichever is less, if absent.
    #[arg(long, env, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_prefill_tokens: Option<u32>,
    /// Tokens that the KV pool may hold; as many as memory allows if absent.
    #[arg(long, env, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_total_tokens: Option<u32>,
    /// Steps after which waiting sequences join whatever the ratio says.
    #[arg(long, env, default_value_t = 20)]
    pub max_waiting_tokens: u32,
    /// Sequences that run at once.
    #[arg(long, env, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_batch_size: Option<u32>,
    /// Keep the KV pages of finished sequences for requests that begin alike.
    #[arg(long, env, default_value = "true", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub prefix_caching: bool,

    /// A step that takes so long, and ten times what it is expected to take, counts as hung: its rank is reported.
    #[arg(long, env, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub hung_step_seconds: u64,

    /// A connection is closed when a request's head, or the next request, has not come for so long.
    #[arg(long, env, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub head_timeout_seconds: u64,
    /// Connections at once; beyond them those that ask for nothing are closed, the longest idle first.
    #[arg(long, env, default_value_t = 4096, value_parser = at_least_one)]
    pub max_connections: usize,
    /// After the signal to stop, newcomers are still served for so long, while health says already that they should not
    /// come.
    #[arg(long, env, default_value_t = 0)]
    pub lame_duck_seconds: u64,
    /// Then, what runs may take so long to end.
    #[arg(long, env, default_value_t = 90)]
    pub graceful_termination_timeout: u64,
    /// File of API keys and their tenants (TOML).
    #[arg(long, env)]
    pub api_key_file: Option<PathBuf>,
    /// Offer POST /admin/drain. Needs an API key.
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub admin_routes: bool,

    /// Tokenizer threads.
    #[arg(long, env, default_value_t = 2, value_parser = at_least_one)]
    pub validation_workers: usize,
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub disable_grammar_support: bool,
    /// Accepted for the original's sake: requests may always ask for the logprobs of their prompt.
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub enable_prefill_logprobs: bool,

    /// Logs as one JSON object per line.
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub json_output: bool,
    /// Origins allowed by CORS; any if absent.
    #[arg(long, env, value_delimiter = ',')]
    pub cors_allow_origin: Vec<String>,

    /// `KServe`'s routes under `/v2`.
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub kserve: bool,
    /// `AIP_PREDICT_ROUTE`: a further path for what `/vertex` does. Vertex AI names it to its containers.
    #[arg(skip)]
    pub aip_predict_route: Option<String>,
    /// `AIP_HEALTH_ROUTE`: a further path for what `/health` does.
    #[arg(skip)]
    pub aip_health_route: Option<String>,

    /// `API_KEY`: what `Authorization: Bearer …` must carry.
    #[arg(skip)]
    pub api_key: Option<Secret>,
    /// `COMPUTE_TYPE`: the value of `x-compute-type`.
    #[arg(skip = String::from("gpu+optimized"))]
    pub compute_type: String,
    /// `LOG_LEVEL`: warn, info, debug, or a filter as `tracing` writes them.
    #[arg(skip = String::from("info"))]
    pub log_level: String,
    /// `LOG_COLORIZE`: 1 colours text logs wherever they go, 0 never; if absent, on a terminal.
    #[arg(skip)]
    pub log_colorize: Option<bool>,
    /// `MILLRACE_LIFELINE=stdin`: the end of standard input is the end of whoever started us.
    #[arg(skip)]
    pub lifeline: bool,
}

/// Rows that workers keep when `max_batch_size` does not say.
const DEFAULT_MAX_ROWS: u32 = 256;
/// Tokens of a step when `max_batch_prefill_tokens` does not say.
const DEFAULT_STEP_TOKENS: u32 = 4096;

impl Config {
    /// From the process's own arguments and environment; prints usage and ends the process on a bad flag.
    pub fn from_process() -> Self {
        match Self::read(std::env::args_os(), |name| std::env::var(name).ok()) {
            Ok(config) => config,
            Err(error) => error.exit(),
        }
    }

    /// From given arguments; `environment` answers for the variables that have no flag.
    pub fn read<A>(
        arguments: impl IntoIterator<Item = A>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, clap::Error>
    where
        A: Into<OsString> + Clone,
    {
        let mut config = Self::try_parse_from(arguments)?;
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        config.api_key = set("API_KEY").map(Secret);
        config.api_key_file = config.api_key_file.filter(|file| !file.as_os_str().is_empty());
        if config.admin_routes && config.api_key.is_none() && config.api_key_file.is_none() {
            let problem = "--admin-routes needs an API key, in the variable API_KEY or in the file of --api-key-file: \
                           anyone could stop this server\n";
            return Err(clap::Error::raw(clap::error::ErrorKind::MissingRequiredArgument, problem));
        }
        config.lifeline = set("MILLRACE_LIFELINE").is_some_and(|value| value == "stdin");
        config.log_colorize = set("LOG_COLORIZE").map(|value| value == "1" || value.eq_ignore_ascii_case("true"));
        if let Some(compute_type) = set("COMPUTE_TYPE") {
            config.compute_type = compute_type;
        }
        if let Some(log_level) = set("LOG_LEVEL") {
            config.log_level = log_level;
        }
        config.aip_predict_route = cloud_route("AIP_PREDICT_ROUTE", set("AIP_PREDICT_ROUTE"))?;
        config.aip_health_route = cloud_route("AIP_HEALTH_ROUTE", set("AIP_HEALTH_ROUTE"))?;
        Ok(config)
    }

    /// Where the model's files are.
    pub fn model_path(&self) -> PathBuf {
        self.model_path.clone().unwrap_or_else(|| PathBuf::from(&self.model_id))
    }

    /// Sequences that hold a row at once.
    pub fn max_rows(&self) -> u32 {
        self.max_batch_size.unwrap_or(DEFAULT_MAX_ROWS)
    }

    /// Requests inside the server, as a semaphore counts them.
    pub fn max_places(&self) -> u32 {
        u32::try_from(self.max_concurrent_requests.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX)
    }

    /// Tokens that one step may compute.
    pub fn max_step_tokens(&self) -> u32 {
        let default = || DEFAULT_STEP_TOKENS.min(self.max_batch_total_tokens.unwrap_or(DEFAULT_STEP_TOKENS));
        self.max_batch_prefill_tokens.unwrap_or_else(default)
    }
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for comparing; never for showing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

/// Paths that this server serves already, whoever else names them.
const OWN_PATHS: [&str; 20] = [
    "/",
    "/admin/drain",
    "/api-doc/openapi.json",
    "/chat_tokenize",
    "/docs",
    "/generate",
    "/generate_stream",
    "/health",
    "/info",
    "/invocations",
    "/livez",
    "/metrics",
    "/ping",
    "/readyz",
    "/startupz",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/vertex",
];

/// A path that the environment names; nothing where that path is served anyway.
fn cloud_route(name: &str, path: Option<String>) -> Result<Option<String>, clap::Error> {
    let Some(path) = path else { return Ok(None) };
    if !path.starts_with('/') || path.contains(['{', '}', '?', '#']) {
        let problem = format!("{name} is {path:?}, which is no path; it must begin with / and be plain\n");
        return Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, problem));
    }
    Ok(Some(path).filter(|path| !OWN_PATHS.contains(&path.as_str())))
}

/// A time that can be waited for.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && Duration::try_from_secs_f64(seconds).is_ok() => Ok(seconds),
        Ok(_) => Err("must be more than 0".to_owned()),
        Err(error) => Err(format!("{error}")),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, clap::Error> {
        let arguments = ["millrace-router", "--model-id", "m"].iter().chain(arguments).copied();
        Config::read(arguments, |name| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn defaults_are_those_of_the_original() {
        let config = read(&[], &[]).unwrap();
        assert_eq!((config.max_concurrent_requests, config.max_best_of, config.max_stop_sequences), (128, 2, 4));
        assert_eq!((config.max_top_n_tokens, config.max_client_batch_size, config.payload_limit), (5, 4, 2_000_000));
        assert_eq!((config.max_waiting_tokens, config.max_step_tokens(), config.max_rows()), (20, 4096, 256));
        assert!((config.waiting_served_ratio - 0.3).abs() < f32::EPSILON);
        assert!(config.prefix_caching && !config.json_output && !config.enable_prefill_logprobs);
        assert_eq!(config.compute_type, "gpu+optimized");
        assert_eq!(config.model_path(), PathBuf::from("m"));
    }

    #[test]
    fn the_api_key_comes_from_the_environment_only_and_is_never_printed() {
        let config = read(&[], &[("API_KEY", "hunter2")]).unwrap();
        assert_eq!(config.api_key.as_ref().map(Secret::expose), Some("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(read(&["--api-key", "hunter2"], &[]).is_err());
    }

    #[test]
    fn colours_are_on_off_or_left_to_the_terminal() {
        for (value, colours) in [("1", Some(true)), ("true", Some(true)), ("0", Some(false)), ("", None)] {
            assert_eq!(read(&[], &[("LOG_COLORIZE", value)]).unwrap().log_colorize, colours, "{value:?}");
        }
    }

    #[test]
    fn an_empty_variable_is_an_absent_one() {
        let config = read(&[], &[("API_KEY", ""), ("LOG_LEVEL", ""), ("MILLRACE_LIFELINE", "")]).unwrap();
        assert_eq!((config.api_key, config.log_level.as_str(), config.lifeline), (None, "info", false));
    }

    #[test]
    fn lists_are_repeated_flags_or_commas() {
        let config =
            read(&["--cors-allow-origin", "http://a", "--cors-allow-origin", "http://b,http://c"], &[]).unwrap();
        assert_eq!(config.cors_allow_origin, ["http://a", "http://b", "http://c"]);
    }

    #[test]
    fn prefix_caching_takes_a_value() {
        assert!(!read(&["--prefix-caching", "false"], &[]).unwrap().prefix_caching);
        assert!(read(&["--prefix-caching", "1"], &[]).unwrap().prefix_caching);
        assert!(read(&["--prefix-caching", "maybe"], &[]).is_err());
    }

    #[test]
    fn numbers_that_cannot_work_are_refused() {
        for flag in [
            "--validation-workers",
            "--max-batch-size",
            "--num-shard",
            "--max-batch-prefill-tokens",
            "--max-queued-tokens",
        ] {
            assert!(read(&[flag, "0"], &[]).is_err(), "{flag} 0");
        }
        for wrong in ["0", "-1", "inf", "nan", "1e30", "x"] {
            assert!(read(&[&format!("--max-queue-seconds={wrong}")], &[]).is_err(), "{wrong}");
        }
        assert_eq!(read(&["--max-queue-seconds", "0.5"], &[]).unwrap().max_queue_seconds, Some(0.5));
        assert!(read(&["--port", "70000"], &[]).is_err());
    }
}
