//! Step two: parse the spec once, into types that cannot be wrong.
//!
//! The schema has checked types, patterns and most rules; what is left needs arithmetic or the
//! objects that the spec refers to.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use regex::Regex;
use secrecy::{ExposeSecret, SecretSlice};

use super::dereference::{Contents, References, Resolved};
use crate::{
    api::{
        mcp_server::{CredentialForm, EnvVar, KeyRef, McpServer, RunSpec, SecretKey, TransportType, Volume},
        quantity::{Quantity, QuantityError},
    },
    egress::{AllowList, RuleError},
    runtime::workload::{
        CREDENTIALS, CredentialFile, Declared, EnvEntry, EnvValue, Limits, Mount, MountSource, Privileges, Program,
        Wire,
    },
};

/// Values that Perch fetched, by the name of the credential.
pub type Fetched = BTreeMap<String, SecretSlice<u8>>;

/// A spec that was found to make sense, with what it refers to.
#[derive(Debug)]
pub struct ValidatedServer {
    /// `metadata.uid`.
    pub uid: String,
    /// What decides the revision.
    pub run: RunSpec,
    /// What is started; none for a remote server.
    pub program: Option<Program>,
    /// How it speaks MCP.
    pub wire: Wire,
    /// How many instances, suspension counted in.
    pub replicas: u32,
    /// Environment.
    pub env: Vec<EnvEntry>,
    /// Credentials that it gets as files.
    pub credentials: Vec<CredentialFile>,
    /// Files and folders.
    pub volumes: Vec<Mount>,
    /// Upper bounds.
    pub limits: Limits,
    /// Privileges.
    pub security: Privileges,
    /// The parts that a backend may hand on as they are.
    pub declared: Declared,
}

/// Why a spec makes no sense. Nothing will improve before somebody changes it.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// A quantity that cannot be used.
    #[error("{field}: {source}")]
    Quantity {
        /// Path of the field.
        field: &'static str,
        /// What is wrong with it.
        source: QuantityError,
    },
    /// More is requested than is allowed.
    #[error(
        "spec.resources.requests.{what} is {request}, more than the limit of {limit}: lower the request or raise the limit"
    )]
    RequestOverLimit {
        /// `cpu` or `memory`.
        what: &'static str,
        /// What is requested.
        request: Quantity,
        /// What is allowed.
        limit: Quantity,
    },
    /// A key is not in the object that is named.
    #[error("key {key:?} is not in {kind} {name:?}: add it, or mark the reference optional")]
    MissingKey {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Name of the object.
        name: String,
        /// The key.
        key: String,
    },
    /// A value that cannot be an environment variable.
    #[error("key {key:?} of {name:?} is not text: mount it as a file instead of an environment variable")]
    NotText {
        /// Name of the object.
        name: String,
        /// The key.
        key: String,
    },
    /// Two values for one environment variable.
    #[error(
        "credential {credential:?} sets the variable {variable}, which spec.env or another credential sets too: give it another `variable`"
    )]
    VariableTwice {
        /// Name of the credential.
        credential: String,
        /// The variable.
        variable: String,
    },
    /// Something that only a cluster has.
    #[error(
        "credential {credential:?} needs a token of a ServiceAccount, which only a cluster gives: on this machine use {instead}"
    )]
    NoServiceAccounts {
        /// Name of the credential.
        credential: String,
        /// What there is instead.
        instead: &'static str,
    },
    /// A volume where the credentials are.
    #[error("volume {0:?} would hide the credentials at {CREDENTIALS}: mount it elsewhere")]
    MountOverCredentials(String),
    /// Two volumes at one path.
    #[error("two volumes are mounted at {0}: give each its own mountPath")]
    MountTwice(String),
    /// A text that names no image.
    #[error(
        "spec.image {0:?} is not the name of an image: write it like registry.example.com/team/server:1.2.3, in lower case and without https://"
    )]
    Image(String),
    /// A capability that does not exist.
    #[error("spec.security.addCapabilities: {0:?} is not a capability: write it like NET_BIND_SERVICE, without CAP_")]
    Capability(String),
    /// A tier that cannot work with the transport.
    #[error(
        "network tier Secure leaves no network, and a StreamableHttp server needs one: use transport Stdio, or tier Internal"
    )]
    SecureHttp,
    /// A rule for what may be reached that cannot be used.
    #[error(transparent)]
    Egress(#[from] RuleError),
}

