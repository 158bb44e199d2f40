//! Secrets and configuration as files that a container sees and nobody else does.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Config;
use crate::{
    names::ServerKey,
    runtime::{RuntimeError, Workload, private_files::Folder, workload::MountSource},
};

/// Name of the folder of credentials beside those of volumes. No volume can be called so.
const CREDENTIALS: &str = "_credentials";

fn dir(config: &Config, server: &ServerKey) -> PathBuf {
    config.state_dir.join("files").join(&server.namespace).join(&server.name)
}

/// Folder that is mounted for a volume of a server.
pub(super) fn volume(config: &Config, server: &ServerKey, volume: &str) -> PathBuf {
    dir(config, server).join(volume)
}

/// Folder that is mounted for the credentials of a server.
pub(super) fn credentials(config: &Config, server: &ServerKey) -> PathBuf {
    dir(config, server).join(CREDENTIALS)
}

/// Writes the files of a workload. With `prune`, removes those that it no longer has: nothing that
/// runs may still want them.
pub(super) fn write(config: &Config, workload: &Workload, prune: bool) -> Result<(), RuntimeError> {
    let folder = |path: &Path, what: &str, files: &[_]| {
        // The folder above is closed to others, so this one can be open to the server's user.
        Folder { path, what, mode: 0o755, user: Some(workload.security.user), prune }.write(files)
    };
    for mount in &workload.volumes {
        let MountSource::Files(files) = &mount.source else { continue };
        let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content)).collect();
        folder(&volume(config, &workload.server, &mount.name), &format!("volume {}", mount.name), &files)?;
    }
    let path = credentials(config, &workload.server);
    if !workload.credentials.is_empty() || prune && path.exists() {
        let files: Vec<_> = workload.credentials.iter().map(|c| (c.name.as_str(), &c.value)).collect();
        folder(&path, "credentials", &files)?;
    }
    Ok(())
}

/// Removes the files of a server.
pub(super) fn remove(config: &Config, server: &ServerKey) -> Result<(), RuntimeError> {
    delete(&dir(config, server))
}

/// Removes the files of all servers.
pub(super) fn remove_all(config: &Config) -> Result<(), RuntimeError> {
    delete(&config.state_dir.join("files"))
}

fn delete(dir: &Path) -> Result<(), RuntimeError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RuntimeError::unavailable(format!("delete {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}
