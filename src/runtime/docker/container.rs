//! What a container of a server looks like, and whether one still looks like that.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStatsResponse, EndpointSettings, HostConfig,
    HostConfigLogConfig, Mount, MountTmpfsOptions, MountType, MountVolumeOptions, NetworkingConfig, RestartPolicy,
    RestartPolicyNameEnum,
};

use super::{Config, egress, files, label};
use crate::{
    api::mcp_server::SeccompProfile,
    runtime::{
        InstanceId, Usage, Workload, egress_proxy,
        workload::{CREDENTIALS, MountSource, Program, Wire, reveal},
    },
};

/// Port of an HTTP server when the spec names none. Every container has its own ports.
pub(super) const PORT: u16 = 3000;
/// Size of `/tmp`.
const TMP: i64 = 64 * 1024 * 1024;

/// The port that a workload's containers listen on.
pub(super) fn port(workload: &Workload) -> Option<u16> {
    match workload.wire {
        Wire::Http { port, .. } => Some(port.unwrap_or(PORT)),
        Wire::Stdio(_) => None,
    }
}

/// What to create for a replica (`ordinal`) or a session.
pub(super) fn body(
    config: &Config,
    workload: &Workload,
    image: &str,
    network: Option<&str>,
    proxy: Option<SocketAddr>,
    ordinal: Option<u32>,
) -> ContainerCreateBody {
    let (command, args) = match &workload.program {
        // The entrypoint of a package's image is the package's program; a command replaces it.
        Program::Image { command, args, .. }
        | Program::Package { command, args, .. }
        | Program::Command { command, args } => (command.clone(), args),
    };
    let mut env = vec!["HOME=/tmp".to_owned()];
    if let Some(port) = port(workload) {
        env.push(format!("PORT={port}"));
    }
    if let Some(proxy) = proxy {
        let of_proxy = egress_proxy::environment(&format!("http://{proxy}"));
        env.extend(of_proxy.map(|(name, value)| format!("{name}={value}")));
    }
    env.extend(workload.credentials.iter().map(|c| format!("{}={CREDENTIALS}/{}", c.variable, c.name)));
    env.extend(workload.env.iter().map(|entry| format!("{}={}", entry.name, reveal(&entry.value))));
    let stdio = matches!(workload.wire, Wire::Stdio(_));
    ContainerCreateBody {
        image: Some(image.to_owned()),
        user: Some(format!("{0}:{0}", workload.security.user)),
        entrypoint: (!command.is_empty()).then_some(command),
        cmd: (!args.is_empty()).then(|| args.clone()),
        env: Some(env),
        labels: Some(labels(config, workload, ordinal)),
        open_stdin: Some(stdio),
        attach_stdin: Some(stdio),
        stdin_once: Some(false),
        tty: Some(false),
        host_config: Some(HostConfig {
            // Nobody looks after a session that ended.
            auto_remove: Some(ordinal.is_none()),
            ..host_config(config, workload, network)
        }),
        networking_config: network.map(|network| NetworkingConfig {
            endpoints_config: Some(HashMap::from([(network.to_owned(), EndpointSettings::default())])),
        }),
        ..ContainerCreateBody::default()
    }
}

fn labels(config: &Config, workload: &Workload, ordinal: Option<u32>) -> HashMap<String, String> {
    let mut labels = HashMap::from([
        (label::INSTANCE.to_owned(), config.instance.clone()),
        (label::NAMESPACE.to_owned(), workload.server.namespace.clone()),
        (label::SERVER.to_owned(), workload.server.name.clone()),
        (label::UID.to_owned(), workload.uid.clone()),
        (label::REVISION.to_owned(), workload.revision.to_string()),
    ]);
    if let Some(list) = egress::list(workload) {
        labels.insert(label::EGRESS.to_owned(), list);
    }
    match ordinal {
        Some(ordinal) => labels.insert(label::ORDINAL.to_owned(), ordinal.to_string()),
        None => labels.insert(label::SESSION.to_owned(), "true".to_owned()),
    };
    labels
}

