//! The way of a step's rows: to their experts, up, down, and back to their tokens.

use std::ops::Range;

use super::layer::{Layer, Own};
use super::order::Order;
use super::tasks::{Task, tasks};
use super::{Expert, Experts, Scratch, Tokens};
use crate::Dtype;
use crate::linear::SERIAL_PRODUCTS;
use crate::norm::{load, store};
use crate::simd::{Kernel, LANES, Simd, Vector, from_bf16, to_bf16};
use crate::team::Team;

/// Up to so many values the caller's thread moves all of them: waking the others would cost more.
const SERIAL_VALUES: usize = 48 * 1024;

pub(crate) struct Step<'a> {
    pub(crate) experts: &'a Experts,
    pub(crate) tokens: Tokens,
    pub(crate) scratch: Scratch,
    pub(crate) order: Order,
}

// SAFETY: plain addresses; threads write disjoint parts of what they point to.
unsafe impl Sync for Step<'_> {}

impl Step<'_> {
    /// # Safety
    /// The pointers are good for the tokens and the rows of the order.
    pub(crate) unsafe fn run(&self) {
        let Scratch { sorted, hidden, results } = self.scratch;
        let (level, team, serial) = (self.experts.level, self.experts.team, SERIAL_VALUES / self.width());
        // SAFETY: the caller's promise; two threads have different rows.
        unsafe {
            team.split(self.order.len(), 1, serial, &|first, end| level.run(Sort { step: self, places: first..end }));
            self.multiply(|expert| &expert.up, (sorted, hidden));
            self.multiply(|expert| &expert.down, (hidden, results.cast()));
            let serial = serial / self.tokens.choices;
            team.split(self.tokens.count, 1, serial, &|first, end| level.run(Join { step: self, tokens: first..end }));
        }
    }

    /// Values of a token.
    fn width(&self) -> usize {
        self.experts.all[0].up.form().inputs
    }

    /// One product of every expert that has rows.
    ///
    /// # Safety
    /// As `run`; the scratch is (what the product takes, what it gives).
    unsafe fn multiply(&self, layer: impl Fn(&Expert) -> &Layer + Sync, scratch: (*mut u8, *mut u8)) {
        let first = layer(&self.experts.all[0]);
        let products = self.order.len() * first.form().inputs * first.form().columns;
        let team = if products <= SERIAL_PRODUCTS { Team::new(None, 1) } else { self.experts.team };
        let tasks = tasks(&self.order, first.strips(), team.threads());
        let scratch = Addresses(scratch);
        team.share_with(tasks.len(), &Own::default, &|own, task| {
            let Task { expert, places, strips } = &tasks[task];
            let layer = layer(&self.experts.all[*expert]);
            // SAFETY: the caller's promise. A place is one expert's, so that the same places are the same rows.
            unsafe { layer.part(own, scratch.both(), places.clone(), strips.clone()) };
        });
    }
}

#[derive(Clone, Copy)]
struct Addresses((*mut u8, *mut u8));

// SAFETY: plain addresses; threads write disjoint parts of what they point to.
unsafe impl Sync for Addresses {}

impl Addresses {
    fn both(&self) -> (*const u8, *mut u8) {
        (self.0.0.cast_const(), self.0.1)
    }
}

/// Copies rows of the tokens to their places.
struct Sort<'a> {
    step: &'a Step<'a>,
    places: Range<usize>,
}

impl Kernel for Sort<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Step { experts, tokens, scratch, order } = self.step;
        let (width, dtype) = (self.step.width(), experts.all[0].up.form().input);
        let bytes = width * dtype.bytes();
        for place in self.places {
            let row = order.row(place);
            let from = tokens.x.wrapping_add(row / tokens.choices * bytes);
            let to = scratch.sorted.wrapping_add(place * bytes);
            // SAFETY: the row is one of the tokens', the place one of the scratch's.
            unsafe {
                if experts.weigh_input {
                    scale::<S>(from, to, dtype, width, tokens.weights.add(row).read());
                } else {
                    from.copy_to_nonoverlapping(to, bytes);
                }
            }
        }
    }
}

/// # Safety
/// `from` is readable, `to` writable for `width` values.
#[inline(always)]
unsafe fn scale<S: Simd>(from: *const u8, to: *mut u8, dtype: Dtype, width: usize, by: f32) {
    let whole = width - width % LANES;
    // SAFETY: the caller's promise.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            store::<S>(load::<S>(from, dtype, i).mul(S::V::splat(by)), to, dtype, i);
        }
        for i in whole..width {
            match dtype {
                Dtype::F32 => {
                    let value = from.cast::<f32>().add(i).read_unaligned();
                    to.cast::<f32>().add(i).write_unaligned(value * by);
                }
                Dtype::Bf16 => {
                    let value = from_bf16(from.cast::<u16>().add(i).read_unaligned());
                    to.cast::<u16>().add(i).write_unaligned(to_bf16(value * by));
                }
            }
        }
    }
}

/// Adds up what the experts of some tokens gave.
struct Join<'a> {
    step: &'a Step<'a>,
    tokens: Range<usize>,
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Step { experts, tokens, scratch, order } = self.step;
        let (width, choices) = (self.step.width(), tokens.choices);
        let whole = width - width % LANES;
        for token in self.tokens {
            let out = tokens.out.wrapping_add(token * width);
            for choice in 0..choices {
                let row = token * choices + choice;
                let from = scratch.results.wrapping_add(order.place(row) * width).cast_const();
                // SAFETY: the token is one of those that `out` and the weights have, the place one of the scratch's.
                unsafe {
                    let weight = if experts.weigh_input { 1.0 } else { tokens.weights.add(row).read() };
                    let by = S::V::splat(weight);
                    for i in (0..whole).step_by(LANES) {
                        let y = S::V::load(from.add(i));
                        let sum = if choice == 0 { y.mul(by) } else { y.mul_add(by, S::V::load(out.add(i))) };
                        sum.store(out.add(i));
                    }
                    for i in whole..width {
                        let before = if choice == 0 { 0.0 } else { out.add(i).read() };
                        out.add(i).write(before + from.add(i).read() * weight);
                    }
                }
            }
        }
    }
}
