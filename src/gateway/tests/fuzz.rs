//! Bytes that nobody meant: mutations of the seeds in `seeds/`, given to whatever reads bytes of
//! clients and servers. `make fuzz` runs it for longer; ADR 38 says why it is written this way.
//!
//! `PERCH_FUZZ_SECONDS` is the time of each target (4), `PERCH_TEST_SEED` repeats a run. An input that
//! fails is printed: with the fix it becomes a seed.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;

use crate::{
    api::mcp_server::ToolFilter,
    gateway::{
        era,
        message::{self, Entries, Message, member, raw},
        nesting,
        observe::scan::{EventScan, Interest, Scan},
        parameter_headers, reply,
        session::{Home, Principal, Sessions},
        sse,
    },
    names::ServerKey,
};

/// What makes readers stumble.
const WORDS: [&[u8]; 28] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"true",
    b"-0",
    b"1e999",
    b"\\u0000",
    b"\\ud800",
    b"\"id\":",
    b"\"jsonrpc\":\"2.0\"",
    b"\"method\":\"x\"",
    b"\"result\":{}",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"data:",
    b"id: ",
    b"\xff",
    b"\0",
    b"\xef\xbb\xbf",
    b"=?base64?",
    b"\"_meta\":{}",
];
/// Largest input.
const LONGEST: usize = 4096;
/// Inputs that are kept to be mutated further.
const MOST_KEPT: usize = 2000;

/// Gives mutations to a target until the time is over. What a target gives tells inputs apart: one
/// with something new about it is mutated further.
fn fuzz<T: Hash>(name: &str, more: Vec<Vec<u8>>, target: impl Fn(&[u8], &mut StdRng) -> T) {
    let seconds = std::env::var("PERCH_FUZZ_SECONDS").map_or(4.0, |s| s.parse().unwrap());
    let seed: u64 = std::env::var("PERCH_TEST_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gateway/tests/seeds").join(name);
    let mut seeds: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    seeds.sort();
    let mut kept: Vec<Vec<u8>> = seeds.iter().map(|path| std::fs::read(path).unwrap()).collect();
    kept.extend(more);
    let mut chance = StdRng::seed_from_u64(seed);
    let (mut seen, mut runs) = (HashSet::new(), 0_u64);
    let mut run = |input: &[u8], chance: &mut StdRng| {
        let result = catch_unwind(AssertUnwindSafe(|| target(input, chance)));
        let what = result.unwrap_or_else(|_| panic!("PERCH_TEST_SEED={seed} {name}: {}", input.escape_ascii()));
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        seen.insert(hasher.finish())
    };
    for input in &kept {
        run(input, &mut chance);
    }
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        let input = mutated(&kept, &mut chance);
        runs += 1;
        if run(&input, &mut chance) && kept.len() < MOST_KEPT {
            kept.push(input);
        }
    }
    println!("{name}: {runs} inputs, {} of them kept, PERCH_TEST_SEED={seed}", kept.len());
    assert!(runs > 100, "{runs} inputs in {seconds} s are no test");
}

