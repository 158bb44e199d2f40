//! What the API server counted: requests by verb and resource.

use std::collections::BTreeMap;

/// Resources that the operator works with, but for its Lease.
const RESOURCES: [&str; 11] = [
    "mcpservers",
    "canaryreleases",
    "deployments",
    "services",
    "serviceaccounts",
    "networkpolicies",
    "poddisruptionbudgets",
    "horizontalpodautoscalers",
    "controllerrevisions",
    "events",
    "pods",
];

/// Requests so far, by verb and resource. Watches are counted when they end, and left out.
pub type Requests = BTreeMap<(String, String), u64>;

/// Asks the API server.
pub async fn requests(client: &kube::Client) -> Requests {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    parse(&client.request_text(request).await.unwrap())
}

/// Reads `apiserver_request_total`.
fn parse(metrics: &str) -> Requests {
    let mut all = Requests::new();
    for line in metrics.lines() {
        let Some((labels, count)) =
            line.strip_prefix("apiserver_request_total{").and_then(|rest| rest.rsplit_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
            labels[start..].split('"').next()
        };
        let (verb, resource) = (label("verb").unwrap_or_default(), label("resource").unwrap_or_default());
        let sub = label("subresource").filter(|s| !s.is_empty()).map(|s| format!("/{s}")).unwrap_or_default();
        if verb != "WATCH" && RESOURCES.contains(&resource) {
            let count: f64 = count.parse().unwrap();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
            let count = count as u64;
            *all.entry((verb.to_owned(), format!("{resource}{sub}"))).or_default() += count;
        }
    }
    all
}

/// What came between two looks.
pub fn between(before: &Requests, after: &Requests) -> Requests {
    let grown = |(key, count): (&(String, String), &u64)| {
        let more = count - before.get(key).copied().unwrap_or(0);
        (more > 0).then(|| (key.clone(), more))
    };
    after.iter().filter_map(grown).collect()
}

/// Whether a request changes something.
pub fn is_write(verb: &str) -> bool {
    matches!(verb, "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE" | "DELETECOLLECTION")
}
