//! The Helm release, and the way to servers through its gateway.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Level},
    proxy,
    support::{self, wait},
};

/// Namespace of the release.
pub const SYSTEM: &str = "perch-system";
/// Namespace of the servers: only pods of the restricted level may run in it.
pub const SERVERS: &str = "mcp";

/// Perch, installed by its chart.
pub struct Release {
    pub cluster: &'static Cluster,
    /// Address and port of the gateway's Service.
    pub gateway: String,
    values: Vec<String>,
}

fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run these tests with `make test`"))
}

impl Release {
    /// `helm install`, and a namespace for servers.
    pub fn install() -> Self {
        let cluster = Cluster::shared(Level::Node);
        let (image, base) = (setting("PERCH_TEST_IMAGE"), setting("PERCH_TEST_BASE_IMAGE"));
        for image in [&image, &base, &setting("PERCH_TEST_FIXTURE_IMAGE")] {
            cluster.load_image(image);
        }
        let (repository, tag) = image.rsplit_once(':').unwrap();
        let host = cluster.host_address().expect("a cluster of our own");
        let (proxy, mirror) = (proxy::connect(&host), proxy::npm_mirror(&host));
        let values = [
            "gateway.access=Anonymous".to_owned(),
            format!("image.repository={repository}"),
            format!("image.tag={tag}"),
            "image.pullPolicy=Never".to_owned(),
            format!("packages.npmBaseImage={base}"),
            format!("packages.pypiBaseImage={base}"),
            "packages.pullPolicy=Never".to_owned(),
            format!("packages.installEnv.PIP_PROXY={proxy}"),
            format!("packages.installEnv.npm_config_registry={mirror}"),
            // The first use of a server is in its status before a test looks whether statuses stand still.
            "operator.extraArgs={--usage-interval=2s}".to_owned(),
        ];
        let mut release = Self { cluster, gateway: String::new(), values: values.to_vec() };
        for (name, labels) in [(SYSTEM, "restricted"), (SERVERS, "restricted")] {
            let labels = json!({"pod-security.kubernetes.io/enforce": labels});
            let namespace =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
            cluster.ok_with(&["apply", "-f", "-"], &namespace.to_string());
        }
        let refused = release.helm(&["install", "perch", "charts/perch", "-n", SYSTEM]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("gateway.access"), "{refused:?}");
        release.install_or_upgrade("install", &[]);
        let service = cluster.ok(&["-n", SYSTEM, "get", "service", "perch-gateway", "-o", "json"]);
        let service: Value = serde_json::from_str(&service).unwrap();
        release.gateway =
            format!("{}:{}", service["spec"]["clusterIP"].as_str().unwrap(), service["spec"]["ports"][0]["port"]);
        release
    }

    /// `helm upgrade` with these values besides its own; those of an earlier upgrade are gone.
    pub fn upgrade(&self, more: &[&str]) {
        self.install_or_upgrade("upgrade", more);
    }

