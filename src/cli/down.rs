//! `perch down`.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use super::{args::Down, data_dir::DataDir, exit::Failure, machine};
use crate::runtime::{docker::DockerBackend, process::ProcessBackend};

/// How long a running perch may take to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stops a running perch, and removes what it made.
pub async fn run(args: Down) -> Result<(), Failure> {
    let data = DataDir::find(&args.data_dir)?;
    if !data.exists() {
        say!("Nothing to do: there is no perch in {}", data.root().display());
        return Ok(());
    }
    stop(&data).await?;
    let _lock = data.lock()?;
    let failed = |what: &str, error: &dyn std::fmt::Display| Failure::failed(format!("{what}: {error}"));
    match DockerBackend::reader(machine::docker_config(&data, "", "")?).await {
        Ok(docker) => {
            let removed = docker
                .remove_everything(args.volumes)
                .await
                .map_err(|error| failed("containers cannot be removed", &error))?;
            for line in removed {
                say!("Removed {line}");
            }
            machine::forget_containers(&data).map_err(|error| failed("containers", &error))?;
        }
        // Without its objects nobody would remember them.
        Err(error) if machine::has_containers(&data) => {
            return Err(Failure::failed(format!(
                "no Docker engine answers, so containers and objects were not removed: {error}; start the engine and say `perch down` again"
            )));
        }
        Err(_) => {}
    }
    let processes = ProcessBackend::reader(machine::process_config(&data)?);
    let ended = processes.remove_everything().map_err(|error| failed("processes cannot be removed", &error))?;
    if ended > 0 {
        say!("Ended {ended} processes");
    }
    for name in ["store.redb", "kubeconfig"] {
        match fs::remove_file(data.path(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(name, &error)),
            _ => {}
        }
    }
    say!("Removed the declared objects; credentials, packages and volumes stay in {}", data.root().display());
    Ok(())
}

async fn stop(data: &DataDir) -> Result<(), Failure> {
    let Some(holder) = data.holder() else { return Ok(()) };
    let Some(pid) = Pid::from_raw(holder.pid) else { return Ok(()) };
    say!("Stopping perch with pid {}", holder.pid);
    kill_process(pid, Signal::TERM)
        .map_err(|error| Failure::failed(format!("perch with pid {} cannot be stopped: {error}", holder.pid)))?;
    let stopped = async {
        while data.holder().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped)
        .await
        .map_err(|_| Failure::failed(format!("perch with pid {} does not stop: see what it is doing", holder.pid)))
}
