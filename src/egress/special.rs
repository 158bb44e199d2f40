//! Addresses that mean something special: the inside of networks, the machine itself, and what nobody is.

use std::{net::IpAddr, sync::LazyLock};

use ipnet::IpNet;

/// The registries of special-purpose addresses of IANA (RFC 6890 with its updates), and the blocks for many
/// receivers (RFC 5771, RFC 4291). Services that tell a machine of a cloud its credentials are in
/// `169.254.0.0/16`, `100.64.0.0/10` and `fc00::/7`.
const BLOCKS: [(&str, &str); 29] = [
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by providers"),
    ("127.0.0.0/8", "the machine itself"),
    ("169.254.0.0/16", "link-local, and metadata of clouds"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "of protocols"),
    ("192.0.2.0/24", "for documentation"),
    ("192.88.99.0/24", "of old relays"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "for benchmarks"),
    ("198.51.100.0/24", "for documentation"),
    ("203.0.113.0/24", "for documentation"),
    ("224.0.0.0/4", "for many receivers"),
    ("240.0.0.0/4", "reserved"),
    ("::/128", "no address"),
    ("::1/128", "the machine itself"),
    ("::/96", "an old form of version 4"),
    ("64:ff9b::/96", "a form of version 4"),
    ("64:ff9b:1::/48", "a form of version 4"),
    ("100::/64", "discarded"),
    ("2001::/23", "of protocols"),
    ("2001:db8::/32", "for documentation"),
    ("2002::/16", "a form of version 4"),
    ("3fff::/20", "for documentation"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "private, of old"),
    ("ff00::/8", "for many receivers"),
];

static PARSED: LazyLock<Vec<(IpNet, &str)>> = LazyLock::new(|| {
    let parse = |(block, meaning): (&str, &'static str)| (block.parse().expect("a constant that parses"), meaning);
    BLOCKS.map(parse).to_vec()
});

/// The special block that an address is in, and what the block is for; none for an address of the
/// internet.
#[must_use]
pub fn special(address: IpAddr) -> Option<(IpNet, &'static str)> {
    let address = address.to_canonical();
    PARSED.iter().find(|(block, _)| block.contains(&address)).copied()
}

/// The special blocks that are parts of a block. Of those that are within one another, only the largest.
pub(super) fn within(block: &IpNet) -> Vec<IpNet> {
    let parts = PARSED.iter().map(|(part, _)| *part).filter(|part| block.contains(part) && part != block);
    let parts: Vec<IpNet> =
        if PARSED.iter().any(|(special, _)| special.contains(block)) { Vec::new() } else { parts.collect() };
    IpNet::aggregate(&parts)
}
