//! Where policies of users come from: a folder, and ConfigMaps that are followed; and the labels of
//! namespaces.

use std::{collections::BTreeMap, path::Path, time::Duration};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;

use super::{Gate, Labels, signatures};
use crate::policy::{Bundle, File, is_module, is_settings};

/// Label of ConfigMaps that hold policies, with the value `true`.
pub const POLICY_LABEL: &str = "perch.dev/policy";

/// How often everything is judged anew, for what grows too old.
const AGEING: Duration = Duration::from_secs(3600);

/// Where policies come from.
#[derive(Clone)]
pub struct Source {
    /// The control plane.
    pub client: Client,
    /// Namespace of the ConfigMaps that count: who may write there makes policy for all.
    pub namespace: String,
    /// Bundles that are always there.
    pub fixed: Vec<Bundle>,
}

/// Reads the bundles of a folder: its own files are one, those of each folder in it another.
///
/// # Errors
/// When something cannot be read.
pub fn folder(path: &Path) -> std::io::Result<Vec<Bundle>> {
    let mut bundles = Vec::new();
    let mut own = Bundle { name: path.display().to_string(), files: Vec::new() };
    let mut entries = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') {
            let mut bundle = Bundle { name: path.display().to_string(), files: Vec::new() };
            let mut inner = std::fs::read_dir(&path)?.collect::<Result<Vec<_>, _>>()?;
            inner.sort_by_key(std::fs::DirEntry::path);
            for file in inner.iter().filter(|f| f.path().is_file()) {
                read(&mut bundle, &file.path())?;
            }
            bundles.push(bundle);
        } else if path.is_file() {
            read(&mut own, &path)?;
        }
    }
    bundles.insert(0, own);
    bundles.retain(|b| !b.files.is_empty());
    Ok(bundles)
}

/// What is neither a module nor settings is not read.
fn read(bundle: &mut Bundle, path: &Path) -> std::io::Result<()> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if counts(&name) {
        bundle.files.push(File { name, text: std::fs::read_to_string(path)? });
    }
    Ok(())
}

fn counts(name: &str) -> bool {
    is_module(name) || is_settings(name)
}

/// Follows ConfigMaps and namespaces, for ever.
pub async fn follow(gate: Gate, source: Source) {
    let (maps, namespaces) = (watch::Sender::new(false), watch::Sender::new(false));
    let (mut maps_seen, mut namespaces_seen) = (maps.subscribe(), namespaces.subscribe());
    let ready = async {
        // The senders live as long as this future.
        let _ = maps_seen.wait_for(|seen| *seen).await;
        let _ = namespaces_seen.wait_for(|seen| *seen).await;
        gate.0.ready.send_replace(true);
        gate.change();
        let mut age = tokio::time::interval(AGEING);
        age.tick().await;
        loop {
            age.tick().await;
            gate.change();
        }
    };
    let of_namespaces = follow_namespaces(&gate, source.client.clone(), &namespaces);
    tokio::join!(follow_maps(&gate, &source, &maps), of_namespaces, ready, signatures::follow(&gate));
}

async fn follow_maps(gate: &Gate, source: &Source, seen: &watch::Sender<bool>) {
    let api: Api<ConfigMap> = Api::namespaced(source.client.clone(), &source.namespace);
    let config = watcher::Config::default().labels(&format!("{POLICY_LABEL}=true"));
    let stream = watcher(api, config).default_backoff();
    futures::pin_mut!(stream);
    let mut kept: BTreeMap<String, Bundle> = BTreeMap::new();
    install(gate, source, &kept).await;
    loop {
        match stream.try_next().await {
            Ok(Some(watcher::Event::Init)) => kept.clear(),
            Ok(Some(watcher::Event::InitApply(map))) => {
                kept.insert(map.name_any(), bundle(&source.namespace, &map));
            }
            Ok(Some(watcher::Event::InitDone)) => {
                install(gate, source, &kept).await;
                seen.send_replace(true);
            }
            Ok(Some(watcher::Event::Apply(map))) => {
                kept.insert(map.name_any(), bundle(&source.namespace, &map));
                install(gate, source, &kept).await;
            }
            Ok(Some(watcher::Event::Delete(map))) => {
                kept.remove(&map.name_any());
                install(gate, source, &kept).await;
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, namespace = source.namespace, "ConfigMaps with policies cannot be followed; trying again");
                // What was read before stays in force; the shipped rules always are.
                seen.send_replace(true);
            }
        }
    }
}

/// Compiles beside the async tasks.
async fn install(gate: &Gate, source: &Source, kept: &BTreeMap<String, Bundle>) {
    let bundles: Vec<Bundle> = source.fixed.iter().chain(kept.values()).cloned().collect();
    let gate = gate.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || gate.install(bundles)).await {
        tracing::error!(%error, "policies were not compiled; those before stay in force");
    }
}

/// The bundle that a ConfigMap of a namespace holds.
#[must_use]
pub fn bundle(namespace: &str, map: &ConfigMap) -> Bundle {
    let files = map.data.iter().flatten().filter(|(name, _)| counts(name));
    Bundle {
        name: format!("{namespace}/{}", map.name_any()),
        files: files.map(|(name, text)| File { name: name.clone(), text: text.clone() }).collect(),
    }
}

async fn follow_namespaces(gate: &Gate, client: Client, seen: &watch::Sender<bool>) {
    let stream = watcher(Api::<Namespace>::all(client), watcher::Config::default()).default_backoff();
    futures::pin_mut!(stream);
    let mut listed: BTreeMap<String, Labels> = BTreeMap::new();
    loop {
        match stream.try_next().await {
            Ok(Some(watcher::Event::Init)) => listed.clear(),
            Ok(Some(watcher::Event::InitApply(namespace))) => {
                listed.insert(namespace.name_any(), namespace.labels().clone());
            }
            Ok(Some(watcher::Event::InitDone)) => {
                put(gate, |all| *all = std::mem::take(&mut listed));
                seen.send_replace(true);
            }
            Ok(Some(watcher::Event::Apply(namespace))) => put(gate, |all| {
                all.insert(namespace.name_any(), namespace.labels().clone());
            }),
            Ok(Some(watcher::Event::Delete(namespace))) => put(gate, |all| {
                all.remove(&namespace.name_any());
            }),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "namespaces cannot be followed: their labels do not count until they can; trying again");
                seen.send_replace(true);
            }
        }
    }
}

/// Changes what is known of namespaces; tells only when it is something else than before.
fn put(gate: &Gate, change: impl FnOnce(&mut BTreeMap<String, Labels>)) {
    let mut namespaces = gate.0.namespaces.write().expect("nobody panics while holding the namespaces");
    let before = namespaces.clone();
    change(&mut namespaces);
    let differs = *namespaces != before;
    drop(namespaces);
    if differs {
        gate.change();
    }
}
