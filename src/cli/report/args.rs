//! Arguments of `perch report`.

use clap::{Args as ClapArgs, ValueEnum};

use crate::cli::args::Plane;

/// Arguments of `perch report`.
#[derive(Debug, ClapArgs)]
pub struct Report {
    /// The only namespace; all when left out.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only servers that something is recommended for.
    #[arg(long)]
    pub recommended: bool,
    /// How to show it.
    #[arg(short, long, default_value = "table")]
    pub output: Output,
    /// Which control plane is asked.
    #[command(flatten)]
    pub plane: Plane,
}

/// How to show a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns, and below them what is recommended and why.
    Table,
    /// JSON.
    Json,
    /// Comma-separated values (RFC 4180), for spreadsheets.
    Csv,
    /// A table in Markdown.
    Markdown,
}
