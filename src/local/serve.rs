//! The API over TLS, for clients outside of this process.

use std::{sync::Arc, time::Duration};

use http::{Request, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
};
use secrecy::ExposeSecret;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::{Credentials, LocalError, service::Service, status::ApiError};

/// Time for a client to complete its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for answers under way when the server stops. Watches would go on for ever.
const DRAIN: Duration = Duration::from_secs(2);

pub(super) async fn serve(
    service: Service,
    listener: TcpListener,
    credentials: &Credentials,
    shutdown: CancellationToken,
) -> Result<(), LocalError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(credentials)?));
    let token: Arc<str> = format!("Bearer {}", credentials.token.expose_secret()).into();
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, say: existing connections go on, new ones later.
                    tracing::warn!(%error, "the API does not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, service, token, shutdown) =
            (acceptor.clone(), service.clone(), Arc::clone(&token), shutdown.clone());
        connections.spawn(async move {
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
            let guarded = service_fn(move |request: Request<Incoming>| {
                let (mut service, token) = (service.clone(), Arc::clone(&token));
                async move {
                    if is_authentic(&request, &token) {
                        service.call(request).await
                    } else {
                        Ok(ApiError::unauthorized().into_response())
                    }
                }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(stream), guarded).into_owned();
            let graceful = GracefulShutdown::new();
            let connection = graceful.watch(connection);
            tokio::select! {
                _ = connection => {}
                () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN).await } => {}
            }
        });
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

fn tls(credentials: &Credentials) -> Result<rustls::ServerConfig, LocalError> {
    let broken = |error: String| LocalError::Credentials {
        path: "the TLS certificate".into(),
        message: format!("{error}; delete the directory to have new credentials made"),
    };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(credentials.cert_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| broken(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(credentials.key_pem.expose_secret().as_bytes())
        .map_err(|error| broken(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|error| broken(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Compares in a time that does not depend on where the tokens differ.
fn is_authentic(request: &Request<Incoming>, token: &str) -> bool {
    let given = request.headers().get(header::AUTHORIZATION).map_or(&[][..], http::HeaderValue::as_bytes);
    given.len() == token.len() && given.iter().zip(token.as_bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
