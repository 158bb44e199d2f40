//! Against servers on loopback that answer what a test tells them. The Vault here is a small stand-in
//! that knows two calls of the HTTP API; it is no Vault.

use std::sync::{Arc, Mutex};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{
    oauth2::ClientCredentials,
    vault::{KeyValue, Login},
    *,
};
use crate::api::mcp_server::{OAuth2Credential, VaultCredential};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// What was asked: method, path, interesting headers, body.
type Asked = Arc<Mutex<Vec<String>>>;

#[derive(Clone)]
struct Stub {
    status: u16,
    body: String,
    location: Option<String>,
    asked: Asked,
}

async fn answer(State(stub): State<Stub>, request: axum::extract::Request) -> impl IntoResponse {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let header = |name: &str| parts.headers.get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    let told = format!(
        "{} {} [{}{}] {}",
        parts.method,
        parts.uri,
        header("authorization"),
        header("x-vault-token"),
        String::from_utf8(body.to_vec()).unwrap()
    );
    stub.asked.lock().unwrap().push(told);
    let location = stub.location.map(|l| [("location", l)]);
    // A login is answered with a token, whatever the test says of the rest.
    if parts.uri.path().ends_with("/login") {
        return (StatusCode::OK, location, r#"{"auth": {"client_token": "vault-token"}}"#.to_owned());
    }
    (StatusCode::from_u16(stub.status).unwrap(), location, stub.body)
}

/// A server that answers so, and what it was asked.
async fn server(status: u16, body: &str) -> (String, Asked) {
    redirecting(status, body, None).await
}

async fn redirecting(status: u16, body: &str, location: Option<&str>) -> (String, Asked) {
    let asked = Asked::default();
    let stub = Stub { status, body: body.to_owned(), location: location.map(Into::into), asked: Arc::clone(&asked) };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer).with_state(stub)).await });
    (url, asked)
}

fn oauth2(url: &str, more: &str) -> OAuth2Credential {
    let yaml = format!(
        "{{tokenURL: '{url}', clientID: c, clientSecretFrom: {{secretKeyRef: {{name: s, key: k}}}}, scopes: [a, 'b c'], {more}}}"
    );
    serde_yaml_ng::from_str(&yaml).unwrap()
}

async fn token(url: &str, more: &str) -> Result<Obtained, ObtainError> {
    let client = ClientCredentials::new(&oauth2(url, more), "cl:ient".into(), "s/e c".into(), None)?;
    client.obtain(NOW).await
}

fn text(obtained: &Obtained) -> &str {
    std::str::from_utf8(obtained.value.expose_secret()).unwrap()
}

fn seconds(obtained: &Obtained) -> Option<i64> {
    obtained.expires.map(Timestamp::as_second)
}

