//! Attention of every level against float64, on memory that ends where the tensors end.

mod support;

use std::sync::Arc;

use millrace_kernels_core::Dtype;
use millrace_kernels_core::attention::{
    Attention, BadStep, Config, HeadNorm, PAGE, PageTable, Pairs, Rule, Step, Tensors, Unsupported,
};
use millrace_kernels_core::level::Level;
use millrace_kernels_core::simd::{from_bf16, to_bf16};
use support::{Random, near, team};

/// Numbers of either dtype, in as much memory as they need.
enum Numbers {
    Wide(Vec<f32>),
    Narrow(Vec<u16>),
}

impl Numbers {
    fn poison(len: usize, dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::Wide(vec![f32::NAN; len]),
            Dtype::Bf16 => Self::Narrow(vec![u16::MAX; len]),
        }
    }

    fn address(&mut self) -> *mut u8 {
        match self {
            Self::Wide(values) => values.as_mut_ptr().cast(),
            Self::Narrow(values) => values.as_mut_ptr().cast(),
        }
    }

    fn get(&self, index: usize) -> f32 {
        match self {
            Self::Wide(values) => values[index],
            Self::Narrow(values) => from_bf16(values[index]),
        }
    }
}

/// A layer and one sequence of q, k and v, over pages in random order.
struct Case {
    config: Config,
    rotated: usize,
    qkv: Vec<f32>,
    angles: Vec<f32>,
    table: Vec<i32>,
    /// By position and head of q, k and v together: what is multiplied.
    prepared: Vec<Vec<Vec<f64>>>,
}

impl Case {
    fn new(random: &mut Random, length: usize, kv_heads: usize, kv_dtype: Dtype) -> Self {
        let (heads, head_dim) = (kv_heads * (1 + random.below(6)), 16 * (1 + random.below(3)));
        let mut maybe = |one_in: usize| random.below(one_in) == 0;
        let (window, softcap, alibi, sinks, norm) = (maybe(3), maybe(3), maybe(3), maybe(3), maybe(2));
        let pairs = if maybe(2) { Pairs::Halves } else { Pairs::Neighbours };
        let rule = Rule {
            scale: 0.3,
            window: window.then(|| 1 + random.below(length)),
            softcap: softcap.then_some(2.0),
            slopes: if alibi { random.values(heads, 0.2) } else { vec![] },
            sinks: if sinks { random.values(heads, 1.0) } else { vec![] },
        };
        let norm = norm.then(|| HeadNorm { eps: 1e-5, weight: random.values((heads + kv_heads) * head_dim, 2.0) });
        let rotated = 2 * random.below(head_dim / 2 + 1);
        let mut table: Vec<i32> =
            (0..=length.div_ceil(PAGE)).map(|page| i32::try_from(page).expect("few pages")).collect();
        for i in (1..table.len()).rev() {
            table.swap(i, random.below(i + 1));
        }
        let mut case = Self {
            config: Config { heads, kv_heads, head_dim, rule, pairs, norm, qkv_dtype: Dtype::F32, kv_dtype },
            rotated,
            qkv: random.values(length * (heads + 2 * kv_heads) * head_dim, 2.0),
            angles: random.values(length * rotated / 2, 6.0),
            table,
            prepared: vec![],
        };
        let prepare = |position| (0..heads + 2 * kv_heads).map(|head| case.prepare(position, head)).collect();
        case.prepared = (0..length).map(prepare).collect();
        case
    }

    fn pool(&self) -> Numbers {
        let page = 2 * self.config.kv_heads * self.config.head_dim * PAGE;
        Numbers::poison(self.table.len() * page, self.config.kv_dtype)
    }

