//! The egress proxy of a server that names what it reaches, in pods of its own: a policy of the network is one for
//! a whole pod, so beside the server in its pod the proxy would confine nothing.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec},
        core::v1 as core,
        networking::v1::{
            IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
            NetworkPolicyPort, NetworkPolicySpec,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{
    around::pods,
    metadata,
    pod::{amounts, locked_down},
};
use crate::{
    egress::AllowList,
    runtime::{
        RuntimeError, Workload,
        kubernetes::{Config, naming},
    },
};

/// Port of the proxy.
pub const PORT: u16 = 3128;
/// Port of its health and metrics.
const ADMIN: u16 = 8081;
/// User of the proxy, as in Perch's image.
const USER: i64 = 10001;

/// What a workload may reach.
pub fn list(workload: &Workload) -> Result<AllowList, RuntimeError> {
    AllowList::new(&workload.declared.egress).map_err(|error| RuntimeError::Invalid(error.to_string()))
}

fn selector(workload: &Workload) -> LabelSelector {
    let labels = BTreeMap::from([(naming::EGRESS_PROXY.to_owned(), naming::label_value(&workload.server.name))]);
    LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }
}

fn tcp(port: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some("TCP".into()),
        ..NetworkPolicyPort::default()
    }
}

/// What the pods of a server with a list may reach: the proxy, and listed blocks without what is special in
/// them. Names are none of their business.
pub fn rules(workload: &Workload, list: &AllowList) -> Vec<NetworkPolicyEgressRule> {
    let block = |cidr: String, except: Vec<String>| NetworkPolicyPeer {
        ip_block: Some(IPBlock { cidr, except: Some(except).filter(|except| !except.is_empty()) }),
        ..NetworkPolicyPeer::default()
    };
    let proxy = list.has_names().then(|| NetworkPolicyEgressRule {
        to: Some(vec![NetworkPolicyPeer { pod_selector: Some(selector(workload)), ..NetworkPolicyPeer::default() }]),
        ports: Some(vec![tcp(PORT)]),
    });
    let blocks = list.blocks().map(|(cidr, except, ports)| NetworkPolicyEgressRule {
        to: Some(vec![block(cidr.to_string(), except.iter().map(ToString::to_string).collect())]),
        ports: Some(ports.iter().map(|port| tcp(*port)).collect()),
    });
    proxy.into_iter().chain(blocks).collect()
}

/// Only the server comes in; the proxy decides about the way out.
pub fn network_policy(workload: &Workload) -> NetworkPolicy {
    let from = vec![NetworkPolicyPeer { pod_selector: Some(pods(workload)), ..NetworkPolicyPeer::default() }];
    NetworkPolicy {
        metadata: metadata(workload, naming::egress_name(&workload.server.name)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(workload)),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![
                NetworkPolicyIngressRule { from: Some(from), ports: Some(vec![tcp(PORT)]) },
                // Counts of refusals: they hold no names.
                NetworkPolicyIngressRule { from: None, ports: Some(vec![tcp(ADMIN)]) },
            ]),
            egress: Some(vec![NetworkPolicyEgressRule::default()]),
        }),
    }
}

/// The address under which the server finds its proxy.
pub fn service(workload: &Workload) -> core::Service {
    core::Service {
        metadata: metadata(workload, naming::egress_name(&workload.server.name)),
        spec: Some(core::ServiceSpec {
            selector: selector(workload).match_labels,
            ports: Some(vec![core::ServicePort {
                name: Some("proxy".into()),
                port: i32::from(PORT),
                target_port: Some(IntOrString::String("proxy".into())),
                protocol: Some("TCP".into()),
                ..core::ServicePort::default()
            }]),
            ..core::ServiceSpec::default()
        }),
        ..core::Service::default()
    }
}

/// The proxy: Perch's own image. As long as one pod serves, the server has its way out.
pub fn deployment(workload: &Workload, config: &Config) -> Result<Deployment, RuntimeError> {
    let invalid = |error: serde_json::Error| RuntimeError::Invalid(error.to_string());
    let rules = serde_json::to_string(&workload.declared.egress).map_err(invalid)?;
    let mut labels = selector(workload).match_labels.unwrap_or_default();
    labels.insert(naming::MANAGED_BY.to_owned(), naming::PERCH.to_owned());
    labels.insert("app.kubernetes.io/component".to_owned(), "egress-proxy".to_owned());
    let port = |name: &str, port: u16| core::ContainerPort {
        name: Some(name.into()),
        container_port: i32::from(port),
        protocol: Some("TCP".into()),
        ..core::ContainerPort::default()
    };
    let container = core::Container {
        name: "egress-proxy".into(),
        image: Some(config.image.clone()),
        image_pull_policy: config.image_pull_policy.clone(),
        args: Some(vec![
            "egress-proxy".into(),
            format!("--listen=0.0.0.0:{PORT}"),
            format!("--admin-addr=0.0.0.0:{ADMIN}"),
            format!("--server={}", workload.server.declared()),
            format!("--rules={rules}"),
        ]),
        ports: Some(vec![port("proxy", PORT), port("admin", ADMIN)]),
        readiness_probe: Some(core::Probe {
            tcp_socket: Some(core::TCPSocketAction { port: IntOrString::String("proxy".into()), host: None }),
            period_seconds: Some(2),
            ..core::Probe::default()
        }),
        resources: Some(amounts(&[("cpu", "10m"), ("memory", "32Mi")], &[("memory", "128Mi")])),
        security_context: Some(locked_down(true, &[])),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        ..core::Container::default()
    };
    Ok(Deployment {
        metadata: metadata(workload, naming::egress_name(&workload.server.name)),
        spec: DeploymentSpec {
            replicas: Some(i32::from(workload.replicas > 0)),
            selector: selector(workload),
            revision_history_limit: Some(2),
            template: core::PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(core::PodSpec {
                    service_account_name: Some(naming::object_name(&workload.server.name)),
                    automount_service_account_token: Some(false),
                    enable_service_links: Some(false),
                    security_context: Some(core::PodSecurityContext {
                        run_as_non_root: Some(true),
                        run_as_user: Some(USER),
                        run_as_group: Some(USER),
                        seccomp_profile: Some(core::SeccompProfile {
                            type_: "RuntimeDefault".into(),
                            localhost_profile: None,
                        }),
                        ..core::PodSecurityContext::default()
                    }),
                    containers: vec![container],
                    ..core::PodSpec::default()
                }),
            },
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    })
}
