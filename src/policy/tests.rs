use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

fn object(yaml_text: &str) -> Value {
    yaml(yaml_text).unwrap()
}

fn level(name: &str) -> GovernanceLevel {
    serde_json::from_value(name.into()).unwrap()
}

fn bundle(text: &str) -> Bundle {
    file("a.rego", text)
}

fn file(name: &str, text: &str) -> Bundle {
    Bundle { name: "mine".into(), files: vec![File { name: name.into(), text: text.into() }] }
}

fn refusal(bundle: Bundle) -> String {
    let policies = Policies::new(&[bundle]);
    assert_eq!((policies.bundles(), policies.refused().len()), (0, 1), "{:?}", policies.refused());
    policies.refused()[0].to_string()
}

fn judge(policies: &Policies, object: &Value, level: GovernanceLevel) -> Judgement {
    policies.judge(&Subject { object, level, now: now(), images: None })
}

/// Rules of which each asks the next.
fn chain(length: usize) -> String {
    (0..length).fold(String::new(), |text, i| text + &format!("r{i} if r{}\n", i + 1))
}

const ROOT: &str = "{apiVersion: perch.dev/v1alpha1, kind: McpServer, metadata: {name: a}, spec: {image: 'x:1',
    podTemplate: {spec: {securityContext: {runAsUser: 0}}}}}";

