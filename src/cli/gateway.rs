//! `perch gateway`: the MCP entry point alone, in a cluster.

use std::sync::{Arc, Mutex};

use base64::{Engine, prelude::BASE64_STANDARD};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{args::Gateway, exit::Failure, stop::Stop, traces};
use crate::{
    gateway::{
        Config, DataPlane,
        access::{Access, OperatorKey, Source},
        tls::Tls,
    },
    runtime::kubernetes::KubernetesBackend,
    telemetry::admin,
};

/// Serves until it is told to stop, then lets calls in flight finish.
pub async fn run(args: Gateway) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    if args.access.is_none() && args.access_config.is_none() {
        return Err(Failure::usage(
            "nobody may use the gateway until it is said who: give --access-config FILE; or say --access anonymous, and let only those reach it who may",
        ));
    }
    let key = key(&args)?;
    let client = super::client::cluster("gateway").await?;
    let access = match args.access_config {
        None => Access::anonymous(),
        Some(path) => {
            let operator_key = args.operator_key_file.map(OperatorKey::File);
            let source = Source { path, operator_key, client: Some(client.clone()), resource: None };
            Access::load(source).map_err(|error| Failure::failed(error.to_string()))?
        }
    };
    let tls = match (args.tls_cert, args.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(Tls::load(certificate, key).map_err(|error| Failure::failed(error.to_string()))?)
        }
        _ => None,
    };
    let admin = super::listen_anywhere(args.admin_addr, "admin endpoint", "--admin-addr").await?;
    let listener = super::listen_anywhere(args.listen, "gateway", "--listen").await?;
    let backend = Arc::new(KubernetesBackend::gateway(client.clone(), args.namespace.as_deref()));
    let shutdown = CancellationToken::new();
    let name = args.name.unwrap_or_else(|| format!("gateway-{}", uuid::Uuid::new_v4()));
    let config = Config {
        traces: traces::start(&args.otlp, &name)?,
        name,
        audit: args.audit.config(),
        tls,
        hosts: args.hosts,
        origins: args.origins,
        namespace: args.namespace,
        bridged: true,
        ..Config::new(key, access)
    };
    let gateway = DataPlane::new(config, client, Arc::clone(&backend) as _, shutdown.clone());
    let gateway = gateway.map_err(|error| Failure::failed(error.to_string()))?;
    let ready: admin::Readiness = {
        let knows_routes = gateway.readiness();
        Arc::new(move || match (knows_routes(), backend.is_synced()) {
            (true, true) => Ok(()),
            (false, _) => Err("the servers and releases are not listed yet".into()),
            (true, false) => Err("the pods are not listed yet".into()),
        })
    };
    let mut registry = Registry::default();
    gateway.register(&mut registry);
    let registry = Arc::new(Mutex::new(registry));
    let admin = tokio::spawn(admin::serve(admin, ready, registry, gateway.admin_routes(), shutdown.clone()));
    let serve = gateway.serve(listener);
    tokio::pin!(serve);
    tokio::select! {
        () = &mut serve => {}
        () = stop.wait() => {
            tracing::info!("stopping");
            shutdown.cancel();
            tokio::select! {
                () = &mut serve => {}
                () = stop.wait() => {}
            }
        }
    }
    shutdown.cancel();
    // It ends with the token; how is no news.
    let _ = admin.await;
    Ok(())
}

/// The key that seals session ids: 32 bytes as they are, or as Base64.
fn key(args: &Gateway) -> Result<[u8; 32], Failure> {
    let Some(path) = &args.session_key_file else {
        tracing::warn!(
            "no --session-key-file: sessions do not outlive this process, and other gateways do not know them"
        );
        return Ok(rand::random());
    };
    let bad = |why: &str| {
        Failure::failed(format!("{}: {why}: it must hold 32 random bytes, plain or as Base64", path.display()))
    };
    let bytes = std::fs::read(path).map_err(|error| bad(&error.to_string()))?;
    if let Ok(key) = <[u8; 32]>::try_from(bytes.as_slice()) {
        return Ok(key);
    }
    let text = String::from_utf8_lossy(&bytes);
    let decoded = BASE64_STANDARD.decode(text.trim()).map_err(|error| bad(&error.to_string()))?;
    <[u8; 32]>::try_from(decoded.as_slice()).map_err(|_| bad("it is of another length"))
}
