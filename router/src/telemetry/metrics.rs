//! Metrics in Prometheus' text form, under the original's names and buckets.
//!
//! The recorder stands before anything is counted, because handles are made once and kept. But three histograms have
//! buckets that follow the token limits, and those are known only when the workers have prepared: these three live in a
//! second registry that is built then. What they would record before is nothing: no request is admitted before.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, SetRecorderError, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::pages::Pages;
use crate::health::Limits;

const GENERATED_TOKENS: &str = "tgi_request_generated_tokens";
const INPUT_LENGTH: &str = "tgi_request_input_length";
const MAX_NEW_TOKENS: &str = "tgi_request_max_new_tokens";

/// Reads what has been recorded. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    fixed: PrometheusHandle,
    sized: Arc<OnceLock<Sized>>,
    pages: Arc<Pages>,
}

/// Where handles come from: installed once per process, or locally by tests.
pub struct Recorder {
    fixed: PrometheusRecorder,
    sized: Arc<OnceLock<Sized>>,
}

/// The histograms whose buckets follow the limits.
#[derive(Debug)]
struct Sized {
    handle: PrometheusHandle,
    generated_tokens: Histogram,
    input_length: Histogram,
    max_new_tokens: Histogram,
}

impl Metrics {
    /// A registry of its own and its recorder, not yet installed.
    pub fn new() -> (Self, Recorder) {
        let fixed = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("duration".to_owned()), &duration_buckets())
            .and_then(|builder| {
                let sizes = linear_buckets(1024, 1024);
                builder.set_buckets_for_metric(Matcher::Full("tgi_batch_next_size".to_owned()), &sizes)
            })
            .expect("neither list of buckets is empty")
            .build_recorder();
        let sized = Arc::new(OnceLock::new());
        (Self { fixed: fixed.handle(), sized: Arc::clone(&sized), pages: Arc::default() }, Recorder { fixed, sized })
    }

    /// The process's registry: every `metrics::counter!` made from now on records here.
    pub fn install() -> Result<Self, SetRecorderError<Recorder>> {
        let (metrics, recorder) = Self::new();
        metrics::set_global_recorder(recorder)?;
        Ok(metrics)
    }

    /// Sets the buckets that follow the limits. Only the first call counts: buckets never change while a server runs.
    pub fn set_limits(&self, limits: &Limits) {
        self.sized.get_or_init(|| Sized::new(limits));
    }

    /// Everything recorded so far, in the exposition format.
    pub fn render(&self) -> String {
        let mut text = self.fixed.render();
        if let Some(sized) = self.sized.get() {
            text.push_str(&sized.handle.render());
        }
        text
    }

    /// As `render`, for those who may not read it.
    pub fn page(&self) -> Bytes {
        self.pages.page(|| self.render())
    }

    /// Folds recorded samples into their buckets. Without regular calls, memory grows with every sample until the next
    /// `render`.
    pub fn run_upkeep(&self) {
        self.fixed.run_upkeep();
        if let Some(sized) = self.sized.get() {
            sized.handle.run_upkeep();
        }
    }
}

impl Sized {
    fn new(limits: &Limits) -> Self {
        let total = linear_buckets(100, limits.max_total_tokens);
        let input = linear_buckets(100, limits.max_input_tokens);
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(GENERATED_TOKENS.to_owned()), &total)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(MAX_NEW_TOKENS.to_owned()), &total))
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(INPUT_LENGTH.to_owned()), &input))
            .expect("no list of buckets is empty")
            .build_recorder();
        let histogram = |name: &'static str| {
            let metadata = Metadata::new(module_path!(), metrics::Level::INFO, Some(module_path!()));
            metrics::Recorder::register_histogram(&recorder, &Key::from_static_name(name), &metadata)
        };
        Self {
            generated_tokens: histogram(GENERATED_TOKENS),
            input_length: histogram(INPUT_LENGTH),
            max_new_tokens: histogram(MAX_NEW_TOKENS),
            handle: recorder.handle(),
        }
    }
}

