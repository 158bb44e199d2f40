//! Arguments.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use url::Url;

use super::{canary::args::Canary, policy::args as policy, report::args::Report, validate::args::Validate};
use crate::gateway::AuditConfig;

/// Runs MCP servers as Kubernetes objects, on a cluster or on this machine alone.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the data directory is in use by another perch.
#[derive(Debug, Parser)]
#[command(name = "perch", version, propagate_version = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Which log lines appear on standard error, as in `info` or `perch::gateway=debug`.
    #[arg(long, global = true, env = "PERCH_LOG", default_value = "warn,rmcp=off", value_name = "FILTER")]
    pub log: String,
    /// How log lines look.
    #[arg(long, global = true, env = "PERCH_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start everything on this machine: control plane, controllers and gateway.
    Up(Up),
    /// Stop what `up` started, and remove what it made.
    Down(Down),
    /// List servers or toolboxes, or show one.
    Get(Get),
    /// Tell how servers are, and why.
    Status(Status),
    /// Check a deployment from end to end, here or on a cluster: definitions, operator, gateway,
    /// servers, policies, webhook, traces, releases.
    ///
    /// Nothing is changed. Exit codes: 0 nothing failed, 1 something did (or warned, with --strict),
    /// 2 wrong usage, or there is nothing here to check.
    Validate(Box<Validate>),
    /// Report on each server: owner, use, compliance, score, state of its life, and what should be
    /// done about it.
    Report(Report),
    /// Show what a server wrote.
    Logs(Logs),
    /// Look at releases of new versions, and steer them.
    Canary(Canary),
    /// Say what may run.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Run the controllers in a cluster.
    Operator(Box<Operator>),
    /// Run the MCP gateway in a cluster.
    Gateway(Gateway),
    /// Speak MCP on standard input and output for a server behind the gateway, for AI clients that
    /// only start commands.
    Connect(Connect),
    /// Prepare who may use a gateway.
    #[command(subcommand)]
    Access(AccessCommand),
    /// Serve a Stdio server over Streamable HTTP, inside its container.
    Bridge(Bridge),
    /// Be the one way out of a server that names what it reaches: an HTTP proxy with a list.
    EgressProxy(EgressProxy),
    /// For perch itself.
    #[command(subcommand, hide = true)]
    Internal(Internal),
}

/// Where perch keeps its things.
#[derive(Clone, Debug, ClapArgs)]
pub struct DataDir {
    /// Where perch keeps its things. Defaults to `$XDG_DATA_HOME/perch` or `~/.local/share/perch`.
    #[arg(long = "data-dir", env = "PERCH_DATA_DIR", value_name = "DIR")]
    pub path: Option<PathBuf>,
}

/// Which control plane is asked.
#[derive(Clone, Debug, ClapArgs)]
pub struct Plane {
    /// File that leads to a cluster. Left out, it is the perch that runs on this machine, and
    /// without one the cluster that kubectl uses ($KUBECONFIG, ~/.kube/config, the pod's own).
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Where perch keeps its things.
    #[command(flatten)]
    pub data_dir: DataDir,
}

/// Prepare who may use a gateway.
#[derive(Debug, Subcommand)]
pub enum AccessCommand {
    /// API keys.
    #[command(subcommand)]
    Key(KeyCommand),
}

/// API keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key: print it, this once, and the line by which a gateway knows it.
    Create(CreateKey),
}

/// Arguments of `perch access key create`.
#[derive(Debug, ClapArgs)]
pub struct CreateKey {
    /// What the key is for: tells keys apart.
    pub name: String,
    /// Whose it is. Defaults to the key's name.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Group of the user. May be given often.
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// When it ceases to be good, as in 2027-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub expires: Option<jiff::Timestamp>,
}

