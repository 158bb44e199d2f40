//! Whether a call belongs to a trace: W3C Trace Context, which MCP carries in `_meta` and HTTP in a
//! header. Either passes the gateway as it is.

use http::HeaderMap;

use super::Message;
use crate::gateway::message::text;

const NAME: &str = "traceparent";

/// Whether a call brings a trace context that its server can go on with.
pub fn is_there(headers: &HeaderMap, message: &Message<'_>) -> bool {
    let header = headers.get(NAME).and_then(|value| value.to_str().ok());
    header.is_some_and(is_sound) || message.meta(NAME).and_then(text).is_some_and(|value| is_sound(&value))
}

/// Whether a text is a `traceparent`: version, trace, span and flags, of which neither trace nor span
/// is zero. A later version may have more to say.
fn is_sound(value: &str) -> bool {
    let mut parts = value.split('-');
    let mut hex = |length: usize| {
        let part = parts.next().unwrap_or_default();
        let is_hex = part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then_some(part)
    };
    let (Some(version), Some(trace), Some(span), Some(_)) = (hex(2), hex(32), hex(16), hex(2)) else { return false };
    let is_zero = |part: &str| part.bytes().all(|b| b == b'0');
    version != "ff" && !is_zero(trace) && !is_zero(span) && (version != "00" || parts.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn a_trace_context_is_one_by_its_form() {
        assert!(is_sound(&format!("00-{TRACE}-b7ad6b7169203331-01")));
        assert!(is_sound(&format!("cc-{TRACE}-b7ad6b7169203331-01-what-comes-later")));
        for bad in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-b7ad6b7169203331"),
            format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            format!("ff-{TRACE}-b7ad6b7169203331-01"),
            format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
        ] {
            assert!(!is_sound(&bad), "{bad}");
        }
    }

    #[test]
    fn it_is_in_the_header_or_in_the_message() {
        let good = format!("00-{TRACE}-b7ad6b7169203331-01");
        let body =
            |meta: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"_meta":{meta}}}}}"#);
        let found = |headers: &HeaderMap, body: &str| is_there(headers, &Message::parse(body.as_bytes()).unwrap());
        let mut headers = HeaderMap::new();
        assert!(!found(&headers, &body("{}")));
        assert!(found(&headers, &body(&format!(r#"{{"traceparent":"{good}"}}"#))));
        assert!(!found(&headers, &body(r#"{"traceparent":7}"#)));
        headers.insert(NAME, good.parse().unwrap());
        assert!(found(&headers, &body("{}")));
    }
}
