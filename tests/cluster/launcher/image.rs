//! Images with nothing in them but one static program, made without an image builder.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::layout::{Error, Files, program};

/// An archive as `docker save` makes it: one layer, with `program` at `/name`, which is also the
/// entry point.
pub fn archive(image: &str, name: &str, program: &Path) -> Result<Vec<u8>, Error> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, name, &std::fs::read(program)?, 0o755)?;
    let layer = layer.into_inner()?;
    let digest = hex(&layer);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": [format!("/{name}")], "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    })
    .to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let layer_name = format!("{digest}/layer.tar");
    let manifest = json!([{"Config": config_name, "RepoTags": [image], "Layers": [layer_name]}]).to_string();

    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, &config_name, config.as_bytes(), 0o644)?;
    append(&mut archive, &layer_name, &layer, 0o644)?;
    append(&mut archive, "manifest.json", manifest.as_bytes(), 0o644)?;
    Ok(archive.into_inner()?)
}

/// Puts the images of an archive into containerd, and names each by its digest too, as if it had
/// been pulled: pods can ask for it by digest, and their status says which they run.
pub fn import(files: &Files, archive: &str, input: Stdio) -> Result<(), Error> {
    let socket = files.containerd();
    let ctr = |args: &[&str], input: Stdio| -> Result<String, Error> {
        let mut command = Command::new(program("ctr")?);
        let output = command.args(["--address", &socket, "-n", "k8s.io", "images"]).args(args).stdin(input).output()?;
        if !output.status.success() {
            return Err(format!("ctr images {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let said = ctr(&["import", archive], input)?;
    // A line for each image: unpacking NAME (DIGEST)...done
    let images = said.lines().filter_map(|l| l.strip_prefix("unpacking ")?.split_once(" ("));
    for (name, rest) in images {
        let Some((digest, _)) = rest.split_once(')') else { continue };
        let repository = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(r, _)| r);
        ctr(&["tag", "--force", name, &format!("{repository}@{digest}")], Stdio::null())?;
    }
    Ok(())
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8], mode: u32) -> Result<(), Error> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, name, content)?;
    Ok(())
}

fn hex(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}