/// Arguments of `perch up`.
#[derive(Debug, ClapArgs)]
pub struct Up {
    /// File or directory of YAML or JSON to apply; `-` is standard input. May be given often.
    #[arg(long, value_name = "FILE|DIR")]
    pub apply: Vec<PathBuf>,
    /// What runs servers. `auto` takes Docker for images and packages when an engine answers, and
    /// processes for commands.
    #[arg(long, default_value = "auto")]
    pub runtime: Runtime,
    /// Where perch keeps its things.
    #[command(flatten)]
    pub data_dir: DataDir,
    /// Loopback address of the Kubernetes API. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDR")]
    pub api_addr: SocketAddr,
    /// Loopback address of the MCP gateway. Port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:7080", value_name = "ADDR")]
    pub gateway_addr: SocketAddr,
    /// Loopback address of the gateway's /healthz, /readyz, /metrics and /-/report. Port 0 takes a
    /// free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub gateway_admin_addr: SocketAddr,
    /// What the gateway records.
    #[command(flatten)]
    pub audit: Audit,
    /// Where traces go.
    #[command(flatten)]
    pub otlp: Otlp,
    /// File that says who may use the gateway. Without it, everybody on this machine may.
    #[arg(long, value_name = "FILE")]
    pub access_config: Option<PathBuf>,
    /// Folder with policies of yours, besides the ConfigMaps labelled perch.dev/policy=true in the
    /// namespace kube-system. May be given often.
    #[arg(long, value_name = "DIR")]
    pub policies: Vec<PathBuf>,
    /// What counts where a namespace says nothing.
    #[command(flatten)]
    pub policy: policy::Default,
    /// How often the gateways are asked how much servers are used. What they say goes into
    /// status.usage, at most once an hour; `perch report` shows it.
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = interval)]
    pub usage_interval: kube::core::Duration,
    /// Image on which npm packages are built for Docker.
    #[arg(long, env = "PERCH_NPM_BASE_IMAGE", default_value = "node:22-slim", value_name = "IMAGE")]
    pub npm_base_image: String,
    /// Image on which PyPI packages are built for Docker.
    #[arg(long, env = "PERCH_PYPI_BASE_IMAGE", default_value = "python:3.13-slim", value_name = "IMAGE")]
    pub pypi_base_image: String,
}

/// The audit log.
#[derive(Clone, Debug, ClapArgs)]
pub struct Audit {
    /// File that every operation of clients is recorded in, one JSON object a line: who, what,
    /// whether it was allowed, how it went, how long it took.
    #[arg(long, value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// Size in MiB at which the audit log is put aside as FILE.1, FILE.2 and so on.
    #[arg(long, default_value_t = 100, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub audit_log_max_size: u64,
    /// How many of those are kept.
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub audit_log_keep: u32,
    /// Record the arguments of calls too, without what is named like a secret.
    #[arg(long, requires = "audit_log")]
    pub audit_log_arguments: bool,
}

impl Audit {
    /// The settings, if there is to be a log.
    pub fn config(&self) -> Option<AuditConfig> {
        Some(AuditConfig {
            max_bytes: self.audit_log_max_size * 1024 * 1024,
            keep: self.audit_log_keep,
            arguments: self.audit_log_arguments,
            ..AuditConfig::new(self.audit_log.clone()?)
        })
    }
}

/// Traces.
#[derive(Clone, Debug, ClapArgs)]
pub struct Otlp {
    /// Base URL of a receiver of OpenTelemetry (OTLP over HTTP, usually port 4318) that traces of
    /// clients' operations are sent to. Without it, there are none. The other variables of
    /// OpenTelemetry count as well: OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER and so on.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Share of traces that are kept, 0 to 1, of those that begin at the gateway; a trace that a
    /// client began is kept if the client keeps it. Defaults to what OTEL_TRACES_SAMPLER says, or 1.
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    pub trace_ratio: Option<f64>,
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "give a number from 0 to 1".to_owned())
}

/// A time of a second or more.
pub fn interval(text: &str) -> Result<kube::core::Duration, String> {
    let interval = text.parse::<kube::core::Duration>().map_err(|error| error.to_string())?;
    let some = kube::core::Duration::from(std::time::Duration::from_secs(1));
    if interval >= some { Ok(interval) } else { Err("give at least 1s".to_owned()) }
}

/// What runs servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// Docker when an engine answers, and processes.
    Auto,
    /// Docker only.
    Docker,
    /// Processes only.
    Process,
}

