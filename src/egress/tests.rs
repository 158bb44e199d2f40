use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

fn list(rules: &str) -> AllowList {
    AllowList::new(&serde_yaml_ng::from_str::<Vec<EgressRule>>(rules).unwrap()).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|text| ip(text)).collect()
}

/// The verdict on a host, a port and what the host resolves to: the addresses, or the reason.
fn verdict(rules: &str, host: &str, port: u16, resolved: &[&str]) -> Result<Vec<IpAddr>, &'static str> {
    list(rules).decide(&Target::new(host, port), &ips(resolved)).map_err(|refusal| refusal.reason())
}

const PUBLIC: &str = "93.184.215.14";

#[test]
fn only_what_is_listed_is_reached() {
    let rules = "[{host: api.example.com}, {host: '*.example.org', ports: [443, 8443]}]";
    for (host, port, expected) in [
        ("api.example.com", 443, None),
        ("API.Example.COM.", 443, None),
        ("api.example.com", 80, Some("PortNotListed")),
        ("www.api.example.com", 443, Some("NotListed")),
        ("api.example.com.evil.example", 443, Some("NotListed")),
        ("evilapi.example.com", 443, Some("NotListed")),
        ("a.example.org", 8443, None),
        ("a.b.example.org", 443, None),
        ("example.org", 443, Some("NotListed")),
        (".example.org", 443, Some("NotListed")),
        ("evilexample.org", 443, Some("NotListed")),
        (PUBLIC, 443, Some("NotListed")),
        ("", 443, Some("NotListed")),
    ] {
        assert_eq!(verdict(rules, host, port, &[PUBLIC]).err(), expected, "{host}:{port}");
    }
    assert_eq!(verdict("[]", "api.example.com", 443, &[PUBLIC]), Err("NotListed"));
}

#[test]
fn a_listed_name_leads_to_no_address_of_the_inside() {
    let rules = "[{host: api.example.com}]";
    for address in [
        "127.0.0.1",
        "10.1.2.3",
        "172.31.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "::127.0.0.1",
    ] {
        assert_eq!(verdict(rules, "api.example.com", 443, &[address]), Err("SpecialAddress"), "{address}");
        // Of a mixed answer only the rest is used.
        assert_eq!(verdict(rules, "api.example.com", 443, &[address, PUBLIC]), Ok(ips(&[PUBLIC])), "{address}");
    }
    assert_eq!(verdict(rules, "api.example.com", 443, &["2606:2800::1"]), Ok(ips(&["2606:2800::1"])));
    assert_eq!(verdict(rules, "api.example.com", 443, &[]), Err("Unresolved"));
}

#[test]
fn a_block_names_addresses_of_the_inside_only_within_theirs() {
    let with = |cidr: &str| format!("[{{host: api.example.com}}, {{cidr: '{cidr}'}}]");
    let inside = &["10.1.2.3"];
    assert_eq!(verdict(&with("10.1.0.0/16"), "api.example.com", 443, inside), Ok(ips(inside)));
    assert_eq!(verdict(&with("10.0.0.0/8"), "10.1.2.3", 443, inside), Ok(ips(inside)));
    assert_eq!(verdict(&with("10.2.0.0/16"), "api.example.com", 443, inside), Err("SpecialAddress"));
    // These say "everywhere", and not "my own network".
    for wide in ["0.0.0.0/0", "8.0.0.0/6"] {
        assert_eq!(verdict(&with(wide), "api.example.com", 443, inside), Err("SpecialAddress"), "{wide}");
        assert_eq!(verdict(&with(wide), "10.1.2.3", 443, inside), Err("SpecialAddress"), "{wide}");
    }
    assert_eq!(verdict(&with("0.0.0.0/0"), PUBLIC, 443, &[PUBLIC]), Ok(ips(&[PUBLIC])));
    let ported = "[{host: api.example.com}, {cidr: 10.0.0.0/8, ports: [80]}]";
    assert_eq!(verdict(ported, "api.example.com", 443, inside), Err("SpecialAddress"));
    assert_eq!(verdict(ported, "10.1.2.3", 443, inside), Err("PortNotListed"));
    assert_eq!(verdict(&with("fd00:1::/32"), "[fd00:1::5]", 443, &["fd00:1::5"]), Ok(ips(&["fd00:1::5"])));
}

#[test]
fn a_wide_block_leaves_out_what_it_does_not_mean() {
    let except = |cidr: &str| {
        let list = list(&format!("[{{cidr: '{cidr}'}}]"));
        let mut blocks = list.blocks();
        let (_, except, ports) = blocks.next().unwrap();
        assert_eq!(ports, [443]);
        except.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(except("10.0.0.0/8"), Vec::<String>::new());
    assert_eq!(except("10.1.0.0/16"), Vec::<String>::new());
    assert_eq!(except("8.0.0.0/6"), ["10.0.0.0/8"]);
    assert_eq!(except("93.184.0.0/16"), Vec::<String>::new());
    let everything = except("0.0.0.0/0");
    for part in ["127.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"] {
        assert!(everything.iter().any(|e| e == part), "{part}: {everything:?}");
    }
    assert!(except("::/0").iter().any(|e| e == "fc00::/7"));
}

#[test]
fn a_rule_that_cannot_be_used_says_how() {
    for (rule, expected) in [
        ("{}", "exactly one of host and cidr"),
        ("{host: a.example, cidr: 10.0.0.0/8}", "exactly one of host and cidr"),
        ("{cidr: 10.0.0.0}", "write it like 10.1.0.0/16"),
        ("{cidr: 10.1.2.3/8}", "write 10.0.0.0/8"),
        ("{cidr: '::ffff:10.0.0.0/104'}", "write it like"),
        ("{host: 10.1.2.3}", "name it by cidr, as in 10.1.2.3/32"),
        ("{host: a.example, ports: [0]}", "0 is not a port"),
    ] {
        let rules: Vec<EgressRule> = serde_yaml_ng::from_str(&format!("[{rule}]")).unwrap();
        let error = AllowList::new(&rules).unwrap_err().to_string();
        assert!(error.contains(expected), "{rule}: {error}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let refusal = list("[{host: a.example}]").decide(&Target::new("a.example", 443), &ips(&["169.254.169.254"]));
    let said = refusal.unwrap_err().to_string();
    for part in ["a.example:443 resolves to 169.254.169.254", "metadata of clouds", "by cidr, within 169.254.0.0/16"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(Target::new("[::1]", 1).to_string(), "[::1]:1");
}

proptest! {
    /// Whatever a listed name resolves to, nothing special is reached that no block names.
    #[test]
    fn no_answer_opens_the_inside(resolved in proptest::collection::vec(any::<IpAddr>(), 0..8), low in any::<[u8; 3]>()) {
        let mut resolved = resolved;
        resolved.extend([ip("10.0.0.1"), IpAddr::from([127, low[0], low[1], low[2]])]);
        let list = list("[{host: a.example}, {cidr: 0.0.0.0/0}, {cidr: '::/0'}]");
        let reached = list.decide(&Target::new("a.example", 443), &resolved).unwrap_or_default();
        prop_assert!(reached.iter().all(|address| special(*address).is_none()), "{reached:?}");
        prop_assert!(reached.iter().all(|address| resolved.iter().any(|r| r.to_canonical() == *address)));
    }
}
