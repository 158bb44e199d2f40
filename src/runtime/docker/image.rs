//! Images: found, pulled, or built from a package.

use std::collections::HashMap;

use bollard::query_parameters::{BuildImageOptionsBuilder, CreateImageOptionsBuilder};
use futures::StreamExt;
use sha2::{Digest, Sha256};

use super::{Engine, is_gone, label, unavailable};
use crate::{
    api::mcp_server::{Package, PackageRegistry},
    runtime::{Preparing, package_script, workload::Program},
};

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// What containers are created from.
    pub reference: String,
    /// Its id, `sha256:…`.
    pub id: String,
    /// The digest by which a registry knows it, where it came from one.
    pub digest: Option<String>,
}

/// Why an image cannot be had: reason and message, for people.
pub(super) type ImageError = (&'static str, String);

/// The image of a program, pulled or built first if it is not there. `report` tells how far it is.
pub(super) async fn ensure(
    engine: &Engine,
    program: &Program,
    report: &(dyn Fn(Preparing) + Send + Sync),
) -> Result<Image, ImageError> {
    match program {
        Program::Image { image, .. } => match find(engine, image).await? {
            Some(found) => Ok(found),
            None => pull(engine, image, report).await,
        },
        Program::Package { package, .. } => {
            let (reference, dockerfile) = recipe(engine, package);
            // Two servers may name the same package: one builds, the other finds.
            let _turn = engine.builds.lock().await;
            match find(engine, &reference).await? {
                Some(found) => Ok(found),
                None => build(engine, package, &reference, &dockerfile, report).await,
            }
        }
        Program::Command { .. } => Err(("UnsupportedByRuntime", "a command alone runs as a local process".into())),
    }
}

async fn find(engine: &Engine, reference: &str) -> Result<Option<Image>, ImageError> {
    match engine.docker.inspect_image(reference).await {
        Ok(found) => Ok(Some(Image {
            reference: reference.to_owned(),
            id: found.id.unwrap_or_default(),
            digest: digest(reference, &found.repo_digests.unwrap_or_default()),
        })),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(("RuntimeUnavailable", unavailable("inspect an image")(error).to_string())),
    }
}

/// The digest of an image in the repository that it is named by, of those that the engine knows.
fn digest(reference: &str, known: &[String]) -> Option<String> {
    if let Some((_, digest)) = reference.split_once('@') {
        return Some(digest.to_owned());
    }
    let last = reference.rfind('/').map_or(0, |i| i + 1);
    let repository = reference[last..].find(':').map_or(reference, |colon| &reference[..last + colon]);
    // Engines leave out what they take for granted.
    let repository = repository.strip_prefix("docker.io/").unwrap_or(repository);
    let repository = repository.strip_prefix("library/").unwrap_or(repository);
    known.iter().find_map(|known| Some(known.strip_prefix(repository)?.strip_prefix('@')?.to_owned()))
}

async fn pull(engine: &Engine, image: &str, report: &(dyn Fn(Preparing) + Send + Sync)) -> Result<Image, ImageError> {
    let say = |percent| {
        report(Preparing { reason: "Pulling", message: format!("pulling image {image}"), percent, retry_at: None });
    };
    say(None);
    let failed = |why: String| {
        let message = format!(
            "image {image} cannot be pulled: {why}; check its name and tag, and that its registry lets you in, or load it with `docker load`"
        );
        ("ImagePullFailed", message)
    };
    // Without a tag the engine would pull all of them.
    let last = image.rsplit('/').next().unwrap_or(image);
    let reference =
        if last.contains(':') || image.contains('@') { image.to_owned() } else { format!("{image}:latest") };
    let options = CreateImageOptionsBuilder::new().from_image(&reference).build();
    let mut progress = engine.docker.create_image(Some(options), None, None).boxed();
    let mut layers: HashMap<String, (i64, i64)> = HashMap::new();
    let mut told = None;
    while let Some(step) = progress.next().await {
        let step = step.map_err(|error| failed(error.to_string()))?;
        if let Some(error) = step.error_detail.and_then(|e| e.message) {
            return Err(failed(error));
        }
        if let (Some(id), Some(detail)) = (step.id, step.progress_detail)
            && let (Some(current), Some(total)) = (detail.current, detail.total)
        {
            layers.insert(id, (current, total));
            let (done, all) = layers.values().fold((0, 0), |(d, a), (c, t)| (d + c, a + t));
            let percent = u8::try_from(done.saturating_mul(100) / all.max(1)).ok();
            if percent != told {
                told = percent;
                say(percent);
            }
        }
    }
    find(engine, image).await?.ok_or_else(|| failed("it is not there after the pull".into()))
}

/// Tag and Dockerfile of a package's image. The tag changes with whatever goes into the image.
fn recipe(engine: &Engine, package: &Package) -> (String, String) {
    let Package { registry, name, version } = package;
    let base = match registry {
        PackageRegistry::Npm => &engine.config.npm_base,
        PackageRegistry::PyPI => &engine.config.pypi_base,
    };
    let dockerfile = format!(
        "FROM {base}\nWORKDIR {}\nRUN {}\nENV PATH={}\nENTRYPOINT [\"{}\"]\n",
        package_script::HOME,
        package_script::install(package),
        package_script::search_path(*registry),
        package_script::PROGRAM,
    );
    let sanitised: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let kind = if *registry == PackageRegistry::Npm { "npm" } else { "pypi" };
    let digest = format!("{:x}", Sha256::digest(&dockerfile));
    let version: String =
        version.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    (format!("perch.local/{kind}/{}:{version}-{}", sanitised.trim_matches('-'), &digest[..8]), dockerfile)
}

async fn build(
    engine: &Engine,
    package: &Package,
    reference: &str,
    dockerfile: &str,
    report: &(dyn Fn(Preparing) + Send + Sync),
) -> Result<Image, ImageError> {
    let what = format!("{}@{}", package.name, package.version);
    let say = |step: &str| {
        let message = if step.is_empty() {
            format!("building an image of {what}")
        } else {
            format!("building an image of {what}: {step}")
        };
        report(Preparing { reason: "Building", message, percent: None, retry_at: None });
    };
    say("");
    let failed = |why: String| {
        let message = format!(
            "no image of {what} can be built: {why}; check name and version, and that the base image can be had (--npm-base-image, --pypi-base-image)"
        );
        ("ImageBuildFailed", message)
    };
    let context = context(dockerfile).map_err(|error| failed(error.to_string()))?;
    let labels = HashMap::from([(label::INSTANCE.to_owned(), engine.config.instance.clone())]);
    let options = BuildImageOptionsBuilder::new().t(reference).rm(true).forcerm(true).labels(&labels).build();
    let body = bollard::body_full(context.into());
    let mut steps = engine.docker.build_image(options, None, Some(body)).boxed();
    let mut said: Vec<String> = Vec::new();
    while let Some(step) = steps.next().await {
        let step = step.map_err(|error| failed(error.to_string()))?;
        if let Some(error) = step.error_detail.and_then(|e| e.message) {
            let last = said[said.len().saturating_sub(6)..].join("; ");
            return Err(failed(format!("{error}: {last}")));
        }
        for line in step.stream.iter().flat_map(|s| s.lines()).map(str::trim).filter(|l| !l.is_empty()) {
            if line.starts_with("Step ") {
                let step = line.split(" : ").next().unwrap_or(line);
                say(step);
            }
            said.push(line.chars().take(300).collect());
        }
    }
    find(engine, reference).await?.ok_or_else(|| failed("it is not there after the build".into()))
}

/// A build context that holds the Dockerfile alone.
fn context(dockerfile: &str) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(dockerfile.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, "Dockerfile", dockerfile.as_bytes())?;
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_named_repository() {
        let known = ["registry.example.com:5000/x@sha256:a", "nginx@sha256:b", "me/x@sha256:c"].map(str::to_owned);
        let of = |reference: &str| digest(reference, &known);
        assert_eq!(of("registry.example.com:5000/x:1").as_deref(), Some("sha256:a"));
        assert_eq!(of("registry.example.com:5000/x").as_deref(), Some("sha256:a"));
        assert_eq!(of("nginx:1").as_deref(), Some("sha256:b"));
        assert_eq!(of("docker.io/library/nginx").as_deref(), Some("sha256:b"));
        assert_eq!(of("x:1"), None, "another repository");
        assert_eq!(of("x:1@sha256:d").as_deref(), Some("sha256:d"));
    }
}
