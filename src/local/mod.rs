//! The embedded control plane: the part of the Kubernetes API that Perch and its users need, on
//! one machine, kept in one file.
//!
//! It is a tower `Service`, so the same controllers run against it in process
//! ([`ControlPlane::client`]) and kubectl over loopback TLS ([`ControlPlane::serve`]).
//!
//! May import: `api`, `names`, `error`, `telemetry`. Never `runtime`, `controllers`, `gateway`.

pub mod objects;

use std::{path::Path, sync::Arc};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The embedded control plane. Clones share one store.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    _inner: Arc<()>,
}

/// Why the control plane does not open or serve.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Another process holds the store.
    #[error("the store {0} is in use by another process")]
    InUse(String),
    /// The store cannot be read or written.
    #[error("the store {path} cannot be opened: {message}")]
    Store {
        /// Its path.
        path: String,
        /// What went wrong.
        message: String,
    },
    /// Listening or answering failed.
    #[error("the API cannot be served: {0}")]
    Serve(#[from] std::io::Error),
}

/// What a client needs to be let in over the network.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Bearer token.
    pub token: String,
    /// Certificate of the authority that signed the server's certificate, PEM.
    pub ca_pem: String,
    /// The server's certificate, PEM.
    pub cert_pem: String,
    /// The server's key, PEM.
    pub key_pem: String,
}

impl ControlPlane {
    /// Opens the store in `dir` (created when absent) and serves the built-in kinds and `crds`.
    pub async fn open(_dir: &Path, _crds: Vec<CustomResourceDefinition>) -> Result<Self, LocalError> {
        todo!()
    }

    /// A client that talks to this control plane without a network.
    pub fn client(&self) -> kube::Client {
        todo!()
    }

    /// Serves TLS on `listener` to clients that bring the token, until `shutdown`.
    pub async fn serve(
        &self,
        _listener: TcpListener,
        _credentials: &Credentials,
        _shutdown: CancellationToken,
    ) -> Result<(), LocalError> {
        todo!()
    }
}

impl Credentials {
    /// Reads the credentials kept in `dir`, or makes and keeps new ones (files 0600).
    pub fn load_or_create(_dir: &Path) -> Result<Self, LocalError> {
        todo!()
    }

    /// A kubeconfig that reaches `server` (`https://127.0.0.1:6443`) with these credentials;
    /// context, cluster and user are all named `perch`.
    #[must_use]
    pub fn kubeconfig(&self, _server: &str) -> String {
        todo!()
    }
}
