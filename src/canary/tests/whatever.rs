//! Whatever is seen, in whatever order: nothing panics, and what must never happen does not.

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::world::{CANDIDATE, STABLE, World, two_stages};
use crate::{
    api::canary_release::{Command, Counts, Phase, Verb},
    canary::{Gateway, Health, Observation, Progress, Reading, Series, contract::Contract, decide, wanted},
};

fn health() -> impl Strategy<Value = Health> {
    prop_oneof![
        1 => Just(Health::Unknown),
        1 => Just(Health::Starting),
        8 => Just(Health::Ready),
        1 => Just(Health::Failing("crash".into())),
    ]
}

fn reading() -> impl Strategy<Value = Reading> {
    let counts = (0..3i64, 0..500i64).prop_map(|(bad, total)| {
        let mut counts = Counts::default();
        counts.bad[1] = bad;
        counts.total[1] = total;
        counts
    });
    let side = prop_oneof![Just(STABLE), Just(CANDIDATE), Just("srv-3")];
    let series = (prop_oneof![Just("g1"), Just("g2")], side, counts, proptest::option::of(0..4i64));
    prop_oneof![
        8 => proptest::collection::vec(series, 0..4).prop_map(|all| Reading::Counters(all.into_iter()
            .map(|(source, revision, counts, users)| Series { source: source.into(), revision: revision.into(), since: None, counts, users })
            .collect())),
        1 => Just(Reading::NoData("NaN".into())),
        1 => Just(Reading::Unknown("down".into())),
        1 => Just(Reading::Findings(crate::canary::observation::Findings::default())),
    ]
}

fn verb() -> impl Strategy<Value = Verb> {
    prop_oneof![
        Just(Verb::Pause),
        Just(Verb::Resume),
        Just(Verb::Promote),
        Just(Verb::Skip),
        Just(Verb::Abort),
        Just(Verb::Retry)
    ]
}

#[derive(Clone, Debug)]
struct Turn {
    seconds: i64,
    declared: Option<&'static str>,
    candidate: Health,
    stable: Health,
    contract: bool,
    acks: [i64; 2],
    reading: Reading,
    in_flight: Option<i64>,
    command: Option<(u8, Verb)>,
}

fn turn() -> impl Strategy<Value = Turn> {
    (
        prop_oneof![8 => 0..70i64, 1 => -9999..0i64, 1 => 0..999_999i64],
        prop_oneof![1 => Just(None), 1 => Just(Some(STABLE)), 1 => Just(Some("srv-3")), 20 => Just(Some(CANDIDATE))],
        health(),
        health(),
        any::<bool>(),
        [0..2i64, 0..2i64],
        reading(),
        proptest::option::of(0..2i64),
        proptest::option::weighted(0.15, (any::<u8>(), verb())),
    )
        .prop_map(|(seconds, declared, candidate, stable, contract, acks, reading, in_flight, command)| Turn {
            seconds,
            declared,
            candidate,
            stable,
            contract,
            acks,
            reading,
            in_flight,
            command,
        })
}

fn observe(turn: &Turn, progress: &Progress, known: &mut i64) -> Observation {
    // Gateways lag by up to one epoch, but never run one that was not wished.
    let epoch = progress.routing.desired_epoch;
    *known = epoch;
    let gateway = |name: &str, lag: i64| Gateway { name: name.into(), epoch: Some((epoch - lag).max(0)) };
    Observation {
        generation: Some(1),
        declared: turn.declared.map(str::to_owned),
        candidate: turn.candidate.clone(),
        waits: String::new(),
        stable: turn.stable.clone(),
        contract: turn.contract.then(Contract::default),
        gateways: vec![gateway("g1", turn.acks[0]), gateway("g2", turn.acks[1])],
        readings: vec![("errorRate".into(), turn.reading.clone()), ("schemaErrors".into(), turn.reading.clone())],
        in_flight: crate::canary::InFlight { candidate: turn.in_flight, stable: turn.in_flight },
        command: turn.command.map(|(id, verb)| Command {
            id: id.to_string(),
            verb,
            release_id: progress.release_id.clone().unwrap_or_default(),
            stage: progress.stage.as_ref().map(|s| s.name.clone()),
            by: None,
        }),
        route: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_must_never_happen_does_not(turns in proptest::collection::vec(turn(), 1..120)) {
        let plan = World::new(&two_stages(), &json!({"drainTimeout": "20s"})).plan;
        let mut progress = Progress::default();
        let mut now = 1_795_000_000;
        let mut known = 0;
        for turn in &turns {
            now += turn.seconds;
            let seen = observe(turn, &progress, &mut known);
            let at = Timestamp::from_second(now).unwrap();
            let next = decide(&plan, &progress, &seen, at).progress;
            prop_assert_eq!(&next, &decide(&plan, &progress, &seen, at).progress, "deterministic");
            let written: Progress = serde_json::from_str(&serde_json::to_string(&next).unwrap()).unwrap();
            prop_assert_eq!(&written, &next, "the status is all there is");
            let acked = seen.gateways.iter().all(|g| g.epoch == Some(progress.routing.desired_epoch));
            // A share that gateways may still obey keeps its revision running.
            if wanted(&progress).candidate.is_some() && wanted(&next).candidate != wanted(&progress).candidate
                && next.phase != Phase::Succeeded {
                prop_assert!(acked && progress.routing.percentage == 0, "removed while routed");
            }
            // Only an acknowledged route is followed by a larger one, unless a person says so.
            if next.routing.percentage > progress.routing.percentage && next.last_command == progress.last_command {
                prop_assert!(acked, "raised without acknowledgement");
                prop_assert!(seen.candidate == Health::Ready, "raised without instances");
            }
            prop_assert!(next.routing.desired_epoch - progress.routing.desired_epoch <= 1, "one change a turn");
            prop_assert!(next.routing.desired_epoch >= progress.routing.desired_epoch);
            let stage = |p: &Progress| p.stage.as_ref().map_or(-1, |s| s.index);
            if next.release_id == progress.release_id {
                prop_assert!(stage(&next) - stage(&progress) <= 1, "no stage is jumped over");
            }
            // Nobody has a revision that was taken back.
            if next.failed_revisions.iter().any(|f| Some(&f.revision) == next.candidate_revision.as_ref()) {
                prop_assert!(next.routing.percentage == 0 && next.routing.users.is_empty());
            }
            prop_assert!(next.phase.is_at_rest() || next.candidate_revision.is_some());
            prop_assert_eq!(next.hold.is_some(), matches!(next.phase, Phase::Paused | Phase::AwaitingApproval));
            progress = next;
        }
    }
}
