//! Credentials as a request shows them.

use http::{HeaderMap, HeaderName, header};

use super::challenge::Refusal;

/// The header for an API key alone.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What a request shows. It cannot be printed.
pub enum Shown {
    /// Nothing.
    Nothing,
    /// A token, or an API key.
    Bearer(String),
    /// An API key.
    ApiKey(String),
}

/// Takes the credentials out of a request: nobody behind the gateway gets to see them. Which of
/// several were meant, nobody should guess.
pub fn take(headers: &mut HeaderMap) -> Result<Shown, Refusal> {
    let shown = read(headers);
    for name in [header::AUTHORIZATION, API_KEY, header::COOKIE, header::PROXY_AUTHORIZATION] {
        headers.remove(name);
    }
    shown
}

fn read(headers: &HeaderMap) -> Result<Shown, Refusal> {
    let invalid = |why: &str| Err(Refusal::Invalid(why.into()));
    let (authorization, key) = (headers.get_all(header::AUTHORIZATION), headers.get_all(API_KEY));
    let mut given = authorization.iter().map(|v| (v, false)).chain(key.iter().map(|v| (v, true)));
    let Some((value, is_key)) = given.next() else { return Ok(Shown::Nothing) };
    if given.next().is_some() {
        return invalid("several are shown: send one, in one header");
    }
    let Ok(value) = value.to_str() else { return invalid("they are no text") };
    if is_key {
        return Ok(Shown::ApiKey(value.trim().to_owned()));
    }
    match value.trim().split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Shown::Bearer(token.trim().to_owned()))
        }
        _ => invalid("send them as `Authorization: Bearer …`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(given: &[(&str, &str)]) -> Result<String, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers.insert("accept", "x".parse().unwrap());
        let shown = take(&mut headers);
        assert_eq!(headers.len(), 1, "only what is no secret stays: {headers:?}");
        shown.map(|shown| match shown {
            Shown::Nothing => "nothing".into(),
            Shown::Bearer(token) => format!("bearer {token}"),
            Shown::ApiKey(key) => format!("key {key}"),
        })
    }

    #[test]
    fn one_credential_is_taken_out() {
        assert_eq!(shown(&[]).unwrap(), "nothing");
        assert_eq!(shown(&[("cookie", "a=b")]).unwrap(), "nothing");
        assert_eq!(shown(&[("authorization", "Bearer abc")]).unwrap(), "bearer abc");
        assert_eq!(shown(&[("authorization", "bEARER  abc ")]).unwrap(), "bearer abc");
        assert_eq!(shown(&[("x-api-key", "abc")]).unwrap(), "key abc");
        for bad in [
            &[("authorization", "Basic YTpi")][..],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer ")],
            &[("authorization", "")],
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
            &[("authorization", "Bearer a"), ("x-api-key", "b")],
            &[("x-api-key", "a"), ("x-api-key", "a")],
        ] {
            assert!(matches!(shown(bad), Err(Refusal::Invalid(_))), "{bad:?}");
        }
    }
}