#[test]
fn cases_beside_the_rules() {
    let shipped = Policies::shipped();
    let mut count = 0;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if !entry.file_name().to_string_lossy().ends_with("_cases.yaml") {
            continue;
        }
        let cases = object(&std::fs::read_to_string(entry.path()).unwrap());
        for (rule, cases) in cases["cases"].as_object().unwrap() {
            for case in cases.as_array().unwrap() {
                let settings = case.get("settings").map(|s| file("settings.yaml", &s["perch"].to_string()));
                let with = settings.map(|s| Policies::new(&[s]));
                let policies = with.as_ref().unwrap_or(&shipped);
                assert_eq!(policies.refused(), []);
                let images: Option<Images> =
                    case.get("images").map(|images| serde_json::from_value(images.clone()).unwrap());
                let level = level(case["level"].as_str().unwrap());
                let images = images.as_ref();
                let found = policies.judge(&Subject { object: &case["object"], level, now: now(), images });
                let of_rule = found.violations.iter().filter(|v| v.rule == *rule);
                let fields: BTreeSet<&str> = of_rule.map(|v| v.field.as_str()).collect();
                let wanted: BTreeSet<&str> =
                    case["found"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
                assert_eq!(fields, wanted, "{rule}: {}", case["name"]);
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count} cases");
}

#[test]
fn every_shipped_module_is_compiled_in() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let names: BTreeSet<String> =
        std::fs::read_dir(folder).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    let modules = names.iter().filter(|n| is_module(n) && !n.ends_with("_test.rego"));
    let compiled: BTreeSet<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
    assert_eq!(modules.map(String::as_str).collect::<BTreeSet<_>>(), compiled);
    let main = SHIPPED[1].1;
    for rule in compiled.iter().filter(|n| !["lib.rego", "main.rego"].contains(n)) {
        let package = format!("data.perch.rules.{}.violation", rule.trim_end_matches(".rego"));
        assert!(main.contains(&package), "main.rego asks {package}");
    }
}

#[test]
fn a_violation_says_everything() {
    let found = judge(&Policies::shipped(), &object(ROOT), GovernanceLevel::Medium);
    let root = found.violations.iter().find(|v| v.rule == "run-as-non-root").unwrap();
    assert_eq!(root.severity, ViolationSeverity::High);
    assert_eq!(root.action, PolicyAction::Deny);
    assert_eq!(root.field, "spec.podTemplate.spec.securityContext.runAsUser");
    assert!(root.message.contains("runs as root") && root.remedy.contains("runAsUser: 10001"), "{root:?}");
    assert!(!found.is_compliant());
    assert!(judge(&Policies::shipped(), &object(ROOT), GovernanceLevel::Low).is_compliant(), "Low only warns");
}

#[test]
fn absent_and_null_are_the_same() {
    let text = ROOT.replace("image: 'x:1',", "image: 'x:1', security: null, env: null, volumes: null,");
    let (a, b) = (object(ROOT), object(&text));
    let shipped = Policies::shipped();
    assert_eq!(judge(&shipped, &a, GovernanceLevel::High), judge(&shipped, &b, GovernanceLevel::High));
}

#[test]
fn users_add_rules_and_settings() {
    let rego = "package team\nimport data.perch.lib\n\
        violation contains {\"rule\": \"no-latest\", \"severity\": \"Low\", \"message\": sprintf(\"%s at %s\", [c.image, lib.level]),\n\
        \"field\": c.image_path, \"remedy\": \"name a version\"} if {\n some c in lib.containers\n endswith(c.image, \":1\")\n}\n";
    let policies = Policies::new(&[
        bundle(rego),
        file("settings.yaml", "levels: {Low: {rules: {run-as-non-root: Off, network-tier: Deny}}}"),
    ]);
    assert_eq!(policies.refused(), []);
    let found = judge(&policies, &object(ROOT), GovernanceLevel::Low);
    assert_eq!(found.violations.len(), 1, "{found:?}");
    assert_eq!((found.violations[0].rule.as_str(), found.violations[0].action), ("no-latest", PolicyAction::Deny));
    assert_eq!(found.violations[0].message, "x:1 at Low");
}

#[test]
fn bad_bundles_are_refused_with_their_place() {
    let h = "package t\n";
    let v = "violation contains {\"rule\": \"r\", \"message\": \"m\"} if";
    let refused = |text: &str| refusal(bundle(&format!("{h}{text}")));
    assert!(
        refused("violation contains x if { x := \n").starts_with("mine/a.rego:2: expecting"),
        "{}",
        refused("violation contains x if { x := \n")
    );
    let unknown = refused(&format!("{v} {{ nope(1) }}"));
    assert!(unknown.starts_with("mine/a.rego:2:") && unknown.contains("nope"), "{unknown}");
    let unsafe_ = refused(&format!("{v} {{ y > 1 }}"));
    assert!(unsafe_.starts_with("mine/a.rego:2:") && unsafe_.contains("unsafe"), "{unsafe_}");
    let rules = refused(&format!("a if b\nb if a\n{v} a"));
    assert!(rules.starts_with("mine/a.rego:") && rules.contains("calls itself"), "{rules}");
    let function = refused(&format!("f(x) := f(x - 1)\n{v} f(input.level) == 1"));
    assert!(function.starts_with("mine/a.rego:2: ") && function.contains("calls itself"), "{function}");
    let chain = chain(40);
    let long = refused(&format!("{chain}r40 := true\n{v} r0"));
    assert!(long.starts_with("mine/a.rego:") && long.contains("32 deep"), "{long}");
    let dynamic = refused(&format!("a := data.t[input.level]\n{v} a"));
    assert!(dynamic.contains("calls itself") || dynamic.contains("recursion"), "{dynamic}");
    let clock = refused(&format!("{v} time.now_ns() > 1"));
    assert!(clock.contains("time.now_ns") && clock.contains("not allowed"), "{clock}");
    let range = refused(&format!("{v} count(numbers.range(1, 100000000)) > 1"));
    assert!(range.contains("numbers.range"), "{range}");
    let deep = refused(&format!("x := {}1{}", "[".repeat(5000), "]".repeat(5000)));
    assert!(deep.starts_with("mine/a.rego:2: brackets"), "{deep}");
    assert!(refused("x := 1").contains("no module has a rule"));
    assert!(refusal(bundle(&format!("package perch.rules.x\n{v} true"))).contains("Perch's own"));
    assert!(refusal(bundle(&"#".repeat(10 << 20))).contains("65536"));
    assert!(refused("violation contains \"text\" if true").contains("no violation"));
    let slow = refused(&format!(
        "l := [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n{v} {{ some a in l; some b in l; some c in l; some d in l; some e in l; some f in l; a + b + c + d + e + f == 0 }}"
    ));
    assert!(slow.contains("200000 steps"), "{slow}");
    let settings = refusal(file("settings.yaml", "levels: {Low: {rulez: {}}}"));
    assert!(settings.starts_with("mine/settings.yaml: ") && settings.contains("rulez"), "{settings}");
    assert!(refusal(file("settings.yaml", "levels: {Low: {rules: {x: Perhaps}}}")).contains("Perhaps"));
    let signer = "levels: {High: {parameters: {imageSigners: [{images: [a.example.com], key: nonsense}]}}}";
    let signer = refusal(file("settings.yaml", signer));
    assert!(signer.starts_with("mine/settings.yaml: in imageSigners: a key is no PEM"), "{signer}");
}

#[test]
fn calls_may_go_as_deep_as_they_are_let() {
    let chain = chain(30);
    let rego =
        format!("package t\n{chain}r30 := true\nviolation contains {{\"rule\": \"r\", \"message\": \"m\"}} if r0");
    let policies = Policies::new(&[bundle(&rego)]);
    assert_eq!(policies.refused(), []);
    let found = judge(&policies, &object(ROOT), GovernanceLevel::Low);
    assert!(found.violations.iter().any(|v| v.rule == "r"));
}

#[test]
fn one_bad_bundle_leaves_the_others() {
    let good = bundle("package t\nviolation contains {\"rule\": \"r\", \"message\": \"m\"} if true");
    let policies = Policies::new(&[bundle("package t\nviolation contains"), good]);
    assert_eq!((policies.bundles(), policies.refused().len()), (1, 1));
    let found = judge(&policies, &object(ROOT), GovernanceLevel::Low);
    assert!(
        found.violations.iter().any(|v| v.rule == "r") && found.violations.iter().any(|v| v.rule == "run-as-non-root")
    );
}

#[test]
fn what_takes_too_long_on_one_object_is_told() {
    let rego = "package t\nviolation contains {\"rule\": \"r\", \"message\": \"m\"} if {\nsome a in input.object.spec.args; some b in input.object.spec.args; some c in input.object.spec.args\na == b; b == c; c == \"x\" }";
    let policies = Policies::new(&[bundle(rego)]);
    assert_eq!(policies.refused(), []);
    let mut server = object(ROOT);
    server["spec"]["args"] = (0..300).map(Value::from).collect();
    let found = judge(&policies, &server, GovernanceLevel::Low);
    assert_eq!(found.faults.len(), 1, "{found:?}");
    assert!(found.violations.iter().any(|v| v.rule == "run-as-non-root"), "the others still count");
}

#[test]
fn what_the_shipped_rules_cannot_judge_is_denied() {
    let mut server = object(ROOT);
    let env = |i: usize| serde_json::json!({"name": format!("V{i}"), "value": "x"});
    server["spec"]["env"] = (0..20_000).map(env).collect();
    let found = judge(&Policies::shipped(), &server, GovernanceLevel::Low);
    assert!(found.violations.iter().any(|v| v.rule == "readable" && v.action == PolicyAction::Deny), "{found:?}");
}

#[test]
fn namespaces_say_what_happens() {
    let scope = |labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Scope::of(Some(&labels), Scope::default())
    };
    assert_eq!(scope(&[]), Scope { level: GovernanceLevel::Low, mode: Mode::Warn });
    let strict = scope(&[(LEVEL_LABEL, "high"), (MODE_LABEL, "deny")]);
    assert_eq!(strict, Scope { level: GovernanceLevel::High, mode: Mode::Deny });
    let slip = scope(&[(LEVEL_LABEL, "lwo"), (MODE_LABEL, "of")]);
    assert_eq!(slip, strict, "a slip is the strictest");
    let own = |level: &str| serde_json::json!({"spec": {"governance": {"level": level}}});
    let medium = Scope { level: GovernanceLevel::Medium, mode: Mode::Deny };
    assert_eq!(medium.level_of(&own("Low")), GovernanceLevel::Medium, "a server cannot lower it");
    assert_eq!(medium.level_of(&own("High")), GovernanceLevel::High);
    assert_eq!(medium.level_of(&Value::Null), GovernanceLevel::Medium);
}

