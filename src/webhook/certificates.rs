//! The webhook's certificate: kept in a Secret that all operators share, made and renewed by Perch
//! or by cert-manager.
//!
//! Where Perch makes it, each certificate has an authority of its own, whose key is thrown away once
//! it has signed. The Secret names the authority and the one before; both are what API servers are
//! told to trust, before a certificate is used. So a renewal has no moment at which an operator
//! shows what is not trusted.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};
use tokio_util::sync::CancellationToken;

/// How long a certificate is good.
const LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long before its end it is renewed.
const RENEW: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time between two looks at the Secret.
const LOOK: Duration = Duration::from_secs(30);
/// Time between two looks while something is wrong.
const AGAIN: Duration = Duration::from_secs(2);
/// Annotation of the Secret: when the certificate ends.
const UNTIL: &str = "perch.dev/not-after";
/// Annotation of the Secret: the names that the certificate is for.
const NAMES: &str = "perch.dev/names";
/// Field manager.
const MANAGER: &str = "perch-webhook";

/// The day of a moment, as certificates have it.
macro_rules! day {
    ($moment:expr) => {{
        let date = $moment.to_zoned(jiff::tz::TimeZone::UTC).date();
        let part = |n: i8| u8::try_from(n).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(date.year()), part(date.month()), part(date.day()))
    }};
}

/// Why there is no certificate yet.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The API server refused or did not answer.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// What is in the Secret cannot be used.
    #[error("the Secret {0} is not good: {1}")]
    Invalid(String, String),
    /// None can be made.
    #[error("no certificate can be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// Where the certificate is kept, and for what.
#[derive(Clone)]
pub struct Keeping {
    /// The control plane.
    pub client: Client,
    /// The operator's own namespace.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// Name of the Service.
    pub service: String,
    /// More names by which it is reached.
    pub hosts: Vec<String>,
    /// Name of the configuration that is told whom to trust; none when somebody else makes the
    /// certificate.
    pub configuration: Option<String>,
}

/// The certificate that is shown now. Clones are one and the same.
#[derive(Clone)]
pub struct Certificate {
    current: Arc<Current>,
    acceptor: TlsAcceptor,
}