/// What an engine takes as the name of an image: registry, path, tag and digest, as in
/// `github.com/distribution/reference`.
static IMAGE: LazyLock<Regex> = LazyLock::new(|| {
    const LABEL: &str = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?";
    const PART: &str = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
    const TAG: &str = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}";
    const DIGEST: &str = "[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}";
    let pattern = format!("^(?:{LABEL}(?:\\.{LABEL})*(?::[0-9]+)?/)?{PART}(?:/{PART})*(?::{TAG})?(?:@{DIGEST})?$");
    Regex::new(&pattern).expect("the pattern is a constant that compiles")
});

/// Most processes and threads of one instance.
const PIDS: u32 = 512;

/// Checks and parses a spec.
///
/// `fetched` are the values of credentials that Perch fetches; one that is absent is left out.
pub fn validate(
    server: &McpServer,
    references: References,
    fetched: &Fetched,
) -> Result<ValidatedServer, ValidateError> {
    let spec = &server.spec;
    let run = RunSpec::from(spec);
    let command = spec.command.clone().unwrap_or_default();
    let args = spec.args.clone();
    let program = match (&spec.image, &spec.package) {
        _ if spec.remote.is_some() => None,
        (Some(image), _) if !IMAGE.is_match(image) => return Err(ValidateError::Image(image.clone())),
        (Some(image), _) => Some(Program::Image { image: image.clone(), command, args }),
        (None, Some(package)) => Some(Program::Package { package: package.clone(), command, args }),
        (None, None) => Some(Program::Command { command, args }),
    };
    let wire = match spec.transport.type_ {
        TransportType::Stdio => Wire::Stdio(spec.transport.sessions),
        TransportType::StreamableHttp => Wire::Http {
            port: spec.transport.port.and_then(|p| u16::try_from(p).ok()),
            path: spec.transport.path.clone(),
        },
    };
    if matches!(wire, Wire::Http { .. })
        && spec.remote.is_none()
        && spec.network.tier == crate::api::mcp_server::NetworkTier::Secure
    {
        return Err(ValidateError::SecureHttp);
    }
    AllowList::new(&spec.network.egress)?;
    let replicas = if spec.suspend { 0 } else { u32::try_from(spec.wanted_replicas()).unwrap_or(0) };
    check_credentials(server)?;
    let (resolved, env, credentials) = match references {
        References::Resolved(resolved) => {
            let mut env = environment(server, &resolved)?;
            let credentials = credentials(server, &resolved, fetched, &mut env)?;
            (resolved, env, credentials)
        }
        References::LeftToBackend => (Resolved::default(), Vec::new(), Vec::new()),
    };
    Ok(ValidatedServer {
        declared: Declared {
            env: spec.env.clone(),
            env_from: spec.env_from.clone(),
            credentials: spec.credentials.clone(),
            volumes: spec.volumes.clone(),
            resources: spec.resources.clone(),
            autoscaling: spec.autoscaling.clone(),
            pod_template: spec.pod_template.clone(),
            egress: spec.network.egress.clone(),
        },
        uid: server.metadata.uid.clone().unwrap_or_default(),
        program,
        wire,
        replicas,
        env,
        credentials,
        volumes: mounts(&spec.volumes, &resolved)?,
        limits: limits(server)?,
        security: privileges(server)?,
        run,
    })
}

fn limits(server: &McpServer) -> Result<Limits, ValidateError> {
    let (limits, requests) = (&server.spec.resources.limits, &server.spec.resources.requests);
    let defaults = crate::api::mcp_server::Resources::default().limits;
    let at = |field| move |source| ValidateError::Quantity { field, source };
    let cpu = limits.cpu.clone().or(defaults.cpu);
    let memory = limits.memory.clone().or(defaults.memory);
    let cpu_millis = cpu.as_ref().map_or(Ok(500), Quantity::millis).map_err(at("spec.resources.limits.cpu"))?;
    let memory_bytes =
        memory.as_ref().map_or(Ok(1 << 28), Quantity::bytes).map_err(at("spec.resources.limits.memory"))?;
    if let (Some(request), Some(limit)) = (&requests.cpu, cpu) {
        let wanted = request.millis().map_err(at("spec.resources.requests.cpu"))?;
        if wanted > cpu_millis {
            return Err(ValidateError::RequestOverLimit { what: "cpu", request: request.clone(), limit });
        }
    }
    if let (Some(request), Some(limit)) = (&requests.memory, memory) {
        let wanted = request.bytes().map_err(at("spec.resources.requests.memory"))?;
        if wanted > memory_bytes {
            return Err(ValidateError::RequestOverLimit { what: "memory", request: request.clone(), limit });
        }
    }
    Ok(Limits { cpu_millis, memory_bytes, pids: PIDS })
}

