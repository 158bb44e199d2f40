//! Which kinds are served, and what each of them can do.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};

use jiff::Timestamp;
use serde_json::Value;

use super::{
    LocalError, events,
    objects::{
        builtin,
        schema::Schema,
        table::{Columns, Include, builtin_columns},
    },
    status::Subject,
};

/// A kind in one version.
#[derive(Debug)]
pub struct Kind {
    /// API group, empty for core.
    pub group: String,
    /// Version, `v1alpha1`.
    pub version: String,
    /// `McpServer`.
    pub kind: String,
    /// `mcpservers`.
    pub plural: String,
    /// `mcpserver`.
    pub singular: String,
    /// `mcps`.
    pub short_names: Vec<String>,
    /// `perch`, `all`.
    pub categories: Vec<String>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether `status` is written apart.
    pub status: bool,
    /// Paths of the scale subresource.
    pub scale: Option<ScalePaths>,
    /// Whether it comes from a CustomResourceDefinition: a PUT must carry a resourceVersion, and
    /// changes of anything but metadata and status count up the generation.
    pub custom: bool,
    /// Whether clients may write it.
    pub writable: bool,
    /// What objects look like.
    pub schema: Schema,
    /// What `kubectl get` shows.
    pub columns: Columns,
    /// Name of the resource in the store; kinds that share it are views of the same objects.
    pub storage: String,
}

/// Where the scale subresource finds its numbers.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    /// JSON pointer to the wished number.
    pub spec: String,
    /// JSON pointer to the observed number.
    pub status: String,
    /// JSON pointer to the label selector.
    pub selector: Option<String>,
}

impl Kind {
    /// `group/version`, or the version alone for core.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// What an error about an object of this kind speaks of.
    pub fn subject(&self, name: &str) -> Subject {
        Subject {
            group: self.group.clone(),
            resource: self.plural.clone(),
            kind: self.kind.clone(),
            name: name.to_owned(),
        }
    }

    /// A `Table` of objects; see [`Columns::table`].
    pub fn table(
        &self,
        objects: &[Value],
        metadata: &Value,
        include: Include,
        definitions: bool,
        now: Timestamp,
    ) -> Value {
        let mut table = self.columns.table(objects, metadata, include, definitions, now);
        if self.group == "events.k8s.io" {
            // The columns are those of core events.
            let mut core = objects.to_vec();
            core.iter_mut().for_each(events::to_core);
            let mut of_core = self.columns.table(&core, metadata, Include::Nothing, false, now);
            let rows = table["rows"].as_array_mut().into_iter().flatten();
            for (row, of_core) in rows.zip(of_core["rows"].as_array_mut().into_iter().flatten()) {
                row["cells"] = of_core["cells"].take();
            }
        }
        table
    }

    /// Whether a PUT makes an object that is not there.
    pub fn made_by_put(&self) -> bool {
        matches!(self.kind.as_str(), "Lease" | "Event")
    }

    /// What an error about the contents of an object speaks of. Events are core events to those who
    /// check them, whatever group they came by.
    pub fn error_subject(&self, name: &str) -> Subject {
        let subject = self.subject(name);
        if self.group == "events.k8s.io" { Subject { group: String::new(), ..subject } } else { subject }
    }

    /// Whether this is the kind of namespaces.
    pub fn is_namespace(&self) -> bool {
        self.group.is_empty() && self.plural == "namespaces"
    }
}

/// All kinds, by group, version and plural.
#[derive(Clone, Debug)]
pub struct Registry {
    kinds: Arc<BTreeMap<(String, String, String), Arc<Kind>>>,
}

impl Registry {
    /// The built-in kinds and those of `crds`.
    pub fn new(crds: &[CustomResourceDefinition]) -> Result<Self, LocalError> {
        let mut kinds = builtin_kinds();
        for crd in crds {
            for version in crd.spec.versions.iter().filter(|v| v.served) {
                kinds.push(custom_kind(crd, version)?);
            }
        }
        let kinds = kinds
            .into_iter()
            .map(|kind| ((kind.group.clone(), kind.version.clone(), kind.plural.clone()), Arc::new(kind)))
            .collect();
        Ok(Self { kinds: Arc::new(kinds) })
    }

