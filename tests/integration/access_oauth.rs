//! The gateway as an OAuth 2 resource server, with a real issuer.

use rmcp::{
    ServiceExt,
    transport::{StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig},
};
use serde_json::{Value, json};

use crate::{
    access::{User, ask, serve, up, write},
    access_issuer::{Issuer, SigningKey, now},
    support::{Perch, fixture, wait},
};

const RESOURCE: &str = "https://mcp.example.com";

fn access(issuer: &Issuer) -> Value {
    json!({"resource": RESOURCE, "issuers": [{
        "issuer": issuer.url, "groupsClaim": "/realm_access/roles", "requiredScopes": ["mcp:tools"],
    }]})
}

/// What the gateway says to a token that is shown to server a.
fn status(url: &str, token: &str) -> u16 {
    User { url: url.to_owned(), credential: token, session: String::new() }.initialize().status
}

#[test]
fn a_client_learns_where_to_get_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(&[&SigningKey::new("k")]);
    let up = up(dir.path(), &access(&issuer));
    let refused = ask("POST", &format!("{}/default/a/mcp", up.gateway), &[], "{}");
    assert_eq!(refused.status, 401);
    let metadata = format!("{RESOURCE}/.well-known/oauth-protected-resource/default/a/mcp");
    assert_eq!(
        refused.header("www-authenticate"),
        format!("Bearer scope=\"mcp:tools\", resource_metadata=\"{metadata}\"")
    );
    for path in ["", "/default/a/mcp", "/default/a/sse"] {
        let answer = ask("GET", &format!("{}/.well-known/oauth-protected-resource{path}", up.gateway), &[], "");
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.json(),
            json!({
                "resource": format!("{RESOURCE}{path}"),
                "authorization_servers": [issuer.url],
                "scopes_supported": ["mcp:tools"],
                "bearer_methods_supported": ["header"],
                "resource_name": "Perch MCP gateway",
            })
        );
    }
    assert_eq!(issuer.fetches(), 0, "nobody showed a token");
}

#[test]
fn only_a_token_for_this_resource_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::new("k");
    let issuer = Issuer::start(&[&key]);
    let up = up(dir.path(), &access(&issuer));
    let url = serve(&up, "a");
    serve(&up, "b");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = issuer.claims("dana", RESOURCE);
        change(&mut claims);
        key.sign(&claims)
    };
    for good in [
        with(&|_| {}),
        with(&|c| c["aud"] = json!(["other", RESOURCE])),
        with(&|c| c["aud"] = format!("{RESOURCE}/").into()),
        with(&|c| c["aud"] = format!("{RESOURCE}/default/a/mcp").into()),
        with(&|c| c["exp"] = (now() - 20).into()),
        with(&|c| c["nbf"] = (now() + 20).into()),
        with(&|c| c["scp"] = c.as_object_mut().unwrap().remove("scope").unwrap()),
    ] {
        assert_eq!(status(&url, &good), 200, "{good}");
        assert_eq!(status(&url, &good), 200, "and again, from what is remembered");
    }
    let for_a = with(&|c| c["aud"] = format!("{RESOURCE}/default/a/mcp").into());
    assert_eq!(status(&url, &for_a), 200);
    assert_eq!(status(&url.replace("/a/", "/b/"), &for_a), 401, "a token for one server is of no use at another");
    for bad in [
        with(&|c| c["aud"] = "https://other.example.com".into()),
        with(&|c| drop(c.as_object_mut().unwrap().remove("aud"))),
        with(&|c| c["iss"] = "http://127.0.0.1:1/".into()),
        with(&|c| drop(c.as_object_mut().unwrap().remove("exp"))),
        with(&|c| c["exp"] = (now() - 40).into()),
        with(&|c| c["nbf"] = (now() + 40).into()),
        with(&|c| c["sub"] = "".into()),
        with(&|c| c["sub"] = "system:perch:operator".into()),
        with(&|c| c["realm_access"] = json!({"roles": ["system:masters"]})),
        with(&|c| drop(c.as_object_mut().unwrap().remove("sub"))),
        // Of a key that has the right name only.
        SigningKey::new("k").sign(&issuer.claims("dana", RESOURCE)),
        SigningKey::new("other").sign(&issuer.claims("dana", RESOURCE)),
        format!("{}x", with(&|_| {})),
        "a.b.c".into(),
        "x".repeat(20_000),
    ] {
        let user = User { url: url.clone(), credential: &bad, session: String::new() };
        let answer = user.initialize();
        assert_eq!(answer.status, 401, "{bad}");
        let challenge = answer.header("www-authenticate");
        assert!(
            challenge.contains("error=\"invalid_token\"") && challenge.contains("resource_metadata="),
            "{challenge}"
        );
        assert!(!answer.body.contains(&bad) && !challenge.contains(&bad));
    }
    let poor = with(&|c| c["scope"] = "other mcp:tools2".into());
    let answer = User { url: url.clone(), credential: &poor, session: String::new() }.initialize();
    assert_eq!(answer.status, 403);
    let challenge = answer.header("www-authenticate");
    assert!(
        challenge.contains("error=\"insufficient_scope\"") && challenge.contains("scope=\"mcp:tools\""),
        "{challenge}"
    );
}

