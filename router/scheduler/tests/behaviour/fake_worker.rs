//! A worker without a model. It keeps what a real one keeps (rows, page tables, the KV pool) and believes nothing:
//! before it computes a token it checks that every earlier position of that sequence is in its pages. With pages of 0 tokens
//! it has none: then a row carries a state, which must be that of the tokens before.
//!
//! K and V of a position are a hash of all tokens up to it. The next token is a function of that hash and the seed, so the
//! output of a sequence does not depend on how it was scheduled unless something went wrong.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use millrace_scheduler::{
    Failure, NO_TOKEN, PageId, PromptLogprob, PromptLogprobs, Row, Sampled, Sampling, SequenceId, StepPlan, StepResult,
    TopToken, Work,
};

use crate::rng::mix;

pub(crate) const EOS: u32 = 0;
/// What a row samples that has read a failed page. It must never reach anybody.
pub(crate) const GARBAGE: u32 = 0xBAD;

/// The stand-in for weights.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    pub(crate) vocab: u32,
    /// 0: the end-of-sequence token is never sampled by itself.
    pub(crate) eos_one_in: u64,
    /// A step reads so many positions back, its own included; 0: all.
    pub(crate) window: usize,
    /// K and V are others, at all positions, when more tokens than this are known; 0: never.
    pub(crate) switch: usize,
}

impl Model {
    /// K and V at each position. Different adapters (told apart by `top_k`) make different ones of the same tokens.
    fn extend(hash: u64, token: u32) -> u64 {
        mix(hash, u64::from(token))
    }

    /// Of a sequence of which `num_tokens` are known.
    fn start(self, sampling: &Sampling, num_tokens: usize) -> u64 {
        let is_long = self.switch > 0 && num_tokens > self.switch;
        mix(u64::from(is_long), u64::from(sampling.top_k))
    }

    /// The first position that a step beginning at `start` reads.
    pub(crate) fn first_read(self, start: usize) -> usize {
        if self.window == 0 { 0 } else { start.saturating_sub(self.window - 1) }
    }

    fn next_token(self, hash: u64, sampling: &Sampling) -> u32 {
        let scores = mix(hash, sampling.seed);
        if self.eos_one_in > 0 && scores.is_multiple_of(self.eos_one_in) {
            EOS
        } else {
            1 + (mix(scores, 1) % u64::from(self.vocab)) as u32
        }
    }

    fn logprob(hash: u64, token: u32) -> f32 {
        -((mix(hash, u64::from(token) + 7) % 1000) as f32) / 100.0
    }

    /// The undisturbed run: tokens until `max_new_tokens` or, if wanted, the end-of-sequence token.
    pub(crate) fn generate(
        self,
        prompt: &[u32],
        sampling: &Sampling,
        max_new_tokens: u32,
        stops_at_eos: bool,
    ) -> Vec<u32> {
        let mut tokens = prompt.to_vec();
        let is_whole =
            |output: &[u32]| output.len() >= max_new_tokens as usize || stops_at_eos && output.last() == Some(&EOS);
        while !is_whole(&tokens[prompt.len()..]) {
            let start = self.start(sampling, tokens.len());
            let hash = tokens.iter().fold(start, |hash, &token| Self::extend(hash, token));
            tokens.push(self.next_token(hash, sampling));
        }
        tokens.split_off(prompt.len())
    }

    pub(crate) fn prompt_logprobs(self, prompt: &[u32], sampling: &Sampling) -> Vec<PromptLogprob> {
        let mut hash = Self::extend(self.start(sampling, prompt.len()), prompt[0]);
        let mut logprobs = Vec::new();
        for &token in &prompt[1..] {
            logprobs.push(Self::prompt_logprob(hash, token));
            hash = Self::extend(hash, token);
        }
        logprobs
    }

