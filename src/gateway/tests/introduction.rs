//! Which era a process on standard streams speaks is found out once, and a mistake does not last.
//!
//! The processes are played at the other end of a pipe: when one is slow or ends cannot be said of a
//! real one.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream};

use super::*;

/// What a process does with what it hears.
#[derive(Clone, Copy, Debug)]
enum Process {
    /// A modern server, which ends when it is taken for a legacy one.
    Modern,
    /// A modern server that hears nothing for so long that it gets `initialize` as well, and never
    /// lists its tools.
    Slow,
    /// A legacy server that says nothing to what it does not know.
    Silent,
    /// A modern server that asks for a thousand signs of life, and reads nothing meanwhile, when it is called.
    Busy,
    /// A legacy server, which ends when it is taken for a modern one.
    Legacy,
    /// It says nothing, and ends after so many messages.
    Ends(usize),
}

/// Processes that come one after the other, and what each of them heard.
struct Processes {
    coming: Vec<Process>,
    heard: Mutex<Vec<Vec<String>>>,
    running: Mutex<usize>,
    changes: broadcast::Sender<ServerKey>,
}

impl Processes {
    fn new(coming: &[Process]) -> Arc<Self> {
        Arc::new(Self {
            coming: coming.to_vec(),
            heard: Mutex::new(vec![Vec::new(); coming.len()]),
            running: Mutex::default(),
            changes: broadcast::Sender::new(1),
        })
    }

    /// The process ends, and the next one runs.
    fn end(&self) {
        *self.running.lock().unwrap() += 1;
        let _ = self.changes.send(key());
    }
}

/// The answers of a process to a message; none when it ends.
fn answers(process: Process, heard: &[String], message: &Value) -> Option<Vec<Value>> {
    let id = &message["id"];
    let result = |id: &Value, result: Value| json!({"jsonrpc": "2.0", "id": id, "result": result});
    let method = message["method"].as_str().unwrap_or_default();
    let known =
        || json!({"supportedVersions": ["2026-07-28"], "resultType": "complete", "capabilities": {}, "serverInfo": {}});
    Some(match (process, method) {
        (Process::Ends(after), _) if heard.len() >= after => return None,
        (Process::Modern, "initialize") | (Process::Legacy, "server/discover") => return None,
        (Process::Modern | Process::Busy, "server/discover") => vec![result(id, known())],
        (Process::Slow, "initialize") => {
            let refusal = json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "initialize"}});
            vec![result(&json!(1), known()), refusal]
        }
        (Process::Legacy | Process::Silent, "initialize") => {
            let said = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}});
            vec![result(id, said)]
        }
        (Process::Busy, "tools/call") => {
            let asked = (0..1000).map(|id| json!({"jsonrpc": "2.0", "id": id, "method": "ping"}));
            asked.chain([result(id, json!({"content": [], "resultType": "complete"}))]).collect()
        }
        (Process::Modern | Process::Slow | Process::Legacy | Process::Silent, "tools/call") => {
            vec![result(id, json!({"content": [], "resultType": "complete"}))]
        }
        (Process::Modern | Process::Legacy, "tools/list") => {
            vec![result(id, json!({"tools": [], "resultType": "complete"}))]
        }
        _ => Vec::new(),
    })
}

async fn play(processes: Arc<Processes>, number: usize, stdin: DuplexStream, mut stdout: DuplexStream) {
    let mut lines = BufReader::new(stdin).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        let message: Value = serde_json::from_str(&line).unwrap();
        let heard = {
            let mut heard = processes.heard.lock().unwrap();
            heard[number].push(message["method"].as_str().unwrap_or("a response").to_owned());
            heard[number].clone()
        };
        let Some(answers) = answers(processes.coming[number], &heard, &message) else { break };
        for answer in answers {
            stdout.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
    }
    processes.end();
}

#[async_trait]
impl Instances for Arc<Processes> {
    fn endpoints(&self, server: &ServerKey) -> Vec<Endpoint> {
        let running = *self.running.lock().unwrap();
        let all = (*server == key()).then(|| Endpoint {
            instance: InstanceId(running.to_string()),
            revision: Revision("one".into()),
            address: Address::Stdio,
        });
        all.into_iter().collect()
    }

    async fn attach(&self, instance: &InstanceId) -> Result<StdioStreams, RuntimeError> {
        let number = instance.0.parse().unwrap();
        if *self.running.lock().unwrap() != number {
            return Err(RuntimeError::NotRunning(instance.to_string()));
        }
        let (stdin, input) = tokio::io::duplex(4096);
        let (output, stdout) = tokio::io::duplex(4096);
        tokio::spawn(play(Arc::clone(self), number, input, output));
        Ok(StdioStreams { stdin: Box::pin(stdin), stdout: Box::pin(stdout) })
    }

    fn changes(&self) -> broadcast::Receiver<ServerKey> {
        self.changes.subscribe()
    }
}

fn gateway(processes: &Arc<Processes>) -> Arc<Gateway> {
    let mut route = Route::clone(table(None).find(&key()).unwrap());
    route.upstream = Upstream::Stdio(crate::api::mcp_server::StdioSessions::Shared);
    let table = Arc::new(ArcSwap::from_pointee(RouteTable::of([route])));
    let config = Config::new([5; 32], Access::anonymous());
    Arc::new(Gateway::new(config, table, Arc::new(Arc::clone(processes)) as _, CancellationToken::new(), None))
}

