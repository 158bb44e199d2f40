//! The gateways of a Service, by its EndpointSlices.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client, api::ListParams};
use url::Url;

use super::gateway::Address;

/// The label by which slices name their Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Name of the port of the admin endpoint.
const PORT: &str = "admin";

/// All endpoints of a Service, also those that take no new clients: they may still serve old ones.
pub(super) async fn addresses(client: &Client, namespace: &str, service: &str) -> Result<Vec<Address>, String> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let of_service = ListParams::default().labels(&format!("{SERVICE_NAME}={service}"));
    let slices = api.list(&of_service).await.map_err(|error| match error {
        kube::Error::Api(status) => format!("the gateways cannot be listed: {}", status.message),
        other => format!("the gateways cannot be listed: {other}"),
    })?;
    Ok(slices.items.iter().flat_map(of_slice).collect())
}

fn of_slice(slice: &EndpointSlice) -> Vec<Address> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|p| p.name.as_deref() == Some(PORT));
    let Some(port) = named.or_else(|| ports.first().filter(|_| ports.len() == 1)).and_then(|p| p.port) else {
        return Vec::new();
    };
    let one = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        // All addresses of an endpoint lead to the same place.
        let ip: std::net::IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let host = match ip {
            std::net::IpAddr::V4(ip) => ip.to_string(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let url = Url::parse(&format!("http://{host}:{port}/")).ok()?;
        let pod = endpoint.target_ref.as_ref().and_then(|r| r.name.clone());
        // Not known counts as ready, the API says.
        let takes_clients = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
        Some(Address { name: pod.unwrap_or_else(|| url.authority().to_owned()), url, takes_clients })
    };
    slice.endpoints.iter().flatten().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(slice: Value) -> Vec<(String, String, bool)> {
        let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
        of_slice(&slice).into_iter().map(|a| (a.name, a.url.to_string(), a.takes_clients)).collect()
    }

    #[test]
    fn each_endpoint_is_asked_on_its_admin_port() {
        let found = of(json!({"metadata": {}, "addressType": "IPv4",
            "ports": [{"name": "mcp", "port": 8080}, {"name": "admin", "port": 9090}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "gw-a"}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "terminating": true}},
                {"addresses": ["10.0.0.3"]}]}));
        assert_eq!(
            found,
            [
                ("gw-a".into(), "http://10.0.0.1:9090/".into(), true),
                ("10.0.0.2:9090".into(), "http://10.0.0.2:9090/".into(), false),
                ("10.0.0.3:9090".into(), "http://10.0.0.3:9090/".into(), true),
            ]
        );
        let v6 = of(json!({"metadata": {}, "addressType": "IPv6", "ports": [{"port": 1}],
            "endpoints": [{"addresses": ["fd00::1"]}]}));
        assert_eq!(v6[0].1, "http://[fd00::1]:1/");
        let none = of(json!({"metadata": {}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}],
            "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]}));
        assert!(none.is_empty(), "no port is as good as another");
    }
}
