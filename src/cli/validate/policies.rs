//! Policies of users: whether they compile.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, api::ListParams};

use super::{
    finding::{Finding, Outcome},
    operator::unreadable,
};
use crate::{
    admission::{self, POLICY_LABEL},
    policy::{Bundle, Policies},
};

const CHECK: &str = "Policies";

/// Compiles what the ConfigMaps of a namespace hold, as whoever enforces it does.
pub async fn check(client: &Client, namespace: &str) -> Vec<Finding> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match api.list(&ListParams::default().labels(&format!("{POLICY_LABEL}=true"))).await {
        Err(error) => vec![unreadable(CHECK, namespace, &error)],
        Ok(maps) => {
            let bundles: Vec<Bundle> = maps.items.iter().map(|map| admission::bundle(namespace, map)).collect();
            judge(namespace, &bundles)
        }
    }
}

/// Compiles. Pure.
fn judge(namespace: &str, bundles: &[Bundle]) -> Vec<Finding> {
    let policies = Policies::new(bundles);
    if policies.refused().is_empty() {
        let message = format!("the shipped policies and {} bundles of yours compile", bundles.len());
        return vec![Finding::new(CHECK, namespace, Outcome::Pass, "Compiled", message)];
    }
    let refused = policies.refused().iter();
    refused.map(|error| Finding::new(CHECK, &*error.place, Outcome::Fail, "Refused", error.message.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::File;

    #[test]
    fn what_does_not_compile_is_named_by_its_line() {
        let bundle = |text: &str| {
            vec![Bundle { name: "team/b".into(), files: vec![File { name: "a.rego".into(), text: text.into() }] }]
        };
        assert_eq!(judge("team", &[])[0].result, Outcome::Pass);
        let good =
            judge("team", &bundle("package t\nviolation contains {\"rule\": \"r\", \"message\": \"m\"} if false"));
        assert_eq!((good[0].result, good[0].reason.as_str()), (Outcome::Pass, "Compiled"));
        let bad = judge("team", &bundle("package t\nviolation contains {"));
        assert_eq!((bad[0].result, bad[0].reason.as_str()), (Outcome::Fail, "Refused"));
        assert!(bad[0].subject.starts_with("team/b/a.rego:"), "{}", bad[0].subject);
    }
}
