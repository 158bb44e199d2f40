//! The body of an answer, read on its way to the client.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde_json::value::RawValue;

use super::{
    Watch, is_stream,
    outcome::Outcome,
    scan::{Answer, EventScan, Interest, Scan},
};
use crate::gateway::{
    message,
    reply::{self, Body},
};

/// An answer whose message is read as it passes.
pub(super) fn observed(mut response: Response<Body>, watch: Watch, id: Option<&RawValue>) -> Response<Body> {
    let id = id.filter(|_| is_stream(&response)).map(ToOwned::to_owned);
    if id.is_some() {
        // It may become longer.
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let interest = Interest { result: watch.is_tool_call(), states: watch.is_tool_call() && watch.trail.is_counted() };
    let reader = if is_stream(&response) {
        Reader::Events(EventScan::new(interest))
    } else {
        Reader::Message(Scan::new(interest))
    };
    let status = response.status();
    response.map(|body| {
        let mut body = Observed { body, watch, reader, status, id, cut: false };
        if body.body.is_end_stream() {
            body.end();
        }
        body.boxed_unsync()
    })
}

enum Reader {
    Message(Scan),
    Events(EventScan),
}

/// The body of such an answer.
struct Observed {
    body: Body,
    watch: Watch,
    reader: Reader,
    status: StatusCode,
    /// Of the request, when its answer is a stream.
    id: Option<Box<RawValue>>,
    /// The stream broke off, and the client was told.
    cut: bool,
}

impl Observed {
    fn read(&mut self, data: &[u8]) {
        match &mut self.reader {
            _ if self.watch.done => {}
            Reader::Message(scan) => scan.feed(data),
            Reader::Events(scan) => {
                scan.feed(data);
                // A stream may go on after its answer.
                if scan.answer().is_some() {
                    self.judge();
                }
            }
        }
    }

    fn answer(&self) -> Option<&Answer> {
        match &self.reader {
            Reader::Message(scan) => scan.answer(),
            Reader::Events(scan) => scan.answer(),
        }
    }

    /// The error that ends a stream which is over before its answer. None where the client can take
    /// the stream up again, and where half an event has passed, of which it would become the rest.
    fn missing(&mut self) -> Option<Bytes> {
        let Reader::Events(scan) = &self.reader else { return None };
        let id = self.id.as_deref().filter(|_| scan.answer().is_none() && !scan.is_numbered() && scan.is_between())?;
        let text = format!("server {} broke off its answer", self.watch.route.server);
        self.cut = true;
        Some(reply::event("message", &message::error(Some(id), reply::SERVER_FAILED, &text, None)))
    }

    fn judge(&mut self) {
        if !self.watch.done {
            let outcome = Outcome::of_answer(self.status, self.answer());
            if let Some(answer) = self.answer() {
                self.watch.remember(answer);
            }
            self.watch.complete(outcome);
        }
    }

    /// The body is over.
    fn end(&mut self) {
        let numbered = matches!(&self.reader, Reader::Events(scan) if scan.answer().is_none() && scan.is_numbered());
        if numbered {
            // The client takes the stream up again, and gets its answer there.
            self.watch.complete(Outcome::Cancelled);
        }
        self.judge();
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        // A client that has all of the answer need not ask for its end.
        if self.answer().is_some() {
            self.judge();
        }
    }
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if this.cut {
            return Poll::Ready(None);
        }
        let polled = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if !matches!(polled, Some(Ok(_)))
            && let Some(error) = this.missing()
        {
            this.watch.complete(Outcome::Unavailable);
            return Poll::Ready(Some(Ok(Frame::data(error))));
        }
        match &polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.read(data);
                }
                if this.body.is_end_stream() {
                    this.end();
                }
            }
            Some(Err(_)) => this.watch.complete(Outcome::Unavailable),
            None => this.end(),
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.cut || self.id.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // A stream may get an end of the gateway's own.
        if self.id.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}
