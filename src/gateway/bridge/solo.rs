//! Sessions with a process of their own.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use http::{Response, StatusCode};

use super::{
    Bridges, Line,
    link::{Link, Sharing},
    no_session_id,
};
use crate::{
    gateway::{
        era::Era,
        handler::{Call, Gateway},
        message::{Kind, Message},
        peer,
        reply::{self, Body, Failure, SESSION},
        session::Home,
    },
    names::{Revision, ServerKey},
    runtime::InstanceId,
};

/// A session with its process.
pub struct Solo {
    /// The server.
    pub server: ServerKey,
    /// What it runs.
    pub revision: Revision,
    /// The process.
    pub instance: InstanceId,
    /// The conversation with it.
    pub link: Arc<Link>,
    used: Mutex<Instant>,
}

impl Solo {
    fn line(&self) -> Line {
        Line { link: Arc::clone(&self.link), server: self.server.clone(), session: 0, cancels: false }
    }

    fn touch(&self) {
        *self.used.lock().expect("nobody panics while holding the time") = Instant::now();
    }

    fn is_idle(&self, limit: Duration) -> bool {
        self.link.pending() == 0 && self.used.lock().expect("nobody panics while holding the time").elapsed() > limit
    }
}

impl Bridges {
    pub(super) async fn post_solo(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
    ) -> Result<Response<Body>, Failure> {
        if message.method() == "initialize" {
            return self.open_solo(gateway, call, message).await;
        }
        let (_, solo) = self.find_solo(gateway, call).await?;
        if message.kind() == Kind::Request {
            let messages = solo.line().request(&call.body).await?;
            return Ok(peer::respond(gateway, call, messages, Era::Legacy).await);
        }
        solo.line().tell(&call.body).await?;
        Ok(reply::empty(StatusCode::ACCEPTED))
    }

    /// Starts the process of a session. A server of the modern era knows no sessions: it is
    /// translated, and needs no process for each.
    async fn open_solo(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        message: &Message<'_>,
    ) -> Result<Response<Body>, Failure> {
        let server = &call.route.server;
        // A session's process is started from what the backend made ready for the replicas.
        let revision = match gateway.eligible(call, Some(rand::random())).await?.into_iter().next() {
            Some(endpoint) => endpoint.revision,
            None => return Err(gateway.not_ready(server)),
        };
        if gateway.eras.get(server, &revision.0) == Some(Era::Modern)
            && let Some(response) = self.open_translated(gateway, call, message, &revision).await?
        {
            return Ok(response);
        }
        let (number, solo) = self.start_solo(gateway, call, revision).await?;
        let mut messages = solo.line().request(&call.body).await?;
        let limit = call.patience;
        let Ok(first) = tokio::time::timeout(limit, messages.next()).await else {
            self.end(gateway, number).await;
            let text = format!("server {server} does not answer initialize within {}s", limit.as_secs());
            return Err(Failure::unavailable(text));
        };
        let refused = first.as_deref().and_then(Message::parse).is_some_and(|first| first.error.is_some());
        if refused && !solo.link.is_dead() {
            let translated = self.open_translated(gateway, call, message, &solo.revision).await;
            if let Ok(Some(response)) = translated {
                self.end(gateway, number).await;
                return Ok(response);
            }
        }
        let messages = stream::iter(first).chain(messages).boxed();
        let mut response = peer::respond(gateway, call, messages, Era::Legacy).await;
        response.headers_mut().insert(SESSION, gateway.seal(call, &Home::Own(number))?);
        Ok(response)
    }

    pub(super) async fn listen_solo(&self, gateway: &Arc<Gateway>, call: &Call) -> Result<Response<Body>, Failure> {
        let (_, solo) = self.find_solo(gateway, call).await?;
        let closing = gateway.shutdown.clone().cancelled_owned();
        Ok(reply::events(solo.line().news().take_until(closing)))
    }

    pub(super) async fn end_solo(&self, gateway: &Arc<Gateway>, call: &Call) -> Result<Response<Body>, Failure> {
        let (number, _) = self.find_solo(gateway, call).await?;
        self.end(gateway, number).await;
        Ok(reply::empty(StatusCode::NO_CONTENT))
    }

    /// The revision of a session's own process.
    pub(in crate::gateway) async fn revision(&self, number: u128) -> Option<Revision> {
        self.solo.lock().await.get(&number).map(|solo| solo.revision.clone())
    }

    async fn find_solo(&self, gateway: &Gateway, call: &Call) -> Result<(u128, Arc<Solo>), Failure> {
        let number = match gateway.session(call)? {
            Some(Home::Own(number)) => number,
            Some(_) => return Err(Failure::no_session()),
            None => return Err(no_session_id()),
        };
        let solo = self.solo.lock().await.get(&number).cloned().ok_or_else(Failure::no_session)?;
        if solo.link.is_dead() {
            self.end(gateway, number).await;
            return Err(Failure::no_session());
        }
        gateway.stays(call, &solo.revision)?;
        solo.touch();
        Ok((number, solo))
    }

    async fn start_solo(
        &self,
        gateway: &Arc<Gateway>,
        call: &Call,
        revision: Revision,
    ) -> Result<(u128, Arc<Solo>), Failure> {
        self.reap(gateway).await;
        let server = &call.route.server;
        call.trail.serve(&revision, || None);
        let limit = gateway.config.max_sessions;
        if self.solo.lock().await.values().filter(|s| s.server == *server).count() >= limit {
            return Err(Failure::unavailable(format!(
                "server {server} has {limit} sessions, which is the most: try again later"
            )));
        }
        let failed = |error: crate::runtime::RuntimeError| {
            Failure::unavailable(format!("no process of server {server} starts: {error}"))
        };
        let instance = gateway.instances.start_session(&gateway.key_of(server, &revision)).await.map_err(failed)?;
        let streams = gateway.instances.attach(&instance).await.map_err(failed)?;
        let link = Arc::new(Link::start(streams, Sharing::One, gateway.config.line_limit, server.to_string()));
        let solo =
            Arc::new(Solo { server: server.clone(), revision, instance, link, used: Mutex::new(Instant::now()) });
        let number = rand::random();
        self.solo.lock().await.insert(number, Arc::clone(&solo));
        Ok((number, solo))
    }

    /// Ends, time and again, the sessions that nobody uses any more: their processes must not wait
    /// for the next client.
    pub(in crate::gateway) async fn reap_forever(&self, gateway: &Gateway) {
        let idle = gateway.config.idle_timeout;
        let every = (idle / 4).clamp(Duration::from_millis(100), Duration::from_secs(30));
        loop {
            tokio::time::sleep(every).await;
            self.reap(gateway).await;
        }
    }

    /// Ends the sessions that nobody used for long, and those whose process is gone.
    async fn reap(&self, gateway: &Gateway) {
        let idle = gateway.config.idle_timeout;
        let old: Vec<u128> = {
            let solo = self.solo.lock().await;
            solo.iter().filter(|(_, s)| s.link.is_dead() || s.is_idle(idle)).map(|(number, _)| *number).collect()
        };
        for number in old {
            self.end(gateway, number).await;
        }
    }

    async fn end(&self, gateway: &Gateway, number: u128) {
        let Some(solo) = self.solo.lock().await.remove(&number) else { return };
        if let Err(error) = gateway.instances.end_session(&solo.instance).await {
            tracing::warn!(%error, instance = %solo.instance, "a session's process was not ended");
        }
    }
}