/// Arguments of `perch down`.
#[derive(Debug, ClapArgs)]
pub struct Down {
    /// Where perch keeps its things.
    #[command(flatten)]
    pub data_dir: DataDir,
    /// Remove persistent volumes as well.
    #[arg(long)]
    pub volumes: bool,
}

/// A server or toolbox, or all.
#[derive(Debug, ClapArgs)]
pub struct Get {
    /// What to show: `servers`, which need not be said, or `toolboxes`; and a name, or all when left
    /// out.
    #[arg(value_name = "[KIND] NAME", num_args = 0..=2)]
    pub what: Vec<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Those of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// How to show them.
    #[arg(short, long, default_value = "table")]
    pub output: Output,
    /// Where perch keeps its things.
    #[command(flatten)]
    pub data_dir: DataDir,
}

/// How to show objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns.
    Table,
    /// Columns, the less important ones too.
    Wide,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
}

/// Arguments of `perch status`.
#[derive(Debug, ClapArgs)]
pub struct Status {
    /// Name of a server; all when left out.
    pub name: Option<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Where perch keeps its things.
    #[command(flatten)]
    pub data_dir: DataDir,
}

/// Arguments of `perch logs`.
#[derive(Debug, ClapArgs)]
pub struct Logs {
    /// Name of the server.
    pub name: String,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Go on with new lines as they come.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last so many lines.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Only lines of the last so long, as in `5m` or `1h30m`.
    #[arg(long, value_name = "DURATION")]
    pub since: Option<String>,
    /// Where perch keeps its things.
    #[command(flatten)]
    pub data_dir: DataDir,
}

/// Arguments of `perch connect`.
///
/// A token or an API key for the gateway is read from the variable PERCH_TOKEN, or from
/// --token-file. Exit codes: 0 the client closed standard input or asked to stop, 1 there is no
/// such server or no gateway, 2 wrong usage.
#[derive(Debug, ClapArgs)]
pub struct Connect {
    /// Server or toolbox, as NAME or NAMESPACE/NAME, with @REVISION for one revision of a server.
    /// May be left out when there is only one.
    pub name: Option<String>,
    /// Namespace, when the name has none.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// URL of the gateway, or of one endpoint of it (…/mcp), which then takes no name. Defaults to
    /// the gateway of the perch that runs on the data directory.
    #[arg(long, env = "PERCH_GATEWAY_URL", value_name = "URL")]
    pub url: Option<Url>,
    /// File with the token or API key to show to the gateway. It is read again when the gateway
    /// refuses what it held. Without it, PERCH_TOKEN is shown if it is set.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the certificates by which the gateway's own must be signed, when it serves
    /// TLS. Defaults to the machine's.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// How many seconds a gateway that cannot be reached is waited for, at the start and when it
    /// is started again.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub wait: u64,
    /// Where perch keeps its things.
    #[command(flatten)]
    pub data_dir: DataDir,
}

/// For perch itself.
#[derive(Debug, Subcommand)]
pub enum Internal {
    /// Limit this process and become a server's program.
    Exec(Exec),
    /// Try the way out of a pod, and copy this executable for its server.
    Prepare(Prepare),
    /// Ask a URL, for images without any other program.
    Check(Check),
}

/// Arguments of what comes before a server in its pod.
#[derive(Debug, ClapArgs)]
pub struct Prepare {
    /// Where the executable is copied to, for containers that have none.
    #[arg(long, value_name = "FILE")]
    pub copy: Option<PathBuf>,
    /// The way out that the pod should have; without it nothing is tried.
    #[arg(long)]
    pub way_out: Option<WayOut>,
    /// The egress proxy that leads to names.
    #[arg(long, value_name = "IP:PORT")]
    pub proxy: Option<SocketAddr>,
    /// A block that is reached directly.
    #[arg(long, value_name = "CIDR")]
    pub listed: Vec<IpNet>,
}

/// The way out of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WayOut {
    /// To everywhere.
    Open,
    /// To what is listed, if to anything.
    Closed,
}

/// Arguments of the check.
#[derive(Debug, ClapArgs)]
pub struct Check {
    /// What to ask.
    pub url: Url,
}

