use std::{collections::HashMap, net::SocketAddr};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::StatusCode;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use serde_json::json;

use super::{client::digest_of, *};

/// What a registry answers, by path: a status and a body.
type Pages = Arc<Mutex<HashMap<String, (StatusCode, Vec<u8>)>>>;

/// A registry on this machine that answers what a test says.
struct Registry {
    address: SocketAddr,
    pages: Pages,
    asked: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
struct Shared {
    pages: Pages,
    asked: Arc<Mutex<Vec<String>>>,
    /// Who reads must bring this token.
    token: Option<&'static str>,
    address: SocketAddr,
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    shared.asked.lock().unwrap().push(path.clone());
    let reply = |status: StatusCode, body: Vec<u8>| Response::builder().status(status).body(Body::from(body)).unwrap();
    if path == "/token" {
        assert_eq!(request.uri().query(), Some("service=here&scope=repository%3Ateam%2Fx%3Apull"));
        return reply(StatusCode::OK, br#"{"token": "let me in"}"#.to_vec());
    }
    let given = request.headers().get("authorization").and_then(|h| h.to_str().ok());
    if let Some(token) = shared.token
        && given != Some(&format!("Bearer {token}"))
    {
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"here\"", shared.address);
        return Response::builder().status(401).header("www-authenticate", challenge).body(Body::empty()).unwrap();
    }
    match shared.pages.lock().unwrap().get(&path).cloned() {
        Some((status, body)) if status.is_redirection() => {
            let location = String::from_utf8(body).unwrap();
            Response::builder().status(status).header("location", location).body(Body::empty()).unwrap()
        }
        Some((status, body)) => reply(status, body),
        None => reply(StatusCode::NOT_FOUND, Vec::new()),
    }
}

impl Registry {
    async fn start(token: Option<&'static str>) -> Self {
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (pages, asked) = (Pages::default(), Arc::<Mutex<Vec<String>>>::default());
        let shared = Shared { pages: Arc::clone(&pages), asked: Arc::clone(&asked), token, address };
        let app = Router::new().fallback(answer).with_state(shared);
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, pages, asked }
    }

    fn put(&self, path: &str, body: impl Into<Vec<u8>>) {
        self.put_as(path, StatusCode::OK, body);
    }

    fn put_as(&self, path: &str, status: StatusCode, body: impl Into<Vec<u8>>) {
        self.pages.lock().unwrap().insert(format!("/v2/team/x/{path}"), (status, body.into()));
    }

    fn blob(&self, bytes: &str) -> String {
        let digest = digest_of(bytes.as_bytes());
        self.put(&format!("blobs/{digest}"), bytes);
        digest
    }

    /// A manifest, by its digest.
    fn manifest(&self, manifest: &Value) -> String {
        let text = manifest.to_string();
        let digest = digest_of(text.as_bytes());
        self.put(&format!("manifests/{digest}"), text);
        digest
    }

    /// The layer with a signature of a digest.
    fn signature(&self, signer: &Signer, digest: &str) -> Value {
        let payload = json!({"critical": {"identity": {"docker-reference": "x"},
            "image": {"docker-manifest-digest": digest}, "type": "cosign container image signature"}})
        .to_string();
        json!({"mediaType": SIMPLE, "digest": self.blob(&payload), "annotations": {SIGNATURE: signer.sign(payload.as_bytes())}})
    }

    fn sign(&self, signer: &Signer, digest: &str) {
        let manifest = json!({"layers": [self.signature(signer, digest)]});
        self.put(&format!("manifests/{}.sig", digest.replace(':', "-")), manifest.to_string());
    }

    fn wanted(&self, name: &str, signer: &Signer) -> Wanted {
        Wanted { image: format!("{}/team/x{name}", self.address), keys: vec![signer.pem.clone()] }
    }

    async fn facts(&self, registries: &Registries, name: &str, signer: &Signer) -> ImageFacts {
        let wanted = self.wanted(name, signer);
        registries.look(std::slice::from_ref(&wanted)).await.remove(&wanted.image).unwrap()
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

struct Signer {
    pair: EcdsaKeyPair,
    pem: String,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
        let head = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
        let head = (0..26).map(|i| u8::from_str_radix(&head[2 * i..2 * i + 2], 16).unwrap());
        let der: Vec<u8> = head.chain(pair.public_key().as_ref().iter().copied()).collect();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        Self { pair, pem }
    }

    fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.pair.sign(&SystemRandom::new(), bytes).unwrap())
    }
}

