//! Kernels for CPUs: each is written once over [`simd::Simd`] and compiled for every instruction-set level, of which
//! one is chosen when the program starts ([`level::Level`]). A kernel is split over the threads of a [`team::Team`].
//!
//! Tensors come as raw pointers: they belong to torch. What a pointer must be good for is said at each function.

pub mod attention;
pub mod exchange;
pub mod experts;
mod helpers;
pub mod level;
pub mod linear;
#[doc(hidden)] // for its test
pub mod memory;
pub mod norm;
pub mod quantized;
pub mod rows;
pub mod sampling;
pub mod simd;
pub mod team;

/// Which numbers a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    F32,
    Bf16,
}

impl Dtype {
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}
