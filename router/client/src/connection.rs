//! One rank: its transport and the three calls of the contract.

use std::time::Duration;

use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use crate::codec::EncodedPlans;
use crate::steps::MAX_STEPS_IN_FLIGHT;
use crate::v1::{self, worker_client::WorkerClient};

/// Admissions carry whole prompts, so a plan may be large: 256 MiB.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256 << 20;
/// HTTP/2 flow control: one answer with prompt logprobs fits without waiting for window updates.
pub(crate) const WINDOW_BYTES: u32 = 16 << 20;
/// For the socket, and for the headers of the step stream: both come at once from a worker that lives.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between hosts a dead peer sends nothing. HTTP/2 pings would be refused by idle grpc servers ("too many pings").
const TCP_KEEPALIVE: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE_PROBES: u32 = 3;

type Transport = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, TransportError>;

/// Whatever a transport fails with, as one type.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct TransportError(StdError);

/// A connection to one rank. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
}

/// Both ends of one rank's step stream.
#[derive(Debug)]
pub(crate) struct RankStream {
    pub(crate) plans: mpsc::Sender<Bytes>,
    pub(crate) answers: Streaming<v1::StepResult>,
}

/// Nobody answers at an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot connect to {endpoint}: {reason}")]
pub struct Unreachable {
    pub endpoint: String,
    pub reason: String,
}

impl Client {
    /// Connects to `unix:PATH` or `http://HOST:PORT`. Errs when nobody accepts there within five seconds.
    pub async fn connect(endpoint: &str) -> Result<Self, Unreachable> {
        Self::connect_within(CONNECT_TIMEOUT, endpoint, open(endpoint)).await
    }

    async fn connect_within(
        limit: Duration,
        endpoint: &str,
        opening: impl Future<Output = Result<Channel, tonic::transport::Error>>,
    ) -> Result<Self, Unreachable> {
        let unreachable = |reason| Unreachable { endpoint: endpoint.to_owned(), reason };
        match tokio::time::timeout(limit, opening).await {
            Ok(Ok(channel)) => Ok(Self::over(channel)),
            Ok(Err(error)) => Err(unreachable(with_causes(&error))),
            Err(_) => Err(unreachable(format!("no answer within {limit:?}"))),
        }
    }

    /// Speaks to anything that answers gRPC requests: a channel, or a service in this process.
    pub(crate) fn over<S>(service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>>,
        S: Clone + Send + Sync + 'static,
        S::Error: Into<StdError>,
        S::Future: Send + 'static,
    {
        Self { transport: BoxCloneSyncService::new(service.map_err(|error| TransportError(error.into()))) }
    }

    /// Who this rank is. Waits as long as its weights take to load.
    pub async fn describe(&self) -> Result<v1::ModelDescription, Status> {
        let answer = self.worker().describe(v1::DescribeRequest {}).await?;
        Ok(answer.into_inner())
    }

    /// Has the rank run the worst case and allocate its pages. Ask all ranks at the same time: it runs collectives.
    pub async fn prepare(&self, request: v1::PrepareRequest) -> Result<v1::Prepared, Status> {
        Ok(self.worker().prepare(request).await?.into_inner())
    }

    /// Where this rank stands: its process answers while it loads and while it computes.
    pub(crate) async fn beat(&self) -> Result<v1::Heartbeat, Status> {
        Ok(self.worker().beat(v1::BeatRequest {}).await?.into_inner())
    }

    /// Opens the step stream. A worker that lives sends the headers of its answer at once, before any plan.
    pub(crate) async fn run(&self) -> Result<RankStream, Status> {
        self.run_within(CONNECT_TIMEOUT).await
    }

    async fn run_within(&self, limit: Duration) -> Result<RankStream, Status> {
        let (plans, queue) = mpsc::channel(MAX_STEPS_IN_FLIGHT);
        let mut grpc = tonic::client::Grpc::new(self.transport.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let open = async {
            grpc.ready().await.map_err(|error| Status::unavailable(with_causes(&error)))?;
            let request = Request::new(ReceiverStream::new(queue));
            let path = http::uri::PathAndQuery::from_static("/millrace.v1.Worker/Run");
            grpc.streaming(request, path, EncodedPlans).await
        };
        match tokio::time::timeout(limit, open).await {
            Ok(answer) => Ok(RankStream { plans, answers: answer?.into_inner() }),
            Err(_) => Err(Status::deadline_exceeded("the worker did not open its step stream")),
        }
    }

    fn worker(&self) -> WorkerClient<Transport> {
        WorkerClient::new(self.transport.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}

async fn open(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(endpoint.to_owned())?
        .tcp_keepalive(Some(TCP_KEEPALIVE))
        .tcp_keepalive_interval(Some(TCP_KEEPALIVE))
        .tcp_keepalive_retries(Some(TCP_KEEPALIVE_PROBES))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect()
        .await
}

/// tonic's errors say "transport error"; their causes say which.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    add_causes(error.to_string(), error.source())
}

/// What a status says, and what caused it.
pub(crate) fn status_text(status: &Status) -> String {
    add_causes(status.message().to_owned(), std::error::Error::source(status))
}

fn add_causes(mut text: String, mut cause: Option<&dyn std::error::Error>) -> String {
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};
    use std::task::{Context, Poll};

    use super::*;

    /// A transport that has broken.
    #[derive(Clone)]
    struct Broken;

    impl Service<http::Request<Body>> for Broken {
        type Response = http::Response<Body>;
        type Error = Error;
        type Future = std::future::Pending<Result<Self::Response, Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            Poll::Ready(Err(ErrorKind::BrokenPipe.into()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            std::future::pending()
        }
    }

    #[tokio::test]
    async fn a_step_stream_over_a_broken_transport_is_an_error() {
        let status = Client::over(Broken).run().await.expect_err("nothing can be sent");
        assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "broken pipe"));
    }

    #[tokio::test]
    async fn who_does_not_take_a_connection_in_time_is_unreachable() {
        let connected = Client::connect_within(Duration::from_millis(5), "e", std::future::pending()).await;
        let error = connected.expect_err("nobody has taken it");
        assert_eq!(error.to_string(), "cannot connect to e: no answer within 5ms");
    }

    /// A worker that takes the request and says nothing: no headers, no error.
    #[tokio::test]
    async fn a_step_stream_that_does_not_open_is_an_error() {
        let silent = tower::service_fn(|_: http::Request<Body>| std::future::pending::<Result<_, std::io::Error>>());
        let status = Client::over(silent).run_within(Duration::from_millis(5)).await.expect_err("nobody has answered");
        assert_eq!(status.message(), "the worker did not open its step stream");
    }

    #[test]
    fn an_error_is_told_with_its_causes_each_once() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = TransportError(Box::new(std::io::Error::other(refused)));
        assert_eq!(with_causes(&error), "connection refused");
        assert_eq!(with_causes(&Unreachable { endpoint: "e".into(), reason: "r".into() }), "cannot connect to e: r");
    }
}
