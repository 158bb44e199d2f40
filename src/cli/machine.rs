//! What this machine offers to run servers with.

use std::{fs, os::unix::fs::DirBuilderExt, path::PathBuf, sync::Arc};

use super::{
    args::{Runtime, Up},
    data_dir::DataDir,
    exit::Failure,
};
use crate::runtime::{
    Backend,
    dispatch::Dispatch,
    docker::{self, DockerBackend},
    egress_proxy::Refusals,
    process::{self, ProcessBackend},
};

/// Variables that every local process gets from perch's own environment.
const PASSED: &[&str] =
    &["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"];

/// Settings of local processes.
pub fn process_config(data: &DataDir) -> Result<process::Config, Failure> {
    let launcher = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("perch does not find its own executable: {error}")))?;
    Ok(process::Config {
        instance: data.instance()?,
        state_dir: data.path("processes"),
        launcher,
        search_path: std::env::var_os("PATH").unwrap_or_default(),
        environment: PASSED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))).collect(),
        installs: tokio::sync::Mutex::default(),
        ports: process::Ports::default(),
    })
}

/// Where files of containers are kept. The directory is there from the moment when containers may
/// exist until they were all removed.
fn files_of_containers(data: &DataDir) -> PathBuf {
    data.path("containers")
}

/// Whether an engine may have containers of this data directory.
pub fn has_containers(data: &DataDir) -> bool {
    files_of_containers(data).exists()
}

/// Remembers that all containers were removed.
pub fn forget_containers(data: &DataDir) -> std::io::Result<()> {
    match fs::remove_dir_all(files_of_containers(data)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Settings of containers.
pub fn docker_config(data: &DataDir, npm_base: &str, pypi_base: &str) -> Result<docker::Config, Failure> {
    Ok(docker::Config {
        instance: data.instance()?,
        state_dir: files_of_containers(data),
        npm_base: npm_base.to_owned(),
        pypi_base: pypi_base.to_owned(),
        host: std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty()),
    })
}

/// What this machine offers.
pub struct Machine {
    /// Everything that may run servers.
    pub backend: Arc<dyn Backend>,
    /// A line about it for people.
    pub said: String,
    /// What the egress proxy of containers refused.
    pub refusals: Refusals,
}

/// Everything that may run servers, as the arguments wish.
pub async fn backend(args: &Up, data: &DataDir) -> Result<Machine, Failure> {
    let mut refusals = Refusals::default();
    let mut containers: Option<Arc<dyn Backend>> = None;
    let mut said = String::new();
    if args.runtime != Runtime::Process {
        let config = docker_config(data, &args.npm_base_image, &args.pypi_base_image)?;
        match DockerBackend::connect(config).await {
            Ok(backend) => {
                let dir = files_of_containers(data);
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&dir)
                    .map_err(|error| Failure::failed(format!("{} cannot be made: {error}", dir.display())))?;
                said = format!("Docker {}", backend.version());
                refusals = backend.refusals();
                containers = Some(backend);
            }
            Err(error) if args.runtime == Runtime::Docker => {
                return Err(Failure::failed(format!(
                    "no Docker engine answers: {error}; start one, or use --runtime process"
                )));
            }
            Err(error) => tracing::info!(%error, "no Docker engine answers: servers run as processes"),
        }
    }
    if containers.is_none() && has_containers(data) {
        complain!(
            "warning: containers of an earlier perch on this data directory are out of reach and may still run: let a Docker engine answer and use --runtime auto, or `perch down` first"
        );
    }
    let mut processes: Option<Arc<dyn Backend>> = None;
    if args.runtime != Runtime::Docker {
        let config = process_config(data)?;
        let opened = tokio::task::spawn_blocking(|| ProcessBackend::open(config)).await;
        processes = Some(Arc::new(opened.map_err(|error| Failure::failed(error.to_string()))?));
        said = if said.is_empty() {
            "local processes (no Docker engine)".into()
        } else {
            format!("{said} and local processes")
        };
        if args.runtime == Runtime::Process {
            said = "local processes".into();
        }
    }
    Ok(Machine { backend: Arc::new(Dispatch::new(containers, processes)), said, refusals })
}
