//! Where top-k, top-p, typical-p and min-p cut a row's tokens, each what the one before left. All bounds are gaps of tokens,
//! so that equal scores share one fate.

use std::ops::Range;

use super::shells::Found;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// 0: off.
    pub top_k: usize,
    /// 1: off.
    pub top_p: f32,
    /// 1: off.
    pub typical_p: f32,
    /// -log(min-p); infinite: off.
    pub spread: f32,
}

/// Which of the found tokens are kept. None while further ones have to be known.
#[inline(always)]
pub(crate) fn narrow(found: &Found, limits: Limits) -> Option<Range<usize>> {
    let (mut end, mut certain) = top(found, limits)?;
    let mut first = 0;
    if limits.typical_p < 1.0 {
        if !certain {
            return None;
        }
        (first, end) = typical(found, end, limits.typical_p);
    }
    let far = found.gaps[first] + limits.spread;
    // What min-p cuts off, others need not have cut off before.
    certain |= far <= found.limit;
    certain.then(|| first..end.min(up_to(&found.gaps, far)).max(1))
}

/// How many tokens are not above a gap.
#[inline(always)]
fn up_to(gaps: &[f32], gap: f32) -> usize {
    gaps.partition_point(|each| *each <= gap)
}

/// How many tokens top-k (Fan et al. 2018) and then top-p (Holtzman et al. 2020) keep, and whether no further ones. None
/// where that is not known of any.
///
/// Top-k keeps the k best and those equal to the k-th; top-p the fewest best whose share of what is left reaches p, and
/// those equal to the last of them.
#[inline(always)]
fn top(found: &Found, limits: Limits) -> Option<(usize, bool)> {
    let (gaps, sums) = (&found.gaps, &found.sums);
    let has_k = limits.top_k > 0;
    let reaches_k = has_k && gaps.len() >= limits.top_k;
    let end_k = if reaches_k { up_to(gaps, gaps[limits.top_k - 1]) } else { gaps.len() };
    let knows_k = reaches_k || found.is_complete();
    if limits.top_p >= 1.0 {
        return Some((end_k, knows_k));
    }
    if has_k && !knows_k {
        return None;
    }
    let total = if has_k { sums[end_k] } else { found.total };
    let reaching = sums.partition_point(|sum| *sum < total * f64::from(limits.top_p));
    let end_p = up_to(gaps, gaps[reaching.clamp(1, end_k) - 1]);
    Some((end_p.min(end_k), knows_k || reaching <= end_k))
}

/// The tokens of the first `end` whose information is closest to the entropy and reaches the share: first and end.
///
/// Meister et al. 2023 (Locally Typical Sampling). A token's information less the entropy is its gap less the mean gap,
/// so the tokens are those in the smallest ball around it. An interval that begins at token a and reaches the share ends
/// at a token b(a): the distance of b from the mean grows with a, that of a falls. Where they cross, the larger of the
/// two is smallest.
fn typical(found: &Found, end: usize, share: f32) -> (usize, usize) {
    let (gaps, sums) = (&found.gaps, &found.sums);
    let weighted = found.weights[..end].iter().zip(gaps).map(|(weight, gap)| f64::from(*weight) * f64::from(*gap));
    let mean = weighted.sum::<f64>() / sums[end];
    let needed = sums[end] * f64::from(share);
    let begins = |first: usize| mean - f64::from(gaps[first]);
    let ends = |first: usize| {
        // The smallest share may be lost in the sum: an interval holds the token it begins at.
        let reached = sums.partition_point(|sum| *sum < sums[first] + needed).max(first + 1);
        if reached > end { f64::INFINITY } else { f64::from(gaps[reached - 1]) - mean }
    };
    // There they have crossed: this gap is not below the mean.
    let last = gaps.partition_point(|gap| *gap < mean as f32).min(end - 1);
    let (mut low, mut high) = (0, last);
    while low < high {
        let middle = usize::midpoint(low, high);
        if ends(middle) < begins(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let mut radius = ends(high);
    if high > 0 {
        radius = radius.min(begins(high - 1));
    }
    // The bounds are tokens' own gaps, to which float32 rounds them.
    let first = gaps.partition_point(|gap| *gap < (mean - radius) as f32).min(end - 1);
    (first, up_to(gaps, (mean + radius) as f32).clamp(first + 1, end))
}
