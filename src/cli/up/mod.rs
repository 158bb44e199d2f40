//! `perch up`: everything on one machine, in one process.

mod apply;
mod progress;
mod summary;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    args::Up,
    data_dir::{DataDir, Holder},
    exit::Failure,
    listen_anywhere,
    machine::{self, Machine},
    policy, releases,
    stop::Stop,
    traces,
};
use crate::{
    admission::{self, Gate},
    api::crds,
    controllers::{
        canary_release,
        handshake::{GatewayAccess, GatewayKey},
        mcp_server, mcp_toolbox,
    },
    gateway::{
        self, DataPlane,
        access::{Access, OperatorKey, Source, api_key},
    },
    local::{ControlPlane, Credentials, LocalError, write_private},
    metrics::GatewayAddresses,
    runtime::egress_proxy::Refusals,
    telemetry::admin,
};

/// How long the parts may take to stop.
const STOP: Duration = Duration::from_secs(15);

/// Starts everything and stays until it is told to stop.
pub async fn run(args: Up) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let documents = apply::read(&args.apply)?;
    let fixed = policy::bundles(&args.policies)?;
    let data = DataDir::find(&args.data_dir)?;
    data.create()?;
    let mut lock = data.lock()?;
    let api = listen(args.api_addr, "API", "--api-addr").await?;
    let gateway = listen(args.gateway_addr, "gateway", "--gateway-addr").await?;
    let gateway_admin = listen(args.gateway_admin_addr, "gateway's admin endpoint", "--gateway-admin-addr").await?;
    let address = |listener: &TcpListener| {
        listener.local_addr().map_err(|error| Failure::failed(format!("a listener has no address: {error}")))
    };
    let (api_addr, gateway_addr, admin_addr) = (address(&api)?, address(&gateway)?, address(&gateway_admin)?);
    let holder = Holder {
        pid: i32::try_from(std::process::id()).unwrap_or_default(),
        api: format!("https://{api_addr}"),
        gateway: format!("http://{gateway_addr}"),
        admin: Some(format!("http://{admin_addr}")),
        since: Timestamp::now().strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
    };
    lock.sign(&holder).map_err(|error| Failure::failed(format!("the lock cannot be written: {error}")))?;

    let failed = |error: LocalError| Failure::failed(error.to_string());
    let control_plane = ControlPlane::open(data.root(), crds::all()).await.map_err(failed)?;
    let gate = Gate::with_registries(args.policy.scope(), Some(policy::registries()?));
    // What was named must be in force before anything is applied.
    gate.install(fixed.clone());
    if let Some(error) = gate.policies().refused().first() {
        return Err(Failure::usage(format!("a policy is not good: {error}")));
    }
    control_plane.enforce(gate.clone());
    let credentials = Credentials::load_or_create(&data.path("tls")).map_err(failed)?;
    write_private(&data.path("kubeconfig"), &credentials.kubeconfig(&holder.api))
        .map_err(|error| Failure::failed(format!("the kubeconfig cannot be written: {error}")))?;

    let source = admission::Source { client: control_plane.client(), namespace: "kube-system".into(), fixed };
    let shutdown = CancellationToken::new();
    let mut parts: JoinSet<Result<(), Failure>> = JoinSet::new();
    parts.spawn({
        let (control_plane, shutdown) = (control_plane.clone(), shutdown.clone());
        async move { control_plane.serve(api, &credentials, shutdown).await.map_err(failed) }
    });
    parts.spawn({
        let (gate, shutdown) = (gate.clone(), shutdown.clone());
        async move {
            tokio::select! {
                () = admission::follow(gate, source) => {}
                () = shutdown.cancelled() => {}
            }
            Ok(())
        }
    });
    say!("API      {} (kubeconfig {})", holder.api, data.path("kubeconfig").display());

    let backend = tokio::select! {
        backend = machine::backend(&args, &data) => backend,
        () = stop.wait() => return Ok(()),
    };
    let Machine { backend, said: runtime, refusals } = backend?;
    say!("Gateway  {}", holder.gateway);
    say!("Metrics  http://{admin_addr}/metrics");
    say!("Runtime  {runtime}");
    let (access, gateway_access) = access(&args, &holder)?;
    let traces = traces::start(&args.otlp, "local")?;
    let config =
        gateway::Config { audit: args.audit.config(), traces, ..gateway::Config::new(data.session_key()?, access) };
    let plane = DataPlane::new(config, control_plane.client(), backend.clone(), shutdown.clone());
    let plane = plane.map_err(|error| Failure::failed(error.to_string()))?;
    let release_metrics = canary_release::Metrics::default();
    let census = mcp_server::Census::default();
    let lives = mcp_server::Lives::default();
    let told = (&release_metrics, &gate, &census, &lives, &refusals);
    // What the gateway counted is asked for once more at the end.
    let asked = CancellationToken::new();
    parts.spawn(tell(&plane, told, gateway_admin, asked.clone()));
    parts.spawn(async move {
        plane.serve(gateway).await;
        Ok(())
    });
    let url = |text: &str| Url::parse(text).map_err(|error| Failure::failed(format!("{text}: {error}")));
    let measured = GatewayAddresses::Fixed(vec![url(&format!("http://{admin_addr}"))?]);
    let context = mcp_server::Context {
        usage: Some(releases::usage(measured.clone(), args.usage_interval.into())?),
        lives,
        gateway_access: gateway_access.clone(),
        gate: Some(gate.clone()),
        census: census.clone(),
        ..mcp_server::Context::new(control_plane.client(), backend.clone(), url(&holder.gateway)?)
    };
    parts.spawn({
        let shutdown = shutdown.clone();
        async move {
            mcp_server::run(context, shutdown).await;
            asked.cancel();
            Ok(())
        }
    });
    let toolboxes = mcp_toolbox::Context {
        client: control_plane.client(),
        gateway: url(&holder.gateway)?,
        public: url(&holder.gateway)?,
        gateway_access: gateway_access.clone(),
        namespace: None,
    };
    parts.spawn({
        let shutdown = shutdown.clone();
        async move {
            mcp_toolbox::run(toolboxes, shutdown).await;
            Ok(())
        }
    });
    let context = releases::context(
        control_plane.client(),
        url(&holder.gateway)?,
        gateway_access,
        measured,
        None,
        release_metrics,
    )?;
    parts.spawn({
        let shutdown = shutdown.clone();
        async move {
            canary_release::run(context, shutdown).await;
            Ok(())
        }
    });

    let show = async {
        apply::apply(&control_plane.client(), &documents).await?;
        progress::show(control_plane.client()).await?;
        summary::print(&control_plane.client(), &data, &holder).await
    };
    let mut result = tokio::select! {
        shown = show => shown.map(|()| None),
        () = stop.wait() => Ok(Some(())),
        ended = parts.join_next() => Err(unexpected(ended)),
    };
    if let Ok(None) = result {
        result = tokio::select! {
            () = stop.wait() => Ok(Some(())),
            ended = parts.join_next() => Err(unexpected(ended)),
        };
    }

    complain!("Stopping…");
    shutdown.cancel();
    let end = async {
        while parts.join_next().await.is_some() {}
        if let Err(error) = backend.shutdown().await {
            complain!("warning: not everything could be stopped: {error}");
        }
    };
    tokio::select! {
        () = async { drop(tokio::time::timeout(STOP * 2, end).await) } => {}
        () = stop.wait() => complain!("stopped at once: containers may still run, `perch down` removes them"),
    }
    result.map(|_| ())
}

