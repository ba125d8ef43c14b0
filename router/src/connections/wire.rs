//! A connection's bytes: written no slower than a client may be, closed so that the last answer arrives.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::credit::Credit;

/// How long a client that still sends gets to read the last answer.
const LINGER: Duration = Duration::from_secs(1);

/// A TCP connection.
///
/// A connection that is closed while bytes of its client lie unread is reset, and a reset can overtake the answer. Where
/// `lingers` is set, what comes is therefore thrown away for a moment between the last byte and the end.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    wait: Wait,
    lingers: Arc<AtomicBool>,
    end: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    pub(super) fn new(stream: TcpStream, patience: Duration, lingers: Arc<AtomicBool>) -> Self {
        Self { stream, wait: Wait::new(patience), lingers, end: None }
    }

    fn watched(&mut self, context: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(written) => {
                self.wait.end(*written.as_ref().unwrap_or(&0));
                Poll::Ready(written)
            }
            Poll::Pending => {
                ready!(self.wait.poll_spent(context));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly")))
            }
        }
    }

    /// Throws away what comes until the client has done or the moment is over.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = self.end.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut bytes = [0; 16 << 10];
        loop {
            if end.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watched(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.end.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        if self.lingers.load(Ordering::Relaxed) { self.poll_linger(context) } else { Poll::Ready(Ok(())) }
    }
}

/// The time in which bytes wait for a client.
#[derive(Debug)]
struct Wait {
    credit: Credit,
    since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Wait {
    fn new(patience: Duration) -> Self {
        Self { credit: Credit::new(patience), since: None, alarm: None }
    }

    /// The client has taken so many bytes.
    fn end(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.credit.spend(since.elapsed());
            self.alarm = None;
        }
        self.credit.earn(bytes);
    }

    /// Bytes wait. Ready when they have waited too long.
    fn poll_spent(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.since.get_or_insert_with(Instant::now);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(self.credit.left())));
        alarm.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::poll;
    use tokio::time::{advance, timeout};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Whether a client gets to the end that takes `bytes`, each time after `pause`.
    async fn is_served(bytes: usize, pause: Duration) -> bool {
        let mut wait = Wait::new(PATIENCE);
        for _ in 0..200 {
            if timeout(pause, poll_fn(|context| wait.poll_spent(context))).await.is_ok() {
                return false;
            }
            wait.end(bytes);
        }
        true
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_all_the_time_is_served_and_who_takes_too_little_is_not() {
        let second = Duration::from_secs(1);
        assert!(is_served(1024, second).await && is_served(30 * 1024, 30 * second).await);
        assert!(!is_served(1000, 30 * second).await && !is_served(1, second).await && !is_served(512, second).await);
        assert!(!is_served(100_000, 61 * second).await);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_waits_costs_nothing() {
        let mut wait = Wait::new(PATIENCE);
        for _ in 0..100 {
            wait.end(1);
            advance(PATIENCE).await;
        }
        assert!(poll!(poll_fn(|context| wait.poll_spent(context))).is_pending());
    }
}
