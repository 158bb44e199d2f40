//! Whether a server may reach what it asks for: the decision of the egress proxy. Pure.
//!
//! A name is judged before it is resolved, and each address that it resolves to afterwards, so a name that
//! somebody makes resolve to an address of the inside (DNS rebinding) gains nothing. The proxy connects to
//! the very address that was judged.
//!
//! * A name, or an address in its place, is reached only if a rule says so, on a port of that rule.
//! * An address that means something special ([`special`]) is reached only if a rule names it by a block
//!   that lies within that special one. `0.0.0.0/0` names no address of the inside.
//!
//! May import: `api`.

mod special;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::api::mcp_server::EgressRule;
pub use special::special;

/// What a server asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name or an address.
    pub host: Host,
    /// TCP port.
    pub port: u16,
}

/// A name or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name, in lower case and without a dot at its end.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl Target {
    /// Reads a host as it stands in a URL: an address of version 6 is in brackets.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let host = match bare.parse::<IpAddr>() {
            Ok(address) => Host::Address(address.to_canonical()),
            Err(_) => Host::Name(host.trim_end_matches('.').to_ascii_lowercase()),
        };
        Self { host, port }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}:{}", self.port),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

/// Why a server does not reach what it asks for. Each message ends with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule names it.
    #[error("{0} is not on the list of spec.network.egress: add it there if the server needs it")]
    NotListed(String),
    /// Rules name it on other ports.
    #[error("{0} is on the list of spec.network.egress, but not with this port: add the port to the rule")]
    PortNotListed(String),
    /// It resolves only to addresses that mean something special.
    #[error(
        "{target} resolves to {address}, of {block} ({meaning}): if that is meant, name the address in spec.network.egress by cidr, within {block}"
    )]
    SpecialAddress {
        /// What was asked for.
        target: String,
        /// The first such address.
        address: IpAddr,
        /// The special block.
        block: IpNet,
        /// What the block is for.
        meaning: &'static str,
    },
    /// It has no address.
    #[error("{0} does not resolve to any address: is the name right?")]
    Unresolved(String),
}

impl Refusal {
    /// One word, for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotListed(_) => "NotListed",
            Self::PortNotListed(_) => "PortNotListed",
            Self::SpecialAddress { .. } => "SpecialAddress",
            Self::Unresolved(_) => "Unresolved",
        }
    }
}

/// A rule that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Neither a host nor a block, or both.
    #[error("each rule of spec.network.egress has exactly one of host and cidr")]
    NotOne,
    /// A text that is no block of addresses.
    #[error(
        "spec.network.egress: {0:?} is not a block of addresses: write it like 10.1.0.0/16 or fd00::/8, and one address like 10.1.2.3/32"
    )]
    Block(String),
    /// A block that says more than it means.
    #[error("spec.network.egress: {given} is not the beginning of a block: write {meant}")]
    NotAligned {
        /// As it was written.
        given: String,
        /// What it was taken for.
        meant: IpNet,
    },
    /// A host that is an address.
    #[error("spec.network.egress: {0} is an address: name it by cidr, as in {0}/32")]
    AddressAsHost(String),
    /// A port that does not exist.
    #[error("spec.network.egress: {0} is not a port: give numbers from 1 to 65535")]
    Port(i32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Name(String),
    /// Every name that ends with this, which begins with a dot.
    Below(String),
    Block(IpNet),
}

/// What a server may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList {
    rules: Vec<(Subject, Vec<u16>)>,
}

impl AllowList {
    /// Reads the rules of a spec.
    ///
    /// # Errors
    /// [`RuleError`] for the first rule that cannot be used.
    pub fn new(rules: &[EgressRule]) -> Result<Self, RuleError> {
        let rules = rules.iter().map(|rule| {
            let subject = match (&rule.host, &rule.cidr) {
                (Some(host), None) => name(host)?,
                (None, Some(cidr)) => Subject::Block(block(cidr)?),
                _ => return Err(RuleError::NotOne),
            };
            let port = |port: &i32| u16::try_from(*port).ok().filter(|p| *p > 0).ok_or(RuleError::Port(*port));
            Ok((subject, rule.ports.iter().map(port).collect::<Result<_, _>>()?))
        });
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// Whether anything is named by host, so that a proxy is needed.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.rules.iter().any(|(subject, _)| !matches!(subject, Subject::Block(_)))
    }

