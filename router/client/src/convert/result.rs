//! Results: up.

use std::collections::HashSet;

use millrace_scheduler::{
    Failure, NO_TOKEN, PromptLogprob, PromptLogprobs, Sampled, SequenceId, StepPlan, StepResult, Timings, TopToken,
    Work,
};

use crate::columns::{Malformed, pack, pack_f32, unpack, unpack_exactly, unpack_f32_exactly};
use crate::v1;

/// What of a plan its answer is checked against.
#[derive(Clone, Debug)]
pub struct Outline {
    work: Vec<Work>,
    num_sampled: usize,
    admitted: Vec<SequenceId>,
    /// 0: unknown, ids are not checked.
    vocab_size: u32,
}

impl Outline {
    pub fn of(plan: &StepPlan, vocab_size: u32) -> Self {
        Self {
            work: plan.work.clone(),
            num_sampled: plan.work.iter().filter(|work| work.samples).count(),
            admitted: plan.admitted.iter().map(|admission| admission.sequence).collect(),
            vocab_size,
        }
    }

    pub(crate) fn num_sequences(&self) -> usize {
        self.work.len()
    }

    fn concerns(&self, sequence: SequenceId) -> bool {
        self.admitted.contains(&sequence) || self.work.iter().any(|work| work.sequence == sequence)
    }

    fn sampling_sequences(&self) -> impl Iterator<Item = SequenceId> {
        self.work.iter().filter(|work| work.samples).map(|work| work.sequence)
    }

    fn check_id(&self, field: &'static str, index: usize, id: u32) -> Result<(), Malformed> {
        if self.vocab_size == 0 || id < self.vocab_size {
            return Ok(());
        }
        Err(Malformed::Value { field, index, value: id.into(), problem: "it is not in the vocabulary" })
    }
}

/// Reads rank 0's answer to the plan of `outline`. Errs where the answer does not fit the plan.
pub fn result_from_proto(outline: &Outline, answer: &v1::StepResult) -> Result<StepResult, Malformed> {
    let failed = failures(outline, &answer.failed)?;
    let mut sampled = sampled(outline, answer, &failed)?;
    if let Some(top_tokens) = &answer.top_tokens {
        add_top_tokens(outline, top_tokens, sampled.iter_mut().map(|sampled| &mut sampled.top_tokens))?;
    }
    Ok(StepResult {
        step: answer.step,
        sampled,
        prompt_logprobs: prompt_logprobs(outline, answer.prompt_logprobs.as_ref())?,
        failed,
        timings: answer.timings.map(timings).unwrap_or_default(),
        progress: answer.progress,
        whole_step: answer.whole_step,
        out_of_memory: answer.out_of_memory,
    })
}

fn failures(outline: &Outline, failed: &[v1::Failure]) -> Result<Vec<Failure>, Malformed> {
    let read = |(index, failure): (usize, &v1::Failure)| {
        let sequence = SequenceId(failure.sequence);
        if outline.concerns(sequence) {
            return Ok(Failure { sequence, message: failure.message.clone() });
        }
        let problem = "this sequence has no part in the step";
        Err(Malformed::Value { field: "failed.sequence", index, value: failure.sequence, problem })
    };
    failed.iter().enumerate().map(read).collect()
}

fn sampled(outline: &Outline, answer: &v1::StepResult, failed: &[Failure]) -> Result<Vec<Sampled>, Malformed> {
    let ids = unpack_exactly("token_ids", &answer.token_ids, outline.num_sampled)?;
    let logprobs = unpack_f32_exactly("logprobs", &answer.logprobs, outline.num_sampled)?;
    let failed: HashSet<SequenceId> = failed.iter().map(|failure| failure.sequence).collect();
    let mut sampled = Vec::with_capacity(outline.num_sampled);
    for (index, ((token_id, logprob), sequence)) in ids.zip(logprobs).zip(outline.sampling_sequences()).enumerate() {
        if !failed.contains(&sequence) {
            outline.check_id("token_ids", index, token_id)?;
            if token_id == NO_TOKEN {
                let problem = "there is no token, but the sequence has not failed";
                return Err(Malformed::Value { field: "token_ids", index, value: token_id.into(), problem });
            }
        }
        sampled.push(Sampled { token_id, logprob, top_tokens: Vec::new() });
    }
    Ok(sampled)
}

/// One list for each of `places`.
fn add_top_tokens<'a>(
    outline: &Outline,
    top: &v1::TopTokens,
    places: impl ExactSizeIterator<Item = &'a mut Vec<TopToken>>,
) -> Result<(), Malformed> {
    let counts = unpack_exactly("top_tokens.counts", &top.counts, places.len())?;
    let total = total(counts.clone());
    let mut ids = unpack_exactly("top_tokens.token_ids", &top.token_ids, total)?.enumerate();
    let mut logprobs = unpack_f32_exactly("top_tokens.logprobs", &top.logprobs, total)?;
    for (place, count) in places.zip(counts) {
        place.reserve_exact(count as usize);
        for ((index, token_id), logprob) in ids.by_ref().zip(logprobs.by_ref()).take(count as usize) {
            outline.check_id("top_tokens.token_ids", index, token_id)?;
            place.push(TopToken { token_id, logprob });
        }
    }
    Ok(())
}

