//! One party's end of a link that several share.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::StatusCode;

use super::link::{Call, Link, MOST_PENDING, Refused, Spoken};
use crate::{
    gateway::{
        message::{Kind, Message},
        peer::Messages,
        reply::{self, Failure},
    },
    names::ServerKey,
};

/// A party's end of a link.
#[derive(Clone)]
pub struct Line {
    /// The link.
    pub link: Arc<Link>,
    /// The server, for errors.
    pub server: ServerKey,
    /// Tells parties apart.
    pub session: u64,
    /// Whether a call ends when nobody waits for its messages any more. In the legacy era a client
    /// that goes away has not cancelled anything.
    pub cancels: bool,
}

impl Line {
    /// Whether the process speaks without sessions.
    pub fn is_modern(&self) -> bool {
        matches!(self.link.spoken.get(), Some(Spoken::Modern(_)))
    }

    /// Sends a request; its messages come, the response last.
    pub async fn request(&self, request: &[u8]) -> Result<Messages, Failure> {
        let Some(message) = Message::parse(request) else {
            return Err(Failure::new(StatusCode::BAD_REQUEST, reply::INVALID_REQUEST, "this is no request"));
        };
        let call = self.link.request(&message, self.session).await.map_err(|why| self.refused(why))?;
        let in_hand = InHand { link: Arc::clone(&self.link), call, cancels: self.cancels };
        Ok(stream::unfold(in_hand, |mut in_hand| async move { Some((in_hand.next().await?, in_hand)) }).boxed())
    }

    /// Sends a notification or a response.
    pub async fn tell(&self, message: &[u8]) -> Result<(), Failure> {
        let Some(message) = Message::parse(message) else { return Ok(()) };
        self.link.pass(&message).await.map_err(|_| self.gone())
    }

    /// What the server says to nobody in particular.
    pub fn news(&self) -> Messages {
        let news = self.link.news();
        let link = Arc::clone(&self.link);
        stream::unfold((news, link), |(mut news, link)| async move {
            loop {
                let next = tokio::select! {
                    next = news.recv() => next,
                    () = link.ended() => return None,
                };
                match next {
                    Ok(message) => return Some((message, (news, link))),
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "a slow listener missed notifications");
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }

    fn gone(&self) -> Failure {
        super::ended(&self.server)
    }

    fn refused(&self, why: Refused) -> Failure {
        match why {
            Refused::Gone => self.gone(),
            Refused::Busy => Failure::unavailable(format!(
                "server {} has {MOST_PENDING} calls in hand, which is the most: try again later",
                self.server
            )),
            Refused::Duplicate => Failure::new(
                StatusCode::BAD_REQUEST,
                reply::INVALID_REQUEST,
                "a request with the same id is still in hand: give each request of a session its own id",
            ),
        }
    }
}

/// A call, given up when it is dropped before its response.
struct InHand {
    link: Arc<Link>,
    call: Call,
    cancels: bool,
}

impl InHand {
    async fn next(&mut self) -> Option<Bytes> {
        let message = self.call.answers.recv().await?;
        if Message::parse(&message).is_some_and(|m| m.kind() == Kind::Response) {
            self.cancels = false;
        }
        Some(message)
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        if self.cancels {
            self.link.give_up(&self.call.key);
        }
    }
}
