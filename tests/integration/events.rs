//! Streams of server-sent events, as a client reads them.

use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use crate::support::PATIENCE;

/// Opens a stream and gives its messages as they come, until `act` has seen enough.
pub fn events(method: &str, url: &str, headers: &[(&str, &str)], body: &str, mut act: impl FnMut(&Value) -> bool) {
    let request = headers.iter().fold(http::Request::builder().method(method).uri(url), |r, (k, v)| r.header(*k, *v));
    let request = request
        .header("Content-Type", "application/json")
        .header("Accept", "application/json, text/event-stream")
        .body(Full::new(bytes::Bytes::from(body.to_owned())))
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let read = async {
        let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
        let mut response = client.request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut text = String::new();
        loop {
            let frame = response.body_mut().frame().await.expect("the stream goes on").unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some((line, rest)) = text.split_once('\n').map(|(l, r)| (l.to_owned(), r.to_owned())) {
                text = rest;
                let Some(data) = line.strip_prefix("data: ").filter(|d| !d.is_empty()) else { continue };
                // An old client hears on its stream where to send its messages, which is no JSON.
                if act(&serde_json::from_str(data).unwrap_or_else(|_| json!(data))) {
                    return;
                }
            }
        }
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, read).await.expect("the events come") });
}
