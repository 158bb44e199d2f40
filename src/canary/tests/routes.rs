//! What an HTTPRoute of somebody else's gateway means for a release: it is told, and decides nothing.

use serde_json::json;

use super::world::{CANDIDATE, World, two_stages};
use crate::{
    api::canary_release::{Phase, Verb},
    canary::RouteWeights,
};

fn weighs(percentage: i32) -> RouteWeights {
    let message = format!("HTTPRoute mcp: {percentage}%");
    RouteWeights { name: "mcp".into(), percentage: Some(percentage), reason: "Weighted", message }
}

fn missing() -> RouteWeights {
    let message = "HTTPRoute mcp: there is none".into();
    RouteWeights { name: "mcp".into(), percentage: None, reason: "HttpRouteNotFound", message }
}

#[test]
fn weights_are_told_once_and_remembered_until_they_are_back() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    assert!(world.progress.conditions.iter().all(|c| c.type_ != "HttpRouteWeighted"), "nobody named a route");
    world.seen.route = Some(weighs(10));
    for _ in 0..3 {
        world.turn(10);
    }
    assert_eq!(world.condition("HttpRouteWeighted"), ("True".into(), "Weighted".into()));
    assert_eq!((world.told("Weighted"), world.progress.http_route.as_deref()), (1, Some("mcp")));
    world.seen.route = Some(missing());
    for _ in 0..3 {
        world.turn(10);
    }
    assert_eq!(world.condition("HttpRouteWeighted"), ("False".into(), "HttpRouteNotFound".into()));
    assert!(world.told("HttpRouteNotFound") == 1 && world.warned("HttpRouteNotFound"));
    assert_eq!(world.progress.http_route.as_deref(), Some("mcp"), "its weights were not put back");
    assert_eq!(world.phase(), Phase::Progressing);
    world.seen.route = Some(weighs(0));
    world.turn(10);
    assert_eq!((world.told("Weighted"), world.progress.http_route.as_deref()), (2, None));
    world.seen.route = None;
    world.turn(10);
    assert!(world.progress.conditions.iter().all(|c| c.type_ != "HttpRouteWeighted"));
}

#[test]
fn a_route_that_is_missing_holds_nothing_up() {
    let mut world = World::in_first_stage(&two_stages(), &json!({}));
    world.seen.route = Some(missing());
    world.run_well(4000);
    assert_eq!(world.stage(), "large");
    world.calls(CANDIDATE, 40, 40);
    world.until(Phase::RolledBack, 20);
}

#[test]
fn calls_elsewhere_have_their_time_to_finish() {
    // Perch's own gateways have no calls in flight, and of others nobody tells.
    for (route, seconds) in [(None, 0), (Some(weighs(0)), 60), (Some(missing()), 60)] {
        for (verb, on_the_way, end) in
            [(Verb::Abort, Phase::Draining, Phase::RolledBack), (Verb::Promote, Phase::Promoting, Phase::Succeeded)]
        {
            let mut world = World::in_first_stage(&two_stages(), &json!({}));
            world.seen.route.clone_from(&route);
            world.tell(verb);
            world.until(on_the_way, 5);
            let begun = world.now;
            world.until(end, 20);
            let took = world.now - begun;
            assert!((seconds..=seconds + 20).contains(&took), "{verb:?} with {route:?}: {took} s");
        }
    }
}
