//! Admission: the policies in force, kept in step with where users write them, and what they say
//! about a write.
//!
//! One [`Gate`] serves whoever admits objects (the embedded control plane, the webhook) and whoever
//! reports on those that are there (the controller), so that they never disagree.
//!
//! # Guarantees
//! * Policies are compiled beside, and take the place of those before as a whole.
//! * A bundle that is not good is left out, told in the log and counted; it never changes whether
//!   others are asked.
//! * A write that changes nothing that is judged is admitted unasked, and so is every write to an
//!   object that is going away.
//! * Who signed an image is asked before a write is judged, and never while it is; for what is there
//!   already it is asked beside, and what was said before stays until there is an answer.
//!
//! May import: `policy`, `supply_chain`, `api`, `names`, `error`, `telemetry`.

mod follow;
mod metrics;
mod signatures;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, RwLock},
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    policy::{Bundle, Decision, Images, Judgement, Mode, Policies, PolicyError, Scope, Subject, Wanted},
    supply_chain::Registries,
};
pub use follow::{POLICY_LABEL, Source, bundle, folder, follow};

/// Name by which denials are known, as that of a webhook.
pub const NAME: &str = "policy.perch.dev";

/// Annotations that the rules read begin like this.
const ANNOTATIONS: &str = "policy.perch.dev/";

/// Labels of a namespace.
pub type Labels = BTreeMap<String, String>;

/// The policies in force. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    policies: ArcSwap<Policies>,
    bundles: Mutex<Vec<Bundle>>,
    /// Labels of namespaces, for those who do not have them at hand.
    namespaces: RwLock<BTreeMap<String, Labels>>,
    default: Scope,
    changed: watch::Sender<u64>,
    ready: watch::Sender<bool>,
    metrics: metrics::Metrics,
    signatures: signatures::Signatures,
}

/// A write that is to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The object as it would be.
    pub object: &'a Value,
    /// The object as it is, where there is one.
    pub old: Option<&'a Value>,
    /// Labels of its namespace, where they are known.
    pub labels: Option<&'a Labels>,
    /// What [`Gate::look`] found about the images that [`Gate::wanted`] names.
    pub images: &'a Images,
    /// Now.
    pub now: Timestamp,
}

impl Request<'_> {
    /// Whether anything that is judged changes.
    fn is_judged(&self) -> bool {
        let goes = self.object["metadata"].get("deletionTimestamp").is_some_and(|t| !t.is_null());
        !goes && self.old.is_none_or(|old| judged(old) != judged(self.object))
    }
}

impl Gate {
    /// The shipped policies, with what counts in namespaces that say nothing. No registry is asked:
    /// where signatures are, none is known.
    #[must_use]
    pub fn new(default: Scope) -> Self {
        Self::with_registries(default, None)
    }

    /// Like [`Gate::new`], with registries to ask.
    #[must_use]
    pub fn with_registries(default: Scope, registries: Option<Registries>) -> Self {
        Self(Arc::new(Inner {
            policies: ArcSwap::from_pointee(Policies::shipped()),
            bundles: Mutex::default(),
            namespaces: RwLock::default(),
            default,
            changed: watch::Sender::new(0),
            ready: watch::Sender::new(false),
            metrics: metrics::Metrics::default(),
            signatures: signatures::Signatures::new(registries),
        }))
    }

    /// Takes other bundles than before. It may take a moment: not for an async task.
    ///
    /// # Panics
    /// Never: nobody panics while holding the bundles.
    pub fn install(&self, bundles: Vec<Bundle>) {
        let mut held = self.0.bundles.lock().expect("nobody panics while holding the bundles");
        if *held == bundles {
            return;
        }
        let policies = Policies::new(&bundles);
        for PolicyError { place, message } in policies.refused() {
            tracing::error!(place, message, "a policy does not count until it is mended");
        }
        tracing::info!(bundles = policies.bundles(), refused = policies.refused().len(), "policies are in force");
        self.0.metrics.installed(&policies);
        self.0.policies.store(Arc::new(policies));
        *held = bundles;
        drop(held);
        self.change();
    }