#[derive(Debug, Default)]
struct Current(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl Default for Certificate {
    fn default() -> Self {
        let current = Arc::new(Current::default());
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("ring speaks the default versions");
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::clone(&current) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self { current, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }
}

impl Certificate {
    /// Takes connections. Before there is a certificate every handshake fails.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.clone()
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.current.0.load().is_some()
    }

    /// Keeps it good until `shutdown`.
    pub async fn keep(&self, keeping: Keeping, shutdown: CancellationToken) {
        let (mut shown, mut told) = (None, None);
        loop {
            let wait = match keeping.look(self, &mut shown).await {
                Ok(()) => {
                    told = None;
                    LOOK
                }
                Err(error) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(error, "the webhook's certificate is not in order; trying again");
                        told = Some(error);
                    }
                    AGAIN
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

impl Keeping {
    /// Looks at the Secret once: makes what is missing, tells whom to trust, and shows what is new.
    async fn look(&self, certificate: &Certificate, shown: &mut Option<Vec<u8>>) -> Result<(), CertificateError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut secret = secrets.get_opt(&self.secret).await?;
        if self.configuration.is_some() && is_due(secret.as_ref(), &self.names(), Timestamp::now()) {
            secret = Some(self.renew(&secrets, secret.as_ref()).await?);
        }
        let absent = || CertificateError::Invalid(self.secret.clone(), "it is not there yet".into());
        let secret = secret.ok_or_else(absent)?;
        let field = |name: &str| {
            let found = secret.data.as_ref().and_then(|d| d.get(name)).map(|b| b.0.as_slice());
            found.ok_or_else(|| CertificateError::Invalid(self.secret.clone(), format!("it has no {name}")))
        };
        if let Some(configuration) = &self.configuration {
            self.trust(configuration, field("ca.crt")?).await?;
        }
        let (chain, key) = (field("tls.crt")?, field("tls.key")?);
        if shown.as_deref() != Some(chain) {
            let certified = certified(chain, key).map_err(|why| CertificateError::Invalid(self.secret.clone(), why))?;
            certificate.current.0.store(Some(Arc::new(certified)));
            *shown = Some(chain.to_vec());
            tracing::info!("the webhook has a certificate");
        }
        Ok(())
    }

    /// The names that a certificate must be for.
    fn names(&self) -> Vec<String> {
        let host = format!("{}.{}.svc", self.service, self.namespace);
        [vec![host.clone(), format!("{host}.cluster.local")], self.hosts.clone()].concat()
    }

    /// Makes a certificate. Of several operators that do so at once, the first one's counts.
    async fn renew(&self, secrets: &Api<Secret>, before: Option<&Secret>) -> Result<Secret, CertificateError> {
        let made = self.make(before, Timestamp::now())?;
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        let written = match before {
            Some(_) => secrets.replace(&self.secret, &params, &made).await,
            None => secrets.create(&params, &made).await,
        };
        match written {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(secrets.get(&self.secret).await?),
            other => Ok(other?),
        }
    }

    fn make(&self, before: Option<&Secret>, now: Timestamp) -> Result<Secret, rcgen::Error> {
        let until = now + LIFE;
        let bounds = |params: &mut CertificateParams| {
            // Whole days; clocks of API servers differ a little.
            params.not_before = day!(now - Duration::from_secs(3600));
            params.not_after = day!(until + Duration::from_secs(24 * 3600));
        };
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, format!("perch webhook {}", now.as_second()));
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        bounds(&mut authority);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let host = format!("{}.{}.svc", self.service, self.namespace);
        let names = self.names();
        let mut server = CertificateParams::new(names.clone())?;
        server.distinguished_name.push(DnType::CommonName, host);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        bounds(&mut server);
        let key = KeyPair::generate()?;
        let signed = server.signed_by(&key, &authority)?;
        let known = before.and_then(|s| s.data.as_ref()).and_then(|d| d.get("ca.crt"));
        let known = known.and_then(|b| std::str::from_utf8(&b.0).ok()).map(first).unwrap_or_default();
        let data = [
            ("ca.crt", format!("{}{known}", authority.pem())),
            ("tls.crt", signed.pem()),
            ("tls.key", key.serialize_pem()),
        ];
        let base = before.map(|s| s.metadata.clone()).unwrap_or_default();
        let mut annotations = base.annotations.unwrap_or_default();
        annotations.insert(NAMES.into(), names.join(","));
        annotations.insert(UNTIL.into(), until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        Ok(Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.clone()),
                namespace: Some(self.namespace.clone()),
                resource_version: base.resource_version,
                labels: base.labels,
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            type_: before.and_then(|s| s.type_.clone()).or_else(|| Some("kubernetes.io/tls".into())),
            data: Some(data.map(|(name, pem)| (name.to_owned(), ByteString(pem.into_bytes()))).into()),
            ..Secret::default()
        })
    }

    /// Tells API servers whom to trust, unless they know.
    async fn trust(&self, name: &str, authorities: &[u8]) -> Result<(), CertificateError> {
        let api: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let configuration = api.get(name).await?;
        let webhooks = configuration.webhooks.unwrap_or_default();
        let stale = webhooks.iter().any(|w| w.client_config.ca_bundle.as_ref().is_none_or(|b| b.0 != authorities));
        if !stale {
            return Ok(());
        }
        let bundle = ByteString(authorities.to_vec());
        let all: Vec<_> =
            webhooks.iter().map(|w| json!({"name": w.name, "clientConfig": {"caBundle": bundle}})).collect();
        let patch = Patch::Strategic(json!({"webhooks": all}));
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        api.patch(name, &params, &patch).await?;
        Ok(())
    }
}

/// Whether a certificate must be made: there is none, it is for other names, or its end is near or
/// unknown.
fn is_due(secret: Option<&Secret>, names: &[String], now: Timestamp) -> bool {
    let named = secret.and_then(|s| s.metadata.annotations.as_ref()?.get(NAMES));
    let until = secret.and_then(|s| s.metadata.annotations.as_ref()?.get(UNTIL)?.parse::<Timestamp>().ok());
    let whole = secret
        .and_then(|s| s.data.as_ref())
        .is_some_and(|d| ["ca.crt", "tls.crt", "tls.key"].iter().all(|k| d.contains_key(*k)));
    !whole || named.is_none_or(|n| *n != names.join(",")) || until.is_none_or(|until| now + RENEW > until)
}

/// The first certificate of a PEM text.
fn first(pem: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----";
    pem.find(END).map_or("", |at| pem.get(..=at + END.len()).unwrap_or(pem))
}

fn certified(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|e| format!("tls.crt is no PEM: {e}"))?;
    if chain.is_empty() {
        return Err("tls.crt holds no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("tls.key holds no key: {error}"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| format!("they do not belong together: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeping() -> Keeping {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is asked"))
        });
        Keeping {
            client: Client::new(service, "default"),
            namespace: "perch-system".into(),
            secret: "tls".into(),
            service: "perch-webhook".into(),
            hosts: vec!["localhost".into()],
            configuration: Some("perch".into()),
        }
    }

    fn text(secret: &Secret, name: &str) -> String {
        String::from_utf8(secret.data.as_ref().unwrap()[name].0.clone()).unwrap()
    }

    #[tokio::test]
    async fn a_certificate_is_renewed_in_time_and_the_old_authority_stays_trusted() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let names = keeping().names();
        assert!(is_due(None, &names, now));
        let made = keeping().make(None, now).unwrap();
        assert!(!is_due(Some(&made), &names, now));
        assert!(!is_due(Some(&made), &names, now + LIFE - RENEW - Duration::from_secs(1)));
        assert!(is_due(Some(&made), &names, now + LIFE - RENEW + Duration::from_secs(1)));
        assert!(is_due(Some(&made), &names[1..], now), "it is for other names");
        certified(text(&made, "tls.crt").as_bytes(), text(&made, "tls.key").as_bytes()).unwrap();

        let (old, new) = (text(&made, "ca.crt"), keeping().make(Some(&made), now + RENEW).unwrap());
        let both = text(&new, "ca.crt");
        assert!(both.contains(old.trim()) && both.matches("BEGIN").count() == 2, "{both}");
        let third = text(&keeping().make(Some(&new), now + RENEW * 2).unwrap(), "ca.crt");
        assert_eq!(third.matches("BEGIN").count(), 2, "only the one before is kept");
        assert!(!third.contains(old.trim()));
    }

    #[tokio::test]
    async fn what_is_broken_is_made_anew() {
        let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
        let names = keeping().names();
        let mut made = keeping().make(None, now).unwrap();
        made.data.as_mut().unwrap().remove("tls.key");
        assert!(is_due(Some(&made), &names, now));
        assert!(certified(b"x", b"y").is_err());
    }
}
