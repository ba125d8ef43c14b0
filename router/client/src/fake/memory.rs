//! What a worker holds: rows, and the content of every KV page, or of every row where there are no pages. It believes
//! nothing: whatever a plan reads must be there.

use millrace_scheduler::{
    Admission, Failure, Growth, NO_TOKEN, PageCopy, PageId, PromptLogprob, PromptLogprobs, Row, Sampled, SequenceId,
    StepPlan, StepResult, Work,
};

use super::model::{Prefix, ToyModel};

/// A plan that no worker could carry out: the scheduler or the wire is wrong. Says what and where.
pub(super) type Violation = String;

/// What was prepared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub max_rows: u32,
    pub max_step_tokens: u32,
    pub max_sequence_tokens: u32,
    pub max_top_n_tokens: u32,
    pub prompt_logprobs: bool,
    pub num_pages: u32,
    pub page_size: u32,
}

/// The state of one step stream.
///
/// A slot holds the [`Prefix`] up to and including its token, which is what real K/V depend on: the right token after
/// the wrong ones is as wrong as the wrong token.
#[derive(Debug)]
pub(super) struct Memory {
    limits: Limits,
    rows: Vec<Option<Held>>,
    /// `slots[page * page_size + offset]`; empty when nothing is verified.
    slots: Vec<Prefix>,
    verify: bool,
}

#[derive(Debug)]
struct Held {
    admission: Admission,
    /// `prefixes[i]` is the prefix of `token_ids[..=i]`.
    prefixes: Vec<Prefix>,
    /// Why the sequence failed; it stays failed until its row is released.
    failed: Option<String>,
    /// Without pages: the prefix that the row's state is of.
    carried: Prefix,
}

impl Memory {
    pub(super) fn new(limits: Limits, verify: bool) -> Self {
        let num_slots = if verify { limits.num_pages as usize * limits.page_size as usize } else { 0 };
        let rows = std::iter::repeat_with(|| None).take(limits.max_rows as usize).collect();
        Self { limits, rows, slots: vec![Prefix::POISON; num_slots], verify }
    }

    /// Whose row it is.
    pub(super) fn sequence_of(&self, row: Row) -> Option<SequenceId> {
        let held = self.rows.get(row.0 as usize)?.as_ref();
        held.map(|held| held.admission.sequence)
    }

    /// Makes a sequence fail from now on.
    pub(super) fn fail(&mut self, row: Row, message: &str) {
        if let Some(Some(held)) = self.rows.get_mut(row.0 as usize) {
            held.failed.get_or_insert_with(|| message.to_owned());
        }
    }

    /// All of a plan but its work: rows and page tables are then what the work needs. Errs where the plan contradicts
    /// what is held.
    pub(super) fn update(&mut self, plan: &StepPlan) -> Result<(), Violation> {
        for row in &plan.released {
            let held = self.rows.get_mut(row.0 as usize).and_then(Option::take);
            held.ok_or_else(|| format!("row {} is released, but nobody holds it", row.0))?;
        }
        plan.admitted.iter().try_for_each(|admission| self.admit(admission))?;
        plan.grown.iter().try_for_each(|growth| self.grow(*growth))?;
        self.copy(&plan.copies)
    }

    fn admit(&mut self, admission: &Admission) -> Result<(), Violation> {
        let who = admission.sequence.0;
        admission.pages.iter().try_for_each(|page| self.check_page(*page))?;
        if admission.sampling.top_n_tokens > self.limits.max_top_n_tokens {
            return Err(format!("sequence {who} asks for more top tokens than were prepared for"));
        }
        if admission.prompt_logprobs && !self.limits.prompt_logprobs {
            return Err(format!("sequence {who} asks for prompt logprobs, which were not prepared for"));
        }
        match self.rows.get_mut(admission.row.0 as usize) {
            None => Err(format!("sequence {who} is admitted to row {}, which does not exist", admission.row.0)),
            Some(Some(_)) => Err(format!("sequence {who} is admitted to row {}, which is taken", admission.row.0)),
            Some(row) => {
                *row = Some(Held::new(admission.clone()));
                Ok(())
            }
        }
    }