    /// The policies in force.
    #[must_use]
    pub fn policies(&self) -> Arc<Policies> {
        self.0.policies.load_full()
    }

    /// Tells of every change of what counts.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Waits until policies and namespaces were read once.
    pub async fn ready(&self) {
        // The sender is our own.
        let _ = self.0.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Whether policies and namespaces were read once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.0.ready.borrow()
    }

    /// What counts in a namespace with these labels.
    #[must_use]
    pub fn scope(&self, labels: Option<&Labels>) -> Scope {
        Scope::of(labels, self.0.default)
    }

    /// What counts in a namespace, as it was seen last.
    ///
    /// # Panics
    /// Never: nobody panics while holding the namespaces.
    #[must_use]
    pub fn scope_of(&self, namespace: &str) -> Scope {
        let namespaces = self.0.namespaces.read().expect("nobody panics while holding the namespaces");
        self.scope(namespaces.get(namespace))
    }

    /// Labels of a namespace, as they were seen last.
    ///
    /// # Panics
    /// Never: nobody panics while holding the namespaces.
    #[must_use]
    pub fn labels_of(&self, namespace: &str) -> Option<Labels> {
        let namespaces = self.0.namespaces.read().expect("nobody panics while holding the namespaces");
        namespaces.get(namespace).cloned()
    }

    /// What is wrong with an object where that scope counts, as far as is known. None while nobody
    /// has looked who signed its images: it is found out, and told as a change.
    #[must_use]
    pub fn judge(&self, object: &Value, scope: Scope, now: Timestamp) -> Option<Judgement> {
        let level = scope.level_of(object);
        let wanted = self.0.policies.load().wanted(&Subject { object, level, now, images: None });
        let images = self.0.signatures.known(wanted)?;
        Some(self.judge_with(object, scope, &images, now))
    }

    fn judge_with(&self, object: &Value, scope: Scope, images: &Images, now: Timestamp) -> Judgement {
        let level = scope.level_of(object);
        let judgement = self.0.policies.load().judge(&Subject { object, level, now, images: Some(images) });
        for PolicyError { place, message } in &judgement.faults {
            tracing::warn!(place, message, "a policy could not judge and was left out");
        }
        judgement
    }

    /// The images about which registries must be asked before a write can be judged. What it finds
    /// in `request.images` it does not name.
    #[must_use]
    pub fn wanted(&self, request: &Request<'_>) -> Vec<Wanted> {
        let scope = self.scope(request.labels);
        if scope.mode == Mode::Off || !request.is_judged() {
            return Vec::new();
        }
        let Request { object, now, images, .. } = *request;
        let mut wanted =
            self.0.policies.load().wanted(&Subject { object, level: scope.level_of(object), now, images: None });
        wanted.retain(|wanted| !images.contains_key(&wanted.image));
        wanted
    }

    /// Asks registries. It always answers, within a few seconds.
    pub async fn look(&self, wanted: &[Wanted]) -> Images {
        if wanted.is_empty() {
            return Images::new();
        }
        let (images, differs) = self.0.signatures.look(wanted).await;
        if differs {
            self.change();
        }
        images
    }

    /// What is done about a write.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let Request { object, old, labels, images, now } = *request;
        if !request.is_judged() {
            return Decision::default();
        }
        let scope = self.scope(labels);
        let before = old.map(|old| self.judge_with(old, scope, images, now));
        let found = self.judge_with(object, scope, images, now);
        let decision = Decision::new(scope.mode, scope.level_of(object), found, before.as_ref());
        self.0.metrics.decided(&decision);
        audit(object, &decision);
        decision
    }

    /// Makes counters visible.
    pub fn register(&self, registry: &mut Registry) {
        self.0.metrics.register(registry);
    }

    fn change(&self) {
        self.0.changed.send_modify(|n| *n += 1);
    }
}