fn host_config(config: &Config, workload: &Workload, network: Option<&str>) -> HostConfig {
    let memory = i64::try_from(workload.limits.memory_bytes).unwrap_or(i64::MAX);
    let mut security = vec!["no-new-privileges".to_owned()];
    if workload.security.seccomp == SeccompProfile::Unconfined {
        security.push("seccomp=unconfined".to_owned());
    }
    HostConfig {
        memory: Some(memory),
        // Equal to memory: no swap on top.
        memory_swap: Some(memory),
        nano_cpus: Some(i64::try_from(workload.limits.cpu_millis).unwrap_or(i64::MAX).saturating_mul(1_000_000)),
        pids_limit: Some(i64::from(workload.limits.pids)),
        readonly_rootfs: Some(workload.security.read_only_root),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(workload.security.add_capabilities.clone()),
        security_opt: Some(security),
        privileged: Some(false),
        init: Some(true),
        ipc_mode: Some("private".to_owned()),
        network_mode: Some(network.unwrap_or("none").to_owned()),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "8m".to_owned()),
                ("max-file".to_owned(), "2".to_owned()),
            ])),
        }),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), format!("rw,noexec,nosuid,nodev,size={TMP},mode=1777"))])),
        mounts: Some(mounts(config, workload)),
        ..HostConfig::default()
    }
}

fn mounts(config: &Config, workload: &Workload) -> Vec<Mount> {
    let mount = |mount: &crate::runtime::workload::Mount| {
        let base = Mount {
            target: Some(mount.path.to_string_lossy().into_owned()),
            read_only: Some(mount.read_only),
            ..Mount::default()
        };
        match &mount.source {
            MountSource::Host(path) => {
                Mount { source: Some(path.to_string_lossy().into_owned()), typ: Some(MountType::BIND), ..base }
            }
            MountSource::Files(_) => Mount {
                source: Some(files::volume(config, &workload.server, &mount.name).to_string_lossy().into_owned()),
                typ: Some(MountType::BIND),
                read_only: Some(true),
                ..base
            },
            MountSource::Persistent { claim } => Mount {
                source: Some(format!("perch-{}-{}-{claim}", config.short(), workload.server.namespace)),
                typ: Some(MountType::VOLUME),
                volume_options: Some(MountVolumeOptions {
                    labels: Some(HashMap::from([(label::INSTANCE.to_owned(), config.instance.clone())])),
                    ..MountVolumeOptions::default()
                }),
                ..base
            },
            MountSource::Scratch { size_limit } => Mount {
                typ: Some(MountType::TMPFS),
                read_only: None,
                tmpfs_options: Some(MountTmpfsOptions {
                    size_bytes: size_limit.and_then(|s| i64::try_from(s).ok()),
                    mode: Some(0o1777),
                    ..MountTmpfsOptions::default()
                }),
                ..base
            },
        }
    };
    // A folder, not the files in it: what is renamed into it is seen inside.
    let credentials = (!workload.credentials.is_empty()).then(|| Mount {
        target: Some(CREDENTIALS.to_owned()),
        source: Some(files::credentials(config, &workload.server).to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        ..Mount::default()
    });
    workload.volumes.iter().map(mount).chain(credentials).collect()
}

/// How a container differs from what would be created now; nothing when it does not.
pub(super) fn drift(
    found: &ContainerInspectResponse,
    wanted: &ContainerCreateBody,
    image_id: &str,
    network: Option<&str>,
) -> Option<&'static str> {
    let (Some(host), Some(target)) = (&found.host_config, &wanted.host_config) else { return Some("no configuration") };
    let config = found.config.clone().unwrap_or_default();
    if found.image.as_deref() != Some(image_id) {
        return Some("image");
    }
    if config.user != wanted.user {
        return Some("user");
    }
    if (host.memory, host.nano_cpus, host.pids_limit) != (target.memory, target.nano_cpus, target.pids_limit) {
        return Some("limits");
    }
    let privileges = |h: &HostConfig| {
        let set = |list: &Option<Vec<String>>| list.clone().unwrap_or_default().into_iter().collect::<BTreeSet<_>>();
        (h.readonly_rootfs, h.privileged, set(&h.cap_add), set(&h.cap_drop), set(&h.security_opt))
    };
    if privileges(host) != privileges(target) {
        return Some("privileges");
    }
    if host.port_bindings.as_ref().is_some_and(|p| !p.is_empty()) {
        return Some("ports");
    }
    let restarts = |h: &HostConfig| h.restart_policy.as_ref().and_then(|p| p.name).unwrap_or(RestartPolicyNameEnum::NO);
    if restarts(host) != restarts(target) {
        return Some("restart policy");
    }
    if networks(found) != BTreeSet::from([network.unwrap_or("none")]) {
        return Some("networks");
    }
    // A Secret that changes leaves a running container alone, but the next start sees it, as in a
    // pod. The image adds variables of its own.
    let is = config.env.unwrap_or_default();
    let fresh = wanted.env.iter().flatten().all(|entry| is.contains(entry));
    let running = found.state.as_ref().and_then(|s| s.running).unwrap_or(false);
    (!running && !fresh).then_some("environment")
}

