//! One running token list: what is known of it, how far it is computed, and what it holds on the workers.

use std::sync::Arc;

use crate::page_table::PageTable;
use crate::pool::PagePool;
use crate::prefix::{Parent, Promise};
use crate::{FinishReason, PageId, PromptLogprob, Request, Row, Sampling, SequenceId, TenantId};

/// Orders the sequences of one tenant: by priority, then by arrival. The first is served first, the last is preempted first.
/// Those of one tenant stand together: which tenant comes first is decided anew in every step (`fairness`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) tenant: TenantId,
    pub(crate) priority: i32,
    pub(crate) arrival: u64,
    pub(crate) id: SequenceId,
}

/// The states of a sequence the scheduler knows; a finished one is forgotten.
#[derive(Debug)]
pub(crate) enum State {
    Waiting,
    Running(Seat),
    /// Its tokens are kept, its pages are not. Results of steps in flight still count.
    Preempted,
}

/// What a running sequence holds on the workers.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) row: Row,
    pub(crate) table: PageTable,
    /// Tokens whose K/V exist once every step sent so far is done.
    pub(crate) num_computed_tokens: usize,
    /// The first step it took part in, and how many tokens it found computed then.
    pub(crate) first_step: u64,
    pub(crate) num_shared_tokens: usize,
    /// Whether it is computed as a sequence beyond the position switch.
    pub(crate) is_long: bool,
}

impl Seat {
    /// Makes known which pages are full, of all tokens whose ids are known. A finished prefill leaves no promise behind.
    pub(crate) fn publish(&mut self, pool: &mut PagePool, tokens: &[u32]) {
        let num_known = self.num_computed_tokens.min(tokens.len());
        self.table.publish(pool, &tokens[..num_known]);
        if num_known == tokens.len() {
            self.table.withdraw(pool);
        }
    }
}

#[derive(Debug)]
pub(crate) enum PromptLogprobs {
    NotAsked,
    /// Filled chunk by chunk, complete when the first token arrives.
    Collecting(Vec<PromptLogprob>),
    /// Taken over from a sequence with the same prompt.
    Complete(Vec<PromptLogprob>),
}

#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) place: Place,
    /// All sequences with this prompt, in order, itself included.
    pub(crate) group: Arc<[SequenceId]>,
    pub(crate) sampling: Arc<Sampling>,
    /// Prompt, then output so far.
    pub(crate) tokens: Vec<u32>,
    pub(crate) num_prompt_tokens: usize,
    /// Prompt and output may not exceed this.
    pub(crate) max_tokens: usize,
    pub(crate) eos_token_ids: Arc<[u32]>,
    pub(crate) namespace: u64,
    pub(crate) prompt_logprobs: PromptLogprobs,
    /// Tokens that steps in flight are sampling.
    pub(crate) num_pending_tokens: usize,
    /// Tokens found computed when first scheduled; `None` before.
    pub(crate) num_cached_tokens: Option<usize>,
    pub(crate) is_prefilled: bool,
    /// Tokens computed for the first time: what its tenant has been charged for.
    pub(crate) num_charged_tokens: usize,
    /// Deaths of the workers with a step of this sequence in flight, since its last token.
    pub(crate) num_losses: u32,
    /// Steps that ran out of memory though they were as small as can be and it was alone in them, since its last token.
    pub(crate) num_shortages: u32,
    /// Not worth a new look at the prefix cache while this is promised.
    pub(crate) waits_for: Option<Promise>,
    pub(crate) state: State,
}

impl Sequence {
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    pub(crate) fn prompt(&self) -> &[u32] {
        &self.tokens[..self.num_prompt_tokens]
    }

