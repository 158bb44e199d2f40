//! Which names a request may use. A browser sends the name of the page that it shows and of the
//! host that it believes to talk to; only known names may talk to the gateway (DNS rebinding).

use http::{StatusCode, header, request::Parts};

use super::{
    Config,
    reply::{self, Failure},
};

/// Refuses a request whose `Host` or `Origin` is not known.
pub fn check(config: &Config, parts: &Parts) -> Result<(), Failure> {
    let refuse = |what: &str, value: &str| {
        let message = format!("{what} {value:?} is not a name of this gateway");
        Err(Failure::new(StatusCode::FORBIDDEN, reply::INVALID_REQUEST, message))
    };
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|h| h.to_str().unwrap_or("?"));
    let host = host.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default();
    if hosts.next().is_some() || !is_known(config, host) {
        return refuse("host", host);
    }
    for origin in parts.headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("?");
        let listed = config.origins.iter().any(|known| known.eq_ignore_ascii_case(origin));
        let web = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        // A gateway that any host name may reach still does not serve any web page.
        let known = web.is_some_and(|host| is_loopback(name(host)) || is_listed(config, name(host)));
        if !listed && !known {
            return refuse("origin", origin);
        }
    }
    Ok(())
}

fn is_known(config: &Config, authority: &str) -> bool {
    let host = name(authority);
    is_loopback(host) || is_listed(config, host) || config.hosts.iter().any(|known| known == "*")
}

fn is_listed(config: &Config, host: &str) -> bool {
    config.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The host of `host[:port]`.
fn name(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(config: &Config, headers: &[(&str, &str)]) -> u16 {
        let mut request = http::Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        check(config, &parts).map_or_else(|failure| failure.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_known_names_may_talk() {
        let mut config = Config::new([0; 32], crate::gateway::access::Access::anonymous());
        config.hosts = vec!["gateway.example".into()];
        config.origins = vec!["https://app.example".into()];
        for (expected, headers) in [
            (200, vec![("host", "localhost:8080")]),
            (200, vec![("host", "[::1]:8080")]),
            (200, vec![("host", "Gateway.example")]),
            (403, vec![("host", "evil.example")]),
            (403, vec![("host", "localhost.evil.example")]),
            (403, vec![("host", "localhost"), ("host", "evil.example")]),
            (403, vec![]),
            (200, vec![("host", "localhost"), ("origin", "http://127.0.0.1:3000")]),
            (200, vec![("host", "localhost"), ("origin", "https://app.example")]),
            (403, vec![("host", "localhost"), ("origin", "https://app.example.evil")]),
            (403, vec![("host", "localhost"), ("origin", "http://evil.example")]),
            (403, vec![("host", "localhost"), ("origin", "null")]),
        ] {
            assert_eq!(code(&config, &headers), expected, "{headers:?}");
        }
        config.hosts = vec!["*".into()];
        assert_eq!(code(&config, &[("host", "10.1.2.3:80")]), 200);
        assert_eq!(code(&config, &[("host", "10.1.2.3:80"), ("origin", "http://evil.example")]), 403);
    }
}
