//! The Deployment of a server and its pods, locked down as the restricted Pod Security level asks.

use std::{collections::BTreeMap, net::SocketAddr};

use k8s_openapi::{
    DeepMerge,
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1 as core,
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{around::is_installed_without_network, egress, metadata};
use crate::{
    api::mcp_server::{
        Credential, CredentialForm, EnvFrom, EnvVar, KeyRef, NetworkTier, PackageRegistry, ResourceList,
        SeccompProfile, StdioSessions, Volume,
    },
    runtime::{
        RuntimeError, Workload, egress_proxy,
        kubernetes::{Config, naming},
        package_script,
        workload::{CREDENTIALS, Program, Wire},
    },
};

/// Port of a server that names none, and of the bridge of a Stdio server.
const PORT: u16 = 3000;
/// Where the bridge is inside a pod.
const BRIDGE: &str = "/opt/perch";
/// Name of the container of the server.
pub const SERVER: &str = "server";
/// Name of the volume with the credentials. Those of users begin with `user-`.
const CREDENTIALS_VOLUME: &str = "credentials";
/// Name of the container that tries the way out, and copies the bridge.
pub const PREPARE: &str = "prepare";
/// Name of the container that installs a package.
pub const INSTALL: &str = "install";
/// Seconds between the moment that a pod is to end and the signal to its program: the gateway
/// sends it nothing new meanwhile.
const FAREWELL: i64 = 3;

/// The port of the MCP endpoint of the pods.
pub fn port(workload: &Workload) -> u16 {
    match workload.wire {
        Wire::Http { port, .. } => port.unwrap_or(PORT),
        Wire::Stdio(_) => PORT,
    }
}

/// The path of the MCP endpoint of the pods.
fn path(workload: &Workload) -> &str {
    match &workload.wire {
        Wire::Http { path, .. } => path,
        Wire::Stdio(_) => "/mcp",
    }
}

/// The Deployment of a workload.
pub fn deployment(workload: &Workload, config: &Config, proxy: Option<SocketAddr>) -> Result<Deployment, RuntimeError> {
    // With an autoscaler the number of pods is not ours to say.
    let scaled_elsewhere = workload.declared.autoscaling.is_some() && workload.replicas > 0;
    Ok(Deployment {
        metadata: metadata(workload, naming::object_name(&workload.server.name)),
        spec: DeploymentSpec {
            replicas: (!scaled_elsewhere).then(|| i32::try_from(workload.replicas).unwrap_or(i32::MAX)),
            selector: LabelSelector {
                match_labels: Some(naming::selector(&workload.server)),
                ..LabelSelector::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            revision_history_limit: Some(2),
            template: template(workload, config, proxy)?,
            ..DeploymentSpec::default()
        },
        ..Deployment::default()
    })
}

fn template(
    workload: &Workload,
    config: &Config,
    proxy: Option<SocketAddr>,
) -> Result<core::PodTemplateSpec, RuntimeError> {
    let mut labels = naming::labels(workload);
    if is_installed_without_network(workload) {
        labels.insert(naming::INSTALLING.to_owned(), "true".to_owned());
    }
    let annotations = BTreeMap::from([
        (naming::SERVER_NAME.to_owned(), workload.server.name.clone()),
        (naming::REVISION.to_owned(), workload.revision.to_string()),
        (naming::ENDPOINT.to_owned(), format!("{}{}", port(workload), path(workload))),
        ("kubectl.kubernetes.io/default-container".to_owned(), SERVER.to_owned()),
    ]);
    let user = i64::from(workload.security.user);
    let mut template = core::PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..ObjectMeta::default() }),
        spec: Some(core::PodSpec {
            service_account_name: Some(naming::object_name(&workload.server.name)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(
                FAREWELL + i64::try_from(workload.stop_grace.as_secs()).unwrap_or(10),
            ),
            security_context: Some(core::PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(user),
                run_as_group: Some(user),
                fs_group: Some(user),
                seccomp_profile: Some(core::SeccompProfile {
                    type_: match workload.security.seccomp {
                        SeccompProfile::RuntimeDefault => "RuntimeDefault".into(),
                        SeccompProfile::Unconfined => "Unconfined".into(),
                    },
                    localhost_profile: None,
                }),
                ..core::PodSecurityContext::default()
            }),
            topology_spread_constraints: (workload.replicas > 1).then(|| {
                vec![core::TopologySpreadConstraint {
                    max_skew: 1,
                    topology_key: "kubernetes.io/hostname".into(),
                    when_unsatisfiable: "ScheduleAnyway".into(),
                    label_selector: Some(LabelSelector {
                        match_labels: Some(naming::selector(&workload.server)),
                        ..LabelSelector::default()
                    }),
                    ..core::TopologySpreadConstraint::default()
                }]
            }),
            init_containers: Some(before(workload, config, proxy)?).filter(|c| !c.is_empty()),
            containers: vec![server(workload, config, proxy)?],
            volumes: Some(volumes(workload)),
            ..core::PodSpec::default()
        }),
    };
    if let Some(overlay) = &workload.declared.pod_template {
        template.merge_from(overlay_of(overlay)?);
    }
    Ok(template)
}

