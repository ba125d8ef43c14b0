//! From what the operator asked for and what the workers have to what requests may ask for. Pure.

use millrace_client::{ModelDescription, PrepareRequest, Prepared};

use crate::config::Config;
use crate::health::Limits;

/// `max_sequence_tokens` of a request that leaves it to the workers.
const LEFT_OPEN: u32 = 0;

/// Flags that cannot hold together, or not on these workers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLimits {
    #[error("`max_input_tokens` must be < `max_total_tokens`. Given: {input} and {total}")]
    InputNotBelowTotal { input: u32, total: u32 },
    #[error("`max_batch_prefill_tokens` must be <= `max_batch_total_tokens`. Given: {prefill} and {batch_total}")]
    PrefillAboveBatchTotal { prefill: u32, batch_total: u32 },
    #[error("`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {batch_total}")]
    TotalAboveBatchTotal { total: u32, batch_total: u32 },
    #[error("`max_total_tokens` must be at least 2, for one token in and one out. Given: {total}")]
    TotalTooSmall { total: u32 },
    #[error(
        "`max_total_tokens` is {total}, but the model's positions end at {max_positions}: \
         set `max_total_tokens` to at most that"
    )]
    TotalAbovePositions { total: u32, max_positions: u32 },
    #[error(
        "`max_total_tokens` is {total}, but the KV pool holds {pool} tokens: \
         lower `max_total_tokens` or give the workers more memory"
    )]
    TotalAbovePool { total: u32, pool: u64 },
    #[error("the workers prepared {num_pages} KV pages of {page_size} tokens: not enough for any request")]
    NoPool { num_pages: u32, page_size: u32 },
}

/// What the workers must be ready for.
///
/// The worst step is a full prefill budget or, since decodes are never cut, a token for every row. How long a sequence may
/// become is left open unless the operator says: the workers then answer what their memory holds.
pub(super) fn worst_case(config: &Config, model: &ModelDescription) -> Result<PrepareRequest, BadLimits> {
    check_flags(config, model)?;
    let max_positions = model.max_positions;
    if let Some(total) = config.max_total_tokens.filter(|total| *total > max_positions) {
        return Err(BadLimits::TotalAbovePositions { total, max_positions });
    }
    Ok(PrepareRequest {
        max_rows: config.max_rows(),
        max_step_tokens: config.max_step_tokens().max(config.max_rows()),
        max_sequence_tokens: config.max_total_tokens.unwrap_or(LEFT_OPEN),
        max_pool_tokens: u64::from(config.max_batch_total_tokens.unwrap_or(0)),
        max_top_n_tokens: config.max_top_n_tokens,
        prompt_logprobs: true,
        grammars: !config.disable_grammar_support,
    })
}

/// What requests may ask for on the workers that have prepared. A total that the operator leaves open is what the model's
/// positions, its tokenizer, the rows and the KV pool all allow. Where no layer reads further back than a window, the pool
/// bounds no sequence whose window it holds.
pub(super) fn limits(
    config: &Config,
    model: &ModelDescription,
    model_max_length: Option<u32>,
    prepared: &Prepared,
) -> Result<Limits, BadLimits> {
    let Prepared { num_pages, max_sequence_tokens, .. } = *prepared;
    let page_size = model.page_size;
    let pool = match page_size {
        // No pages: only rows bound how long a sequence may become.
        0 => u64::MAX,
        page_size => u64::from(num_pages) * u64::from(page_size),
    };
    if pool < 2 {
        return Err(BadLimits::NoPool { num_pages, page_size });
    }
    let longest = if holds_window(model, num_pages) { u64::MAX } else { pool };
    let holds = u32::try_from(longest).unwrap_or(u32::MAX);
    let bounds = [model.max_positions, max_sequence_tokens, holds].into_iter();
    let most_running = config.max_batch_total_tokens.filter(|_| longest == pool);
    let total = config
        .max_total_tokens
        .unwrap_or_else(|| bounds.chain(model_max_length).chain(most_running).min().unwrap_or(holds));
    if total < 2 {
        return Err(BadLimits::TotalTooSmall { total });
    }
    if u64::from(total) > longest {
        return Err(BadLimits::TotalAbovePool { total, pool });
    }
    let input = config.max_input_tokens.unwrap_or(total - 1);
    if input >= total {
        return Err(BadLimits::InputNotBelowTotal { input, total });
    }
    Ok(Limits { max_input_tokens: input, max_total_tokens: total, vocab_size: model.vocab_size })
}

