//! What users say about a server: `POST /{namespace}/{name}/feedback` with `{"satisfied": false}`.
//!
//! It counts for the revision that the release of the server gives this user now, in the user's cell,
//! so that one person cannot decide a release however often they answer. Nothing else is kept of it.

use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{
    access,
    handler::{Call, Gateway, check_media_types},
    message::Message,
    reply::{self, Body, Failure},
};

/// What access rules and limits see of it.
const MESSAGE: &[u8] = br#"{"jsonrpc":"2.0","id":0,"method":"feedback"}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Feedback {
    satisfied: bool,
}

/// Takes what a user says, and answers for whom it counted.
pub fn take(gateway: &Gateway, call: &Call) -> Result<Response<Body>, Failure> {
    check_media_types(&call.parts.headers)?;
    // A list of its fields would do for a reader of structs.
    let object = Some(&call.body).filter(|body| body.trim_ascii_start().starts_with(b"{"));
    let feedback = object.and_then(|body| serde_json::from_slice::<Feedback>(body).ok()).ok_or_else(|| {
        let message = r#"send {"satisfied": true} or {"satisfied": false}"#;
        Failure::new(StatusCode::BAD_REQUEST, reply::INVALID_REQUEST, message)
    })?;
    access::check(call, &Message::parse(MESSAGE).unwrap_or_default())?;
    let counted = gateway.side_of(call);
    if let Some((_, seat, counters)) = &counted {
        counters.judge(*seat, feedback.satisfied);
    }
    let answer = match counted {
        Some((revision, ..)) => json!({"counted": true, "revision": revision.0}),
        None => json!({"counted": false, "message": "no release of the server is under way"}),
    };
    Ok(reply::json(StatusCode::ACCEPTED, answer.to_string()))
}
