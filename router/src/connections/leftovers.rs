//! What is left of a request's body when its answer is ready.
//!
//! An answer may be ready before the body has been read: the body is too long, its key is wrong, the server is full. In
//! HTTP/1 the next request stands behind the rest of that body. So the rest is read and thrown away, if it is little and
//! comes at once. Else the connection ends with the answer, which says so: a client that was not told would send its next
//! request into a connection that is closed. HTTP/2 ends single streams, in a way that not every client understands: there,
//! too, the rest is read if it can be.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// For the whole rest, and for each further piece of it: the answer waits meanwhile.
const WHOLE_PATIENCE: Duration = Duration::from_secs(1);
const PIECE_PATIENCE: Duration = Duration::from_millis(100);

/// A request whose body comes back here when whoever answers has done with it, and where it comes back.
pub(super) fn lend<B>(request: Request<B>) -> (Request<Body>, Option<Loan>)
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<axum::BoxError>,
{
    if request.body().is_end_stream() {
        return (request.map(Body::new), None);
    }
    let expectation = request.headers().get(header::EXPECT);
    let waits = expectation.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let (owner, returned) = oneshot::channel();
    let lend = |body: B| Body::new(Lent { rest: Some(Rest { body: Body::new(body), waits }), owner: Some(owner) });
    (request.map(lend), Some(Loan(returned)))
}

/// A body on its way through whoever answers.
struct Lent {
    /// `None` behind its end.
    rest: Option<Rest>,
    owner: Option<oneshot::Sender<Rest>>,
}

/// What has not been read of a body.
#[derive(Debug)]
struct Rest {
    body: Body,
    /// The client sends nothing before it is asked to, which reading does.
    waits: bool,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        rest.waits = false;
        let frame = ready!(Pin::new(&mut rest.body).poll_frame(context));
        if frame.is_none() {
            self.rest = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.as_ref().is_none_or(|rest| rest.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.as_ref().map_or(SizeHint::with_exact(0), |rest| rest.body.size_hint())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let rest = self.rest.take().filter(|rest| !rest.body.is_end_stream());
        if let (Some(rest), Some(owner)) = (rest, self.owner.take()) {
            // A connection that is gone takes nothing back.
            let _ = owner.send(rest);
        }
    }
}

/// The other end of a body that was lent.
#[derive(Debug)]
pub(super) struct Loan(oneshot::Receiver<Rest>);

impl Loan {
    /// Reads what is left, at most `most` bytes, now that there is an answer; whether nothing is left then.
    pub(super) async fn settle(mut self, most: u64) -> bool {
        match self.0.try_recv() {
            Ok(rest) => rest.ends(most).await,
            // It has been read to its end, or still is.
            Err(_) => true,
        }
    }
}

impl Rest {
    async fn ends(mut self, most: u64) -> bool {
        if self.waits || self.body.size_hint().lower() > most {
            return false;
        }
        let (end, mut left) = (Instant::now() + WHOLE_PATIENCE, most);
        loop {
            let next = timeout_at(end.min(Instant::now() + PIECE_PATIENCE), self.body.frame());
            let Ok(frame) = next.await else { return false };
            let Some(frame) = frame else { return true };
            let Ok(frame) = frame else { return false };
            let read = frame.data_ref().map_or(0, |data| data.len() as u64);
            let Some(fewer) = left.checked_sub(read) else { return false };
            left = fewer;
        }
    }
}

/// Says that no further request is read behind this one.
pub(super) fn say_farewell<B>(response: &mut Response<B>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: Body) -> Request<Body> {
        Request::post("/").body(body).unwrap()
    }

    /// So many bytes, one second apart from each other.
    fn dripping(count: usize) -> Body {
        Body::from_stream(futures::stream::unfold(0, move |sent| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            (sent < count).then_some((Ok::<_, std::convert::Infallible>("a"), sent + 1))
        }))
    }

    fn endless() -> Body {
        Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::convert::Infallible>("aaaa")))
    }

    /// Whether a body that nobody reads comes to its end.
    async fn settled(request: Request<Body>, most: u64) -> bool {
        let (request, loan) = lend(request);
        drop(request);
        loan.expect("there is a body").settle(most).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_is_read_if_it_is_little_and_comes_at_once() {
        assert!(settled(request(Body::from("a".repeat(1000))), 1000).await);
        assert!(!settled(request(Body::from("a".repeat(1001))), 1000).await);
        assert!(!settled(request(endless()), 1000).await);
        assert!(!settled(request(dripping(5)), 1000).await);
    }

    #[tokio::test]
    async fn who_waits_to_be_asked_is_not_asked_and_who_was_asked_has_sent() {
        let expecting = |body| {
            let mut request = request(body);
            request.headers_mut().insert(header::EXPECT, HeaderValue::from_static("100-Continue"));
            request
        };
        assert!(!settled(expecting(Body::from("abc")), 1000).await);
        let two = futures::stream::iter([Ok::<_, std::convert::Infallible>("a"), Ok("b")]);
        let (mut request, loan) = lend(expecting(Body::from_stream(two)));
        assert!(request.body_mut().frame().await.is_some());
        drop(request);
        assert!(loan.unwrap().settle(1000).await);
    }

    #[tokio::test]
    async fn what_was_read_or_is_still_being_read_is_not_waited_for() {
        let (request, loan) = lend(request(endless()));
        assert!(loan.unwrap().settle(0).await);
        drop(request);
        let (read, loan) = lend(self::request(Body::from("abc")));
        assert_eq!(read.into_body().collect().await.unwrap().to_bytes(), "abc");
        assert!(loan.unwrap().settle(0).await);
        assert!(lend(self::request(Body::empty())).1.is_none());
    }
}
