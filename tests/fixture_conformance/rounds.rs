//! Tools that need their client's answers, as the modern era does it: a call ends with questions,
//! and the next try brings the answers.

use std::{collections::BTreeMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{hmac, rand::SystemRandom};
use rmcp::{
    ErrorData, RoleServer,
    model::{CallToolRequestParams, ClientCapabilities},
    service::RequestContext,
};
use serde_json::{Map, Value, json};

use super::{invalid, made, text};

static KEY: LazyLock<hmac::Key> =
    LazyLock::new(|| hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).expect("there is randomness"));

/// A state that nobody else can make.
fn seal(state: &str) -> String {
    format!("{state}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&KEY, state.as_bytes())))
}

fn open(sealed: &str) -> Result<String, ErrorData> {
    let wrong = || invalid("requestState was changed", None);
    let (state, tag) = sealed.rsplit_once('.').ok_or_else(wrong)?;
    let tag = URL_SAFE_NO_PAD.decode(tag).map_err(|_| wrong())?;
    hmac::verify(&KEY, state.as_bytes(), &tag).map_err(|_| wrong())?;
    Ok(state.to_owned())
}

fn elicit(message: &str, property: &str, type_: &str) -> Value {
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": {
        "type": "object", "properties": {property: {"type": type_}}, "required": [property],
    }}})
}

fn sample(message: &str, tokens: u32) -> Value {
    json!({"method": "sampling/createMessage", "params": {
        "messages": [{"role": "user", "content": {"type": "text", "text": message}}], "maxTokens": tokens,
    }})
}

fn roots() -> Value {
    json!({"method": "roots/list", "params": {}})
}

fn questions(questions: Value, state: Option<&str>) -> Value {
    let mut result = json!({"resultType": "input_required", "inputRequests": questions});
    if let Some(state) = state {
        result["requestState"] = seal(state).into();
    }
    result
}

/// A tool's result, or its questions.
pub fn tool(
    name: &str,
    request: &CallToolRequestParams,
    context: &RequestContext<RoleServer>,
) -> Result<Value, ErrorData> {
    let capabilities: Value = serde_json::to_value(context.client_capabilities()).unwrap_or_default();
    let needs = |capability: &str| {
        if capabilities[capability].is_object() {
            return Ok(());
        }
        let needed: ClientCapabilities = made(json!({capability: {}}));
        Err(ErrorData::missing_required_client_capability(needed))
    };
    let answers = request.input_responses.clone().unwrap_or_default();
    let answer = |key: &str| answers.get(key).filter(|a| a.is_object());
    let state = request.request_state.as_deref().map(open).transpose()?;
    Ok(match name {
        "test_missing_capability" => {
            needs("sampling")?;
            text("The client can sample")
        }
        "test_streaming_elicitation" => {
            needs("elicitation")?;
            match answer("name") {
                Some(answer) => text(format!("Hello, {}!", answer["content"]["name"])),
                None => questions(json!({"name": elicit("What is your name?", "name", "string")}), None),
            }
        }
        "test_input_required_result_elicitation" => match answer("user_name") {
            Some(answer) => text(format!("Hello, {}!", answer["content"]["name"].as_str().unwrap_or("nobody"))),
            None => questions(json!({"user_name": elicit("What is your name?", "name", "string")}), None),
        },
        "test_input_required_result_sampling" => match answer("capital_question") {
            Some(answer) => text(super::content::answer("sampling/createMessage", answer)),
            None => questions(json!({"capital_question": sample("What is the capital of France?", 100)}), None),
        },
        "test_input_required_result_list_roots" => match answer("client_roots") {
            Some(answer) => text(format!("Roots: {}", answer["roots"])),
            None => questions(json!({"client_roots": roots()}), None),
        },
        "test_input_required_result_request_state" | "test_input_required_result_tampered_state" => {
            match (answer("confirm"), state.as_deref()) {
                (Some(_), Some("confirm")) => text("state-ok"),
                (Some(_), _) => return Err(invalid("requestState is missing", None)),
                (None, _) => questions(json!({"confirm": elicit("Please confirm", "ok", "boolean")}), Some("confirm")),
            }
        }
        "test_input_required_result_multiple_inputs" => {
            let all = ["user_name", "greeting", "client_roots"];
            if state.is_some() && all.iter().all(|key| answer(key).is_some()) {
                text("All three are known")
            } else {
                let wanted = json!({
                    "user_name": elicit("What is your name?", "name", "string"),
                    "greeting": sample("Generate a greeting", 50),
                    "client_roots": roots(),
                });
                questions(wanted, Some("multiple"))
            }
        }
        "test_input_required_result_multi_round" => match (state.as_deref(), answer("step1"), answer("step2")) {
            (Some("2"), _, Some(_)) => text("Both steps are done"),
            (Some("1"), Some(_), _) | (Some("2"), ..) => questions(
                json!({"step2": elicit("Step 2: What is your favorite color?", "color", "string")}),
                Some("2"),
            ),
            _ => questions(json!({"step1": elicit("Step 1: What is your name?", "name", "string")}), Some("1")),
        },
        "test_input_required_result_capabilities" => {
            let possible = [
                ("sampling", "sampled", sample("Say something", 10)),
                ("elicitation", "elicited", elicit("What is your name?", "name", "string")),
                ("roots", "rooted", roots()),
            ];
            let wanted: Map<String, Value> = possible
                .into_iter()
                .filter(|(capability, key, _)| capabilities[capability].is_object() && answer(key).is_none())
                .map(|(_, key, question)| (key.to_owned(), question))
                .collect();
            if wanted.is_empty() { text("Nothing is left to ask") } else { questions(wanted.into(), None) }
        }
        name => return Err(invalid(format!("Unknown tool: {name}"), None)),
    })
}

/// The prompt's messages, or its question.
pub fn prompt(answers: Option<&BTreeMap<String, Value>>) -> Result<Value, Value> {
    match answers.and_then(|answers| answers.get("user_context")) {
        Some(answer) => {
            let said = format!("Context: {}", answer["content"]["context"]);
            Ok(json!({"messages": [{"role": "user", "content": {"type": "text", "text": said}}]}))
        }
        None => Err(questions(
            json!({"user_context": elicit("What context should the prompt use?", "context", "string")}),
            None,
        )),
    }
}
