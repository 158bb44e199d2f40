use serde_json::json;

use super::*;
use crate::local::objects::schema::Schema;

fn schema() -> Schema {
    let crd = crate::api::crds::all().remove(0);
    let openapi = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    Schema::compile(&serde_json::to_value(openapi).unwrap()).unwrap()
}

fn writer(manager: &str) -> Writer<'_> {
    Writer { manager, api_version: "perch.dev/v1alpha1", subresource: "", untouched: None, now: "2026-01-01T00:00:00Z" }
}

fn server(spec: Value) -> Value {
    json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "x"}, "spec": spec})
}

fn apply_as(manager: &str, live: &Value, spec: Value) -> Result<Value, Conflicts> {
    apply(schema().root(), live, &server(spec), &writer(manager), false)
}

fn empty() -> Value {
    json!({"metadata": {}})
}

#[test]
fn an_applier_owns_what_it_gives() {
    let live = apply_as("a", &empty(), json!({"image": "x:1", "env": [{"name": "A", "value": "1"}]})).unwrap();
    assert_eq!(
        live["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:spec": {"f:image": {}, "f:env": {"k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}}}}})
    );
    assert_eq!(live["metadata"]["managedFields"][0]["operation"], "Apply");
    assert_eq!(apply_as("a", &live, json!({"image": "x:1", "env": [{"name": "A", "value": "1"}]})), Ok(live));
}

#[test]
fn what_an_applier_no_longer_gives_goes() {
    let live = apply_as(
        "a",
        &empty(),
        json!({"image": "x:1", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}),
    )
    .unwrap();
    let live = apply_as("a", &live, json!({"image": "x:1", "env": [{"name": "B", "value": "2"}]})).unwrap();
    assert_eq!(live["spec"], json!({"image": "x:1", "env": [{"name": "B", "value": "2"}]}));
}

#[test]
fn what_another_manager_owns_too_stays() {
    let live = apply_as("a", &empty(), json!({"image": "x:1", "replicas": 2})).unwrap();
    let live = apply_as("b", &live, json!({"replicas": 2})).unwrap();
    let live = apply_as("a", &live, json!({"image": "x:1"})).unwrap();
    assert_eq!(live["spec"], json!({"image": "x:1", "replicas": 2}));
}

#[test]
fn a_different_value_is_a_conflict_unless_forced() {
    let live = apply_as("a", &empty(), json!({"image": "x:1"})).unwrap();
    let conflicts = apply_as("b", &live, json!({"image": "x:2"})).unwrap_err();
    assert_eq!(conflicts.message, "Apply failed with 1 conflict: conflict with \"a\": .spec.image");
    assert_eq!(conflicts.causes[0].field, ".spec.image");
    let forced = apply(schema().root(), &live, &server(json!({"image": "x:2"})), &writer("b"), true).unwrap();
    assert_eq!(forced["spec"]["image"], "x:2");
    assert_eq!(forced["metadata"]["managedFields"].as_array().unwrap().len(), 1);
}

#[test]
fn an_update_takes_what_it_changes_and_names_its_version_in_conflicts() {
    let live = apply_as("a", &empty(), json!({"image": "x:1", "replicas": 1})).unwrap();
    let mut edited = live.clone();
    edited["spec"]["replicas"] = json!(3);
    update(schema().root(), &live, &mut edited, &writer("kubectl-edit"));
    let entries = edited["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries[0]["fieldsV1"], json!({"f:spec": {"f:image": {}}}));
    assert_eq!(entries[1]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    let conflicts = apply_as("a", &edited, json!({"image": "x:1", "replicas": 1})).unwrap_err();
    assert_eq!(
        conflicts.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-edit\" using perch.dev/v1alpha1: .spec.replicas"
    );
}

#[test]
fn an_update_that_removes_a_field_leaves_no_owner_behind() {
    let live = apply_as("a", &empty(), json!({"image": "x:1", "env": [{"name": "A", "value": "1"}]})).unwrap();
    let mut edited = live.clone();
    edited["spec"].as_object_mut().unwrap().remove("env");
    update(schema().root(), &live, &mut edited, &writer("kubectl-edit"));
    let entries = edited["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["fieldsV1"], json!({"f:spec": {"f:image": {}}}));
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn spec() -> impl Strategy<Value = Value> {
        let env = prop::collection::btree_map("[A-C]", "[0-9]", 0..3);
        (prop::option::of("[a-c]"), prop::option::of(0..4_i32), env, prop::collection::vec("[x-z]", 0..3)).prop_map(
            |(image, replicas, env, args)| {
                let mut spec = serde_json::Map::new();
                if let Some(image) = image {
                    spec.insert("image".into(), image.into());
                }
                if let Some(replicas) = replicas {
                    spec.insert("replicas".into(), replicas.into());
                }
                if !env.is_empty() {
                    let env: Vec<Value> = env.iter().map(|(k, v)| json!({"name": k, "value": v})).collect();
                    spec.insert("env".into(), env.into());
                }
                if !args.is_empty() {
                    spec.insert("args".into(), args.into());
                }
                Value::Object(spec)
            },
        )
    }

    fn force(live: &Value, manager: &str, spec: Value) -> Value {
        apply(schema().root(), live, &server(spec), &writer(manager), true).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn applying_twice_is_applying_once(a in spec(), b in spec()) {
            let live = force(&force(&empty(), "one", a), "two", b.clone());
            prop_assert_eq!(force(&live, "two", b), live);
        }

        #[test]
        fn a_sole_applier_gets_exactly_what_it_gives(a in spec(), b in spec()) {
            let live = force(&force(&empty(), "one", a), "one", b.clone());
            let spec = live.get("spec").cloned().unwrap_or_else(|| json!({}));
            prop_assert_eq!(spec, b);
        }

        #[test]
        fn every_owned_field_exists(a in spec(), b in spec(), c in spec()) {
            let live = force(&force(&force(&empty(), "one", a), "two", b), "one", c);
            let schema = schema();
            let present = FieldSet::of(schema.root(), &live).with_parents();
            for entry in read(&live) {
                prop_assert!(entry.fields.difference(&present).is_empty(), "{:?}", entry.fields.difference(&present).paths());
            }
        }
    }
}
