//! What stands around the pods: identity, network, disruption and scale.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        autoscaling::v2::{
            CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec,
            MetricTarget, ResourceMetricSource,
        },
        core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec},
        networking::v1::{
            NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
            NetworkPolicySpec,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{egress, metadata, pod::port};
use crate::{
    api::mcp_server::NetworkTier,
    runtime::{
        RuntimeError, Workload,
        kubernetes::{Config, naming},
        workload::Program,
    },
};

pub(super) fn pods(workload: &Workload) -> LabelSelector {
    LabelSelector { match_labels: Some(naming::selector(&workload.server)), ..LabelSelector::default() }
}

/// An identity of its own, without a token: a server that is taken over can ask the API nothing.
pub fn service_account(workload: &Workload) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(workload, naming::object_name(&workload.server.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// A name for the pods. Perch's gateway goes to the pods themselves; this is for everything else.
pub fn service(workload: &Workload) -> Service {
    Service {
        metadata: metadata(workload, naming::object_name(&workload.server.name)),
        spec: Some(ServiceSpec {
            selector: Some(naming::selector(&workload.server)),
            ports: Some(vec![ServicePort {
                name: Some("mcp".into()),
                port: i32::from(port(workload)),
                target_port: Some(IntOrString::String("mcp".into())),
                protocol: Some("TCP".into()),
                app_protocol: Some("http".into()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The tier of a server: only the gateway comes in, and only a Public server gets out, or one with a list to
/// what is listed.
pub fn network_policy(workload: &Workload, config: &Config) -> Result<NetworkPolicy, RuntimeError> {
    let gateway = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(
                "kubernetes.io/metadata.name".to_owned(),
                config.gateway_namespace.clone(),
            )])),
            ..LabelSelector::default()
        }),
        pod_selector: Some(LabelSelector {
            match_labels: Some(config.gateway_labels.clone()),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    };
    let mcp = NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port(workload)))),
        protocol: Some("TCP".into()),
        ..NetworkPolicyPort::default()
    };
    let out = if !workload.declared.egress.is_empty() {
        Some(egress::rules(workload, &egress::list(workload)?))
    } else if workload.network == NetworkTier::Public {
        Some(vec![NetworkPolicyEgressRule::default()])
    } else {
        None
    };
    Ok(NetworkPolicy {
        metadata: metadata(workload, naming::object_name(&workload.server.name)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(pods(workload)),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule { from: Some(vec![gateway]), ports: Some(vec![mcp]) }]),
            egress: out,
        }),
    })
}

/// Lets a pod reach the registry of its package while it installs it. The operator takes the
/// label away before the server counts as ready.
pub fn install_policy(workload: &Workload) -> Option<NetworkPolicy> {
    if !is_installed_without_network(workload) {
        return None;
    }
    let mut selector = naming::selector(&workload.server);
    selector.insert(naming::INSTALLING.to_owned(), "true".to_owned());
    Some(NetworkPolicy {
        metadata: metadata(workload, format!("{}-install", naming::object_name(&workload.server.name))),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector { match_labels: Some(selector), ..LabelSelector::default() }),
            policy_types: Some(vec!["Egress".into()]),
            egress: Some(vec![NetworkPolicyEgressRule::default()]),
            ..NetworkPolicySpec::default()
        }),
    })
}

/// Whether the server runs without a way out but must get its package first.
pub fn is_installed_without_network(workload: &Workload) -> bool {
    let confined = workload.network != NetworkTier::Public || !workload.declared.egress.is_empty();
    confined && matches!(workload.program, Program::Package { .. })
}

/// A drain takes one pod at a time. A single pod is not protected: that would block the drain.
pub fn disruption_budget(workload: &Workload) -> Option<PodDisruptionBudget> {
    let most = workload.declared.autoscaling.as_ref().map_or(i64::from(workload.replicas), |a| a.max_replicas.into());
    (most > 1 && workload.replicas > 0).then(|| PodDisruptionBudget {
        metadata: metadata(workload, naming::object_name(&workload.server.name)),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(pods(workload)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    })
}

/// Chooses the number of pods by their CPU use. It acts on the Deployment, so the spec that a
/// GitOps tool owns is never written.
pub fn autoscaler(workload: &Workload) -> Option<HorizontalPodAutoscaler> {
    // A suspended server stays at zero.
    let bounds = workload.declared.autoscaling.as_ref().filter(|_| workload.replicas > 0)?;
    Some(HorizontalPodAutoscaler {
        metadata: metadata(workload, naming::object_name(&workload.server.name)),
        spec: HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".into()),
                kind: "Deployment".into(),
                name: naming::object_name(&workload.server.name),
            },
            min_replicas: Some(bounds.min_replicas),
            max_replicas: bounds.max_replicas,
            metrics: Some(vec![MetricSpec {
                type_: "Resource".into(),
                resource: Some(ResourceMetricSource {
                    name: "cpu".into(),
                    target: MetricTarget {
                        type_: "Utilization".into(),
                        average_utilization: Some(bounds.target_cpu_utilization_percentage),
                        ..MetricTarget::default()
                    },
                }),
                ..MetricSpec::default()
            }]),
            ..HorizontalPodAutoscalerSpec::default()
        },
        ..HorizontalPodAutoscaler::default()
    })
}