#[test]
fn keys_are_rotated_and_an_outage_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new, late) = (SigningKey::new("old"), SigningKey::new("new"), SigningKey::new("late"));
    let mut issuer = Issuer::start(&[&old]);
    let mut config = access(&issuer);
    config["issuers"][0]["refresh"] = "1s".into();
    let file = write(dir.path(), &config);
    let log = dir.path().join("log");
    let args = ["--runtime", "process", "--access-config", &file];
    let up = Perch::up_logging(&dir.path().join("data"), &args, std::fs::File::create(&log).unwrap());
    let complaints =
        || std::fs::read_to_string(&log).unwrap().matches("the keys of an issuer cannot be fetched").count();
    let url = serve(&up, "a");
    let token = |key: &SigningKey, user: &str| key.sign(&issuer.claims(user, RESOURCE));
    let (first, second, third, fresh) =
        (token(&old, "dana"), token(&new, "dana"), token(&late, "dana"), token(&old, "eve"));
    issuer.stop();
    assert_eq!(status(&url, &first), 503, "without any keys nobody can tell");
    issuer.resume();
    assert_eq!(status(&url, &first), 200);
    issuer.stop();
    let before = complaints();
    wait("a look for new keys that fails", || {
        assert_eq!(status(&url, &first), 200, "what is known goes on to be good");
        (complaints() > before).then_some(())
    });
    assert_eq!(status(&url, &first), 200, "and after it");
    assert_eq!(status(&url, &fresh), 200, "and what a known key signed");
    assert_eq!(status(&url, &second), 503, "what is not, is not let in");
    issuer.resume();
    issuer.rotate(&[&old, &new]);
    assert_eq!(status(&url, &second), 200, "a key that is new is fetched at once");
    assert_eq!(status(&url, &first), 200);
    issuer.rotate(&[&new]);
    wait("the old key to be forgotten", || (status(&url, &first) == 401).then_some(()));
    assert_eq!(status(&url, &second), 200);
    assert_eq!(status(&url, &third), 401, "a key that was never published");
}

#[test]
fn forged_key_names_do_not_flood_the_issuer() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::new("k");
    let issuer = Issuer::start(&[&key]);
    let up = up(dir.path(), &access(&issuer));
    let url = serve(&up, "a");
    assert_eq!(status(&url, &key.sign(&issuer.claims("dana", RESOURCE))), 200);
    let before = issuer.fetches();
    for forged in 0..50 {
        assert_eq!(status(&url, &SigningKey::new(&forged.to_string()).sign(&issuer.claims("eve", RESOURCE))), 401);
    }
    let fetches = issuer.fetches() - before;
    assert!((1..=6).contains(&fetches), "{fetches}");
    assert_eq!(status(&url, &key.sign(&issuer.claims("dana", RESOURCE))), 200);
}