fn problem(facts: &ImageFacts) -> &str {
    facts.problem.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn a_signature_is_found_by_its_tag() {
    let (registry, signer, other) = (Registry::start(None).await, Signer::new(), Signer::new());
    let registries = Registries::new().unwrap();
    let image = registry.manifest(&json!({"layers": []}));
    let pinned = format!("@{image}");
    let before = registry.facts(&registries, &pinned, &signer).await;
    assert_eq!(before, ImageFacts { digest: Some(image.clone()), ..ImageFacts::default() });
    registry.sign(&signer, &image);
    let signed = registry.facts(&registries, &pinned, &signer).await;
    assert_eq!((signed.signatures, signed.signed_by.as_slice()), (1, std::slice::from_ref(&signer.pem)));
    let wrong = registry.facts(&registries, &pinned, &other).await;
    assert_eq!((wrong.signatures, wrong.signed_by.len(), problem(&wrong)), (1, 0, ""), "another key");
    // The signature of one image under the tag of another.
    let second = registry.manifest(&json!({"layers": [], "annotations": {"a": "b"}}));
    let tag = |digest: &str| format!("/v2/team/x/manifests/{}.sig", digest.replace(':', "-"));
    let copied = registry.pages.lock().unwrap()[&tag(&image)].clone();
    registry.pages.lock().unwrap().insert(tag(&second), copied);
    let copied = registry.facts(&registries, &format!("@{second}"), &signer).await;
    assert_eq!((copied.signatures, copied.signed_by.len()), (1, 0), "it is of another digest");
}

#[tokio::test]
async fn signatures_are_found_among_referrers() {
    let (registry, signer) = (Registry::start(None).await, Signer::new());
    let registries = Registries::new().unwrap();
    let index =
        |kind: &str, manifest: &str| json!({"manifests": [{"artifactType": kind, "digest": manifest}]}).to_string();
    let image = registry.manifest(&json!({"layers": [], "annotations": {"n": "1"}}));
    let manifest = registry.manifest(&json!({"layers": [registry.signature(&signer, &image)]}));
    registry.put(&format!("referrers/{image}"), index(ARTIFACT, &manifest));
    assert_eq!(registry.facts(&registries, &format!("@{image}"), &signer).await.signed_by.len(), 1);

    // A bundle, in the list that clients keep where the registry keeps none.
    let image = registry.manifest(&json!({"layers": [], "annotations": {"n": "2"}}));
    let statement = json!({"predicateType": "https://sigstore.dev/cosign/sign/v1",
        "subject": [{"digest": {"sha256": image.strip_prefix("sha256:").unwrap()}}]})
    .to_string();
    let kind = "application/vnd.in-toto+json";
    let signed = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
    let bundle = json!({"dsseEnvelope": {"payload": STANDARD.encode(&statement), "payloadType": kind,
        "signatures": [{"sig": signer.sign(signed.as_bytes())}]}})
    .to_string();
    let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let manifest = registry.manifest(&json!({"layers": [{"mediaType": kind, "digest": registry.blob(&bundle)}]}));
    registry.put(&format!("manifests/{}", image.replace(':', "-")), index(kind, &manifest));
    assert_eq!(registry.facts(&registries, &format!("@{image}"), &signer).await.signed_by.len(), 1);
    let other = registry.facts(&registries, &format!("@{image}"), &Signer::new()).await;
    assert_eq!((other.signatures, other.signed_by.len()), (1, 0));
}

#[tokio::test]
async fn a_tag_is_followed_anew_each_time() {
    let (registry, signer) = (Registry::start(None).await, Signer::new());
    let registries = Registries::new().unwrap();
    let (first, second) = (json!({"layers": []}), json!({"layers": [], "annotations": {"n": "2"}}));
    let image = registry.manifest(&first);
    registry.put("manifests/1", first.to_string());
    registry.sign(&signer, &image);
    let facts = registry.facts(&registries, ":1", &signer).await;
    assert_eq!((facts.digest.as_deref(), facts.signed_by.len()), (Some(image.as_str()), 1));
    registry.put("manifests/1", second.to_string());
    let moved = registry.facts(&registries, ":1", &signer).await;
    assert_eq!((moved.digest, moved.signed_by.len()), (Some(registry.manifest(&second)), 0));
    let none = registry.facts(&registries, ":2", &signer).await;
    assert!(problem(&none).contains("has no such image"), "{none:?}");
}

#[tokio::test]
async fn what_was_found_is_remembered_and_what_is_asked_is_the_key() {
    let (registry, signer) = (Registry::start(None).await, Signer::new());
    let registries = Registries::new().unwrap();
    let image = registry.manifest(&json!({"layers": []}));
    registry.sign(&signer, &image);
    let pinned = format!("@{image}");
    let found = registry.facts(&registries, &pinned, &signer).await;
    let asked = registry.asked();
    assert_eq!(registry.facts(&registries, &pinned, &signer).await, found);
    assert_eq!(registry.asked(), asked, "nobody was asked again");
    let other = registry.facts(&registries, &pinned, &Signer::new()).await;
    assert!(other.signed_by.is_empty() && registry.asked() > asked, "another key is another question");
}

#[tokio::test]
async fn a_registry_that_fails_is_a_problem_and_no_answer() {
    let (registry, signer) = (Registry::start(None).await, Signer::new());
    let registries = Registries::new().unwrap();
    let image = registry.manifest(&json!({"layers": []}));
    registry.sign(&signer, &image);
    let tag = format!("manifests/{}.sig", image.replace(':', "-"));
    let pinned = format!("@{image}");
    registry.put_as(&tag, StatusCode::SERVICE_UNAVAILABLE, "");
    let facts = registry.facts(&registries, &pinned, &signer).await;
    assert!(facts.signed_by.is_empty() && problem(&facts).ends_with("answered 503"), "{facts:?}");
    registry.put(&tag, vec![b' '; (4 << 20) + 1]);
    let facts = registry.facts(&registries, &pinned, &signer).await;
    assert!(facts.signed_by.is_empty() && problem(&facts).contains("sent more than"), "{facts:?}");
    registry.put(&tag, "{");
    let facts = registry.facts(&registries, &pinned, &signer).await;
    assert!(problem(&facts).contains("something else than what it was asked for"), "{facts:?}");
    // A payload that is not what its digest says.
    registry.sign(&signer, &image);
    let broken = |page: (&String, &mut (StatusCode, Vec<u8>))| {
        if page.0.contains("/blobs/") {
            page.1.1.push(b' ');
        }
    };
    registry.pages.lock().unwrap().iter_mut().for_each(broken);
    let facts = registry.facts(&registries, &pinned, &signer).await;
    assert!(facts.signed_by.is_empty() && problem(&facts).contains("something else"), "{facts:?}");

    // Nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let wanted = Wanted { image: format!("{free}/team/x{pinned}"), keys: vec![signer.pem.clone()] };
    let facts = registries.look(std::slice::from_ref(&wanted)).await.remove(&wanted.image).unwrap();
    assert!(problem(&facts).starts_with(&format!("registry {free} does not answer")), "{facts:?}");
}

#[tokio::test]
async fn who_signed_is_known_while_the_registry_is_down() {
    let (registry, signer) = (Registry::start(None).await, Signer::new());
    let registries = Registries::new().unwrap();
    let image = registry.manifest(&json!({"layers": []}));
    registry.sign(&signer, &image);
    let pinned = format!("@{image}");
    registry.facts(&registries, &pinned, &signer).await;
    // As if it had been a while ago.
    for kept in registries.kept.lock().unwrap().values_mut() {
        kept.seen = Instant::now().checked_sub(FRESH).unwrap();
    }
    registry.put_as(&format!("manifests/{}.sig", image.replace(':', "-")), StatusCode::INTERNAL_SERVER_ERROR, "");
    let facts = registry.facts(&registries, &pinned, &signer).await;
    assert_eq!(facts.signed_by, std::slice::from_ref(&signer.pem));
    assert!(problem(&facts).ends_with("answered 500"), "{facts:?}");
    // Taken away: it is no longer signed.
    registry.pages.lock().unwrap().retain(|path, _| !path.contains(".sig"));
    let facts = registry.facts(&registries, &pinned, &signer).await;
    assert!(facts.signed_by.is_empty() && facts.problem.is_none(), "{facts:?}");
}

#[tokio::test]
async fn a_token_for_everybody_is_fetched() {
    let (registry, signer) = (Registry::start(Some("let me in")).await, Signer::new());
    let registries = Registries::new().unwrap();
    let image = registry.manifest(&json!({"layers": []}));
    registry.sign(&signer, &image);
    assert_eq!(registry.facts(&registries, &format!("@{image}"), &signer).await.signed_by.len(), 1);
    let closed = Registry::start(Some("another")).await;
    let facts = closed.facts(&registries, &format!("@{image}"), &signer).await;
    assert!(problem(&facts).contains("asks who it is"), "{facts:?}");
}

#[tokio::test]
async fn nobody_is_sent_to_another_place_without_tls() {
    let (registry, signer) = (Registry::start(None).await, Signer::new());
    let registries = Registries::new().unwrap();
    let image = registry.manifest(&json!({"layers": []}));
    let tag = format!("manifests/{}.sig", image.replace(':', "-"));
    registry.put_as(&tag, StatusCode::TEMPORARY_REDIRECT, "http://192.0.2.1/secret");
    let facts = registry.facts(&registries, &format!("@{image}"), &signer).await;
    assert!(problem(&facts).ends_with("answered 307"), "{facts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_says_nothing_is_given_up() {
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let image = format!("{address}/team/x@sha256:{}", "a".repeat(64));
    let wanted = Wanted { image, keys: vec![Signer::new().pem] };
    let facts = Registries::new().unwrap().look(std::slice::from_ref(&wanted)).await.remove(&wanted.image).unwrap();
    let problem = facts.problem.unwrap();
    assert!(problem.contains("does not answer"), "{problem}");
}
