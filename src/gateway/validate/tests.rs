use super::*;

fn mistakes(schema: &Value, arguments: &str) -> Result<Option<String>, Unchecked> {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x"{}}}}}"#,
        if arguments.is_empty() { String::new() } else { format!(r#","arguments":{arguments}"#) }
    );
    Schema::compile(schema)?.mistakes(&Message::parse(body.as_bytes()).unwrap())
}

#[test]
fn mistakes_are_told_with_their_place_and_without_values() {
    let schema = json!({
        "type": "object",
        "properties": {"at": {"type": "object", "properties": {"x": {"type": "number"}, "y": {"enum": ["a", "b"]}}}},
        "required": ["at"],
        "additionalProperties": false,
    });
    assert_eq!(mistakes(&schema, r#"{"at":{"x":1.5,"y":"a"}}"#), Ok(None));
    let told = mistakes(&schema, r#"{"at":{"x":"a secret","y":"c"}}"#).unwrap().unwrap();
    assert!(told.contains("/at/x: ") && told.contains("number") && told.contains("/at/y: "), "{told}");
    assert!(!told.contains("a secret"), "{told}");
    let told = mistakes(&schema, "").unwrap().unwrap();
    assert!(told.contains("the arguments: ") && told.contains("\"at\" is a required property"), "{told}");
    let told = mistakes(&schema, r#"{"at":{},"more":1}"#).unwrap().unwrap();
    assert!(told.contains("more"), "{told}");
    let told = mistakes(&json!({"items": {"type": "null"}}), "[1,2,3,4,5,6,7]").unwrap().unwrap();
    assert!(told.ends_with("; and more") && told.matches("; ").count() == 5, "{told}");
}

#[test]
fn no_schema_can_do_harm() {
    assert_eq!(mistakes(&json!({"type": "nothing"}), "{}"), Err(Unchecked::InvalidSchema));
    assert_eq!(mistakes(&json!({"pattern": "("}), "{}"), Err(Unchecked::InvalidSchema));
    let hungry = json!({"properties": {"a": {"pattern": "((a{0,100}){0,100}){0,100}"}}});
    assert_eq!(mistakes(&hungry, "{}"), Err(Unchecked::InvalidSchema), "a pattern that would take much memory");
    assert_eq!(mistakes(&json!({"$ref": "#"}), "{}"), Err(Unchecked::TooCostly));
    assert_eq!(mistakes(&json!({"$ref": "file:///etc/passwd"}), "{}"), Err(Unchecked::TooCostly));
    assert_eq!(mistakes(&json!({"$schema": "https://example.com/mine"}), "{}"), Err(Unchecked::InvalidSchema));
    // A pattern that takes others ages.
    let slow = json!({"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}});
    let text = format!(r#"{{"a":"{}!"}}"#, "a".repeat(5_000));
    let began = Instant::now();
    assert!(mistakes(&slow, &text).unwrap().is_some());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn how_it_is_told_depends_on_the_version() {
    let call = |version: Option<&str>| {
        let mut parts = Request::new(()).into_parts().0;
        if let Some(version) = version {
            parts.headers.insert(VERSION, version.parse().unwrap());
        }
        let route = Route {
            server: ServerKey::new("default", "a"),
            upstream: Upstream::Http,
            tools: ToolFilter::default(),
            not_ready: None,
            has_failed: false,
            split: None,
            validates_arguments: true,
            notice: None,
        };
        Call {
            parts,
            body: bytes::Bytes::new(),
            route: Arc::new(route),
            principal: Principal::default(),
            revision: None,
            trail: Arc::default(),
            patience: LIST,
        }
    };
    let told = |version, era| refusal(&call(version), era, "x").arguments;
    assert_eq!(told(None, Era::Legacy), Some(Told::Error));
    assert_eq!(told(Some("2025-06-18"), Era::Legacy), Some(Told::Error));
    assert_eq!(told(Some("2025-11-25"), Era::Legacy), Some(Told::ToolResult { modern: false }));
    assert_eq!(told(Some("2026-07-28"), Era::Modern), Some(Told::ToolResult { modern: true }));
}