    fn grow(&mut self, growth: Growth) -> Result<(), Violation> {
        self.check_page(growth.page)?;
        let pages = &mut self.held(growth.row)?.admission.pages;
        if growth.index as usize != pages.len() {
            return Err(format!(
                "row {} has {} pages, but page {} is appended",
                growth.row.0,
                pages.len(),
                growth.index
            ));
        }
        pages.push(growth.page);
        Ok(())
    }

    /// Reads every source before it writes a target, as one gather and one scatter do.
    fn copy(&mut self, copies: &[PageCopy]) -> Result<(), Violation> {
        for copy in copies {
            self.check_page(copy.source)?;
            self.check_page(copy.target)?;
        }
        if self.verify {
            let contents: Vec<_> = copies.iter().map(|copy| self.slots[self.page(copy.source)].to_vec()).collect();
            for (copy, content) in copies.iter().zip(contents) {
                let target = self.page(copy.target);
                self.slots[target].copy_from_slice(&content);
            }
        }
        Ok(())
    }

    /// Reads what is there, writes what is new, samples. A sequence whose pages do not hold its tokens fails, and a
    /// violation says where.
    pub(super) fn compute(
        &mut self,
        plan: &StepPlan,
        model: &ToyModel,
    ) -> Result<(StepResult, Vec<Violation>), Violation> {
        self.check_work(&plan.work)?;
        let violations = if self.verify { self.read_and_write(&plan.work) } else { Vec::new() };
        let mut result = StepResult { step: plan.step, ..StepResult::default() };
        for (index, work) in plan.work.iter().enumerate() {
            let held = self.held(work.row)?;
            result.prompt_logprobs.extend(held.prompt_logprobs(index, *work, model));
            if let Some(message) = held.failed.clone() {
                result.failed.push(Failure { sequence: work.sequence, message });
            }
            if work.samples {
                result.sampled.push(held.sample(*work, model));
            }
        }
        Ok((result, violations))
    }

    fn check_work(&mut self, entries: &[Work]) -> Result<(), Violation> {
        let num_tokens: u64 = entries.iter().map(|work| u64::from(work.count)).sum();
        if num_tokens > self.limits.max_step_tokens.into() {
            return Err(format!("{num_tokens} tokens in one step, prepared for {}", self.limits.max_step_tokens));
        }
        let (page_size, longest) = (self.limits.page_size as usize, self.limits.max_sequence_tokens as usize);
        for work in entries {
            let (row, end) = (work.row.0, work.start as usize + work.count as usize);
            let held = self.held(work.row)?;
            let known = held.admission.token_ids.len();
            // A failed sequence has no further tokens, but one more plan may be under way.
            if held.failed.is_none() && (end > known || (work.samples && end < known) || end > longest) {
                return Err(format!("row {row} has {known} tokens of at most {longest}, but {work:?} is due"));
            }
            if page_size > 0 && end > held.admission.pages.len() * page_size {
                return Err(format!("row {row} has {} pages, but {work:?} is due", held.admission.pages.len()));
            }
        }
        Ok(())
    }

    /// First every sequence reads what earlier steps wrote, then all write, then each finds what it wrote.
    fn read_and_write(&mut self, entries: &[Work]) -> Vec<Violation> {
        let mut violations = Vec::new();
        for work in entries {
            self.expect(*work, 0..work.start, "was not computed", &mut violations);
        }
        for work in entries {
            self.write(*work);
        }
        for work in entries {
            let written = work.start..work.start + work.count;
            self.expect(*work, written, "was overwritten in the same step", &mut violations);
        }
        violations
    }

    fn write(&mut self, work: Work) {
        let page_size = self.limits.page_size as usize;
        let Some(Some(held)) = self.rows.get_mut(work.row.0 as usize) else {
            return;
        };
        let end = (work.start + work.count) as usize;
        if page_size == 0 {
            held.carried = held.prefixes.get(end - 1).copied().unwrap_or(Prefix::POISON);
            return;
        }
        for (position, prefix) in held.prefixes.iter().enumerate().take(end).skip(work.start as usize) {
            self.slots[held.slot(position, page_size)] = *prefix;
        }
    }