    /// With the token itself for the likeliest in its place.
    fn prompt_logprob(hash: u64, token_id: u32) -> PromptLogprob {
        let logprob = Self::logprob(hash, token_id);
        PromptLogprob { logprob, top_tokens: vec![TopToken { token_id, logprob }] }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    Empty,
    Holds(u64),
    /// Its step failed.
    Poisoned,
}

#[derive(Debug)]
struct RowState {
    sequence: SequenceId,
    tokens: Vec<u32>,
    num_prompt_tokens: usize,
    sampling: Sampling,
    prompt_logprobs: bool,
    table: Vec<PageId>,
    /// Without pages: what the row holds of all tokens computed so far.
    carried: Slot,
    /// A step with it has failed: it takes no part until its row is released.
    has_failed: bool,
}

/// What a step that has not been answered reads or writes.
struct Touched {
    rows: HashSet<Row>,
    pages: HashSet<PageId>,
}

pub(crate) struct FakeWorker {
    model: Model,
    page_size: usize,
    slots: Vec<Slot>,
    rows: Vec<Option<RowState>>,
    num_steps: u64,
    unanswered: VecDeque<(Touched, StepResult)>,
    /// The next token of a sequence, whatever the model says.
    pub(crate) forced: HashMap<SequenceId, u32>,
    /// Sequences whose work fails in the next step.
    pub(crate) failing: BTreeSet<SequenceId>,
    /// A step fails that computes one of these up to this position.
    pub(crate) poisonous: HashMap<SequenceId, usize>,
    /// There is no memory for steps with one of these.
    pub(crate) huge: HashSet<SequenceId>,
    /// There is memory for steps of so many tokens.
    pub(crate) memory: usize,
    /// There is no memory for the next step.
    pub(crate) is_short: bool,
}

impl FakeWorker {
    pub(crate) fn new(model: Model, num_rows: u32, num_pages: u32, page_size: u32) -> Self {
        Self {
            model,
            page_size: page_size as usize,
            slots: vec![Slot::Empty; (num_pages * page_size) as usize],
            rows: (0..num_rows).map(|_| None).collect(),
            num_steps: 0,
            unanswered: VecDeque::new(),
            forced: HashMap::new(),
            failing: BTreeSet::new(),
            poisonous: HashMap::new(),
            huge: HashSet::new(),
            memory: usize::MAX,
            is_short: false,
        }
    }

    /// The result of the oldest step that has not been answered yet.
    pub(crate) fn answer(&mut self) -> Option<StepResult> {
        self.unanswered.pop_front().map(|(_, result)| result)
    }

    pub(crate) fn num_unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// The page table that `row` has under `plan`.
    pub(crate) fn table_after(&self, plan: &StepPlan, row: Row) -> Vec<PageId> {
        let admission = plan.admitted.iter().find(|admission| admission.row == row);
        let before = || self.rows[row.0 as usize].as_ref().map_or(Vec::new(), |state| state.table.clone());
        let mut table = admission.map_or_else(before, |admission| admission.pages.clone());
        table.extend(plan.grown.iter().filter(|growth| growth.row == row).map(|growth| growth.page));
        table
    }

    /// Does what the plan says, or says what is wrong with it.
    pub(crate) fn run(&mut self, plan: &StepPlan) -> Result<(), String> {
        self.num_steps += 1;
        if plan.step != self.num_steps || plan.work.is_empty() {
            return Err(format!("step {} with {} works after {}", plan.step, plan.work.len(), self.num_steps - 1));
        }
        self.check_untouched(plan)?;
        self.update_rows(plan)?;
        for copy in &plan.copies {
            let (source, target) = (copy.source.0 as usize * self.page_size, copy.target.0 as usize * self.page_size);
            self.slots.copy_within(source..source + self.page_size, target);
        }
        let mut result = StepResult { step: plan.step, progress: plan.step, ..StepResult::default() };
        result.out_of_memory = self.is_out_of_memory(plan);
        result.whole_step = result.out_of_memory || plan.work.iter().any(|work| self.is_poisoned(work));
        let mut rows = HashSet::new();
        for (index, work) in plan.work.iter().enumerate() {
            if !rows.insert(work.row) || work.count == 0 {
                return Err(format!("{work:?} comes twice or is empty"));
            }
            self.compute(index, work, &mut result)?;
        }
        for work in plan.work.iter().filter(|_| result.whole_step) {
            self.rows[work.row.0 as usize].as_mut().unwrap().has_failed = true;
        }
        self.failing.clear();
        let mut pages: HashSet<PageId> = plan.copies.iter().flat_map(|copy| [copy.source, copy.target]).collect();
        for work in &plan.work {
            let table = &self.rows[work.row.0 as usize].as_ref().unwrap().table;
            pages.extend(table.iter().skip(self.num_unread_pages(work)));
        }
        self.unanswered.push_back((Touched { rows, pages }, result));
        Ok(())
    }

    fn is_out_of_memory(&mut self, plan: &StepPlan) -> bool {
        let has_failed = |work: &&Work| self.rows[work.row.0 as usize].as_ref().is_some_and(|row| row.has_failed);
        let living: Vec<&Work> = plan.work.iter().filter(|work| !has_failed(work)).collect();
        let num_tokens: u32 = living.iter().map(|work| work.count).sum();
        let is_huge = living.iter().any(|work| self.huge.contains(&work.sequence));
        let is_short = std::mem::take(&mut self.is_short) && !living.is_empty();
        is_short || is_huge || num_tokens as usize > self.memory
    }

    fn is_poisoned(&self, work: &Work) -> bool {
        let has_failed = self.rows[work.row.0 as usize].as_ref().is_some_and(|row| row.has_failed);
        let position = self.poisonous.get(&work.sequence);
        !has_failed && position.is_some_and(|&position| (work.start + work.count) as usize > position)
    }

    /// Entries at the beginning of a page table that `work` does not look at.
    pub(crate) fn num_unread_pages(&self, work: &Work) -> usize {
        self.model.first_read(work.start as usize).checked_div(self.page_size).unwrap_or(0)
    }

