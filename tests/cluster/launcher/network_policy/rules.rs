//! From policies, pods and namespaces to packet filter rules. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::Ipv4Addr,
    sync::Arc,
};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};

/// The chain through which all that pods send and receive passes. It is in the table `mangle`,
/// where nothing accepts a packet before it.
pub const CHAIN: &str = "PERCH-NETPOL";

/// What decides about the traffic of a node.
#[derive(Default)]
pub struct World {
    /// All pods.
    pub pods: Vec<Arc<Pod>>,
    /// All namespaces.
    pub namespaces: Vec<Arc<Namespace>>,
    /// All policies.
    pub policies: Vec<Arc<NetworkPolicy>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// The peers and the ports of a rule of either direction.
type Rule<'a> = (Option<&'a [NetworkPolicyPeer]>, Option<&'a [NetworkPolicyPort]>);

/// Chains by name, each with its rules in order.
pub type Chains = BTreeMap<String, Vec<String>>;

impl World {
    /// The rules that enforce all policies.
    pub fn chains(&self) -> Chains {
        let mut dispatch = vec!["-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN".to_owned()];
        let mut chains = Chains::new();
        for (pod, ip) in self.pods.iter().filter_map(|p| Some((p, address(p)?))) {
            for direction in [Direction::Egress, Direction::Ingress] {
                let policies: Vec<_> = self.policies.iter().filter(|p| applies(p, pod, direction)).collect();
                if policies.is_empty() {
                    continue;
                }
                let (letter, own) = if direction == Direction::Egress { ('E', "-s") } else { ('I', "-d") };
                let chain = format!("PERCH-{letter}-{ip}");
                dispatch.push(format!("{own} {ip}/32 -j {chain}"));
                let mut allowed = BTreeSet::new();
                for policy in policies {
                    self.allowed(policy, pod, direction, &mut allowed);
                }
                let mut rules = vec![format!("-s {ip}/32 -d {ip}/32 -j RETURN")];
                rules.extend(allowed.into_iter().map(|rule| format!("{rule}-j RETURN")));
                rules.push("-j DROP".into());
                chains.insert(chain, rules);
            }
        }
        chains.insert(CHAIN.into(), dispatch);
        chains
    }

    /// Adds the matches of what a policy allows a pod.
    fn allowed(&self, policy: &NetworkPolicy, pod: &Pod, direction: Direction, allowed: &mut BTreeSet<String>) {
        let namespace = policy.namespace().unwrap_or_default();
        let Some(spec) = &policy.spec else { return };
        let rules: Vec<Rule> = match direction {
            Direction::Ingress => {
                spec.ingress.iter().flatten().map(|r| (r.from.as_deref(), r.ports.as_deref())).collect()
            }
            Direction::Egress => spec.egress.iter().flatten().map(|r| (r.to.as_deref(), r.ports.as_deref())).collect(),
        };
        let other = if direction == Direction::Egress { "-d" } else { "-s" };
        for (peers, ports) in rules {
            let ports = ports.unwrap_or_default();
            // An egress port with a name is what each pod at the other end says it is.
            let by_pod = direction == Direction::Egress && ports.iter().any(named);
            for (block, peer) in self.peers(peers.unwrap_or_default(), &namespace, by_pod) {
                let from = block.map_or_else(String::new, |block| format!("{other} {block} "));
                if ports.is_empty() {
                    allowed.insert(from);
                    continue;
                }
                let with_ports = if direction == Direction::Ingress { Some(pod) } else { peer };
                allowed.extend(ports.iter().filter_map(|p| port(p, with_ports)).map(|port| format!("{from}{port}")));
            }
        }
    }

