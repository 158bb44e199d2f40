//! One request in, one answer out: the tower service that kube clients and the listener share.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc, task::Poll};

use bytes::Bytes;
use futures::Stream;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;

use super::{api::Api, status::ApiError};

/// The body of an answer: whole, or a stream of watch events.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body that comes piece by piece.
pub fn stream(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    use futures::StreamExt;
    StreamBody::new(pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)))).boxed_unsync()
}

/// The API as a tower service. It never fails: failures are answers.
#[derive(Clone, Debug)]
pub struct Service {
    api: Arc<Api>,
}

impl Service {
    pub(super) fn new(api: Arc<Api>) -> Self {
        Self { api }
    }
}

/// Largest body that is read, as in kube-apiserver.
pub const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// Most of a body that is too large that is still taken in.
const DRAIN_LIMIT: usize = 32 * 1024 * 1024;

/// Takes in the rest of a body. A client that still writes when the connection closes does not
/// read the answer.
async fn drain<B: http_body::Body<Data = Bytes>>(mut body: Pin<&mut B>) {
    let mut taken = 0;
    while let Some(Ok(frame)) = body.as_mut().frame().await {
        taken += frame.data_ref().map_or(0, Bytes::len);
        if taken > DRAIN_LIMIT {
            return;
        }
    }
}

impl<B> tower::Service<Request<B>> for Service
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let api = Arc::clone(&self.api);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let mut body = std::pin::pin!(body);
            let answer = match http_body_util::Limited::new(body.as_mut(), BODY_LIMIT).collect().await {
                Ok(body) => api.answer(&parts, body.to_bytes()).await,
                Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                    drain(body).await;
                    Err(ApiError::too_large(BODY_LIMIT))
                }
                Err(error) => Err(ApiError::bad_request(format!("the body of the request broke off: {error}"))),
            };
            Ok(answer.unwrap_or_else(ApiError::into_response))
        })
    }
}
