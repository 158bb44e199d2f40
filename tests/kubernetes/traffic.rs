//! Clients that keep calling while the ground moves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::{Value, json};

use crate::{release::Release, support::wait};

/// An MCP session through the gateway's Service.
pub struct Client<'a> {
    release: &'a Release,
    server: &'a str,
    session: Option<String>,
}

impl<'a> Client<'a> {
    /// Initialises.
    pub fn open(release: &'a Release, server: &'a str) -> Self {
        Self::try_open(release, server).unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_open(release: &'a Release, server: &'a str) -> Result<Self, String> {
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}});
        let request = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params});
        let (status, session, body) = release.post(server, None, &request);
        if status != 200 {
            return Err(format!("initialize: {status} {body}"));
        }
        let client = Self { release, server, session };
        let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        client.release.post(server, client.session.as_deref(), &done);
        Ok(client)
    }

    /// Calls the tool `echo`.
    pub fn echo(&self, text: &str) -> Result<String, String> {
        let (status, response) = self.call("echo", &json!({"text": text}));
        let said = response["result"]["content"][0]["text"].as_str().map(str::to_owned);
        said.ok_or_else(|| format!("{status} {response}"))
    }

    /// Calls a tool that answers text, with its argument `name`.
    pub fn text(&self, tool: &str, name: &str) -> String {
        let (status, response) = self.call(tool, &json!({"name": name}));
        let said = response["result"]["content"][0]["text"].as_str();
        said.unwrap_or_else(|| panic!("{status} {response}")).to_owned()
    }

    /// The process that answers.
    pub fn pid(&self) -> String {
        let status = self.text("whoami", "");
        status.lines().find(|line| line.starts_with("Pid:")).unwrap().to_owned()
    }

    fn call(&self, tool: &str, arguments: &Value) -> (u16, Value) {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}});
        let (status, _, body) = self.release.post(self.server, self.session.as_deref(), &request);
        let last = body.lines().filter_map(|l| l.strip_prefix("data: ")).next_back().map(str::to_owned);
        (status, serde_json::from_str(&last.unwrap_or(body)).unwrap_or_default())
    }
}

/// Calls all the time as the protocol asks of a client: a session that the server no longer knows
/// (404) is opened again. Everything else that is no answer is a failure.
fn keep_calling(release: &Release, server: &str, stop: &AtomicBool, calls: &AtomicUsize) -> Vec<String> {
    let mut failures = Vec::new();
    let mut client = Client::open(release, server);
    while !stop.load(Ordering::Relaxed) {
        let (status, response) = client.call("slow", &json!({"ms": 50}));
        calls.fetch_add(1, Ordering::Relaxed);
        if status == 404 {
            match Client::try_open(release, server) {
                Ok(again) => client = again,
                Err(why) => failures.push(why),
            }
        } else if response["result"]["content"][0]["text"] != "done" {
            failures.push(format!("{status} {response}"));
        }
    }
    failures
}

/// Every pod is replaced while clients call.
pub fn rolling_update(release: &Release) {
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
                scope.spawn(move || keep_calling(release, "http", &stop, &calls))
            })
            .collect();
        let more = |than: usize| {
            wait("calls to go on", || (calls.load(Ordering::Relaxed) > than + 40).then_some(()));
        };
        more(0);
        let spec =
            json!({"args": ["http", "--name", "second"], "transport": {"type": "StreamableHttp"}, "replicas": 2});
        release.apply("http", &spec);
        wait("the update to arrive", || (release.status("http")["serverInfo"]["name"] == "second").then_some(()));
        wait("the old pods to go", || {
            let pods = release.kubectl(&["get", "pods", "-l", "perch.dev/server=http", "-o", "name"]);
            (pods.lines().count() == 2).then_some(())
        });
        more(calls.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        let failures: Vec<String> = clients.into_iter().flat_map(|c| c.join().unwrap()).collect();
        assert_eq!(failures, Vec::<String>::new(), "of {} calls", calls.load(Ordering::Relaxed));
    });
    release.ready("http");
}

impl Client<'_> {
    /// What the response to a call of this tool says, error or not.
    pub fn echo_of(&self, tool: &str) -> String {
        self.call(tool, &json!({})).1.to_string()
    }

    /// What the fixture gets from a target through the proxy that it was given.
    pub fn tunnel(&self, target: &str) -> String {
        let (_, response) = self.call("tunnel", &json!({"target": target}));
        response["result"]["content"][0]["text"].as_str().unwrap_or_default().to_owned()
    }

    /// What the fixture reads at a path.
    pub fn read(&self, path: &str) -> String {
        let (_, response) = self.call("read", &json!({"path": path}));
        response["result"]["content"][0]["text"].as_str().unwrap_or_default().to_owned()
    }

    /// What the fixture says about a connection that it tries.
    pub fn connect(&self, to: &str) -> String {
        let (_, response) = self.call("connect", &json!({"addr": to}));
        response["result"]["content"][0]["text"].as_str().unwrap_or_default().to_owned()
    }
}
