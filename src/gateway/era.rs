//! The two eras of the protocol, and how a request shows which one it belongs to.
//!
//! Legacy (2024-11-05 to 2025-11-25) begins with `initialize` and lives in a session. Modern (since
//! 2026-07-28) is stateless: each request tells its version and the client's capabilities.

use std::{collections::HashMap, sync::Mutex};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, StatusCode};
use serde_json::json;

use super::{
    message::{Kind, Message, text},
    reply::{self, Failure, VERSION},
};
use crate::names::ServerKey;

/// Revisions whose era is kept.
const MOST_KNOWN: usize = 4096;

/// Protocol versions with `initialize`, oldest first.
pub const LEGACY_VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// The newest of them.
pub const LATEST_LEGACY: &str = "2025-11-25";
/// The protocol version without sessions that the gateway translates to and from.
pub const MODERN: &str = "2026-07-28";

/// Key in `_meta`: the protocol version of a request.
pub const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// Key in `_meta`: what the client can do.
pub const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
/// Key in `_meta`: what the client is.
pub const META_CLIENT: &str = "io.modelcontextprotocol/clientInfo";
/// Key in `_meta`: which log messages a request wants.
pub const META_LOG: &str = "io.modelcontextprotocol/logLevel";
/// Key in `_meta`: what the server is.
pub const META_SERVER: &str = "io.modelcontextprotocol/serverInfo";
/// Key in `_meta`: which subscription a notification belongs to.
pub const META_SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// Header with the method of the body.
pub const METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// Header with the tool, prompt or resource that the body names.
pub const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// An era of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Era {
    /// With `initialize` and sessions.
    Legacy,
    /// Without.
    Modern,
}

/// Which era each revision of a server speaks, as far as anybody asked.
#[derive(Debug, Default)]
pub struct Eras {
    known: Mutex<HashMap<(ServerKey, String), Era>>,
}

impl Eras {
    /// What is known of a revision.
    pub fn get(&self, server: &ServerKey, revision: &str) -> Option<Era> {
        let known = self.known.lock().expect("nobody panics while holding the eras");
        known.get(&(server.clone(), revision.to_owned())).copied()
    }

    /// Keeps what was found out, or forgets it.
    pub fn set(&self, server: &ServerKey, revision: &str, era: Option<Era>) {
        let mut known = self.known.lock().expect("nobody panics while holding the eras");
        let key = (server.clone(), revision.to_owned());
        match era {
            Some(era) => {
                // Revisions come and go; what is still needed is soon found out again.
                if known.len() >= MOST_KNOWN {
                    known.clear();
                }
                known.insert(key, era);
            }
            None => drop(known.remove(&key)),
        }
    }
}

/// The era of a request.
pub fn of(headers: &HeaderMap, message: &Message<'_>) -> Era {
    let header = headers.get(VERSION).and_then(|v| v.to_str().ok());
    let method = message.method();
    if header.is_some_and(|v| LEGACY_VERSIONS.contains(&v)) {
        return Era::Legacy;
    }
    // A client that does not know the server's era yet may name the newest version that it speaks.
    let modern = method != "initialize" && header.is_some_and(|v| v >= MODERN)
        || matches!(method, "server/discover" | "subscriptions/listen")
        || message.meta(META_VERSION).is_some();
    if modern { Era::Modern } else { Era::Legacy }
}

/// Which member of the parameters the `Mcp-Name` header repeats.
pub fn named_by(method: &str) -> Option<&'static str> {
    match method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" => Some("uri"),
        "tasks/get" | "tasks/update" | "tasks/cancel" => Some("taskId"),
        _ => None,
    }
}

