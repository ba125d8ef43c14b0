//! What one step is told and what it answers: `StepPlan` down, `StepResult` up. Plain data, no behaviour.

use std::sync::Arc;

/// A running token list. Chosen by the engine, never reused within one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A sequence's place in the worker's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row(pub u32);

/// A unit of KV memory: `page_size` tokens of every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// How a sequence's tokens are chosen. Absent features have neutral values (the proto's comments name them).
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// False: argmax of the processed scores.
    pub do_sample: bool,
    /// The noise is a function of (seed, position) alone.
    pub seed: u64,
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub typical_p: f32,
    pub min_p: f32,
    /// Multiplicative, over prompt and output.
    pub repetition_penalty: f32,
    /// TGI's: `penalty * count / length`, over prompt and output.
    pub frequency_penalty: f32,
    /// `OpenAI`'s: subtracted once per distinct output token.
    pub presence_penalty: f32,
    /// `OpenAI`'s frequency penalty: subtracted per occurrence in the output.
    pub count_penalty: f32,
    pub watermark: bool,
    /// 0: none. Ties make an answer longer.
    pub top_n_tokens: u32,
    /// The same beside the logprobs of the prompt.
    pub prompt_top_tokens: u32,
    /// Added to the raw scores of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The tokens that end a sequence; empty unless `min_new_tokens` or `grammar` need them.
    pub end_tokens: Arc<[u32]>,
    /// The end tokens are impossible until the output has so many.
    pub min_new_tokens: u32,
    /// In llguidance's form: the output is in its language, then comes an end token.
    pub grammar: Option<Arc<str>>,
}

impl Default for Sampling {
    /// Greedy, nothing else.
    fn default() -> Self {
        Self {
            do_sample: false,
            seed: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            typical_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            count_penalty: 0.0,
            watermark: false,
            top_n_tokens: 0,
            prompt_top_tokens: 0,
            logit_bias: Vec::new(),
            end_tokens: Arc::from([]),
            min_new_tokens: 0,
            grammar: None,
        }
    }
}

/// What the workers do in one forward pass. Applied in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// 1, 2, 3, … since the workers were (re)connected.
    pub step: u64,
    /// Rows whose sequence has left.
    pub released: Vec<Row>,
    pub admitted: Vec<Admission>,
    pub grown: Vec<Growth>,
    pub copies: Vec<PageCopy>,
    pub work: Vec<Work>,
}

/// A sequence takes a row: new, or resumed (then `token_ids` holds its output so far too).
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    pub sequence: SequenceId,
    pub row: Row,
    /// All tokens known so far.
    pub token_ids: Vec<u32>,
    /// How many of them the client sent.
    pub num_prompt_tokens: u32,
    /// The page table so far: prefix hits and the first chunk's pages.
    pub pages: Vec<PageId>,
    pub sampling: Arc<Sampling>,
    pub prompt_logprobs: bool,
}

/// `page_table[row][index] = page`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    pub row: Row,
    pub index: u32,
    pub page: PageId,
}

/// Copy a whole page, K and V of all layers, before the work of this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageCopy {
    pub source: PageId,
    pub target: PageId,
}

/// One sequence computes positions `start .. start + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    pub sequence: SequenceId,
    pub row: Row,
    /// `num_computed_tokens` before this step.
    pub start: u32,
    /// `num_scheduled_tokens`, at least 1.
    pub count: u32,
    /// Whether the token at position `start + count` is sampled.
    pub samples: bool,
}

/// What a step answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResult {
    pub step: u64,
    /// One per work entry with `samples`, in the plan's order.
    pub sampled: Vec<Sampled>,
    pub prompt_logprobs: Vec<PromptLogprobs>,
    pub failed: Vec<Failure>,
    /// `failed` names every sequence of the step, because the step failed and nobody knows of whom.
    pub whole_step: bool,
    /// It failed for want of memory: the same sequences may well fit into smaller steps.
    pub out_of_memory: bool,
    pub timings: Timings,
    /// Steps finished by the answering process.
    pub progress: u64,
}

/// The token id of a sampled entry whose sequence is in `StepResult::failed`.
pub const NO_TOKEN: u32 = u32::MAX;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    pub token_id: u32,
    pub logprob: f32,
    pub top_tokens: Vec<TopToken>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TopToken {
    pub token_id: u32,
    pub logprob: f32,
}

/// Logprobs of the prompt tokens at positions `start + 1 …` of one work entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptLogprobs {
    /// Index into the plan's `work`.
    pub work: u32,
    pub logprobs: Vec<PromptLogprob>,
}

/// Of one prompt token. `top_tokens`: the likeliest in its place, best first; empty where not asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptLogprob {
    pub logprob: f32,
    pub top_tokens: Vec<TopToken>,
}

/// One sequence's fault. The stream lives on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub sequence: SequenceId,
    pub message: String,
}

/// Microseconds spent by the answering rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    pub inputs_us: u32,
    pub forward_us: u32,
    pub sample_us: u32,
    pub total_us: u32,
}
