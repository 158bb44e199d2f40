//! Reads a server's list, page by page.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{json, value::RawValue};

use super::{DEFAULT_TTL, Item, Key, List};
use crate::{
    gateway::{
        era::{Era, META_CAPABILITIES, META_CLIENT, META_VERSION, MODERN},
        handler::Gateway,
        message::{self, Message, member, object, raw, text},
        reply,
        toolbox::member as server,
    },
    routing::{Route, Upstream},
};

/// Pages that are read.
const MOST_PAGES: usize = 100;
/// Longest time for which a server may say that its list is good.
const LONGEST_TTL: Duration = Duration::from_secs(3600);

/// `_meta` of a request of the gateway itself, in the name of clients that can do `capabilities`.
pub fn meta(capabilities: &str) -> Box<RawValue> {
    let capabilities = RawValue::from_string(capabilities.to_owned()).unwrap_or_else(|_| object());
    let client = json!({"name": "perch", "version": env!("CARGO_PKG_VERSION")});
    raw(json!({META_VERSION: MODERN, META_CAPABILITIES: capabilities, META_CLIENT: client}))
}

/// The list of a revision of a server.
pub async fn read(gateway: &Arc<Gateway>, key: &Key, route: &Arc<Route>) -> Result<List, String> {
    let (mut items, mut size, mut ttl) = (Vec::<Item>::new(), 0, None::<Duration>);
    let mut cursor: Option<Box<RawValue>> = None;
    for _ in 0..MOST_PAGES {
        let params = match &cursor {
            Some(cursor) => raw(json!({"cursor": cursor, "_meta": meta(&key.capabilities)})),
            None => raw(json!({"_meta": meta(&key.capabilities)})),
        };
        let request = message::request(Some(&raw("perch-list")), key.kind.method(), Some(&params));
        let answer = server::ask(gateway, server::own(Arc::clone(route), &key.revision, &request)).await?;
        let page = Message::parse(&answer).ok_or("it answered with no JSON-RPC message")?;
        let Some(result) = page.result else {
            // It has nothing of the kind.
            if page.error_code() == Some(i64::from(reply::NO_METHOD)) {
                break;
            }
            let why = page.error.and_then(|e| member(e, "message")).and_then(text).unwrap_or_default();
            return Err(why.into_owned());
        };
        let list = member(result, key.kind.member()).and_then(|l| serde_json::from_str::<Vec<&RawValue>>(l.get()).ok());
        let list = list.ok_or_else(|| format!("its answer to {} has no {}", key.kind.method(), key.kind.member()))?;
        size += result.get().len();
        if size > gateway.config.line_limit {
            return Err(format!("its {} are larger than {} bytes", key.kind.member(), gateway.config.line_limit));
        }
        let named = list.into_iter().filter_map(|item| {
            let id = member(item, key.kind.id()).and_then(text)?.into_owned();
            Some(Item { id, raw: item.to_owned() })
        });
        items.extend(named);
        let said = member(result, "ttlMs").and_then(|ttl| ttl.get().parse().ok()).map(Duration::from_millis);
        ttl = [ttl, said].into_iter().flatten().min();
        let next = member(result, "nextCursor").filter(|next| next.get() != "null").map(ToOwned::to_owned);
        // A server that gives the same page for ever gives it once.
        if next.is_none() || next.as_deref().map(RawValue::get) == cursor.as_deref().map(RawValue::get) {
            break;
        }
        cursor = next;
    }
    // Of a legacy server's list the gateway itself says that it is good for no time: it listens.
    let ttl = ttl.filter(|_| era(gateway, key, route) == Some(Era::Modern)).unwrap_or(DEFAULT_TTL);
    let mut hasher = DefaultHasher::new();
    for item in &items {
        item.raw.get().hash(&mut hasher);
    }
    Ok(List { items, digest: hasher.finish(), good_until: Instant::now() + ttl.min(LONGEST_TTL) })
}

fn era(gateway: &Gateway, key: &Key, route: &Route) -> Option<Era> {
    match &route.upstream {
        Upstream::Remote(url) => gateway.eras.get(&key.server, &url.parse::<http::Uri>().ok()?.to_string()),
        _ => gateway.eras.get(&key.server, &key.revision),
    }
}
