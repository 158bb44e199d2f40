//! What the fixture offers that needs no more than its name.

use serde_json::{Value, json};

/// One red pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAABJRU5ErkJggg==";
/// No sound.
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQAAAAA=";

/// All tools, always in this order.
pub fn tools() -> Vec<Value> {
    let plain = [
        "test_simple_text",
        "test_image_content",
        "test_audio_content",
        "test_embedded_resource",
        "test_multiple_content_types",
        "test_error_handling",
        "test_tool_with_logging",
        "test_logging_tool",
        "test_tool_with_progress",
        "test_reconnection",
        "test_trigger_tool_change",
        "test_trigger_prompt_change",
        "test_elicitation_sep1034_defaults",
        "test_elicitation_sep1330_enums",
        "test_missing_capability",
        "test_streaming_elicitation",
        "test_input_required_result_elicitation",
        "test_input_required_result_sampling",
        "test_input_required_result_list_roots",
        "test_input_required_result_request_state",
        "test_input_required_result_multiple_inputs",
        "test_input_required_result_multi_round",
        "test_input_required_result_tampered_state",
        "test_input_required_result_capabilities",
    ];
    let with = |name: &str, properties: Value| json!({"name": name, "description": format!("The tool {name}"), "inputSchema": {"type": "object", "properties": properties}});
    let mut tools: Vec<Value> = plain.iter().map(|name| with(name, json!({}))).collect();
    tools.push(with("echo", json!({"text": {"type": "string"}})));
    tools.push(with("sleep", json!({"ms": {"type": "integer"}})));
    tools.push(with("touch", json!({"uri": {"type": "string"}})));
    tools.push(with("test_sampling", json!({"prompt": {"type": "string"}})));
    tools.push(with("test_elicitation", json!({"message": {"type": "string"}})));
    tools.push(with("test_custom_headers", json!({"region": {"type": "string", "x-mcp-header": "Region"}})));
    tools.push(json!({
        "name": "json_schema_2020_12_tool",
        "description": "A tool whose schema uses much of JSON Schema",
        "inputSchema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": {
                "street": {"type": "string"}, "city": {"type": "string"},
            }}},
            "properties": {
                "name": {"type": "string"}, "address": {"$ref": "#/$defs/address"},
                "contactMethod": {"type": "string", "enum": ["phone", "email"]},
                "phone": {"type": "string"}, "email": {"type": "string"},
            },
            "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
            "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
            "then": {"required": ["phone"]},
            "else": {"required": ["email"]},
            "additionalProperties": false,
        },
    }));
    tools
}

/// The result of a tool that always gives the same.
pub fn tool(name: &str) -> Option<Value> {
    let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    let content = match name {
        "test_simple_text" => json!([{"type": "text", "text": "This is a simple text response for testing."}]),
        "test_image_content" => json!([image]),
        "test_audio_content" => json!([{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]),
        "test_embedded_resource" => json!([{"type": "resource", "resource": {
            "uri": "test://embedded-resource", "mimeType": "text/plain",
            "text": "This is an embedded resource content.",
        }}]),
        "test_multiple_content_types" => json!([
            {"type": "text", "text": "Multiple content types test:"},
            image,
            {"type": "resource", "resource": {
                "uri": "test://mixed-content-resource", "mimeType": "application/json",
                "text": "{\"test\":\"data\",\"value\":123}",
            }},
        ]),
        "json_schema_2020_12_tool" | "test_custom_headers" => json!([{"type": "text", "text": "done"}]),
        "test_error_handling" => {
            return Some(super::failed("This tool intentionally returns an error for testing"));
        }
        _ => return None,
    };
    Some(json!({"content": content}))
}

/// What a tool asks its client, and how it begins its answer.
pub fn question(tool: &str, arguments: &Value) -> Option<(&'static str, Value, &'static str)> {
    let elicit = |message: &str, properties: Value, required: Value| {
        json!({"mode": "form", "message": message, "requestedSchema": {
            "type": "object", "properties": properties, "required": required,
        }})
    };
    let titled = |name: &str| json!([{"const": "value1", "title": format!("First {name}")}, {"const": "value2", "title": format!("Second {name}")}]);
    match tool {
        "test_sampling" => Some((
            "sampling/createMessage",
            json!({"messages": [{"role": "user", "content": {"type": "text", "text": arguments["prompt"]}}], "maxTokens": 100}),
            "LLM response:",
        )),
        "test_elicitation" | "test_streaming_elicitation" => Some((
            "elicitation/create",
            elicit(
                arguments["message"].as_str().unwrap_or_default(),
                json!({
                    "username": {"type": "string", "description": "User's response"},
                    "email": {"type": "string", "description": "User's email address"},
                }),
                json!(["username", "email"]),
            ),
            "User response:",
        )),
        "test_elicitation_sep1034_defaults" => Some((
            "elicitation/create",
            elicit(
                "Please check these values",
                json!({
                    "name": {"type": "string", "default": "John Doe"},
                    "age": {"type": "integer", "default": 30},
                    "score": {"type": "number", "default": 95.5},
                    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
                    "verified": {"type": "boolean", "default": true},
                }),
                json!([]),
            ),
            "Elicitation completed:",
        )),
        "test_elicitation_sep1330_enums" => Some((
            "elicitation/create",
            elicit(
                "Please choose",
                json!({
                    "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
                    "titledSingle": {"type": "string", "oneOf": titled("Option")},
                    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]},
                    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
                    "titledMulti": {"type": "array", "items": {"anyOf": titled("Choice")}},
                }),
                json!([]),
            ),
            "Elicitation completed:",
        )),
        _ => None,
    }
}

