//! Names of images: where the registry is, and what to ask it for.

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Host, with a port where one is named.
    pub host: String,
    /// Path in the registry.
    pub repository: String,
    /// Tag; `latest` where neither tag nor digest is named.
    pub tag: String,
    /// Digest, `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Takes a name apart that begins with its registry. None where it is no name: whatever it
    /// holds becomes part of an address, so it is read strictly.
    pub fn parse(image: &str) -> Option<Self> {
        let (name, digest) = match image.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (image, None),
        };
        if !digest.is_none_or(is_digest) {
            return None;
        }
        let (host, path) = name.split_once('/')?;
        let last = path.rfind('/').map_or(0, |i| i + 1);
        let (repository, tag) = match path[last..].find(':') {
            Some(colon) => (&path[..last + colon], &path[last + colon + 1..]),
            None => (path, "latest"),
        };
        let (domain, port) = host.split_once(':').unwrap_or((host, "0"));
        let of = |text: &str, extra: &str| {
            text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c)) && !text.is_empty()
        };
        let part = |part: &str| of(part, "._-") && part.starts_with(|c: char| c.is_ascii_alphanumeric());
        let good = of(domain, ".-")
            && domain.starts_with(|c: char| c.is_ascii_alphanumeric())
            && port.parse::<u16>().is_ok()
            && repository.split('/').all(part)
            && of(tag, "._-")
            && tag.len() <= 128
            && repository.len() <= 255;
        good.then(|| Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
            tag: tag.to_owned(),
            digest: digest.map(str::to_owned),
        })
    }

    /// Whether the registry is on this machine. Engines then speak HTTP without TLS.
    pub fn is_near(&self) -> bool {
        let domain = self.host.split(':').next().unwrap_or_default();
        is_loopback(domain)
    }

    /// The address of something in the repository.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.is_near() { "http" } else { "https" };
        // Docker Hub answers at another name than that of its images.
        let host = if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host };
        format!("{scheme}://{host}/v2/{}/{path}", self.repository)
    }
}

/// Whether a host is this machine.
pub(super) fn is_loopback(domain: &str) -> bool {
    domain == "localhost" || domain.parse::<std::net::Ipv4Addr>().is_ok_and(|a| a.is_loopback())
}

/// Whether this is a SHA-256 as registries write it.
pub(super) fn is_digest(text: &str) -> bool {
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    text.strip_prefix("sha256:").is_some_and(|h| h.len() == 64 && h.chars().all(hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let image = format!("127.0.0.1:5000/team/x:1.2@{digest}");
        let found = Reference::parse(&image).unwrap();
        assert_eq!(
            (found.host.as_str(), found.repository.as_str(), found.tag.as_str()),
            ("127.0.0.1:5000", "team/x", "1.2")
        );
        assert_eq!(found.digest, Some(digest));
        assert_eq!(found.url("manifests/1"), "http://127.0.0.1:5000/v2/team/x/manifests/1");
        let hub = Reference::parse("docker.io/library/nginx").unwrap();
        assert_eq!(
            (hub.tag.as_str(), hub.url("x").as_str()),
            ("latest", "https://registry-1.docker.io/v2/library/nginx/x")
        );
        let named = Reference::parse("localhost.example.com/x:1").unwrap();
        assert!(!named.is_near());
    }

    #[test]
    fn what_would_lead_elsewhere_is_no_name() {
        for bad in [
            "",
            "x",
            "x/",
            "/x:1",
            "a.b/../x:1",
            "a.b/x:1?y",
            "a.b/x#y:1",
            "a.b@c/x:1",
            "user:pw@a.b/x",
            "a.b/x@sha256:ab",
            "a.b/x y",
            "a.b:99999/x",
            "[::1]/x",
            "a.b/x:",
            "a.b//x",
            "a.b/x%2e:1",
            "-a/x",
        ] {
            assert_eq!(Reference::parse(bad), None, "{bad}");
        }
    }
}