/// Whether sequences have a window, and the pool room for it wherever it begins in a page.
fn holds_window(model: &ModelDescription, num_pages: u32) -> bool {
    let ModelDescription { attention_window: window, page_size, .. } = *model;
    window > 0 && page_size > 0 && (window - 1).div_ceil(page_size) < num_pages
}

fn check_flags(config: &Config, model: &ModelDescription) -> Result<(), BadLimits> {
    if let (Some(input), Some(total)) = (config.max_input_tokens, config.max_total_tokens)
        && input >= total
    {
        return Err(BadLimits::InputNotBelowTotal { input, total });
    }
    let Some(batch_total) = config.max_batch_total_tokens else { return Ok(()) };
    if let Some(prefill) = config.max_batch_prefill_tokens.filter(|prefill| *prefill > batch_total) {
        return Err(BadLimits::PrefillAboveBatchTotal { prefill, batch_total });
    }
    match config.max_total_tokens {
        Some(total) if total > batch_total && model.attention_window == 0 => {
            Err(BadLimits::TotalAboveBatchTotal { total, batch_total })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &str) -> Config {
        let arguments = ["millrace-router", "--model-id", "m"].into_iter().chain(flags.split_whitespace());
        Config::read(arguments, |_| None).unwrap()
    }

    fn model() -> ModelDescription {
        ModelDescription { max_positions: 2048, page_size: 16, vocab_size: 100, ..Default::default() }
    }

    /// On workers that do what the contract says of an open length: it becomes what the pool holds.
    fn resolve_with(
        flags: &str,
        num_pages: u32,
        model_max_length: Option<u32>,
    ) -> Result<(PrepareRequest, Limits), BadLimits> {
        let request = worst_case(&config(flags), &model())?;
        let max_sequence_tokens = match request.max_sequence_tokens {
            0 => model().max_positions.min(num_pages * model().page_size),
            asked => asked,
        };
        let prepared = Prepared { num_pages, max_sequence_tokens, ..Default::default() };
        Ok((request, limits(&config(flags), &model(), model_max_length, &prepared)?))
    }

    fn resolve(flags: &str, num_pages: u32) -> Result<(PrepareRequest, Limits), BadLimits> {
        resolve_with(flags, num_pages, None)
    }

    #[test]
    fn absent_limits_are_what_positions_and_memory_allow() {
        let (request, limits) = resolve("", 1000).unwrap();
        assert_eq!((request.max_sequence_tokens, request.max_step_tokens, request.max_rows), (0, 4096, 256));
        assert_eq!((limits.max_input_tokens, limits.max_total_tokens, limits.vocab_size), (2047, 2048, 100));
        let (request, limits) = resolve("", 10).unwrap();
        assert_eq!((request.max_sequence_tokens, limits.max_total_tokens, limits.max_input_tokens), (0, 160, 159));
    }

    #[test]
    fn the_tokenizer_may_allow_less_than_the_positions() {
        assert_eq!(resolve_with("", 1000, Some(512)).unwrap().1.max_total_tokens, 512);
        assert_eq!(resolve_with("", 10, Some(512)).unwrap().1.max_total_tokens, 160);
    }

    #[test]
    fn a_cap_on_the_pool_lowers_what_is_left_open() {
        let (request, limits) = resolve("--max-batch-total-tokens 1000", 63).unwrap();
        assert_eq!((request.max_step_tokens, request.max_pool_tokens), (1000, 1000));
        // 63 pages hold 1008 tokens, which is more than was allowed.
        assert_eq!((limits.max_total_tokens, limits.max_input_tokens), (1000, 999));
    }

    #[test]
    fn without_pages_rows_bound_a_sequence() {
        let model = ModelDescription { page_size: 0, ..model() };
        let prepared = Prepared { num_pages: 0, max_sequence_tokens: 1500, max_rows: 4, ..Default::default() };
        let total = |flags: &str| {
            worst_case(&config(flags), &model)?;
            limits(&config(flags), &model, None, &prepared).map(|limits| limits.max_total_tokens)
        };
        assert_eq!(total(""), Ok(1500));
        assert_eq!(total("--max-total-tokens 1000"), Ok(1000));
        assert_eq!(total("--max-batch-total-tokens 700"), Ok(700));
        let beyond = BadLimits::TotalAbovePositions { total: 2049, max_positions: 2048 };
        assert_eq!(total("--max-total-tokens 2049"), Err(beyond));
    }

    #[test]
    fn flags_are_taken_as_given() {
        let flags = "--max-total-tokens 100 --max-input-tokens 60 --max-batch-size 8 --max-batch-prefill-tokens 4 \
                     --max-batch-total-tokens 320";
        let (request, limits) = resolve(flags, 20).unwrap();
        assert_eq!((limits.max_input_tokens, limits.max_total_tokens), (60, 100));
        assert_eq!((request.max_rows, request.max_step_tokens, request.max_pool_tokens), (8, 8, 320));
        assert_eq!(request.max_sequence_tokens, 100);
        assert!(request.prompt_logprobs, "any request may ask for them");
    }

    #[test]
    fn a_sequence_with_a_window_may_be_longer_than_the_pool() {
        let windowed = ModelDescription { attention_window: 33, ..model() };
        let resolve = |flags: &str, num_pages| {
            let request = worst_case(&config(flags), &windowed)?;
            let max_sequence_tokens = if request.max_sequence_tokens == 0 { 2048 } else { request.max_sequence_tokens };
            let prepared = Prepared { num_pages, max_sequence_tokens, ..Default::default() };
            limits(&config(flags), &windowed, None, &prepared)
        };
        // A window of 33 positions lies in three pages at most.
        assert_eq!(resolve("--max-batch-total-tokens 48", 3).unwrap().max_total_tokens, 2048);
        assert_eq!(resolve("--max-batch-total-tokens 48 --max-total-tokens 500", 3).unwrap().max_total_tokens, 500);
        assert_eq!(resolve("--max-batch-total-tokens 32", 2).unwrap().max_total_tokens, 32);
        let refused = resolve("--max-batch-total-tokens 32 --max-total-tokens 500", 2);
        assert_eq!(refused.unwrap_err(), BadLimits::TotalAbovePool { total: 500, pool: 32 });
    }

    #[test]
    fn what_cannot_hold_is_refused() {
        use BadLimits as Bad;
        let refused = [
            ("--max-input-tokens 5 --max-total-tokens 5", 9, Bad::InputNotBelowTotal { input: 5, total: 5 }),
            ("--max-input-tokens 3000", 1000, Bad::InputNotBelowTotal { input: 3000, total: 2048 }),
            (
                "--max-batch-total-tokens 100 --max-batch-prefill-tokens 101",
                9,
                Bad::PrefillAboveBatchTotal { prefill: 101, batch_total: 100 },
            ),
            (
                "--max-batch-total-tokens 100 --max-batch-prefill-tokens 100 --max-total-tokens 101",
                9,
                Bad::TotalAboveBatchTotal { total: 101, batch_total: 100 },
            ),
            ("--max-total-tokens 1", 9, Bad::TotalTooSmall { total: 1 }),
            ("--max-total-tokens 2049", 900, Bad::TotalAbovePositions { total: 2049, max_positions: 2048 }),
            ("--max-total-tokens 161", 10, Bad::TotalAbovePool { total: 161, pool: 160 }),
            ("", 0, Bad::NoPool { num_pages: 0, page_size: 16 }),
        ];
        for (flags, num_pages, error) in refused {
            assert_eq!(resolve(flags, num_pages).unwrap_err(), error, "{flags}");
        }
    }
}
