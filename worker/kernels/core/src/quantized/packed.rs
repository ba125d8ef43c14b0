//! The packed form of a quantized weight: what a tile reads is one stream.
//!
//! Outputs are cut into blocks as in `linear::columns`. A cell is 64 bytes of a block: eight inputs of sixteen outputs with
//! 4 bits, four with 8 bits. `Simd::nibbles` and `byte_at` say where in it a code lies; inputs that do not exist are 0. A
//! block begins with what its groups have beside codes: for each the scales of the outputs, and where there are any their
//! zeros, a byte each. Then follow its cells. So the blocks of a strip are as many streams.

use crate::Dtype;
use crate::linear::columns::{Columns, STRIP_BLOCKS};
use crate::linear::packed::CELLS;
use crate::memory::Memory;
use crate::simd::{LANES, Simd, Vector, byte_at, from_bf16, nibble_at, to_bf16};
use crate::team::Team;

/// What stands for 0 among 4-bit codes without zeros. Codes are packed as how far they lie above it, a two's complement.
const MIDDLE: u8 = 8;
/// How far above 0 `Simd::nibble_pairs_less` counts codes.
const LIFT: u8 = 16;

/// How many bits a code has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    Eight,
    Four,
}

impl Codes {
    /// Inputs of a cell.
    pub(crate) const fn per_cell(self) -> usize {
        match self {
            Self::Eight => 4,
            Self::Four => 8,
        }
    }
}

/// A quantized weight: `scale * (code - zero)`.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// `outputs` rows of codes. Those of 8 bits are signed. Those of 4 bits are unsigned, two in a byte, the first one
    /// in its lower half; a row begins with a byte.
    pub at: *const u8,
    pub codes: Codes,
    pub outputs: usize,
    pub inputs: usize,
    /// Inputs of a group; the last one may have fewer.
    pub group: usize,
    /// `[outputs, groups]` of `scale_dtype`.
    pub scales: *const u8,
    pub scale_dtype: Dtype,
    /// `[outputs, groups]` of bytes, for 4-bit codes: what stands for 0, 0 to 16; null: it is 8 everywhere.
    pub zeros: *const u8,
}

// SAFETY: plain addresses, which are only read.
unsafe impl Sync for Weight {}

impl Weight {
    pub const fn groups(&self) -> usize {
        self.inputs.div_ceil(self.group)
    }

    /// A code as it is stored.
    ///
    /// # Safety
    /// There is such an output, and such an input.
    unsafe fn code(&self, output: usize, input: usize) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            match self.codes {
                Codes::Eight => *self.at.add(output * self.inputs + input),
                Codes::Four => {
                    let both = *self.at.add(output * self.inputs.div_ceil(2) + input / 2);
                    both >> (4 * (input % 2)) & 15
                }
            }
        }
    }

    /// # Safety
    /// There is such an output, and such a group.
    unsafe fn scale(&self, output: usize, group: usize) -> f32 {
        let at = output * self.groups() + group;
        // SAFETY: the caller's promise.
        unsafe {
            match self.scale_dtype {
                Dtype::F32 => self.scales.cast::<f32>().add(at).read_unaligned(),
                Dtype::Bf16 => from_bf16(self.scales.cast::<u16>().add(at).read_unaligned()),
            }
        }
    }

    /// # Safety
    /// As `scale`; there are zeros.
    unsafe fn zero(&self, output: usize, group: usize) -> u8 {
        // SAFETY: the caller's promise.
        unsafe { *self.zeros.add(output * self.groups() + group) }
    }
}

/// Where a block has what: known once, for tiles ask again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Cells of a block.
    pub(crate) steps: usize,
    /// Steps of a group; the last one may have fewer.
    pub(crate) group_steps: usize,
    pub(crate) groups: usize,
    scale_dtype: Dtype,
    /// Bytes of what a group has beside codes.
    head: usize,
    /// Bytes before the cells.
    heads: usize,
    pub(crate) block_bytes: usize,
}

impl Layout {
    fn new(weight: &Weight) -> Self {
        let steps = weight.inputs.div_ceil(weight.codes.per_cell());
        let group_steps = weight.group.min(weight.inputs).div_ceil(weight.codes.per_cell());
        let groups = steps.div_ceil(group_steps);
        let head = LANES * (weight.scale_dtype.bytes() + usize::from(!weight.zeros.is_null()));
        let heads = (groups * head).next_multiple_of(CELLS);
        let block_bytes = heads + steps * CELLS;
        Self { steps, group_steps, groups, scale_dtype: weight.scale_dtype, head, heads, block_bytes }
    }

    /// The cell at a step.
    #[inline(always)]
    pub(crate) fn cell(&self, block: *const u8, step: usize) -> *const u8 {
        block.wrapping_add(self.heads + step * CELLS)
    }

    /// Scales of a block's outputs.
    ///
    /// # Safety
    /// The block has such a group.
    #[inline(always)]
    pub(crate) unsafe fn scales<S: Simd>(&self, block: *const u8, group: usize) -> S::V {
        let from = block.wrapping_add(group * self.head);
        // SAFETY: a group has a scale for each output.
        unsafe {
            match self.scale_dtype {
                Dtype::F32 => S::V::load(from.cast()),
                Dtype::Bf16 => S::V::load_bf16(from.cast()),
            }
        }
    }

