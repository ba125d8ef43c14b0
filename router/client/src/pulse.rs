//! The pulse of every rank: each is asked twice a second where it stands, whatever it computes.
//!
//! Silence is counted in ticks in which an answer was awaited, not in differences of clocks: a router that was itself
//! stopped for a while must not take its own pause for that of its workers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::connection::Client;
use crate::v1::Heartbeat;

/// Between an answer and the next question.
const BEAT: Duration = Duration::from_millis(500);
/// How often waiting for an answer is counted.
const TICK: Duration = Duration::from_millis(250);
/// A rank that has not answered for so long does not run any more.
pub const SILENCE: Duration = Duration::from_millis(3500);
/// The same while a rank loads: importing libraries can keep Python's other threads waiting.
pub const LOADING_SILENCE: Duration = Duration::from_secs(30);

/// What is known of one rank's process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vital {
    /// Of its group, as the launcher counts; 0: nobody does, or it has not answered yet.
    pub generation: u32,
    /// Steps that it has finished.
    pub progress: u64,
    pub is_computing: bool,
    /// What it does before it can be prepared; then empty.
    pub stage: String,
    pub done: u64,
    pub total: u64,
    /// Of the weights, while they are read.
    pub bytes_read: u64,
    /// 0: not known.
    pub bytes_to_read: u64,
    /// For how long an answer has been awaited.
    pub silent: Duration,
}

impl Vital {
    fn said(beat: Heartbeat) -> Self {
        let Heartbeat { progress, is_computing, generation, stage, done, total, bytes_read, bytes_to_read } = beat;
        let silent = Duration::ZERO;
        Self { generation, progress, is_computing, stage, done, total, bytes_read, bytes_to_read, silent }
    }
}

/// The vitals of all ranks, by rank. Clones are handles on the same ones.
#[derive(Clone, Debug, Default)]
pub struct Vitals(Arc<Mutex<Vec<Vital>>>);

impl Vitals {
    pub fn all(&self) -> Vec<Vital> {
        self.lock().clone()
    }

    /// The first rank that has been silent for `limit`.
    pub fn silent(&self, limit: Duration) -> Option<usize> {
        self.lock().iter().position(|vital| vital.silent >= limit)
    }

    /// The one of these ranks that has finished the fewest steps: the others wait for it.
    pub(crate) fn slowest(&self, among: impl Iterator<Item = usize>) -> Option<usize> {
        let vitals = self.lock();
        among.min_by_key(|&rank| vitals.get(rank).map_or(0, |vital| vital.progress))
    }

    pub(crate) fn generation(&self, rank: usize) -> u32 {
        self.lock().get(rank).map_or(0, |vital| vital.generation)
    }

    /// A rank has shown otherwise that it runs.
    pub(crate) fn heard(&self, rank: usize) {
        self.change(rank, |vital| vital.silent = Duration::ZERO);
    }

    /// A rank of a new group has the others' silence begin anew: they were of a group that is gone.
    fn said(&self, rank: usize, beat: Heartbeat) {
        let mut vitals = self.lock();
        if vitals.iter().all(|vital| vital.generation < beat.generation) {
            vitals.iter_mut().for_each(|vital| vital.silent = Duration::ZERO);
        }
        if let Some(vital) = vitals.get_mut(rank) {
            *vital = Vital::said(beat);
        }
    }

    fn change(&self, rank: usize, change: impl FnOnce(&mut Vital)) {
        if let Some(vital) = self.lock().get_mut(rank) {
            change(vital);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vital>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the vitals of a group up to date until the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    pub(crate) vitals: Vitals,
    /// Aborts its tasks when dropped.
    _listeners: Arc<JoinSet<()>>,
}

impl Pulse {
    /// Listens to these ranks, in their order. What was known of earlier ones is forgotten.
    pub(crate) fn of(clients: &[Client], vitals: Vitals) -> Self {
        *vitals.lock() = vec![Vital::default(); clients.len()];
        let mut listeners = JoinSet::new();
        for (rank, client) in clients.iter().enumerate() {
            listeners.spawn(listen(client.clone(), rank, vitals.clone()));
        }
        Self { vitals, _listeners: Arc::new(listeners) }
    }
}

async fn listen(client: Client, rank: usize, vitals: Vitals) {
    loop {
        let answer = client.beat();
        tokio::pin!(answer);
        let mut tick = Instant::now() + TICK;
        loop {
            tokio::select! {
                biased;
                beat = &mut answer => {
                    match beat {
                        Ok(beat) => vitals.said(rank, beat),
                        Err(_) => vitals.change(rank, |vital| vital.silent += BEAT),
                    }
                    break;
                }
                () = sleep_until(tick) => {
                    vitals.change(rank, |vital| vital.silent += TICK);
                    tick = Instant::now() + TICK;
                }
            }
        }
        sleep(BEAT).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::io::{Error, ErrorKind};

    use tonic::body::Body;
    use tonic::codegen::http::{Request, Response};

    use super::*;

    /// As between its death and the news of it on the step stream, or before there is one.
    #[tokio::test(start_paused = true)]
    async fn a_rank_whose_every_answer_is_an_error_is_silent() {
        let broken = |_: Request<Body>| ready(Err::<Response<Body>, _>(Error::from(ErrorKind::BrokenPipe)));
        let pulse = Pulse::of(&[Client::over(tower::service_fn(broken))], Vitals::default());
        sleep(SILENCE / 2).await;
        assert_eq!(pulse.vitals.silent(SILENCE), None);
        sleep(SILENCE).await;
        assert_eq!(pulse.vitals.silent(SILENCE), Some(0));
    }

    #[test]
    fn the_silence_of_a_group_that_is_gone_is_not_that_of_the_next() {
        let vitals = Vitals(Arc::new(Mutex::new(vec![Vital::default(); 2])));
        let beat = |rank, generation| vitals.said(rank, Heartbeat { generation, ..Heartbeat::default() });
        (0..2).for_each(|rank| beat(rank, 1));
        let late = |seconds| vitals.change(1, |vital| vital.silent += Duration::from_secs(seconds));
        late(29);
        beat(0, 1);
        assert_eq!(vitals.silent(LOADING_SILENCE / 2), Some(1), "another of its own group changes nothing");
        beat(0, 2);
        late(29);
        beat(0, 2);
        assert_eq!(vitals.silent(LOADING_SILENCE), None);
        late(1);
        assert_eq!(vitals.silent(LOADING_SILENCE), Some(1));
    }
}