    fn expect(&mut self, work: Work, positions: std::ops::Range<u32>, problem: &str, violations: &mut Vec<Violation>) {
        let page_size = self.limits.page_size as usize;
        let Some(Some(held)) = self.rows.get_mut(work.row.0 as usize) else {
            return;
        };
        if held.failed.is_some() {
            return;
        }
        if page_size == 0 {
            // The state is that of all tokens up to the last.
            let last = positions.max().map(|position| position as usize);
            if let Some(last) = last.filter(|last| held.carried != held.prefixes[*last]) {
                let violation = format!("sequence {}: position {last} {problem} in its row", work.sequence.0);
                held.failed = Some(violation.clone());
                violations.push(violation);
            }
            return;
        }
        let mut positions = positions.map(|position| position as usize);
        let wrong = positions.find(|position| self.slots[held.slot(*position, page_size)] != held.prefixes[*position]);
        if let Some(position) = wrong {
            let page = held.admission.pages[position / page_size].0;
            let violation = format!("sequence {}: position {position} in page {page} {problem}", work.sequence.0);
            held.failed = Some(violation.clone());
            violations.push(violation);
        }
    }

    fn held(&mut self, row: Row) -> Result<&mut Held, Violation> {
        let held = self.rows.get_mut(row.0 as usize).and_then(Option::as_mut);
        held.ok_or_else(|| format!("nobody holds row {}", row.0))
    }

    fn check_page(&self, page: PageId) -> Result<(), Violation> {
        let exists = page.0 < self.limits.num_pages;
        exists.then_some(()).ok_or_else(|| format!("page {} of {} does not exist", page.0, self.limits.num_pages))
    }

    fn page(&self, page: PageId) -> std::ops::Range<usize> {
        let start = page.0 as usize * self.limits.page_size as usize;
        start..start + self.limits.page_size as usize
    }
}

impl Held {
    fn new(admission: Admission) -> Self {
        let grow = |prefix: &mut Prefix, token: &u32| {
            *prefix = prefix.then(*token);
            Some(*prefix)
        };
        let prefixes = admission.token_ids.iter().scan(Prefix::EMPTY, grow).collect();
        Self { admission, prefixes, failed: None, carried: Prefix::POISON }
    }

    /// Where the K/V of a position is.
    fn slot(&self, position: usize, page_size: usize) -> usize {
        self.admission.pages[position / page_size].0 as usize * page_size + position % page_size
    }

    fn sample(&mut self, work: Work, model: &ToyModel) -> Sampled {
        if self.failed.is_some() {
            return Sampled { token_id: NO_TOKEN, ..Sampled::default() };
        }
        let position = work.start + work.count;
        let prefix = self.prefixes[position as usize - 1];
        let Admission { num_prompt_tokens, sampling, token_ids, .. } = &mut self.admission;
        let sampled = model.sample(prefix, position, *num_prompt_tokens, sampling);
        token_ids.push(sampled.token_id);
        self.prefixes.push(prefix.then(sampled.token_id));
        sampled
    }

    /// The logprobs of prompt tokens at positions start + 1 ..= start + count.
    fn prompt_logprobs(&self, index: usize, work: Work, model: &ToyModel) -> Option<PromptLogprobs> {
        let num_prompt_tokens = self.admission.num_prompt_tokens;
        if !self.admission.prompt_logprobs || work.start + 1 >= num_prompt_tokens || self.failed.is_some() {
            return None;
        }
        let positions = work.start + 1..(work.start + work.count + 1).min(num_prompt_tokens);
        let logprob = |position: u32| {
            let position = position as usize;
            let (prefix, token_id) = (self.prefixes[position - 1], self.admission.token_ids[position]);
            let num_top = self.admission.sampling.prompt_top_tokens as usize;
            let top_tokens = model.prompt_top(prefix, token_id, num_top);
            PromptLogprob { logprob: ToyModel::prompt_logprob(prefix, token_id), top_tokens }
        };
        Some(PromptLogprobs { work: index as u32, logprobs: positions.map(logprob).collect() })
    }
}
