//! Processes of an earlier life of Perch that still run, found by what stands in their
//! environment, so that no list on disk can be out of date.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group, test_kill_process};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// Marks every process that this Perch started, and what they start in turn.
pub const MARKER: &str = "PERCH_INSTANCE";

/// How long ended processes may take to disappear.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kills every process that carries the marker of this instance, and its group.
pub fn kill(instance: &str) {
    let found = marked(instance);
    for pid in &found {
        let own_group = getpgid(None).ok();
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
        tracing::info!(count = found.len(), "ended processes that an earlier perch left behind");
    }
}

/// The processes that carry the marker of this instance.
pub fn marked(instance: &str) -> Vec<Pid> {
    let marker = format!("{MARKER}={instance}");
    let mut system = System::new();
    let what = ProcessRefreshKind::nothing().with_environ(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let own = std::process::id();
    system
        .processes()
        .iter()
        .filter(|(pid, process)| {
            pid.as_u32() != own && process.thread_kind().is_none() && process.environ().iter().any(|e| *e == *marker)
        })
        .filter_map(|(pid, _)| Pid::from_raw(i32::try_from(pid.as_u32()).ok()?))
        .collect()
}

fn is_alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok()
}
