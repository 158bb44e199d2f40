//! Perch is killed at random moments while a client writes as fast as it can.
//!
//! The client keeps what was acknowledged. After each restart every acknowledged object is there
//! with its last acknowledged content; a write whose answer never came happened as a whole or not
//! at all. And what runs is exactly what is declared: nothing is lost, and there are no twins.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{Perch, Wire, wait};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SERVERS: &str = "/apis/perch.dev/v1alpha1/namespaces/default/mcpservers";
/// Servers that are there at once, at most.
const CROWD: usize = 4;

/// How many replicas a server may have.
const REPLICAS: [u64; 4] = [1, 2, 1, 0];

/// Numbers that look random and are the same in every run with the same seed.
pub struct Numbers(u64);

impl Numbers {
    /// From `PERCH_TEST_SEED`, else from `default`; said, so that a failure can be repeated.
    pub fn seeded(default: u64) -> Self {
        let seed = std::env::var("PERCH_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(default);
        println!("PERCH_TEST_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What an object says: the number of its last write and, for a server, its replicas.
type Content = (u64, u64);

/// An object by its path.
type Objects = BTreeMap<String, Content>;

/// A write: the object's path, and what it says afterwards; nothing when it is deleted.
type Write = (String, Option<Content>);

/// What a client knows.
struct Client {
    numbers: Numbers,
    spec: Value,
    acknowledged: Objects,
    /// Servers whose deletion was acknowledged: they may end a little later.
    ending: Vec<String>,
    writes: u64,
    version: u64,
}

impl Client {
    fn choose(&mut self) -> Write {
        self.writes += 1;
        let servers: Vec<String> = self.acknowledged.keys().filter(|k| k.starts_with(SERVERS)).cloned().collect();
        let mut pick = |n: usize| usize::try_from(self.numbers.below(n as u64)).unwrap();
        match pick(10) {
            0 if servers.len() < CROWD => {
                (format!("{SERVERS}/s{}", self.writes), Some((self.writes, REPLICAS[pick(REPLICAS.len())])))
            }
            1 if !servers.is_empty() => {
                (servers[pick(servers.len())].clone(), Some((self.writes, REPLICAS[pick(REPLICAS.len())])))
            }
            2 if servers.len() == CROWD => (servers[pick(servers.len())].clone(), None),
            3 => (format!("{MAPS}/m{}", pick(8)), None),
            _ => (format!("{MAPS}/m{}", pick(8)), Some((self.writes, 0))),
        }
    }

    /// Writes once; false when no answer came.
    fn write(&mut self, wire: &Wire, (path, content): &Write) -> bool {
        let Some((number, replicas)) = content else {
            let Some((code, _, body)) = wire.try_send("DELETE", path, "application/json", "") else { return false };
            assert!(matches!(code, 200 | 404), "{body}");
            assert_eq!(code == 404, !self.acknowledged.contains_key(path), "what was acknowledged is there: {body}");
            if self.acknowledged.remove(path).is_some() && path.starts_with(SERVERS) {
                self.ending.push(path.clone());
            }
            return true;
        };
        let mut object = if path.starts_with(SERVERS) {
            let mut spec = self.spec.clone();
            spec["env"] = json!([{"name": "NUMBER", "value": number.to_string()}]);
            spec["replicas"] = (*replicas).into();
            json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "spec": spec})
        } else {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"number": number.to_string()}})
        };
        object["metadata"] = json!({"name": path.rsplit('/').next().unwrap()});
        let target = format!("{path}?fieldManager=test&force=true");
        let answer = wire.try_send("PATCH", &target, "application/apply-patch+yaml", object.to_string());
        let Some((code, _, body)) = answer else { return false };
        assert!(matches!(code, 200 | 201), "{body}");
        let version = version(&body);
        assert!(version > self.version, "versions only grow: {version} after {}", self.version);
        self.version = version;
        self.acknowledged.insert(path.clone(), (*number, *replicas));
        true
    }

    /// Compares what is there with what was acknowledged, given the write whose answer never came.
    fn check(&mut self, wire: &Wire, doubt: Option<&Write>) {
        let (mut found, mut ending) = (Objects::new(), Vec::new());
        for resource in [MAPS, SERVERS] {
            let (code, _, list) = wire.json("GET", resource, &Value::Null);
            assert_eq!(code, 200, "{list}");
            assert!(version(&list) >= self.version, "the store went back: {} after {}", version(&list), self.version);
            for object in list["items"].as_array().unwrap() {
                let path = format!("{resource}/{}", object["metadata"]["name"].as_str().unwrap());
                let number = object.pointer("/data/number").or(object.pointer("/spec/env/0/value")).unwrap();
                let content =
                    (number.as_str().unwrap().parse().unwrap(), object["spec"]["replicas"].as_u64().unwrap_or(0));
                if object["metadata"]["deletionTimestamp"].is_string() {
                    ending.push(path);
                } else {
                    found.insert(path, content);
                }
            }
        }
        for path in &ending {
            let doubted = doubt.is_some_and(|(p, content)| p == path && content.is_none());
            assert!(self.ending.contains(path) || doubted, "{path} was not deleted");
        }
        if let Some((path, content)) = doubt
            && found.get(path) == content.as_ref()
        {
            // It happened, though nobody said so.
            match content {
                Some(content) => drop(self.acknowledged.insert(path.clone(), *content)),
                None => drop(self.acknowledged.remove(path)),
            }
        }
        assert_eq!(found, self.acknowledged);
        self.ending = ending;
    }

    /// How many instances of each server are declared.
    fn declared(&self) -> BTreeMap<String, u64> {
        let servers = self.acknowledged.iter().filter_map(|(path, (_, n))| Some((path.strip_prefix(SERVERS)?, *n)));
        servers.filter(|(_, n)| *n > 0).map(|(name, n)| (name[1..].to_owned(), n)).collect()
    }
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// Kills perch again and again; `count` tells how many instances of each server there are.
pub fn run(
    dir: &Path,
    args: &[&str],
    spec: Value,
    rounds: u64,
    numbers: Numbers,
    count: impl Fn(&str) -> BTreeMap<String, u64>,
) {
    let mut client = Client { numbers, spec, acknowledged: Objects::new(), ending: Vec::new(), writes: 0, version: 0 };
    let mut doubt: Option<Write> = None;
    let mut instances = 0;
    for round in 0..rounds {
        if client.numbers.below(3) == 0 {
            let after = Duration::from_millis(client.numbers.below(250));
            Perch::up_and_kill(dir, args, after);
        }
        let up = Perch::up(dir, args);
        let wire = Wire::to(&up);
        client.check(&wire, doubt.take().as_ref());
        exactly(&up, &client, &format!("round {round}"), &count);
        instances += client.declared().values().sum::<u64>();
        // Killed after so many answers, and a little later.
        let answers = AtomicU64::new(0);
        let (limit, later) = (1 + client.numbers.below(60), Duration::from_micros(client.numbers.below(30_000)));
        let pid = rustix::process::Pid::from_raw(i32::try_from(up.pid()).unwrap()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while answers.load(Ordering::Acquire) < limit {
                    std::thread::park_timeout(Duration::from_micros(200));
                }
                std::thread::sleep(later);
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            });
            loop {
                let write = client.choose();
                if !client.write(&wire, &write) {
                    doubt = Some(write);
                    break;
                }
                answers.fetch_add(1, Ordering::Release);
            }
        });
        assert!(answers.into_inner() >= limit, "it was killed before its time");
        up.kill();
    }
    let up = Perch::up(dir, args);
    client.check(&Wire::to(&up), doubt.as_ref());
    exactly(&up, &client, "the end", &count);
    for name in client.declared().keys() {
        up.until(name, "Ready");
    }
    println!("{} writes, {rounds} kills, {instances} instances counted", client.writes);
    assert!(instances >= rounds, "there was something to lose");
    assert_eq!(up.stop(), Some(0));
}

fn exactly(up: &Perch, client: &Client, when: &str, count: &impl Fn(&str) -> BTreeMap<String, u64>) {
    let instance = std::fs::read_to_string(up.dir.join("instance")).unwrap();
    let declared = client.declared();
    let mut last = BTreeMap::new();
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    wait(&format!("exactly what is declared: {when}"), || {
        last = count(&instance);
        assert!(
            last == declared || std::time::Instant::now() + Duration::from_secs(1) < deadline,
            "{when}: {last:?} runs, declared is {declared:?}"
        );
        (last == declared).then_some(())
    });
}