/// Arguments of `perch operator`.
#[derive(Debug, ClapArgs)]
pub struct Operator {
    /// Base URL of the gateway as the operator reaches it: readiness is an MCP handshake through it.
    #[arg(long, value_name = "URL")]
    pub gateway_url: Url,
    /// Base URL of the gateway as clients reach it, for `status.url`. Defaults to --gateway-url.
    #[arg(long, value_name = "URL")]
    pub public_url: Option<Url>,
    /// PEM file with the certificates by which the gateway's own must be signed, when it serves
    /// TLS. Defaults to the machine's.
    #[arg(long, value_name = "FILE")]
    pub gateway_ca_file: Option<PathBuf>,
    /// File with the key to show to the gateway (its --operator-key-file).
    #[arg(long, value_name = "FILE")]
    pub gateway_key_file: Option<PathBuf>,
    /// Perch's own image, from which the bridge is copied into pods of Stdio servers.
    #[arg(long, env = "PERCH_IMAGE", value_name = "IMAGE")]
    pub image: String,
    /// Pull policy of --image.
    #[arg(long, value_name = "POLICY")]
    pub image_pull_policy: Option<String>,
    /// Image on which npm packages are installed.
    #[arg(long, env = "PERCH_NPM_BASE_IMAGE", default_value = "node:22-slim", value_name = "IMAGE")]
    pub npm_base_image: String,
    /// Image on which PyPI packages are installed.
    #[arg(long, env = "PERCH_PYPI_BASE_IMAGE", default_value = "python:3.13-slim", value_name = "IMAGE")]
    pub pypi_base_image: String,
    /// Pull policy of the images on which packages are installed.
    #[arg(long, value_name = "POLICY")]
    pub package_pull_policy: Option<String>,
    /// Environment variable of package installations, for a proxy, a mirror or certificates, such
    /// as npm_config_registry, PIP_INDEX_URL or HTTPS_PROXY. May be given often.
    #[arg(long = "install-env", value_name = "NAME=VALUE")]
    pub install_env: Vec<String>,
    /// The only namespace to look after; all when left out.
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Namespace of the gateway, which alone may reach servers. Defaults to the operator's own.
    #[arg(long, value_name = "NAMESPACE")]
    pub gateway_namespace: Option<String>,
    /// Name of the Service of the gateways' admin endpoints, in the gateway's namespace: what they
    /// count is what releases are judged by.
    #[arg(long, default_value = "perch-gateway-admin", value_name = "NAME")]
    pub gateway_admin_service: String,
    /// How often the gateways are asked how much servers are used. What they say goes into
    /// status.usage, at most once an hour; `perch report` shows it.
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = interval)]
    pub usage_interval: kube::core::Duration,
    /// Label of the gateway's pods. May be given often.
    #[arg(long = "gateway-label", value_name = "KEY=VALUE", default_values = ["app.kubernetes.io/name=perch", "app.kubernetes.io/component=gateway"])]
    pub gateway_labels: Vec<String>,
    /// Name of the Lease by which one operator leads.
    #[arg(long, default_value = "perch-operator", value_name = "NAME")]
    pub lease_name: String,
    /// Namespace of the Lease. Defaults to the operator's own.
    #[arg(long, value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Name of this operator among the candidates. Made up when left out.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,
    /// The operator's own namespace.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub pod_namespace: Option<String>,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:8081", value_name = "ADDR")]
    pub admin_addr: SocketAddr,
    /// Judge servers by policies: the condition Compliant, and the webhook where there is one.
    #[arg(long)]
    pub policies: bool,
    /// What counts where a namespace says nothing.
    #[command(flatten)]
    pub policy: policy::Default,
    /// Address of the admission webhook, over TLS. Without it there is none.
    #[arg(long, value_name = "ADDR", requires = "policies")]
    pub webhook_addr: Option<SocketAddr>,
    /// Name of the Service of the webhook, in the operator's own namespace.
    #[arg(long, default_value = "perch-webhook", value_name = "NAME")]
    pub webhook_service: String,
    /// Name of the ValidatingWebhookConfiguration that gets the webhook's authority. Without it,
    /// whoever made the certificate puts it there.
    #[arg(long, value_name = "NAME")]
    pub webhook_configuration: Option<String>,
    /// More names by which API servers may reach the webhook, where that is not by its Service. May
    /// be given often.
    #[arg(long = "webhook-host", value_name = "NAME")]
    pub webhook_hosts: Vec<String>,
    /// Secret with the webhook's certificate (tls.crt, tls.key and ca.crt), in the operator's own
    /// namespace. With --webhook-configuration Perch makes and renews what is in it.
    #[arg(long, default_value = "perch-webhook-tls", value_name = "NAME")]
    pub webhook_secret: String,
}

