//! An MCP server with everything that the protocol's conformance suite asks a server for, in both
//! eras, over HTTP and standard streams. What it offers is what the suite's scenarios describe.
//!
//! `mcp-conformance-fixture [stdio|http] [--era legacy|modern|both] [--port N]`

#![expect(deprecated, reason = "the legacy era has what rmcp will drop one day")]

mod content;
mod rounds;

use std::{borrow::Cow, sync::Arc, time::Duration};

use axum::Router;
use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt,
    model::{
        CallToolRequestParams, CallToolResponse, CompleteRequestParams, CompleteResult, ErrorCode,
        GetPromptRequestParams, GetPromptResponse, InitializeRequestParams, InitializeResult, ListPromptsResult,
        ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, PaginatedRequestParams, ProtocolVersion,
        ReadResourceRequestParams, ReadResourceResponse, ServerConfig, ServerNotification, ServerRequest,
        SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams,
    },
    service::{Peer, RequestContext, SubscriptionContext},
    transport::{
        StreamableHttpServerConfig, StreamableHttpService, streamable_http_server::session::local::LocalSessionManager,
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// What changed, for those who listen.
#[derive(Clone, Debug)]
enum Change {
    Tools,
    Prompts,
    Resource(String),
}

#[derive(Clone)]
struct Fixture {
    versions: Arc<[ProtocolVersion]>,
    changes: broadcast::Sender<Change>,
}

/// A value of the protocol from its JSON.
fn made<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

/// A result from its JSON. Legacy clients get it without the mark, which rmcp takes off again.
fn complete<T: DeserializeOwned>(mut value: Value) -> T {
    value["resultType"] = "complete".into();
    made(value)
}

fn invalid(message: impl Into<Cow<'static, str>>, data: Option<Value>) -> ErrorData {
    ErrorData::invalid_params(message, data)
}

fn is_modern(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|v| v.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
}

async fn notify(peer: &Peer<RoleServer>, method: &str, params: Value) {
    let notification: ServerNotification = made(json!({"method": method, "params": params}));
    // A client that is gone needs no news.
    let _ = peer.send_notification(notification).await;
}

/// Asks the client; its answer, or why there is none.
async fn ask(context: &RequestContext<RoleServer>, method: &str, params: Value) -> Result<Value, String> {
    let request: ServerRequest = made(json!({"method": method, "params": params}));
    let answer = context.peer.send_request(request).await.map_err(|error| error.to_string())?;
    serde_json::to_value(answer).map_err(|error| error.to_string())
}

fn text(text: impl Into<String>) -> Value {
    json!({"content": [{"type": "text", "text": text.into()}]})
}

fn failed(message: impl Into<String>) -> Value {
    let mut result = text(message);
    result["isError"] = true.into();
    result
}

impl Fixture {
    fn change(&self, change: Change) {
        // Nobody may be listening.
        let _ = self.changes.send(change);
    }

    async fn tool(
        &self,
        request: CallToolRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<Value, ErrorData> {
        let arguments = Value::Object(request.arguments.clone().unwrap_or_default());
        if let Some(result) = content::tool(&request.name) {
            return Ok(result);
        }
        match &*request.name {
            "echo" => Ok(text(arguments["text"].as_str().unwrap_or_default())),
            "test_tool_with_progress" => {
                for progress in [0, 50, 100] {
                    if let Some(token) = context.meta.get_progress_token() {
                        let params = json!({"progressToken": token, "progress": progress, "total": 100});
                        notify(&context.peer, "notifications/progress", params).await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(text("Progress complete"))
            }
            name @ ("test_tool_with_logging" | "test_logging_tool") => {
                for said in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
                    if !is_modern(context) || context.meta.log_level().is_some() {
                        notify(&context.peer, "notifications/message", json!({"level": "info", "data": said})).await;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok(text(format!("{name} is done")))
            }
            "test_trigger_tool_change" => {
                self.change(Change::Tools);
                Ok(text("The tools changed"))
            }
            "test_trigger_prompt_change" => {
                self.change(Change::Prompts);
                Ok(text("The prompts changed"))
            }
            "touch" => {
                self.change(Change::Resource(arguments["uri"].as_str().unwrap_or_default().into()));
                Ok(text("The resource changed"))
            }
            "test_reconnection" => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok(text("Reconnection test completed"))
            }
            "sleep" => {
                let time = Duration::from_millis(arguments["ms"].as_u64().unwrap_or_default());
                tokio::select! {
                    () = tokio::time::sleep(time) => Ok(text("slept")),
                    () = context.ct.cancelled() => {
                        self.change(Change::Resource("test://cancelled".into()));
                        Ok(text("woken"))
                    }
                }
            }
            name if name.starts_with("test_input_required")
                || name == "test_missing_capability"
                || name == "test_streaming_elicitation" && is_modern(context) =>
            {
                rounds::tool(name, &request, context)
            }
            name => match content::question(name, &arguments) {
                Some((method, params, prefix)) if is_modern(context) => {
                    let answers = request.input_responses.as_ref();
                    Ok(match answers.and_then(|answers| answers.get("question")) {
                        Some(answer) => text(format!("{prefix} {}", content::answer(method, answer))),
                        None => json!({
                            "resultType": "input_required",
                            "inputRequests": {"question": {"method": method, "params": params}},
                        }),
                    })
                }
                Some((method, params, prefix)) => Ok(match ask(context, method, params).await {
                    Ok(answer) => text(format!("{prefix} {}", content::answer(method, &answer))),
                    Err(error) => failed(format!("The client did not answer: {error}")),
                }),
                None => Err(invalid(format!("Unknown tool: {name}"), None)),
            },
        }
    }
}

impl ServerHandler for Fixture {
    fn get_info(&self) -> ServerConfig {
        made(json!({
            "protocolVersion": "2025-11-25",
            "capabilities": {
                "tools": {"listChanged": true}, "prompts": {"listChanged": true},
                "resources": {"subscribe": true, "listChanged": true}, "completions": {}, "logging": {},
            },
            "serverInfo": {"name": "mcp-conformance-fixture", "version": "1.0.0"},
            "instructions": "For tests",
        }))
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Owned(self.versions.to_vec())
    }

    fn negotiate_initialize(&self, request: &InitializeRequestParams) -> Result<InitializeResult, ErrorData> {
        let legacy: Vec<&ProtocolVersion> =
            self.versions.iter().filter(|v| v.as_str() < ProtocolVersion::V_2026_07_28.as_str()).collect();
        let Some(newest) = legacy.last() else {
            return Err(ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "initialize", None));
        };
        let mut info = self.get_info();
        let asked = legacy.iter().find(|v| **v == &request.protocol_version);
        info.protocol_version = ProtocolVersion::clone(asked.unwrap_or(newest));
        Ok(info)
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(complete(json!({"tools": content::tools()})))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        content::tools().into_iter().find(|tool| tool["name"] == name).map(made)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let result = self.tool(request, &context).await?;
        Ok(match result["resultType"].as_str() {
            Some("input_required") => CallToolResponse::InputRequired(made(result)),
            _ => CallToolResponse::Complete(complete(result)),
        })
    }

    async fn list_prompts(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(complete(json!({"prompts": content::prompts()})))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        if request.name == "test_input_required_result_prompt" {
            return Ok(match rounds::prompt(request.input_responses.as_ref()) {
                Ok(result) => GetPromptResponse::Complete(complete(result)),
                Err(question) => GetPromptResponse::InputRequired(made(question)),
            });
        }
        let result = content::prompt(&request.name, &arguments);
        result
            .map(|result| GetPromptResponse::Complete(complete(result)))
            .ok_or_else(|| invalid(format!("Unknown prompt: {}", request.name), None))
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(complete(json!({"resources": content::resources()})))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(complete(json!({"resourceTemplates": [{
            "uriTemplate": "test://template/{id}/data", "name": "Template",
            "description": "A resource for each id", "mimeType": "application/json",
        }]})))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        match content::resource(&request.uri) {
            Some(contents) => Ok(ReadResourceResponse::Complete(complete(json!({"contents": [contents]})))),
            None => Err(ErrorData::resource_not_found("Resource not found", Some(json!({"uri": request.uri})))),
        }
    }

    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let mut changes = self.changes.subscribe();
        tokio::spawn(async move {
            while let Ok(change) = changes.recv().await {
                if matches!(change, Change::Resource(uri) if uri == request.uri) {
                    notify(&context.peer, "notifications/resources/updated", json!({"uri": request.uri})).await;
                }
            }
        });
        Ok(())
    }

    async fn unsubscribe(
        &self,
        _request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn set_level(
        &self,
        _request: SetLevelRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let values: Vec<&str> =
            ["paris", "park", "party"].into_iter().filter(|v| v.starts_with(&request.argument.value)).collect();
        Ok(complete(json!({"completion": {"values": values, "total": values.len(), "hasMore": false}})))
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.changes.subscribe();
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = context.cancelled() => return Ok(()),
            };
            // What was not asked for is refused by the sink, which is fine.
            let _ = match change {
                Ok(Change::Tools) => context.sink().notify_tool_list_changed().await,
                Ok(Change::Prompts) => context.sink().notify_prompt_list_changed().await,
                Ok(Change::Resource(uri)) => context.sink().notify_resource_updated(uri).await,
                Err(_) => return Ok(()),
            };
        }
    }

    async fn on_initialized(&self, context: rmcp::service::NotificationContext<RoleServer>) {
        let mut changes = self.changes.subscribe();
        tokio::spawn(async move {
            while let Ok(change) = changes.recv().await {
                let done = match change {
                    Change::Tools => context.peer.notify_tool_list_changed().await,
                    Change::Prompts => context.peer.notify_prompt_list_changed().await,
                    Change::Resource(_) => Ok(()),
                };
                if done.is_err() {
                    return;
                }
            }
        });
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1)).cloned();
    let versions = match value("--era").as_deref() {
        Some("legacy") => ProtocolVersion::known_up_to(&ProtocolVersion::V_2025_11_25),
        Some("modern") => &[ProtocolVersion::V_2026_07_28],
        _ => ProtocolVersion::KNOWN_VERSIONS,
    };
    let fixture = Fixture { versions: versions.into(), changes: broadcast::Sender::new(64) };
    if !args.iter().any(|a| a == "http") {
        let service = fixture.serve(rmcp::transport::io::stdio()).await.expect("a client introduces itself");
        service.waiting().await.expect("the client ends the conversation");
        return;
    }
    let port = value("--port").or_else(|| std::env::var("PORT").ok()).unwrap_or_else(|| "0".into());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("the port is free");
    println!("http://{}/mcp", listener.local_addr().expect("a listener has an address"));
    let config = StreamableHttpServerConfig::default().with_allowed_origins([
        "http://localhost:*",
        "http://127.0.0.1:*",
        "http://[::1]:*",
    ]);
    let service =
        StreamableHttpService::new(move || Ok(fixture.clone()), Arc::new(LocalSessionManager::default()), config);
    axum::serve(listener, Router::new().nest_service("/mcp", service)).await.expect("the listener works");
}
