//! Watches policies, pods and namespaces, and keeps the packet filter as they want it.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use futures::{FutureExt, StreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, reflector, watcher},
};

use super::rules::{CHAIN, Chains, World, restore};
use crate::layout::{Error, program};

/// Runs until it is ended.
pub fn run(kubeconfig: &Path) -> Result<(), Error> {
    // Only the first call counts.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(enforce(kubeconfig))
}

async fn enforce(kubeconfig: &Path) -> Result<(), Error> {
    let config =
        Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    let (pods, pod_writer) = reflector::store::<Pod>();
    let (namespaces, namespace_writer) = reflector::store::<Namespace>();
    let (policies, policy_writer) = reflector::store::<NetworkPolicy>();
    // What changed does not matter, for the rules are made anew from all that is known.
    let mut changes = stream::select_all([
        reflector(pod_writer, watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()))
            .default_backoff()
            .map(|event| event.map(drop))
            .boxed(),
        reflector(namespace_writer, watcher(Api::<Namespace>::all(client.clone()), watcher::Config::default()))
            .default_backoff()
            .map(|event| event.map(drop))
            .boxed(),
        reflector(policy_writer, watcher(Api::<NetworkPolicy>::all(client), watcher::Config::default()))
            .default_backoff()
            .map(|event| event.map(drop))
            .boxed(),
    ]);
    let mut enforced: Option<Chains> = None;
    while let Some(change) = changes.next().await {
        if let Err(error) = change {
            eprintln!("a watch failed and is tried again: {error}");
            continue;
        }
        // Until all three are known, rules would let through, or stop, what they should not.
        let known = async {
            tokio::try_join!(pods.wait_until_ready(), namespaces.wait_until_ready(), policies.wait_until_ready())
        };
        if known.now_or_never().is_none() {
            continue;
        }
        let world = World { pods: pods.state(), namespaces: namespaces.state(), policies: policies.state() };
        let chains = world.chains();
        if enforced.as_ref() == Some(&chains) {
            continue;
        }
        let mut text = restore(&chains, enforced.as_ref().unwrap_or(&Chains::new()));
        if enforced.is_none() {
            let jumps = format!("-I FORWARD -j {CHAIN}\n-I INPUT -j {CHAIN}\nCOMMIT\n");
            text = text.trim_end_matches("COMMIT\n").to_owned() + &jumps;
        }
        apply(&text)?;
        println!("{} chains for {} policies", chains.len(), world.policies.len());
        enforced = Some(chains);
    }
    Err("the watches ended".into())
}

/// Changes the packet filter, all at once.
fn apply(text: &str) -> Result<(), Error> {
    let mut child =
        Command::new(program("iptables-restore")?).args(["--wait", "--noflush"]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("no input")?.write_all(text.as_bytes())?;
    if child.wait()?.success() { Ok(()) } else { Err(format!("iptables-restore refuses\n{text}").into()) }
}