#[tokio::test]
async fn a_token_is_asked_for_as_the_standard_says() {
    let (url, asked) = server(200, r#"{"access_token": "t-1", "token_type": "Bearer", "expires_in": 3600}"#).await;
    let got = token(&format!("{url}/token?x=1"), "audience: aud").await.unwrap();
    assert_eq!((text(&got), seconds(&got)), ("t-1", Some(3600)));
    assert!(!format!("{got:?}").contains("t-1"));
    // Each part form-encoded, then joined: base64("cl%3Aient:s%2Fe+c").
    let form = "grant_type=client_credentials&scope=a+b+c&audience=aud";
    let expected = format!("POST /token?x=1 [Basic Y2wlM0FpZW50OnMlMkZlK2M=] {form}");
    assert_eq!(*asked.lock().unwrap(), [expected]);
    token(&url, "clientAuthentication: Body").await.unwrap();
    let last = asked.lock().unwrap().pop().unwrap();
    assert_eq!(last, "POST / [] grant_type=client_credentials&scope=a+b+c&client_id=cl%3Aient&client_secret=s%2Fe+c");
}

#[tokio::test]
async fn lifetimes_come_in_many_forms() {
    for (said, expected) in [
        (r#", "expires_in": "120""#, Some(Some(120))),
        (r#", "expires_in": 59.9"#, Some(Some(59))),
        ("", Some(Some(3600))),
        (r#", "expires_in": 18446744073709551615"#, Some(Some(10 * 365 * 24 * 3600))),
        (r#", "expires_in": 0"#, None),
        (r#", "expires_in": -5"#, None),
        (r#", "expires_in": "soon""#, None),
    ] {
        let (url, _) = server(200, &format!(r#"{{"access_token": "t"{said}}}"#)).await;
        let got = token(&url, "").await;
        assert_eq!(got.as_ref().ok().map(seconds), expected, "{said}: {got:?}");
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do_and_repeats_nothing() {
    let said = r#"{"error": "invalid_client", "error_description": "no such secret: s/e c"}"#;
    for (status, body, category, part) in [
        (401, said, "Refused", "invalid_client): check clientID"),
        (400, r#"{"error": "invalid_scope"}"#, "Refused", "check scopes"),
        (400, r#"{"error": "s/e c"}"#, "Refused", "HTTP 400)"),
        (404, "not here", "Refused", "check tokenURL"),
        (500, said, "Unreachable", "HTTP 500"),
        (429, "", "Unreachable", "HTTP 429"),
        (200, "<html>", "InvalidAnswer", "no JSON"),
        (200, r#"{"token": "t"}"#, "InvalidAnswer", "no access_token"),
        (200, "{\"access_token\": \"a\\nb\"}", "InvalidAnswer", "visible characters"),
    ] {
        let (url, _) = server(status, body).await;
        let error = token(&format!("{url}/t?key=hidden"), "").await.unwrap_err();
        assert_eq!(error.category(), category, "{status} {body}: {error}");
        let message = error.to_string();
        assert!(message.contains(part), "{message}");
        assert!(!message.contains("s/e c") && !message.contains("hidden"), "{message}");
    }
}

#[tokio::test]
async fn secrets_go_nowhere_else() {
    let (elsewhere, asked) = server(200, r#"{"access_token": "t"}"#).await;
    for status in [302, 307, 308] {
        let (url, _) = redirecting(status, "", Some(&elsewhere)).await;
        let error = token(&url, "").await.unwrap_err();
        assert!(error.to_string().contains("leads elsewhere"), "{error}");
    }
    assert_eq!(*asked.lock().unwrap(), Vec::<String>::new());
    for bad in ["http://idp.example/t", "https://user:pass@idp.example/t"] {
        let error = token(bad, "").await.unwrap_err();
        assert_eq!(error.category(), "InvalidCredential", "{bad}");
    }
}

#[tokio::test]
async fn silence_and_wrong_certificates_are_told_apart() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = token(&format!("http://{free}"), "").await.unwrap_err();
    assert_eq!(error.category(), "Unreachable");
    assert!(error.to_string().contains("refused"), "{error}");

    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not believe the certificate goes away.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"access_token\":\"t\"}";
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await;
                // Until the client has read it.
                let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new()).await;
            });
        }
    });
    let ask = async |host: &str, authority: Option<&[u8]>| {
        let declared = oauth2(&format!("https://{host}:{port}"), "");
        ClientCredentials::new(&declared, "c".into(), "s".into(), authority)?.obtain(NOW).await
    };
    let pem = made.cert.pem();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
    assert_eq!(text(&ask("localhost", Some(pem.as_bytes())).await.unwrap()), "t");
    let error = ask("localhost", Some(other.as_bytes())).await.unwrap_err();
    assert_eq!(error.category(), "CertificateInvalid", "{error}");
    assert!(error.to_string().contains("set certificateAuthorityFrom"), "{error}");
    let error = ask("127.0.0.1", Some(pem.as_bytes())).await.unwrap_err();
    assert_eq!(error.category(), "CertificateInvalid", "a certificate for another name: {error}");
    let error = ask("localhost", Some(b"no certificate")).await.unwrap_err();
    assert!(error.to_string().contains("no certificates in PEM"), "{error}");
}

async fn value(url: &str, login: Login) -> Result<Obtained, ObtainError> {
    let yaml = format!(
        "{{address: '{url}/base/', mount: team/kv, path: 'app/a key', key: k, auth: {{tokenFrom: {{secretKeyRef: {{name: s, key: k}}}}}}}}"
    );
    let declared: VaultCredential = serde_yaml_ng::from_str(&yaml).unwrap();
    KeyValue::new(&declared, login, None)?.obtain(NOW).await
}

fn with_token() -> Login {
    Login::Token("vault-token".into())
}

fn secret(data: &Value, lease: u64, deletion: &str) -> String {
    json!({"lease_duration": lease, "data": {"data": data, "metadata": {"deletion_time": deletion, "version": 3}}})
        .to_string()
}

#[tokio::test]
async fn a_secret_is_read_with_a_token_or_after_a_login() {
    let (url, asked) = server(200, &secret(&json!({"k": "v-1"}), 0, "")).await;
    let got = value(&url, with_token()).await.unwrap();
    assert_eq!((text(&got), seconds(&got)), ("v-1", None));
    let read = "GET /base/v1/team/kv/data/app/a%20key [vault-token] ";
    assert_eq!(*asked.lock().unwrap(), [read]);
    let jwt = Login::Jwt { mount: "k8s".into(), role: "r".into(), jwt: "j".into() };
    assert_eq!(text(&value(&url, jwt).await.unwrap()), "v-1");
    let login = "POST /base/v1/auth/k8s/login [] {\"jwt\":\"j\",\"role\":\"r\"}";
    assert_eq!(*asked.lock().unwrap(), [read, login, read]);
}

#[tokio::test]
async fn leases_and_deletions_end_a_value() {
    for (data, lease, deletion, expected) in [
        (json!({"k": "v"}), 60, "", Some(60)),
        (json!({"k": "v"}), 0, "1970-01-01T00:00:30.5Z", Some(30)),
        (json!({"k": "v"}), 60, "1970-01-01T00:02:00Z", Some(60)),
    ] {
        let (url, _) = server(200, &secret(&data, lease, deletion)).await;
        assert_eq!(seconds(&value(&url, with_token()).await.unwrap()), expected, "{lease} {deletion}");
    }
    let (url, _) = server(200, &secret(&json!({"k": {"a": 1}}), 0, "")).await;
    assert_eq!(text(&value(&url, with_token()).await.unwrap()), r#"{"a":1}"#, "what is no text comes as JSON");
}

#[tokio::test]
async fn vault_refuses_in_words_too() {
    let deleted = json!({"data": {"data": null, "metadata": {"deletion_time": "2026-01-01T00:00:00Z"}}}).to_string();
    for (status, body, category, part) in [
        (403, r#"{"errors": ["vault-token"]}"#.to_owned(), "Refused", "its token has ended"),
        (404, r#"{"errors": []}"#.to_owned(), "ValueNotFound", "there is no secret"),
        (404, deleted, "ValueNotFound", "was deleted"),
        (200, secret(&json!({"other": "v"}), 0, ""), "ValueNotFound", "no key \"k\""),
        (200, r#"{"data": {"k": "v1"}}"#.to_owned(), "InvalidAnswer", "version 2: check mount"),
        (503, String::new(), "Unreachable", "sealed"),
        (500, String::new(), "Unreachable", "HTTP 500"),
    ] {
        let (url, _) = server(status, &body).await;
        let error = value(&url, with_token()).await.unwrap_err();
        assert_eq!(error.category(), category, "{status} {body}: {error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(!error.to_string().contains("vault-token"), "{error}");
    }
}
