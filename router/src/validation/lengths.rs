//! How long a prompt and its answer may be.

use std::fmt;

use super::{Limits, Names, ValidationError};

/// The original generated long answers in chunks of this many tokens, and admitted a request if its first chunk fitted.
/// We admit the same requests.
const ADMISSION_CHUNK: u32 = 1024;

/// How many tokens to generate: what was asked, cut to what fits; all that fits if nothing was asked.
pub(super) fn check(
    tokens: &[u32],
    max_new_tokens: Option<u32>,
    names: &Names,
    limits: Limits,
) -> Result<u32, ValidationError> {
    if tokens.is_empty() {
        return Err(ValidationError::field(names.prompt, "has no tokens; send some text"));
    }
    let input = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
    let room = room(Count::Exactly(input), max_new_tokens, names, limits)?;
    if let Some(unknown) = tokens.iter().find(|id| **id >= limits.vocab_size) {
        let problem = format!("contains token {unknown}, which this model has no embedding for; remove it");
        return Err(ValidationError::field(names.prompt, problem));
    }
    Ok(max_new_tokens.unwrap_or(room).min(room))
}

/// Refuses what is too long however it is cut into tokens: tokenizing it would cost time and change nothing.
pub(super) fn check_fewest(
    num_tokens: usize,
    max_new_tokens: Option<u32>,
    names: &Names,
    limits: Limits,
) -> Result<(), ValidationError> {
    let fewest = u32::try_from(num_tokens).unwrap_or(u32::MAX);
    room(Count::AtLeast(fewest), max_new_tokens, names, limits).map(drop)
}

/// What is known of a prompt's length in tokens.
#[derive(Clone, Copy, Debug)]
enum Count {
    Exactly(u32),
    AtLeast(u32),
}

impl fmt::Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(count) => write!(formatter, "{count}"),
            Self::AtLeast(count) => write!(formatter, "at least {count}"),
        }
    }
}

/// Tokens that may be generated after a prompt; at least 1.
fn room(count: Count, max_new_tokens: Option<u32>, names: &Names, limits: Limits) -> Result<u32, ValidationError> {
    let Limits { max_input_tokens, max_total_tokens, .. } = limits;
    let (Count::Exactly(input) | Count::AtLeast(input)) = count;
    let refused = |problem| Err(ValidationError::TooLong { field: names.prompt, problem });
    let room = max_total_tokens.saturating_sub(input);
    if let Some(asked) = max_new_tokens.filter(|asked| (*asked).min(ADMISSION_CHUNK) > room) {
        return refused(format!(
            "has {count} tokens and `{}` asks for {asked} more, but together they may be at most {max_total_tokens} \
             (max_total_tokens); shorten the prompt or ask for less",
            names.max_new_tokens
        ));
    }
    if input > max_input_tokens || room == 0 {
        return refused(format!(
            "has {count} tokens, but at most {max_input_tokens} are allowed (max_input_tokens); {}",
            names.shorten
        ));
    }
    Ok(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { max_input_tokens: 1500, max_total_tokens: 2000, vocab_size: 100 };

    fn check_length(input: usize, asked: Option<u32>) -> Result<u32, String> {
        check(&vec![7; input], asked, &Names::GENERATE, LIMITS).map_err(|error| error.to_string())
    }

    #[test]
    fn exactly_what_was_asked_is_generated_if_it_fits() {
        for (input, asked, granted) in [(10, 1, 1), (10, 1024, 1024), (10, 1990, 1990), (1500, 500, 500)] {
            assert_eq!(check_length(input, Some(asked)), Ok(granted), "{input} + {asked}");
        }
    }

    #[test]
    fn far_more_than_fits_is_cut_if_the_originals_first_chunk_fits() {
        assert_eq!(check_length(976, Some(1025)), Ok(1024));
        assert_eq!(check_length(10, Some(u32::MAX)), Ok(1990));
        assert!(check_length(977, Some(1024)).unwrap_err().contains("977 tokens"));
        assert!(check_length(977, Some(u32::MAX)).is_err());
    }

    #[test]
    fn nothing_asked_means_all_that_fits() {
        assert_eq!(check_length(1, None), Ok(1999));
        assert_eq!(check_length(1500, None), Ok(500));
    }

    #[test]
    fn the_total_is_checked_before_the_input() {
        assert!(check_length(1990, Some(11)).unwrap_err().contains("max_total_tokens"));
        assert!(check_length(1990, Some(10)).unwrap_err().contains("max_input_tokens"));
        assert!(check_length(2500, None).unwrap_err().contains("max_input_tokens"));
        assert!(check_length(0, None).unwrap_err().contains("no tokens"));
    }

    #[test]
    fn a_lower_bound_refuses_only_what_the_count_would_refuse() {
        for asked in [None, Some(1), Some(500), Some(501), Some(u32::MAX)] {
            for count in [0, 1, 499, 500, 1499, 1500, 1501, 1999, 2000, usize::MAX] {
                let by_bound = check_fewest(count, asked, &Names::GENERATE, LIMITS).map_err(|error| error.to_string());
                if let Err(error) = by_bound {
                    assert!(error.contains("has at least"), "{error}");
                    let exact = check_length(count.min(3000), asked).unwrap_err();
                    assert_eq!(error.contains("(max_total_tokens)"), exact.contains("(max_total_tokens)"));
                } else {
                    assert!(count <= 1500);
                }
            }
        }
    }

    #[test]
    fn tokens_without_an_embedding_are_refused_by_number() {
        let error = check(&[1, 100], Some(1), &Names::GENERATE, LIMITS).unwrap_err();
        assert!(error.to_string().contains("`inputs` contains token 100"), "{error}");
    }
}
