//! `perch operator`: the controllers, in a cluster.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::ListParams};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio_util::sync::CancellationToken;

use super::{args::Operator, exit::Failure, stop::Stop};
use crate::{
    admission::{self, Gate},
    api::{canary_release::CanaryRelease, mcp_server::McpServer, mcp_toolbox::McpToolbox},
    controllers::{
        canary_release,
        handshake::{GatewayAccess, GatewayKey},
        leader_election::{Candidate, Timing},
        mcp_server, mcp_toolbox,
    },
    metrics::GatewayAddresses,
    runtime::kubernetes::{Config, KubernetesBackend},
    telemetry::admin,
    webhook::{
        self,
        certificates::{Certificate, Keeping},
    },
};

/// Wait before the API server is asked again for what is missing.
const AGAIN: Duration = Duration::from_secs(2);

/// Runs until it is told to stop. Of several operators one works, and the others stand by.
pub async fn run(args: Operator) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let listener = super::listen_anywhere(args.admin_addr, "admin endpoint", "--admin-addr").await?;
    let client = super::client::cluster("operator").await?;
    let shutdown = CancellationToken::new();
    let registry = Arc::new(Mutex::new(Registry::default()));
    let alive = Arc::new(AtomicBool::new(false));
    let gate = if args.policies {
        Some(Gate::with_registries(args.policy.scope(), Some(super::policy::registries()?)))
    } else {
        None
    };
    let certificate = Certificate::default();
    let ready: admin::Readiness = {
        let (alive, certificate) = (Arc::clone(&alive), certificate.clone());
        let asked = args.webhook_addr.is_some().then(|| gate.clone()).flatten();
        Arc::new(move || {
            if !alive.load(Ordering::Relaxed) {
                return Err("the API server or the CRDs are not there yet".into());
            }
            // Who is not ready is not asked for reviews.
            match &asked {
                Some(gate) if !gate.is_ready() => Err("the policies were not read yet".into()),
                Some(_) if !certificate.is_there() => Err("the webhook has no certificate yet".into()),
                _ => Ok(()),
            }
        })
    };
    let webhook = webhook(&args, &client, gate.as_ref(), certificate, shutdown.clone()).await?;
    let admin =
        tokio::spawn(admin::serve(listener, ready, Arc::clone(&registry), axum::Router::new(), shutdown.clone()));
    let work = lead(args, client, registry, alive, gate, shutdown.clone());
    tokio::pin!(work);
    let result = tokio::select! {
        result = &mut work => result,
        () = stop.wait() => {
            tracing::info!("stopping");
            shutdown.cancel();
            tokio::select! {
                result = &mut work => result,
                () = stop.wait() => Err(Failure::failed("stopped at once: the lease runs out by itself")),
            }
        }
    };
    shutdown.cancel();
    // It ends with the token; how is no news.
    let _ = admin.await;
    if let Some(webhook) = webhook {
        let _ = webhook.await;
    }
    result
}

/// Follows the policies, and serves the webhook where there is one, on every operator: whoever leads.
async fn webhook(
    args: &Operator,
    client: &Client,
    gate: Option<&Gate>,
    certificate: Certificate,
    shutdown: CancellationToken,
) -> Result<Option<tokio::task::JoinHandle<()>>, Failure> {
    let Some(gate) = gate.cloned() else { return Ok(None) };
    let listener = match args.webhook_addr {
        Some(addr) => Some(super::listen_anywhere(addr, "admission webhook", "--webhook-addr").await?),
        None => None,
    };
    let home = args.pod_namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let source = admission::Source { client: client.clone(), namespace: home.clone(), fixed: Vec::new() };
    let keeping = Keeping {
        client: client.clone(),
        namespace: home,
        secret: args.webhook_secret.clone(),
        service: args.webhook_service.clone(),
        hosts: args.webhook_hosts.clone(),
        configuration: args.webhook_configuration.clone(),
    };
    let client = client.clone();
    Ok(Some(tokio::spawn(async move {
        let follow = async {
            tokio::select! {
                () = admission::follow(gate.clone(), source) => {}
                () = shutdown.cancelled() => {}
            }
        };
        let serve = async {
            let Some(listener) = listener else { return };
            let keep = certificate.keep(keeping, shutdown.clone());
            let serve = async {
                // Before the policies are known there is nothing to answer.
                tokio::select! {
                    () = gate.ready() => webhook::serve(listener, certificate.clone(), gate.clone(), client, shutdown.clone()).await,
                    () = shutdown.cancelled() => {}
                }
            };
            tokio::join!(keep, serve);
        };
        tokio::join!(follow, serve);
    })))
}

