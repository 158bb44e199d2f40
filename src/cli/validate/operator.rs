//! The operator in a cluster: its pods, the Lease by which one leads, and the webhook that asks it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingWebhook, ValidatingWebhookConfiguration},
    coordination::v1::Lease,
    core::v1::Pod,
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PostParams},
};
use serde_json::json;

use super::finding::{Finding, Outcome};
use crate::{admission, api::mcp_server::McpServer, cli::client::explain};

/// Labels of all pods of one part of Perch, as the chart gives them.
pub const PART: &str = "app.kubernetes.io/component";
const NAME: &str = "app.kubernetes.io/name=perch";
/// Name of the Lease where nothing says another.
const LEASE: &str = "perch-operator";
/// Age at which a Lease is stale, where it does not say.
const LEASE_SECONDS: i32 = 15;
/// A Lease that looks stale is looked at again after so long: a holder renews it more often than
/// that, and the clock of this machine may be another than the holder's.
const AGAIN: Duration = Duration::from_secs(5);

/// Objects of one namespace, or of all.
fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    namespace.map_or_else(|| Api::all(client.clone()), |n| Api::namespaced(client.clone(), n))
}

/// What cannot be read is not known, and no failure of the deployment.
pub fn unreadable(check: &'static str, subject: &str, error: &kube::Error) -> Finding {
    let reason = if matches!(error, kube::Error::Api(s) if s.code == 403) { "Forbidden" } else { "Unreadable" };
    Finding::new(check, subject, Outcome::Warn, reason, format!("it cannot be read: {}", explain(error)))
}

/// The pods of the operator or of the gateway.
pub async fn pods(client: &Client, namespace: Option<&str>, part: &str) -> kube::Result<Vec<Pod>> {
    let params = ListParams::default().labels(&format!("{NAME},{PART}={part}"));
    Ok(api::<Pod>(client, namespace).list(&params).await?.items)
}

/// The value of an argument of a pod's program.
fn argument(pod: &Pod, flag: &str) -> Option<String> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut arguments = containers.flat_map(|c| c.command.iter().chain(&c.args).flatten());
    arguments.find_map(|a| a.strip_prefix(flag)?.strip_prefix('=')).map(str::to_owned)
}

/// Whether an operator works, and where its pods are.
pub async fn check(client: &Client, namespace: Option<&str>) -> (Vec<Finding>, Option<String>) {
    let mut findings = Vec::new();
    let found = match pods(client, namespace, "operator").await {
        Ok(found) => found,
        Err(error) => {
            findings.push(unreadable("Operator", "pods", &error));
            Vec::new()
        }
    };
    let first = found.first();
    let home = namespace.map(str::to_owned).or_else(|| first?.namespace());
    let name = first.and_then(|pod| argument(pod, "--lease-name")).unwrap_or_else(|| LEASE.to_owned());
    let place = first.and_then(|pod| argument(pod, "--lease-namespace")).or_else(|| home.clone());
    findings.push(lease(client, place.as_deref(), &name).await);
    (findings, home)
}

async fn lease(client: &Client, namespace: Option<&str>, name: &str) -> Finding {
    let api: Api<Lease> = api(client, namespace);
    let named = ListParams::default().fields(&format!("metadata.name={name}"));
    let read = async || Ok::<_, kube::Error>(api.list(&named).await?.items.into_iter().max_by_key(renewed));
    let first = match read().await {
        Ok(Some(lease)) => lease,
        Ok(None) => {
            let message = format!(
                "there is no Lease {name}: no operator has ever worked here; install one, or name its namespace with --perch-namespace"
            );
            return Finding::new("Operator", name, Outcome::Fail, "NoLease", message);
        }
        Err(error) => return unreadable("Operator", name, &error),
    };
    let finding = judge(&first, Timestamp::now());
    if finding.result == Outcome::Pass {
        return finding;
    }
    tokio::time::sleep(AGAIN).await;
    match read().await {
        Ok(Some(second)) if renewed(&second) > renewed(&first) => held(&second),
        _ => finding,
    }
}

