use serde_json::json;

use super::*;
use crate::api::canary_release::Routing;

const SEAT: Seat = Seat { side: Side::Stable, cell: 5, user_bit: 1 << 7 };

fn spec(threshold: &str) -> CanaryReleaseSpec {
    serde_json::from_value(json!({
        "targetRef": {"name": "a"},
        "metrics": [
            {"name": "writes", "provider": "Gateway", "tools": ["write", "delete"]},
            {"name": "elsewhere", "provider": "Prometheus", "address": "http://x", "bad": "b", "total": "t"},
        ],
        "stages": [
            {"name": "s", "percentage": 10, "duration": "1h", "successCriteria": [
                {"metric": "errorRate", "threshold": "< 1%"}, {"metric": "latencyP99", "threshold": threshold},
                {"metric": "writes", "threshold": "< 1%"}, {"metric": "elsewhere", "threshold": "< 1%"}]},
            {"name": "t", "percentage": 20, "duration": "1h"},
        ],
    }))
    .unwrap()
}

fn key() -> ServerKey {
    ServerKey::new("default", "a")
}

fn split(release_id: &str) -> Split {
    let routing = Routing { desired_epoch: 3, percentage: 10, ..Routing::default() };
    Split::between(release_id, &routing, Revision("a-1".into()), Revision("a-2".into()))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Bad and all events of a signal, in all cells.
fn sums(counters: &RevisionCounters, signal: &CountedSignal) -> (i64, i64) {
    let report = counters.report();
    let counter = report.counters.iter().find(|c| c.signal == *signal).unwrap();
    (counter.counts.bad.iter().sum(), counter.counts.total.iter().sum())
}

#[test]
fn a_spec_says_what_is_counted() {
    let signals: Vec<CountedSignal> = watched(&spec("< 200ms")).into_iter().map(|w| w.signal).collect();
    assert_eq!(
        signals,
        [
            CountedSignal::Errors,
            CountedSignal::Unavailable,
            CountedSignal::SchemaErrors,
            CountedSignal::SlowerThan(200_000),
            CountedSignal::OfTools("writes".into()),
        ]
    );
    assert_eq!(latencies(&watched(&spec("< 200ms"))).collect::<Vec<_>>(), [200_000]);
    let unreadable = watched(&spec("< 200"));
    assert_eq!(unreadable.len(), 3, "what needs no criterion is counted whatever the spec says");
}

#[test]
fn each_outcome_counts_where_it_should() {
    use Outcome::*;
    let counters = RevisionCounters::new(Revision("a-1".into()), at(0), &watched(&spec("< 200ms")));
    let calls = [
        (Ok, 10, "echo"),
        (Ok, 200, "write"),
        (InputRequired, 10, "echo"),
        (ToolError, 10, "write"),
        (InternalError, 10, "echo"),
        (ServerError, 10, "echo"),
        (Unavailable, 10, "echo"),
        (Timeout, 300_000, "delete"),
        (InvalidParams, 201, "echo"),
        (Rejected, 10, "echo"),
        (Cancelled, 10_000, "write"),
    ];
    for (outcome, millis, tool) in calls {
        counters.count(SEAT, outcome, Duration::from_millis(millis), Some(tool), false);
    }
    assert_eq!(sums(&counters, &CountedSignal::Errors), (5, 10));
    assert_eq!(sums(&counters, &CountedSignal::Unavailable), (2, 10));
    assert_eq!(sums(&counters, &CountedSignal::SchemaErrors), (1, 10));
    assert_eq!(sums(&counters, &CountedSignal::SlowerThan(200_000)), (2, 10), "an edge is within its limit");
    assert_eq!(sums(&counters, &CountedSignal::OfTools("writes".into())), (2, 3));
    let report = counters.report();
    assert_eq!(report.users, 1 << 7);
    assert_eq!(report.counters[0].counts.total[5], 10, "all in the user's cell");
}

#[test]
fn counters_outlive_a_change_of_the_spec_and_no_release() {
    let releases = Releases::default();
    releases.prepare(&key(), &split("r1"), &watched(&spec("< 200ms")), at(1));
    let counters = |side| Arc::clone(releases.get(&key()).unwrap().counters(side).unwrap());
    let call = InFlight::new(counters(Side::Candidate));
    call.counters().count(SEAT, Outcome::ToolError, Duration::ZERO, None, false);
    releases.prepare(&key(), &split("r1"), &watched(&spec("< 100ms")), at(2));
    let now = counters(Side::Candidate);
    assert_eq!(sums(&now, &CountedSignal::Errors), (1, 1));
    assert_eq!(sums(&now, &CountedSignal::SlowerThan(100_000)), (0, 0));
    call.counters().count(SEAT, Outcome::Ok, Duration::ZERO, None, false);
    assert_eq!(sums(&now, &CountedSignal::Errors), (1, 2), "calls in hand count on");
    assert_eq!((now.report().in_flight, now.report().since), (1, at(1)));
    drop(call);
    assert_eq!(now.report().in_flight, 0);
    releases.prepare(&key(), &split("r2"), &watched(&spec("< 100ms")), at(3));
    assert_eq!(sums(&counters(Side::Candidate), &CountedSignal::Errors), (0, 0), "another release counts anew");
}

#[test]
fn the_same_again_changes_nothing() {
    let releases = Releases::default();
    for _ in 0..2 {
        releases.prepare(&key(), &split("r1"), &watched(&spec("< 200ms")), at(1));
        let release = releases.get(&key()).unwrap();
        release.counters(Side::Stable).unwrap().count(SEAT, Outcome::Ok, Duration::ZERO, None, false);
    }
    let release = releases.get(&key()).unwrap();
    assert_eq!(sums(release.counters(Side::Stable).unwrap(), &CountedSignal::Errors), (0, 2));
}

#[test]
fn what_listens_to_a_candidate_ends_with_it() {
    let releases = Releases::default();
    let running = split("r1");
    releases.prepare(&key(), &running, &watched(&spec("< 1s")), at(1));
    releases.settle(&key(), Some(&running));
    let over = releases.get(&key()).unwrap().over().clone();
    assert!(!over.is_cancelled());
    let mut gone = running.clone();
    gone.leaving = crate::routing::drain::Leaving::Gone;
    releases.prepare(&key(), &gone, &watched(&spec("< 1s")), at(1));
    assert!(!over.is_cancelled(), "not before the routing is live");
    releases.settle(&key(), Some(&gone));
    assert!(over.is_cancelled());
    releases.prepare(&key(), &running, &watched(&spec("< 1s")), at(1));
    assert!(!releases.get(&key()).unwrap().over().is_cancelled(), "it may run again");
}

#[test]
fn only_epochs_of_the_live_table_are_reported() {
    let releases = Releases::default();
    let server: crate::api::mcp_server::McpServer = serde_json::from_value(json!({
        "apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": "a", "namespace": "default"},
        "spec": {"image": "x"},
    }))
    .unwrap();
    let table = RouteTable::compile(&[server]);
    releases.prepare(&key(), &split("r1"), &watched(&spec("< 1s")), at(1));
    let report = |table: &RouteTable| releases.report("g", at(0), true, table).servers;
    assert_eq!(report(&table), []);
    let table = table.with_split(&key(), Some(split("r1")));
    let servers = report(&table);
    assert_eq!((servers[0].epoch, servers[0].release_id.as_str(), servers[0].revisions.len()), (3, "r1", 2));
    assert_eq!(servers[0].revisions[1].revision, "a-2");
    releases.prepare(&key(), &split("r2"), &watched(&spec("< 1s")), at(1));
    assert_eq!(report(&table), [], "the counters are of a release whose routing is not live yet");
}

