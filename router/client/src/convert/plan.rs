//! Plans: down.

use std::sync::Arc;

use millrace_scheduler::{Admission, Growth, PageCopy, PageId, Row, Sampling, SequenceId, StepPlan, Work};
use prost::Message;
use prost::bytes::Bytes;

use crate::columns::{Malformed, check_length, pack, pack_f32, unpack, unpack_exactly, unpack_f32_exactly};
use crate::v1;

/// The plan on the wire, once for all ranks.
pub(crate) fn encode_plan(plan: &StepPlan) -> Bytes {
    plan_to_proto(plan).encode_to_vec().into()
}

pub fn plan_to_proto(plan: &StepPlan) -> v1::StepPlan {
    v1::StepPlan {
        step: plan.step,
        released: pack(plan.released.iter().map(|row| row.0)),
        admitted: plan.admitted.iter().map(admission_to_proto).collect(),
        grown: (!plan.grown.is_empty()).then(|| v1::Growth {
            rows: pack(plan.grown.iter().map(|growth| growth.row.0)),
            indices: pack(plan.grown.iter().map(|growth| growth.index)),
            pages: pack(plan.grown.iter().map(|growth| growth.page.0)),
        }),
        copies: (!plan.copies.is_empty()).then(|| v1::PageCopies {
            sources: pack(plan.copies.iter().map(|copy| copy.source.0)),
            targets: pack(plan.copies.iter().map(|copy| copy.target.0)),
        }),
        work: (!plan.work.is_empty()).then(|| v1::Work {
            rows: pack(plan.work.iter().map(|work| work.row.0)),
            starts: pack(plan.work.iter().map(|work| work.start)),
            counts: pack(plan.work.iter().map(|work| work.count)),
            samples: plan.work.iter().map(|work| u8::from(work.samples)).collect(),
        }),
    }
}

fn admission_to_proto(admission: &Admission) -> v1::Admission {
    v1::Admission {
        sequence: admission.sequence.0,
        row: admission.row.0,
        token_ids: pack(admission.token_ids.iter().copied()),
        num_prompt_tokens: admission.num_prompt_tokens,
        pages: pack(admission.pages.iter().map(|page| page.0)),
        sampling: Some(sampling_to_proto(&admission.sampling)),
        prompt_logprobs: admission.prompt_logprobs,
    }
}

fn sampling_to_proto(sampling: &Sampling) -> v1::Sampling {
    v1::Sampling {
        do_sample: sampling.do_sample,
        seed: sampling.seed,
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        typical_p: sampling.typical_p,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        count_penalty: sampling.count_penalty,
        watermark: sampling.watermark,
        top_n_tokens: sampling.top_n_tokens,
        prompt_top_tokens: sampling.prompt_top_tokens,
        bias_token_ids: pack(sampling.logit_bias.iter().map(|(id, _)| *id)),
        bias_values: pack_f32(sampling.logit_bias.iter().map(|(_, bias)| *bias)),
        end_token_ids: pack(sampling.end_tokens.iter().copied()),
        min_new_tokens: sampling.min_new_tokens,
        grammar: sampling.grammar.as_deref().unwrap_or_default().to_owned(),
    }
}

/// What a worker reads. The wire names rows only: `sequence_of` says whose row it was before this plan; rows that the
/// plan itself admits need no answer.
pub fn plan_from_proto(
    plan: &v1::StepPlan,
    sequence_of: impl Fn(Row) -> Option<SequenceId>,
) -> Result<StepPlan, Malformed> {
    let admitted = plan.admitted.iter().enumerate();
    let admitted: Vec<Admission> = admitted.map(|(index, proto)| admission(index, proto)).collect::<Result<_, _>>()?;
    let sequence_of = |row| {
        let here = admitted.iter().find(|admission| admission.row == row);
        here.map(|admission| admission.sequence).or_else(|| sequence_of(row))
    };
    Ok(StepPlan {
        step: plan.step,
        released: unpack("released", &plan.released)?.map(Row).collect(),
        grown: plan.grown.as_ref().map(growths).transpose()?.unwrap_or_default(),
        copies: plan.copies.as_ref().map(page_copies).transpose()?.unwrap_or_default(),
        work: plan.work.as_ref().map(|proto| work(proto, sequence_of)).transpose()?.unwrap_or_default(),
        admitted,
    })
}