async fn lead(
    args: Operator,
    client: Client,
    registry: Arc<Mutex<Registry>>,
    alive: Arc<AtomicBool>,
    gate: Option<Gate>,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    tokio::select! {
        () = crds(&client, args.namespace.as_deref()) => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    alive.store(true, Ordering::Relaxed);
    let leading = Gauge::<i64>::default();
    let metrics = mcp_server::Metrics::default();
    let release_metrics = canary_release::Metrics::default();
    let census = mcp_server::Census::default();
    let lives = mcp_server::Lives::default();
    {
        let mut registry = registry.lock().expect("nobody panics while holding the registry");
        registry.register("perch_operator_leading", "1 while this operator is the one that works", leading.clone());
        metrics.register(&mut registry);
        release_metrics.register(&mut registry);
        lives.register(&mut registry);
        if let Some(gate) = &gate {
            gate.register(&mut registry);
            census.register(&mut registry);
        }
    }
    let home = args.pod_namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    let identity = args.identity.clone().unwrap_or_else(|| format!("perch-{}", uuid::Uuid::new_v4()));
    let candidate = Candidate {
        leases: Api::<Lease>::namespaced(client.clone(), args.lease_namespace.as_deref().unwrap_or(&home)),
        name: args.lease_name.clone(),
        identity,
        timing: Timing::default(),
    };
    let config = config(&args, home)?;
    let gateways = GatewayAddresses::Discovered {
        client: client.clone(),
        namespace: config.gateway_namespace.clone(),
        service: args.gateway_admin_service.clone(),
    };
    let gateway_access = GatewayAccess {
        key: args.gateway_key_file.clone().map(GatewayKey::File),
        authority: args.gateway_ca_file.clone(),
    };
    let usage = super::releases::usage(gateways.clone(), args.usage_interval.into())?;
    let releases = super::releases::context(
        client.clone(),
        args.gateway_url.clone(),
        gateway_access.clone(),
        gateways,
        args.namespace.clone(),
        release_metrics,
    )?;
    let public = args.public_url.clone().unwrap_or_else(|| args.gateway_url.clone());
    candidate
        .run(&shutdown, |term| {
            let (client, config, metrics, leading) = (client.clone(), config.clone(), metrics.clone(), leading.clone());
            let releases = releases.clone();
            let gateway_access = gateway_access.clone();
            let (gate, census) = (gate.clone(), census.clone());
            let (usage, lives) = (Some(usage.clone()), lives.clone());
            let (gateway, public, namespace) = (args.gateway_url.clone(), public.clone(), args.namespace.clone());
            async move {
                let _leading = Leading::begin(leading);
                let backend = Arc::new(KubernetesBackend::operator(client.clone(), config));
                let synced = tokio::select! {
                    () = backend.synced() => true,
                    () = term.cancelled() => false,
                };
                if synced {
                    let toolboxes = mcp_toolbox::Context {
                        client: client.clone(),
                        gateway: gateway.clone(),
                        public: public.clone(),
                        gateway_access: gateway_access.clone(),
                        namespace: namespace.clone(),
                    };
                    let context = mcp_server::Context {
                        public,
                        gateway_access,
                        namespace,
                        metrics,
                        gate,
                        census,
                        usage,
                        lives,
                        ..mcp_server::Context::new(client, backend, gateway)
                    };
                    let servers = Box::pin(mcp_server::run(context, term.clone()));
                    let releases = Box::pin(canary_release::run(releases, term.clone()));
                    tokio::join!(servers, releases, Box::pin(follow_toolboxes(toolboxes, term)));
                }
            }
        })
        .await;
    Ok(())
}

/// Says that this operator works, until it is dropped.
struct Leading(Gauge<i64>);

impl Leading {
    fn begin(gauge: Gauge<i64>) -> Self {
        gauge.set(1);
        Self(gauge)
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

/// Looks after toolboxes once there is such a kind: servers do not wait for it.
async fn follow_toolboxes(context: mcp_toolbox::Context, term: CancellationToken) {
    tokio::select! {
        () = resource::<McpToolbox>(&context.client, context.namespace.as_deref()) => {}
        () = term.cancelled() => return,
    }
    mcp_toolbox::run(context, term).await;
}

fn config(args: &Operator, home: String) -> Result<Config, Failure> {
    let labels = pairs("--gateway-label", &args.gateway_labels)?;
    Ok(Config {
        image: args.image.clone(),
        image_pull_policy: args.image_pull_policy.clone(),
        npm_base: args.npm_base_image.clone(),
        pypi_base: args.pypi_base_image.clone(),
        package_pull_policy: args.package_pull_policy.clone(),
        gateway_namespace: args.gateway_namespace.clone().unwrap_or(home),
        install_env: pairs("--install-env", &args.install_env)?.into_iter().collect(),
        gateway_labels: labels,
        namespace: args.namespace.clone(),
    })
}

fn pairs(flag: &str, given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let split = |pair: &String| {
        let (key, value) = pair.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    let bad = |pair: &String| Failure::usage(format!("{flag} {pair:?} has no =: write it like key=value"));
    given.iter().map(|pair| split(pair).ok_or_else(|| bad(pair))).collect()
}

/// Waits until the resources are there, and says what is missing.
async fn crds(client: &Client, namespace: Option<&str>) {
    resource::<McpServer>(client, namespace).await;
    resource::<CanaryRelease>(client, namespace).await;
}

async fn resource<K>(client: &Client, namespace: Option<&str>)
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api: Api<K> = namespace.map_or_else(|| Api::all(client.clone()), |n| Api::namespaced(client.clone(), n));
    let name = K::plural(&());
    loop {
        match api.list(&ListParams::default().limit(1)).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if status.code == 404 => tracing::warn!(
                "the CRD {name}.perch.dev is not installed: `kubectl apply -f crds/`, or let the chart do it; waiting for it"
            ),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(
                    error = status.message,
                    "the operator's role does not let it list {name}; waiting for it"
                );
            }
            Err(error) => tracing::warn!(%error, "the API server does not answer; waiting for it"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
