use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ALL: Interest = Interest { result: true, states: true };

fn scan(chunks: &[&[u8]], interest: Interest) -> Option<Answer> {
    let mut scan = Scan::new(interest);
    for chunk in chunks {
        scan.feed(chunk);
    }
    scan.answer().cloned()
}

fn read(message: &str) -> Answer {
    scan(&[message.as_bytes()], ALL).unwrap_or_else(|| panic!("{message} is an answer"))
}

#[test]
fn results_and_errors_are_told_apart() {
    let fine = read(r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"x"}],"isError":false}}"#);
    assert_eq!(fine, Answer::default());
    assert!(read(r#"{"jsonrpc":"2.0","id":1,"result":{"content":[],"isError" : true}}"#).is_error);
    assert!(read(r#"{"result":{"isError":true,"content":[{"isError":false}]},"id":1,"jsonrpc":"2.0"}"#).is_error);
    let error = read(r#"{"jsonrpc":"2.0","id":1,"error":{"message":"code: -1","code":-32603,"data":{"code":1}}}"#);
    assert_eq!((error.failed, error.error), (true, Some(-32603)));
    let bare = read(r#"{"jsonrpc":"2.0","id":1,"error":{}}"#);
    assert_eq!((bare.failed, bare.error), (true, None));
    assert!(read(r#"{"id":1,"result":{"resultType":"input_required"}}"#).input_required);
}

#[test]
fn what_only_looks_like_an_error_is_none() {
    let text = json!({"isError": true, "error": {"code": -32603}}).to_string();
    let answer = json!({"jsonrpc": "2.0", "id": "\"error\":{", "result": {
        "content": [{"type": "text", "text": text}, {"isError": true}, "isError"],
        "structuredContent": {"isError": true, "error": {"code": -32603}, "resultType": "input_required"},
        "words": ["isError", true, ["error"]],
        "_meta": {"result": {"isError": true}},
    }});
    assert_eq!(read(&answer.to_string()), Answer::default());
}

#[test]
fn only_answers_are_answers() {
    assert_eq!(scan(&[br#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"result":{}}}"#], ALL), None);
    assert_eq!(scan(&[br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#], ALL), None);
    assert_eq!(scan(&[br#"{"jsonrpc":"2.0","id":1,"result":{"a":1}"#], ALL), None, "cut off");
    assert_eq!(scan(&[b"<html>"], ALL), None);
    assert_eq!(scan(&[b""], ALL), None);
    assert_eq!(scan(&[b"}}}}"], ALL), None);
}

#[test]
fn state_to_bring_back_is_kept() {
    let states = |result: Value| read(&json!({"id": 1, "result": result}).to_string()).states;
    assert_eq!(states(json!({"resultType": "input_required", "requestState": "abc=="})), [b"abc==".to_vec()]);
    assert_eq!(states(json!({"task": {"status": "working", "taskId": "t-1"}})), [b"t-1".to_vec()]);
    assert_eq!(states(json!({"taskId": "t-2"})), [b"t-2".to_vec()]);
    assert_eq!(states(json!({"other": {"taskId": "no"}, "requestState": 5})), Vec::<Vec<u8>>::new());
    assert_eq!(states(json!({"requestState": "x".repeat(LONGEST_STATE + 1)})), Vec::<Vec<u8>>::new());
    assert_eq!(states(json!({"requestState": "x".repeat(LONGEST_STATE)})).len(), 1);
    let less = Interest { states: false, ..ALL };
    assert_eq!(scan(&[br#"{"id":1,"result":{"requestState":"x"}}"#], less).unwrap().states.len(), 0);
}

#[test]
fn without_interest_in_the_result_its_beginning_is_enough() {
    let interest = Interest::default();
    assert!(scan(&[br#"{"jsonrpc":"2.0","id":1,"result":{"tools":["#], interest).is_some());
    let error = scan(&[br#"{"id":1,"error":{"code":-32601,"message":"x"}}"#], interest).unwrap();
    assert_eq!(error.error, Some(-32601));
    assert_eq!(scan(&[br#"{"method":"x","id":1,"result":{}"#], interest), None);
}

fn events(chunks: &[&[u8]]) -> (Option<Answer>, bool) {
    let mut scan = EventScan::new(ALL);
    for chunk in chunks {
        scan.feed(chunk);
    }
    (scan.answer().cloned(), scan.is_numbered())
}

const STREAM: &[u8] = b": hello\n\nid: 7\r\nevent: message\r\ndata: {\"method\":\"notifications/progress\",\"params\":{\"isError\":true}}\r\n\r\ndate: x\rdata: {\"jsonrpc\":\"2.0\",\"id\":1,\rdata:\"result\":{\"content\":[{\"text\":\"a\\\"b\"}],\rdata: \"isError\":true}}\r\r";

#[test]
fn the_answer_is_found_among_events() {
    let (answer, numbered) = events(&[STREAM]);
    assert!(numbered && answer.unwrap().is_error);
    assert_eq!(events(&[&STREAM[..120]]).0, None, "the answer has not come yet");
    assert_eq!(events(&[b"data: {\"id\":1,\"result\":{}}\n\n"]), (Some(Answer::default()), false));
}

/// What a parser says of a message.
fn parsed(message: &Value) -> Answer {
    Answer {
        error: message["error"]["code"].as_i64(),
        failed: message.get("error").is_some(),
        is_error: message["result"]["isError"] == true,
        input_required: message["result"]["resultType"] == "input_required",
        states: Vec::new(),
    }
}

fn anything() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("isError".to_owned()),
        Just("error".into()),
        Just("code".into()),
        Just("result".into()),
        ".{0,8}"
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|n| json!(n)),
        ".{0,12}".prop_map(Value::from),
        key.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn it_reads_what_a_parser_reads(members in prop::collection::vec((".{0,6}", anything()), 0..4), is_error: bool, code: i32, fails: bool, cut: prop::sample::Index) {
        let mut body = serde_json::Map::from_iter(members);
        body.remove("requestState");
        body.remove("taskId");
        let message = if fails {
            body.insert("code".into(), code.into());
            json!({"jsonrpc": "2.0", "id": 1, "error": body})
        } else {
            body.insert("isError".into(), is_error.into());
            json!({"jsonrpc": "2.0", "id": 1, "result": body})
        };
        let interest = Interest { result: true, states: false };
        for text in [message.to_string(), format!("{message:#}")] {
            let cut = cut.index(text.len());
            let (head, tail) = text.as_bytes().split_at(cut);
            prop_assert_eq!(scan(&[head, tail], interest), Some(parsed(&message)), "{}", text);
            let stream = format!("data: {message}\n\n");
            let (head, tail) = stream.as_bytes().split_at(cut.min(stream.len()));
            let mut events = EventScan::new(interest);
            events.feed(head);
            events.feed(tail);
            prop_assert_eq!(events.answer(), Some(&parsed(&message)));
        }
    }

    #[test]
    fn garbage_does_no_harm(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..5)) {
        let mut scan = Scan::new(ALL);
        let mut stream = EventScan::new(ALL);
        for chunk in &chunks {
            scan.feed(chunk);
            stream.feed(chunk);
        }
    }

    #[test]
    fn where_a_stream_is_cut_does_not_matter(cut in 0..STREAM.len()) {
        prop_assert_eq!(events(&[&STREAM[..cut], &STREAM[cut..]]), events(&[STREAM]));
    }
}
