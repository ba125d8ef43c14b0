//! The worker's service, its methods by their names.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use pyo3::prelude::*;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use crate::codec::AsTheyAre;
use crate::{calls, stream};

/// Admissions carry whole prompts, so a plan may be large: 256 MiB.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Functions of Python, which only the threads that call them touch: taking one along needs no interpreter.
#[derive(Clone)]
pub(crate) enum Method {
    Call(Arc<Py<PyAny>>),
    Stream(Arc<Py<PyAny>>),
}

#[derive(Clone)]
pub(crate) struct Methods(Arc<HashMap<String, Method>>);

impl Methods {
    pub(crate) fn new(methods: HashMap<String, Method>) -> Self {
        Self(Arc::new(methods.into_iter().map(|(name, method)| (format!("/{}/{name}", Self::NAME), method)).collect()))
    }
}

impl NamedService for Methods {
    const NAME: &'static str = "millrace.v1.Worker";
}

type Answering<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for Methods {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answering<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let methods = Arc::clone(&self.0);
        Box::pin(async move {
            let mut grpc = Grpc::new(AsTheyAre).max_decoding_message_size(MAX_MESSAGE_BYTES);
            Ok(match methods.get(request.uri().path()) {
                Some(Method::Call(method)) => grpc.unary(OfCalls(method), request).await,
                Some(Method::Stream(method)) => grpc.streaming(OfStreams(method), request).await,
                None => Status::unimplemented("a worker has no such method").into_http(),
            })
        })
    }
}

struct OfCalls<'a>(&'a Arc<Py<PyAny>>);

impl UnaryService<Bytes> for OfCalls<'_> {
    type Response = Bytes;
    type Future = Answering<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(calls::answer(Arc::clone(self.0), request.into_inner()))
    }
}

struct OfStreams<'a>(&'a Arc<Py<PyAny>>);

impl StreamingService<Bytes> for OfStreams<'_> {
    type Response = Bytes;
    type ResponseStream = stream::Answers;
    type Future = std::future::Ready<Result<Response<stream::Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        std::future::ready(Ok(stream::answer(Arc::clone(self.0), request.into_inner())))
    }
}
