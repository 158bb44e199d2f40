//! `perch validate`: whether a deployment works from end to end, on this machine or on a cluster.
//!
//! What is asked is what users and controllers use: the control plane, the gateway, a handshake with
//! each server. It changes nothing. What cannot be read from here is a warning, not a failure.
//!
//! Exit codes: 0 nothing failed, 1 something did (or warned, with `--strict`), 2 wrong usage, or
//! there is nothing here to check.

pub mod args;
mod definitions;
mod finding;
mod gateway;
mod operator;
mod policies;
mod releases;
mod servers;

use std::time::Duration;

use jiff::Timestamp;
use kube::{Api, Client, ResourceExt, api::ListParams};
use url::Url;

use self::{
    args::{Output, Validate},
    finding::{Finding, Outcome},
    gateway::{Admin, Door},
};
use super::{client, data_dir::Holder, exit::Failure};
use crate::{
    api::{canary_release::CanaryRelease, mcp_server::McpServer},
    controllers::handshake::{GatewayAccess, GatewayKey},
};

/// Checks everything, and fails when something is not as it should be.
pub async fn run(args: Validate) -> Result<(), Failure> {
    let here = client::anywhere(&args.plane).await;
    // Where there is nothing to check, nothing was found wrong either.
    let (client, holder) = here.map_err(|failure| Failure::usage(failure.to_string()))?;
    let findings = check(&args, &client, holder.as_ref()).await?;
    match args.output {
        Output::Table => finding::table(&findings),
        Output::Json => say!("{:#}", finding::json(&findings)),
    }
    if finding::failed(&findings, args.strict) {
        return Err(Failure::failed(format!("the deployment is not as it should be: {}", finding::summary(&findings))));
    }
    Ok(())
}

async fn check(args: &Validate, client: &Client, holder: Option<&Holder>) -> Result<Vec<Finding>, Failure> {
    let patience = Duration::from(args.timeout);
    let key = key(args)?;
    let mut findings = Vec::new();
    match client.apiserver_version().await {
        Ok(version) => {
            let message = format!("it answers as Kubernetes {}", version.git_version);
            findings.push(Finding::new("ControlPlane", "api", Outcome::Pass, "Reachable", message));
        }
        Err(error) => {
            // Nothing else can be asked.
            findings.push(Finding::new("ControlPlane", "api", Outcome::Fail, "NotReachable", client::explain(&error)));
            return Ok(findings);
        }
    }
    findings.extend(definitions::check(client).await);
    let perch = args.perch_namespace.as_deref();
    let policies = if let Some(holder) = holder {
        let message = format!("perch up with pid {} runs since {}", holder.pid, holder.since);
        findings.push(Finding::new("Operator", "local", Outcome::Pass, "Running", message));
        Some("kube-system".to_owned())
    } else {
        let (found, home) = operator::check(client, perch).await;
        findings.extend(found);
        findings.extend(operator::webhook(client, args.namespace.as_deref()).await);
        home
    };
    if let Some(namespace) = &policies {
        findings.extend(policies::check(client, namespace).await);
    } else {
        let message = "nobody knows where the operator is: say --perch-namespace";
        findings.push(Finding::new("Policies", "bundles", Outcome::Skip, "NotFound", message));
    }
    let namespace = args.namespace.as_deref();
    let mut unreadable = |check, error: &kube::Error| {
        findings.push(Finding::new(check, "all", Outcome::Fail, "Unreadable", client::explain(error)));
    };
    let servers: Vec<McpServer> = list(client, namespace).await.unwrap_or_else(|error| {
        unreadable("Ready", &error);
        Vec::new()
    });
    let releases: Vec<CanaryRelease> = list(client, namespace).await.unwrap_or_else(|error| {
        unreadable("Release", &error);
        Vec::new()
    });
    for admin in admins(args, client, holder, &mut findings).await {
        findings.extend(gateway::check(&admin, client, &releases, patience).await);
    }
    for server in &servers {
        findings.extend(servers::judge(server));
    }
    let access = GatewayAccess { key, authority: args.ca_file.clone() };
    findings.extend(through(args, holder, &servers, &access, patience).await);
    let now = Timestamp::now();
    findings.extend(releases.iter().map(|release| releases::judge(release, now)));
    Ok(findings)
}

