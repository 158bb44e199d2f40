//! The way to a perch that runs.

use std::path::Path;

use http::{HeaderValue, header};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{
    args,
    data_dir::{DataDir, Holder},
    exit::Failure,
};

/// A client for the perch that holds a data directory.
pub async fn connect(args: &args::DataDir) -> Result<(DataDir, Client), Failure> {
    let data = DataDir::find(args)?;
    if data.holder().is_none() {
        return Err(Failure::failed(format!(
            "no perch is running on {}: start one with `perch up`, or say with --data-dir where it is",
            data.root().display()
        )));
    }
    let client = by_file(&data.path("kubeconfig")).await?;
    Ok((data, client))
}

/// A client for the cluster of the file that was named, for the perch that runs here, or for the
/// cluster that kubectl uses; and who holds the data directory, where it is the perch that runs here.
pub async fn anywhere(args::Plane { kubeconfig, data_dir }: &args::Plane) -> Result<(Client, Option<Holder>), Failure> {
    if let Some(file) = kubeconfig {
        return Ok((by_file(file).await?, None));
    }
    if data_dir.path.is_some() || DataDir::find(data_dir)?.holder().is_some() {
        let (data, client) = connect(data_dir).await?;
        return Ok((client, data.holder()));
    }
    let client = Client::try_default().await.map_err(|error| {
        Failure::failed(format!(
            "no perch runs on this machine, and no cluster can be reached: {error}; start one with `perch up`, or name a --kubeconfig"
        ))
    })?;
    Ok((client, None))
}

async fn by_file(path: &Path) -> Result<Client, Failure> {
    let broken = |error: &dyn std::fmt::Display| Failure::failed(format!("{} cannot be used: {error}", path.display()));
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| broken(&error))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.map_err(|error| broken(&error))?).map_err(|error| broken(&error))
}

/// A client for the cluster that a program runs in, or that the kubeconfig names. A refusal comes
/// back at once: whoever asked says so in a status, or tries again at its own pace. By itself the
/// client would wait for minutes, and nobody would know why.
pub async fn cluster(program: &str) -> Result<Client, Failure> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("no cluster can be reached: {error}; run in a pod, or set KUBECONFIG"))
    };
    let mut config = Config::infer().await.map_err(|error| unreachable(&error))?;
    config.default_retry = false;
    let name = format!("perch-{program}/{}", env!("CARGO_PKG_VERSION"));
    config.headers.extend(HeaderValue::from_str(&name).ok().map(|name| (header::USER_AGENT, name)));
    Client::try_from(config).map_err(|error| unreachable(&error))
}

/// What the API said, for people.
pub fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
