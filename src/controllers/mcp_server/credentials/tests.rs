use secrecy::ExposeSecret;
use serde_json::json;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn server(replicas: i32) -> McpServer {
    let spec = r"{command: [x], credentials: [
        {name: t, oauth2: {tokenURL: 'https://idp/t', clientID: c, clientSecretFrom: {secretKeyRef: {name: client, key: k}}}},
        {name: plain, secret: {name: s, key: k}}]}";
    let mut server = McpServer::new("a", serde_yaml_ng::from_str(spec).unwrap());
    server.status = serde_json::from_value(json!({"replicas": replicas})).unwrap();
    server
}

fn away() -> ObtainError {
    ObtainError::Unreachable { url: "https://idp/t".into(), why: "refused".into() }
}

/// What is found of the server's credentials at a second, after some steps.
fn found_at(replicas: i32, second: i64, steps: impl Fn(&mut Entry, &Credential)) -> Found {
    let server = server(replicas);
    let declared = &server.spec.credentials;
    let mut entry = Entry::new(&declared[0], at(0));
    steps(&mut entry, &declared[0]);
    let kept = Kept { entries: [("t".to_owned(), entry)].into(), ..Kept::default() };
    Found { again: kept.again(at(second)), ..found(&server, declared, &kept.entries, at(second)) }
}

fn succeed(entry: &mut Entry, credential: &Credential) {
    let value = b"token-1".to_vec().into();
    entry.succeed(credential, Obtained { value, expires: Some(at(100)) }, at(0));
}

fn told(found: &Found) -> (bool, &'static str, &str) {
    let report = found.report.as_ref().unwrap();
    (report.ready, report.reason, report.message.as_str())
}

#[test]
fn a_server_waits_for_its_first_value_and_says_for_what() {
    let fresh = found_at(0, 0, |_, _| {});
    assert_eq!(told(&fresh), (false, "Fetching", "\"t\": it is being fetched"));
    assert!(fresh.missing.unwrap().contains("being fetched"));
    let failed = found_at(0, 0, |entry, _| entry.fail(&away(), at(0)));
    let (ready, reason, message) = told(&failed);
    assert_eq!((ready, reason), (false, "Unreachable"));
    assert!(message.contains("https://idp/t does not answer (refused)") && message.contains("starts as soon as"));
    assert!(failed.missing.unwrap().contains("does not answer"));
    assert!(failed.again.unwrap() <= at(1) && failed.again.unwrap() > at(0));
}

#[test]
fn a_good_value_is_given_and_renewed_in_time() {
    let good = found_at(0, 10, succeed);
    assert_eq!(told(&good), (true, "Ready", "2 credentials are in place"));
    assert_eq!((good.missing, good.again), (None, Some(at(75))));
    assert_eq!(good.values["t"].expose_secret(), b"token-1");
    let report = good.report.unwrap();
    assert!(!format!("{report:?}").contains("token-1"));
}

#[test]
fn the_old_value_is_used_until_it_ends_and_by_what_runs_also_then() {
    let steps = |entry: &mut Entry, credential: &Credential| {
        succeed(entry, credential);
        entry.fail(&away(), at(75));
    };
    let trouble = found_at(1, 80, steps);
    let (ready, reason, message) = told(&trouble);
    assert_eq!((ready, reason), (false, "Unreachable"));
    assert!(message.contains("good until 1970-01-01T00:01:40Z"), "{message}");
    assert_eq!((trouble.missing.is_none(), trouble.values.len()), (true, 1));

    let ended = found_at(1, 100, steps);
    let (ready, reason, message) = told(&ended);
    assert_eq!((ready, reason), (false, "Expired"));
    assert!(message.contains("runs on with the old value") && message.contains("does not answer"), "{message}");
    assert_eq!((ended.missing.is_none(), ended.values.len()), (true, 1));
    assert!(found_at(0, 100, steps).missing.is_some(), "nothing is started with a value that has ended");
}

#[test]
fn what_is_said_stays_the_same_from_try_to_try() {
    let after = |tries: u32| {
        found_at(1, 80, |entry, credential| {
            succeed(entry, credential);
            (0..tries).for_each(|n| entry.fail(&away(), at(75 + i64::from(n))));
        })
    };
    assert_eq!(after(1).report, after(4).report, "a status is not written for nothing");
    let recovered = found_at(1, 80, |entry, credential| {
        entry.fail(&away(), at(0));
        succeed(entry, credential);
    });
    assert_eq!(told(&recovered).1, "Ready");
}

#[test]
fn of_references_there_is_nothing_to_remember() {
    let mut server = server(1);
    let told = |server: &mut McpServer| {
        let report = report::of(&server.spec.credentials, &BTreeMap::new(), at(0)).unwrap();
        let condition = json!({"type": "CredentialsReady", "status": "True", "reason": report.reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        server.status = serde_json::from_value(json!({"conditions": [condition]})).unwrap();
        report::was_told(server)
    };
    assert!(told(&mut server), "a value was fetched and may be stored");
    server.spec.credentials.retain(|c| !c.is_fetched());
    assert!(!told(&mut server), "no Secret of Perch is looked for, which would need rights");
    assert_eq!(report::of(&[], &BTreeMap::new(), at(0)), None);
}

#[test]
fn one_fetch_at_a_time_and_none_without_a_pause() {
    let server = server(1);
    let wanted = [&server.spec.credentials[0]];
    let mut kept = Kept { loaded: true, ..Kept::default() };
    kept.want(&wanted, at(0));
    assert_eq!(kept.again(at(0)), Some(at(0)));
    assert_eq!(kept.begin(&wanted, at(0)).map(|due| due.len()), Some(1));
    kept.want(&wanted, at(1));
    assert_eq!((kept.begin(&wanted, at(1)), kept.again(at(1))), (None, None), "its end tells itself");
    // Nobody wants it any more: the Secret is written, and again only after a pause when that failed.
    kept.busy = false;
    kept.want(&[], at(2));
    assert_eq!((kept.begin(&[], at(2)), kept.busy), (Some(Vec::new()), true));
    kept.busy = false;
    kept.stale = Some(at(10));
    assert_eq!((kept.begin(&[], at(3)), kept.again(at(3))), (None, Some(at(10))));
    assert!(!Kept::default().busy && Kept::default().begin(&[], at(0)).is_none());
}

#[test]
fn the_end_of_a_value_is_looked_at_when_it_comes() {
    let steps = |entry: &mut Entry, credential: &Credential| {
        succeed(entry, credential);
        (0..20).for_each(|_| entry.fail(&away(), at(70)));
    };
    assert_eq!(found_at(1, 71, steps).again, Some(at(100)), "the next try comes later");
}