fn networks(found: &ContainerInspectResponse) -> BTreeSet<&str> {
    let networks = found.network_settings.as_ref().and_then(|n| n.networks.as_ref());
    networks.into_iter().flat_map(HashMap::keys).map(String::as_str).collect()
}

/// The address of a running container on its network.
pub(super) fn address<'a>(found: &'a ContainerInspectResponse, network: &str) -> Option<&'a str> {
    let networks = found.network_settings.as_ref()?.networks.as_ref()?;
    networks.get(network)?.ip_address.as_deref().filter(|ip| !ip.is_empty())
}

/// CPU and memory from a sample.
pub(super) fn usage(instance: InstanceId, stats: &ContainerStatsResponse) -> Usage {
    let total = |s: &Option<bollard::models::ContainerCpuStats>| {
        let s = s.as_ref()?;
        let used = s.cpu_usage.as_ref()?.total_usage?;
        Some((used, s.system_cpu_usage?, s.online_cpus.unwrap_or(1)))
    };
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let cpus = match (total(&stats.precpu_stats), total(&stats.cpu_stats)) {
        (Some((used_before, system_before, _)), Some((used, system, online))) if system > system_before => {
            used.saturating_sub(used_before) as f64 / (system - system_before) as f64 * f64::from(online)
        }
        _ => 0.0,
    };
    Usage { instance, cpus, memory_bytes: stats.memory_stats.as_ref().and_then(|m| m.usage).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerConfig, ContainerState, EndpointSettings, NetworkSettings};

    use super::*;

    fn found(env: &[&str], running: bool) -> ContainerInspectResponse {
        ContainerInspectResponse {
            image: Some("i".into()),
            config: Some(ContainerConfig {
                env: Some(env.iter().map(ToString::to_string).collect()),
                ..ContainerConfig::default()
            }),
            host_config: Some(HostConfig::default()),
            state: Some(ContainerState { running: Some(running), ..ContainerState::default() }),
            network_settings: Some(NetworkSettings {
                networks: Some(HashMap::from([("none".to_owned(), EndpointSettings::default())])),
                ..NetworkSettings::default()
            }),
            ..ContainerInspectResponse::default()
        }
    }

    #[test]
    fn the_next_start_sees_a_changed_secret() {
        let wanted = ContainerCreateBody {
            env: Some(vec!["TOKEN=new".into()]),
            host_config: Some(HostConfig::default()),
            ..ContainerCreateBody::default()
        };
        let check = |env: &[&str], running| drift(&found(env, running), &wanted, "i", None);
        assert_eq!(check(&["TOKEN=old", "PATH=/bin"], true), None);
        assert_eq!(check(&["TOKEN=old", "PATH=/bin"], false), Some("environment"));
        assert_eq!(check(&["TOKEN=new", "PATH=/bin"], false), None);
    }
}
