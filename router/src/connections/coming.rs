//! A request's body on its way in. It may be cut short, so that its connection makes room for others.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::standing::Standing;

/// Others needed the connection of a body that came slowly.
#[derive(Debug, thiserror::Error)]
#[error("the body came slowly, and others needed its connection")]
pub(crate) struct CutShort;

/// Counts among those that are coming until its end.
pub(super) struct Coming<B> {
    body: B,
    counted: Option<Counted>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

struct Counted {
    standing: Arc<Standing>,
    since: Instant,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.standing.body_has_come(self.since);
    }
}

impl<B: HttpBody> Coming<B> {
    pub(super) fn new(body: B, standing: &Arc<Standing>, cut: CancellationToken) -> Self {
        let counted = (!body.is_end_stream()).then(|| {
            let since = standing.body_is_coming();
            Counted { standing: Arc::clone(standing), since }
        });
        Self { body, counted, cut: Box::pin(cut.cancelled_owned()) }
    }
}

impl<B> HttpBody for Coming<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<axum::BoxError>,
{
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_pending() {
            ready!(self.cut.as_mut().poll(context));
            return Poll::Ready(Some(Err(Box::new(CutShort))));
        }
        if matches!(frame, Poll::Ready(None)) {
            self.counted = None;
        }
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
