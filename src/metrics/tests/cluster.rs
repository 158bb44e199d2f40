//! What is read from a cluster: the gateways of a Service, and reports of scanners.

use kube::Client;

use super::*;

/// A client of an API that answers as it is told.
async fn api(answer: impl Fn(&str) -> Response + Send + Sync + 'static) -> Client {
    let server = Server::start(move |path, _| answer(path)).await;
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    Client::try_from(kube::Config::new(server.url.as_str().parse().unwrap())).unwrap()
}

fn refusal(code: u16, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": "Because", "message": message});
    (StatusCode::from_u16(code).unwrap(), axum::Json(status)).into_response()
}

/// A slice with one endpoint of a gateway.
fn slice(url: &Url, pod: &str, ready: bool) -> Value {
    json!({"metadata": {"name": pod}, "addressType": "IPv4", "ports": [{"name": "admin", "port": url.port()}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": ready, "serving": ready},
            "targetRef": {"kind": "Pod", "name": pod}}]})
}

async fn discovered(slices: Vec<Value>) -> Providers {
    let client = api(move |path| {
        assert_eq!(path, "/apis/discovery.k8s.io/v1/namespaces/perch-system/endpointslices");
        let list =
            json!({"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": {}, "items": slices});
        axum::Json(list).into_response()
    })
    .await;
    by_service(client)
}

fn by_service(client: Client) -> Providers {
    let service = GatewayAddresses::Discovered {
        client,
        namespace: "perch-system".into(),
        service: "perch-gateway-admin".into(),
    };
    Providers::with_limits(service, http(), quick())
}

#[tokio::test]
async fn the_gateways_of_a_service_are_all_asked() {
    let counted = || vec![revision(CANDIDATE, 0, vec![(CountedSignal::Errors, 0, 50)])];
    let (one, old) = (gateway(report("gw-a", 7, counted())).await, gateway(report("gw-b", 6, counted())).await);
    let gone = nobody().await;
    let asked = Asked::about(&errors(), &json!([]));
    // One that drains and still answers counts; one that is gone for good is not waited for.
    let slices = vec![slice(&one.url, "gw-a", true), slice(&old.url, "gw-b", false), slice(&gone, "gw-c", false)];
    let found = asked.measure(&discovered(slices).await).await;
    let epochs: Vec<_> = found.gateways.iter().map(|g| (g.name.as_str(), g.epoch)).collect();
    assert_eq!(epochs, [("gw-a", Some(7)), ("gw-b", Some(6))]);
    assert!(matches!(reading(&found, "errorRate"), Reading::Counters(series) if series.len() == 2));

    let ready = asked.measure(&discovered(vec![slice(&one.url, "gw-a", true), slice(&gone, "gw-c", true)]).await).await;
    assert_eq!(ready.gateways[1], Gateway { name: "gw-c".into(), epoch: None }, "it takes clients, so it matters");
    assert!(matches!(reading(&ready, "errorRate"), Reading::Unknown(why) if why.contains("gw-c")));

    // A pod with two addresses of which one does not work.
    let both = asked.measure(&discovered(vec![slice(&gone, "gw-a", true), slice(&one.url, "gw-a", true)]).await).await;
    assert_eq!(both.gateways, [Gateway { name: "gw-a".into(), epoch: Some(7) }]);

    let none = asked.measure(&discovered(Vec::new()).await).await;
    assert!(none.gateways.is_empty());
    assert!(matches!(reading(&none, "errorRate"), Reading::Unknown(_)));
}

#[tokio::test]
async fn gateways_that_cannot_be_listed_have_acknowledged_nothing() {
    let providers = by_service(api(|_| refusal(403, "endpointslices is forbidden")).await);
    let found = Asked::about(&errors(), &json!([])).measure(&providers).await;
    let name = "service perch-system/perch-gateway-admin".to_owned();
    assert_eq!(found.gateways, [Gateway { name, epoch: None }]);
    assert!(
        matches!(reading(&found, "errorRate"), Reading::Unknown(why) if why.contains("endpointslices is forbidden"))
    );
}

#[tokio::test]
async fn scans_are_read_from_the_cluster() {
    let asked = Asked::about(&json!([{"metric": "vulnerabilities", "threshold": "0 critical"}]), &json!([]));
    let read = async |reports: fn() -> Response| {
        let client = api(move |path| match path {
            "/api/v1/namespaces/default/pods" => {
                let pods = json!([{"metadata": {"name": "srv-x", "annotations": {"perch.dev/revision": CANDIDATE},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "mcp-srv-9", "uid": "1"}]}}]);
                axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})).into_response()
            }
            "/apis/aquasecurity.github.io/v1alpha1/namespaces/default/vulnerabilityreports" => reports(),
            other => panic!("{other}"),
        })
        .await;
        let providers =
            Providers::with_limits(GatewayAddresses::Fixed(Vec::new()), http(), quick()).with_cluster(client);
        reading(&asked.measure(&providers).await, "vulnerabilities")
    };
    let found = read(|| {
        let report = json!({"apiVersion": "aquasecurity.github.io/v1alpha1", "kind": "VulnerabilityReport",
            "metadata": {"name": "r", "labels": {"trivy-operator.resource.kind": "ReplicaSet",
                "trivy-operator.resource.name": "mcp-srv-9", "trivy-operator.container.name": "server"}},
            "report": {"artifact": {"digest": "sha256:1"},
                "summary": {"criticalCount": 2, "highCount": 1, "mediumCount": 0, "lowCount": 7}}});
        let list = json!({"kind": "VulnerabilityReportList", "apiVersion": "aquasecurity.github.io/v1alpha1",
            "metadata": {}, "items": [report]});
        axum::Json(list).into_response()
    })
    .await;
    let expected = crate::canary::observation::Findings { critical: 2, high: 1, medium: 0, low: 7 };
    assert_eq!(found, Reading::Findings(expected));
    for (answer, why) in [
        ((|| refusal(404, "not found")) as fn() -> Response, "install Trivy Operator"),
        (|| refusal(403, "forbidden"), "may not list vulnerabilityreports"),
        (|| refusal(500, "storage is broken"), "storage is broken"),
    ] {
        let found = read(answer).await;
        assert!(matches!(&found, Reading::Unknown(said) if said.contains(why)), "{found:?}");
    }
}
