//! How deep JSON may be nested. The gateway reads deep JSON without harm; the servers behind it, and
//! the libraries that they are made of, may not.

use http::StatusCode;

use super::reply::{self, Failure};

/// Refuses a body whose objects and lists stand in more than `limit` others.
pub fn check(body: &[u8], limit: usize) -> Result<(), Failure> {
    if depth(body) <= limit {
        return Ok(());
    }
    let message = format!("the body nests more than {limit} objects and lists in each other");
    Err(Failure::new(StatusCode::BAD_REQUEST, reply::INVALID_REQUEST, message))
}

fn depth(body: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => drop(bytes.next()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_outside_of_texts() {
        for (expected, body) in [
            (0, "7"),
            (0, ""),
            (1, "{}"),
            (2, r#"{"a":[]}"#),
            (2, "[{},{},{}]"),
            (1, r#"{"a":"[[["}"#),
            (1, r#"{"a":"\"[[[\\"}"#),
            (2, r#"{"a":"\\","b":[]}"#),
            (3, "[[[\"[["),
            (1, "]]]]["),
        ] {
            assert_eq!(depth(body.as_bytes()), expected, "{body}");
        }
        let deep = "[".repeat(129);
        assert!(check(&deep.as_bytes()[..128], 128).is_ok());
        assert_eq!(check(deep.as_bytes(), 128).unwrap_err().status, 400);
    }
}
