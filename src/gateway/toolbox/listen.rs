//! `subscriptions/listen` at a toolbox: told are changes of what this client would be shown.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use http::Response;
use serde_json::{Map, Value, json, value::RawValue};
use tokio::sync::{broadcast::error::RecvError, mpsc};

use super::{
    capabilities,
    catalog::{self, Kind, Known},
    member,
};
use crate::{
    gateway::{
        era::META_SUBSCRIPTION,
        handler::{Call, Gateway},
        message::{self, Entries, Message, object, raw, with_member},
        peer::Messages,
        reply::{self, Body},
    },
    names::ServerKey,
    routing::{Toolbox, Upstream},
};

/// Time between two looks when no change was told.
const LOOK: Duration = Duration::from_secs(1);
/// Changes within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(20);
/// Messages that wait for a slow client.
const WAITING: usize = 64;
/// Most resources that one client may watch.
const MOST_URIS: usize = 256;

/// What each notification is about.
const NOTIFICATIONS: [(&str, &str, &[Kind]); 3] = [
    ("toolsListChanged", "notifications/tools/list_changed", &[Kind::Tools]),
    ("promptsListChanged", "notifications/prompts/list_changed", &[Kind::Prompts]),
    ("resourcesListChanged", "notifications/resources/list_changed", &[Kind::Resources, Kind::Templates]),
];

/// What a client would be shown: by server the names in use, the revision, and what its lists are.
type View = BTreeMap<ServerKey, (String, Option<(String, [Known; 4])>)>;

/// Answers `subscriptions/listen`.
pub fn listen(gateway: &Arc<Gateway>, call: &Call, message: &Message<'_>) -> Response<Body> {
    let id = message.id.map_or_else(object, ToOwned::to_owned);
    let filter = message.param_raw("notifications");
    let wants = |name: &str| filter.and_then(|f| message::member(f, name)).is_some_and(|value| value.get() == "true");
    let wanted: Vec<_> = NOTIFICATIONS.into_iter().filter(|(name, ..)| wants(name)).collect();
    let uris = filter.and_then(|f| message::member(f, "resourceSubscriptions"));
    let mut uris: Vec<String> = uris.and_then(|uris| serde_json::from_str(uris.get()).ok()).unwrap_or_default();
    uris.truncate(MOST_URIS);
    let mut granted: Map<String, Value> = wanted.iter().map(|(name, ..)| ((*name).to_owned(), true.into())).collect();
    if !uris.is_empty() {
        granted.insert("resourceSubscriptions".into(), uris.clone().into());
    }
    let acknowledged = raw(json!({"_meta": {META_SUBSCRIPTION: id}, "notifications": granted}));
    let acknowledged = message::request(None, "notifications/subscriptions/acknowledged", Some(&acknowledged));
    let (sender, receiver) = mpsc::channel(WAITING);
    let listener = Listener {
        gateway: Arc::clone(gateway),
        capabilities: capabilities(message),
        call: call.clone(),
        wanted,
        id: id.clone(),
        sender,
    };
    let view = listener.view();
    tokio::spawn(async move {
        let updates = listener.updates(&uris).await;
        listener.run(view, updates).await;
    });
    let messages = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let end = raw(json!({"resultType": "complete", "_meta": {META_SUBSCRIPTION: id}}));
    let end = Bytes::from(message::result(Some(&id), &end));
    let closing = gateway.shutdown.clone().cancelled_owned();
    let events = stream::once(async move { acknowledged.into() })
        .chain(messages.take_until(closing))
        .chain(stream::once(async move { end }));
    reply::events(events)
}

struct Listener {
    gateway: Arc<Gateway>,
    call: Call,
    capabilities: Arc<str>,
    wanted: Vec<(&'static str, &'static str, &'static [Kind])>,
    id: Box<RawValue>,
    sender: mpsc::Sender<Bytes>,
}

impl Listener {
    fn toolbox(&self) -> Option<Arc<Toolbox>> {
        let table = self.gateway.table.load();
        match &table.find(&self.call.route.server)?.upstream {
            Upstream::Toolbox(toolbox) => Some(Arc::clone(toolbox)),
            _ => None,
        }
    }

    fn view(&self) -> View {
        let Some(toolbox) = self.toolbox() else { return View::default() };
        let shown = |server: &ServerKey| catalog::seen(&self.gateway, &self.call, server, &self.capabilities);
        let members = toolbox.members.iter();
        members.map(|m| (m.server.clone(), (format!("{:?} {m:?}", toolbox.policy), shown(&m.server)))).collect()
    }

    /// Tells of changes until the client is gone, or the toolbox.
    async fn run(self, mut before: View, mut updates: Messages) {
        let mut news = self.gateway.toolboxes.catalog.news();
        let mut changes = self.gateway.instances.changes();
        let mut generation = self.gateway.table.load().generation();
        loop {
            tokio::select! {
                () = self.sender.closed() => return,
                () = self.gateway.shutdown.cancelled() => return,
                Ok(()) = news.changed() => {}
                change = changes.recv() => if matches!(change, Err(RecvError::Closed)) {
                    tokio::time::sleep(LOOK).await;
                },
                Some(update) = updates.next() => {
                    if self.sender.send(update).await.is_err() {
                        return;
                    }
                    continue;
                }
                () = tokio::time::sleep(LOOK) => {
                    let now = self.gateway.table.load().generation();
                    if std::mem::replace(&mut generation, now) == now {
                        continue;
                    }
                }
            }
            // What happens at once is looked at once.
            tokio::time::sleep(TOGETHER).await;
            if self.toolbox().is_none() {
                return;
            }
            let after = self.view();
            for (_, method, kinds) in &self.wanted {
                if kinds.iter().any(|kind| differs(&before, &after, *kind)) {
                    let params = raw(json!({"_meta": {META_SUBSCRIPTION: self.id}}));
                    let told = self.sender.send(message::request(None, method, Some(&params)).into());
                    if told.await.is_err() {
                        return;
                    }
                }
            }
            before = after;
        }
    }

