//! Arguments.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

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
    /// List servers, or show one.
    Get(Get),
    /// Tell how servers are, and why.
    Status(Status),
    /// Show what a server wrote.
    Logs(Logs),
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
    /// Image on which npm packages are built for Docker.
    #[arg(long, env = "PERCH_NPM_BASE_IMAGE", default_value = "node:22-slim", value_name = "IMAGE")]
    pub npm_base_image: String,
    /// Image on which PyPI packages are built for Docker.
    #[arg(long, env = "PERCH_PYPI_BASE_IMAGE", default_value = "python:3.13-slim", value_name = "IMAGE")]
    pub pypi_base_image: String,
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

/// A server, or all.
#[derive(Debug, ClapArgs)]
pub struct Get {
    /// Name of a server; all when left out.
    pub name: Option<String>,
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Servers of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "name")]
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

/// For perch itself.
#[derive(Debug, Subcommand)]
pub enum Internal {
    /// Limit this process and become a server's program.
    Exec(Exec),
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