fn privileges(server: &McpServer) -> Result<Privileges, ValidateError> {
    let security = &server.spec.security;
    for capability in &security.add_capabilities {
        let fine = !capability.is_empty()
            && !capability.starts_with("CAP_")
            && capability.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        if !fine {
            return Err(ValidateError::Capability(capability.clone()));
        }
    }
    Ok(Privileges {
        user: u32::try_from(security.run_as_user).unwrap_or(10001),
        read_only_root: security.read_only_root_filesystem,
        add_capabilities: security.add_capabilities.clone(),
        seccomp: security.seccomp_profile,
    })
}

fn environment(server: &McpServer, resolved: &Resolved) -> Result<Vec<EnvEntry>, ValidateError> {
    let mut env = Vec::new();
    for from in &server.spec.env_from {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let sources = [
            from.secret_ref.as_ref().map(|r| (&r.name, resolved.secrets.get(&r.name))),
            from.config_map_ref.as_ref().map(|r| (&r.name, resolved.config_maps.get(&r.name))),
        ];
        for (name, contents) in sources.into_iter().flatten() {
            for (key, value) in contents.into_iter().flatten() {
                env.push(EnvEntry { name: format!("{prefix}{key}"), value: text(name, key, value)? });
            }
        }
    }
    for variable in &server.spec.env {
        if let Some(value) = value_of(variable, resolved)? {
            env.push(EnvEntry { name: variable.name.clone(), value });
        }
    }
    Ok(env)
}

fn value_of(variable: &EnvVar, resolved: &Resolved) -> Result<Option<EnvValue>, ValidateError> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(EnvValue::Plain(variable.value.clone().unwrap_or_default())));
    };
    let secret = from.secret_key_ref.as_ref().map(|r| ("Secret", r, &resolved.secrets));
    let map = from.config_map_key_ref.as_ref().map(|r| ("ConfigMap", r, &resolved.config_maps));
    match secret.or(map) {
        Some((kind, reference, objects)) => key_of(kind, reference, objects.get(&reference.name)),
        None => Ok(None),
    }
}

fn key_of(
    kind: &'static str,
    reference: &KeyRef,
    contents: Option<&Contents>,
) -> Result<Option<EnvValue>, ValidateError> {
    match contents.and_then(|c| c.get(&reference.key)) {
        Some(value) => text(&reference.name, &reference.key, value).map(Some),
        None if reference.optional => Ok(None),
        None => Err(ValidateError::MissingKey { kind, name: reference.name.clone(), key: reference.key.clone() }),
    }
}

fn text(name: &str, key: &str, value: &SecretSlice<u8>) -> Result<EnvValue, ValidateError> {
    let text = std::str::from_utf8(value.expose_secret()).ok().filter(|t| !t.contains('\0'));
    let text = text.ok_or_else(|| ValidateError::NotText { name: name.to_owned(), key: key.to_owned() })?;
    Ok(EnvValue::Secret(text.to_owned().into()))
}

/// What must be so of credentials wherever the server runs.
fn check_credentials(server: &McpServer) -> Result<(), ValidateError> {
    let spec = &server.spec;
    let mut variables: BTreeSet<String> = spec.env.iter().map(|e| e.name.clone()).collect();
    for credential in &spec.credentials {
        let variable = credential.variable();
        if !variables.insert(variable.clone()) {
            return Err(ValidateError::VariableTwice { credential: credential.name.clone(), variable });
        }
    }
    let hides = |v: &&Volume| Path::new(CREDENTIALS).starts_with(Path::new(&v.mount_path)) && v.mount_path != "/";
    match spec.volumes.iter().find(hides).filter(|_| !spec.credentials.is_empty()) {
        Some(volume) => Err(ValidateError::MountOverCredentials(volume.name.clone())),
        None => Ok(()),
    }
}

