//! Processes of an earlier life of Perch that still run, found by what stands in their
//! environment, so that no list on disk can be out of date.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group, test_kill_process};
use sysinfo::{Process, ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

use crate::names::ServerKey;

/// Marks every process that this Perch started, and what they start in turn.
pub const MARKER: &str = "PERCH_INSTANCE";
/// Names the server of a process.
pub const SERVER: &str = "PERCH_SERVER";

/// How long ended processes may take to disappear.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every process that carries the marker of this instance, or of one server of it, and its
/// group. Blocks until they are gone.
pub fn kill(instance: &str, server: Option<&ServerKey>) {
    let found = marked(instance, server);
    let own_group = getpgid(None).ok();
    for pid in &found {
        match getpgid(Some(*pid)) {
            // A child that stayed in our own group must not take us along.
            Ok(group) if Some(group) != own_group => drop(kill_process_group(group, Signal::KILL)),
            _ => drop(kill_process(*pid, Signal::KILL)),
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while found.iter().any(|pid| is_alive(*pid)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    if !found.is_empty() {
        tracing::info!(count = found.len(), "ended processes that were left behind");
    }
}

/// The processes that carry the marker of this instance, or of one server of it.
pub fn marked(instance: &str, server: Option<&ServerKey>) -> Vec<Pid> {
    let mut system = System::new();
    let what = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    members(&system, instance, server).map(|(pid, _)| pid).collect()
}

/// Those of all processes that carry the marker, but this one. Their environments must have been
/// read. Only these may be asked for their group: a process of elsewhere has none that is known.
pub fn members<'a>(
    system: &'a System,
    instance: &str,
    server: Option<&ServerKey>,
) -> impl Iterator<Item = (Pid, &'a Process)> {
    let mut marks = vec![format!("{MARKER}={instance}")];
    marks.extend(server.map(|server| format!("{SERVER}={server}")));
    let own = std::process::id();
    let marked = move |process: &Process| marks.iter().all(|m| process.environ().iter().any(|e| *e == **m));
    let found = system
        .processes()
        .iter()
        .filter(move |(pid, process)| pid.as_u32() != own && process.thread_kind().is_none() && marked(process));
    found.filter_map(|(pid, process)| Some((Pid::from_raw(i32::try_from(pid.as_u32()).ok()?)?, process)))
}

fn is_alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}