/// Arguments of `perch gateway`.
#[derive(Debug, ClapArgs)]
pub struct Gateway {
    /// Address that clients reach.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Address of /healthz, /readyz, /metrics and /-/report.
    #[arg(long, default_value = "0.0.0.0:9090", value_name = "ADDR")]
    pub admin_addr: SocketAddr,
    /// Name of this gateway in what it reports. Made up when left out.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// What the gateway records.
    #[command(flatten)]
    pub audit: Audit,
    /// Where traces go.
    #[command(flatten)]
    pub otlp: Otlp,
    /// Who may use the gateway, where no file says it. Without either nobody may, and it does not
    /// start.
    #[arg(long, value_name = "WHO", conflicts_with = "access_config")]
    pub access: Option<Access>,
    /// File that says who may use the gateway. It is followed when it changes.
    #[arg(long, value_name = "FILE")]
    pub access_config: Option<PathBuf>,
    /// File with the key that the operator shows (its --gateway-key-file): with it, it asks servers
    /// how they are, and may do nothing else.
    #[arg(long, value_name = "FILE")]
    pub operator_key_file: Option<PathBuf>,
    /// PEM file with the certificate to show to clients, followed by those that it is signed by. It
    /// is followed when it changes. Without one, clients are served in plain HTTP.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the key of --tls-cert.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// File with 32 random bytes, plain or as Base64, that seal session ids. Gateways with the
    /// same key know each other's sessions.
    #[arg(long, value_name = "FILE")]
    pub session_key_file: Option<PathBuf>,
    /// The only namespace to serve; all when left out.
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Host name under which clients reach the gateway; `*` for any. May be given often.
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
    /// Origin of web pages that may call the gateway. May be given often.
    #[arg(long = "origin", value_name = "ORIGIN")]
    pub origins: Vec<String>,
}

/// Who may use the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Access {
    /// Whoever reaches it.
    Anonymous,
}

/// Arguments of `perch bridge`.
#[derive(Debug, ClapArgs)]
pub struct Bridge {
    /// Address to serve on.
    #[arg(long, default_value = "127.0.0.1:3000", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Start a process for each client session, as transport.sessions: PerSession asks.
    #[arg(long)]
    pub per_session: bool,
    /// Most sessions with a process of their own. Who comes next is told to try again later.
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub max_sessions: usize,
    /// After this long without a request the process of a session ends.
    #[arg(long, default_value = "30m", value_name = "DURATION")]
    pub idle_timeout: kube::core::Duration,
    /// The server's program and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Arguments of `perch egress-proxy`.
///
/// Whoever reaches it may use it: on a cluster a NetworkPolicy lets in the server alone. What it refuses is a
/// line of its log.
#[derive(Debug, ClapArgs)]
pub struct EgressProxy {
    /// Address to serve on.
    #[arg(long, default_value = "127.0.0.1:3128", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub admin_addr: SocketAddr,
    /// Whose way out it is, for its log and metrics.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub server: String,
    /// What may be reached, as in spec.network.egress: a list in JSON or YAML.
    #[arg(long, value_name = "RULES")]
    pub rules: String,
}

/// Arguments of the launcher.
#[derive(Debug, ClapArgs)]
pub struct Exec {
    /// Bytes of data of each process.
    #[arg(long)]
    pub data_bytes: u64,
    /// Open files of each process.
    #[arg(long)]
    pub open_files: u64,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    pub argv: Vec<OsString>,
}
