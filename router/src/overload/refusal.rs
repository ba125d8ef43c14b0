//! A refusal for now: the request is fine, the server has enough to do.

use std::time::Duration;

/// The longest time that clients are told to stay away: nobody sees further ahead.
const LONGEST_PAUSE: u64 = 3600;

/// What a client gets that should ask again later. Every refusal for overload, of whatever kind, is one of these.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{reason}; try again in {} s", self.pause_seconds())]
pub struct Refusal {
    pub reason: Reason,
    /// When there will be room, as far as one can tell.
    pub pause: Duration,
}

/// What there is not enough of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("all {0} places are taken (max_concurrent_requests)")]
    Places(usize),
    #[error("all {0} places of this API key's tenant are taken (its max_concurrent_requests)")]
    TenantPlaces(u32),
    #[error("this API key's tenant holds {0} places: those that are left are for others")]
    TenantShare(u32),
    #[error("bodies that are being sent take all {0} bytes that there are for them: send all of it at once")]
    Bodies(usize),
    #[error("too many grammars wait to be compiled")]
    Grammars,
    #[error("prompt logprobs of other requests take the memory that there is for them ({0} entries)")]
    PromptLogprobs(usize),
    #[error("{waiting} prompt tokens wait to be computed, and {allowed} may (max_queued_tokens)")]
    QueuedTokens { waiting: u64, allowed: u64 },
    #[error(
        "{waiting} prompt tokens of this API key's tenant wait to be computed, and {allowed} may (its max_queued_tokens)"
    )]
    TenantQueuedTokens { waiting: u64, allowed: u64 },
    #[error("a newcomer would wait for {:.1} s, and {:.1} s is the most (max_queue_seconds)", .wait.as_secs_f64(), .allowed.as_secs_f64())]
    Wait { wait: Duration, allowed: Duration },
    #[error("its first token would come in {:.1} s, and its timeout is over in {:.1} s", .wait.as_secs_f64(), .left.as_secs_f64())]
    Deadline { wait: Duration, left: Duration },
}

impl Reason {
    /// Every label that [`Reason::label`] gives.
    pub const LABELS: [&'static str; 10] = [
        "places",
        "tenant_places",
        "tenant_share",
        "bodies",
        "grammars",
        "prompt_logprobs",
        "queued_tokens",
        "tenant_queued_tokens",
        "wait",
        "deadline",
    ];

    /// What metrics call it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Places(_) => "places",
            Self::TenantPlaces(_) => "tenant_places",
            Self::TenantShare(_) => "tenant_share",
            Self::Bodies(_) => "bodies",
            Self::Grammars => "grammars",
            Self::PromptLogprobs(_) => "prompt_logprobs",
            Self::QueuedTokens { .. } => "queued_tokens",
            Self::TenantQueuedTokens { .. } => "tenant_queued_tokens",
            Self::Wait { .. } => "wait",
            Self::Deadline { .. } => "deadline",
        }
    }
}

impl Refusal {
    pub fn new(reason: Reason, pause: Duration) -> Self {
        Self { reason, pause }
    }

    /// `Retry-After`: whole seconds, at least one.
    pub fn pause_seconds(&self) -> u64 {
        let whole = self.pause.as_secs().saturating_add(u64::from(self.pause.subsec_nanos() > 0));
        whole.clamp(1, LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_whole_seconds_and_never_none() {
        let seconds = |millis| Refusal::new(Reason::Grammars, Duration::from_millis(millis)).pause_seconds();
        assert_eq!([0, 1, 1000, 1001, 59_999].map(seconds), [1, 1, 1, 2, 60]);
        assert_eq!(Refusal::new(Reason::Grammars, Duration::MAX).pause_seconds(), 3600);
    }

    #[test]
    fn it_says_what_there_is_not_enough_of_and_when_to_come_back() {
        let refusal = Refusal::new(Reason::Places(3), Duration::from_millis(1500));
        assert_eq!(refusal.to_string(), "all 3 places are taken (max_concurrent_requests); try again in 2 s");
    }
}
