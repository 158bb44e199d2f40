//! TLS towards clients, with certificates that are replaced while the gateway runs.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};

use super::config_file::{FileError, read};

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(5);

/// The certificate of a gateway and its key, as two files say. Copies are one and the same.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    certificate: PathBuf,
    key: PathBuf,
    current: Arc<Current>,
    read: Mutex<(Vec<u8>, Vec<u8>)>,
    acceptor: TlsAcceptor,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.0.certificate).finish()
    }
}

impl Tls {
    /// TLS with the certificates of one PEM file, the gateway's own first, and the key of another.
    ///
    /// # Errors
    /// When a file cannot be read, or when they do not belong together.
    pub fn load(certificate: PathBuf, key: PathBuf) -> Result<Self, FileError> {
        let files = (read(&certificate)?, read(&key)?);
        let certified = certified((&certificate, &files.0), (&key, &files.1))?;
        let current = Arc::new(Current(ArcSwap::from_pointee(certified)));
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config =
            config.map_err(|error| FileError::Invalid { path: certificate.clone(), why: error.to_string() })?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::clone(&current) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self(Arc::new(Inner { certificate, key, current, read: Mutex::new(files), acceptor })))
    }

    /// Takes connections.
    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.0.acceptor
    }

    /// Follows the files, for ever. While they are not sound, the certificate that was there stays.
    pub(super) async fn follow(&self) {
        let mut told = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let tls = self.clone();
            match tokio::task::spawn_blocking(move || tls.look()).await {
                Ok(Ok(true)) => tracing::info!("the gateway has a new certificate"),
                Ok(Ok(false)) => told = None,
                Ok(Err(error)) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::error!(error, "the new certificate cannot be used: the old one stays");
                        told = Some(error);
                    }
                }
                Err(error) => tracing::error!(%error, "the certificate was not read"),
            }
        }
    }

    /// Looks at the files once; true when they say something new.
    fn look(&self) -> Result<bool, FileError> {
        let inner = &*self.0;
        let new = (read(&inner.certificate)?, read(&inner.key)?);
        let mut read = inner.read.lock().expect("nobody panics while holding the files");
        if *read == new {
            return Ok(false);
        }
        let certified = certified((&inner.certificate, &new.0), (&inner.key, &new.1))?;
        inner.current.0.store(Arc::new(certified));
        *read = new;
        Ok(true)
    }
}

fn certified(certificate: (&Path, &[u8]), key: (&Path, &[u8])) -> Result<CertifiedKey, FileError> {
    let invalid = |path: &Path, why: String| FileError::Invalid { path: path.to_owned(), why };
    let chain = CertificateDer::pem_slice_iter(certificate.1).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| invalid(certificate.0, format!("it is no PEM: {error}")))?;
    if chain.is_empty() {
        return Err(invalid(certificate.0, "it holds no certificate".into()));
    }
    let private =
        PrivateKeyDer::from_pem_slice(key.1).map_err(|error| invalid(key.0, format!("it holds no key: {error}")))?;
    let certified = CertifiedKey::from_der(chain, private, &ring::default_provider());
    certified.map_err(|error: rustls::Error| {
        invalid(key.0, format!("it is not the key of {}: {error}", certificate.0.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{listen, reply};

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_new_pair_is_taken_and_half_of_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let (old, new) = (pair(), pair());
        std::fs::write(&certificate, &old.0).unwrap();
        std::fs::write(&key, &old.1).unwrap();
        let tls = Tls::load(certificate.clone(), key.clone()).unwrap();
        let serves = |pem: &str| {
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            tls.0.current.0.load().cert[0] == der
        };
        assert!(serves(&old.0) && !tls.look().unwrap());
        std::fs::write(&certificate, &new.0).unwrap();
        let error = tls.look().unwrap_err().to_string();
        assert!(error.contains("it is not the key of"), "{error}");
        assert!(serves(&old.0));
        std::fs::write(&key, &new.1).unwrap();
        assert!(tls.look().unwrap() && serves(&new.0) && !tls.look().unwrap());
        std::fs::remove_file(&key).unwrap();
        assert!(tls.look().is_err() && serves(&new.0));
    }

    /// Asks over TLS, trusting one certificate alone, and gives the body.
    async fn ask(address: std::net::SocketAddr, trusted: &str) -> Result<String, String> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect("localhost".try_into().unwrap(), stream).await;
        let mut stream = stream.map_err(|error| error.to_string())?;
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.map_err(|error| error.to_string())?;
        let mut answer = String::new();
        // The end without a farewell is the server's way to close.
        let _ = stream.read_to_string(&mut answer).await;
        Ok(answer)
    }

    #[tokio::test]
    async fn clients_are_served_over_tls_with_the_certificate_of_the_day() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let write = |pair: &(String, String)| {
            std::fs::write(&certificate, &pair.0).unwrap();
            std::fs::write(&key, &pair.1).unwrap();
        };
        let (old, new) = (pair(), pair());
        write(&old);
        let tls = Tls::load(certificate.clone(), key.clone()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        let serve = listen::serve(Arc::default(), Some(tls.clone()), listener, LOOK, stop.clone(), LOOK, |_| async {
            reply::json(http::StatusCode::OK, "\"secret\"")
        });
        let server = tokio::spawn(serve);
        // Who says nothing holds nobody else up.
        let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
        assert!(ask(address, &old.0).await.unwrap().contains("\"secret\""));
        assert!(ask(address, &new.0).await.is_err());
        write(&new);
        assert!(tls.look().unwrap());
        assert!(ask(address, &new.0).await.unwrap().contains("\"secret\""));
        assert!(ask(address, &old.0).await.is_err());
        let plain = plain_get(address).await;
        assert!(!plain.contains("secret"), "nothing is told in plain text: {plain}");
        stop.cancel();
        tokio::time::timeout(2 * LOOK, server).await.unwrap().unwrap();
    }

    /// What the port says to plain HTTP.
    async fn plain_get(address: std::net::SocketAddr) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // It may be cut off.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let (pem, private) = pair();
        for (first, second, expected) in [
            ("", private.as_str(), "no certificate"),
            (private.as_str(), private.as_str(), "no certificate"),
            (pem.as_str(), pem.as_str(), "no key"),
            (pem.as_str(), pair().1.as_str(), "not the key of"),
        ] {
            std::fs::write(&certificate, first).unwrap();
            std::fs::write(&key, second).unwrap();
            let error = Tls::load(certificate.clone(), key.clone()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("PRIVATE"), "{error}");
        }
    }
}
