//! Names and labels of what belongs to a server.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::{names::ServerKey, runtime::Workload};

/// Names the server on everything that belongs to it.
pub const SERVER: &str = "perch.dev/server";
/// The whole name of the server, where a label would be too short for it.
pub const SERVER_NAME: &str = "perch.dev/server-name";
/// Annotation of pods: the revision that they run.
pub const REVISION: &str = "perch.dev/revision";
/// Annotation of pods: port and path of the MCP endpoint, `3000/mcp`.
pub const ENDPOINT: &str = "perch.dev/endpoint";
/// Label of pods that still install their package and may reach its registry.
pub const INSTALLING: &str = "perch.dev/installing";
/// Label of the pods of an egress proxy, with the name of its server. They have no [`SERVER`]: they are none.
pub const EGRESS_PROXY: &str = "perch.dev/egress-proxy";
/// Annotation: digest of what was applied, so that what is no longer wanted is pruned.
pub const APPLIED: &str = "perch.dev/applied";
/// Says who made an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const PERCH: &str = "perch";
/// Longest part of a name that is kept as it is: room for prefix and suffixes within 63.
const LONGEST: usize = 48;

/// Name of the Deployment, Service and so on of a server. Always a DNS label (RFC 1035).
pub fn object_name(server: &str) -> String {
    format!("mcp-{}", short(server))
}

/// Name of the Deployment and so on of the egress proxy of a server.
pub fn egress_name(server: &str) -> String {
    format!("{}-egress", object_name(server))
}

/// Name of the Secret with what was fetched for a server.
pub fn credentials_secret(server: &str) -> String {
    format!("{}-credentials", object_name(server))
}

/// Value of the label [`SERVER`]: the name, where a label value can hold it.
pub fn label_value(server: &str) -> String {
    if server.len() <= 63 { server.to_owned() } else { short(server) }
}

fn short(server: &str) -> String {
    if server.len() <= LONGEST && !server.contains(['.', '_']) {
        return server.to_owned();
    }
    let digest = format!("{:x}", Sha256::digest(server));
    let start: String =
        server.chars().take(LONGEST - 9).map(|c| if matches!(c, '.' | '_') { '-' } else { c }).collect();
    format!("{}-{}", start.trim_end_matches('-'), &digest[..8])
}

/// What selects the pods of a server within its namespace. It never changes: a Deployment's
/// selector cannot.
pub fn selector(server: &ServerKey) -> BTreeMap<String, String> {
    BTreeMap::from([(SERVER.to_owned(), label_value(&server.name))])
}

/// Labels of everything that belongs to a server.
pub fn labels(workload: &Workload) -> BTreeMap<String, String> {
    let mut labels = selector(&workload.server);
    labels.insert(MANAGED_BY.to_owned(), PERCH.to_owned());
    labels.insert("app.kubernetes.io/name".to_owned(), label_value(&workload.server.name));
    labels.insert("app.kubernetes.io/component".to_owned(), "mcp-server".to_owned());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_becomes_a_dns_label() {
        let long = "a-very-long-name.with-dots.".repeat(9);
        for name in ["time", "9lives", "a.b", "x", &long] {
            let name = object_name(name);
            assert!(name.len() <= 54, "{name}");
            assert!(name.starts_with(|c: char| c.is_ascii_lowercase()), "{name}");
            assert!(!name.contains('.') && !name.ends_with('-'), "{name}");
        }
        assert_eq!(object_name("time"), "mcp-time");
        let candidate = ServerKey::new("n", "time").candidate().name;
        let name = object_name(&candidate);
        assert!(name.starts_with("mcp-time-candidate-") && !name.contains('_'), "{name}");
        assert_ne!(name, object_name("time-candidate"), "a server may be called like a candidate");
        let longest = ServerKey::new("n", "x".repeat(52)).candidate();
        assert_eq!(label_value(&longest.name), longest.name, "it fits a label");
        assert_ne!(selector(&longest), selector(&longest.declared()), "a Service finds the pods of its own key only");
        assert_ne!(object_name("a.b"), object_name("a-b"), "names that differ only in dots stay apart");
        assert!(label_value(&long).len() <= 63);
    }
}
