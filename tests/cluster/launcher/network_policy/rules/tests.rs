use serde_json::{Value, json};

use super::*;

fn pod(namespace: &str, ip: &str, labels: Value) -> Arc<Pod> {
    let ports = json!([{"name": "web", "containerPort": 8080}]);
    let pod = json!({
        "metadata": {"name": ip, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": ports}]},
        "status": {"phase": "Running", "podIP": ip},
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

/// Chains for three pods and this policy in the namespace of the first two.
fn chains(spec: Value) -> Chains {
    let policy = json!({"metadata": {"name": "p", "namespace": "one"}, "spec": spec});
    let namespace = |name: &str| {
        let namespace = json!({"metadata": {"name": name, "labels": {"name": name}}});
        Arc::new(serde_json::from_value(namespace).unwrap())
    };
    let world = World {
        pods: vec![
            pod("one", "10.0.0.1", json!({"app": "a"})),
            pod("one", "10.0.0.2", json!({"app": "b"})),
            pod("two", "10.0.0.3", json!({"app": "b"})),
        ],
        namespaces: vec![namespace("one"), namespace("two")],
        policies: vec![Arc::new(serde_json::from_value(policy).unwrap())],
    };
    world.chains()
}

/// What the first pod may receive or send, without the parts that are always there.
fn allowed(letter: char, spec: Value) -> Vec<String> {
    let mut spec = spec;
    spec["podSelector"] = json!({"matchLabels": {"app": "a"}});
    let chains = chains(spec);
    let rules = &chains[&format!("PERCH-{letter}-10.0.0.1")];
    assert_eq!(rules.first().unwrap(), "-s 10.0.0.1/32 -d 10.0.0.1/32 -j RETURN");
    assert_eq!(rules.last().unwrap(), "-j DROP");
    let middle = rules[1..rules.len() - 1].iter();
    middle.map(|r| r.strip_suffix("-j RETURN").unwrap().trim().to_owned()).collect()
}

#[test]
fn a_pod_is_isolated_only_in_the_directions_of_policies_that_select_it() {
    let of = |spec| chains(spec).into_keys().filter(|k| k != CHAIN).collect::<Vec<_>>();
    let all = json!({});
    assert_eq!(of(json!({"podSelector": all, "policyTypes": ["Ingress"]})), ["PERCH-I-10.0.0.1", "PERCH-I-10.0.0.2"]);
    assert_eq!(of(json!({"podSelector": all, "policyTypes": ["Egress"]})), ["PERCH-E-10.0.0.1", "PERCH-E-10.0.0.2"]);
    let only_b = json!({"matchLabels": {"app": "b"}});
    assert_eq!(of(json!({"podSelector": only_b, "policyTypes": ["Ingress"]})), ["PERCH-I-10.0.0.2"]);
}

#[test]
fn the_dispatching_chain_lets_standing_connections_pass_first() {
    let chains = chains(json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress", "Egress"]}));
    assert_eq!(
        chains[CHAIN],
        [
            "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
            "-s 10.0.0.1/32 -j PERCH-E-10.0.0.1",
            "-d 10.0.0.1/32 -j PERCH-I-10.0.0.1",
        ]
    );
}

#[test]
fn peers_are_selected_by_labels_of_pods_and_of_their_namespaces() {
    let from = |peer: Value| allowed('I', json!({"policyTypes": ["Ingress"], "ingress": [{"from": [peer]}]}));
    let b = json!({"matchLabels": {"app": "b"}});
    let two = json!({"matchLabels": {"name": "two"}});
    assert_eq!(from(json!({"podSelector": b})), ["-s 10.0.0.2/32"]);
    assert_eq!(from(json!({"podSelector": b, "namespaceSelector": {}})), ["-s 10.0.0.2/32", "-s 10.0.0.3/32"]);
    assert_eq!(from(json!({"namespaceSelector": two})), ["-s 10.0.0.3/32"]);
    let a_in_two = json!({"podSelector": {"matchLabels": {"app": "a"}}, "namespaceSelector": two});
    assert!(from(a_in_two).is_empty());
}

#[test]
fn a_rule_without_peers_allows_all_and_a_policy_without_rules_nothing() {
    assert_eq!(allowed('I', json!({"policyTypes": ["Ingress"], "ingress": [{}]})), [""]);
    assert!(allowed('I', json!({"policyTypes": ["Ingress"]})).is_empty());
    assert!(allowed('E', json!({"policyTypes": ["Egress"], "egress": []})).is_empty());
}

#[test]
fn ports_are_matched_by_number_range_name_and_protocol() {
    let ports = |ports: Value| allowed('I', json!({"policyTypes": ["Ingress"], "ingress": [{"ports": ports}]}));
    assert_eq!(ports(json!([{"port": 80}])), ["-p tcp --dport 80"]);
    assert_eq!(ports(json!([{"port": 80, "endPort": 90, "protocol": "UDP"}])), ["-p udp --dport 80:90"]);
    assert_eq!(ports(json!([{"protocol": "UDP"}])), ["-p udp"]);
    assert_eq!(ports(json!([{"port": "web"}])), ["-p tcp --dport 8080"]);
    assert!(ports(json!([{"port": "other"}])).is_empty());
}

#[test]
fn an_egress_port_with_a_name_is_that_of_each_pod_at_the_other_end() {
    let rules = allowed('E', json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "web"}]}]}));
    let of = |ip: &str| format!("-d {ip}/32 -p tcp --dport 8080");
    assert_eq!(rules, [of("10.0.0.1"), of("10.0.0.2"), of("10.0.0.3")]);
}

#[test]
fn exceptions_are_cut_out_of_blocks() {
    let to = |block: Value| allowed('E', json!({"policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": block}]}]}));
    assert_eq!(to(json!({"cidr": "10.1.0.0/16"})), ["-d 10.1.0.0/16"]);
    assert_eq!(to(json!({"cidr": "10.0.0.0/30", "except": ["10.0.0.1/32"]})), ["-d 10.0.0.0/32", "-d 10.0.0.2/31"]);
    assert!(to(json!({"cidr": "10.0.0.0/30", "except": ["10.0.0.0/8"]})).is_empty());
    assert_eq!(to(json!({"cidr": "0.0.0.0/0", "except": ["0.0.0.0/1"]})), ["-d 128.0.0.0/1"]);
}

#[test]
fn chains_that_are_wanted_no_more_are_removed_after_all_rules_are_set() {
    let before = chains(json!({"podSelector": {}, "policyTypes": ["Ingress"]}));
    let text = restore(&Chains::from([(CHAIN.into(), vec!["-j RETURN".into()])]), &before);
    let expected = "*mangle\n:PERCH-NETPOL - [0:0]\n:PERCH-I-10.0.0.1 - [0:0]\n:PERCH-I-10.0.0.2 - [0:0]\n\
                    -A PERCH-NETPOL -j RETURN\n-X PERCH-I-10.0.0.1\n-X PERCH-I-10.0.0.2\nCOMMIT\n";
    assert_eq!(text, expected);
}
