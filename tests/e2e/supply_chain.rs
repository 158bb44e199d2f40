//! A signed image runs, and goes on running while its registry is away.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    containers, docker, down, label,
    registry::{Registry, Signer},
    setting,
    support::{Perch, wait},
};

/// Tags that are taken away with the test.
struct Tags(Vec<String>);

impl Drop for Tags {
    fn drop(&mut self) {
        // What is still used stays.
        let _ = Command::new("docker").arg("rmi").args(&self.0).output();
    }
}

#[test]
fn a_signed_image_runs_and_the_same_one_elsewhere_does_not() {
    let (mut registry, signer) = (Registry::start(), Signer::new());
    let host = registry.host.clone();
    let mut tags = Tags(Vec::new());
    for repository in ["team/fixture", "other/fixture"] {
        let tag = format!("{host}/{repository}:1");
        docker(&["tag", &setting("PERCH_TEST_FIXTURE_IMAGE"), &tag]);
        tags.0.push(tag.clone());
        docker(&["push", "--quiet", &tag]);
    }
    let digest = registry.digest("team/fixture", "1");
    assert_eq!(registry.digest("other/fixture", "1"), digest, "it is the same image");
    registry.sign("team/fixture", &digest, &signer);

    let (dir, policies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let write = |signer: &Signer| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"settings.yaml": signer.settings(&host)},
            "metadata": {"name": "signers", "namespace": "kube-system", "labels": {"perch.dev/policy": "true"}}})
        .to_string()
    };
    std::fs::write(policies.path().join("settings.yaml"), signer.settings(&host)).unwrap();
    let folder = policies.path().to_str().unwrap();
    let up = Perch::up(
        dir.path(),
        &["--runtime", "docker", "--policies", folder, "--policy-level", "medium", "--policy-mode", "deny"],
    );
    let server = |name: &str, repository: &str| {
        json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name}, "spec": {
            "image": format!("{host}/{repository}@{digest}"), "args": ["http"], "transport": {"type": "StreamableHttp"}}})
        .to_string()
    };
    up.ok_with(&["apply", "-f", "-"], &server("a", "team/fixture"));
    let refused = up.fails(&["apply", "-f", "-"], &server("b", "other/fixture"));
    assert!(refused.contains("image-signed: the image") && refused.contains("it has no signature"), "{refused}");
    up.until("a", "Ready");
    assert_eq!(up.status("a")["imageId"], digest, "the digest that was signed is what runs");
    let answers = || up.session("a").text("echo", &json!({"text": "x"}));
    assert_eq!(answers(), "x");
    let before = containers(&label(&up));

    registry.stop();
    up.ok_with(&["apply", "-f", "-"], &write(&Signer::new()));
    let violation = wait("it to be said", || {
        let status = up.status("a");
        let all = status["violations"].as_array()?.clone();
        all.into_iter().find(|v: &Value| v["rule"] == "image-signed")
    });
    let said = violation["message"].as_str().unwrap();
    assert!(said.contains(&format!("is not known: registry {host} does not answer")), "{said}");
    assert_eq!((answers().as_str(), containers(&label(&up))), ("x", before), "it runs on as it did");
    let refused = up.fails(&["apply", "-f", "-"], &server("c", "team/fixture"));
    assert!(refused.contains("does not answer"), "{refused}");
    up.ok(&["patch", "mcps", "a", "--type=merge", "-p", r#"{"spec":{"governance":{"owner":"me"}}}"#]);

    let filter = label(&up);
    assert_eq!(up.stop(), Some(0));
    down(dir.path(), &filter);
}
