//! What is compared, by subject.

mod apply;
mod builtin;
mod delete;
mod discovery;
mod kubectl;
mod lists;
mod metadata;
mod patch;
mod schema;
mod subresources;
mod watch;
mod write;

use crate::{case::Case, run::run};

/// Every case of every subject.
pub fn all() -> Vec<Case> {
    [
        apply::cases,
        builtin::cases,
        delete::cases,
        discovery::cases,
        kubectl::cases,
        lists::cases,
        metadata::cases,
        patch::cases,
        schema::cases,
        subresources::cases,
        watch::cases,
        write::cases,
    ]
    .into_iter()
    .flat_map(|cases| cases())
    .collect()
}

#[test]
fn server_side_apply() {
    run(apply::cases());
}

#[test]
fn built_in_kinds() {
    run(builtin::cases());
}

#[test]
fn deletion() {
    run(delete::cases());
}

#[test]
fn discovery_and_addresses() {
    run(discovery::cases());
}

#[test]
fn what_kubectl_shows() {
    run(kubectl::cases());
}

#[test]
fn lists_and_tables() {
    run(lists::cases());
}

#[test]
fn names_and_metadata() {
    run(metadata::cases());
}

#[test]
fn patches() {
    run(patch::cases());
}

#[test]
fn schemas() {
    run(schema::cases());
}

#[test]
fn status_and_scale() {
    run(subresources::cases());
}

#[test]
fn watches() {
    run(watch::cases());
}

#[test]
fn create_and_replace() {
    run(write::cases());
}