#[test]
fn traces_and_what_users_say_are_counted_on_request() {
    let mut asked = spec("< 200ms");
    let criteria = json!([{"metric": "traceCompletion", "threshold": "> 99%"},
        {"metric": "userSatisfaction", "threshold": "> 80%"}]);
    asked.stages[0].success_criteria = serde_json::from_value(criteria).unwrap();
    let counters = RevisionCounters::new(Revision("a-1".into()), at(0), &watched(&asked));
    for (outcome, traced) in
        [(Outcome::Ok, true), (Outcome::Ok, false), (Outcome::Unavailable, true), (Outcome::ToolError, true)]
    {
        counters.count(SEAT, outcome, Duration::ZERO, Some("echo"), traced);
    }
    assert_eq!(sums(&counters, &CountedSignal::IncompleteTraces), (2, 4), "without a context, and without an answer");
    assert_eq!(sums(&counters, &CountedSignal::Dissatisfied), (0, 0), "calls say nothing of users");
    for satisfied in [true, false, true] {
        counters.judge(Seat { user_bit: 1 << 9, ..SEAT }, satisfied);
    }
    assert_eq!(sums(&counters, &CountedSignal::Dissatisfied), (1, 3));
    assert_eq!(sums(&counters, &CountedSignal::Errors), (2, 4), "and what they say is no call");
    assert_eq!(counters.report().users, 1 << 7 | 1 << 9);
    assert_eq!(
        counters.report().counters.iter().find(|c| c.signal == CountedSignal::Dissatisfied).unwrap().counts.total[5],
        3
    );

    let releases = Releases::default();
    assert!(!releases.wants_traces(&key()));
    releases.prepare(&key(), &split("a-2.1"), &watched(&spec("< 200ms")), at(0));
    assert!(!releases.wants_traces(&key()), "nobody looks for what no release asks for");
    releases.prepare(&key(), &split("a-2.1"), &watched(&asked), at(1));
    assert!(releases.wants_traces(&key()));
}