fn mutated(kept: &[Vec<u8>], chance: &mut StdRng) -> Vec<u8> {
    let mut input = kept.choose(chance).unwrap().clone();
    for _ in 0..chance.random_range(1..=6) {
        let at = chance.random_range(0..=input.len());
        let end = chance.random_range(at..=input.len().min(at + 40));
        match chance.random_range(0..7) {
            0 if at < input.len() => input[at] ^= 1 << chance.random_range(0..8),
            1 if at < input.len() => input[at] = chance.random(),
            2 => drop(input.drain(at..end)),
            3 => input.truncate(at),
            4 => {
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            5 => {
                let other = kept.choose(chance).unwrap();
                let from = chance.random_range(0..=other.len());
                input.splice(at..end, other[from..].iter().copied());
            }
            _ => {
                let word = WORDS.choose(chance).unwrap();
                input.splice(at..at, word.iter().copied());
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// Cuts bytes into parts.
fn cut<'b>(bytes: &'b [u8], chance: &mut StdRng) -> Vec<&'b [u8]> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(chance.random_range(1..=rest.len()));
        parts.push(part);
        rest = after;
    }
    parts
}

#[test]
fn messages() {
    let filter = ToolFilter { allow: Vec::new(), deny: vec!["b".into()] }.into();
    fuzz("message", Vec::new(), |input, chance| {
        // A reader of the bytes as they pass does not care how they come.
        let interest = Interest { result: true, states: true };
        let (mut whole, mut parts) = (Scan::new(interest), Scan::new(interest));
        whole.feed(input);
        for part in cut(input, chance) {
            parts.feed(part);
        }
        assert_eq!(whole.answer(), parts.answer());

        let _ = message::filter_tools(input, &filter);
        let read = Message::parse(input);
        let value: Option<Value> = serde_json::from_slice(input).ok();
        let deep = nesting::check(input, 16).is_err();
        let Some(read) = read else { return (false, value.is_some(), deep, None, 0) };
        assert!(std::str::from_utf8(input).is_ok(), "what is no text goes nowhere");
        // Numbers and escapes that serde cannot hold pass; all else must be read as others read it.
        let Some(value) = value else { return (true, false, deep, None, 0) };
        let members = value.as_object().expect("only objects are messages");
        assert_eq!(members["jsonrpc"], "2.0");
        assert_eq!(read.method.as_deref(), members.get("method").and_then(Value::as_str));
        let same = |raw: Option<&serde_json::value::RawValue>, name: &str| {
            let raw = raw.map(|raw| serde_json::from_str::<Value>(raw.get()).unwrap());
            assert_eq!(raw.as_ref(), members.get(name).filter(|v| name == "id" || !v.is_null()), "{name}");
        };
        same(read.id, "id");
        same(read.params, "params");
        same(read.result, "result");
        same(read.error, "error");
        for (name, expected) in value["params"].as_object().into_iter().flatten() {
            let found = read.param_raw(name).map(|raw| serde_json::from_str::<Value>(raw.get()).unwrap());
            assert_eq!(found.as_ref(), Some(expected), "{name}");
        }
        if let Some(params) = read.params.filter(|params| params.get().starts_with('{')) {
            let again: Value = serde_json::from_str(Entries::of(params).raw().get()).unwrap();
            assert_eq!(again, value["params"]);
        }
        // As one line with another id it says the same.
        let line = read.line(Some(&raw(77)), read.params);
        assert_eq!(memchr::memchr_iter(b'\n', &line).count(), 1);
        let mut other: Value = serde_json::from_slice(&line).unwrap();
        if read.id.is_some() {
            assert_eq!(other["id"], 77);
            other["id"] = value["id"].clone();
        }
        assert_eq!(other, value);
        if let Some(answer) = whole.answer().filter(|_| read.method.is_none() && read.result.is_none()) {
            assert!(answer.failed || !value["error"].is_object(), "{answer:?}");
        }
        let shown: Value = serde_json::from_slice(&message::filter_tools(input, &filter)).unwrap();
        let tools = shown["result"]["tools"].as_array();
        assert!(tools.into_iter().flatten().all(|tool| tool["name"] != "b"), "{shown}");
        (true, true, deep, Some(read.kind() as u8), members.len())
    });
}

#[test]
fn events() {
    let parsed = |parts: &[&[u8]]| {
        let (mut parser, mut events) = (sse::Parser::default(), Vec::new());
        for part in parts {
            parser.feed(part);
            while let Some(event) = parser.next() {
                events.push(event);
            }
        }
        events
    };
    fuzz("sse", Vec::new(), |input, chance| {
        let parts = cut(input, chance);
        let events = parsed(&[input]);
        assert_eq!(parsed(&parts), events);
        let interest = Interest { result: true, states: false };
        let (mut whole, mut cut) = (EventScan::new(interest), EventScan::new(interest));
        whole.feed(input);
        for part in parts {
            cut.feed(part);
        }
        assert_eq!((whole.answer(), whole.is_numbered()), (cut.answer(), cut.is_numbered()));
        // What becomes an event is what came out of one, line for line.
        for event in &events {
            let again = parsed(&[&reply::event("message", &event.data)]);
            assert_eq!(again.len(), 1);
            let same = |data: &[u8]| String::from_utf8_lossy(data).trim_ascii_end().to_owned();
            assert_eq!(same(&again[0].data), same(&event.data));
        }
        (events.len(), events.iter().filter(|e| e.id.is_some()).count(), whole.answer().is_some())
    });
}

#[test]
fn session_ids() {
    let sessions = Sessions::new(&[7; 32]);
    let (server, dana) = (ServerKey::new("default", "a"), Principal("dana".into()));
    let ids: Vec<String> =
        (0..4).map(|number| sessions.seal(&server, &dana, &Home::Own(number << (number * 30)))).collect();
    let seeds = ids.iter().map(|id| id.clone().into_bytes()).collect();
    fuzz("session", seeds, |input, _| {
        let text = String::from_utf8_lossy(input);
        let opened = sessions.open(&server, &dana, &text);
        assert_eq!(opened.is_some(), ids.iter().any(|id| *id == text), "only what was sealed opens");
        assert_eq!(sessions.open(&server, &Principal("eve".into()), &text), None);
        text.len()
    });
}

#[test]
fn headers_of_parameters() {
    fuzz("parameters", Vec::new(), |input, _| {
        let text = String::from_utf8_lossy(input);
        let encoded = era::encode(&text);
        assert!(http::HeaderValue::from_str(&encoded).is_ok(), "{encoded:?}");
        assert_eq!(era::decode(&encoded).as_deref(), Some(&*text));
        let decoded = era::decode(&text);
        let body = raw(serde_json::json!({"name": text}));
        assert_eq!(member(&body, "name").and_then(message::text).as_deref(), Some(&*text));
        let wanted = serde_json::from_slice::<Value>(input).map_or(0, |schema| parameter_headers::wanted(&schema));
        (decoded.is_some(), wanted, encoded.len() > text.len())
    });
}
