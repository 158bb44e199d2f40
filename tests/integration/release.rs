//! A release, as the gateway takes part in it: two revisions of a real server as processes, and a
//! CanaryRelease whose status the test writes.

mod scene;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kube::api::{Patch, PatchParams};
use perch::{
    api::{gateway_report::CountedSignal, mcp_server::StdioSessions},
    gateway::access::api_key,
    runtime::{Backend, workload::Wire},
};
use scene::{
    CANDIDATE, INITIALIZE, MODERN, STABLE, Scene, call, in_session, key, modern, open, said, send, until, who, workload,
};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn each_client_keeps_its_side_and_nobody_leaves_when_the_share_grows() {
    let mut scene = Scene::http().await;
    let url = scene.url();
    scene.set("Progressing", 0).await;
    let sides = async |round: &str| {
        let mut sides = BTreeMap::new();
        for number in 2..102 {
            sides.insert(number, said(&modern(number, &url, "env", &who()).await));
        }
        println!("{round}: {} at the candidate", sides.values().filter(|s| *s == CANDIDATE).count());
        sides
    };
    let with_candidate = |sides: &BTreeMap<u32, String>| -> BTreeSet<u32> {
        sides.iter().filter(|(_, side)| *side == CANDIDATE).map(|(number, _)| *number).collect()
    };
    assert!(with_candidate(&sides("0%").await).is_empty());
    let (old, began) = open(&url).await;
    assert_eq!(began, STABLE);

    scene.set("Progressing", 10).await;
    let ten = with_candidate(&sides("10%").await);
    // Which addresses these are is fixed by the hash, so this is no matter of luck.
    assert!((3..=20).contains(&ten.len()), "{ten:?}");
    assert_eq!(with_candidate(&sides("10% again").await), ten, "everybody keeps their side");
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push(open(&url).await);
    }
    let candidates = sessions.iter().filter(|(_, revision)| revision == CANDIDATE).count();
    // Sessions are drawn: fewer than 1 or more than 30 of 100 come once in 30,000 runs.
    assert!((1..=30).contains(&candidates), "{candidates} of 100 sessions");

    scene.set("Progressing", 50).await;
    let half = with_candidate(&sides("50%").await);
    assert!(ten.is_subset(&half) && half.len() > ten.len(), "{ten:?} {half:?}");
    for (session, revision) in &sessions {
        assert_eq!(said(&in_session(&url, session, "env", &who()).await), *revision, "a session never moves");
    }
    assert_eq!(said(&in_session(&url, &old, "env", &who()).await), STABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_ends_sessions_in_the_way_of_their_era() {
    let mut scene = Scene::http().await;
    let url = scene.url();
    scene.set("Progressing", 0).await;
    let (stable, _) = open(&url).await;
    scene.set("Progressing", 100).await;
    let (session, revision) = open(&url).await;
    assert_eq!((revision.as_str(), said(&modern(5, &url, "env", &who()).await).as_str()), (CANDIDATE, CANDIDATE));
    let (early, began) = open(&url).await;
    assert_eq!(began, CANDIDATE);

    // A call that is in hand when the rollback comes.
    let slow = tokio::spawn({
        let (url, session) = (url.clone(), session.clone());
        async move { in_session(&url, &session, "slow", &json!({"ms": 1500})).await }
    });
    let watched = &scene;
    until("the call to be in hand", || async { (watched.revision(CANDIDATE).await.in_flight > 0).then_some(()) }).await;
    scene.set("RollingBack", 0).await;
    assert_eq!(scene.revision(CANDIDATE).await.in_flight, 1, "it goes on");
    assert_eq!(open(&url).await.1, STABLE, "new work goes to stable at once");
    assert_eq!(said(&modern(5, &url, "env", &who()).await), STABLE);
    assert_eq!(
        said(&in_session(&url, &early, "env", &who()).await),
        CANDIDATE,
        "a session goes on until the drain is over"
    );
    let done = slow.await.unwrap();
    assert_eq!((done.status, said(&done).as_str()), (200, "done"));
    assert_eq!(scene.revision(CANDIDATE).await.in_flight, 0);

    scene.set("RolledBack", 0).await;
    let ended = in_session(&url, &session, "env", &who()).await;
    assert_eq!(ended.status, 404, "the client initialises again: {}", ended.body);
    assert_eq!(open(&url).await.1, STABLE);
    assert_eq!(said(&in_session(&url, &stable, "env", &who()).await), STABLE, "sessions of stable notice nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_on_standard_streams_are_divided_too() {
    for sharing in [StdioSessions::Shared, StdioSessions::PerSession] {
        let mut scene =
            Scene::new(Wire::Stdio(sharing), json!({"type": "Stdio", "sessions": format!("{sharing:?}")})).await;
        let url = scene.url();
        scene.set("Progressing", 0).await;
        let (stable, _) = open(&url).await;
        scene.set("Progressing", 100).await;
        let (session, revision) = open(&url).await;
        assert_eq!(revision, CANDIDATE, "{sharing:?}");
        assert_eq!(said(&in_session(&url, &session, "env", &who()).await), CANDIDATE);
        assert_eq!(said(&in_session(&url, &stable, "env", &who()).await), STABLE);
        scene.set("RollingBack", 0).await;
        assert_eq!(said(&in_session(&url, &session, "env", &who()).await), CANDIDATE);
        assert_eq!(open(&url).await.1, STABLE);
        scene.set("RolledBack", 0).await;
        assert_eq!(in_session(&url, &session, "env", &who()).await.status, 404, "{sharing:?}");
        assert_eq!(said(&in_session(&url, &stable, "env", &who()).await), STABLE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counters_are_exact() {
    let mut scene = Scene::http().await;
    let url = scene.url();
    scene.set("Progressing", 100).await;
    let (session, _) = open(&url).await;
    let kinds = ["", "tool", "internal", "params", "unknown", "other", "http500", "cut", "", ""];
    for round in 0..10 {
        for kind in kinds {
            // As JSON and as events, in both eras.
            let arguments = json!({"kind": kind, "events": round % 2 == 0});
            in_session(&url, &session, "fault", &arguments).await;
            modern(100 + round, &url, "fault", &arguments).await;
        }
    }
    in_session(&url, &session, "slow", &json!({"ms": 200})).await;
    let pinned = format!("{}/default/a@{CANDIDATE}/mcp", scene.gateway);
    let (other, _) = open(&pinned).await;
    for _ in 0..7 {
        assert_eq!(in_session(&pinned, &other, "fault", &json!({"kind": "tool"})).await.status, 200);
    }
    // 10 rounds, in 2 eras, with 4 of 10 that fail and 2 that are refused.
    assert_eq!(scene.counted(CANDIDATE, CountedSignal::Errors).await, (80, 201));
    assert_eq!(scene.counted(CANDIDATE, CountedSignal::SchemaErrors).await, (40, 201));
    assert_eq!(scene.counted(CANDIDATE, CountedSignal::SlowerThan(150_000)).await, (1, 201));
    assert_eq!(scene.counted(STABLE, CountedSignal::Errors).await, (0, 0));
    assert!(scene.revision(CANDIDATE).await.users.count_ones() > 1);
    assert_eq!(scene.revision(CANDIDATE).await.in_flight, 0);

    let metrics = scene.ask("/metrics").await.1;
    let line = |outcome: &str| {
        let labels = format!(
            r#"server="default/a",revision="{CANDIDATE}",method="tools/call",tool="fault",outcome="{outcome}"}}"#
        );
        let found = metrics
            .lines()
            .find(|l| l.starts_with("mcp_server_operation_duration_seconds_count") && l.contains(&labels));
        found.and_then(|l| l.rsplit(' ').next()?.parse::<i64>().ok())
    };
    assert_eq!([line("ok"), line("tool_error"), line("internal_error")], [Some(60), Some(27), Some(20)], "{metrics}");
    assert!(metrics.contains("le=\"0.15\""), "the limit of the release is an edge");
    let audit = until("the audit log", || async {
        let text = std::fs::read_to_string(scene.dir.path().join("audit.log")).unwrap();
        (text.lines().filter(|l| l.contains("\"tools/call\"")).count() == 208).then_some(text)
    })
    .await;
    let last: Value = serde_json::from_str(audit.lines().next_back().unwrap()).unwrap();
    assert_eq!(
        (&last["name"], &last["outcome"], &last["decision"]),
        (&json!("fault"), &json!("tool_error"), &json!("allow"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn named_users_and_groups_go_first_and_a_user_keeps_one_side_everywhere() {
    let people = [("dana", "staff"), ("tom", "qa"), ("eve", "dev"), ("kim", "none")];
    let keys: Vec<(String, String)> = people.iter().map(|_| api_key::create()).collect();
    let entries: Vec<Value> = people
        .iter()
        .zip(&keys)
        .map(|((user, group), (_, hash))| json!({"name": user, "user": user, "groups": [group], "hash": hash}))
        .collect();
    let access = json!({"apiKeys": entries, "allow": [
        {"users": ["dana", "tom", "eve"], "servers": ["default/a"]},
    ]});
    let wire = Wire::Http { port: None, path: "/mcp".into() };
    let mut scene = Scene::with(wire, json!({"type": "StreamableHttp"}), Some(access)).await;
    scene.set("Progressing", 0).await;
    let who_serves = async |person: usize, number: u32, path: &str| {
        let mut request = call("env", &who());
        request["params"]["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {}});
        let bearer = format!("Bearer {}", keys[person].0);
        let headers = [
            ("Authorization", bearer.as_str()),
            ("MCP-Protocol-Version", MODERN),
            ("Mcp-Method", "tools/call"),
            ("Mcp-Name", "env"),
        ];
        let url = format!("{}/default/{path}/mcp", scene.gateway);
        send(number, "POST", &url, &headers, &request.to_string()).await
    };
    for number in 1..4 {
        assert_eq!(said(&who_serves(0, number, "a").await), CANDIDATE, "dana is named, wherever she is");
        assert_eq!(said(&who_serves(1, number, "a").await), CANDIDATE, "tom's group is named");
        assert_eq!(said(&who_serves(2, number, "a").await), STABLE);
    }
    assert_eq!(said(&who_serves(2, 1, &format!("a@{CANDIDATE}")).await), CANDIDATE, "a rule covers each revision");
    assert_eq!(who_serves(3, 1, "a").await.status, 403);
    assert_eq!(who_serves(3, 1, &format!("a@{CANDIDATE}")).await.status, 403, "and so does its absence");
    assert_eq!(scene.counted(CANDIDATE, CountedSignal::Errors).await, (0, 6));
    assert_eq!(scene.revision(CANDIDATE).await.users.count_ones(), 2);
    let audit = until("the audit log", || async {
        let text = std::fs::read_to_string(scene.dir.path().join("audit.log")).unwrap();
        (text.lines().count() == 12).then_some(text)
    })
    .await;
    assert_eq!(audit.lines().filter(|l| l.contains("\"user\":\"dana\"")).count(), 3);
    assert_eq!(audit.lines().filter(|l| l.contains("\"decision\":\"deny\"")).count(), 2);
    assert!(!keys.iter().any(|(key, _)| audit.contains(key)), "no credentials");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_revision_is_reached_on_purpose() {
    let mut scene = Scene::http().await;
    let pinned = |revision: &str| format!("{}/default/a@{revision}/mcp", scene.gateway);
    let (stable, candidate, neither) = (pinned(STABLE), pinned(CANDIDATE), pinned("a-3"));
    assert_eq!(open(&stable).await.1, STABLE);
    let (session, revision) = open(&candidate).await;
    assert_eq!(revision, CANDIDATE, "also before the release has users");
    assert_eq!(said(&in_session(&candidate, &session, "env", &who()).await), CANDIDATE);
    assert_eq!(said(&modern(1, &candidate, "env", &who()).await), CANDIDATE);
    let absent = send(1, "POST", &neither, &[], INITIALIZE).await;
    assert_eq!(absent.status, 503);
    assert!(absent.body.contains("revision a-3 of server default/a does not run: a-1 and a-2 does"), "{}", absent.body);
    scene.set("Progressing", 0).await;
    let url = scene.url();
    assert_eq!(in_session(&url, &session, "env", &who()).await.status, 404, "its session is no session of the server");
    assert_eq!(said(&in_session(&candidate, &session, "env", &who()).await), CANDIDATE);
    assert_eq!(scene.counted(CANDIDATE, CountedSignal::Errors).await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn stable_users_never_meet_the_candidate_and_new_work_need_not_wait_for_it() {
    let mut scene = Scene::http().await;
    let url = scene.url();
    scene.set("Progressing", 100).await;
    scene.backend.remove(&key().candidate()).await.unwrap();
    assert_eq!(open(&url).await.1, STABLE, "the candidate is not there");
    assert_eq!(said(&modern(3, &url, "env", &who()).await), STABLE);

    let wire = Wire::Http { port: None, path: "/mcp".into() };
    scene.backend.apply(&workload(&key().candidate(), CANDIDATE, &wire)).await.unwrap();
    let backend = Arc::clone(&scene.backend);
    until("the candidate", || async { (!backend.endpoints(&key().candidate()).is_empty()).then_some(()) }).await;
    scene.set("Progressing", 0).await;
    scene.backend.remove(&key()).await.unwrap();
    let waiting = tokio::spawn({
        let url = url.clone();
        async move { open(&url).await.1 }
    });
    // It waits for the stable revision, which comes while it does.
    tokio::task::yield_now().await;
    scene.backend.apply(&workload(&key(), STABLE, &wire)).await.unwrap();
    assert_eq!(waiting.await.unwrap(), STABLE);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_promotion_nobody_goes_back_while_the_old_revision_still_runs() {
    let mut scene = Scene::http().await;
    let url = scene.url();
    scene.set("Promoting", 100).await;
    let (session, revision) = open(&url).await;
    assert_eq!(revision, CANDIDATE);
    scene.epoch += 1;
    let status = json!({"phase": "Succeeded", "releaseId": "a-2.1", "stableRevision": CANDIDATE, "candidateRevision": null,
        "routing": {"desiredEpoch": scene.epoch, "percentage": 0}});
    scene.releases.patch_status("a", &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await.unwrap();
    let (watched, epoch) = (&scene, scene.epoch);
    until("the promotion", || async { (watched.report().await.servers[0].epoch == epoch).then_some(()) }).await;
    assert_eq!(open(&url).await.1, CANDIDATE, "it runs under the candidate's key alone");
    assert_eq!(said(&in_session(&url, &session, "env", &who()).await), CANDIDATE);
    let wire = Wire::Http { port: None, path: "/mcp".into() };
    scene.backend.apply(&workload(&key(), CANDIDATE, &wire)).await.unwrap();
    let backend = Arc::clone(&scene.backend);
    until("the new revision under the server's key", || async {
        backend.endpoints(&key()).iter().any(|e| e.revision.as_str() == CANDIDATE).then_some(())
    })
    .await;
    scene.backend.remove(&key().candidate()).await.unwrap();
    assert_eq!(open(&url).await.1, CANDIDATE);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_is_lost_while_routing_changes_a_thousand_times() {
    let mut scene = Scene::http().await;
    let url = scene.url();
    scene.set("Progressing", 50).await;
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|number| {
            let (url, over) = (url.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let (session, revision) = open(&url).await;
                let mut calls = 0_i64;
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(said(&in_session(&url, &session, "env", &who()).await), revision);
                    let answer = modern(10 + number, &url, "env", &who()).await;
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    calls += 2;
                    // A client thinks now and then, and leaves the machine to the changes.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                calls
            })
        })
        .collect();
    let generation = async || -> i64 {
        let epoch: Value = serde_json::from_str(&scene.ask("/-/epoch").await.1).unwrap();
        epoch["generation"].as_i64().unwrap()
    };
    let before = generation().await;
    let mut swaps = 0;
    let mut epoch = scene.epoch;
    while swaps < 1000 {
        epoch += 1;
        let status = json!({"routing": {"desiredEpoch": epoch, "percentage": epoch % 101}});
        let patch = Patch::Merge(json!({"status": status}));
        scene.releases.patch_status("a", &PatchParams::default(), &patch).await.unwrap();
        if epoch % 50 == 0 {
            swaps = generation().await - before;
        }
    }
    over.store(true, Ordering::Relaxed);
    let mut calls = 0;
    for client in clients {
        calls += client.await.unwrap();
    }
    let mut counted = 0;
    for revision in [STABLE, CANDIDATE] {
        let (bad, total) = scene.counted(revision, CountedSignal::Errors).await;
        assert_eq!(bad, 0);
        counted += total;
    }
    assert_eq!(counted, calls, "each call is counted once");
    println!("{calls} calls during {swaps} changes");
    assert!(calls > 100);
    scene.servers.delete("a", &kube::api::DeleteParams::default()).await.unwrap();
    let url = scene.url();
    until("the server to be gone", || async {
        (send(1, "POST", &url, &[], INITIALIZE).await.status == 404).then_some(())
    })
    .await;
}