/// A modern client's call, and whether it has a result.
async fn call(gateway: &Arc<Gateway>) -> bool {
    let message = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "echo", "arguments": {}, "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    }});
    let request = Request::post("/default/a/mcp")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", "echo");
    let call = crate::gateway::handler::Call {
        parts: request.body(()).unwrap().into_parts().0,
        body: Bytes::from(message.to_string()),
        route: gateway.table.load().find(&key()).unwrap().clone(),
        principal: Principal::default(),
        revision: None,
        trail: Arc::default(),
        patience: gateway.config.start_timeout,
    };
    let body = Arc::clone(gateway).forward(call).await.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice::<Value>(&body).unwrap()["result"].is_object()
}

/// What the processes heard until a call was answered.
async fn heard_until_answered(coming: &[Process]) -> Vec<Vec<String>> {
    let processes = Processes::new(coming);
    assert!(call(&gateway(&processes)).await, "{:?}", processes.heard);
    let heard = processes.heard.lock().unwrap();
    heard.clone()
}

#[tokio::test(start_paused = true)]
async fn a_slow_modern_server_is_not_taken_for_a_legacy_one() {
    let heard = heard_until_answered(&[Process::Slow]).await;
    let whole = ["server/discover", "initialize", "tools/list", "notifications/cancelled", "tools/call"];
    assert_eq!(heard, [whole], "nobody waits for its list for ever either");
}

#[tokio::test(start_paused = true)]
async fn a_legacy_server_that_ends_at_the_modern_question_is_not_asked_it_again() {
    let heard = heard_until_answered(&[Process::Legacy, Process::Legacy]).await;
    assert_eq!(
        heard,
        [vec!["server/discover"], vec!["initialize", "notifications/initialized", "tools/list", "tools/call"]],
        "what it says counts for its revision"
    );
}

#[tokio::test(start_paused = true)]
async fn a_modern_server_that_ended_when_it_was_asked_is_not_taken_for_a_legacy_one_for_ever() {
    let heard = heard_until_answered(&[Process::Ends(1), Process::Modern, Process::Modern]).await;
    assert_eq!(
        heard,
        [vec!["server/discover"], vec!["initialize"], vec!["server/discover", "tools/list", "tools/call"]]
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_modern_is_asked_the_modern_way_when_it_ended() {
    let processes = Processes::new(&[Process::Modern, Process::Ends(1), Process::Modern]);
    let gateway = gateway(&processes);
    assert!(call(&gateway).await);
    processes.end();
    assert!(call(&gateway).await, "{:?}", processes.heard);
    let heard = processes.heard.lock().unwrap().clone();
    assert_eq!(
        heard,
        [
            vec!["server/discover", "tools/list", "tools/call"],
            vec!["server/discover"],
            vec!["server/discover", "tools/call"]
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_modern_may_be_a_legacy_one_by_now() {
    let processes = Processes::new(&[Process::Modern, Process::Silent]);
    let gateway = gateway(&processes);
    assert!(call(&gateway).await);
    processes.end();
    assert!(call(&gateway).await, "{:?}", processes.heard);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_and_reads_nothing_is_still_heard() {
    assert!(call(&gateway(&Processes::new(&[Process::Busy]))).await);
}

/// The first answer to `server/discover` breaks off: that makes no server a legacy one.
#[tokio::test]
async fn a_server_whose_answer_broke_off_is_asked_again() {
    use axum::{Json, Router, response::IntoResponse, routing::post};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap()).parse().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let all = Arc::clone(&heard);
    let answer = move |Json(message): Json<Value>| {
        let mut heard = all.lock().unwrap();
        heard.push(message["method"].as_str().unwrap().to_owned());
        std::future::ready(match answers(Process::Modern, &[], &message) {
            _ if heard.len() == 1 => ([("content-type", "text/event-stream")], ": soon\n\n").into_response(),
            Some(answers) => Json(answers[0].clone()).into_response(),
            None => http::StatusCode::BAD_REQUEST.into_response(),
        })
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/mcp", post(answer))).await });
    let servers = Servers::start(&[]).await;
    let endpoint =
        Endpoint { instance: InstanceId("one".into()), revision: Revision("one".into()), address: Address::Http(url) };
    servers.endpoints.lock().unwrap().push(endpoint);
    let table = Arc::new(ArcSwap::from_pointee(table(None)));
    let config = Config::new([5; 32], Access::anonymous());
    let gateway = Arc::new(Gateway::new(config, table, servers as _, CancellationToken::new(), None));
    assert!(!call(&gateway).await);
    assert!(call(&gateway).await);
    assert_eq!(*heard.lock().unwrap(), ["server/discover", "server/discover", "tools/call"]);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_the_same_process_learn_nothing_from_its_end() {
    let processes = Processes::new(&[Process::Ends(2), Process::Modern, Process::Modern]);
    let gateway = gateway(&processes);
    assert_eq!(tokio::join!(call(&gateway), call(&gateway)), (true, true));
    let mut heard = processes.heard.lock().unwrap().clone();
    // Which of them read the list is no matter.
    heard[2].retain(|method| method != "tools/list");
    let calls = [vec!["server/discover"], vec!["tools/call"; 2]].concat();
    assert_eq!(heard, [vec!["server/discover", "initialize"], vec!["initialize"], calls]);
}
