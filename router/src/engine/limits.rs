//! From what the operator asked for and what the workers have to what requests may ask for. Pure.

use millrace_client::{ModelDescription, PrepareRequest, Prepared};

use crate::config::Config;
use crate::health::Limits;

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
/// The worst step is a full prefill budget or, since decodes are never cut, a token for every row.
pub(super) fn worst_case(
    config: &Config,
    model: &ModelDescription,
    model_max_length: Option<u32>,
) -> Result<PrepareRequest, BadLimits> {
    check_flags(config)?;
    let longest = model_max_length.unwrap_or(u32::MAX).min(model.max_positions);
    let total = config.max_total_tokens.unwrap_or(longest);
    if total > model.max_positions {
        return Err(BadLimits::TotalAbovePositions { total, max_positions: model.max_positions });
    }
    Ok(PrepareRequest {
        max_rows: config.max_rows(),
        max_step_tokens: config.max_batch_prefill_tokens.max(config.max_rows()),
        max_sequence_tokens: total,
        max_pool_tokens: u64::from(config.max_batch_total_tokens.unwrap_or(0)),
        max_top_n_tokens: config.max_top_n_tokens,
        prompt_logprobs: config.enable_prefill_logprobs,
    })
}

/// What requests may ask for on the workers that have prepared.
pub(super) fn limits(config: &Config, model: &ModelDescription, prepared: &Prepared) -> Result<Limits, BadLimits> {
    let Prepared { num_pages, max_sequence_tokens, .. } = *prepared;
    let page_size = model.page_size;
    let pool = u64::from(num_pages) * u64::from(page_size);
    if pool < 2 {
        return Err(BadLimits::NoPool { num_pages, page_size });
    }
    let fits = u32::try_from(pool).unwrap_or(u32::MAX).min(max_sequence_tokens);
    let total = config.max_total_tokens.unwrap_or(fits);
    if total < 2 {
        return Err(BadLimits::TotalTooSmall { total });
    }
    if u64::from(total) > pool {
        return Err(BadLimits::TotalAbovePool { total, pool });
    }
    let input = config.max_input_tokens.unwrap_or(total - 1);
    if input >= total {
        return Err(BadLimits::InputNotBelowTotal { input, total });
    }
    Ok(Limits { max_input_tokens: input, max_total_tokens: total, vocab_size: model.vocab_size })
}

fn check_flags(config: &Config) -> Result<(), BadLimits> {
    if let (Some(input), Some(total)) = (config.max_input_tokens, config.max_total_tokens)
        && input >= total
    {
        return Err(BadLimits::InputNotBelowTotal { input, total });
    }
    let Some(batch_total) = config.max_batch_total_tokens else { return Ok(()) };
    let prefill = config.max_batch_prefill_tokens;
    if prefill > batch_total {
        return Err(BadLimits::PrefillAboveBatchTotal { prefill, batch_total });
    }
    match config.max_total_tokens {
        Some(total) if total > batch_total => Err(BadLimits::TotalAboveBatchTotal { total, batch_total }),
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

    fn resolve(flags: &str, num_pages: u32) -> Result<(PrepareRequest, Limits), BadLimits> {
        let request = worst_case(&config(flags), &model(), None)?;
        let prepared = Prepared { num_pages, max_sequence_tokens: request.max_sequence_tokens, ..Default::default() };
        Ok((request, limits(&config(flags), &model(), &prepared)?))
    }

    #[test]
    fn absent_limits_are_what_positions_and_memory_allow() {
        let (request, limits) = resolve("", 1000).unwrap();
        assert_eq!((request.max_sequence_tokens, request.max_step_tokens, request.max_rows), (2048, 4096, 256));
        assert_eq!((limits.max_input_tokens, limits.max_total_tokens, limits.vocab_size), (2047, 2048, 100));
        assert_eq!(resolve("", 10).unwrap().1.max_total_tokens, 160);
    }

    #[test]
    fn the_tokenizer_may_allow_less_than_the_positions() {
        let request = worst_case(&config(""), &model(), Some(512)).unwrap();
        assert_eq!(request.max_sequence_tokens, 512);
    }

    #[test]
    fn flags_are_taken_as_given() {
        let flags = "--max-total-tokens 100 --max-input-tokens 60 --max-batch-size 8 --max-batch-prefill-tokens 4 \
                     --max-batch-total-tokens 320 --enable-prefill-logprobs";
        let (request, limits) = resolve(flags, 20).unwrap();
        assert_eq!((limits.max_input_tokens, limits.max_total_tokens), (60, 100));
        assert_eq!((request.max_rows, request.max_step_tokens, request.max_pool_tokens), (8, 8, 320));
        assert!(request.prompt_logprobs);
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