    /// Where a block's outputs have their zeros, a byte each, if they have any.
    #[inline(always)]
    pub(crate) fn zeros(&self, block: *const u8, group: usize) -> *const u8 {
        block.wrapping_add(group * self.head + LANES * self.scale_dtype.bytes())
    }
}

#[derive(Debug)]
pub(crate) struct Packed {
    memory: Memory,
    codes: Codes,
    columns: Columns,
    inputs: usize,
    pub(crate) layout: Layout,
    has_zeros: bool,
    /// Whether it is multiplied as pairs of bfloat16: then 8-bit codes are a sign and a magnitude, as `Simd::byte_pairs`
    /// looks them up, and 4-bit codes with zeros are as stored, their zeros as `Simd::words` takes them. Else all are
    /// two's complements.
    pairs: bool,
}

impl Packed {
    /// `pairs`: whether it will be multiplied as pairs of bfloat16.
    ///
    /// # Safety
    /// The weight's pointers are good for what it says.
    pub(crate) unsafe fn new(team: Team, weight: Weight, gated: bool, pairs: bool) -> Self {
        let (columns, layout) = (Columns { outputs: weight.outputs, gated }, Layout::new(&weight));
        let packed = Self {
            memory: Memory::new(columns.blocks() * layout.block_bytes),
            codes: weight.codes,
            columns,
            inputs: weight.inputs,
            layout,
            has_zeros: !weight.zeros.is_null(),
            pairs,
        };
        // Each strip is first touched by the thread that will compute with it.
        // SAFETY: the caller's promise; every strip is written by one task.
        team.share(columns.strips(), &|strip| unsafe { packed.fill(weight, strip) });
        packed
    }

    pub(crate) fn codes(&self) -> Codes {
        self.codes
    }

    pub(crate) fn columns(&self) -> Columns {
        self.columns
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn has_zeros(&self) -> bool {
        self.has_zeros
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.columns.blocks() * self.layout.block_bytes
    }

    /// Where a block begins.
    #[inline(always)]
    pub(crate) fn block(&self, block: usize) -> *const u8 {
        self.memory.start().cast_const().wrapping_add(block * self.layout.block_bytes)
    }

    /// # Safety
    /// As `new`; no other thread has this strip.
    unsafe fn fill(&self, weight: Weight, strip: usize) {
        let layout = &self.layout;
        for block in strip * STRIP_BLOCKS..strip * STRIP_BLOCKS + self.columns.width(strip) {
            let at = self.block(block);
            let outputs: [_; LANES] = std::array::from_fn(|lane| self.columns.output(block, lane));
            // SAFETY: the block has all its groups and cells; the caller's promise for the weight.
            unsafe {
                at.cast_mut().write_bytes(0, layout.heads);
                for group in 0..layout.groups {
                    for (lane, output) in (0..).zip(outputs).filter_map(|(lane, output)| Some((lane, output?))) {
                        let scales = at.wrapping_add(group * layout.head).cast_mut();
                        self.write_scale(scales, lane, weight.scale(output, group));
                        if self.has_zeros {
                            let zero = weight.zero(output, group);
                            let stored = if self.pairs { LIFT.wrapping_sub(zero) } else { zero.wrapping_sub(MIDDLE) };
                            layout.zeros(at, group).cast_mut().add(lane).write(stored);
                        }
                    }
                }
                for step in 0..layout.steps {
                    let to = layout.cell(at, step).cast_mut();
                    self.fill_cell(weight, &outputs, step * self.codes.per_cell(), to);
                }
            }
        }
    }

    /// # Safety
    /// `at` is writable for the scale at `place`.
    unsafe fn write_scale(&self, at: *mut u8, place: usize, scale: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.layout.scale_dtype {
                Dtype::F32 => at.cast::<f32>().add(place).write_unaligned(scale),
                Dtype::Bf16 => at.cast::<u16>().add(place).write_unaligned(to_bf16(scale)),
            }
        }
    }

    /// A cell of the inputs from `first` on.
    ///
    /// # Safety
    /// `to` is writable for 64 bytes; the caller's promise for the weight.
    unsafe fn fill_cell(&self, weight: Weight, outputs: &[Option<usize>; LANES], first: usize, to: *mut u8) {
        let here = self.codes.per_cell().min(self.inputs - first);
        let mut cell = [0_u8; CELLS];
        for (lane, output) in outputs.iter().enumerate() {
            let Some(output) = output else { continue };
            for part in 0..here {
                // SAFETY: the output and the input exist.
                let code = unsafe { weight.code(*output, first + part) };
                match self.codes {
                    Codes::Eight => cell[byte_at(lane, part)] = if self.pairs { with_sign(code) } else { code },
                    Codes::Four => {
                        let code = if self.pairs && self.has_zeros { code } else { code ^ MIDDLE };
                        let bit = nibble_at(part) as usize;
                        cell[4 * lane + bit / 8] |= code << (bit % 8);
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u8; CELLS]>().write_unaligned(cell) }
    }
}

/// The sign and the magnitude of a two's complement; of -128 the sign alone.
const fn with_sign(code: u8) -> u8 {
    code & 0x80 | code.cast_signed().unsigned_abs() & 0x7f
}