#[test]
fn a_decision_follows_mode_and_what_was_so_before() {
    let found = || judge(&Policies::shipped(), &object(ROOT), GovernanceLevel::Medium);
    let level = GovernanceLevel::Medium;
    let denied = Decision::new(Mode::Deny, level, found(), None);
    let message = denied.message().unwrap();
    assert!(
        message.contains("run-as-non-root: the server runs as root (spec.podTemplate")
            && message.contains("runAsUser: 10001"),
        "{message}"
    );
    let warned = Decision::new(Mode::Warn, level, found(), None);
    assert_eq!(warned.message(), None);
    assert!(warned.warnings.iter().any(|w| w.starts_with("policy run-as-non-root: ")), "{warned:?}");
    assert!(warned.warnings.iter().all(|w| w.chars().count() <= 250));
    let off = Decision::new(Mode::Off, level, found(), None);
    assert_eq!(off, Decision::default());
    let repaired = Decision::new(Mode::Deny, level, found(), Some(&found()));
    assert_eq!(repaired.message(), None, "what was broken before does not stand in the way");
    assert!(repaired.warnings.iter().any(|w| w.contains("run-as-non-root")));
}

#[test]
fn values_of_secrets_are_never_told() {
    let server = object(
        "{apiVersion: perch.dev/v1alpha1, kind: McpServer, spec: {image: x, env: [{name: TOKEN, value: hunter2}]}}",
    );
    let found = judge(&Policies::shipped(), &server, GovernanceLevel::High);
    assert!(found.violations.iter().any(|v| v.rule == "secret-in-env"));
    assert!(!format!("{found:?}").contains("hunter2"));
}