    /// A kind by its place in the URL.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.kinds.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// A kind as an owner reference names it.
    pub fn of_owner(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.kinds.values().find(|k| k.kind == kind && k.api_version() == api_version)
    }

    /// All kinds, in order of group, version and plural.
    pub fn kinds(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.kinds.values()
    }
}

fn custom_kind(crd: &CustomResourceDefinition, version: &CustomResourceDefinitionVersion) -> Result<Kind, LocalError> {
    let names = &crd.spec.names;
    let broken = |message: String| LocalError::Definition { name: names.plural.clone(), message };
    let openapi = version
        .schema
        .as_ref()
        .and_then(|s| s.open_api_v3_schema.as_ref())
        .ok_or_else(|| broken(format!("version {} has no schema", version.name)))?;
    let openapi = serde_json::to_value(openapi).map_err(|error| broken(error.to_string()))?;
    let subresources = version.subresources.clone().unwrap_or_default();
    let columns = version.additional_printer_columns.clone().unwrap_or_default();
    Ok(Kind {
        group: crd.spec.group.clone(),
        version: version.name.clone(),
        kind: names.kind.clone(),
        plural: names.plural.clone(),
        singular: names.singular.clone().unwrap_or_else(|| names.kind.to_lowercase()),
        short_names: names.short_names.clone().unwrap_or_default(),
        categories: names.categories.clone().unwrap_or_default(),
        namespaced: crd.spec.scope == "Namespaced",
        status: subresources.status.is_some(),
        scale: subresources.scale.map(|s| ScalePaths {
            spec: pointer(&s.spec_replicas_path),
            status: pointer(&s.status_replicas_path),
            selector: s.label_selector_path.as_deref().map(pointer),
        }),
        custom: true,
        writable: true,
        schema: Schema::compile(&openapi).map_err(|error| broken(error.to_string()))?,
        columns: Columns::of_crd(&columns).map_err(broken)?,
        storage: format!("{}.{}", names.plural, crd.spec.group),
    })
}

/// `.spec.replicas` as a JSON pointer.
fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

struct Builtin {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
    storage: &'static str,
}

const BUILTIN: &[Builtin] = &[
    Builtin {
        group: "",
        version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        short: &["ns"],
        namespaced: false,
        storage: "namespaces",
    },
    Builtin {
        group: "",
        version: "v1",
        kind: "Secret",
        plural: "secrets",
        short: &[],
        namespaced: true,
        storage: "secrets",
    },
    Builtin {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        plural: "configmaps",
        short: &["cm"],
        namespaced: true,
        storage: "configmaps",
    },
    Builtin {
        group: "",
        version: "v1",
        kind: "Event",
        plural: "events",
        short: &["ev"],
        namespaced: true,
        storage: "events",
    },
    Builtin {
        group: "events.k8s.io",
        version: "v1",
        kind: "Event",
        plural: "events",
        short: &["ev"],
        namespaced: true,
        storage: "events",
    },
    Builtin {
        group: "coordination.k8s.io",
        version: "v1",
        kind: "Lease",
        plural: "leases",
        short: &[],
        namespaced: true,
        storage: "leases.coordination.k8s.io",
    },
    Builtin {
        group: "apps",
        version: "v1",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        short: &[],
        namespaced: true,
        storage: "controllerrevisions.apps",
    },
    Builtin {
        group: "apiextensions.k8s.io",
        version: "v1",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        short: &["crd", "crds"],
        namespaced: false,
        storage: "customresourcedefinitions.apiextensions.k8s.io",
    },
];

fn builtin_kinds() -> Vec<Kind> {
    BUILTIN
        .iter()
        .map(|b| Kind {
            group: b.group.into(),
            version: b.version.into(),
            kind: b.kind.into(),
            plural: b.plural.into(),
            singular: b.kind.to_lowercase(),
            short_names: b.short.iter().map(ToString::to_string).collect(),
            categories: Vec::new(),
            namespaced: b.namespaced,
            status: false,
            scale: None,
            custom: false,
            writable: b.kind != "CustomResourceDefinition",
            schema: builtin::schema(b.group, b.kind),
            columns: builtin_columns(b.kind),
            storage: b.storage.into(),
        })
        .collect()
}
