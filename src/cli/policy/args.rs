//! Arguments of `perch policy` and of whoever enforces policies.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use crate::{
    api::mcp_server::GovernanceLevel,
    policy::{Mode, Scope},
};

/// What may run.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Judge files: McpServers, workloads of Kubernetes, output of Helm, compose files, Dockerfiles.
    Check(Check),
}

/// Arguments of `perch policy check`.
#[derive(Debug, ClapArgs)]
pub struct Check {
    /// File, or folder of files; `-` is standard input. A file is a Dockerfile when its name says
    /// so.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub files: Vec<PathBuf>,
    /// Least level. A server's own level counts where it is stricter.
    #[arg(long, default_value = "medium")]
    pub level: Level,
    /// Folder with policies of yours: modules (.rego), and settings.yaml. May be given often.
    #[arg(long, value_name = "DIR")]
    pub policies: Vec<PathBuf>,
    /// How to show what was found.
    #[arg(short, long, default_value = "human")]
    pub output: Format,
    /// Report of a scanner: JSON of Trivy, a VulnerabilityReport, or SARIF. It counts for the servers
    /// that run the image it names, in place of their annotations. Where it names none, say which:
    /// IMAGE=FILE. May be given often.
    #[arg(long, value_name = "[IMAGE=]FILE")]
    pub scan: Vec<String>,
    /// Ask registries who signed the images, where the policies name who must.
    #[arg(long)]
    pub verify_images: bool,
    /// Fail on warnings, too.
    #[arg(long)]
    pub strict: bool,
}

/// How to show what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person.
    Human,
    /// JSON.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
}

/// How strict the rules are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// The worst is told.
    Low,
    /// Hardened.
    Medium,
    /// Hardened, reviewed, scanned and tested.
    High,
}

impl From<Level> for GovernanceLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Low => Self::Low,
            Level::Medium => Self::Medium,
            Level::High => Self::High,
        }
    }
}

/// What happens to what breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Nothing when it is written; the condition Compliant still tells.
    Off,
    /// It is admitted with warnings.
    Warn,
    /// It is not admitted.
    Deny,
}

/// What counts where a namespace says nothing.
#[derive(Clone, Copy, Debug, ClapArgs)]
pub struct Default {
    /// Least policy level in namespaces without the label perch.dev/policy-level.
    #[arg(long, default_value = "low", value_name = "LEVEL")]
    pub policy_level: Level,
    /// What happens to servers that break a rule, in namespaces without the label
    /// perch.dev/policy-mode.
    #[arg(long, default_value = "warn", value_name = "MODE")]
    pub policy_mode: ModeArg,
}

impl Default {
    /// As the rules take it.
    pub fn scope(self) -> Scope {
        let mode = match self.policy_mode {
            ModeArg::Off => Mode::Off,
            ModeArg::Warn => Mode::Warn,
            ModeArg::Deny => Mode::Deny,
        };
        Scope { level: self.policy_level.into(), mode }
    }
}
