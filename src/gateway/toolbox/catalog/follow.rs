//! Listens to servers whose lists are in use.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde_json::json;

use super::{Catalog, Entry, IDLE, Key, Kind, read};
use crate::{
    gateway::{
        handler::Gateway,
        message::{self, Message, raw},
        reply,
        toolbox::member,
    },
    names::ServerKey,
};

/// First wait before a server is listened to again.
const AGAIN: Duration = Duration::from_millis(250);
/// Longest wait.
const SLOWEST: Duration = Duration::from_secs(30);

/// To whom the gateway listens, and in whose name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Channel {
    server: ServerKey,
    revision: String,
    capabilities: Arc<str>,
}

impl Channel {
    fn of(key: &Key) -> Self {
        Self { server: key.server.clone(), revision: key.revision.clone(), capabilities: Arc::clone(&key.capabilities) }
    }

    fn request(&self) -> Vec<u8> {
        let wanted = json!({"toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true});
        let params = raw(json!({"notifications": wanted, "_meta": read::meta(&self.capabilities)}));
        message::request(Some(&raw("perch-follow")), "subscriptions/listen", Some(&params))
    }
}

/// How listening ended.
enum Ended {
    /// The server has nothing to say, ever.
    Silent,
    /// The stream ended, or never began.
    Broken,
    /// Nobody wants to know any more.
    Unwanted,
}

impl Catalog {
    /// Listens to a server for as long as its lists are in use.
    pub(super) fn follow(&self, gateway: &Arc<Gateway>, key: &Key) {
        let channel = Channel::of(key);
        let mut followed = self.followed.lock().expect("nobody panics while holding the channels");
        if !followed.insert(channel.clone()) {
            return;
        }
        let gateway = Arc::clone(gateway);
        tokio::spawn(async move {
            tokio::select! {
                () = run(&gateway, &channel) => {}
                () = gateway.shutdown.cancelled() => {}
            }
            let mut followed =
                gateway.toolboxes.catalog.followed.lock().expect("nobody panics while holding the channels");
            followed.remove(&channel);
        });
    }

    fn of(&self, channel: &Channel) -> Vec<Arc<Entry>> {
        let entries = self.entries.lock().expect("nobody panics while holding the lists");
        entries.values().filter(|entry| Channel::of(&entry.key) == *channel).cloned().collect()
    }

    fn is_used(&self, channel: &Channel) -> bool {
        self.of(channel).iter().any(|entry| entry.lock().used.elapsed() < IDLE)
    }

    /// Asks anew for lists that changed.
    fn changed(&self, gateway: &Arc<Gateway>, channel: &Channel, kinds: &[Kind]) {
        let Some(route) = gateway.table.load().find(&channel.server).cloned() else { return };
        for entry in self.of(channel).into_iter().filter(|entry| kinds.contains(&entry.key.kind)) {
            let mut state = entry.lock();
            state.changed = true;
            if state.flying {
                // What is on its way may have been put together before the change.
                let (entry, gateway, route) = (Arc::clone(&entry), Arc::clone(gateway), Arc::clone(&route));
                let mut landed = entry.landed.subscribe();
                tokio::spawn(async move {
                    if landed.changed().await.is_ok() {
                        entry.start(&mut entry.lock(), &gateway, &route);
                    }
                });
            } else if state.used.elapsed() < IDLE {
                entry.start(&mut state, gateway, &route);
            }
        }
    }
}

async fn run(gateway: &Arc<Gateway>, channel: &Channel) {
    let catalog = &gateway.toolboxes.catalog;
    let (mut wait, mut heard) = (AGAIN, false);
    loop {
        let began = Instant::now();
        match listen(gateway, channel, &mut heard).await {
            Ended::Unwanted => return,
            Ended::Silent => {
                while catalog.is_used(channel) {
                    tokio::time::sleep(SLOWEST).await;
                }
                return;
            }
            Ended::Broken => {
                // What changes now, nobody tells.
                if began.elapsed() > AGAIN {
                    catalog.changed(gateway, channel, &Kind::ALL);
                    wait = AGAIN;
                }
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(SLOWEST);
        if !catalog.is_used(channel) {
            return;
        }
    }
}

async fn listen(gateway: &Arc<Gateway>, channel: &Channel, heard: &mut bool) -> Ended {
    let catalog = &gateway.toolboxes.catalog;
    let Some(route) = gateway.table.load().find(&channel.server).cloned() else { return Ended::Unwanted };
    let call = member::own(route, &channel.revision, &channel.request());
    let response = member::forward(gateway, call).await;
    let Ok(mut messages) = member::messages(response, gateway.config.line_limit).await else { return Ended::Broken };
    loop {
        let bytes = tokio::select! {
            bytes = messages.next() => bytes,
            () = tokio::time::sleep(SLOWEST) => {
                if catalog.is_used(channel) {
                    continue;
                }
                return Ended::Unwanted;
            }
        };
        let Some(bytes) = bytes else { return Ended::Broken };
        let Some(message) = Message::parse(&bytes) else { continue };
        match message.method() {
            "notifications/tools/list_changed" => catalog.changed(gateway, channel, &[Kind::Tools]),
            "notifications/prompts/list_changed" => catalog.changed(gateway, channel, &[Kind::Prompts]),
            "notifications/resources/list_changed" => {
                catalog.changed(gateway, channel, &[Kind::Resources, Kind::Templates]);
            }
            // What changed while nobody listened, nobody told.
            "notifications/subscriptions/acknowledged" if std::mem::replace(heard, true) => {
                catalog.changed(gateway, channel, &Kind::ALL);
            }
            "" if message.error_code() == Some(i64::from(reply::NO_METHOD)) => return Ended::Silent,
            "" => return Ended::Broken,
            _ => {}
        }
    }
}
