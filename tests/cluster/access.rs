//! Tokens of ServiceAccounts, shown to a gateway that asks a real API server about them.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::json;

use crate::{
    cluster::{Cluster, Level},
    wait,
};

/// A gateway on a cluster, ended when dropped.
struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// What the gateway answers to somebody who asks for a server that is not there.
fn ask(address: &str, token: &str) -> Option<u16> {
    let request = http::Request::get(format!("http://{address}/default/nothing/mcp"))
        .header("Authorization", format!("Bearer {token}"))
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let response = Client::builder(TokioExecutor::new()).build_http().request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!String::from_utf8_lossy(&body).contains(token), "no answer holds a token");
        Some(status)
    })
}

#[test]
fn a_gateway_knows_service_accounts_by_their_tokens() {
    let cluster = Cluster::start(Level::ControlPlane);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("access.yaml");
    let access = json!({
        "tokenReview": {"audiences": ["perch-gateway"], "cache": "2s"},
        "allow": [{"users": ["system:serviceaccount:default:robot"]}, {"groups": ["system:serviceaccounts:team"]}],
    });
    std::fs::write(&config, access.to_string()).unwrap();
    cluster.ok(&["apply", "--server-side", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/crds")]);
    cluster.ok(&["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"]);
    cluster.ok(&["create", "namespace", "team"]);
    for (namespace, name) in [("default", "robot"), ("default", "other"), ("team", "any")] {
        cluster.ok(&["create", "serviceaccount", name, "-n", namespace]);
    }
    let token = |namespace: &str, name: &str, audience: &str| {
        cluster.ok(&["create", "token", name, "-n", namespace, "--audience", audience]).trim().to_owned()
    };
    let address = free_address();
    let gateway = Command::new(env!("CARGO_BIN_EXE_perch"))
        .args(["gateway", "--listen", &address, "--admin-addr", &free_address(), "--access-config"])
        .arg(&config)
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdin(Stdio::null())
        .spawn();
    let _gateway = Gateway(gateway.unwrap());
    wait("the gateway", || ask(&address, "x").map(|status| assert_eq!(status, 401)));

    // Who came in is told that there is no such server, once the gateway knows which there are.
    let robot = token("default", "robot", "perch-gateway");
    let listed = wait("the list of servers", || ask(&address, &robot).filter(|status| *status != 503));
    assert_eq!(listed, 404);
    assert_eq!(ask(&address, &token("team", "any", "perch-gateway")), Some(404));
    assert_eq!(ask(&address, &token("default", "other", "perch-gateway")), Some(403));
    let elsewhere = token("default", "robot", "https://kubernetes.default.svc.cluster.local");
    assert_eq!(ask(&address, &elsewhere), Some(401), "a token for the API server is of no use here");
    let (signed, signature) = robot.rsplit_once('.').unwrap();
    let reversed: String = signature.chars().rev().collect();
    assert_eq!(ask(&address, &format!("{signed}.{reversed}")), Some(401));

    cluster.ok(&["delete", "serviceaccount", "robot", "-n", "default"]);
    wait("the account to be forgotten", || (ask(&address, &robot) == Some(401)).then_some(()));
    let any = token("team", "any", "perch-gateway");
    cluster.stop_component("kube-apiserver");
    assert_eq!(ask(&address, &any), Some(503), "nobody can tell");
    cluster.start_component("kube-apiserver");
    wait("the API server", || (ask(&address, &any) == Some(404)).then_some(()));
}
