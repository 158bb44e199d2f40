//! What both servers are asked.

use serde_json::{Value, json};

use crate::run::Answer;

/// A list of steps in a namespace of its own.
///
/// In paths, bodies and arguments `$(ns)` is that namespace, and `$(word)` what [`Case::keep`] kept
/// from an answer of the same server.
pub struct Case {
    /// Tells it apart; also the name of its namespace.
    pub name: String,
    /// In their order.
    pub steps: Vec<Step>,
}

/// One thing to do, and what of its outcome counts.
pub struct Step {
    /// What is done.
    pub action: Action,
    /// Takes out of the outcome what is not compared, for all servers alike.
    pub project: Option<fn(&mut Value)>,
    /// Names for values of the answer, with JSON pointers into its body.
    pub keep: Vec<(&'static str, &'static str)>,
}

/// What is done.
pub enum Action {
    /// One request.
    Call(Call),
    /// The same request again and again, until the answer is as wished or time is up.
    Eventually(Call, fn(&Answer) -> bool),
    /// A watch: its events until one about this object, the end of the stream, or time is up.
    Watch(Call, &'static str),
    /// kubectl with arguments and standard input.
    Kubectl(Vec<String>, String),
}

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// Resources that a path may begin with, and where they are.
const PLACES: &[(&str, &str)] = &[
    ("mcpservers", "/apis/perch.dev/v1alpha1/namespaces/$(ns)/"),
    ("canaryreleases", "/apis/perch.dev/v1alpha1/namespaces/$(ns)/"),
    ("secrets", "/api/v1/namespaces/$(ns)/"),
    ("configmaps", "/api/v1/namespaces/$(ns)/"),
    ("events", "/api/v1/namespaces/$(ns)/"),
    ("leases", "/apis/coordination.k8s.io/v1/namespaces/$(ns)/"),
    ("controllerrevisions", "/apis/apps/v1/namespaces/$(ns)/"),
    ("namespaces", "/api/v1/"),
];

fn place(path: &str) -> String {
    let resource = path.split(['/', '?']).next().unwrap();
    let place = PLACES.iter().find(|(name, _)| *name == resource);
    place.map_or_else(|| path.to_owned(), |(_, base)| format!("{base}{path}"))
}

/// A case without steps.
pub fn case(name: &str) -> Case {
    Case { name: name.to_owned(), steps: Vec::new() }
}

impl Case {
    fn step(mut self, action: Action) -> Self {
        self.steps.push(Step { action, project: None, keep: Vec::new() });
        self
    }

    /// Any request.
    pub fn send(self, method: &'static str, path: &str, content_type: &str, body: &str) -> Self {
        let headers = if content_type.is_empty() {
            Vec::new()
        } else {
            vec![("Content-Type".to_owned(), content_type.to_owned())]
        };
        self.step(Action::Call(Call { method, path: place(path), headers, body: body.to_owned() }))
    }

    /// Adds a header to the last step.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        match &mut self.steps.last_mut().unwrap().action {
            Action::Call(call) | Action::Eventually(call, _) | Action::Watch(call, _) => {
                call.headers.push((name.to_owned(), value.to_owned()));
            }
            Action::Kubectl(..) => panic!("kubectl has no headers"),
        }
        self
    }

    /// Leaves something out of the outcome of the last step, for all servers alike.
    pub fn only(mut self, project: fn(&mut Value)) -> Self {
        self.steps.last_mut().unwrap().project = Some(project);
        self
    }

    /// Keeps a value of the last answer under a name.
    pub fn keep(mut self, name: &'static str, pointer: &'static str) -> Self {
        self.steps.last_mut().unwrap().keep.push((name, pointer));
        self
    }

    pub fn get(self, path: &str) -> Self {
        self.send("GET", path, "", "")
    }

    pub fn post(self, path: &str, body: &Value) -> Self {
        self.send("POST", path, "application/json", &body.to_string())
    }

    pub fn put(self, path: &str, body: &Value) -> Self {
        self.send("PUT", path, "application/json", &body.to_string())
    }

    pub fn merge(self, path: &str, body: &Value) -> Self {
        self.send("PATCH", path, "application/merge-patch+json", &body.to_string())
    }

    pub fn json_patch(self, path: &str, body: &Value) -> Self {
        self.send("PATCH", path, "application/json-patch+json", &body.to_string())
    }

    pub fn strategic(self, path: &str, body: &Value) -> Self {
        self.send("PATCH", path, "application/strategic-merge-patch+json", &body.to_string())
    }

    pub fn apply(self, path: &str, body: &Value) -> Self {
        self.send("PATCH", path, "application/apply-patch+yaml", &body.to_string())
    }

    pub fn delete(self, path: &str) -> Self {
        self.send("DELETE", path, "", "")
    }

    pub fn delete_with(self, path: &str, options: &Value) -> Self {
        self.send("DELETE", path, "application/json", &options.to_string())
    }

    /// GET until the answer is as wished.
    pub fn until(self, path: &str, wished: fn(&Answer) -> bool) -> Self {
        let call = Call { method: "GET", path: place(path), headers: Vec::new(), body: String::new() };
        self.step(Action::Eventually(call, wished))
    }

    /// GET until there is nothing.
    pub fn until_gone(self, path: &str) -> Self {
        self.until(path, |answer| answer.status == 404)
    }

    /// A watch until an event of the object of this name, inclusive. The query is part of the path.
    pub fn watch(self, path: &str, last: &'static str) -> Self {
        let call = Call { method: "GET", path: place(path), headers: Vec::new(), body: String::new() };
        self.step(Action::Watch(call, last))
    }

    pub fn kubectl(self, args: &[&str]) -> Self {
        self.kubectl_with(args, &Value::Null)
    }

    pub fn kubectl_with(self, args: &[&str], stdin: &Value) -> Self {
        let stdin = if stdin.is_null() { String::new() } else { stdin.to_string() };
        self.step(Action::Kubectl(args.iter().map(ToString::to_string).collect(), stdin))
    }
}

impl Step {
    /// What a person calls it.
    pub fn label(&self) -> String {
        match &self.action {
            Action::Call(call) => format!("{} {}", call.method, call.path),
            Action::Eventually(call, _) => format!("{} {} (again and again)", call.method, call.path),
            Action::Watch(call, _) => format!("WATCH {}", call.path),
            Action::Kubectl(args, _) => format!("kubectl {}", args.join(" ")),
        }
    }
}

/// An McpServer.
pub fn server(name: &str, spec: &Value) -> Value {
    object("perch.dev/v1alpha1", "McpServer", name, &json!({"spec": spec}))
}

/// An McpServer that is not there to run.
pub fn plain(name: &str) -> Value {
    server(name, &json!({"image": "example.invalid/x:1"}))
}

/// A ConfigMap.
pub fn config(name: &str, data: &Value) -> Value {
    object("v1", "ConfigMap", name, &json!({"data": data}))
}

/// A Secret.
pub fn secret(name: &str, rest: &Value) -> Value {
    object("v1", "Secret", name, rest)
}

/// Any object.
pub fn object(api_version: &str, kind: &str, name: &str, rest: &Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    merged(&mut object, rest);
    object
}

/// An object with more metadata.
pub fn with(mut object: Value, rest: &Value) -> Value {
    merged(&mut object, rest);
    object
}

fn merged(target: &mut Value, rest: &Value) {
    match (target, rest) {
        (Value::Object(target), Value::Object(rest)) => {
            for (key, value) in rest {
                merged(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, rest) => *target = rest.clone(),
    }
}
