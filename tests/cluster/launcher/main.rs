//! Brings up a real Kubernetes on this machine, for tests and for people.
//!
//! `test-cluster up --level node --dir DIR` starts one and comes back; `down --dir DIR` ends it and
//! removes all that it made; `run` does both in one process, which ends with its standard input.
//! `load-image --dir DIR IMAGE` puts an image of the Docker engine, or an archive, on the node.
//!
//! As root all programs live in namespaces of their own (processes, mounts, and at the `node` level
//! the network): the interfaces, packet filter rules, mounts and pods of a cluster end with it,
//! even if it is killed. How it is put together is told in `docs/testing-cluster.md`.

mod components;
mod image;
mod inside;
mod layout;
mod network_policy;
mod outside;
mod pki;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use layout::Level;

#[derive(Parser)]
#[command(about = "A real Kubernetes on this machine")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster that stays, and print the path of its kubeconfig.
    Up(Start),
    /// End a cluster and remove everything that it made.
    Down {
        /// Directory of the cluster.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Start a cluster that ends with standard input, or with SIGTERM. Reads commands, one a line.
    Run(Start),
    /// Put an image on the node of a cluster.
    LoadImage {
        /// Directory of the cluster.
        #[arg(long)]
        dir: PathBuf,
        /// Name of an image of the Docker engine, or path of an archive made by `docker save`.
        image: String,
    },
    /// Write the image of the program that tests run in pods to standard output, for `docker load`.
    ProbeImage,
    /// Run the cluster's programs; started by `run` in namespaces of their own.
    #[command(hide = true)]
    Inside(Start),
    /// Enforce network policies on this node.
    #[command(hide = true)]
    NetworkPolicies {
        /// Address of the cluster.
        #[arg(long)]
        kubeconfig: PathBuf,
    },
}

/// What to start.
#[derive(clap::Args, Clone)]
struct Start {
    /// How much of a cluster.
    #[arg(long, value_enum, default_value_t = Level::Node)]
    level: Level,
    /// Directory for everything that the cluster writes.
    #[arg(long)]
    dir: PathBuf,
    /// Number of nodes without a kubelet, played by kwok. At the levels `workloads` and `node`.
    #[arg(long, default_value_t = 0)]
    fake_nodes: u32,
    /// Go on when standard input ends.
    #[arg(long, hide = true)]
    detached: bool,
    /// Remove the directory at the end.
    #[arg(long)]
    temporary: bool,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Up(start) => outside::up(&start),
        Command::Down { dir } => outside::down(&dir),
        Command::Run(start) => outside::run(start),
        Command::LoadImage { dir, image } => outside::load_image(&dir, &image),
        Command::ProbeImage => outside::probe_image(),
        Command::Inside(start) => inside::run(&start),
        Command::NetworkPolicies { kubeconfig } => network_policy::agent::run(&kubeconfig),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