/// Credentials as files; those for the environment join it.
fn credentials(
    server: &McpServer,
    resolved: &Resolved,
    fetched: &Fetched,
    env: &mut Vec<EnvEntry>,
) -> Result<Vec<CredentialFile>, ValidateError> {
    let mut files = Vec::new();
    for credential in &server.spec.credentials {
        let nobody = |instead| ValidateError::NoServiceAccounts { credential: credential.name.clone(), instead };
        if credential.service_account.is_some() {
            return Err(nobody("secret, oauth2 or vault"));
        }
        if credential.vault.as_ref().is_some_and(|v| v.auth.kubernetes.is_some()) {
            return Err(nobody("auth.tokenFrom"));
        }
        let (from, value) = match &credential.secret {
            Some(SecretKey { name, key }) => {
                let value = resolved.secrets.get(name).and_then(|secret| secret.get(key));
                let missing = || ValidateError::MissingKey { kind: "Secret", name: name.clone(), key: key.clone() };
                (name, Some(value.ok_or_else(missing)?))
            }
            None => (&credential.name, fetched.get(&credential.name)),
        };
        let Some(value) = value else { continue };
        let variable = credential.variable();
        match credential.form {
            CredentialForm::Env => {
                env.push(EnvEntry { name: variable, value: text(from, &credential.name, value)? });
            }
            CredentialForm::File => {
                files.push(CredentialFile { name: credential.name.clone(), variable, value: value.clone() });
            }
        }
    }
    Ok(files)
}