fn admission(index: usize, proto: &v1::Admission) -> Result<Admission, Malformed> {
    let sampling = proto.sampling.as_ref().ok_or(Malformed::Missing { field: "admitted.sampling", index })?;
    let token_ids: Vec<u32> = unpack("admitted.token_ids", &proto.token_ids)?.collect();
    if proto.num_prompt_tokens == 0 || proto.num_prompt_tokens as usize > token_ids.len() {
        let value = proto.num_prompt_tokens.into();
        let problem = "it must be at least 1 and at most the number of token_ids";
        return Err(Malformed::Value { field: "admitted.num_prompt_tokens", index, value, problem });
    }
    Ok(Admission {
        sequence: SequenceId(proto.sequence),
        row: Row(proto.row),
        token_ids,
        num_prompt_tokens: proto.num_prompt_tokens,
        pages: unpack("admitted.pages", &proto.pages)?.map(PageId).collect(),
        sampling: Arc::new(sampling_from_proto(sampling)?),
        prompt_logprobs: proto.prompt_logprobs,
    })
}

fn sampling_from_proto(proto: &v1::Sampling) -> Result<Sampling, Malformed> {
    let biased = unpack("sampling.bias_token_ids", &proto.bias_token_ids)?;
    let bias = unpack_f32_exactly("sampling.bias_values", &proto.bias_values, biased.len())?;
    Ok(Sampling {
        do_sample: proto.do_sample,
        seed: proto.seed,
        temperature: proto.temperature,
        top_k: proto.top_k,
        top_p: proto.top_p,
        typical_p: proto.typical_p,
        min_p: proto.min_p,
        repetition_penalty: proto.repetition_penalty,
        frequency_penalty: proto.frequency_penalty,
        presence_penalty: proto.presence_penalty,
        count_penalty: proto.count_penalty,
        watermark: proto.watermark,
        top_n_tokens: proto.top_n_tokens,
        prompt_top_tokens: proto.prompt_top_tokens,
        logit_bias: biased.zip(bias).collect(),
        end_tokens: unpack("sampling.end_token_ids", &proto.end_token_ids)?.collect(),
        min_new_tokens: proto.min_new_tokens,
        grammar: (!proto.grammar.is_empty()).then(|| proto.grammar.as_str().into()),
    })
}

fn growths(proto: &v1::Growth) -> Result<Vec<Growth>, Malformed> {
    let rows = unpack("grown.rows", &proto.rows)?;
    let indices = unpack_exactly("grown.indices", &proto.indices, rows.len())?;
    let pages = unpack_exactly("grown.pages", &proto.pages, rows.len())?;
    let columns = rows.zip(indices).zip(pages);
    Ok(columns.map(|((row, index), page)| Growth { row: Row(row), index, page: PageId(page) }).collect())
}

fn page_copies(proto: &v1::PageCopies) -> Result<Vec<PageCopy>, Malformed> {
    let sources = unpack("copies.sources", &proto.sources)?;
    let targets = unpack_exactly("copies.targets", &proto.targets, sources.len())?;
    Ok(sources
        .zip(targets)
        .map(|(source, target)| PageCopy { source: PageId(source), target: PageId(target) })
        .collect())
}

fn work(proto: &v1::Work, sequence_of: impl Fn(Row) -> Option<SequenceId>) -> Result<Vec<Work>, Malformed> {
    let rows = unpack("work.rows", &proto.rows)?;
    let starts = unpack_exactly("work.starts", &proto.starts, rows.len())?;
    let counts = unpack_exactly("work.counts", &proto.counts, rows.len())?;
    check_length("work.samples", rows.len(), proto.samples.len())?;
    let columns = rows.zip(starts).zip(counts).zip(&proto.samples).enumerate();
    columns
        .map(|(index, (((row, start), count), &samples))| {
            let wrong = |field, value, problem| Malformed::Value { field, index, value, problem };
            let sequence = sequence_of(Row(row));
            let sequence = sequence.ok_or(wrong("work.rows", row.into(), "no sequence holds this row"))?;
            match (count, samples) {
                (0, _) => Err(wrong("work.counts", 0, "it must be at least 1")),
                (_, 2..) => Err(wrong("work.samples", samples.into(), "it must be 0 or 1")),
                _ => Ok(Work { sequence, row: Row(row), start, count, samples: samples == 1 }),
            }
        })
        .collect()
}