/// What tells of itself beside the gateway.
type Told<'a> = (&'a canary_release::Metrics, &'a Gate, &'a mcp_server::Census, &'a mcp_server::Lives, &'a Refusals);

/// Serves what the gateway tells about itself, and what is known of releases.
fn tell(
    gateway: &DataPlane,
    (releases, gate, census, lives, refusals): Told<'_>,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> impl Future<Output = Result<(), Failure>> + Send + 'static {
    let mut registry = Registry::default();
    gateway.register(&mut registry);
    releases.register(&mut registry);
    gate.register(&mut registry);
    census.register(&mut registry);
    lives.register(&mut registry);
    refusals.register(&mut registry);
    let registry = Arc::new(Mutex::new(registry));
    let knows_routes = gateway.readiness();
    let ready: admin::Readiness =
        Arc::new(move || if knows_routes() { Ok(()) } else { Err("the servers are not listed yet".into()) });
    let serve = admin::serve(listener, ready, registry, gateway.admin_routes(), shutdown);
    async { serve.await.map_err(|error| Failure::failed(format!("the gateway's admin endpoint: {error}"))) }
}

/// Who may use the gateway, and what the controllers show to it.
fn access(args: &Up, holder: &Holder) -> Result<(Access, GatewayAccess), Failure> {
    let Some(path) = &args.access_config else { return Ok((Access::anonymous(), GatewayAccess::default())) };
    let (key, _) = api_key::create();
    let source = Source {
        path: path.clone(),
        resource: Some(holder.gateway.clone()),
        operator_key: Some(OperatorKey::Key(key.clone())),
        client: None,
    };
    let access = Access::load(source).map_err(|error| Failure::failed(error.to_string()))?;
    Ok((access, GatewayAccess { key: Some(GatewayKey::Key(key.into())), authority: None }))
}

fn unexpected(ended: Option<Result<Result<(), Failure>, tokio::task::JoinError>>) -> Failure {
    match ended {
        Some(Ok(Err(failure))) => failure,
        Some(Err(error)) => Failure::failed(format!("a part of perch failed: {error}")),
        Some(Ok(Ok(()))) | None => Failure::failed("a part of perch ended by itself"),
    }
}

async fn listen(addr: SocketAddr, what: &str, flag: &str) -> Result<TcpListener, Failure> {
    if !addr.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "the {what} would listen on {}, which others on the network can reach, and it asks nobody who they are: use a loopback address such as 127.0.0.1:{}",
            addr.ip(),
            addr.port()
        )));
    }
    listen_anywhere(addr, what, flag).await
}