    fn install_or_upgrade(&self, verb: &str, more: &[&str]) {
        let mut args = vec![verb, "perch", "charts/perch", "-n", SYSTEM, "--wait", "--timeout", "180s"];
        for value in self.values.iter().map(String::as_str).chain(more.iter().copied()) {
            args.extend(["--set", value]);
        }
        let output = self.helm(&args);
        if !output.status.success() {
            let pods = self.cluster.kubectl(&["-n", SYSTEM, "describe", "pods"]);
            panic!(
                "helm {verb}: {}\n{}",
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&pods.stdout)
            );
        }
    }

    /// From now on only users with these keys may use the gateway.
    pub fn let_in(&self, keys: &[Value]) {
        let values = json!({"gateway": {"access": "Authenticated", "accessConfig": {"apiKeys": keys}}});
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, values.to_string().as_bytes()).unwrap();
        let args =
            ["upgrade", "perch", "charts/perch", "-n", SYSTEM, "--wait", "--timeout", "180s", "--reuse-values", "-f"];
        let output = self.helm(&[&args[..], &[file.path().to_str().unwrap()]].concat());
        assert!(output.status.success(), "helm upgrade: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs helm.
    fn helm(&self, args: &[&str]) -> Output {
        Command::new(crate::cluster::program("helm"))
            .args(args)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("HELM_CACHE_HOME", "target/helm")
            .env("HELM_CONFIG_HOME", "target/helm")
            .env("HELM_DATA_HOME", "target/helm")
            .output()
            .unwrap()
    }

    /// `helm test`.
    pub fn test(&self) {
        let output = self.helm(&["test", "perch", "-n", SYSTEM, "--timeout", "60s"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// `helm uninstall` leaves the definitions, the servers and their pods.
    pub fn uninstall(&self) {
        let before = self.pods();
        let output = self.helm(&["uninstall", "perch", "-n", SYSTEM, "--wait", "--timeout", "90s"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(self.kubectl(&["get", "mcpservers", "-o", "name"]).contains("mcpserver.perch.dev/everything"));
        assert_eq!(self.pods(), before, "servers run on without Perch");
        let left = self.cluster.ok(&["-n", SYSTEM, "get", "deployments,services", "-o", "name"]);
        assert_eq!(left, "");
        // Without an operator, owner references alone remove what belongs to a server.
        self.kubectl(&["delete", "mcpserver", "time"]);
        wait("the pods of a deleted server to go", || {
            self.kubectl(&["get", "all,networkpolicies", "-l", "perch.dev/server=time", "-o", "name"])
                .is_empty()
                .then_some(())
        });
    }

    /// Names of the servers' pods, but for those that an earlier change is ending.
    fn pods(&self) -> Vec<String> {
        let all: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-o", "json"])).unwrap();
        let stay = all["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        stay.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Runs kubectl in the servers' namespace, which must succeed.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.ok(&[&["-n", SERVERS], args].concat())
    }

    /// Applies an McpServer that runs the fixture.
    pub fn apply(&self, name: &str, spec: &Value) {
        let mut spec = spec.clone();
        if spec.get("image").is_none() && spec.get("package").is_none() {
            spec["image"] = json!(setting("PERCH_TEST_FIXTURE_IMAGE"));
        }
        let object =
            json!({"apiVersion": "perch.dev/v1alpha1", "kind": "McpServer", "metadata": {"name": name}, "spec": spec});
        self.cluster.ok_with(&["-n", SERVERS, "apply", "-f", "-"], &object.to_string());
    }

    /// The status of a server.
    pub fn status(&self, name: &str) -> Value {
        serde_json::from_str::<Value>(&self.kubectl(&["get", "mcpserver", name, "-o", "json"])).unwrap()["status"]
            .take()
    }

    /// Waits until the Ready condition of a server has this reason for its last generation, and
    /// gives its message.
    pub fn until(&self, name: &str, reason: &str) -> String {
        let mut last = Value::Null;
        let found = wait_or(|| {
            let server = self.kubectl(&["get", "mcpserver", name, "-o", "json"]);
            let server: Value = serde_json::from_str(&server).unwrap();
            last = server["status"].clone();
            let ready = last["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")?;
            let current = last["observedGeneration"] == server["metadata"]["generation"];
            (current && ready["reason"] == reason).then(|| ready["message"].as_str().unwrap().to_owned())
        });
        found.unwrap_or_else(|| panic!("{name} is not {reason}: {last:#}"))
    }

    /// Waits for a server to be ready.
    pub fn ready(&self, name: &str) {
        let output = self.cluster.kubectl(&[
            "-n",
            SERVERS,
            "wait",
            "mcpserver",
            name,
            "--for=condition=Ready",
            "--timeout=180s",
        ]);
        assert!(output.status.success(), "{}", self.kubectl(&["describe", "mcpserver,pods"]));
    }

    /// The URL of a server on the gateway's Service. Its namespace may stand before its name.
    pub fn url(&self, name: &str) -> String {
        let (namespace, name) = name.split_once('/').unwrap_or((SERVERS, name));
        format!("http://{}/{namespace}/{name}/mcp", self.gateway)
    }

    /// A request to a server, under the Service's name as pods use it.
    pub fn post(&self, name: &str, session: Option<&str>, body: &Value) -> (u16, Option<String>, String) {
        let host = format!("perch-gateway.{SYSTEM}.svc");
        let headers = [("Mcp-Session-Id", session.unwrap_or_default()), ("Host", host.as_str())];
        support::send("POST", &self.url(name), &headers, &body.to_string())
    }
}

fn wait_or<T>(mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while std::time::Instant::now() < deadline {
        if let Some(found) = check() {
            return Some(found);
        }
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
    None
}

/// A session that was opened before an upgrade goes on after every gateway pod was replaced.
pub fn upgrade_keeps_sessions(release: &Release) {
    let session = crate::traffic::Client::open(release, "http");
    let pods = || {
        release.cluster.ok(&["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=gateway", "-o", "name"])
    };
    let before = pods();
    release.install_or_upgrade("upgrade", &["gateway.podAnnotations.round=two"]);
    wait("the old gateways to go", || {
        let now = pods();
        before.lines().all(|old| !now.contains(old)).then_some(())
    });
    assert_eq!(session.echo("after").as_deref(), Ok("after"));
    assert!(release.kubectl(&["get", "mcpservers"]).contains("True"));
}
