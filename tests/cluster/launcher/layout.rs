//! Where things are: the files of a cluster, its addresses and ports, and the programs it runs.

use std::{
    io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use clap::ValueEnum;

/// Any failure of the launcher, as a sentence.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// How much of a Kubernetes is started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Level {
    /// etcd and the API server: enough for what the API does.
    ControlPlane,
    /// And the controller manager and the scheduler: objects come alive, but no process runs.
    Workloads,
    /// And a node with pods, Services, DNS and network policies. Needs root.
    Node,
}

impl Level {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::Workloads => "workloads",
            Self::Node => "node",
        }
    }
}

/// Name of the node.
pub const NODE: &str = "perch-node";

/// The files of one cluster.
#[derive(Clone)]
pub struct Files(pub PathBuf);

impl Files {
    /// A file or directory of this cluster.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The socket of containerd.
    pub fn containerd(&self) -> String {
        self.text("containerd.sock")
    }

    /// Writes a file with the directories above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> io::Result<String> {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&self.0))?;
        std::fs::write(&path, content)?;
        Ok(path.display().to_string())
    }

    /// The last lines of a log, for error messages.
    pub fn tail(&self, log: &str) -> String {
        let text = std::fs::read(self.path(&format!("logs/{log}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// Addresses and ports of one cluster.
#[derive(Clone)]
pub struct Network {
    /// Address at which the API server is reached, from this machine and from pods.
    pub address: String,
    /// Address at which it listens.
    pub bind: String,
    /// Port of the API server.
    pub api: u16,
    /// Port of etcd for clients.
    pub etcd: u16,
    /// Port of etcd for its peers, of which there are none.
    pub etcd_peer: u16,
    /// The third number in all of the cluster's addresses.
    pub index: u8,
}

impl Network {
    /// On loopback, with ports that are free now.
    pub fn loopback() -> io::Result<Self> {
        let listeners = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0"));
        let mut ports = Vec::new();
        for listener in listeners {
            ports.push(listener?.local_addr()?.port());
        }
        Ok(Self {
            address: "127.0.0.1".into(),
            bind: "127.0.0.1".into(),
            api: ports[0],
            etcd: ports[1],
            etcd_peer: ports[2],
            index: 0,
        })
    }

    /// In a network namespace of its own.
    pub fn own(index: u8) -> Self {
        Self {
            address: format!("10.111.{index}.2"),
            bind: "0.0.0.0".into(),
            api: 6443,
            etcd: 2379,
            etcd_peer: 2380,
            index,
        }
    }

    /// Address of this machine as the cluster sees it.
    pub fn host(&self) -> String {
        format!("10.111.{}.1", self.index)
    }

    /// Addresses of pods.
    pub fn pods(&self) -> String {
        format!("10.112.{}.0/24", self.index)
    }

    /// Addresses of Services. Without a node nobody reaches them, and thousands may be there.
    pub fn services(&self) -> String {
        if self.address == "127.0.0.1" {
            return "10.113.0.0/16".into();
        }
        format!("10.113.{}.0/24", self.index)
    }

    /// Address of the Service `kubernetes`.
    pub fn api_service(&self) -> String {
        format!("10.113.{}.1", self.index)
    }

    /// Address of the DNS Service.
    pub fn dns(&self) -> String {
        format!("10.113.{}.10", self.index)
    }
}

/// Finds a program: in `KUBEBUILDER_ASSETS`, in target/testbin, on the path.
pub fn program(name: &str) -> Result<PathBuf, Error> {
    let mut places: Vec<PathBuf> = Vec::new();
    places.extend(std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from));
    places.extend(std::env::var_os("PERCH_TESTBIN").map(PathBuf::from));
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/testbin"));
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    places.extend(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.into_iter().map(|p| p.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| format!("{name} is missing: hack/cluster-tools.sh builds or installs it").into())
}

/// Runs a program to its end and gives its output; failure is an error that says what it printed.
pub fn output(name: &str, args: &[&str]) -> Result<String, Error> {
    let output = attempt(name, args)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name} {}: {}", args.join(" "), said.trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program to its end, whichever that is.
pub fn attempt(name: &str, args: &[&str]) -> Result<Output, Error> {
    Ok(Command::new(program(name)?).args(args).stdin(Stdio::null()).output()?)
}
