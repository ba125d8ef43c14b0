//! What it may cost to work a schema out, known before anybody does.

use super::keywords::Inner;
use crate::grammar::GrammarError;

/// Ways in which the alternatives of one schema can be combined.
const MAX_WAYS: usize = 20_000;
/// Regexes of which one text must match all: each can multiply what the others cost.
const MAX_MERGED_REGEXES: usize = 8;

/// Optional properties of which any may come next: the parser follows all of them at once, and gives up at its limit.
const MAX_OPTIONAL: usize = 400;

/// Of one schema, if it is merged with others as far as it can be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight {
    pub(super) ways: usize,
    pub(super) regexes: usize,
    pub(super) optional: usize,
}

impl Weight {
    pub(super) const NONE: Self = Self { ways: 1, regexes: 0, optional: 0 };
}

/// A schema's weight while its keywords are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weighing {
    /// Of the schema itself.
    own: Weight,
    /// The most of what is inside: a schema merged with another is merged with what is inside of it.
    inner: Weight,
}

impl Weighing {
    /// `own`: of a schema's own keywords, as far as they hold no schemas.
    pub(super) fn new(own: Weight) -> Self {
        Self { own, inner: Weight::NONE }
    }

    pub(super) fn take(&mut self, keyword: Inner, met: &[Weight]) {
        let most = met.iter().map(|weight| weight.regexes).max().unwrap_or(0);
        let own = &mut self.own;
        if matches!(keyword, Inner::All | Inner::Reference | Inner::Any | Inner::One) {
            own.optional += met.iter().map(|weight| weight.optional).sum::<usize>();
        }
        match keyword {
            Inner::All | Inner::Reference => {
                own.ways = met.iter().fold(own.ways, |all, weight| all.saturating_mul(weight.ways));
                own.regexes += met.iter().map(|weight| weight.regexes).sum::<usize>();
            }
            Inner::Any | Inner::One => {
                own.ways = own.ways.saturating_mul(met.iter().map(|weight| weight.ways).sum());
                own.regexes += most;
            }
            Inner::Schema | Inner::Schemas | Inner::Properties | Inner::PatternProperties => {
                self.inner.ways = met.iter().map(|weight| weight.ways).fold(self.inner.ways, usize::max);
                self.inner.regexes = self.inner.regexes.max(most);
            }
        }
    }

    pub(super) fn finish(self, place: &str) -> Result<Weight, GrammarError> {
        let ways = self.own.ways.saturating_mul(self.inner.ways);
        if ways > MAX_WAYS {
            let problem = format!("allows more than {MAX_WAYS} combinations of its alternatives; simplify it");
            return Err(GrammarError::at(place, problem));
        }
        let regexes = self.own.regexes + self.inner.regexes;
        if regexes > MAX_MERGED_REGEXES {
            let problem =
                format!("holds one text to {regexes} patterns and formats, but at most {MAX_MERGED_REGEXES} can be");
            return Err(GrammarError::at(place, problem));
        }
        let optional = self.own.optional;
        if optional > MAX_OPTIONAL {
            let problem = format!(
                "has {optional} optional properties at one place, but at most {MAX_OPTIONAL} can be; require some"
            );
            return Err(GrammarError::at(place, problem));
        }
        Ok(Weight { ways, regexes, optional })
    }
}