    /// `[count, heads * head_dim]` of the positions `start .. start + count`.
    fn run(&self, (level, threads): (Level, usize), pool: &mut Numbers, (start, count): (usize, usize)) -> Numbers {
        let attention = Attention::new(level, team(threads), self.config.clone()).expect("a layer with a kernel");
        let table = PageTable { entries: &self.table, width: self.table.len(), num_pages: self.table.len() };
        let column = |value| [i64::try_from(value).expect("few tokens")];
        let step = Step::new(&[0], &column(start), &column(count), table).expect("positions with pages");
        let columns = (self.config.heads + 2 * self.config.kv_heads) * self.config.head_dim;
        let qkv = self.qkv[start * columns..(start + count) * columns].to_vec();
        let half = self.rotated / 2;
        let turns: Vec<f32> = (start..start + count)
            .flat_map(|position| {
                let angles = &self.angles[position * half..(position + 1) * half];
                let (cos, sin) = (angles.iter().map(|x| x.cos()), angles.iter().map(|x| x.sin()));
                cos.clone().chain(cos).chain(sin.clone().map(|x| -x)).chain(sin).collect::<Vec<_>>()
            })
            .collect();
        let mut out = Numbers::poison(count * self.config.heads * self.config.head_dim, self.config.kv_dtype);
        let tensors = Tensors {
            kv: pool.address(),
            qkv: qkv.as_ptr().cast(),
            turns: turns.as_ptr(),
            rotated: self.rotated,
            out: out.address(),
        };
        let plan = attention.plan(&Arc::new(step));
        // SAFETY: every vector has the size that the layer and the step ask for, and none overlaps another.
        unsafe { attention.attend(&plan, tensors) }.expect("a plan of this layer");
        out
    }

    /// Head number `head` of q, k and v together, normalized, rotated, and rounded as it is stored.
    fn prepare(&self, position: usize, head: usize) -> Vec<f64> {
        let config = &self.config;
        let size = config.head_dim;
        let row = position * (config.heads + 2 * config.kv_heads) + head;
        let mut x: Vec<f64> = self.qkv[row * size..(row + 1) * size].iter().map(|x| f64::from(*x)).collect();
        if head < config.heads + config.kv_heads {
            if let Some(norm) = &config.norm {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / size as f64;
                let weight = &norm.weight[head * size..(head + 1) * size];
                let factor = (mean + f64::from(norm.eps)).sqrt().recip();
                x = x.iter().zip(weight).map(|(x, weight)| x * factor * f64::from(*weight)).collect();
            }
            let half = self.rotated / 2;
            for pair in 0..half {
                let (first, second) = match config.pairs {
                    Pairs::Halves => (pair, pair + half),
                    Pairs::Neighbours => (2 * pair, 2 * pair + 1),
                };
                let (sin, cos) = f64::from(self.angles[position * half + pair]).sin_cos();
                (x[first], x[second]) = (x[first] * cos - x[second] * sin, x[second] * cos + x[first] * sin);
            }
        }
        match config.kv_dtype {
            Dtype::F32 => x,
            Dtype::Bf16 => x.into_iter().map(|x| f64::from(from_bf16(to_bf16(x as f32)))).collect(),
        }
    }

    /// What head number `head` gets at a position.
    fn exact(&self, position: usize, head: usize) -> Vec<f64> {
        let (config, rule) = (&self.config, &self.config.rule);
        let kv_head = head / (config.heads / config.kv_heads);
        let query = &self.prepared[position][head];
        let first = rule.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let score = |key: usize| {
            let key_head = &self.prepared[key][config.heads + kv_head];
            let dot: f64 = query.iter().zip(key_head).map(|(q, k)| q * k).sum::<f64>() * f64::from(rule.scale);
            let capped = rule.softcap.map_or(dot, |cap| f64::from(cap) * (dot / f64::from(cap)).tanh());
            capped - rule.slopes.get(head).map_or(0.0, |slope| f64::from(*slope) * (position - key) as f64)
        };
        let scores: Vec<f64> = (first..=position).map(score).collect();
        let sink = rule.sinks.get(head).map(|sink| f64::from(*sink));
        let largest = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().copied().chain(sink).map(|score| (score - largest).exp()).sum();
        let mut out = vec![0.0; config.head_dim];
        for (key, score) in (first..=position).zip(scores) {
            let value = &self.prepared[key][config.heads + config.kv_heads + kv_head];
            for (sum, value) in out.iter_mut().zip(value) {
                *sum += (score - largest).exp() / total * value;
            }
        }
        out
    }

