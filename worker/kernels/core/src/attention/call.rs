//! One layer's attention in one step: who writes, who attends, who joins, on which thread.

use std::cell::RefCell;

use super::Config;
use super::head::{Head, Turn};
use super::layout::{PAGE, Pool};
use super::number::{Bfloat16, Float32, Number};
use super::step::{BLOCK_PAGES, Entry, Join, PIECE_PAGES, Plan, Task, Write};
use super::sums::Sums;
use super::tile::{Next, Rows, SCORES_LEN};
use crate::Dtype;
use crate::level::Level;
use crate::simd::{Kernel, LANES, Simd, Vector};
use crate::team::Team;

/// What one call reads and writes. T tokens of the step, N query heads, K KV heads, H dimensions of a head.
#[derive(Clone, Copy, Debug)]
pub struct Tensors {
    /// The layer's pages, each 2 * K * H * 16 numbers of `kv_dtype`.
    pub kv: *mut u8,
    /// `[T, (N + 2 K) * H]` of `qkv_dtype`: unrotated q, k, v.
    pub qkv: *const u8,
    /// float32 `[T, 2 R]`: of the R / 2 pairs that are rotated the cosines, the cosines again, the negative sines, the
    /// sines. Not read where R is 0.
    pub turns: *const f32,
    /// R, even: how many of each head's dimensions are rotated, the leading ones.
    pub rotated: usize,
    /// `[T, N * H]` of `kv_dtype`.
    pub out: *mut u8,
}

pub(crate) struct Call<'a> {
    pub(crate) config: &'a Config,
    pub(crate) plan: &'a Plan,
    pub(crate) tensors: Tensors,
}

// SAFETY: plain addresses; tasks write to different places, and those that read what others write come later.
unsafe impl Sync for Call<'_> {}

thread_local! {
    /// Queries, scores and sums of the task that this thread computes.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    /// Results of tasks that wait to be joined.
    static SLOTS: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _values: [f32; LANES],
}

/// Room for `len` values, at the start of a cache line; it stays with the thread.
fn room(memory: &RefCell<Vec<Line>>, len: usize) -> *mut f32 {
    let mut lines = memory.borrow_mut();
    let needed = len.div_ceil(LANES);
    if lines.len() < needed {
        lines.resize(needed, Line { _values: [0.0; LANES] });
    }
    lines.as_mut_ptr().cast()
}

impl Call<'_> {
    /// # Safety
    /// As in `Attention::attend`.
    pub(crate) unsafe fn run(&self, level: Level, team: Team) {
        let plan = self.plan;
        if !plan.writes.is_empty() {
            // SAFETY: the caller's promise; every token is written once.
            team.share(plan.writes.len(), &|index| unsafe { level.run(Part(self, Job::Write(&plan.writes[index]))) });
        }
        let slots = SLOTS.with(|memory| Slots(room(memory, plan.slots_len)));
        // SAFETY: the caller's promise; what a task reads of its step was written above or by itself.
        team.share(plan.tasks.len(), &|index| unsafe {
            level.run(Part(self, Job::Attend(index, slots.get())));
        });
        if !plan.joins.is_empty() {
            // SAFETY: the caller's promise; all slots were filled above.
            team.share(plan.joins.len(), &|index| unsafe {
                level.run(Part(self, Job::Join(&plan.joins[index], slots.get())));
            });
        }
    }
}

/// Where results wait: a thread touches its own task's place only.
#[derive(Clone, Copy)]
struct Slots(*mut f32);

// SAFETY: a plain address.
unsafe impl Sync for Slots {}

impl Slots {
    fn get(self) -> *mut f32 {
        self.0
    }
}

enum Job<'a> {
    Write(&'a Write),
    Attend(usize, *mut f32),
    Join(&'a Join, *mut f32),
}

struct Part<'a>(&'a Call<'a>, Job<'a>);

impl Kernel for Part<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.0.config.kv_dtype {
                Dtype::F32 => self.run_in::<S, Float32>(),
                Dtype::Bf16 => self.run_in::<S, Bfloat16>(),
            }
        }
    }
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn run_in<S: Simd, T: Number>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.1 {
                Job::Write(write) => self.0.write::<S, T>(write),
                Job::Attend(index, slots) => self.0.attend::<S, T>(index, slots),
                Job::Join(join, slots) => self.0.join::<S, T>(join, slots),
            }
        }
    }
}

