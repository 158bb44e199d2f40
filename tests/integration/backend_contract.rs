//! The contract, for local processes.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use perch::{
    names::ServerKey,
    runtime::{
        Backend,
        process::{Config, Ports, ProcessBackend},
        workload::Program,
    },
};
use rustix::process::{Pid, Signal, getpgid, kill_process};

use crate::{
    backend_contract::{Machine, Place},
    support::fixture,
};

struct Processes {
    place: Place,
}

impl Processes {
    fn config(&self) -> Config {
        Config {
            instance: self.place.instance.clone(),
            state_dir: self.place.dir.clone(),
            launcher: env!("CARGO_BIN_EXE_perch").into(),
            search_path: std::env::var_os("PATH").unwrap(),
            environment: vec![("PATH".into(), std::env::var("PATH").unwrap())],
            installs: tokio::sync::Mutex::default(),
            ports: Ports::default(),
        }
    }

    /// Every process of this machine, or of one server: pid and group.
    fn marked(&self, server: Option<&ServerKey>) -> Vec<(Pid, Pid)> {
        let mut marks = vec![format!("PERCH_INSTANCE={}", self.place.instance)];
        marks.extend(server.map(|s| format!("PERCH_SERVER={s}")));
        let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let variables: BTreeSet<&[u8]> = environment.split(|b| *b == 0).collect();
            let marked = marks.iter().all(|m| variables.contains(m.as_bytes()));
            Some((pid, getpgid(Some(pid)).ok()?)).filter(|_| marked)
        });
        processes.collect()
    }
}

impl Machine for Processes {
    const CONTAINED: bool = false;

    fn new(place: &Place) -> Self {
        Self { place: place.clone() }
    }

    async fn open(&self) -> Arc<dyn Backend> {
        let config = self.config();
        Arc::new(tokio::task::spawn_blocking(|| ProcessBackend::open(config)).await.unwrap())
    }

    fn fixture(&self, args: &[&str]) -> Program {
        Program::Command { command: vec![fixture()], args: args.iter().map(|a| (*a).to_owned()).collect() }
    }

    fn impossible(&self) -> Program {
        Program::Image { image: "x:1".into(), command: Vec::new(), args: Vec::new() }
    }

    fn running(&self, server: &ServerKey) -> BTreeSet<String> {
        // What a server starts in turn is in the group of the server.
        let leaders = self.marked(Some(server)).into_iter().filter(|(pid, group)| pid == group);
        // Neither what ran away from it, nor the launcher that is about to become a server.
        let other = |pid: &Pid| {
            let argv = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            argv.split(|b| *b == 0).any(|a| a == b"sleep" || a == b"internal")
        };
        leaders.filter(|(pid, _)| !other(pid)).map(|(pid, _)| pid.as_raw_nonzero().to_string()).collect()
    }

    fn kill(&self, handle: &str) {
        kill_process(Pid::from_raw(handle.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    }

    fn left(&self, server: &ServerKey) -> Vec<String> {
        let processes = self.marked(Some(server)).into_iter().map(|(pid, _)| format!("process {pid:?}"));
        let dirs = ["logs", "work"].map(|what| self.place.dir.join(what).join(&server.namespace).join(&server.name));
        processes.chain(dirs.iter().filter(|d| d.exists()).map(|d| d.display().to_string())).collect()
    }

    fn exposed(&self, handle: &str) -> String {
        let proc = PathBuf::from("/proc").join(handle);
        ["cmdline", "comm"].map(|f| String::from_utf8_lossy(&fs::read(proc.join(f)).unwrap()).into_owned()).concat()
    }

    async fn end(&self) -> Vec<String> {
        let backend = ProcessBackend::reader(self.config());
        tokio::task::spawn_blocking(move || backend.remove_everything().unwrap()).await.unwrap();
        self.marked(None).into_iter().map(|(pid, _)| format!("process {pid:?}")).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for (pid, _) in self.marked(None) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

backend_contract!(Processes);
