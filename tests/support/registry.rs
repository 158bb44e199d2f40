//! A registry of images on loopback (Debian's docker-registry), and somebody who signs what is in it
//! as `cosign sign --key` does.

#![allow(dead_code, reason = "no test binary needs all of it")]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A registry that ends with the test.
pub struct Registry {
    child: Child,
    /// Host and port.
    pub host: String,
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

/// Path of docker-registry.
fn program() -> String {
    if let Ok(path) = std::env::var("PERCH_TEST_REGISTRY") {
        return path;
    }
    let output = Command::new("hack/registry.sh").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

impl Registry {
    /// Starts one with nothing in it.
    pub fn start() -> Self {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        // It does not say which port it took, so it is told one that was free.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = json!({
            "version": "0.1", "log": {"level": "error", "accesslog": {"disabled": true}}, "http": {"addr": host},
            "storage": {"filesystem": {"rootdirectory": dir.path().join("data")}},
        });
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        let log = dir.path().join("log");
        let child = Command::new(program())
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let registry = Self { child, host, http, runtime, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(60);
        while registry.send(registry.http.get(registry.url("/v2/"))).is_none() {
            let said = || std::fs::read_to_string(&log).unwrap();
            assert!(Instant::now() < deadline, "the registry does not answer: {}", said());
            std::thread::park_timeout(Duration::from_millis(50));
        }
        registry
    }

    /// Nobody listens any more.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Option<(u16, String, Vec<u8>)> {
        self.runtime.block_on(async {
            let answer = request.send().await.ok()?;
            let location = answer.headers().get("location").map(|l| l.to_str().unwrap().to_owned()).unwrap_or_default();
            Some((answer.status().as_u16(), location, answer.bytes().await.ok()?.to_vec()))
        })
    }

    fn blob(&self, repository: &str, bytes: &[u8]) -> Value {
        let digest = digest_of(bytes);
        let begun = self.send(self.http.post(self.url(&format!("/v2/{repository}/blobs/uploads/")))).unwrap();
        assert_eq!(begun.0, 202);
        let mut place = url::Url::parse(&self.url("/")).unwrap().join(&begun.1).unwrap();
        place.query_pairs_mut().append_pair("digest", &digest);
        let put = self.http.put(place).header("content-type", "application/octet-stream").body(bytes.to_vec());
        assert_eq!(self.send(put).unwrap().0, 201);
        json!({"mediaType": "application/octet-stream", "digest": digest, "size": bytes.len()})
    }

    fn manifest(&self, repository: &str, tag: &str, manifest: &Value) -> String {
        let text = manifest.to_string();
        let kind = manifest["mediaType"].as_str().unwrap().to_owned();
        let put = self.http.put(self.url(&format!("/v2/{repository}/manifests/{tag}")));
        let (status, _, said) = self.send(put.header("content-type", kind).body(text.clone())).unwrap();
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&said));
        digest_of(text.as_bytes())
    }

    /// Pushes an image that holds a note and nothing else; returns its digest.
    pub fn push(&self, repository: &str, tag: &str, note: &str) -> String {
        let mut config = self.blob(repository, json!({"architecture": "amd64", "os": "linux"}).to_string().as_bytes());
        config["mediaType"] = CONFIG.into();
        let mut layer = self.blob(repository, note.as_bytes());
        layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        self.manifest(repository, tag, &manifest)
    }

    /// The digest that a tag leads to.
    pub fn digest(&self, repository: &str, tag: &str) -> String {
        let kinds = format!("{MANIFEST}, application/vnd.docker.distribution.manifest.v2+json");
        let get = self.http.get(self.url(&format!("/v2/{repository}/manifests/{tag}"))).header("accept", kinds);
        let (status, _, manifest) = self.send(get).unwrap();
        assert_eq!(status, 200);
        digest_of(&manifest)
    }

    /// Puts a signature beside an image, as `cosign sign --key` does.
    pub fn sign(&self, repository: &str, digest: &str, signer: &Signer) {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": format!("{}/{repository}", self.host)},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": null,
        })
        .to_string();
        let mut layer = self.blob(repository, payload.as_bytes());
        layer["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json".into();
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signer.sign(payload.as_bytes())});
        let mut config = self.blob(repository, b"{}");
        config["mediaType"] = CONFIG.into();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        self.manifest(repository, &format!("{}.sig", digest.replace(':', "-")), &manifest);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have been stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Somebody who signs, with an ECDSA key on P-256.
pub struct Signer {
    pair: EcdsaKeyPair,
    /// The public key, as cosign.pub holds it.
    pub key: String,
}

impl Signer {
    /// A signer with a new key.
    pub fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        // RFC 5480: id-ecPublicKey with secp256r1, and the point.
        let head: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
            0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        let encoded = STANDARD.encode([head.as_slice(), pair.public_key().as_ref()].concat());
        let (first, second) = encoded.split_at(64);
        let key = format!("-----BEGIN PUBLIC KEY-----\n{first}\n{second}\n-----END PUBLIC KEY-----\n");
        Self { pair, key }
    }

    fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.pair.sign(&SystemRandom::new(), bytes).unwrap())
    }

    /// Settings by which images under a prefix must be signed by this one.
    pub fn settings(&self, prefix: &str) -> String {
        let signers = json!({"imageSigners": [{"images": [prefix], "key": self.key}]});
        json!({"levels": {"Low": {"parameters": signers}, "Medium": {"parameters": signers}}}).to_string()
    }
}