/// Refuses a modern request whose headers say something else than its body, for whoever decides by
/// the one must not be deceived by the other.
pub fn check_headers(headers: &HeaderMap, message: &Message<'_>) -> Result<(), Failure> {
    if message.kind() == Kind::Response {
        return Ok(());
    }
    let version = message.meta(META_VERSION).and_then(text);
    let version = version.as_deref();
    // A notification, and a request without its version, has nothing to compare with.
    let wanted = [
        (VERSION, version, message.kind() == Kind::Request),
        (METHOD, Some(message.method()), true),
        (NAME, named_by(message.method()).and_then(|name| message.param(name)).as_deref(), true),
    ]
    .map(|(name, value, required)| (name, value.map(str::to_owned), required));
    for (name, body, required) in wanted {
        let mut values = headers.get_all(&name).iter();
        let (first, more) = (values.next(), values.next());
        let header = first.map(|value| value.to_str().ok().and_then(decode).unwrap_or_default());
        match (header, body) {
            _ if more.is_some() => return mismatch(format!("the {name} header is there more than once")),
            (Some(header), Some(body)) if header != body => {
                return mismatch(format!("the {name} header says {header:?}, but the body says {body:?}"));
            }
            (None, Some(body)) if required => {
                return mismatch(format!("the {name} header is missing: the body says {body:?}, and both must agree"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn mismatch(message: String) -> Result<(), Failure> {
    Err(Failure::new(StatusCode::BAD_REQUEST, reply::HEADER_MISMATCH, message))
}

/// A header's value, which is `=?base64?…?=` where the text cannot stand in a header.
pub fn decode(value: &str) -> Option<String> {
    match value.strip_prefix("=?base64?").and_then(|v| v.strip_suffix("?=")) {
        Some(encoded) => String::from_utf8(STANDARD.decode(encoded).ok()?).ok(),
        None => Some(value.to_owned()),
    }
}

/// A text as a header's value.
pub fn encode(value: &str) -> String {
    let plain = value.bytes().all(|b| (0x20..=0x7e).contains(&b))
        && value.trim_matches([' ', '\t']) == value
        && !(value.starts_with("=?base64?") && value.ends_with("?="));
    if plain { value.to_owned() } else { format!("=?base64?{}?=", STANDARD.encode(value)) }
}

/// Refuses a modern request that the gateway must answer or translate itself when it lacks what
/// each request must tell, or is of a version that the gateway does not know.
pub fn check_meta(message: &Message<'_>) -> Result<(), Failure> {
    if message.kind() != Kind::Request {
        return Ok(());
    }
    let version = message.meta(META_VERSION).and_then(text);
    let capabilities = message.meta(META_CAPABILITIES).filter(|c| c.get().starts_with('{'));
    let (Some(version), Some(_)) = (version, capabilities) else {
        let text = format!("params._meta must have {META_VERSION} (text) and {META_CAPABILITIES} (object)");
        return Err(Failure::new(StatusCode::BAD_REQUEST, reply::INVALID_PARAMS, text));
    };
    if version == MODERN { Ok(()) } else { Err(unsupported(&version)) }
}

/// The version is not one that can be served.
pub fn unsupported(requested: &str) -> Failure {
    let mut supported = vec![MODERN];
    supported.extend(LEGACY_VERSIONS.iter().rev());
    Failure {
        data: Some(json!({"supported": supported, "requested": requested})),
        ..Failure::new(
            StatusCode::BAD_REQUEST,
            reply::UNSUPPORTED_VERSION,
            format!("protocol version {requested} is not served here"),
        )
    }
}

/// The HTTP status of a modern JSON-RPC error.
pub fn status(code: i64) -> StatusCode {
    match code {
        -32022..=-32020 => StatusCode::BAD_REQUEST,
        -32601 => StatusCode::NOT_FOUND,
        _ => StatusCode::OK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    fn call(meta: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"é","_meta":{meta}}}}}"#)
    }

    const META: &str =
        r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    #[test]
    fn the_era_shows_in_header_method_or_body() {
        let era =
            |pairs: &[(&'static str, &str)], body: &str| of(&headers(pairs), &Message::parse(body.as_bytes()).unwrap());
        let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        assert_eq!(era(&[], list), Era::Legacy);
        assert_eq!(era(&[("mcp-protocol-version", "2025-11-25")], &call(META)), Era::Legacy);
        assert_eq!(era(&[("mcp-protocol-version", "2026-07-28")], list), Era::Modern);
        assert_eq!(era(&[("mcp-protocol-version", "2027-01-01")], list), Era::Modern);
        assert_eq!(era(&[], &call(META)), Era::Modern);
        assert_eq!(era(&[], &list.replace("tools/list", "server/discover")), Era::Modern);
        assert_eq!(
            era(&[("mcp-protocol-version", "2026-07-28")], &list.replace("tools/list", "initialize")),
            Era::Legacy
        );
    }

    #[test]
    fn headers_must_say_what_the_body_says() {
        let body = call(META);
        let message = Message::parse(body.as_bytes()).unwrap();
        let all =
            [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "tools/call"), ("mcp-name", "=?base64?w6k=?=")];
        assert!(check_headers(&headers(&all), &message).is_ok());
        for index in 0..3 {
            let mut less = all.to_vec();
            less.remove(index);
            assert_eq!(check_headers(&headers(&less), &message).unwrap_err().code, -32020, "without {:?}", all[index]);
            let mut wrong = all;
            wrong[index].1 = "other";
            assert_eq!(check_headers(&headers(&wrong), &message).unwrap_err().code, -32020, "wrong {:?}", all[index]);
        }
        let mut twice = headers(&all);
        twice.append("mcp-method", "tools/list".parse().unwrap());
        assert_eq!(check_headers(&twice, &message).unwrap_err().code, -32020);
    }

    #[test]
    fn any_text_travels_in_a_header() {
        for text in ["", "plain", " led", "é", "a\nb", "=?base64?x?="] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text));
            assert!(http::HeaderValue::from_str(&encode(text)).is_ok());
        }
        assert_eq!(decode("=?base64?w6?="), None, "wrong padding");
    }

    #[test]
    fn a_request_must_tell_its_version_and_capabilities() {
        let code = |meta: &str| {
            let body = call(meta);
            check_meta(&Message::parse(body.as_bytes()).unwrap()).map_err(|f| f.code)
        };
        assert_eq!(code(META), Ok(()));
        assert_eq!(code("{}"), Err(-32602));
        assert_eq!(code(&META.replace("{}", "1")), Err(-32602));
        assert_eq!(code(&META.replace("2026-07-28", "1999-01-01")), Err(-32022));
    }
}
