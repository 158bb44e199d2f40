//! Whether a pod gets out of its network: tried from inside, before its server starts.
//!
//! Perch runs nothing in pods that serve. An init container of its own shares the network of the server that comes
//! after it, and connects to the cluster's API server, which answers the operator all the time. What came of it is the
//! termination message of that container, which the operator reads in the pod's status.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::runtime::{NetworkReport, egress_proxy::probe};

/// Time for the connection, each time.
const CONNECT: Duration = Duration::from_millis(300);
/// Tries before silence is taken for silence: one packet may be lost.
const TRIES: usize = 2;
/// Wait before what was not found as declared is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Time for a network plugin to bring a policy to a new pod.
const POLICY: Duration = Duration::from_secs(3);
/// Time for a proxy that starts with its server.
const PROXY: Duration = Duration::from_secs(15);

/// What a pod should find.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// A way out to everywhere.
    pub open: bool,
    /// The proxy that is the only way to names.
    pub proxy: Option<SocketAddr>,
    /// Blocks that are reached directly.
    pub listed: Vec<IpNet>,
}

/// What a pod found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Whether that is as declared; none when it cannot be told.
    pub enforced: Option<bool>,
    /// What was found, as the end of a sentence.
    pub message: String,
}

/// Tries the way out of the network that this process is in, again until it is as declared or the time is over. It
/// blocks. `target` is the cluster's API server.
pub fn attempt(target: Option<SocketAddr>, declared: &Declared) -> Found {
    let Some(target) = target else { return unknown("the pod was not told the address of the cluster's API server") };
    if declared.listed.iter().any(|block| block.contains(&target.ip())) {
        return unknown("the cluster's API server, to which it would be tried, is on the list");
    }
    let patience = match (declared.open, declared.proxy) {
        (true, _) => Duration::ZERO,
        (false, None) => POLICY,
        (false, Some(_)) => PROXY,
    };
    let deadline = Instant::now() + patience;
    loop {
        let connects = (0..TRIES).any(|_| TcpStream::connect_timeout(&target, CONNECT).is_ok());
        let answer = declared.proxy.filter(|_| !connects).map(|p| probe::ask(p).map_err(|error| error.to_string()));
        let found = judge(declared, connects, answer);
        if found.enforced != Some(false) || Instant::now() >= deadline {
            return found;
        }
        std::thread::sleep(AGAIN);
    }
}

/// What it means that a connection came about or not, and what the proxy said.
fn judge(declared: &Declared, connects: bool, answer: Option<Result<String, String>>) -> Found {
    let found = |enforced, message: String| Found { enforced: Some(enforced), message };
    match (declared.open, connects, answer) {
        (true, true, _) => found(true, "a connection from inside found a way out".into()),
        (true, false, _) => unknown(
            "the tier is Public, and yet a connection from inside did not reach the cluster's API server: does a policy that is not Perch's select the pod?",
        ),
        (false, true, _) => found(
            false,
            "a connection from inside got out, which is forbidden: does the cluster's network plugin enforce NetworkPolicies?".into(),
        ),
        (false, false, None) => found(true, "a connection from inside found no way out".into()),
        (false, false, Some(Ok(line))) if probe::is_refusal(&line) => found(
            true,
            "a connection from inside found no way out, and the proxy refused a name that is not on the list".into(),
        ),
        (false, false, Some(Ok(line))) => {
            found(false, format!("the egress proxy answered {line:?} to a name that is not on the list"))
        }
        (false, false, Some(Err(error))) => {
            found(false, format!("there is no way out, not even to what is listed: the egress proxy does not answer ({error})"))
        }
    }
}

fn unknown(why: &str) -> Found {
    Found { enforced: None, message: format!("whether it blocks could not be tried: {why}") }
}

/// What the pods of a server say together: each as far as it has tried.
pub fn report(place: &str, pods: &[Option<Found>]) -> NetworkReport {
    let with = |enforced: Option<bool>| pods.iter().flatten().find(|found| found.enforced == enforced);
    let not_tried = || Found { enforced: None, message: "no pod has tried yet whether it blocks".into() };
    let missing = pods.is_empty() || pods.iter().any(Option::is_none);
    let worst = with(Some(false)).or_else(|| with(None)).cloned();
    let found = worst
        .unwrap_or_else(|| if missing { not_tried() } else { with(Some(true)).cloned().unwrap_or_else(not_tried) });
    NetworkReport { enforced: found.enforced, message: format!("{place}; {}", found.message) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn closed() -> Declared {
        Declared::default()
    }

    #[test]
    fn only_what_was_tried_is_in_force() {
        let open = Declared { open: true, ..Declared::default() };
        let refused = || Some(Ok("HTTP/1.1 403 Forbidden".to_owned()));
        for (declared, connects, answer, enforced, part) in [
            (open.clone(), true, None, Some(true), "found a way out"),
            (open, false, None, None, "a policy that is not Perch's"),
            (closed(), true, None, Some(false), "does the cluster's network plugin enforce NetworkPolicies?"),
            (closed(), true, refused(), Some(false), "got out"),
            (closed(), false, None, Some(true), "no way out"),
            (closed(), false, refused(), Some(true), "the proxy refused a name"),
            (closed(), false, Some(Ok("HTTP/1.1 200 OK".into())), Some(false), "answered \"HTTP/1.1 200 OK\""),
            (closed(), false, Some(Err("refused".into())), Some(false), "not even to what is listed"),
        ] {
            let found = judge(&declared, connects, answer);
            assert_eq!(found.enforced, enforced, "{found:?}");
            assert!(found.message.contains(part), "{found:?}");
        }
    }

    #[test]
    fn a_pod_finds_what_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().ok();
        assert_eq!(attempt(target, &Declared { open: true, ..closed() }).enforced, Some(true));
        assert_eq!(attempt(target, &closed()).enforced, Some(false));
        let listed = Declared { listed: vec!["127.0.0.0/8".parse().unwrap()], ..closed() };
        assert_eq!((attempt(target, &listed).enforced, attempt(None, &closed()).enforced), (None, None));
        drop(listener);
        assert_eq!(attempt(target, &closed()).enforced, Some(true));
    }

    #[test]
    fn the_worst_of_all_pods_counts_and_each_must_have_tried() {
        let found = |enforced| Some(Found { enforced, message: format!("{enforced:?}") });
        let told = |pods: &[Option<Found>]| report("here", pods).enforced;
        assert_eq!(told(&[]), None);
        assert_eq!(told(&[found(Some(true)), found(Some(true))]), Some(true));
        assert_eq!(told(&[found(Some(true)), None]), None, "one has not tried yet");
        assert_eq!(told(&[found(Some(true)), found(None)]), None);
        assert_eq!(told(&[None, found(Some(true)), found(Some(false))]), Some(false));
        assert_eq!(report("here", &[found(Some(true))]).message, "here; Some(true)");
    }
}