fn renewed(lease: &Lease) -> Option<Timestamp> {
    Some(lease.spec.as_ref()?.renew_time.as_ref()?.0)
}

fn subject(lease: &Lease) -> String {
    format!("{}/{}", lease.namespace().unwrap_or_default(), lease.name_any())
}

fn held(lease: &Lease) -> Finding {
    let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default();
    Finding::new("Operator", subject(lease), Outcome::Pass, "Leading", format!("{holder} leads"))
}

/// What a Lease says. Pure.
fn judge(lease: &Lease, now: Timestamp) -> Finding {
    let fail = |reason: &str, message: String| Finding::new("Operator", subject(lease), Outcome::Fail, reason, message);
    let spec = lease.spec.clone().unwrap_or_default();
    if spec.holder_identity.as_deref().unwrap_or_default().is_empty() {
        return fail("NotLeading", "nobody holds the Lease: no operator works; see the operator's pods".to_owned());
    }
    let patience = SignedDuration::from_secs(spec.lease_duration_seconds.unwrap_or(LEASE_SECONDS).into());
    match renewed(lease).map(|at| now.duration_since(at)) {
        Some(age) if age <= patience => held(lease),
        age => {
            let age = age.map_or_else(|| "never".to_owned(), |age| format!("{} s ago", age.as_secs()));
            fail("NotLeading", format!("the Lease was last renewed {age}: no operator works; see the operator's pods"))
        }
    }
}

/// Whether API servers can ask the webhook, where there is one.
pub async fn webhook(client: &Client, namespace: Option<&str>) -> Vec<Finding> {
    const CHECK: &str = "Webhook";
    let all: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let found = match all.list(&ListParams::default()).await {
        Ok(found) => found.items,
        Err(error) => return vec![unreadable(CHECK, "webhooks", &error)],
    };
    let mut findings = Vec::new();
    for configuration in found {
        let name = configuration.name_any();
        for hook in configuration.webhooks.iter().flatten().filter(|hook| hook.name == admission::NAME) {
            findings.push(match configured(hook) {
                Err(finding) => Finding { subject: name.clone(), ..finding },
                Ok(service) => reach(client, &name, service).await,
            });
        }
    }
    if findings.is_empty() {
        return vec![Finding::new(
            CHECK,
            "webhooks",
            Outcome::Skip,
            "NotInstalled",
            "no webhook of Perch is installed",
        )];
    }
    findings.push(try_it(client, namespace.unwrap_or("default")).await);
    findings
}

/// The Service of a webhook, or what is wrong about it. Pure.
fn configured(hook: &ValidatingWebhook) -> Result<Option<(String, String)>, Finding> {
    let config = &hook.client_config;
    if config.ca_bundle.as_ref().is_none_or(|bundle| bundle.0.is_empty()) {
        let message =
            "API servers do not know whom to trust: caBundle is empty; the operator, or cert-manager, puts it there";
        return Err(Finding::new("Webhook", "", Outcome::Fail, "NoAuthority", message));
    }
    Ok(config.service.as_ref().map(|service| (service.namespace.clone(), service.name.clone())))
}

async fn reach(client: &Client, name: &str, service: Option<(String, String)>) -> Finding {
    let Some((namespace, service)) = service else {
        return Finding::new("Webhook", name, Outcome::Pass, "Configured", "it is reached by its URL");
    };
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &namespace);
    let params = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    match api.list(&params).await {
        Err(error) => unreadable("Webhook", name, &error),
        Ok(slices) => {
            let endpoints = slices.items.iter().flat_map(|slice| slice.endpoints.iter().flatten());
            let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)).count();
            if ready == 0 {
                let message = format!("no pod is ready behind the Service {namespace}/{service}");
                Finding::new("Webhook", name, Outcome::Fail, "NoEndpoints", message)
            } else {
                Finding::new("Webhook", name, Outcome::Pass, "Configured", format!("{ready} pods answer for it"))
            }
        }
    }
}

