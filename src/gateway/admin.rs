//! What the gateway tells operators about itself: its counters for releases, which epochs it runs,
//! and how much servers are used. Served beside health and metrics, on a listener that clients never see.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::{Json, Router, routing::get};
use serde_json::{Value, json};

use super::observe::Observer;
use crate::{
    api::gateway_report::{REPORT_PATH, USAGE_PATH},
    routing::RouteTable,
};

/// Path of the table's state.
const EPOCH_PATH: &str = "/-/epoch";

/// The routes for the admin listener.
pub fn router(table: Arc<ArcSwap<RouteTable>>, observer: Arc<Observer>) -> Router {
    let live = Arc::clone(&table);
    let counting = Arc::clone(&observer);
    Router::new()
        .route(EPOCH_PATH, get(move || std::future::ready(Json(epoch(&live.load())))))
        .route(USAGE_PATH, get(move || std::future::ready(Json(counting.usage_report()))))
        .route(REPORT_PATH, get(move || std::future::ready(Json(observer.report(&table.load())))))
}

/// Which table the gateway runs on, and the epoch of each release in it.
fn epoch(table: &RouteTable) -> Value {
    let releases: serde_json::Map<String, Value> = table
        .splits()
        .into_iter()
        .map(|(server, split)| (server.to_string(), json!({"releaseId": split.release_id, "epoch": split.epoch})))
        .collect();
    json!({"generation": table.generation(), "releases": releases})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_of_an_empty_table_is_told() {
        assert_eq!(epoch(&RouteTable::default()), json!({"generation": 0, "releases": {}}));
    }
}
