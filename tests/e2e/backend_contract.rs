//! The contract, for containers.

use std::{collections::BTreeSet, sync::Arc};

use perch::{
    names::ServerKey,
    runtime::{
        Backend,
        docker::{Config, DockerBackend},
        workload::Program,
    },
};

use crate::{
    backend_contract::{Machine, Place},
    docker, inspect, setting,
};

struct Engine {
    place: Place,
}

impl Engine {
    fn config(&self) -> Config {
        Config {
            instance: self.place.instance.clone(),
            state_dir: self.place.dir.clone(),
            npm_base: setting("PERCH_TEST_BASE_IMAGE"),
            pypi_base: setting("PERCH_TEST_BASE_IMAGE"),
            host: None,
        }
    }

    fn label(&self) -> String {
        format!("label=perch.dev/instance={}", self.place.instance)
    }

    fn list(&self, what: &[&str], server: Option<&ServerKey>) -> BTreeSet<String> {
        let mut filters = vec!["--filter".to_owned(), self.label()];
        if let Some(ServerKey { namespace, name }) = server {
            let labels = [format!("label=perch.dev/namespace={namespace}"), format!("label=perch.dev/server={name}")];
            filters.extend(labels.into_iter().flat_map(|l| ["--filter".to_owned(), l]));
        }
        let args: Vec<&str> = what.iter().copied().chain(filters.iter().map(String::as_str)).collect();
        docker(&args).lines().map(str::to_owned).collect()
    }
}

impl Machine for Engine {
    const CONTAINED: bool = true;

    fn new(place: &Place) -> Self {
        Self { place: place.clone() }
    }

    async fn open(&self) -> Arc<dyn Backend> {
        DockerBackend::connect(self.config()).await.unwrap()
    }

    fn fixture(&self, args: &[&str]) -> Program {
        Program::Image {
            image: setting("PERCH_TEST_FIXTURE_IMAGE"),
            command: Vec::new(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
        }
    }

    fn impossible(&self) -> Program {
        Program::Command { command: vec!["true".into()], args: Vec::new() }
    }

    fn running(&self, server: &ServerKey) -> BTreeSet<String> {
        self.list(&["ps", "-q", "--no-trunc"], Some(server))
    }

    fn kill(&self, handle: &str) {
        docker(&["kill", handle]);
    }

    fn left(&self, server: &ServerKey) -> Vec<String> {
        let containers = self.list(&["ps", "-aq", "--no-trunc"], Some(server));
        let files = self.place.dir.join("files").join(&server.namespace).join(&server.name);
        let files = files.exists().then(|| files.display().to_string());
        containers.into_iter().map(|id| format!("container {id}")).chain(files).collect()
    }

    fn exposed(&self, handle: &str) -> String {
        let found = inspect(handle);
        // The environment is for the engine's own users, who are root.
        let config = ["Labels", "Cmd", "Entrypoint", "Image"].map(|k| found["Config"][k].to_string()).concat();
        format!("{}{config}{}", found["Name"], docker(&["top", handle, "-eo", "pid,args"]))
    }

    async fn end(&self) -> Vec<String> {
        DockerBackend::reader(self.config()).await.unwrap().remove_everything(true).await.unwrap();
        let kinds = [&["ps", "-aq"][..], &["network", "ls", "-q"], &["volume", "ls", "-q"]];
        kinds.iter().flat_map(|what| self.list(what, None)).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for id in self.list(&["ps", "-aq"], None) {
            // It may be on its way out by itself.
            let _ = std::process::Command::new("docker").args(["rm", "-f", &id]).output();
        }
        for id in self.list(&["network", "ls", "-q"], None) {
            let _ = std::process::Command::new("docker").args(["network", "rm", &id]).output();
        }
    }
}

backend_contract!(Engine);
