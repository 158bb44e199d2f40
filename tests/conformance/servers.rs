//! The two servers, started by the first test that asks.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kube::config::{KubeConfigOptions, Kubeconfig};
use perch::{
    api::crds,
    local::{ControlPlane, Credentials, LocalError},
};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Level, PATIENCE};

/// A server that can be asked.
#[derive(Clone)]
pub struct Server {
    /// `kube-apiserver` or `local`.
    pub name: &'static str,
    /// For requests.
    pub client: kube::Client,
    /// For kubectl.
    pub kubeconfig: PathBuf,
    /// Home of kubectl: it keeps there what it discovered.
    pub home: PathBuf,
}

/// All requests run here, for connections belong to the runtime that made them.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap())
}

/// The real server and the embedded one, both with Perch's definitions.
pub fn both() -> &'static [Server; 2] {
    static SERVERS: OnceLock<[Server; 2]> = OnceLock::new();
    static TRIED: AtomicBool = AtomicBool::new(false);
    SERVERS.get_or_init(|| {
        assert!(!TRIED.swap(true, Ordering::Relaxed), "the servers did not start, as another test says");
        let real = std::thread::spawn(real);
        let local = runtime().block_on(local());
        [real.join().unwrap(), local]
    })
}

/// A directory that goes with this process.
fn directory() -> PathBuf {
    static DIRECTORY: OnceLock<Arc<PathBuf>> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let parent = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/conformance");
        // What earlier processes left; statics are not dropped.
        let _ = std::fs::remove_dir_all(&parent);
        let directory = parent.join(std::process::id().to_string());
        std::fs::create_dir_all(&directory).unwrap();
        Arc::new(directory)
    });
    directory.as_path().to_owned()
}

async fn connect(name: &'static str, kubeconfig: PathBuf) -> Server {
    let parsed = Kubeconfig::read_from(&kubeconfig).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await.unwrap();
    // Each answer counts, not the one after some that are not liked.
    config.default_retry = false;
    let home = directory().join(format!("home-{name}"));
    std::fs::create_dir_all(&home).unwrap();
    Server { name, client: kube::Client::try_from(config).unwrap(), kubeconfig, home }
}

async fn local() -> Server {
    let dir = directory().join("local");
    // Opened twice: of what came before, a store keeps no changes, so that there is something too old.
    drop(ControlPlane::open(&dir, crds::all()).await.unwrap());
    let plane = loop {
        match ControlPlane::open(&dir, crds::all()).await {
            Ok(plane) => break plane,
            Err(LocalError::InUse(_)) => tokio::task::yield_now().await,
            Err(other) => panic!("{other}"),
        }
    };
    let credentials = Credentials::load_or_create(&dir.join("credentials")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let kubeconfig = dir.join("kubeconfig");
    std::fs::write(&kubeconfig, credentials.kubeconfig(&format!("https://{address}"))).unwrap();
    runtime().spawn(async move { plane.serve(listener, &credentials, CancellationToken::new()).await });
    connect("local", kubeconfig).await
}

fn real() -> Server {
    let cluster = Cluster::shared(Level::Workloads);
    for crd in crds::all() {
        let mut crd = serde_json::to_value(crd).unwrap();
        crd["apiVersion"] = "apiextensions.k8s.io/v1".into();
        crd["kind"] = "CustomResourceDefinition".into();
        cluster.ok_with(&["apply", "--server-side", "-f", "-"], &crd.to_string());
        let name = crd["metadata"]["name"].as_str().unwrap();
        // It is served, and published, some time after it is established.
        let deadline = Instant::now() + PATIENCE;
        let resource = name.split('.').next().unwrap();
        for args in [&["get", resource][..], &["explain", resource]] {
            while !cluster.kubectl(args).status.success() {
                assert!(Instant::now() < deadline, "{name} is not served");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    runtime().block_on(connect("kube-apiserver", cluster.kubeconfig().to_owned()))
}
