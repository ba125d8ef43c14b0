//! Which instructions this CPU has, and for which levels a kernel is compiled.

use std::fmt;
use std::str::FromStr;

#[cfg(target_arch = "x86_64")]
use crate::simd::avx2::Avx2;
#[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
use crate::simd::avx512::{Avx512, Avx512Bf16};
use crate::simd::portable::Portable;
use crate::simd::{Kernel, Simd, Whole};

/// An instruction-set level that this CPU has: a value of another one cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
    Avx512,
    #[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
    Avx512Bf16,
}

/// Why a level cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownLevel(String);

impl fmt::Display for UnknownLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Level::available().iter().map(|level| level.name()).collect();
        write!(f, "this CPU has no instruction-set level {:?}; it has {}", self.0, names.join(", "))
    }
}

impl std::error::Error for UnknownLevel {}

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        Self::available().into_iter().find(|level| level.name() == name).ok_or_else(|| UnknownLevel(name.to_owned()))
    }
}

impl Level {
    /// What this CPU has, the best last.
    pub fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
        let mut levels = vec![Self(Set::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Self(Set::Avx2));
            }
        }
        #[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
        {
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq");
            if levels.len() == 2 && wide {
                levels.push(Self(Set::Avx512));
                // Bytes are looked up, too: only one family of CPUs multiplies bfloat16 and cannot.
                if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vbmi") {
                    levels.push(Self(Set::Avx512Bf16));
                }
            }
        }
        levels
    }

    /// The best that this CPU has.
    pub fn best() -> Self {
        Self::available().pop().expect("every CPU has the portable level")
    }

    pub const fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
            Set::Avx512 => "avx512",
            #[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
            Set::Avx512Bf16 => "avx512_bf16",
        }
    }

    /// Whether the CPU multiplies bfloat16 itself.
    pub const fn multiplies_bf16(self) -> bool {
        match self.0 {
            #[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
            Set::Avx512Bf16 => true,
            _ => false,
        }
    }

    /// The level below where this one only adds the multiplication of bfloat16: for kernels of float32.
    #[must_use]
    pub const fn for_float32(self) -> Self {
        match self.0 {
            #[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
            Set::Avx512Bf16 => Self(Set::Avx512),
            set => Self(set),
        }
    }

    /// Runs a kernel with this level's instructions.
    ///
    /// # Safety
    /// What the kernel itself asks for (its pointers).
    #[inline]
    pub unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        let kernel = Whole(kernel);
        // SAFETY: a level exists only where its instructions do.
        unsafe {
            match self.0 {
                Set::Portable => Portable::run(kernel),
                #[cfg(target_arch = "x86_64")]
                Set::Avx2 => Avx2::run(kernel),
                #[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
                Set::Avx512 => Avx512::run(kernel),
                #[cfg(all(target_arch = "x86_64", not(feature = "without-avx512")))]
                Set::Avx512Bf16 => Avx512Bf16::run(kernel),
            }
        }
    }
}