    /// The other ends of a rule: a block of addresses (none for all of them), and the pod that it is.
    fn peers(&self, peers: &[NetworkPolicyPeer], namespace: &str, by_pod: bool) -> Vec<(Option<String>, Option<&Pod>)> {
        let mut found = Vec::new();
        if peers.is_empty() {
            found.push((None, None));
            if by_pod {
                let pods = self.pods.iter();
                found.extend(pods.filter_map(|pod| Some((Some(format!("{}/32", address(pod)?)), Some(&**pod)))));
            }
        }
        for peer in peers {
            if let Some(block) = &peer.ip_block {
                found.extend(blocks(block).into_iter().map(|b| (Some(b), None)));
                continue;
            }
            let pods = self.pods.iter().filter(|pod| {
                let there = pod.namespace().unwrap_or_default();
                let in_namespace = match &peer.namespace_selector {
                    Some(selector) => {
                        self.namespaces.iter().any(|n| n.name_any() == there && selects(selector, n.labels()))
                    }
                    None => there == namespace,
                };
                in_namespace && peer.pod_selector.as_ref().is_none_or(|s| selects(s, pod.labels()))
            });
            found.extend(pods.filter_map(|pod| Some((Some(format!("{}/32", address(pod)?)), Some(&**pod)))));
        }
        found
    }
}

/// The input of `iptables-restore --noflush` that makes these chains, all at once, and removes those
/// of `before` that are there no more.
pub fn restore(chains: &Chains, before: &Chains) -> String {
    let mut text = "*mangle\n".to_owned();
    let gone: Vec<_> = before.keys().filter(|name| !chains.contains_key(*name)).collect();
    for name in chains.keys().chain(gone.iter().copied()) {
        // This makes the chain, or empties it.
        let _ = writeln!(text, ":{name} - [0:0]");
    }
    for (name, rules) in chains {
        for rule in rules {
            let _ = writeln!(text, "-A {name} {rule}");
        }
    }
    for name in gone {
        let _ = writeln!(text, "-X {name}");
    }
    text + "COMMIT\n"
}

/// Address of a pod that has one of its own now.
fn address(pod: &Pod) -> Option<Ipv4Addr> {
    let status = pod.status.as_ref()?;
    let on_host = pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true));
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if on_host || ended { None } else { status.pod_ip.as_ref()?.parse().ok() }
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    // The API server has checked the expressions.
    Selector::try_from(selector.clone()).is_ok_and(|s| s.matches(labels))
}

fn applies(policy: &NetworkPolicy, pod: &Pod, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let listed = |name: &str| spec.policy_types.iter().flatten().any(|t| t == name);
    let directed = match direction {
        Direction::Ingress => spec.policy_types.as_ref().is_none_or(Vec::is_empty) || listed("Ingress"),
        Direction::Egress => listed("Egress") || (spec.policy_types.is_none() && spec.egress.is_some()),
    };
    let selected = spec.pod_selector.as_ref().is_none_or(|s| selects(s, pod.labels()));
    directed && policy.namespace() == pod.namespace() && selected
}

fn named(port: &NetworkPolicyPort) -> bool {
    matches!(port.port, Some(IntOrString::String(_)))
}

/// The match of a port. A name is looked up in the containers of `pod`.
fn port(port: &NetworkPolicyPort, pod: Option<&Pod>) -> Option<String> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match &port.port {
        None => return Some(format!("-p {} ", protocol.to_lowercase())),
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let containers = pod?.spec.iter().flat_map(|s| &s.containers);
            let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
            let same = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
                p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
            };
            ports.find(same)?.container_port
        }
    };
    let range = port.end_port.map_or_else(|| number.to_string(), |end| format!("{number}:{end}"));
    Some(format!("-p {} --dport {range} ", protocol.to_lowercase()))
}

/// The parts of a block that its exceptions leave.
fn blocks(block: &IPBlock) -> Vec<String> {
    let Some(base) = parse(&block.cidr) else { return Vec::new() };
    let except: Vec<_> = block.except.iter().flatten().filter_map(|e| parse(e)).collect();
    let mut left = Vec::new();
    subtract(base, &except, &mut left);
    left.into_iter().map(|(start, length)| format!("{}/{length}", Ipv4Addr::from(start))).collect()
}

/// First address and prefix length.
fn parse(cidr: &str) -> Option<(u32, u32)> {
    let (start, length) = cidr.split_once('/')?;
    let length: u32 = length.parse().ok().filter(|l| *l <= 32)?;
    Some((u32::from(start.parse::<Ipv4Addr>().ok()?) & mask(length), length))
}

fn mask(length: u32) -> u32 {
    u32::MAX.checked_shl(32 - length).unwrap_or(0)
}

fn subtract(base: (u32, u32), except: &[(u32, u32)], left: &mut Vec<(u32, u32)>) {
    let contains = |outer: (u32, u32), inner: (u32, u32)| outer.1 <= inner.1 && inner.0 & mask(outer.1) == outer.0;
    if except.iter().any(|e| contains(*e, base)) {
        return;
    }
    if !except.iter().any(|e| contains(base, *e)) {
        left.push(base);
        return;
    }
    let length = base.1 + 1;
    subtract((base.0, length), except, left);
    subtract((base.0 | (1 << (32 - length)), length), except, left);
}

#[cfg(test)]
mod tests;