#[test]
fn users_and_groups_come_from_claims() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::new("k");
    let issuer = Issuer::start(&[&key]);
    let mut config = access(&issuer);
    config["issuers"][0]["userClaim"] = "email".into();
    config["issuers"][0]["userPrefix"] = "oidc:".into();
    config["issuers"][0]["groupsPrefix"] = "oidc:".into();
    config["allow"] = json!([
        {"users": ["oidc:dana@example.com"], "tools": ["echo"]},
        {"groups": ["oidc:ops"]},
    ]);
    let up = up(dir.path(), &config);
    let url = serve(&up, "a");
    let token = |email: &str, groups: &[&str], verified: bool| {
        let mut claims = issuer.claims("4711", RESOURCE);
        claims["email"] = email.into();
        claims["email_verified"] = verified.into();
        claims["realm_access"] = json!({"roles": groups});
        key.sign(&claims)
    };
    let call = |token: &str, tool: &str| {
        let user = User { url: url.clone(), credential: token, session: String::new() };
        let begun = user.initialize();
        if begun.status != 200 {
            return begun.status;
        }
        let session = begun.header("mcp-session-id").to_owned();
        User { session, ..user }.call(tool, &json!({"text": "x"})).status
    };
    assert_eq!(call(&token("dana@example.com", &[], true), "echo"), 200);
    assert_eq!(call(&token("dana@example.com", &[], true), "env"), 403);
    assert_eq!(call(&token("dana@example.com", &[], false), "echo"), 401, "an address that nobody verified");
    assert_eq!(call(&token("eve@example.com", &["dev"], true), "echo"), 403);
    assert_eq!(call(&token("eve@example.com", &["dev", "ops"], true), "env"), 200);
    // A session goes on with a new token of the same user, and with nobody else's.
    let dana = token("dana@example.com", &[], true);
    let session = User::open(&url, &dana).session;
    let renewed = token("dana@example.com", &["more"], true);
    let stolen = token("oscar@example.com", &["ops"], true);
    let list = |token: &str| {
        User { url: url.clone(), credential: token, session: session.clone() }.send(crate::access::LIST).status
    };
    assert_eq!((list(&dana), list(&renewed), list(&stolen)), (200, 200, 404));
}

#[test]
fn clients_get_in_with_a_token_and_logs_keep_quiet_about_it() {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::new("k");
    let issuer = Issuer::start(&[&key]);
    let file = write(dir.path(), &access(&issuer));
    let log = dir.path().join("log");
    let args = ["--log", "trace", "--runtime", "process", "--access-config", &file];
    let up = Perch::up_logging(&dir.path().join("data"), &args, std::fs::File::create(&log).unwrap());
    let url = serve(&up, "a");
    up.apply("b", &json!({"command": [fixture(), "http"], "transport": {"type": "StreamableHttp"}}));
    up.until("b", "Ready");
    let token = key.sign(&issuer.claims("dana", RESOURCE));
    // Another test may have been quicker.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for url in [url.clone(), url.replace("/a/", "/b/")] {
        let tools = runtime.block_on(async {
            let connect = |token: &str| {
                let config = StreamableHttpClientTransportConfig::with_uri(url.as_str()).auth_header(token);
                ().serve(StreamableHttpClientTransport::from_config(config))
            };
            assert!(connect("x").await.is_err(), "a wrong token");
            let client = connect(&token).await.unwrap();
            let tools = client.list_all_tools().await.unwrap();
            let params = rmcp::model::CallToolRequestParams::new("echo");
            client.call_tool(params).await.unwrap();
            client.cancel().await.unwrap();
            tools.len()
        });
        assert_eq!(tools, 7);
    }
    if let Ok(python) = std::env::var("PERCH_TEST_PYTHON") {
        let output = std::process::Command::new(python).args(["-c", PYTHON, &url, &token]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.trim(), "echo hi");
    }
    let forged = SigningKey::new("k").sign(&issuer.claims("eve", RESOURCE));
    assert_eq!(status(&url, &forged), 401);
    assert_eq!(up.stop(), Some(0));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("keys of an issuer"), "the log tells everything else");
    for secret in [&token, &forged] {
        let claims = secret.split('.').nth(1).unwrap();
        let leak = log.lines().find(|line| line.contains(claims));
        assert!(leak.is_none(), "{leak:?}");
    }
}

/// The official client, with a token in its headers.
const PYTHON: &str = r#"
import asyncio, sys
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

async def main(url, token):
    async with streamablehttp_client(url, headers={"Authorization": f"Bearer {token}"}) as streams:
        async with ClientSession(streams[0], streams[1]) as session:
            await session.initialize()
            result = await session.call_tool("echo", {"text": "hi"})
            print("echo", result.content[0].text)

asyncio.run(main(*sys.argv[1:]))
"#;