/// Has the API server ask the webhook, about a server that is never written.
async fn try_it(client: &Client, namespace: &str) -> Finding {
    let server = json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer",
        "metadata": {"generateName": "perch-validate-"},
        "spec": {"image": "perch.invalid/none:0", "suspend": true},
    });
    let subject = format!("{namespace} (dry run)");
    let finding = |result, reason, message: String| Finding::new("Webhook", subject.clone(), result, reason, message);
    let server: McpServer = match serde_json::from_value(server) {
        Ok(server) => server,
        Err(error) => return finding(Outcome::Warn, "NotTried", error.to_string()),
    };
    let api: Api<McpServer> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams { dry_run: true, ..PostParams::default() }, &server).await {
        Ok(_) => finding(Outcome::Pass, "Admitted", "a server that is written would be admitted".to_owned()),
        Err(error) => judge_refusal(&explain(&error), &finding),
    }
}

/// What it means that the write was refused. A denial is an answer. Pure.
fn judge_refusal(said: &str, finding: &dyn Fn(Outcome, &'static str, String) -> Finding) -> Finding {
    if said.contains("failed calling webhook") {
        finding(Outcome::Fail, "NotReachable", format!("servers cannot be written: {said}"))
    } else if said.contains("denied the request") {
        finding(Outcome::Pass, "Answered", "it was asked, and denied a server that breaks the policies".to_owned())
    } else {
        finding(Outcome::Warn, "NotTried", format!("it cannot be tried from here: {said}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, renewed: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": {"name": "perch-operator", "namespace": "perch"},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed},
        }))
        .unwrap()
    }

    #[test]
    fn a_lease_that_nobody_renews_is_no_operator() {
        let now = "2026-06-01T12:00:00Z".parse().unwrap();
        let of = |holder: &str, renewed: &str| {
            let finding = judge(&lease(holder, renewed), now);
            (finding.result, finding.reason)
        };
        assert_eq!(of("a", "2026-06-01T11:59:50.000000Z"), (Outcome::Pass, "Leading".into()));
        assert_eq!(of("a", "2026-06-01T11:59:40.000000Z"), (Outcome::Fail, "NotLeading".into()));
        assert_eq!(of("", "2026-06-01T11:59:59.000000Z"), (Outcome::Fail, "NotLeading".into()));
    }

    #[test]
    fn the_lease_is_the_one_that_the_operator_was_given() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "operator", "command": ["perch", "operator"], "args": ["--lease-name=mine", "--lease-namespace=here"]},
        ]}}))
        .unwrap();
        assert_eq!(argument(&pod, "--lease-name"), Some("mine".into()));
        assert_eq!(argument(&pod, "--lease"), None);
    }

    #[test]
    fn a_webhook_without_an_authority_cannot_be_asked() {
        let hook = |bundle: &str| -> ValidatingWebhook {
            serde_json::from_value(json!({
                "name": "policy.perch.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"caBundle": bundle, "service": {"namespace": "n", "name": "s"}},
            }))
            .unwrap()
        };
        assert_eq!(configured(&hook("")).unwrap_err().reason, "NoAuthority");
        assert_eq!(configured(&hook("YQ==")).unwrap(), Some(("n".into(), "s".into())));
    }

    #[test]
    fn a_denial_is_an_answer() {
        let of = |said: &str| {
            let finding =
                judge_refusal(said, &|result, reason, message| Finding::new("Webhook", "a", result, reason, message));
            (finding.result, finding.reason)
        };
        let down = "Internal error occurred: failed calling webhook \"policy.perch.dev\": connection refused";
        assert_eq!(of(down), (Outcome::Fail, "NotReachable".into()));
        assert_eq!(
            of("admission webhook \"policy.perch.dev\" denied the request: no"),
            (Outcome::Pass, "Answered".into())
        );
        assert_eq!(of("mcpservers is forbidden"), (Outcome::Warn, "NotTried".into()));
    }
}
