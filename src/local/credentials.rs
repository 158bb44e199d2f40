//! Who may come in over the network: a token, and a certificate that proves the server to kubectl.
//!
//! kubectl sends a token only over TLS, so even on loopback there is a certificate, signed by an
//! authority that only the kubeconfig trusts.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rand::RngCore;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use secrecy::{ExposeSecret, SecretString};

use super::LocalError;

/// What a client needs to be let in over the network.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Bearer token.
    pub token: SecretString,
    /// Certificate of the authority that signed the server's certificate, PEM.
    pub ca_pem: String,
    /// The server's certificate, PEM.
    pub cert_pem: String,
    /// The server's key, PEM.
    pub key_pem: SecretString,
}

const FILES: [&str; 4] = ["token", "ca.crt", "tls.crt", "tls.key"];

impl Credentials {
    /// Reads the credentials kept in `dir`, or makes and keeps new ones (files 0600).
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub fn load_or_create(dir: &Path) -> Result<Self, LocalError> {
        let failed = |error: &dyn std::fmt::Display| LocalError::Credentials {
            path: dir.display().to_string(),
            message: error.to_string(),
        };
        if let [Some(token), Some(ca_pem), Some(cert_pem), Some(key_pem)] =
            FILES.map(|name| fs::read_to_string(dir.join(name)).ok())
        {
            return Ok(Self { token: token.into(), ca_pem, cert_pem, key_pem: key_pem.into() });
        }
        let made = Self::make().map_err(|error| failed(&error))?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| failed(&error))?;
        let contents = [made.token.expose_secret(), &made.ca_pem, &made.cert_pem, made.key_pem.expose_secret()];
        for (name, content) in FILES.into_iter().zip(contents) {
            write_private(&dir.join(name), content).map_err(|error| failed(&error))?;
        }
        Ok(made)
    }

    fn make() -> Result<Self, rcgen::Error> {
        let mut token = [0_u8; 32];
        rand::rng().fill_bytes(&mut token);
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "perch local authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let mut server = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into(), "::1".into()])?;
        server.distinguished_name.push(DnType::CommonName, "perch");
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &authority)?;
        Ok(Self {
            token: base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token).into(),
            ca_pem: authority.pem(),
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem().into(),
        })
    }

    /// A kubeconfig that reaches `server` (`https://127.0.0.1:7443`) with these credentials;
    /// context, cluster and user are all named `perch`.
    #[must_use]
    pub fn kubeconfig(&self, server: &str) -> String {
        let ca = STANDARD.encode(&self.ca_pem);
        let token = self.token.expose_secret();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: perch\n\
             clusters:\n- name: perch\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
             users:\n- name: perch\n  user:\n    token: {token}\n\
             contexts:\n- name: perch\n  context:\n    cluster: perch\n    user: perch\n    namespace: default\n"
        )
    }
}

/// Writes a file that only its owner can read, as a whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn write_private(path: &Path, content: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_made_once_and_kept_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("tls");
        let made = Credentials::load_or_create(&dir).unwrap();
        let again = Credentials::load_or_create(&dir).unwrap();
        assert_eq!(made.cert_pem, again.cert_pem);
        assert_eq!(made.token.expose_secret(), again.token.expose_secret());
        assert_eq!(fs::metadata(dir.join("token")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{made:?}").contains(made.token.expose_secret()));
    }
}
