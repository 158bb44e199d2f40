//! The process that runs a cluster's programs. As root it is the first process of a namespace:
//! when it ends, for whatever reason, the kernel ends all the others.
//!
//! It writes what happens to standard output, one event a line, and reads commands from standard
//! input: `stop NAME` (at once, without a chance to say goodbye), `start NAME`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitOptions};

use crate::{
    Start, components,
    components::Component,
    image,
    layout::{Error, Files, Level, NODE, Network, attempt, output, program},
    pki,
};

/// How long a part may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// Tells an event to whoever started this.
fn tell(event: &str) {
    // Nobody may listen any more.
    let _ = writeln!(std::io::stdout(), "{event}").and_then(|()| std::io::stdout().flush());
}

/// Whether standard input ended: whoever wanted the cluster wants it no more.
static UNWANTED: AtomicBool = AtomicBool::new(false);

struct Supervisor {
    files: Files,
    components: BTreeMap<&'static str, Component>,
    running: BTreeMap<&'static str, Pid>,
    /// The environment of the programs.
    path: String,
}

/// Runs the cluster until standard input ends.
pub fn run(start: &Start) -> Result<(), Error> {
    let files = Files(start.dir.clone());
    let began = Instant::now();
    let commands = read_commands();
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let mut supervisor = Supervisor { files, components: BTreeMap::new(), running: BTreeMap::new(), path };
    let result = supervisor.bring_up(start, &commands).and_then(|()| {
        tell(&format!("ready {:.1} s", began.elapsed().as_secs_f64()));
        supervisor.serve(&commands)
    });
    supervisor.stop_all();
    result
}

fn read_commands() -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
        UNWANTED.store(true, Ordering::Relaxed);
    });
    receiver
}

impl Supervisor {
    fn bring_up(&mut self, start: &Start, commands: &Receiver<String>) -> Result<(), Error> {
        let network = if start.level == Level::Node {
            // The interface is made on the other side, for this one cannot see that network.
            tell("needs-network");
            let index = commands.recv().map_err(|_| "ended before there was a network")?;
            let network = Network::own(index.parse()?);
            node_network(&network)?;
            network
        } else {
            Network::loopback()?
        };
        if !self.files.path("kubeconfig").exists() {
            pki::make(&self.files, &network)?;
        }
        self.start(components::etcd(&self.files, &network))?;
        self.start(components::apiserver(&self.files, &network, start.level == Level::ControlPlane))?;
        if start.level == Level::Node {
            mounts(&self.files)?;
            self.start(components::containerd(&self.files)?)?;
        }
        self.until("the API server", "kube-apiserver", |kubectl| kubectl(&["get", "--raw", "/readyz"]).is_ok())?;
        tell("serving");
        if start.level >= Level::Workloads {
            self.start(components::controller_manager(&self.files, &network))?;
            self.start(components::scheduler(&self.files))?;
            self.fake_nodes(start.fake_nodes)?;
            self.until("the default ServiceAccount", "kube-controller-manager", |kubectl| {
                kubectl(&["get", "serviceaccount", "default"]).is_ok()
            })?;
        }
        if start.level == Level::Node {
            self.node(&network)?;
        }
        Ok(())
    }

    fn fake_nodes(&mut self, count: u32) -> Result<(), Error> {
        if count == 0 {
            return Ok(());
        }
        self.start(components::kwok(&self.files)?)?;
        let nodes: Vec<_> = (0..count).map(components::fake_node).collect();
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": nodes});
        let file = self.files.write("fake-nodes.json", list.to_string())?;
        self.kubectl(&["apply", "-f", &file])?;
        self.until("the nodes of kwok", "kwok", |kubectl| {
            kubectl(&["wait", "node", "--selector=type=kwok", "--for=condition=Ready", "--timeout=1s"]).is_ok()
        })
    }

    fn node(&mut self, network: &Network) -> Result<(), Error> {
        let objects = self.files.write("node.yaml", components::node_objects(network))?;
        self.kubectl(&["apply", "-f", &objects])?;
        components::cni(&self.files, network)?;
        self.until_containerd()?;
        for (image, name) in
            [(components::PAUSE_IMAGE, "pause"), (components::DNS_IMAGE, "coredns"), (components::PROBE_IMAGE, "probe")]
        {
            let archive = self.files.write("image.tar", image::archive(image, name, &program(name)?)?)?;
            image::import(&self.files, &archive, Stdio::null())?;
        }
        std::fs::remove_file(self.files.path("image.tar"))?;
        let cgroup = crate::outside::cgroup_name(network.index);
        self.start(components::kubelet(&self.files, network, &format!("/{cgroup}"))?)?;
        self.start(components::proxy(&self.files, network)?)?;
        self.start(components::network_policies(&self.files))?;
        self.until("the node", "kubelet", |kubectl| {
            kubectl(&["wait", "node", NODE, "--for=condition=Ready", "--timeout=1s"]).is_ok()
        })?;
        self.until("the network policies", "network-policies", |_| {
            attempt("iptables", &["-w", "-t", "mangle", "-S", crate::network_policy::CHAIN])
                .is_ok_and(|o| o.status.success())
        })?;
        self.until("the name server", "kubelet", |kubectl| {
            let available = ["wait", "-n", "kube-system", "deployment/coredns", "--for=condition=Available"];
            kubectl(&[&available[..], &["--timeout=1s"]].concat()).is_ok()
        })
    }