fn mounts(volumes: &[Volume], resolved: &Resolved) -> Result<Vec<Mount>, ValidateError> {
    let mut paths = BTreeSet::new();
    let mut mounts = Vec::new();
    for volume in volumes {
        if !paths.insert(volume.mount_path.trim_end_matches('/')) {
            return Err(ValidateError::MountTwice(volume.mount_path.clone()));
        }
        let files = |contents: Option<&Contents>| {
            let files = contents.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
            MountSource::Files(files.collect())
        };
        let source = if let Some(claim) = &volume.persistent_volume_claim {
            MountSource::Persistent { claim: claim.claim_name.clone() }
        } else if let Some(host) = &volume.host_path {
            MountSource::Host(PathBuf::from(&host.path))
        } else if let Some(secret) = &volume.secret {
            files(resolved.secrets.get(&secret.secret_name))
        } else if let Some(map) = &volume.config_map {
            files(resolved.config_maps.get(&map.name))
        } else {
            let limit = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
            let limit = limit.map(Quantity::bytes).transpose();
            let limit =
                limit.map_err(|source| ValidateError::Quantity { field: "spec.volumes.emptyDir.sizeLimit", source })?;
            MountSource::Scratch { size_limit: limit }
        };
        let read_only = volume.read_only || matches!(source, MountSource::Files(_));
        mounts.push(Mount { name: volume.name.clone(), path: PathBuf::from(&volume.mount_path), read_only, source });
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: &str) -> Result<ValidatedServer, String> {
        check_with(spec, Resolved::default())
    }

    fn check_with(spec: &str, resolved: Resolved) -> Result<ValidatedServer, String> {
        let server = McpServer::new("x", serde_yaml_ng::from_str(spec).unwrap());
        validate(&server, References::Resolved(resolved), &Fetched::new()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_sound_spec_becomes_numbers() {
        let valid = check("{image: 'x:1', replicas: 2}").unwrap();
        assert_eq!(valid.limits, Limits { cpu_millis: 500, memory_bytes: 256 << 20, pids: PIDS });
        assert_eq!((valid.replicas, valid.security.user), (2, 10001));
        assert_eq!(check("{image: x, replicas: 2, suspend: true}").unwrap().replicas, 0);
        assert!(check("{remote: {url: 'http://x'}, transport: {type: StreamableHttp}}").unwrap().program.is_none());
    }

    #[test]
    fn what_makes_no_sense_says_what_to_do() {
        for (spec, expected) in [
            ("{image: x, resources: {limits: {memory: '0'}}}", "out of range"),
            ("{image: x, resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}}", "more than the limit of 1Gi"),
            ("{image: x, security: {addCapabilities: [CAP_NET_RAW]}}", "without CAP_"),
            ("{image: x, network: {egress: [{cidr: 10.1.2.3/8}]}}", "write 10.0.0.0/8"),
            ("{image: x, network: {tier: Secure}, transport: {type: StreamableHttp}}", "use transport Stdio"),
            (
                "{image: x, volumes: [{name: a, mountPath: /d, emptyDir: {}}, {name: b, mountPath: /d/, emptyDir: {}}]}",
                "own mountPath",
            ),
            (
                "{image: x, env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}",
                "key \"k\" is not in Secret \"s\"",
            ),
        ] {
            let message = check(spec).unwrap_err();
            assert!(message.contains(expected), "{spec}: {message}");
        }
    }

    #[test]
    fn an_image_has_a_name_that_engines_know() {
        let digest = "a".repeat(64);
        for image in
            ["x", "x:1", "localhost:5000/a/b-c:v1.2_3", "Registry.Example.com/a__b/c", "ghcr.io/a/b.c:1", "sha256:abc"]
        {
            assert!(check(&format!("{{image: '{image}'}}")).is_ok(), "{image}");
        }
        assert!(check(&format!("{{image: 'x:1@sha256:{digest}'}}")).is_ok());
        for image in ["UPPER case//bad", "https://x/y", "x:", "../../containers", "x y", "a//b", "X", "x?y", "x#", "-x"]
        {
            assert!(
                check(&format!("{{image: '{image}'}}")).unwrap_err().contains("not the name of an image"),
                "{image}"
            );
        }
    }

    #[test]
    fn credentials_are_files_or_variables() {
        let secret = Contents::from([("k".to_owned(), SecretSlice::from(b"hunter2".to_vec()))]);
        let resolved = || Resolved { secrets: [("s".to_owned(), secret.clone())].into(), ..Resolved::default() };
        let spec = "{command: [x], credentials: [{name: a, secret: {name: s, key: k}}, {name: b, as: Env, secret: {name: s, key: k}}]}";
        let valid = check_with(spec, resolved()).unwrap();
        let file = &valid.credentials[0];
        assert_eq!((file.name.as_str(), file.variable.as_str()), ("a", "A_FILE"));
        assert_eq!(file.value.expose_secret(), b"hunter2");
        assert_eq!(
            (valid.env[0].name.as_str(), crate::runtime::workload::reveal(&valid.env[0].value)),
            ("B", "hunter2")
        );
        assert_eq!((valid.credentials.len(), valid.env.len()), (1, 1));
        assert!(!format!("{valid:?}").contains("hunter2"));
        for (credential, expected) in [
            ("{name: a, secret: {name: s, key: other}}", "key \"other\" is not in Secret \"s\""),
            ("{name: a, as: Env, variable: LEVEL, secret: {name: s, key: k}}", "sets the variable LEVEL"),
            ("{name: a, serviceAccount: {audience: x}}", "use secret, oauth2 or vault"),
            (
                "{name: a, vault: {address: 'https://v', path: p, key: k, auth: {kubernetes: {role: r, serviceAccountName: x}}}}",
                "use auth.tokenFrom",
            ),
        ] {
            let spec = format!("{{command: [x], env: [{{name: LEVEL, value: '1'}}], credentials: [{credential}]}}");
            let message = check_with(&spec, resolved()).unwrap_err();
            assert!(message.contains(expected), "{credential}: {message}");
        }
        for path in ["/run/perch/credentials", "/run/perch/"] {
            let spec = format!(
                "{{image: x, volumes: [{{name: v, mountPath: {path}, emptyDir: {{}}}}], credentials: [{{name: a, secret: {{name: s, key: k}}}}]}}"
            );
            assert!(check_with(&spec, resolved()).unwrap_err().contains("would hide"), "{path}");
        }
    }

    #[test]
    fn secrets_reach_the_environment_and_nothing_else() {
        let secret = Contents::from([("k".to_owned(), SecretSlice::from(b"hunter2".to_vec()))]);
        let resolved = Resolved { secrets: [("s".to_owned(), secret)].into(), ..Resolved::default() };
        let valid =
            check_with("{image: x, env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}", resolved).unwrap();
        assert_eq!(crate::runtime::workload::reveal(&valid.env[0].value), "hunter2");
        assert!(!format!("{valid:?}").contains("hunter2"));
    }
}