    fn check(&self, out: &Numbers, start: usize, positions: impl Iterator<Item = usize>) {
        let (relative, absolute) = if self.config.kv_dtype == Dtype::F32 { (1e-4, 3e-5) } else { (0.01, 0.05) };
        for position in positions {
            for head in 0..self.config.heads {
                let at = ((position - start) * self.config.heads + head) * self.config.head_dim;
                for (i, exact) in self.exact(position, head).into_iter().enumerate() {
                    near(out.get(at + i), exact, relative, absolute);
                }
            }
        }
    }
}

#[test]
fn chunks_and_single_tokens_equal_float64() {
    let mut random = Random::new();
    for level in Level::available() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for _ in 0..if cfg!(miri) { 1 } else { 5 } {
                let length = 2 + random.below(if cfg!(miri) { 20 } else { 60 });
                let case = Case::new(&mut random, length, 1 + length % 3, dtype);
                let (mut pool, mut start) = (case.pool(), 0);
                while start < length {
                    let count = if random.below(2) == 0 { 1 } else { 1 + random.below(length - start) };
                    let out = case.run((level, 1 + random.below(3)), &mut pool, (start, count));
                    case.check(&out, start, start..start + count);
                    start += count;
                }
            }
        }
    }
}

/// Contexts of several pieces are shared between threads, and joined.
#[test]
#[cfg_attr(miri, ignore = "minutes")]
fn long_contexts_give_the_same_bits_to_any_team() {
    let mut random = Random::new();
    for level in Level::available() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let length = 1030 + random.below(100);
            let mut case = Case::new(&mut random, length, 1, dtype);
            let (mut pool, window) = (case.pool(), case.config.rule.window);
            case.config.rule.window = Some(1); // keys and values are written all the same
            case.run((level, 1), &mut pool, (0, length - 1));
            case.config.rule.window = window;
            let alone = case.run((level, 1), &mut pool, (length - 1, 1));
            case.check(&alone, length - 1, length - 1..length);
            for threads in [2, 8] {
                let shared = case.run((level, threads), &mut pool, (length - 1, 1));
                let len = case.config.heads * case.config.head_dim;
                assert!((0..len).all(|i| alone.get(i).to_bits() == shared.get(i).to_bits()), "{}", level.name());
            }
        }
    }
}

#[test]
fn what_cannot_be_computed_is_named() {
    let table = PageTable { entries: &[3, 4, 5, 6], width: 2, num_pages: 6 };
    let refused = |row, start, count| Step::new(&[row], &[start], &[count], table).map(|step| step.num_tokens());
    assert_eq!(refused(0, 0, 32), Ok(32));
    assert_eq!(refused(0, 1, 32), Err(BadStep::Work { entry: 0, row: 0, start: 1, count: 32 }));
    assert_eq!(refused(2, 0, 1), Err(BadStep::Work { entry: 0, row: 2, start: 0, count: 1 }));
    assert_eq!(refused(i64::MAX, 0, 1), Err(BadStep::Work { entry: 0, row: i64::MAX, start: 0, count: 1 }));
    assert_eq!(refused(0, i64::MAX, 1), Err(BadStep::Work { entry: 0, row: 0, start: i64::MAX, count: 1 }));
    assert_eq!(refused(1, 0, 16), Ok(16));
    assert_eq!(refused(1, 16, 1), Err(BadStep::Page { entry: 0, page: 6, num_pages: 6 }));
    let mut case = Case::new(&mut Random::new(), 4, 1, Dtype::F32);
    case.config.head_dim = 24;
    let made = Attention::new(Level::best(), team(1), case.config);
    assert_eq!(made.map(|_| ()), Err(Unsupported::HeadDim(24)));
}
