//! Upstreams that send what they should not, break off, or say nothing.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A server that answers any request of a connection with these bytes and then closes it, or does
/// not.
async fn raw(answer: impl Into<Vec<u8>>, closes: bool) -> Arc<Servers> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap()).parse().unwrap();
    let answer: Arc<[u8]> = answer.into().into();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut request = vec![0; 65536];
                let _ = stream.read(&mut request).await;
                // The gateway may have had enough.
                let _ = stream.write_all(&answer).await;
                if !closes {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    let endpoint =
        Endpoint { instance: InstanceId("raw".into()), revision: Revision("old".into()), address: Address::Http(url) };
    Arc::new(Servers {
        endpoints: Mutex::new(vec![endpoint]),
        changes: broadcast::Sender::new(1),
        counts: Mutex::default(),
    })
}

/// Status and body, as far as it came; the last says whether all of it did.
async fn ask(servers: &Arc<Servers>, config: Config, tools: ToolFilter, body: &str) -> (u16, String, bool) {
    let route = Route {
        server: key(),
        upstream: Upstream::Http,
        tools,
        not_ready: None,
        has_failed: false,
        split: None,
        validates_arguments: false,
        notice: None,
    };
    let table = Arc::new(ArcSwap::from_pointee(RouteTable::of([route])));
    let stop = CancellationToken::new();
    let gateway = Gateway::new(config, table, Arc::clone(servers) as _, stop.clone(), None);
    let observer = super::super::observe::Observer::new("test".into(), None).unwrap();
    let gateway = Arc::new(gateway.observed_by(Arc::new(observer)));
    let session = gateway.sessions.seal(
        &key(),
        &Principal::default(),
        &super::super::session::Home::Upstream {
            place: super::super::session::Place { revision: "old".into(), instance: "raw".into() },
            id: "plain".into(),
        },
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/default/a/mcp", listener.local_addr().unwrap());
    let answer = move |request: Request<Incoming>| Arc::clone(&gateway).answer(request);
    tokio::spawn(listen::serve(Arc::default(), None, listener, Duration::from_secs(5), stop, Duration::ZERO, answer));
    let mut request = Request::post(url).header("content-type", "application/json");
    if !body.contains("initialize") {
        request = request.header("mcp-session-id", session);
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let (mut body, mut came) = (response.into_body(), Vec::new());
    let is_whole = loop {
        match body.frame().await {
            Some(Ok(frame)) => came.extend_from_slice(frame.data_ref().unwrap()),
            Some(Err(_)) => break false,
            None => break true,
        }
    };
    (status, String::from_utf8_lossy(&came).into_owned(), is_whole)
}

fn config() -> Config {
    Config { call_timeout: Duration::from_millis(300), ..Config::new([5; 32], Access::anonymous()) }
}

fn code(body: &str) -> i64 {
    let json = body.lines().find_map(|line| line.strip_prefix("data: ")).unwrap_or(body);
    serde_json::from_str::<serde_json::Value>(json).unwrap_or_else(|_| panic!("{body}"))["error"]["code"]
        .as_i64()
        .unwrap_or_else(|| panic!("{body}"))
}

fn head(status: &str, media: &str, more: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: {media}\r\n{more}\r\n")
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_of_the_server() {
    let open = ToolFilter::default;
    for (what, answer, status, expected) in [
        ("noise", "\u{0}\u{1}garbage\r\n\r\n".to_owned(), 502, -32000),
        ("nothing", String::new(), 502, -32000),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-Ty".into(), 502, -32000),
        ("a page", head("200 OK", "text/html", "Content-Length: 5\r\n") + "<h1>x", 502, -32603),
    ] {
        for body in [CALL, INITIALIZE] {
            let (seen, text, _) = ask(&raw(answer.clone(), true).await, config(), open(), body).await;
            assert_eq!((seen, code(&text)), (status, expected), "{what}: {text}");
        }
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let slow = head("200 OK", "text/event-stream", "Transfer-Encoding: chunked\r\n") + "3\r\n: x\r\n";
    for (what, answer, body) in
        [("nothing", "", CALL), ("nothing", "", INITIALIZE), ("no message", slow.as_str(), INITIALIZE)]
    {
        let (status, text, _) = ask(&raw(answer, false).await, config(), ToolFilter::default(), body).await;
        assert_eq!((status, code(&text)), (504, -32000), "{what}: {text}");
    }
}

#[tokio::test]
async fn half_an_answer_is_not_taken_for_a_whole_one() {
    let open = ToolFilter::default;
    let half = head("200 OK", "application/json", "Content-Length: 200\r\n") + r#"{"jsonrpc":"2.0","id":1"#;
    let (status, _, is_whole) = ask(&raw(half, true).await, config(), open(), CALL).await;
    assert!(status == 200 && !is_whole, "the client sees that something is missing");

    let stream = |event: &str| {
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        head("200 OK", "text/event-stream", "Transfer-Encoding: chunked\r\n") + &chunk
    };
    let news = "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n\n";
    let (status, text, is_whole) = ask(&raw(stream(news), true).await, config(), open(), CALL).await;
    assert!(status == 200 && is_whole && text.starts_with(news), "{text}");
    let error = &text[news.len()..];
    assert_eq!(code(error), -32603, "{text}");
    assert!(error.contains("\"id\":1,") && error.contains("broke off") && error.ends_with("\n\n"), "{text}");
    // One that ends as streams should, but for its answer.
    let (_, text, _) = ask(&raw(stream(news) + "0\r\n\r\n", true).await, config(), open(), CALL).await;
    assert_eq!(code(&text[news.len()..]), -32603, "{text}");

    let numbered = format!("id: 7\n{news}");
    let (_, text, is_whole) = ask(&raw(stream(&numbered), true).await, config(), open(), CALL).await;
    assert!(text == numbered && !is_whole, "it can be taken up again: {text}");
    let cut = "data: {\"jsonrpc\":";
    let (_, text, is_whole) = ask(&raw(stream(cut), true).await, config(), open(), CALL).await;
    assert!(text == cut && !is_whole, "half an event does not become the beginning of the error: {text}");
    let whole = "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n";
    let (_, text, _) = ask(&raw(stream(whole), true).await, config(), open(), CALL).await;
    assert_eq!(text, whole, "what breaks after the answer is no matter");
}

#[tokio::test]
async fn an_answer_without_end_is_not_kept() {
    let filter = ToolFilter { allow: Vec::new(), deny: vec!["x".into()] };
    let endless = head("200 OK", "application/json", "Content-Length: 999999999\r\n") + &" ".repeat(300_000);
    let limited = || Config { line_limit: 200_000, ..config() };
    let (status, text, _) = ask(&raw(endless, false).await, limited(), filter.clone(), CALL).await;
    assert_eq!((status, code(&text)), (502, -32000), "{text}");
    let event = format!("data: {}", "x".repeat(300_000));
    let endless = head("200 OK", "text/event-stream", "Transfer-Encoding: chunked\r\n")
        + &format!("{:x}\r\n{event}\r\n", event.len());
    let (status, text, _) = ask(&raw(endless, false).await, limited(), filter, CALL).await;
    assert!(status == 200 && text.len() < 1000, "{} bytes", text.len());
}
