//! Secrets and configuration as files that a container sees and nobody else does.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown},
    path::{Component, Path, PathBuf},
};

use secrecy::ExposeSecret;

use super::Config;
use crate::{
    names::ServerKey,
    runtime::{RuntimeError, Workload, workload::MountSource},
};

fn dir(config: &Config, server: &ServerKey) -> PathBuf {
    config.state_dir.join("files").join(&server.namespace).join(&server.name)
}

/// Folder that is mounted for a volume of a server.
pub(super) fn volume(config: &Config, server: &ServerKey, volume: &str) -> PathBuf {
    dir(config, server).join(volume)
}

/// Writes the files of a workload, and removes those that it no longer has.
pub(super) fn write(config: &Config, workload: &Workload) -> Result<(), RuntimeError> {
    let user = workload.security.user;
    for mount in &workload.volumes {
        let MountSource::Files(files) = &mount.source else { continue };
        let folder = volume(config, &workload.server, &mount.name);
        let failed = |error: std::io::Error| {
            // The path names the volume; the content appears nowhere.
            RuntimeError::unavailable(format!("write the files of volume {}", mount.name), error)
        };
        let parent = dir(config, &workload.server);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&parent).map_err(failed)?;
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder).map_err(failed)?;
        for (name, content) in files {
            if !is_file_name(name) {
                return Err(RuntimeError::Invalid(format!(
                    "volume {}: {name:?} cannot be the name of a file: rename the key",
                    mount.name
                )));
            }
            let path = folder.join(name);
            if fs::read(&path).is_ok_and(|old| old == content.expose_secret()) {
                continue;
            }
            replace(&path, content.expose_secret(), user).map_err(failed)?;
        }
        for entry in fs::read_dir(&folder).map_err(failed)?.flatten() {
            let kept = files.iter().any(|(name, _)| entry.file_name() == name.as_str());
            if !kept {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// Whether a key names a file in its folder, and nothing above or below.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

/// Puts a file in place as a whole, readable by the server's user alone.
fn replace(path: &Path, content: &[u8], user: u32) -> std::io::Result<()> {
    let temporary = path.with_extension("perch-new");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&temporary)?;
    file.write_all(content)?;
    // Only root may give a file away. Without root, the user must be perch's own.
    match chown(&temporary, Some(user), Some(user)) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(std::io::Error::other(format!(
                "perch does not run as root and cannot hand files to user {user}: set spec.security.runAsUser to {}",
                rustix::process::getuid().as_raw()
            )));
        }
        other => other?,
    }
    fs::rename(temporary, path)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_leads_out_of_its_folder() {
        for name in ["token", "tls.crt", ".netrc", "a..b"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a/", "./a"] {
            assert!(!is_file_name(name), "{name}");
        }
    }
}