    /// New pages and released rows must not be touched by any step in flight.
    fn check_untouched(&self, plan: &StepPlan) -> Result<(), String> {
        let mut new_pages: Vec<PageId> = plan.grown.iter().map(|growth| growth.page).collect();
        for admission in &plan.admitted {
            let work = plan.work.iter().find(|work| work.row == admission.row);
            let start = work.ok_or_else(|| format!("{admission:?} has no work"))?.start as usize;
            new_pages.extend(admission.pages.iter().skip(start.checked_div(self.page_size).unwrap_or(0)));
        }
        for (touched, _) in &self.unanswered {
            if let Some(page) = new_pages.iter().find(|page| touched.pages.contains(page)) {
                return Err(format!("{page:?} is given away while a step in flight touches it"));
            }
            if let Some(row) = plan.released.iter().find(|row| touched.rows.contains(row)) {
                return Err(format!("{row:?} is released while a step in flight touches it"));
            }
        }
        Ok(())
    }

    fn update_rows(&mut self, plan: &StepPlan) -> Result<(), String> {
        for row in &plan.released {
            self.rows[row.0 as usize].take().ok_or_else(|| format!("{row:?} is released but empty"))?;
        }
        for admission in &plan.admitted {
            let state = RowState {
                sequence: admission.sequence,
                tokens: admission.token_ids.clone(),
                num_prompt_tokens: admission.num_prompt_tokens as usize,
                sampling: (*admission.sampling).clone(),
                prompt_logprobs: admission.prompt_logprobs,
                table: admission.pages.clone(),
                carried: Slot::Empty,
                has_failed: false,
            };
            if self.rows[admission.row.0 as usize].replace(state).is_some() {
                return Err(format!("{:?} is admitted to but in use", admission.row));
            }
        }
        for growth in &plan.grown {
            let state =
                self.rows[growth.row.0 as usize].as_mut().ok_or_else(|| format!("{growth:?} of an empty row"))?;
            if state.table.len() != growth.index as usize {
                return Err(format!("{growth:?} of a table of {}", state.table.len()));
            }
            state.table.push(growth.page);
        }
        Ok(())
    }

    fn compute(&mut self, index: usize, work: &Work, result: &mut StepResult) -> Result<(), String> {
        let state = self.rows[work.row.0 as usize].as_mut().ok_or_else(|| format!("{work:?} of an empty row"))?;
        let (start, end) = (work.start as usize, (work.start + work.count) as usize);
        let has_pages = self.page_size > 0;
        let room = if has_pages { state.table.len() * self.page_size } else { usize::MAX };
        if state.sequence != work.sequence || end > state.tokens.len() || end > room {
            return Err(format!("{work:?} in {state:?}"));
        }
        if !has_pages && !state.table.is_empty() {
            return Err(format!("{state:?} has pages, but there are none"));
        }
        let is_failing = result.whole_step || state.has_failed || self.failing.contains(&work.sequence);
        let mut is_clean = !is_failing;
        let mut hash = self.model.start(&state.sampling, state.tokens.len());
        let first_read = if has_pages { self.model.first_read(start) } else { start.saturating_sub(1) };
        let mut logprobs = Vec::new();
        for position in 0..end {
            hash = Model::extend(hash, state.tokens[position]);
            if position < first_read {
                continue;
            }
            let slot = if has_pages {
                let page = state.table[position / self.page_size].0 as usize;
                &mut self.slots[page * self.page_size + position % self.page_size]
            } else {
                &mut state.carried
            };
            let found = *slot;
            if position >= start {
                *slot = if is_clean { Slot::Holds(hash) } else { Slot::Poisoned };
                if state.prompt_logprobs && position + 1 < state.num_prompt_tokens {
                    logprobs.push(Model::prompt_logprob(hash, state.tokens[position + 1]));
                }
            } else if found == Slot::Poisoned {
                is_clean = false;
            } else if found != Slot::Holds(hash) {
                return Err(format!("{work:?} finds {found:?} for position {position} of {state:?}"));
            }
        }
        if is_failing {
            result.failed.push(Failure { sequence: work.sequence, message: "scripted".to_owned() });
        } else if !logprobs.is_empty() {
            result.prompt_logprobs.push(PromptLogprobs { work: index as u32, logprobs });
        }
        if work.samples {
            if end != state.tokens.len() {
                return Err(format!("{work:?} samples in the middle of {state:?}"));
            }
            let sampled = match self.forced.remove(&work.sequence) {
                Some(token) => token,
                None if is_clean => self.model.next_token(hash, &state.sampling),
                None => GARBAGE,
            };
            state.tokens.push(sampled);
            let token_id = if is_failing { NO_TOKEN } else { sampled };
            result.sampled.push(Sampled { token_id, logprob: Model::logprob(hash, sampled), top_tokens: Vec::new() });
        }
        Ok(())
    }
}
