//! A fixed number of threads for work on text, behind a bounded queue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::{mpsc, oneshot};

/// Jobs that wait per thread; askers beyond wait outside.
const QUEUE_PER_THREAD: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// Dropping it ends the threads when their queue is empty.
#[derive(Debug)]
pub struct TokenizerPool {
    jobs: mpsc::Sender<Job>,
}

/// The work itself broke; the thread that ran it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizer failed on this text")]
pub struct PoolFault;

impl TokenizerPool {
    /// Starts at least one thread. `stack`: bytes for each, if the usual size would not do.
    pub fn new(name: &str, threads: usize, stack: Option<usize>) -> Self {
        let threads = threads.max(1);
        let (jobs, receiver) = mpsc::channel::<Job>(threads * QUEUE_PER_THREAD);
        let receiver = Arc::new(Mutex::new(receiver));
        for index in 0..threads {
            let receiver = Arc::clone(&receiver);
            let builder = thread::Builder::new().name(format!("{name}-{index}"));
            let builder = match stack {
                Some(bytes) => builder.stack_size(bytes),
                None => builder,
            };
            builder.spawn(move || work_off(&receiver)).expect("threads can be started when the server starts");
        }
        Self { jobs }
    }

    /// Runs `work` on one of the threads. An asker that has left by the time its turn comes costs nothing.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, PoolFault> {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            if !reply.is_closed() {
                // An asker that leaves during the work does not want the answer.
                let _ = reply.send(work());
            }
        });
        self.jobs.send(job).await.map_err(|_| PoolFault)?;
        answer.await.map_err(|_| PoolFault)
    }
}

fn work_off(jobs: &Mutex<mpsc::Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(job) = job else { return };
        // The job owns all it touches; its asker learns of a panic by the reply that never comes.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a thread for work on text panicked; it goes on with the next one");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_fails_one_job_and_leaves_every_thread_working() {
        let pool = TokenizerPool::new("test", 2, None);
        for _ in 0..5 {
            assert_eq!(pool.run(|| -> u32 { panic!("caused by the test") }).await, Err(PoolFault));
        }
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let meet = |barrier: Arc<std::sync::Barrier>| move || barrier.wait().is_leader();
        // Both threads must be there for either to pass.
        let (a, b) = tokio::join!(pool.run(meet(Arc::clone(&barrier))), pool.run(meet(barrier)));
        assert!(a.unwrap() ^ b.unwrap());
    }

    #[tokio::test]
    async fn more_jobs_than_the_queue_holds_all_get_done() {
        let pool = TokenizerPool::new("test", 1, None);
        let jobs = (0..200).map(|number| pool.run(move || number * 2));
        let results: Vec<_> = futures::future::join_all(jobs).await;
        assert!(results.into_iter().enumerate().all(|(index, result)| result == Ok(index * 2)));
    }

    #[tokio::test]
    async fn work_for_an_asker_who_left_is_skipped() {
        let pool = TokenizerPool::new("test", 1, None);
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let (ran, was_run) = std::sync::mpsc::channel::<()>();
        let mut held = Box::pin(pool.run(move || gate.recv()));
        assert!(futures::poll!(held.as_mut()).is_pending());
        let mut left = Box::pin(pool.run(move || ran.send(())));
        assert!(futures::poll!(left.as_mut()).is_pending());
        drop(left);
        release.send(()).unwrap();
        held.await.unwrap().unwrap();
        pool.run(|| ()).await.unwrap();
        assert!(was_run.try_recv().is_err());
    }
}
