//! Packages of public registries, installed once into a folder each.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::api::mcp_server::{Package, PackageRegistry};

/// Why a package cannot be had, for the person who wants it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InstallError(String);

/// Says that a folder holds a finished installation.
const COMPLETE: &str = ".complete";

fn folder(package: &Package, dir: &Path) -> PathBuf {
    let registry = match package.registry {
        PackageRegistry::Npm => "npm",
        PackageRegistry::PyPI => "pypi",
    };
    dir.join(registry).join(format!("{}@{}", package.name.replace('/', "+"), package.version))
}

/// Whether a package is there already.
pub fn is_installed(package: &Package, dir: &Path) -> bool {
    folder(package, dir).join(COMPLETE).exists()
}

/// The program of a package, installed below `dir` first if it is not there.
pub async fn program(
    package: &Package,
    command: &[String],
    dir: &Path,
    search_path: &OsStr,
) -> Result<PathBuf, InstallError> {
    let folder = folder(package, dir);
    if !is_installed(package, dir) {
        let failed = |error: std::io::Error| InstallError(format!("{}: {error}", folder.display()));
        // What an interrupted installation left is no use.
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(failed)?;
        }
        std::fs::create_dir_all(&folder).map_err(failed)?;
        match package.registry {
            PackageRegistry::Npm => npm(package, &folder, search_path).await?,
            PackageRegistry::PyPI => pypi(package, &folder, search_path).await?,
        }
        std::fs::write(folder.join(COMPLETE), "").map_err(failed)?;
    }
    match (package.registry, command.first()) {
        (PackageRegistry::Npm, Some(name)) => existing(folder.join("node_modules/.bin").join(name), package),
        (PackageRegistry::Npm, None) => npm_bin(package, &folder),
        (PackageRegistry::PyPI, name) => existing(folder.join("bin").join(name.unwrap_or(&package.name)), package),
    }
}

fn existing(path: PathBuf, package: &Package) -> Result<PathBuf, InstallError> {
    if path.exists() {
        return Ok(path);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(InstallError(format!(
        "package {} has no program named {name}: name one of its programs in spec.command",
        package.name
    )))
}

async fn npm(package: &Package, folder: &Path, search_path: &OsStr) -> Result<(), InstallError> {
    let what = format!("{}@{}", package.name, package.version);
    let args = ["install", "--no-audit", "--no-fund", "--no-save", "--loglevel=error", "--prefix"];
    let args: Vec<OsString> =
        args.iter().map(OsString::from).chain([folder.as_os_str().to_owned(), OsString::from(what)]).collect();
    run("npm", &args, search_path, "install Node.js, or use image with Docker").await
}

async fn pypi(package: &Package, folder: &Path, search_path: &OsStr) -> Result<(), InstallError> {
    let remedy = "install Python 3 with its venv module, or use image with Docker";
    let venv: Vec<OsString> =
        ["-m", "venv"].iter().map(OsString::from).chain([folder.as_os_str().to_owned()]).collect();
    run("python3", &venv, search_path, remedy).await?;
    let what = format!("{}=={}", package.name, package.version);
    let pip = folder.join("bin/python");
    let args = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"];
    let args: Vec<OsString> = args.iter().map(OsString::from).chain([OsString::from(what)]).collect();
    run(&pip.to_string_lossy(), &args, search_path, remedy).await
}

async fn run(program: &str, args: &[OsString], search_path: &OsStr, remedy: &str) -> Result<(), InstallError> {
    let output = Command::new(program)
        .args(args)
        .env("PATH", search_path)
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => InstallError(format!("{program} is not on PATH: {remedy}")),
            _ => InstallError(format!("{program} does not start: {error}")),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(8)..].join("\n");
    Err(InstallError(format!("{program} failed ({}): {last}", output.status)))
}

/// The program that an npm package offers: its only one, or the one named like the package.
fn npm_bin(package: &Package, folder: &Path) -> Result<PathBuf, InstallError> {
    let manifest = folder.join("node_modules").join(&package.name).join("package.json");
    let manifest: serde_json::Value = std::fs::read(&manifest)
        .map_err(|error| error.to_string())
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
        .map_err(|error| InstallError(format!("{}: {error}", manifest.display())))?;
    let short = package.name.rsplit('/').next().unwrap_or(&package.name);
    let name = match &manifest["bin"] {
        serde_json::Value::String(_) => Some(short.to_owned()),
        serde_json::Value::Object(bins) if bins.len() == 1 => bins.keys().next().cloned(),
        serde_json::Value::Object(bins) => bins.keys().find(|name| *name == short).cloned(),
        _ => None,
    };
    let name = name.ok_or_else(|| {
        InstallError(format!(
            "package {} offers no single program: name one of its programs in spec.command",
            package.name
        ))
    })?;
    existing(folder.join("node_modules/.bin").join(name), package)
}