const KEY: &str = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZ2BIWeBjQiw9jR2LlIJ/0dF/UfNU\nz3g11nL8+BsQeu3hV/RVnsH+G/Paa3RZ+8cj19mPNyGs5fcwzVWqwG6MPQ==\n-----END PUBLIC KEY-----\n";

fn signed_by_team(registries: Value) -> Policies {
    let signers = serde_json::json!([{"images": ["registry.example.com/team"], "key": KEY}]);
    let parameters = serde_json::json!({"imageSigners": signers, "allowedRegistries": registries});
    let settings = serde_json::json!({"levels": {"Medium": {"parameters": parameters}}});
    let policies = Policies::new(&[file("settings.yaml", &settings.to_string())]);
    assert_eq!(policies.refused(), []);
    policies
}

#[test]
fn only_what_a_signer_answers_for_is_wanted() {
    let policies = signed_by_team(serde_json::json!([]));
    let wanted = |spec: &str, level| {
        let object = object(&format!("{{apiVersion: perch.dev/v1alpha1, kind: McpServer, spec: {spec}}}"));
        policies.wanted(&Subject { object: &object, level, now: now(), images: None })
    };
    let team = Wanted { image: "registry.example.com/team/x:1".into(), keys: vec![KEY.into()] };
    let spec = "{image: 'registry.example.com/team/x:1'}";
    assert_eq!(wanted(spec, GovernanceLevel::Medium), std::slice::from_ref(&team));
    assert_eq!(wanted(spec, GovernanceLevel::High), [], "nobody is named there");
    for other in ["registry.example.com/teamster/x:1", "169.254.169.254/team/x:1", "x"] {
        assert_eq!(wanted(&format!("{{image: '{other}'}}"), GovernanceLevel::Medium), [], "{other}");
    }
    let sidecar = "{image: x, podTemplate: {spec: {containers: [{name: a, image: 'registry.example.com/team/x:1'}]}}}";
    assert_eq!(wanted(sidecar, GovernanceLevel::Medium), [team]);
    let elsewhere = signed_by_team(serde_json::json!(["mirror.example.com"]));
    let object =
        object("{apiVersion: perch.dev/v1alpha1, kind: McpServer, spec: {image: 'registry.example.com/team/x:1'}}");
    let subject = Subject { object: &object, level: GovernanceLevel::Medium, now: now(), images: None };
    assert_eq!(elsewhere.wanted(&subject), [], "its registry is not allowed");
    let shipped = Policies::shipped();
    let subject = Subject { object: &object, level: GovernanceLevel::High, now: now(), images: None };
    assert_eq!(shipped.wanted(&subject), []);
}

#[test]
fn one_image_that_is_not_verified_excuses_no_other() {
    let policies = signed_by_team(serde_json::json!([]));
    let level = GovernanceLevel::Medium;
    let judged = |name: &str, replicas: u32| {
        let text = format!(
            "{{apiVersion: perch.dev/v1alpha1, kind: McpServer, spec: {{replicas: {replicas}, image: 'registry.example.com/team/{name}:1'}}}}"
        );
        let down = ImageFacts { problem: Some("it does not answer".into()), ..ImageFacts::default() };
        let images = ["a", "b"].map(|n| (format!("registry.example.com/team/{n}:1"), down.clone())).into();
        policies.judge(&Subject { object: &object(&text), level, now: now(), images: Some(&images) })
    };
    let decide = |new, old| Decision::new(Mode::Deny, level, new, Some(&old)).message();
    assert_eq!(decide(judged("a", 2), judged("a", 1)), None, "the registry is down, and the image is the same");
    let other = decide(judged("b", 1), judged("a", 1)).unwrap();
    assert!(other.contains("image-signed: whether the image registry.example.com/team/b:1 is signed"), "{other}");
}
