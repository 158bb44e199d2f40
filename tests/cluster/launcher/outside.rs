//! The process that a person or a test starts: it makes what must be made on the machine's side
//! (the cable to the cluster's network, the control group), and removes it when the cluster ends.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin},
    signal::unix::{SignalKind, signal},
};

use crate::{
    Start,
    components::PROBE_IMAGE,
    image,
    layout::{Error, Files, Level, Network, attempt, output, program},
};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Control group of a cluster's pods.
pub fn cgroup_name(index: u8) -> String {
    format!("perch-test-{index}")
}

/// Starts a cluster in the background and waits until it is ready.
pub fn up(start: &Start) -> Result<(), Error> {
    if let Some(pid) = start.dir.canonicalize().ok().and_then(|dir| running(&Files(dir))) {
        eprintln!("the cluster runs already (process {})", pid.as_raw_nonzero());
        println!("{}", Files(start.dir.canonicalize()?).text("kubeconfig"));
        return Ok(());
    }
    let files = prepare(start)?;
    let log = std::fs::File::create(files.path("up.log"))?;
    // In a session of its own, so that it outlives the terminal.
    let mut child = Command::new(program("setsid")?)
        .arg(std::env::current_exe()?)
        .args(["run", "--detached"])
        .args(arguments(start, &files))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    loop {
        let said = std::fs::read_to_string(files.path("up.log"))?;
        if let Some(ready) = said.lines().find(|l| l.starts_with("ready ")) {
            eprintln!("the cluster is {ready}");
            println!("{}", files.text("kubeconfig"));
            return Ok(());
        }
        if child.try_wait()?.is_some() {
            return Err(std::fs::read_to_string(files.path("up.log"))?.into());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Ends a cluster that `up` started, and removes its directory.
pub fn down(dir: &Path) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    let files = Files(dir.canonicalize()?);
    if let Some(pid) = running(&files) {
        rustix::process::kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while running(&files).is_some() {
            if Instant::now() > deadline {
                return Err(format!("the cluster's process {pid:?} does not end").into());
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
    if !files.path("perch-test-cluster").exists() {
        return Err(format!("{} is not the directory of a cluster: it stays", files.0.display()).into());
    }
    // What a cluster that was killed could not clean up.
    if let Some(index) = std::fs::read_to_string(files.path("index")).ok().and_then(|i| i.parse().ok()) {
        remove_cgroup(index)?;
    }
    std::fs::remove_dir_all(&files.0)?;
    Ok(())
}

/// Puts an image on the node.
pub fn load_image(dir: &Path, image: &str) -> Result<(), Error> {
    let files = Files(dir.canonicalize()?);
    if Path::new(image).is_file() {
        return image::import(&files, image, Stdio::null());
    }
    let mut save = Command::new(program("docker")?).args(["save", image]).stdout(Stdio::piped()).spawn()?;
    let archive = save.stdout.take().ok_or("docker has no output")?;
    let imported = image::import(&files, "-", archive.into());
    if !save.wait()?.success() {
        return Err(format!("docker save {image} failed").into());
    }
    imported
}

/// Writes the image of the probe to standard output.
pub fn probe_image() -> Result<(), Error> {
    let archive = image::archive(PROBE_IMAGE, "probe", &program("probe")?)?;
    Ok(std::io::stdout().write_all(&archive)?)
}

/// The process that runs the cluster of a directory.
fn running(files: &Files) -> Option<Pid> {
    let pid = std::fs::read_to_string(files.path("pid")).ok()?;
    // The same number may be another program by now.
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if name.trim() != "test-cluster" {
        return None;
    }
    Pid::from_raw(pid.parse().ok()?)
}

fn arguments(start: &Start, files: &Files) -> Vec<String> {
    let mut arguments = vec![
        format!("--level={}", start.level.name()),
        format!("--dir={}", files.0.display()),
        format!("--fake-nodes={}", start.fake_nodes),
    ];
    if start.temporary {
        arguments.push("--temporary".into());
    }
    arguments
}

/// Makes the directory, and checks what can be checked before anything starts.
fn prepare(start: &Start) -> Result<Files, Error> {
    if start.level == Level::Node && !rustix::process::getuid().is_root() {
        return Err("the level node needs root, for namespaces and containerd: run as root, or give the tests \
                    another cluster (USE_EXISTING_CLUSTER=true and KUBECONFIG)"
            .into());
    }
    std::fs::create_dir_all(&start.dir)?;
    let files = Files(start.dir.canonicalize()?);
    if let Some(pid) = running(&files) {
        return Err(format!("a cluster runs in {} already (process {pid:?})", files.0.display()).into());
    }
    let marker = files.path("perch-test-cluster");
    if !marker.exists() && std::fs::read_dir(&files.0)?.next().is_some() {
        return Err(format!("{} has other files: choose an empty directory", files.0.display()).into());
    }
    std::fs::write(marker, "")?;
    Ok(files)
}

/// Runs a cluster until standard input ends or a signal comes.
pub fn run(start: Start) -> Result<(), Error> {
    let files = prepare(&start)?;
    std::fs::write(files.path("pid"), std::process::id().to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut cluster = Outside { files: files.clone(), index: None };
    let result = runtime.block_on(cluster.run(&start));
    // Standard input may still be read by a thread of the runtime.
    runtime.shutdown_background();
    cluster.clean_up()?;
    std::fs::remove_file(files.path("pid"))?;
    if start.temporary && std::env::var_os("PERCH_TEST_KEEP_CLUSTER").is_none() {
        std::fs::remove_dir_all(&files.0)?;
    }
    result
}

struct Outside {
    files: Files,
    index: Option<u8>,
}

impl Outside {
    async fn run(&mut self, start: &Start) -> Result<(), Error> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut child = tokio::process::Command::from(self.inside(start)?).spawn()?;
        let mut input = child.stdin.take().ok_or("no input")?;
        let mut events = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let mut commands = BufReader::new(tokio::io::stdin()).lines();
        // A person's terminal gives no commands; what they type is not for the cluster.
        let listening = !start.detached && !std::io::stdin().is_terminal();
        let mut asked = false;
        loop {
            tokio::select! {
                event = events.next_line() => match event? {
                    Some(event) if event == "needs-network" => self.connect(&child, &mut input).await?,
                    Some(event) => {
                        // Nobody may listen any more.
                        let _ = writeln!(std::io::stdout(), "{event}");
                        let _ = std::io::stdout().flush();
                    }
                    None => break,
                },
                command = commands.next_line(), if listening => {
                    let Some(command) = command? else { asked = true; break };
                    input.write_all(format!("{command}\n").as_bytes()).await?;
                }
                _ = terminate.recv() => { asked = true; break }
                _ = interrupt.recv() => { asked = true; break }
            }
        }
        drop(input);
        let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
        if ended.is_err() {
            child.kill().await?;
        }
        match ended {
            Ok(status) if !asked => Err(format!("the cluster ended by itself: {}", status?).into()),
            _ => Ok(()),
        }
    }

    /// The command that runs the cluster's programs. Signals of the terminal do not reach it.
    fn inside(&self, start: &Start) -> Result<Command, Error> {
        let this = std::env::current_exe()?;
        let mut command = if rustix::process::getuid().is_root() {
            let mut command = Command::new(program("unshare")?);
            command.args(["--fork", "--kill-child=KILL", "--pid", "--mount", "--mount-proc"]);
            if start.level == Level::Node {
                command.arg("--net");
            }
            command.arg(this);
            command
        } else {
            Command::new(this)
        };
        command.arg("inside").args(arguments(start, &self.files)).stdin(Stdio::piped()).stdout(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(command)
    }

    /// Makes the cable between this machine and the cluster's network, and tells its number. The
    /// name of the interface is what two clusters cannot have both.
    async fn connect(&mut self, child: &Child, input: &mut ChildStdin) -> Result<(), Error> {
        let pid = child.id().ok_or("the cluster ended")?.to_string();
        let index = (0..=u8::MAX).find(|index| {
            let name = link(*index);
            let add = ["link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &pid];
            attempt("ip", &add).is_ok_and(|o| o.status.success())
        });
        let index = index.ok_or("no interface can be made: `ip link add` always fails")?;
        self.index = Some(index);
        self.files.write("index", index.to_string())?;
        let (name, network) = (link(index), Network::own(index));
        output("ip", &["address", "add", &format!("{}/30", network.host()), "dev", &name])?;
        output("ip", &["link", "set", &name, "up"])?;
        for range in [network.pods(), network.services()] {
            output("ip", &["route", "add", &range, "via", &network.address, "dev", &name])?;
        }
        make_cgroup(index)?;
        input.write_all(format!("{index}\n").as_bytes()).await?;
        Ok(())
    }

    fn clean_up(&mut self) -> Result<(), Error> {
        let Some(index) = self.index.take() else { return Ok(()) };
        // The kernel removes it with the namespace, a moment later.
        let _ = attempt("ip", &["link", "delete", &link(index)]);
        // Only if the cluster was the first to have them.
        for directory in ["/var/lib/kubelet", "/var/lib/cni"] {
            let _ = std::fs::remove_dir(directory);
        }
        remove_cgroup(index)
    }
}

fn link(index: u8) -> String {
    format!("perch-test{index}")
}

/// The directories in which a control group is made: one for each hierarchy of version 1, or the
/// one of version 2.
fn hierarchies() -> Result<Vec<PathBuf>, Error> {
    let root = PathBuf::from(CGROUPS);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        if path.join("cgroup.procs").exists() && !path.is_symlink() && !path.ends_with("unified") {
            found.push(path);
        }
    }
    Ok(found)
}

fn make_cgroup(index: u8) -> Result<(), Error> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(cgroup_name(index));
        std::fs::create_dir_all(&group)?;
        // In version 1 a group begins without processors and memory nodes.
        if hierarchy.ends_with("cpuset") {
            for setting in ["cpuset.cpus", "cpuset.mems"] {
                std::fs::write(group.join(setting), std::fs::read(hierarchy.join(setting))?)?;
            }
        }
        // In version 2 children have the controllers that their parent hands down.
        if hierarchy.join("cgroup.subtree_control").exists() {
            for controller in ["cpuset", "cpu", "io", "memory", "pids", "hugetlb"] {
                for parent in [&hierarchy, &group] {
                    // Not every kernel has all of them; the kubelet says which it misses.
                    let _ = std::fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
        }
    }
    Ok(())
}

fn remove_cgroup(index: u8) -> Result<(), Error> {
    // Where both versions are mounted, runc makes groups in the second as well.
    for hierarchy in hierarchies()?.into_iter().chain([Path::new(CGROUPS).join("unified")]) {
        let group = hierarchy.join(cgroup_name(index));
        if group.exists() {
            remove_group(&group)?;
        }
    }
    Ok(())
}

fn remove_group(group: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    std::fs::remove_dir(group).map_err(|e| format!("cannot remove the control group {}: {e}", group.display()).into())
}