fn overlay_of(overlay: &crate::api::mcp_server::PodTemplateOverlay) -> Result<core::PodTemplateSpec, RuntimeError> {
    let mut fields = serde_json::to_value(&overlay.fields).unwrap_or_default();
    // A pod spec without containers is none; an overlay may well have none.
    if let Some(spec) = fields.get_mut("spec").and_then(serde_json::Value::as_object_mut) {
        spec.entry("containers").or_insert_with(|| serde_json::json!([]));
    }
    serde_json::from_value(fields)
        .map_err(|error| RuntimeError::Invalid(format!("spec.podTemplate is no part of a pod template: {error}")))
}

/// What runs before the server: the way out is tried, the bridge is copied in, a package is installed.
fn before(
    workload: &Workload,
    config: &Config,
    proxy: Option<SocketAddr>,
) -> Result<Vec<core::Container>, RuntimeError> {
    let mut all = Vec::new();
    let is_stdio = matches!(workload.wire, Wire::Stdio(_));
    let mut work = way_out(workload, proxy)?;
    if is_stdio {
        work.extend(["--copy".into(), format!("{BRIDGE}/perch")]);
    }
    if !work.is_empty() {
        all.push(core::Container {
            name: PREPARE.into(),
            image: Some(config.image.clone()),
            image_pull_policy: config.image_pull_policy.clone(),
            args: Some(["internal".into(), "prepare".into()].into_iter().chain(work).collect()),
            resources: Some(amounts(&[("cpu", "10m"), ("memory", "32Mi")], &[("memory", "128Mi")])),
            security_context: Some(locked_down(true, &[])),
            volume_mounts: is_stdio.then(|| vec![mount("perch", BRIDGE, false)]),
            ..core::Container::default()
        });
    }
    if let Program::Package { package, .. } = &workload.program {
        all.push(core::Container {
            name: INSTALL.into(),
            image: Some(base_of(package.registry, config)),
            image_pull_policy: config.package_pull_policy.clone(),
            command: Some(vec!["sh".into(), "-ec".into(), package_script::install(package)]),
            env: Some(
                [plain("HOME", "/tmp"), plain("npm_config_cache", "/tmp/npm")]
                    .into_iter()
                    .chain(config.install_env.iter().map(|(name, value)| plain(name, value)))
                    .collect(),
            ),
            resources: Some(amounts(&[("cpu", "100m"), ("memory", "128Mi")], &[("memory", "1Gi")])),
            security_context: Some(locked_down(true, &[])),
            termination_message_policy: Some("FallbackToLogsOnError".into()),
            volume_mounts: Some(vec![mount("app", package_script::HOME, false), mount("install-tmp", "/tmp", false)]),
            ..core::Container::default()
        });
    }
    Ok(all)
}

/// The arguments that say what way out a pod should have; none for one that has another while it installs.
fn way_out(workload: &Workload, proxy: Option<SocketAddr>) -> Result<Vec<String>, RuntimeError> {
    if is_installed_without_network(workload) {
        return Ok(Vec::new());
    }
    let open = workload.network == NetworkTier::Public && workload.declared.egress.is_empty();
    let mut arguments = vec!["--way-out".to_owned(), if open { "open" } else { "closed" }.to_owned()];
    if let Some(proxy) = proxy {
        arguments.extend(["--proxy".to_owned(), proxy.to_string()]);
    }
    for (block, ..) in egress::list(workload)?.blocks() {
        arguments.extend(["--listed".to_owned(), block.to_string()]);
    }
    Ok(arguments)
}