    /// Each block with the special ones within it that it does not mean, and its ports.
    pub fn blocks(&self) -> impl Iterator<Item = (IpNet, Vec<IpNet>, &[u16])> {
        self.rules.iter().filter_map(|(subject, ports)| match subject {
            Subject::Block(block) => Some((*block, special::within(block), ports.as_slice())),
            _ => None,
        })
    }

    /// Whether a target may be resolved at all.
    ///
    /// # Errors
    /// [`Refusal::NotListed`] or [`Refusal::PortNotListed`].
    pub fn ask(&self, target: &Target) -> Result<(), Refusal> {
        let named = self.rules.iter().filter(|(subject, _)| match (subject, &target.host) {
            (Subject::Name(listed), Host::Name(name)) => listed == name,
            (Subject::Below(end), Host::Name(name)) => name.len() > end.len() && name.ends_with(end),
            (Subject::Block(block), Host::Address(address)) => block.contains(address),
            _ => false,
        });
        let mut ports = named.map(|(_, ports)| ports.contains(&target.port)).peekable();
        if ports.peek().is_none() {
            return Err(Refusal::NotListed(target.to_string()));
        }
        if ports.any(|listed| listed) { Ok(()) } else { Err(Refusal::PortNotListed(target.to_string())) }
    }

    /// Which of the addresses that a target resolves to may be connected to, in their order.
    ///
    /// # Errors
    /// What [`AllowList::ask`] says, [`Refusal::Unresolved`] without addresses, and
    /// [`Refusal::SpecialAddress`] when none of them may be reached.
    pub fn decide(&self, target: &Target, resolved: &[IpAddr]) -> Result<Vec<IpAddr>, Refusal> {
        self.ask(target)?;
        let mut refused = None;
        let mut reached = Vec::new();
        for address in resolved.iter().map(IpAddr::to_canonical) {
            match special(address) {
                Some((block, meaning)) if !self.names(address, &block, target.port) => {
                    let target = target.to_string();
                    refused.get_or_insert(Refusal::SpecialAddress { target, address, block, meaning });
                }
                _ => reached.push(address),
            }
        }
        match refused {
            _ if !reached.is_empty() => Ok(reached),
            Some(refusal) => Err(refusal),
            None => Err(Refusal::Unresolved(target.to_string())),
        }
    }

    /// Whether a rule names an address of a special block, and means it.
    fn names(&self, address: IpAddr, special: &IpNet, port: u16) -> bool {
        self.rules.iter().any(|(subject, ports)| match subject {
            Subject::Block(block) => special.contains(block) && block.contains(&address) && ports.contains(&port),
            _ => false,
        })
    }
}

fn name(host: &str) -> Result<Subject, RuleError> {
    if host.parse::<IpAddr>().is_ok() {
        return Err(RuleError::AddressAsHost(host.to_owned()));
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    Ok(match host.strip_prefix('*') {
        Some(end) => Subject::Below(end.to_owned()),
        None => Subject::Name(host),
    })
}

fn block(cidr: &str) -> Result<IpNet, RuleError> {
    let block: IpNet = cidr.parse().map_err(|_| RuleError::Block(cidr.to_owned()))?;
    let mapped = |ip: Ipv6Addr| ip.to_ipv4_mapped().is_some();
    match block {
        // Addresses are compared in the form of version 4.
        IpNet::V6(net) if mapped(net.network()) => Err(RuleError::Block(cidr.to_owned())),
        _ if block.trunc() != block => Err(RuleError::NotAligned { given: cidr.to_owned(), meant: block.trunc() }),
        _ => Ok(block),
    }
}
