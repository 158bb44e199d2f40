//! Arguments of `perch validate`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};
use url::Url;

use crate::cli::args::{Plane, interval};

/// Arguments of `perch validate`.
#[derive(Debug, ClapArgs)]
pub struct Validate {
    /// The only namespace whose servers and releases are checked; all when left out.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Fail on warnings, too.
    #[arg(long)]
    pub strict: bool,
    /// How to show what was found.
    #[arg(short, long, default_value = "table")]
    pub output: Output,
    /// How long one answer may take, of the gateway or of a server.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = interval)]
    pub timeout: kube::core::Duration,
    /// Base URL of the gateway as it is reached from here. Defaults to the gateway of the perch that
    /// runs on this machine, and on a cluster to what the status of servers says.
    #[arg(long, env = "PERCH_GATEWAY_URL", value_name = "URL")]
    pub gateway_url: Option<Url>,
    /// Base URL of the admin endpoint of a gateway. May be given often. Defaults to that of the perch
    /// that runs on this machine, and on a cluster to the gateways' pods, through the API server.
    #[arg(long, value_name = "URL")]
    pub gateway_admin_url: Vec<Url>,
    /// File with the token or API key to show to the gateway. Without it, PERCH_TOKEN is shown if it
    /// is set.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// PEM file with the certificates by which the gateway's own must be signed, when it serves TLS.
    /// Defaults to the machine's.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// On a cluster, the namespace of operator and gateway. Defaults to where their pods are.
    #[arg(long, value_name = "NAMESPACE")]
    pub perch_namespace: Option<String>,
    /// Which control plane is asked.
    #[command(flatten)]
    pub plane: Plane,
}

/// How to show what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns, for a person.
    Table,
    /// JSON.
    Json,
}
