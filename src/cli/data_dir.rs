//! Where perch keeps its things, and who holds it.

use std::{
    fs,
    io::{Read, Seek, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{args, exit::Failure};

/// A data directory.
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
}

/// Who holds a data directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: i32,
    /// Address of its API.
    pub api: String,
    /// Address of its gateway.
    pub gateway: String,
    /// Address of its gateway's admin endpoint.
    #[serde(default)]
    pub admin: Option<String>,
    /// When it started.
    pub since: String,
}

/// The right to use a data directory, until dropped.
#[derive(Debug)]
pub struct Lock {
    file: fs::File,
}

impl DataDir {
    /// The directory that the arguments name, or the usual one. It need not exist.
    pub fn find(args: &args::DataDir) -> Result<Self, Failure> {
        let root = match &args.path {
            Some(path) => path.clone(),
            None => std::env::var_os("XDG_DATA_HOME")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
                .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
                .map(|base| base.join("perch"))
                .ok_or_else(|| Failure::usage("there is no HOME: say with --data-dir where to keep things"))?,
        };
        let root =
            std::path::absolute(&root).map_err(|error| Failure::usage(format!("{}: {error}", root.display())))?;
        Ok(Self { root })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file or folder inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Whether perch was ever here.
    pub fn exists(&self) -> bool {
        self.path("instance").exists()
    }

    /// Makes the directory, readable by its owner alone.
    pub fn create(&self) -> Result<(), Failure> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(|error| Failure::failed(format!("{} cannot be made: {error}", self.root.display())))
    }

    /// The name under which containers and processes of this directory are known.
    pub fn instance(&self) -> Result<String, Failure> {
        self.keep("instance", || uuid::Uuid::new_v4().to_string())
    }

    /// The key that seals session ids.
    pub fn session_key(&self) -> Result<[u8; 32], Failure> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let kept = self.keep("session.key", || STANDARD.encode(rand::random::<[u8; 32]>()))?;
        let broken = || Failure::failed(format!("{} is broken: delete it", self.path("session.key").display()));
        STANDARD.decode(kept).ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(broken)
    }

    fn keep(&self, name: &str, make: impl FnOnce() -> String) -> Result<String, Failure> {
        let path = self.path(name);
        if let Ok(kept) = fs::read_to_string(&path) {
            return Ok(kept.trim().to_owned());
        }
        let made = make();
        crate::local::write_private(&path, &made)
            .map_err(|error| Failure::failed(format!("{} cannot be written: {error}", path.display())))?;
        Ok(made)
    }

    /// Takes the directory, or tells who has it.
    pub fn lock(&self) -> Result<Lock, Failure> {
        let path = self.path("lock");
        let failed = |error: std::io::Error| Failure::failed(format!("{} cannot be used: {error}", path.display()));
        let file =
            fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { file }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let who = self.holder().map_or_else(
                    || "another perch".to_owned(),
                    |h| format!("perch with pid {} (API {}, gateway {}, since {})", h.pid, h.api, h.gateway, h.since),
                );
                Err(Failure::held(format!(
                    "{} is held by {who}: use that one, stop it with `perch down`, or take another --data-dir",
                    self.root.display()
                )))
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Who holds the directory now, if somebody does.
    pub fn holder(&self) -> Option<Holder> {
        let mut file = fs::File::open(self.path("lock")).ok()?;
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return None;
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }
}

impl Lock {
    /// Says who holds the directory.
    pub fn sign(&mut self, holder: &Holder) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.file.write_all(serde_json::to_string(holder)?.as_bytes())?;
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir { root: dir.path().to_owned() };
        assert!(data.holder().is_none());
        let mut lock = data.lock().unwrap();
        lock.sign(&Holder { pid: 7, api: "a".into(), gateway: "g".into(), admin: None, since: "s".into() }).unwrap();
        assert_eq!(data.holder().unwrap().pid, 7);
        assert!(data.lock().unwrap_err().to_string().contains("pid 7"));
        drop(lock);
        assert!(data.holder().is_none());
        data.lock().unwrap();
    }

    #[test]
    fn instance_and_key_stay() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir { root: dir.path().to_owned() };
        assert_eq!(data.instance().unwrap(), data.instance().unwrap());
        assert_eq!(data.session_key().unwrap(), data.session_key().unwrap());
    }
}