    fn until_containerd(&mut self) -> Result<(), Error> {
        let socket = self.files.containerd();
        self.until("containerd", "containerd", |_| {
            attempt("ctr", &["--address", &socket, "version"]).is_ok_and(|o| o.status.success())
        })
    }

    /// Runs kubectl as the administrator.
    fn kubectl(&self, args: &[&str]) -> Result<String, Error> {
        let kubeconfig = self.files.text("kubeconfig");
        output("kubectl", &[&["--kubeconfig", &kubeconfig], args].concat())
    }

    /// Waits for a part, as long as the program that it depends on runs.
    fn until(
        &mut self,
        what: &str,
        depends_on: &'static str,
        mut check: impl FnMut(&dyn Fn(&[&str]) -> Result<String, Error>) -> bool,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if check(&|args| self.kubectl(args)) {
                return Ok(());
            }
            if UNWANTED.load(Ordering::Relaxed) {
                return Err(format!("ended before {what} was ready").into());
            }
            self.reap();
            let ended = !self.running.contains_key(depends_on);
            if ended || Instant::now() > deadline {
                let how = if ended { "ended" } else { "took too long" };
                let log = self.files.tail(depends_on);
                return Err(format!("{what} did not become ready: {depends_on} {how}\n{log}").into());
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    fn start(&mut self, component: Component) -> Result<(), Error> {
        let name = component.name;
        self.components.insert(name, component);
        self.start_again(name)
    }

    fn start_again(&mut self, name: &'static str) -> Result<(), Error> {
        let component = &self.components[name];
        let executable = if name == "network-policies" { std::env::current_exe()? } else { program(name)? };
        let logs = self.files.path("logs");
        std::fs::create_dir_all(&logs)?;
        let log = File::options().create(true).append(true).open(logs.join(format!("{name}.log")))?;
        let home = self.files.path("home");
        std::fs::create_dir_all(&home)?;
        let child = Command::new(executable)
            .args(&component.args)
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", home)
            .env("RUST_LOG", "info")
            .current_dir(&self.files.0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|e| format!("{name} does not start: {e}"))?;
        // It is waited for in `reap`, with all the others.
        self.running.insert(name, Pid::from_child(&child));
        Ok(())
    }

    /// Notes which programs ended, and takes leave of what pods left behind. Only this thread
    /// starts programs, and it never does so while it reaps.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some((name, _)) = self.running.iter().find(|(_, p)| **p == pid) {
                let name = *name;
                self.running.remove(name);
                let how = status.exit_status().map_or("by a signal".to_owned(), |code| format!("with code {code}"));
                tell(&format!("ended {name} {how}"));
            }
        }
    }

    fn serve(&mut self, commands: &Receiver<String>) -> Result<(), Error> {
        loop {
            match commands.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => match self.obey(&line) {
                    Ok(()) => tell(&format!("done {line}")),
                    Err(error) => tell(&format!("failed {line}: {error}")),
                },
                Err(RecvTimeoutError::Timeout) => self.reap(),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn obey(&mut self, line: &str) -> Result<(), Error> {
        let (verb, name) = line.split_once(' ').ok_or("a command and a name are needed")?;
        let name = *self.components.keys().find(|k| **k == name).ok_or_else(|| format!("there is no {name}"))?;
        self.reap();
        match (verb, self.running.get(name)) {
            ("stop", Some(pid)) => {
                rustix::process::kill_process_group(*pid, Signal::KILL)?;
                let deadline = Instant::now() + PATIENCE;
                while self.running.contains_key(name) && Instant::now() < deadline {
                    self.reap();
                    std::thread::park_timeout(Duration::from_millis(5));
                }
                Ok(())
            }
            ("start", None) => self.start_again(name),
            ("stop" | "start", _) => Err("it is so already".into()),
            _ => Err("the commands are stop and start".into()),
        }
    }

    /// Ends what runs. In a namespace the kernel does the rest.
    fn stop_all(&mut self) {
        for pid in self.running.values() {
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(*pid, Signal::KILL);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.running.is_empty() && Instant::now() < deadline {
            while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
                self.running.retain(|_, p| *p != pid);
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Addresses and routes in the namespace.
fn node_network(network: &Network) -> Result<(), Error> {
    output("ip", &["link", "set", "lo", "up"])?;
    output("ip", &["address", "add", &format!("{}/30", network.address), "dev", "eth0"])?;
    output("ip", &["link", "set", "eth0", "up"])?;
    output("ip", &["route", "add", "default", "via", &network.host()])?;
    for (file, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0")] {
        std::fs::write(Path::new("/proc/sys").join(file), value)?;
    }
    Ok(())
}

/// Mounts that only the cluster sees: the directories that the node's programs insist on, and the
/// kernel settings that the kubelet would otherwise change for the whole machine.
fn mounts(files: &Files) -> Result<(), Error> {
    for directory in ["/run", "/var/log", "/var/lib/kubelet", "/var/lib/cni"] {
        std::fs::create_dir_all(directory)?;
        output("mount", &["-t", "tmpfs", "tmpfs", directory])?;
    }
    let settings = [
        ("vm/overcommit_memory", "1"),
        ("vm/panic_on_oom", "0"),
        ("kernel/panic", "10"),
        ("kernel/panic_on_oops", "1"),
        ("kernel/keys/root_maxkeys", "1000000"),
        ("kernel/keys/root_maxbytes", "25000000"),
    ];
    for (setting, value) in settings {
        let file = files.write(&format!("sysctl/{setting}"), value)?;
        output("mount", &["--bind", &file, &format!("/proc/sys/{setting}")])?;
    }
    Ok(())
}