/// Tells what was decided, unless there is nothing to tell.
fn audit(object: &Value, decision: &Decision) {
    let (namespace, name) = (&object["metadata"]["namespace"], &object["metadata"]["name"]);
    let (namespace, name) = (namespace.as_str().unwrap_or_default(), name.as_str().unwrap_or_default());
    if let Some(message) = decision.message() {
        tracing::warn!(target: "perch::audit", namespace, name, decision = "deny", message, "policy");
    } else if !decision.warnings.is_empty() {
        let message = decision.warnings.join("; ");
        tracing::info!(target: "perch::audit", namespace, name, decision = "warn", message, "policy");
    }
}

/// What the rules read of an object.
fn judged(object: &Value) -> (Option<&Value>, Vec<(&String, &Value)>) {
    let annotations = object["metadata"]["annotations"].as_object();
    let annotations = annotations.into_iter().flatten().filter(|(key, _)| key.starts_with(ANNOTATIONS));
    (object.get("spec"), annotations.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::mcp_server::GovernanceLevel,
        policy::{File, Mode},
    };

    fn strict() -> Gate {
        Gate::new(Scope { level: GovernanceLevel::Medium, mode: Mode::Deny })
    }

    fn server(root: bool) -> Value {
        let context = if root { json!({"runAsUser": 0}) } else { json!({}) };
        json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a"},
            "spec": {"image": "x:1", "podTemplate": {"spec": {"securityContext": context}}}})
    }

    fn decide(gate: &Gate, object: &Value, old: Option<&Value>) -> Decision {
        gate.decide(&Request { object, old, labels: None, images: &Images::new(), now: Timestamp::UNIX_EPOCH })
    }

    #[test]
    fn what_is_not_judged_may_be_written() {
        let gate = strict();
        let root = server(true);
        assert!(decide(&gate, &root, None).message().is_some());
        let mut status = root.clone();
        status["status"] = json!({"phase": "Ready"});
        status["metadata"]["finalizers"] = json!(["a"]);
        assert_eq!(decide(&gate, &status, Some(&root)), Decision::default());
        let mut gone = root.clone();
        gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(decide(&gate, &gone, None), Decision::default());
        let mut evidence = root.clone();
        evidence["metadata"]["annotations"] = json!({"policy.perch.dev/egress": "a"});
        assert_ne!(decide(&gate, &evidence, Some(&root)), Decision::default(), "it is judged again");
    }

    #[test]
    fn a_repair_is_let_through_and_damage_is_not() {
        let gate = strict();
        let mut stopped = server(true);
        stopped["spec"]["suspend"] = true.into();
        assert_eq!(decide(&gate, &stopped, Some(&server(true))).message(), None);
        assert!(decide(&gate, &server(true), Some(&server(false))).message().is_some());
        assert_eq!(decide(&gate, &server(false), Some(&server(true))).message(), None);
    }

    #[test]
    fn policies_change_as_a_whole_and_say_so() {
        let gate = strict();
        let seen = gate.changes();
        let file = |text: &str| {
            vec![Bundle { name: "b".into(), files: vec![File { name: "a.rego".into(), text: text.into() }] }]
        };
        let rule = "package t\nviolation contains {\"rule\": \"mine\", \"message\": \"no\"} if true";
        gate.install(file(rule));
        assert!(seen.has_changed().unwrap());
        assert!(decide(&gate, &server(false), None).message().unwrap().contains("mine: no"));
        gate.install(file("package t\nviolation contains"));
        assert_eq!(decide(&gate, &server(false), None).message(), None, "what does not compile denies nothing");
        assert!(decide(&gate, &server(true), None).message().is_some(), "the shipped rules stay");
        let mut registry = Registry::default();
        gate.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("perch_policy_bundles{state=\"refused\"} 1"), "{text}");
        assert!(text.contains("perch_policy_decisions_total{decision=\"deny\"} 2"), "{text}");
    }
}