/// A handle that may be older than the histogram it records into.
struct Late {
    sized: Arc<OnceLock<Sized>>,
    which: fn(&Sized) -> &Histogram,
}

impl HistogramFn for Late {
    fn record(&self, value: f64) {
        if let Some(sized) = self.sized.get() {
            (self.which)(sized).record(value);
        }
    }
}

impl metrics::Recorder for Recorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.fixed.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.fixed.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.fixed.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.fixed.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.fixed.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        let which: fn(&Sized) -> &Histogram = match key.name() {
            GENERATED_TOKENS => |sized| &sized.generated_tokens,
            INPUT_LENGTH => |sized| &sized.input_length,
            MAX_NEW_TOKENS => |sized| &sized.max_new_tokens,
            _ => return self.fixed.register_histogram(key, metadata),
        };
        Histogram::from_arc(Arc::new(Late { sized: Arc::clone(&self.sized), which }))
    }
}

/// 35 geometric bounds in seconds: 0.00015 to about 146.
fn duration_buckets() -> Vec<f64> {
    std::iter::successors(Some(0.0001 * 1.5), |bound| Some(bound * 1.5)).take(35).collect()
}

/// `count` equal steps up to `max`.
fn linear_buckets(count: u32, max: u32) -> Vec<f64> {
    (1..=count).map(|step| f64::from(max) / f64::from(count) * f64::from(step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_input_tokens: 1024, max_total_tokens: 1200, vocab_size: 4096 };

    fn bounds(text: &str, name: &str) -> Vec<String> {
        let prefix = format!("{name}_bucket{{");
        text.lines()
            .filter(|line| line.starts_with(&prefix))
            .filter_map(|line| line.split("le=\"").nth(1)?.split('"').next())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn buckets_are_those_of_the_original() {
        let (metrics, recorder) = Metrics::new();
        metrics::with_local_recorder(&recorder, || {
            metrics.set_limits(&LIMITS);
            for name in ["tgi_request_duration", "tgi_batch_next_size", GENERATED_TOKENS, INPUT_LENGTH, MAX_NEW_TOKENS]
            {
                metrics::histogram!(name).record(3.0);
            }
        });
        let text = metrics.render();
        let durations = bounds(&text, "tgi_request_duration");
        assert_eq!(durations.len(), 36);
        assert_eq!(durations[..3], ["0.00015000000000000001", "0.00022500000000000002", "0.0003375"]);
        assert_eq!(bounds(&text, "tgi_batch_next_size").len(), 1025);
        assert_eq!(bounds(&text, GENERATED_TOKENS)[..3], ["12", "24", "36"]);
        assert_eq!(bounds(&text, MAX_NEW_TOKENS).len(), 101);
        assert_eq!(bounds(&text, INPUT_LENGTH)[..3], ["10.24", "20.48", "30.72"]);
        assert!(text.contains("# TYPE tgi_request_duration histogram"));
    }

    #[test]
    fn handles_made_before_the_limits_are_known_record_after() {
        let (metrics, recorder) = Metrics::new();
        let histogram = metrics::with_local_recorder(&recorder, || metrics::histogram!(GENERATED_TOKENS));
        histogram.record(7.0);
        assert!(!metrics.render().contains(GENERATED_TOKENS));
        metrics.set_limits(&LIMITS);
        histogram.record(5.0);
        metrics.run_upkeep();
        assert!(metrics.render().contains("tgi_request_generated_tokens_sum 5\n"));
    }

    #[test]
    fn limits_are_set_once() {
        let (metrics, recorder) = Metrics::new();
        metrics.set_limits(&LIMITS);
        metrics.set_limits(&Limits { max_total_tokens: 100, ..LIMITS });
        metrics::with_local_recorder(&recorder, || metrics::histogram!(GENERATED_TOKENS).record(1.0));
        assert_eq!(bounds(&metrics.render(), GENERATED_TOKENS)[0], "12");
    }
}
