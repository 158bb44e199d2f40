//! Requests for a server that comes to its end: every answer says so (RFC 9745, RFC 8594), and those
//! users who are no longer served hear why, and what to use instead.
//!
//! Chosen are users, or addresses where nobody is known by name. Sessions are not: whoever is refused
//! could begin another. What is under way ends well: only new requests are refused.

use std::net::SocketAddr;

use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822, tz::TimeZone};
use serde_json::json;

use super::{
    access,
    handler::Call,
    listen::Peer,
    reply::{self, Body, Failure},
    toolbox,
};
use crate::routing::{Notice, Subject};

/// RFC 9745: since when a resource is deprecated.
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
/// RFC 8594: when a resource is likely to be no more.
const SUNSET: HeaderName = HeaderName::from_static("sunset");
/// `data.reason` of an error: the server comes to its end, or has come.
const REASON: &str = "Decommissioned";

/// Refuses a request whose sender is no longer served. `begins` says that it asks for something new.
///
/// # Errors
/// With 410 and the whole story.
pub fn check(call: &Call, begins: bool) -> Result<(), Failure> {
    let Some(notice) = call.route.notice.as_deref() else { return Ok(()) };
    let ends = !begins || call.parts.method == Method::DELETE;
    if !notice.stopped && (ends || is_own(call)) {
        return Ok(());
    }
    let subject = Subject {
        user: (!call.principal.0.is_empty()).then_some(&*call.principal.0),
        address: call.parts.extensions.get::<Peer>().map(|peer: &Peer| SocketAddr::ip(&peer.0)),
        ..Subject::default()
    };
    if notice.serves(&subject) { Ok(()) } else { Err(refused(call, notice)) }
}

/// Whether Perch itself asks: a probe, or a toolbox that wants to know what there is. Where nobody is
/// asked for a name, both are known by the revision that they ask for.
fn is_own(call: &Call) -> bool {
    let pinned = access::is_anonymous(&call.parts) && call.revision.is_some();
    pinned || access::is_operator(&call.parts) || toolbox::is_own(call)
}

fn refused(call: &Call, notice: &Notice) -> Failure {
    let (server, reason) = (&call.route.server, &notice.reason);
    let end = notice.stops_at.to_zoned(TimeZone::UTC).date();
    let when = if notice.stopped {
        format!("was stopped for good on {end}")
    } else {
        format!("comes to its end on {end} and no longer serves you")
    };
    let instead = notice.replacement.as_ref().map(|other| format!("; use {other} instead")).unwrap_or_default();
    let message = format!("server {server} {when}: {reason}{instead}");
    let data = json!({
        "reason": REASON,
        "message": reason,
        "replacement": notice.replacement,
        "since": notice.since.to_string(),
        "stopsAt": notice.stops_at.to_string(),
    });
    Failure { data: Some(data), ..Failure::new(StatusCode::GONE, reply::UNAVAILABLE, message) }
}

/// Puts the notice on an answer.
pub fn tell(notice: &Notice, response: &mut Response<Body>) {
    let headers = response.headers_mut();
    // A date of structured fields is @ and the seconds, RFC 9651.
    if let Ok(value) = HeaderValue::from_str(&format!("@{}", notice.since.as_second())) {
        headers.insert(DEPRECATION, value);
    }
    if let Some(value) = http_date(notice.stops_at) {
        headers.insert(SUNSET, value);
    }
    let url =
        notice.replacement.as_deref().filter(|other| other.starts_with("http://") || other.starts_with("https://"));
    let link =
        url.filter(|url| !url.contains(['<', '>', ' '])).map(|url| format!("<{url}>; rel=\"successor-version\""));
    if let Some(value) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        headers.append(header::LINK, value);
    }
}

/// A date as HTTP has it, RFC 9110: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(at: Timestamp) -> Option<HeaderValue> {
    let text = rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).ok()?;
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::mcp_server::McpServer;

    fn notice(replacement: &str) -> Notice {
        let server: McpServer = serde_json::from_value(json!({
            "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a", "namespace": "n"},
            "spec": {"image": "x", "decommission": {"reason": "too old", "replacement": replacement}},
            "status": {"decommission": {
                "since": "2026-01-01T00:00:00Z", "phase": "Noticed", "percentage": 100,
                "reducesAt": "2026-01-31T00:00:00Z", "stopsAt": "2026-02-07T00:00:00Z", "removesAt": "2026-03-09T00:00:00Z"}},
        }))
        .unwrap();
        Notice::of(&server).unwrap()
    }

    #[test]
    fn an_answer_says_since_when_until_when_and_what_instead() {
        let of = |replacement: &str| {
            let mut response = reply::empty(StatusCode::OK);
            tell(&notice(replacement), &mut response);
            let headers = response.headers().clone();
            ["deprecation", "sunset", "link"]
                .map(|name| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default())
        };
        let [deprecation, sunset, link] = of("https://new.example/mcp");
        assert_eq!(deprecation, "@1767225600");
        assert_eq!(sunset, "Sat, 07 Feb 2026 00:00:00 GMT");
        assert_eq!(link, "<https://new.example/mcp>; rel=\"successor-version\"");
        for no_url in ["search-v2", "https://x>; rel=\"evil"] {
            assert_eq!(of(no_url)[2], "", "{no_url}");
        }
    }
}
