//! Rows sorted by expert: of each expert those of earlier tokens first.

use std::fmt;
use std::ops::Range;

/// The number that is no expert's.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownExpert(i64);

impl fmt::Display for UnknownExpert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token names expert {}, which there is not", self.0)
    }
}

impl std::error::Error for UnknownExpert {}

pub(crate) struct Order {
    /// Which row stands at each place.
    rows: Vec<usize>,
    /// At which place each row stands.
    places: Vec<usize>,
    /// Where each expert's rows begin, and where the last one's end.
    starts: Vec<usize>,
}

impl Order {
    /// `chosen`: the expert of each row.
    pub(crate) fn new(chosen: &[i64], experts: usize) -> Result<Self, UnknownExpert> {
        let mut starts = vec![0; experts + 1];
        let mut places = Vec::with_capacity(chosen.len());
        for id in chosen {
            let expert = usize::try_from(*id).ok().filter(|expert| *expert < experts).ok_or(UnknownExpert(*id))?;
            // Its place among the expert's own, for now.
            places.push(starts[expert + 1]);
            starts[expert + 1] += 1;
        }
        for expert in 0..experts {
            starts[expert + 1] += starts[expert];
        }
        let mut rows = vec![0; chosen.len()];
        for (row, id) in chosen.iter().enumerate() {
            places[row] += starts[*id as usize];
            rows[places[row]] = row;
        }
        Ok(Self { rows, places, starts })
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn row(&self, place: usize) -> usize {
        self.rows[place]
    }

    pub(crate) fn place(&self, row: usize) -> usize {
        self.places[row]
    }

    /// The places of each expert's rows, of those that have any.
    pub(crate) fn experts(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let places = self.starts.windows(2).map(|bounds| bounds[0]..bounds[1]);
        places.enumerate().filter(|(_, places)| !places.is_empty())
    }
}