    pub(crate) fn new(
        request: &Request,
        tokens: Vec<u32>,
        place: Place,
        group: &Arc<[SequenceId]>,
        sampling: &Arc<Sampling>,
    ) -> Self {
        let num_prompt_tokens = tokens.len();
        let prompt_logprobs = if request.prompt_logprobs {
            PromptLogprobs::Collecting(vec![PromptLogprob::default(); num_prompt_tokens - 1])
        } else {
            PromptLogprobs::NotAsked
        };
        Self {
            place,
            group: Arc::clone(group),
            sampling: Arc::clone(sampling),
            tokens,
            num_prompt_tokens,
            max_tokens: num_prompt_tokens + request.max_new_tokens as usize,
            eos_token_ids: Arc::clone(&request.eos_token_ids),
            namespace: request.namespace,
            prompt_logprobs,
            num_pending_tokens: 0,
            num_cached_tokens: None,
            is_prefilled: false,
            num_charged_tokens: 0,
            num_losses: 0,
            num_shortages: 0,
            waits_for: None,
            state: State::Waiting,
        }
    }

    pub(crate) fn seat(&self) -> Option<&Seat> {
        match &self.state {
            State::Running(seat) => Some(seat),
            State::Waiting | State::Preempted => None,
        }
    }

    pub(crate) fn seat_mut(&mut self) -> Option<&mut Seat> {
        match &mut self.state {
            State::Running(seat) => Some(seat),
            State::Waiting | State::Preempted => None,
        }
    }

    /// Known tokens and those in flight, as if none of these were the last.
    pub(crate) fn num_tokens(&self) -> usize {
        self.tokens.len() + self.num_pending_tokens
    }

    /// Tokens a step could compute beyond the first `num_computed_tokens`. The last allowed token is never computed:
    /// nothing follows it.
    pub(crate) fn num_remaining_tokens(&self, num_computed_tokens: usize) -> usize {
        self.num_tokens().min(self.max_tokens - 1).saturating_sub(num_computed_tokens)
    }

    /// Tokens that a step could compute now; 0 unless running.
    pub(crate) fn num_runnable_tokens(&self) -> usize {
        self.seat().map_or(0, |seat| self.num_remaining_tokens(seat.num_computed_tokens))
    }

    /// Tokens the pool must hold so that the sequence can compute all it knows and one more.
    pub(crate) fn num_tokens_to_resume(&self) -> usize {
        (self.num_tokens() + 1).min(self.max_tokens - 1)
    }

    /// Whether every prompt position has to go through the model for its logprob.
    pub(crate) fn collects_prompt_logprobs(&self) -> bool {
        matches!(self.prompt_logprobs, PromptLogprobs::Collecting(_))
    }

    /// Prompt logprobs that computing positions `start .. start + count` answers: of the tokens at `start + 1 ..= start + count`.
    pub(crate) fn num_prompt_logprobs(&self, start: usize, count: usize) -> usize {
        if self.collects_prompt_logprobs() {
            (start + count).min(self.num_prompt_tokens - 1).saturating_sub(start)
        } else {
            0
        }
    }

    /// Why the sequence ends with its last known token, if it does.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        let last = self.tokens.last()?;
        if self.tokens.len() >= self.max_tokens {
            Some(FinishReason::Length)
        } else if self.eos_token_ids.contains(last) {
            Some(FinishReason::EosToken)
        } else {
            None
        }
    }
}

/// How an admission begins: with pages of others, and the first position it computes itself.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) pages: Vec<PageId>,
    /// So many of `pages` are never read: they only keep the place of the others.
    pub(crate) num_unseen: usize,
    /// So many of `pages` have their place in the prefix tree; `tail` is the last one's.
    pub(crate) num_published: usize,
    pub(crate) tail: Parent,
    /// What the page after `pages` is copied from.
    pub(crate) copy_from: Option<PageId>,
    pub(crate) num_computed_tokens: usize,
}

impl Opening {
    /// Everything is still to be computed.
    pub(crate) fn nothing(root: Parent) -> Self {
        Self { pages: Vec::new(), num_unseen: 0, num_published: 0, tail: root, copy_from: None, num_computed_tokens: 0 }
    }

    /// The pages that it will own.
    pub(crate) fn shared(&self) -> &[PageId] {
        &self.pages[self.num_unseen..]
    }
}