fn prompt_logprobs(outline: &Outline, proto: Option<&v1::PromptLogprobs>) -> Result<Vec<PromptLogprobs>, Malformed> {
    let Some(proto) = proto else {
        return Ok(Vec::new());
    };
    let works = unpack("prompt_logprobs.work", &proto.work)?;
    let counts = unpack_exactly("prompt_logprobs.counts", &proto.counts, works.len())?;
    let total = total(counts.clone());
    let logprobs = unpack_f32_exactly("prompt_logprobs.logprobs", &proto.logprobs, total)?;
    let mut logprobs: Vec<_> = logprobs.map(|logprob| PromptLogprob { logprob, ..PromptLogprob::default() }).collect();
    if let Some(top_tokens) = &proto.top_tokens {
        add_top_tokens(outline, top_tokens, logprobs.iter_mut().map(|logprob| &mut logprob.top_tokens))?;
    }
    let mut logprobs = logprobs.into_iter();
    let mut read = |(index, (work, count)): (usize, (u32, u32))| {
        let wrong = |field, value: u32, problem| Malformed::Value { field, index, value: value.into(), problem };
        let Some(entry) = outline.work.get(work as usize) else {
            return Err(wrong("prompt_logprobs.work", work, "the plan has no such work entry"));
        };
        if count > entry.count {
            return Err(wrong("prompt_logprobs.counts", count, "it is more than the work entry's tokens"));
        }
        Ok(PromptLogprobs { work, logprobs: logprobs.by_ref().take(count as usize).collect() })
    };
    works.zip(counts).enumerate().map(&mut read).collect()
}

/// The length of columns that are concatenated. Saturates: no column is that long, and the mismatch is then the error.
fn total(counts: impl Iterator<Item = u32>) -> usize {
    counts.fold(0_usize, |total, count| total.saturating_add(count as usize))
}

fn timings(proto: v1::Timings) -> Timings {
    Timings {
        inputs_us: proto.inputs_us,
        forward_us: proto.forward_us,
        sample_us: proto.sample_us,
        total_us: proto.total_us,
    }
}

/// What rank 0 writes.
pub fn result_to_proto(result: &StepResult) -> v1::StepResult {
    let failed = result.failed.iter();
    v1::StepResult {
        step: result.step,
        token_ids: pack(result.sampled.iter().map(|sampled| sampled.token_id)),
        logprobs: pack_f32(result.sampled.iter().map(|sampled| sampled.logprob)),
        top_tokens: top_tokens_to_proto(result.sampled.iter().map(|sampled| sampled.top_tokens.as_slice())),
        prompt_logprobs: prompt_logprobs_to_proto(&result.prompt_logprobs),
        failed: failed
            .map(|failure| v1::Failure { sequence: failure.sequence.0, message: failure.message.clone() })
            .collect(),
        timings: Some(v1::Timings {
            inputs_us: result.timings.inputs_us,
            forward_us: result.timings.forward_us,
            sample_us: result.timings.sample_us,
            total_us: result.timings.total_us,
        }),
        progress: result.progress,
        whole_step: result.whole_step,
        out_of_memory: result.out_of_memory,
    }
}

fn top_tokens_to_proto<'a>(lists: impl ExactSizeIterator<Item = &'a [TopToken]> + Clone) -> Option<v1::TopTokens> {
    let top: Vec<TopToken> = lists.clone().flatten().copied().collect();
    (!top.is_empty()).then(|| v1::TopTokens {
        counts: pack(lists.map(|list| list.len() as u32)),
        token_ids: pack(top.iter().map(|top| top.token_id)),
        logprobs: pack_f32(top.iter().map(|top| top.logprob)),
    })
}

fn prompt_logprobs_to_proto(entries: &[PromptLogprobs]) -> Option<v1::PromptLogprobs> {
    let all: Vec<&PromptLogprob> = entries.iter().flat_map(|entry| &entry.logprobs).collect();
    (!entries.is_empty()).then(|| v1::PromptLogprobs {
        work: pack(entries.iter().map(|entry| entry.work)),
        counts: pack(entries.iter().map(|entry| entry.logprobs.len() as u32)),
        logprobs: pack_f32(all.iter().map(|one| one.logprob)),
        top_tokens: top_tokens_to_proto(all.iter().map(|one| one.top_tokens.as_slice())),
    })
}