    /// What servers say of resources that the client watches.
    async fn updates(&self, uris: &[String]) -> Messages {
        let Some(toolbox) = self.toolbox().filter(|_| !uris.is_empty()) else { return stream::pending().boxed() };
        let body = self.call.body.clone();
        let message = Message::parse(&body).unwrap_or_default();
        let mut by_server: BTreeMap<ServerKey, (String, Vec<String>)> = BTreeMap::new();
        for uri in uris {
            if let Ok((server, own)) =
                super::owner(&self.gateway, &self.call, &message, &toolbox, Kind::Resources, uri).await
            {
                let entry = by_server.entry(server.server.clone());
                entry.or_insert_with(|| (server.uri_prefix.clone(), Vec::new())).1.push(own.to_owned());
            }
        }
        let mut all = Vec::new();
        for (server, (prefix, uris)) in by_server {
            let empty = object();
            let mut params = Entries::of(message.params.unwrap_or(&empty));
            params.set("notifications", raw(json!({"resourceSubscriptions": uris})));
            let request = message.line(None, Some(&params.raw()));
            if let Some(call) = member::enter(&self.gateway, &self.call, &server, &request) {
                all.push(heard(&self.gateway, call, prefix, self.id.clone()));
            }
        }
        // A server that has no more to say is no end of the others.
        stream::select_all(all).chain(stream::pending()).boxed()
    }
}

/// What a server says of its resources, as the client knows them.
fn heard(gateway: &Arc<Gateway>, call: Call, prefix: String, id: Box<RawValue>) -> Messages {
    let limit = gateway.config.line_limit;
    let answer = member::forward(gateway, call);
    let messages = answer.then(move |response| member::messages(response, limit));
    let messages =
        stream::once(messages.map(|messages| messages.unwrap_or_else(|_| stream::empty().boxed()))).flatten();
    messages.filter_map(move |bytes| std::future::ready(outward(&bytes, &prefix, &id))).boxed()
}

/// An update of a resource as the client knows it.
fn outward(bytes: &[u8], prefix: &str, id: &RawValue) -> Option<Bytes> {
    let message = Message::parse(bytes).filter(|m| m.method() == "notifications/resources/updated")?;
    let uri = format!("{prefix}{}", message.param("uri")?);
    let params = with_member(message.params?, &["uri"], &raw(uri))?;
    let mut params = Entries::of(&params);
    params.set("_meta", raw(json!({META_SUBSCRIPTION: id})));
    Some(message::request(None, message.method(), Some(&params.raw())).into())
}

/// Whether a client would be shown something else. What nobody had asked for before cannot have
/// changed.
fn differs(before: &View, after: &View, kind: Kind) -> bool {
    let index = Kind::ALL.iter().position(|k| *k == kind).unwrap_or_default();
    before.len() != after.len()
        || before.iter().zip(after).any(|(a, b)| {
            let (((server, (names, seen)), (server_now, (names_now, seen_now))), index) = ((a, b), index);
            server != server_now
                || names != names_now
                || match (seen, seen_now) {
                    (Some((revision, known)), Some((revision_now, known_now))) => {
                        revision != revision_now || known[index] != Known::Unasked && known[index] != known_now[index]
                    }
                    (seen, seen_now) => seen.is_some() != seen_now.is_some(),
                }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(servers: &[(&str, Option<(&str, Known)>)]) -> View {
        let shown = |(name, seen): &(&str, Option<(&str, Known)>)| {
            let seen = seen.map(|(revision, known)| (revision.to_owned(), [known; 4]));
            (ServerKey::new("default", *name), (String::new(), seen))
        };
        servers.iter().map(shown).collect()
    }

    #[test]
    fn a_change_is_one_of_what_the_client_would_be_shown() {
        let before = view(&[("a", Some(("a-1", Known::List(1)))), ("b", None)]);
        for (expected, after) in [
            (false, vec![("a", Some(("a-1", Known::List(1)))), ("b", None)]),
            (true, vec![("a", Some(("a-1", Known::List(2)))), ("b", None)]),
            (true, vec![("a", Some(("a-1", Known::Failed))), ("b", None)]),
            (true, vec![("a", Some(("a-2", Known::Unasked))), ("b", None)]),
            (true, vec![("a", None), ("b", None)]),
            (true, vec![("a", Some(("a-1", Known::List(1)))), ("b", Some(("b-1", Known::Unasked)))]),
            (true, vec![("a", Some(("a-1", Known::List(1))))]),
        ] {
            assert_eq!(differs(&before, &view(&after), Kind::Tools), expected, "{after:?}");
        }
        let unasked = view(&[("a", Some(("a-1", Known::Unasked)))]);
        assert!(!differs(&unasked, &view(&[("a", Some(("a-1", Known::List(1))))]), Kind::Tools), "its own first list");
    }

    #[test]
    fn an_update_names_what_the_client_knows() {
        let said = br#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"memo://x","k":1}}"#;
        let told = String::from_utf8(outward(said, "a+", &raw("id")).unwrap().to_vec()).unwrap();
        assert!(
            told.contains(r#""uri":"a+memo://x""#) && told.contains(r#""k":1"#) && told.contains(META_SUBSCRIPTION),
            "{told}"
        );
        assert_eq!(
            outward(br#"{"jsonrpc":"2.0","method":"notifications/message","params":{"uri":"x"}}"#, "a+", &raw(1)),
            None
        );
    }
}