fn base_of(registry: PackageRegistry, config: &Config) -> String {
    match registry {
        PackageRegistry::Npm => config.npm_base.clone(),
        PackageRegistry::PyPI => config.pypi_base.clone(),
    }
}

fn server(workload: &Workload, config: &Config, proxy: Option<SocketAddr>) -> Result<core::Container, RuntimeError> {
    let (image, mut command, args) = match &workload.program {
        Program::Image { image, command, args } => (image.clone(), command.clone(), args),
        Program::Package { package, command, args } => {
            let command = if command.is_empty() { vec![package_script::PROGRAM.to_owned()] } else { command.clone() };
            (base_of(package.registry, config), command, args)
        }
        Program::Command { .. } => {
            return Err(RuntimeError::Unsupported(
                "spec.command alone runs as a local process, and a cluster has none: add spec.image, or use spec.package".into(),
            ));
        }
    };
    let stdio = matches!(workload.wire, Wire::Stdio(_));
    if stdio {
        if command.is_empty() {
            return Err(RuntimeError::Invalid(format!(
                "spec.command is missing: on Kubernetes Perch's bridge starts the program of a Stdio server inside its container, and what image {image} would start by itself only its registry knows. Write it into spec.command; `docker inspect -f '{{{{json .Config.Entrypoint}}}} {{{{json .Config.Cmd}}}}' {image}` or `crane config {image}` tell it"
            )));
        }
        let listen = format!("0.0.0.0:{PORT}");
        let mut bridge = vec![format!("{BRIDGE}/perch"), "bridge".into(), "--listen".into(), listen];
        if workload.wire == Wire::Stdio(StdioSessions::PerSession) {
            bridge.push("--per-session".into());
        }
        bridge.push("--".into());
        command = bridge.into_iter().chain(command).collect();
    }
    let port = port(workload);
    let mut mounts = vec![mount("tmp", "/tmp", false)];
    if stdio {
        mounts.push(mount("perch", BRIDGE, true));
    }
    if matches!(workload.program, Program::Package { .. }) {
        mounts.push(mount("app", package_script::HOME, true));
    }
    mounts.extend(workload.declared.volumes.iter().map(|v| {
        let read_only = v.read_only || v.secret.is_some() || v.config_map.is_some();
        mount(&format!("user-{}", v.name), &v.mount_path, read_only)
    }));
    if workload.declared.credentials.iter().any(|c| c.form == CredentialForm::File) {
        mounts.push(mount(CREDENTIALS_VOLUME, CREDENTIALS, true));
    }
    Ok(core::Container {
        name: SERVER.into(),
        image: Some(image),
        image_pull_policy: match &workload.program {
            Program::Package { .. } => config.package_pull_policy.clone(),
            _ => None,
        },
        command: Some(command).filter(|c| !c.is_empty()),
        args: Some(args.clone()).filter(|a| !a.is_empty()),
        env: Some(environment(workload, proxy)),
        env_from: Some(workload.declared.env_from.iter().map(env_from).collect()),
        ports: Some(vec![core::ContainerPort {
            name: Some("mcp".into()),
            container_port: i32::from(port),
            protocol: Some("TCP".into()),
            ..core::ContainerPort::default()
        }]),
        readiness_probe: Some(readiness(stdio)),
        resources: Some(resources(workload)),
        security_context: Some(locked_down(workload.security.read_only_root, &workload.security.add_capabilities)),
        lifecycle: Some(core::Lifecycle {
            pre_stop: Some(core::LifecycleHandler {
                sleep: Some(core::SleepAction { seconds: FAREWELL }),
                ..core::LifecycleHandler::default()
            }),
            ..core::Lifecycle::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some(mounts),
        ..core::Container::default()
    })
}

/// What the kubelet looks at. It decides only whether the pod gets traffic: the server's own
/// readiness is an MCP handshake through the gateway.
fn readiness(stdio: bool) -> core::Probe {
    let port = IntOrString::String("mcp".into());
    core::Probe {
        // The bridge answers here once its server has answered a handshake.
        http_get: stdio.then(|| core::HTTPGetAction {
            path: Some("/readyz".into()),
            port: port.clone(),
            ..core::HTTPGetAction::default()
        }),
        tcp_socket: (!stdio).then_some(core::TCPSocketAction { port, host: None }),
        period_seconds: Some(2),
        timeout_seconds: Some(2),
        failure_threshold: Some(3),
        ..core::Probe::default()
    }
}

fn environment(workload: &Workload, proxy: Option<SocketAddr>) -> Vec<core::EnvVar> {
    let mut env = vec![plain("HOME", "/tmp")];
    if let Some(proxy) = proxy {
        let of_proxy = egress_proxy::environment(&format!("http://{proxy}"));
        env.extend(of_proxy.iter().map(|(name, value)| plain(name, value)));
    }
    if let Wire::Http { .. } = workload.wire {
        env.push(plain("PORT", &port(workload).to_string()));
    }
    if let Program::Package { package, .. } = &workload.program {
        env.push(plain("PATH", package_script::search_path(package.registry)));
    }
    env.extend(workload.declared.credentials.iter().map(|c| credential_variable(c, workload)));
    let declared = &workload.declared.env;
    // The user's own wins; two of one name would be refused.
    env.retain(|e| !declared.iter().any(|d| d.name == e.name));
    env.extend(declared.iter().map(variable));
    env
}

fn plain(name: &str, value: &str) -> core::EnvVar {
    core::EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
}

/// A reference stays a reference: the value is never read by Perch.
fn variable(variable: &EnvVar) -> core::EnvVar {
    let source = variable.value_from.as_ref().map(|from| core::EnvVarSource {
        secret_key_ref: from.secret_key_ref.as_ref().map(|r: &KeyRef| core::SecretKeySelector {
            name: r.name.clone(),
            key: r.key.clone(),
            optional: Some(r.optional),
        }),
        config_map_key_ref: from.config_map_key_ref.as_ref().map(|r| core::ConfigMapKeySelector {
            name: r.name.clone(),
            key: r.key.clone(),
            optional: Some(r.optional),
        }),
        ..core::EnvVarSource::default()
    });
    core::EnvVar { name: variable.name.clone(), value: variable.value.clone(), value_from: source }
}

/// The variable of a credential: its value by reference, or the path of its file.
fn credential_variable(credential: &Credential, workload: &Workload) -> core::EnvVar {
    if credential.form == CredentialForm::File {
        return plain(&credential.variable(), &format!("{CREDENTIALS}/{}", credential.name));
    }
    let (name, key) = match &credential.secret {
        Some(secret) => (secret.name.clone(), secret.key.clone()),
        None => (naming::credentials_secret(&workload.server.name), credential.name.clone()),
    };
    let reference = core::SecretKeySelector { name, key, optional: Some(false) };
    let source = core::EnvVarSource { secret_key_ref: Some(reference), ..core::EnvVarSource::default() };
    core::EnvVar { name: credential.variable(), value: None, value_from: Some(source) }
}

/// The credentials as files, each from where it is; the kubelet keeps them fresh.
fn credentials(workload: &Workload) -> Option<core::Volume> {
    let files = workload.declared.credentials.iter().filter(|c| c.form == CredentialForm::File);
    let sources: Vec<core::VolumeProjection> = files.map(|c| projection(c, workload)).collect();
    (!sources.is_empty()).then(|| core::Volume {
        name: CREDENTIALS_VOLUME.into(),
        projected: Some(core::ProjectedVolumeSource {
            // With the group of the pod, the kubelet gives the server's user its read bit.
            default_mode: Some(0o400),
            sources: Some(sources),
            ..core::ProjectedVolumeSource::default()
        }),
        ..core::Volume::default()
    })
}

fn projection(credential: &Credential, workload: &Workload) -> core::VolumeProjection {
    if let Some(account) = &credential.service_account {
        let seconds = account.expiration.to_std().as_secs();
        return core::VolumeProjection {
            service_account_token: Some(core::ServiceAccountTokenProjection {
                audience: Some(account.audience.clone()),
                expiration_seconds: Some(i64::try_from(seconds).unwrap_or(i64::MAX)),
                path: credential.name.clone(),
                ..core::ServiceAccountTokenProjection::default()
            }),
            ..core::VolumeProjection::default()
        };
    }
    let (name, key) = match &credential.secret {
        Some(secret) => (secret.name.clone(), secret.key.clone()),
        None => (naming::credentials_secret(&workload.server.name), credential.name.clone()),
    };
    core::VolumeProjection {
        secret: Some(core::SecretProjection {
            name,
            items: Some(vec![core::KeyToPath { key, path: credential.name.clone(), ..core::KeyToPath::default() }]),
            optional: Some(false),
        }),
        ..core::VolumeProjection::default()
    }
}

fn env_from(from: &EnvFrom) -> core::EnvFromSource {
    core::EnvFromSource {
        prefix: from.prefix.clone(),
        secret_ref: from
            .secret_ref
            .as_ref()
            .map(|r| core::SecretEnvSource { name: r.name.clone(), optional: Some(r.optional) }),
        config_map_ref: from
            .config_map_ref
            .as_ref()
            .map(|r| core::ConfigMapEnvSource { name: r.name.clone(), optional: Some(r.optional) }),
    }
}

fn volumes(workload: &Workload) -> Vec<core::Volume> {
    let in_memory = |name: &str, size: &str| core::Volume {
        name: name.into(),
        empty_dir: Some(core::EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: Some(Quantity(size.into())),
            ..core::EmptyDirVolumeSource::default()
        }),
        ..core::Volume::default()
    };
    let on_disk = |name: &str, size: &str| core::Volume {
        name: name.into(),
        empty_dir: Some(core::EmptyDirVolumeSource {
            size_limit: Some(Quantity(size.into())),
            ..core::EmptyDirVolumeSource::default()
        }),
        ..core::Volume::default()
    };
    let mut all = vec![in_memory("tmp", "64Mi")];
    if matches!(workload.wire, Wire::Stdio(_)) {
        all.push(on_disk("perch", "256Mi"));
    }
    if matches!(workload.program, Program::Package { .. }) {
        all.extend([on_disk("app", "2Gi"), on_disk("install-tmp", "2Gi")]);
    }
    all.extend(workload.declared.volumes.iter().map(volume));
    all.extend(credentials(workload));
    all
}

fn volume(volume: &Volume) -> core::Volume {
    core::Volume {
        name: format!("user-{}", volume.name),
        persistent_volume_claim: volume
            .persistent_volume_claim
            .as_ref()
            .map(|c| core::PersistentVolumeClaimVolumeSource { claim_name: c.claim_name.clone(), read_only: None }),
        host_path: volume.host_path.as_ref().map(|h| core::HostPathVolumeSource { path: h.path.clone(), type_: None }),
        empty_dir: volume.empty_dir.as_ref().map(|e| core::EmptyDirVolumeSource {
            medium: Some("Memory".into()),
            size_limit: e.size_limit.as_ref().map(|q| Quantity(q.0.clone())),
            ..core::EmptyDirVolumeSource::default()
        }),
        config_map: volume
            .config_map
            .as_ref()
            .map(|m| core::ConfigMapVolumeSource { name: m.name.clone(), ..core::ConfigMapVolumeSource::default() }),
        // The files belong to root and to the server's group: the group needs the read bit.
        secret: volume.secret.as_ref().map(|s| core::SecretVolumeSource {
            secret_name: Some(s.secret_name.clone()),
            default_mode: Some(0o440),
            ..core::SecretVolumeSource::default()
        }),
        ..core::Volume::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> core::VolumeMount {
    core::VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: read_only.then_some(true),
        ..core::VolumeMount::default()
    }
}

pub(super) fn locked_down(read_only_root: bool, add_capabilities: &[String]) -> core::SecurityContext {
    core::SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(read_only_root),
        capabilities: Some(core::Capabilities {
            drop: Some(vec!["ALL".into()]),
            add: Some(add_capabilities.to_vec()).filter(|a| !a.is_empty()),
        }),
        ..core::SecurityContext::default()
    }
}

fn resources(workload: &Workload) -> core::ResourceRequirements {
    let declared = &workload.declared.resources;
    let list = |list: &ResourceList| {
        let cpu = list.cpu.iter().map(|q| ("cpu".to_owned(), Quantity(q.0.clone())));
        let memory = list.memory.iter().map(|q| ("memory".to_owned(), Quantity(q.0.clone())));
        cpu.chain(memory).collect::<BTreeMap<_, _>>()
    };
    core::ResourceRequirements {
        requests: Some(list(&declared.requests)),
        limits: Some(list(&declared.limits)),
        ..core::ResourceRequirements::default()
    }
}

pub(super) fn amounts(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> core::ResourceRequirements {
    let list = |list: &[(&str, &str)]| {
        list.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect()
    };
    core::ResourceRequirements {
        requests: Some(list(requests)),
        limits: Some(list(limits)),
        ..core::ResourceRequirements::default()
    }
}