impl Call<'_> {
    const fn pool<T: Number>(&self) -> Pool {
        Pool::new::<T>(self.tensors.kv, self.config.kv_heads, self.config.head_dim)
    }

    /// Reads head number `head` of q and k together of one token of the step, normalizes and rotates it.
    #[inline(always)]
    unsafe fn prepare<S: Simd>(&self, token: usize, head: usize, to: &mut Head) {
        let (config, size, rotated) = (self.config, self.config.head_dim, self.tensors.rotated);
        // SAFETY: the caller's promise; q, k and v of a token lie side by side.
        unsafe {
            self.read::<S>(token, head, to);
            if let Some(norm) = &config.norm {
                to.normalize::<S>(norm.eps, norm.weight.as_ptr().add(head * size), size);
            }
            if rotated > 0 {
                let cos = self.tensors.turns.add(token * 2 * rotated);
                let turn = Turn { cos, sin: cos.add(rotated + rotated / 2), pairs: rotated / 2 };
                to.rotate::<S>(turn, config.pairs);
            }
        }
    }

    /// Reads head number `head` of q, k and v together.
    #[inline(always)]
    unsafe fn read<S: Simd>(&self, token: usize, head: usize, to: &mut Head) {
        let (config, size) = (self.config, self.config.head_dim);
        let index = (token * (config.heads + 2 * config.kv_heads) + head) * size;
        // SAFETY: the caller's promise.
        unsafe { to.read::<S>(self.tensors.qkv, config.qkv_dtype, index, size) }
    }

    /// Writes k and v of one of an entry's tokens and one KV head.
    #[inline(always)]
    unsafe fn write_head<S: Simd, T: Number>(&self, entry: &Entry, token: usize, head: usize, buffer: &mut Head) {
        let (config, position) = (self.config, entry.start + token);
        let at = (self.plan.step.pages(entry)[position / PAGE], position % PAGE);
        let fills = entry.start + entry.count >= position - at.1 + PAGE;
        let (number, pool, size) = (entry.token + token, self.pool::<T>(), config.head_dim);
        // SAFETY: the caller's promise.
        unsafe {
            if at.1 == 0 && !fills {
                pool.clear_values(at.0, head);
            }
            self.prepare::<S>(number, config.heads + head, buffer);
            pool.write_key::<T>(at, head, buffer.round::<S, T>(size));
            self.read::<S>(number, config.heads + config.kv_heads + head, buffer);
            pool.write_value::<T>(at, head, buffer.round::<S, T>(size));
        }
    }

    #[inline(always)]
    unsafe fn write<S: Simd, T: Number>(&self, write: &Write) {
        let (entry, mut buffer) = (&self.plan.step.entries[write.entry], Head::new());
        let (heads, kv_heads) = (self.config.heads, self.config.kv_heads);
        for token in write.tokens.clone() {
            self.expect::<S>(entry.token + token + 1, heads, 2 * kv_heads);
            for head in 0..kv_heads {
                // SAFETY: the caller's promise.
                unsafe { self.write_head::<S, T>(entry, token, head, &mut buffer) }
            }
        }
    }

    /// Asks for some heads of a token that is read soon.
    #[inline(always)]
    fn expect<S: Simd>(&self, token: usize, first: usize, heads: usize) {
        let (config, bytes) = (self.config, self.config.head_dim * self.config.qkv_dtype.bytes());
        let row = token * (config.heads + 2 * config.kv_heads);
        for byte in ((row + first) * bytes..(row + first + heads) * bytes).step_by(64) {
            S::prefetch(self.tensors.qkv.wrapping_add(byte));
        }
    }

    /// What task number `index` reads first.
    fn next(&self, index: usize) -> Next<'_> {
        let plan = self.plan;
        let Some(task) = plan.tasks.get(index) else { return Next { pages: &[], head: 0 } };
        let entry = &plan.step.entries[task.entry];
        let first = plan.shape.first_seen(entry.start + task.queries.start) / PAGE;
        let block = first.max(task.pieces.start * PIECE_PAGES) / BLOCK_PAGES;
        Next { pages: &plan.step.pages(entry)[block * BLOCK_PAGES..], head: task.head }
    }

    #[inline(always)]
    unsafe fn attend<S: Simd, T: Number>(&self, index: usize, slots: *mut f32) {
        let task = &self.plan.tasks[index];
        let (entry, shape) = (&self.plan.step.entries[task.entry], self.plan.shape);
        let (group, size) = (shape.group(), shape.head_dim);
        let len = task.queries.len() * group;
        let (queries_len, sums_len) = (len * size / T::PER_WORD, Sums::len(len, size));
        let memory = SCRATCH.with(|memory| room(memory, queries_len + SCORES_LEN + 2 * sums_len));
        let end = (entry.start + task.queries.end).div_ceil(PAGE).min(task.pieces.end * PIECE_PAGES);
        // SAFETY: the caller's promise; the scratch has room for all parts, each a multiple of the lanes.
        unsafe {
            let (queries, mut buffer) = (memory.cast::<u32>(), Head::new());
            for (index, token) in task.queries.clone().enumerate() {
                self.expect::<S>(entry.token + token + 1, task.head * group, group);
                for member in 0..group {
                    self.prepare::<S>(entry.token + token, task.head * group + member, &mut buffer);
                    buffer.store::<S, T>(queries.add((index * group + member) * size / T::PER_WORD), size);
                }
            }
            let rows = Rows {
                shape,
                rule: &self.config.rule,
                pool: self.pool::<T>(),
                pages: self.plan.step.pages(entry),
                end,
                head: task.head,
                next: self.next(index + 1),
                position: entry.start + task.queries.start,
                len,
                queries,
                page_words: std::hint::black_box(PAGE / T::PER_WORD),
                scores: memory.add(queries_len),
            };
            if entry.count == 1 && end * PAGE > entry.start {
                self.write_head::<S, T>(entry, 0, task.head, &mut buffer);
            }
            let piece_at = task.slot.map_or(memory.add(queries_len + SCORES_LEN), |slot| slots.add(slot));
            let piece = Sums::at(piece_at, len, size);
            let total = Sums::at(memory.add(queries_len + SCORES_LEN + sums_len), len, size);
            for number in task.pieces.clone() {
                let sums = if number == task.pieces.start { total } else { piece };
                let sums = if task.slot.is_some() { piece } else { sums };
                sums.clear::<S>(len);
                let first = number * PIECE_PAGES;
                for block in first / BLOCK_PAGES..(first + PIECE_PAGES).min(end).div_ceil(BLOCK_PAGES) {
                    rows.add_block::<S, T>(block, sums);
                }
                if task.slot.is_none() && number > task.pieces.start {
                    total.join::<S>(piece, len);
                }
            }
            if task.slot.is_none() {
                self.finish::<S, T>(task, total);
            }
        }
    }

    #[inline(always)]
    unsafe fn join<S: Simd, T: Number>(&self, join: &Join, slots: *mut f32) {
        let tasks = &self.plan.tasks[join.tasks.clone()];
        let (len, size) = (tasks[0].queries.len() * self.plan.shape.group(), self.plan.shape.head_dim);
        // SAFETY: the tasks of a join have slots, filled by now.
        unsafe {
            let sums = |task: &Task| Sums::at(slots.add(task.slot.unwrap_or_default()), len, size);
            let total = sums(&tasks[0]);
            for task in &tasks[1..] {
                total.join::<S>(sums(task), len);
            }
            self.finish::<S, T>(&tasks[0], total);
        }
    }

    /// Divides by the weights' sums and writes the result.
    #[inline(always)]
    unsafe fn finish<S: Simd, T: Number>(&self, task: &Task, sums: Sums) {
        let (config, group) = (self.config, self.plan.shape.group());
        let first = self.plan.step.entries[task.entry].token + task.queries.start;
        let size = config.head_dim;
        for row in 0..task.queries.len() * group {
            let head = task.head * group + row % group;
            let at = ((first + row / group) * config.heads + head) * size;
            // SAFETY: the caller's promise; the rows exist.
            unsafe {
                let factor = S::V::splat(1.0 / sums.divisor::<S>(row, config.rule.sink(head)));
                let out = self.tensors.out.cast::<u32>().add(at / T::PER_WORD);
                for i in (0..size).step_by(LANES) {
                    T::store::<S>(S::V::load(sums.values.add(row * size + i)).mul(factor), out, i);
                }
            }
        }
    }
}