/// Objects of one namespace, or of all.
async fn list<K>(client: &Client, namespace: Option<&str>) -> kube::Result<Vec<K>>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api: Api<K> = namespace.map_or_else(|| Api::all(client.clone()), |n| Api::namespaced(client.clone(), n));
    let mut items = api.list(&ListParams::default()).await?.items;
    items.sort_by_key(|item| (item.namespace(), item.name_any()));
    Ok(items)
}

/// The token or key for the gateway.
fn key(args: &Validate) -> Result<Option<GatewayKey>, Failure> {
    if let Some(path) = &args.token_file {
        return match std::fs::metadata(path) {
            Ok(_) => Ok(Some(GatewayKey::File(path.clone()))),
            Err(error) => Err(Failure::usage(format!("{}: {error}", path.display()))),
        };
    }
    let token = std::env::var("PERCH_TOKEN").ok().filter(|token| !token.is_empty());
    Ok(token.map(|token| GatewayKey::Key(token.into())))
}

/// The admin endpoints of all gateways.
async fn admins(args: &Validate, client: &Client, holder: Option<&Holder>, findings: &mut Vec<Finding>) -> Vec<Admin> {
    if !args.gateway_admin_url.is_empty() {
        return args.gateway_admin_url.iter().cloned().map(Admin::At).collect();
    }
    if let Some(holder) = holder {
        let url = holder.admin.as_deref().and_then(|text| Url::parse(text).ok());
        return url.into_iter().map(Admin::At).collect();
    }
    match operator::pods(client, args.perch_namespace.as_deref(), "gateway").await {
        Ok(pods) if pods.is_empty() => {
            let message = "no pod of a gateway was found: say --perch-namespace, or --gateway-admin-url";
            findings.push(Finding::new("Gateway", "pods", Outcome::Warn, "NotFound", message));
            Vec::new()
        }
        Ok(pods) => pods.iter().map(Admin::of).collect(),
        Err(error) => {
            findings.push(operator::unreadable("Gateway", "pods", &error));
            Vec::new()
        }
    }
}

/// What a client of the gateway sees.
async fn through(
    args: &Validate,
    holder: Option<&Holder>,
    servers: &[McpServer],
    access: &GatewayAccess,
    patience: Duration,
) -> Vec<Finding> {
    let said = servers.iter().find_map(|s| base_of(s.status.as_ref()?.url.as_deref()?, s));
    let here = holder.and_then(|holder| Url::parse(&holder.gateway).ok());
    let Some(base) = args.gateway_url.clone().or(here).or(said) else {
        let message = "nobody knows where it is reached: say --gateway-url";
        return vec![Finding::new("Gateway", "public", Outcome::Skip, "NotKnown", message)];
    };
    let path = servers.first().map(|s| format!("/{}/{}/mcp", s.namespace().unwrap_or_default(), s.name_any()));
    let (finding, door) = gateway::reach(&base, &path.unwrap_or_default(), access.authority.as_deref(), patience).await;
    let mut findings = vec![finding];
    match door {
        Door::Shut => {}
        Door::Asks if access.key.is_none() => {
            let message = "the gateway asks who it is: set PERCH_TOKEN, or give --token-file";
            findings.push(Finding::new("Handshake", "all", Outcome::Warn, "NoToken", message));
        }
        Door::Open | Door::Asks => findings.extend(servers::shake_hands(servers, &base, access, patience).await),
    }
    findings
}

/// The gateway's base URL in the URL of a server. Pure.
fn base_of(url: &str, server: &McpServer) -> Option<Url> {
    let path = format!("/{}/{}/mcp", server.namespace().unwrap_or_default(), server.name_any());
    Url::parse(url.strip_suffix(&path)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_where_a_server_says_that_it_is() {
        let mut server = McpServer::new("a", serde_json::from_str(r#"{"image": "x"}"#).unwrap());
        server.metadata.namespace = Some("n".into());
        let base = |url: &str| base_of(url, &server).map(|url| url.to_string());
        assert_eq!(base("https://mcp.example.com/perch/n/a/mcp"), Some("https://mcp.example.com/perch".into()));
        assert_eq!(base("https://mcp.example.com/n/b/mcp"), None);
    }
}
