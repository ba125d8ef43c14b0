//! The position switch of `LongRoPE`: a model may compute a sequence of more than so many tokens with other frequencies, at all its
//! positions. A sequence that grows across is computed anew, and what was computed in one way is never read in the other.

use crate::prefix::Parent;
use crate::scheduler::Scheduler;
use crate::sequence::{Place, Sequence};

impl Scheduler {
    /// Whether a sequence has so many tokens that it is computed as a long one. Tokens in flight count: the workers know them.
    pub(crate) fn is_long(&self, sequence: &Sequence) -> bool {
        let switch = self.config.position_switch as usize;
        switch > 0 && sequence.num_tokens() > switch
    }

    /// Where the prefixes of a sequence begin.
    pub(crate) fn root(&self, sequence: &Sequence) -> Parent {
        Parent::Root { namespace: sequence.namespace, is_long: self.is_long(sequence) }
    }

    /// Takes the seats of running sequences that have become long since they were admitted. They go back to the
    /// beginning, as after a preemption, before anything more of them is computed.
    pub(crate) fn unseat_switched(&mut self) {
        if self.config.position_switch == 0 {
            return;
        }
        let has_switched = |sequence: &&Sequence| {
            let is_other = sequence.seat().is_some_and(|seat| seat.is_long != self.is_long(sequence));
            is_other && sequence.num_runnable_tokens() > 0
        };
        let switched: Vec<Place> =
            self.running_sequences().filter(has_switched).map(|sequence| sequence.place).collect();
        for place in switched {
            self.unseat(place);
            self.totals.position_switches += 1;
        }
    }
}