/// A client's answer, in words.
pub fn answer(method: &str, answer: &Value) -> String {
    if method == "sampling/createMessage" {
        let content = &answer["content"];
        let text = content["text"].as_str().or_else(|| content[0]["text"].as_str());
        return text.unwrap_or_default().to_owned();
    }
    format!("action={}, content={}", answer["action"].as_str().unwrap_or_default(), answer["content"])
}

/// All prompts.
pub fn prompts() -> Vec<Value> {
    let argument = |name: &str| json!({"name": name, "description": format!("The argument {name}"), "required": true});
    let prompt = |name: &str, arguments: Vec<Value>| json!({"name": name, "description": format!("The prompt {name}"), "arguments": arguments});
    vec![
        prompt("test_simple_prompt", vec![]),
        prompt("test_prompt_with_arguments", vec![argument("arg1"), argument("arg2")]),
        prompt("test_prompt_with_embedded_resource", vec![argument("resourceUri")]),
        prompt("test_prompt_with_image", vec![]),
        prompt("test_input_required_result_prompt", vec![]),
    ]
}

/// A prompt's messages.
pub fn prompt(name: &str, arguments: &Value) -> Option<Value> {
    let text = |text: String| json!({"role": "user", "content": {"type": "text", "text": text}});
    let said = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
    let messages = match name {
        "test_simple_prompt" => vec![text("This is a simple prompt for testing.".into())],
        "test_prompt_with_arguments" => {
            vec![text(format!("Prompt with arguments: arg1='{}', arg2='{}'", said("arg1"), said("arg2")))]
        }
        "test_prompt_with_embedded_resource" => vec![
            json!({"role": "user", "content": {"type": "resource", "resource": {
                "uri": said("resourceUri"), "mimeType": "text/plain",
                "text": "Embedded resource content for testing.",
            }}}),
            text("Please process the embedded resource above.".into()),
        ],
        "test_prompt_with_image" => vec![
            json!({"role": "user", "content": {"type": "image", "data": PNG, "mimeType": "image/png"}}),
            text("Please analyze the image above.".into()),
        ],
        _ => return None,
    };
    Some(json!({"messages": messages}))
}

/// All resources.
pub fn resources() -> Vec<Value> {
    let resource = |uri: &str, name: &str, media: &str| json!({"uri": uri, "name": name, "description": format!("The resource {name}"), "mimeType": media});
    vec![
        resource("test://static-text", "Static text", "text/plain"),
        resource("test://static-binary", "Static binary", "image/png"),
        resource("test://watched-resource", "Watched", "text/plain"),
    ]
}

/// A resource's contents.
pub fn resource(uri: &str) -> Option<Value> {
    if let Some(id) = uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data")) {
        let data = json!({"id": id, "templateTest": true, "data": format!("Data for ID: {id}")});
        return Some(json!({"uri": uri, "mimeType": "application/json", "text": data.to_string()}));
    }
    match uri {
        "test://static-text" => Some(
            json!({"uri": uri, "mimeType": "text/plain", "text": "This is the content of the static text resource."}),
        ),
        "test://static-binary" => Some(json!({"uri": uri, "mimeType": "image/png", "blob": PNG})),
        "test://watched-resource" => Some(json!({"uri": uri, "mimeType": "text/plain", "text": "Watched"})),
        _ => None,
    }
}
