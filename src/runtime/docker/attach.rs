//! The standard streams of a container.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bollard::{Docker, container::LogOutput, query_parameters::AttachContainerOptionsBuilder};
use futures::{StreamExt, TryStreamExt};
use tokio_util::io::StreamReader;

use super::{is_gone, unavailable};
use crate::runtime::{InstanceId, RuntimeError, StdioStreams};

/// Gives the streams back when the last half of them is dropped.
struct Held(Arc<AtomicBool>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Takes the streams of a running container, unless somebody has them.
pub(super) async fn attach(
    docker: &Docker,
    instance: &InstanceId,
    container: &str,
    held: Arc<AtomicBool>,
) -> Result<StdioStreams, RuntimeError> {
    if held.swap(true, Ordering::AcqRel) {
        return Err(RuntimeError::AlreadyAttached(instance.clone()));
    }
    let guard = Arc::new(Held(held));
    let options = AttachContainerOptionsBuilder::new().stream(true).stdin(true).stdout(true).stderr(false).build();
    let attached = docker.attach_container(container, Some(options)).await.map_err(|error| {
        // It ended since it was last looked at.
        if is_gone(&error) {
            return RuntimeError::NotRunning(instance.to_string());
        }
        unavailable("attach to a container")(error)
    })?;
    let for_output = Arc::clone(&guard);
    let output = attached.output.map_err(std::io::Error::other).filter_map(move |chunk| {
        let _guard = &for_output;
        let stdout = match chunk {
            Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => Some(Ok(message)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        };
        async move { stdout }
    });
    Ok(StdioStreams {
        stdin: Box::pin(Input { inner: attached.input, _guard: guard }),
        stdout: Box::pin(StreamReader::new(output)),
    })
}

struct Input {
    inner: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>,
    _guard: Arc<Held>,
}

impl tokio::io::AsyncWrite for Input {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.inner.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        self.inner.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        // Closing the container's standard input would end the server for the next holder.
        self.poll_flush(cx)
    }
}
