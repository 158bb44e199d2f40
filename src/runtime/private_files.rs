//! Files that one user can read and nobody else, replaced as a whole.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Component, Path},
};

use secrecy::{ExposeSecret, SecretSlice};

use super::RuntimeError;

/// A folder of files.
#[derive(Debug)]
pub struct Folder<'a> {
    /// Where it is. What is above it is closed to others.
    pub path: &'a Path,
    /// What it is, for errors: `volume data`.
    pub what: &'a str,
    /// Permission bits of the folder itself.
    pub mode: u32,
    /// Whose the files are; the caller's own when none.
    pub user: Option<u32>,
    /// Whether files that are not named are removed.
    pub prune: bool,
}

impl Folder<'_> {
    /// Makes the folder hold these files. One that is right already is left alone.
    ///
    /// # Errors
    /// When a name is not that of a file, or the disk refuses.
    pub fn write(&self, files: &[(&str, &SecretSlice<u8>)]) -> Result<(), RuntimeError> {
        // The path names the folder; the content appears nowhere.
        let failed =
            |error: std::io::Error| RuntimeError::unavailable(format!("write the files of {}", self.what), error);
        if let Some((name, _)) = files.iter().find(|(name, _)| !is_file_name(name)) {
            let what = self.what;
            return Err(RuntimeError::Invalid(format!(
                "{what}: {name:?} cannot be the name of a file: rename the key"
            )));
        }
        if let Some(parent) = self.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
        }
        if !self.path.is_dir() {
            fs::DirBuilder::new().mode(self.mode).create(self.path).map_err(failed)?;
            // Whatever the umask says.
            fs::set_permissions(self.path, fs::Permissions::from_mode(self.mode)).map_err(failed)?;
        }
        for (name, content) in files {
            let path = self.path.join(name);
            if fs::read(&path).is_ok_and(|old| old == content.expose_secret()) {
                continue;
            }
            self.replace(&path, content.expose_secret()).map_err(failed)?;
        }
        for entry in fs::read_dir(self.path).map_err(failed)?.flatten().filter(|_| self.prune) {
            if !files.iter().any(|(name, _)| entry.file_name() == *name) {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Puts a file in place as a whole, readable by its user alone.
    fn replace(&self, path: &Path, content: &[u8]) -> std::io::Result<()> {
        let temporary = path.with_extension("perch-new");
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(&temporary)?;
        file.write_all(content)?;
        if let Some(user) = self.user {
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
        }
        fs::rename(temporary, path)
    }
}

/// Whether a key names a file in its folder, and nothing above or below.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

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

    #[test]
    fn a_file_is_replaced_as_a_whole_and_its_folder_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("above/folder");
        let secret = |text: &str| SecretSlice::from(text.as_bytes().to_vec());
        let folder = |prune| Folder { path: &path, what: "a test", mode: 0o700, user: None, prune };
        folder(true).write(&[("a", &secret("1")), ("b", &secret("2"))]).unwrap();
        let (before, inode) = (fs::metadata(&path).unwrap().ino(), fs::metadata(path.join("a")).unwrap().ino());
        assert_eq!(fs::metadata(path.join("a")).unwrap().mode() & 0o777, 0o400);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        folder(true).write(&[("a", &secret("1")), ("b", &secret("2"))]).unwrap();
        assert_eq!(fs::metadata(path.join("a")).unwrap().ino(), inode, "the same content is left alone");
        // A reader that has the old file open goes on to read the old content.
        let open = fs::File::open(path.join("a")).unwrap();
        folder(false).write(&[("a", &secret("new"))]).unwrap();
        assert_eq!(std::io::read_to_string(open).unwrap(), "1");
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "new");
        assert!(path.join("b").exists());
        folder(true).write(&[("a", &secret("new"))]).unwrap();
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["a"]);
        assert_eq!(fs::metadata(&path).unwrap().ino(), before, "the folder is mounted: it must stay the same one");
        assert!(folder(true).write(&[("../a", &secret("x"))]).is_err());
    }
}
