//! What the gateway needs of whatever runs the servers.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::{
    names::ServerKey,
    runtime::{Backend, Endpoint, InstanceId, RuntimeError, StdioStreams},
};

/// Finds running instances and takes their streams. See [`Backend`] for what each call promises.
#[async_trait]
pub trait Instances: Send + Sync + 'static {
    /// Where the server's running instances are reached.
    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint>;
    /// Takes the standard streams of an instance.
    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError>;
    /// Starts an instance for one session, where that can be had.
    async fn start_session(&self, server: &ServerKey) -> Result<InstanceId, RuntimeError> {
        Err(RuntimeError::Unsupported(format!("all sessions of {server} share its instances")))
    }
    /// Ends such an instance.
    async fn end_session(&self, _instance: &InstanceId) -> Result<(), RuntimeError> {
        Ok(())
    }
    /// Servers whose instances may have changed.
    fn changes(&self) -> broadcast::Receiver<ServerKey>;
}

/// The instances of a backend.
pub struct Running(pub Arc<dyn Backend>);

#[async_trait]
impl Instances for Running {
    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        self.0.endpoints(server)
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        self.0.attach(instance).await
    }

    async fn start_session(&self, server: &ServerKey) -> Result<InstanceId, RuntimeError> {
        self.0.start_session(server).await
    }

    async fn end_session(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        self.0.end_session(instance).await
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.0.changes()
    }
}
