//! Arguments of `perch canary`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use crate::cli::args::Plane;

/// Arguments of `perch canary`.
#[derive(Debug, ClapArgs)]
pub struct Canary {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do with releases.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show how a release is, and why; without a name, list all.
    Status(Status),
    /// Show how a release is, anew at each change.
    Watch(Watch),
    /// Hold a release where it is. A bad candidate is taken back all the same.
    Pause(Tell),
    /// Go on after a pause, or say yes to what waits for approval.
    Resume(Tell),
    /// Give the candidate to everybody now, past all stages that are left.
    Promote(Tell),
    /// End this stage now and go on to the next.
    Skip(Tell),
    /// Take the candidate back.
    Abort(Tell),
    /// Release a revision again that was taken back.
    Retry(Tell),
    /// Show releases that ended; as JSON, the incident record of each rollback.
    History(History),
    /// Say what each stage of a file can decide with the traffic that is expected. Asks nobody.
    ///
    /// Exit code 1 when a stage cannot decide, or when the file makes no sense.
    Simulate(Simulate),
}

/// Where releases are.
#[derive(Debug, ClapArgs)]
pub struct Place {
    /// Namespace.
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Which control plane has them.
    #[command(flatten)]
    pub plane: Plane,
}

/// Arguments of `perch canary status`.
#[derive(Debug, ClapArgs)]
pub struct Status {
    /// Name of the CanaryRelease; all when left out.
    pub name: Option<String>,
    /// How to show it.
    #[arg(short, long, default_value = "text")]
    pub output: Output,
    /// Where it is.
    #[command(flatten)]
    pub place: Place,
}

/// Arguments of `perch canary watch`.
#[derive(Debug, ClapArgs)]
pub struct Watch {
    /// Name of the CanaryRelease.
    pub name: String,
    /// End when no release is under way: with 0 when the candidate reached everybody, with 1 when it
    /// was taken back.
    #[arg(long)]
    pub until_done: bool,
    /// Where it is.
    #[command(flatten)]
    pub place: Place,
}

/// Arguments of a command to a release.
#[derive(Debug, ClapArgs)]
pub struct Tell {
    /// Name of the CanaryRelease.
    pub name: String,
    /// Who says so, for the record.
    #[arg(long, env = "USER", value_name = "WHO", hide_env_values = true)]
    pub by: Option<String>,
    /// Longest time to wait for the answer, in seconds.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,
    /// Where it is.
    #[command(flatten)]
    pub place: Place,
}

/// Arguments of `perch canary history`.
#[derive(Debug, ClapArgs)]
pub struct History {
    /// Name of the CanaryRelease.
    pub name: String,
    /// How to show it. JSON and YAML are the incident records of rollbacks.
    #[arg(short, long, default_value = "text")]
    pub output: Output,
    /// Where it is.
    #[command(flatten)]
    pub place: Place,
}

/// Arguments of `perch canary simulate`.
#[derive(Debug, ClapArgs)]
pub struct Simulate {
    /// File of YAML or JSON with CanaryReleases; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Calls of the server in a minute, by all its users.
    #[arg(long, value_name = "N")]
    pub calls_per_minute: f64,
    /// Share of bad calls that a good candidate has.
    #[arg(long, default_value = "0%", value_name = "PERCENT")]
    pub usual_errors: String,
    /// Share of all calls that named users and groups make.
    #[arg(long, default_value = "0%", value_name = "PERCENT")]
    pub named_share: String,
}

/// How to show a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For a person.
    Text,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
}
