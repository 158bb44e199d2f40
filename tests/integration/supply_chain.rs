//! Signed images, in a real registry, on the embedded control plane and with `perch policy check`.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    registry::{Registry, Signer},
    support::{Perch, perch, wait},
};

fn server(name: &str, image: &str) -> String {
    json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name, "namespace": "strict"},
        "spec": {"image": image, "suspend": true, "governance": {"level": "Medium"}},
    })
    .to_string()
}

fn namespace(up: &Perch, name: &str, mode: &str) {
    up.ok(&["create", "namespace", name]);
    up.ok(&["label", "namespace", name, "perch.dev/policy-level=medium", &format!("perch.dev/policy-mode={mode}")]);
}

fn settings(signer: &Signer, prefix: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"settings.yaml": signer.settings(prefix)},
        "metadata": {"name": "signers", "namespace": "kube-system", "labels": {"perch.dev/policy": "true"}}})
    .to_string()
}

fn violation(up: &Perch, name: &str) -> Option<Value> {
    let object = up.ok(&["get", "mcps", name, "-n", "strict", "-o", "json"]);
    let object: Value = serde_json::from_str(&object).unwrap();
    object["status"]["violations"].as_array()?.iter().find(|v| v["rule"] == "image-signed").cloned()
}

#[test]
fn a_signed_image_is_admitted_and_the_same_one_elsewhere_is_not() {
    let (mut registry, signer, other) = (Registry::start(), Signer::new(), Signer::new());
    let host = registry.host.clone();
    let (dir, policies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(policies.path().join("settings.yaml"), signer.settings(&host)).unwrap();
    let folder = policies.path().to_str().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process", "--policies", folder]);
    namespace(&up, "strict", "deny");

    let signed = registry.push("team/x", "1", "one");
    registry.sign("team/x", &signed, &signer);
    let image = format!("{host}/team/x:1@{signed}");
    up.ok_with(&["apply", "-f", "-"], &server("signed", &image));

    let refused = |name: &str, image: &str, parts: &[&str]| {
        let said = up.fails(&["apply", "-f", "-"], &server(name, image));
        for part in [["image-signed", "spec.image"].as_slice(), parts].concat() {
            assert!(said.contains(part), "{part}: {said}");
        }
    };
    // The same image under another name, and another image under the same.
    assert_eq!(registry.push("other/x", "1", "one"), signed, "it is the same image");
    refused("a", &format!("{host}/other/x:1@{signed}"), &["is not signed: it has no signature", "cosign sign --key"]);
    let moved = registry.push("team/x", "2", "two");
    refused("b", &format!("{host}/team/x:2@{moved}"), &["is not signed: it has no signature"]);
    registry.sign("team/x", &moved, &other);
    refused("c", &format!("{host}/team/x:2@{moved}"), &["of its signatures (1) none is by a key of its signers"]);
    // A tag may lead elsewhere a moment later.
    let tag = format!("{host}/team/x:1");
    refused("d", &tag, &["is named by a tag", &format!("name it {tag}@{signed}")]);
    refused("e", "registry.example.com/x:1", &["nobody is named who may sign the image registry.example.com/x:1"]);
    let patch = json!({"spec": {"image": format!("{host}/other/x@{signed}")}}).to_string();
    let said = up.fails(&["patch", "mcps", "signed", "-n", "strict", "--type=merge", "-p", &patch], "");
    assert!(said.contains("image-signed"), "{said}");
    let dry = up.fails(&["apply", "--dry-run=server", "-f", "-"], &server("a", &format!("{host}/other/x@{signed}")));
    assert!(dry.contains("image-signed"), "{dry}");

    // The same files before anything runs.
    let file = dir.path().join("server.yaml");
    let check = |image: &str, args: &[&str]| {
        std::fs::write(&file, server("x", image)).unwrap();
        let all = [["policy", "check", "--policies", folder].as_slice(), args, &[file.to_str().unwrap()]].concat();
        let output = perch(&all);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let unsigned = format!("{host}/other/x@{signed}");
    assert!(!check(&unsigned, &[]).1.contains("image-signed"), "nobody is asked unless it is said");
    let (code, said) = check(&unsigned, &["--verify-images"]);
    assert!(code == Some(1) && said.contains("[image-signed]"), "{said}");
    let (code, said) = check(&image, &["--verify-images"]);
    assert!(code == Some(0) && !said.contains("image-signed"), "{said}");

    registry.stop();
    refused("f", &format!("{host}/team/y@{signed}"), &[&format!("registry {host} does not answer")]);
    // What is known stays known, and what is there can be changed.
    up.ok_with(&["apply", "-f", "-"], &server("again", &image));
    up.ok(&["patch", "mcps", "signed", "-n", "strict", "--type=merge", "-p", r#"{"spec":{"replicas":2}}"#]);
    assert_eq!(violation(&up, "signed"), None);
}

#[test]
fn the_condition_follows_the_signers() {
    let (mut registry, signer, other) = (Registry::start(), Signer::new(), Signer::new());
    let host = registry.host.clone();
    let dir = tempfile::tempdir().unwrap();
    let up = Perch::up(dir.path(), &["--runtime", "process"]);
    namespace(&up, "strict", "deny");
    let digest = registry.push("team/x", "1", "one");
    let image = format!("{host}/team/x:1@{digest}");
    up.ok_with(&["apply", "-f", "-"], &server("a", &image));
    let found = |wanted: &str| {
        wait(&format!("a violation with {wanted:?}"), || {
            violation(&up, "a").filter(|v| v["message"].as_str().unwrap().contains(wanted))
        })
    };
    up.ok_with(&["apply", "-f", "-"], &settings(&signer, &host));
    let unsigned = found("is not signed: it has no signature");
    assert_eq!(unsigned["severity"], "High");
    let reason = r#"jsonpath={.status.conditions[?(@.type=="Compliant")].reason}"#;
    assert_eq!(up.ok(&["get", "mcps", "a", "-n", "strict", "-o", reason]), "PolicyViolated");
    // A policy that came later stands in the way of no change but that of the image.
    up.ok(&["patch", "mcps", "a", "-n", "strict", "--type=merge", "-p", r#"{"spec":{"replicas":2}}"#]);

    registry.sign("team/x", &digest, &signer);
    // Whoever writes is answered by what is so now, and the condition follows.
    up.ok_with(&["apply", "-f", "-"], &server("b", &image));
    wait("it to be signed", || violation(&up, "a").is_none().then_some(()));

    registry.stop();
    up.ok_with(&["apply", "-f", "-"], &settings(&other, &host));
    found(&format!("registry {host} does not answer"));
    let new = up.fails(&["apply", "-f", "-"], &server("c", &image));
    assert!(new.contains("is not known: registry"), "{new}");
}

#[test]
fn a_scan_counts_for_the_image_that_it_is_of() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &Value| std::fs::write(dir.path().join(name), text.to_string()).unwrap();
    let server = json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a"},
        "spec": {"image": "registry.example.com/x:1"}});
    write("server.json", &server);
    let now = jiff::Timestamp::now().to_string();
    let trivy = |image: &str, severities: &[&str]| {
        let found: Vec<Value> = severities.iter().map(|s| json!({"Severity": s})).collect();
        json!({"SchemaVersion": 2, "CreatedAt": now, "ArtifactName": image, "Results": [{"Vulnerabilities": found}]})
    };
    write("clean.json", &trivy("registry.example.com/x:1", &["MEDIUM"]));
    write("bad.json", &trivy("registry.example.com/x:1", &["CRITICAL", "HIGH"]));
    write("other.json", &trivy("registry.example.com/y:1", &[]));
    write("nameless.sarif", &json!({"version": "2.1.0", "runs": [{"results": []}]}));
    let check = |scan: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_perch"))
            .current_dir(dir.path())
            .args(["policy", "check", "--level", "high", "--output", "json", "--scan", scan, "server.json"])
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let all = report["objects"][0]["violations"].as_array().cloned().unwrap_or_default();
        let of_scan = all.iter().filter(|v| v["rule"] == "scan-passed");
        let messages: Vec<String> = of_scan.map(|v| v["message"].as_str().unwrap().to_owned()).collect();
        (output.status.code(), messages, String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check("clean.json").1, Vec::<String>::new());
    assert_eq!(check("bad.json").1, ["1 findings, 0 are allowed", "1 findings, 0 are allowed"]);
    let (_, messages, said) = check("other.json");
    assert_eq!(messages, ["no scan of the image is recorded"]);
    assert!(said.contains("is about registry.example.com/y:1, which no server here runs"), "{said}");
    let (code, _, said) = check("nameless.sarif");
    assert!(code == Some(2) && said.contains("--scan IMAGE=nameless.sarif"), "{said}");
    assert_eq!(check("registry.example.com/x:1=nameless.sarif").1, Vec::<String>::new());
    let (code, _, said) = check("server.json");
    assert!(code == Some(2) && said.contains("is not taken as a report of a scanner"), "{said}");
}
