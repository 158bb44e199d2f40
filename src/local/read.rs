//! GET: one object, a list, or a watch.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    api::{Api, json_response},
    objects::{
        names,
        selector::{Fields, Labels, served_fields},
        table::{self, Include},
    },
    options::Options,
    registry::Kind,
    request::{Form, Place, Subresource},
    service::{self, Body},
    status::ApiError,
    store::{Change, ChangeType, Store, Stored},
    verbs::{Call, scale},
};

/// Which objects of a resource are meant.
#[derive(Clone, Debug)]
pub struct Selection {
    namespace: Option<String>,
    name: Option<String>,
    labels: Labels,
    fields: Fields,
}

impl Selection {
    /// Reads the selectors of a query.
    pub fn parse(place: &Place, options: &Options) -> Result<Self, ApiError> {
        let served = served_fields(&place.kind.group, &place.kind.kind);
        let bad = |error: super::objects::selector::SelectorError| ApiError::bad_request(error.to_string());
        Ok(Self {
            namespace: place.namespace.clone(),
            name: place.name.clone(),
            labels: Labels::parse(&options.labels).map_err(bad)?,
            fields: Fields::parse(&options.fields, &served).map_err(bad)?,
        })
    }

    fn is_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.name.is_none()
    }

    /// Whether labels and fields of an object fit.
    pub fn matches(&self, object: &Value) -> bool {
        self.name.as_ref().is_none_or(|name| object["metadata"]["name"] == **name)
            && self.labels.matches(object)
            && self.fields.matches(object)
    }

    fn reaches(&self, stored: &Stored) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| stored.key.namespace == *namespace)
    }
}

/// GET of one object.
pub fn get(api: &Api, call: &Call, place: &Place, form: Form, options: &Options) -> Result<Response<Body>, ApiError> {
    let name = place.name.as_deref().unwrap_or_default();
    if let Some(asked) = options.resource_version.as_deref() {
        let (_, revision) = api.store.list(&call.kind.storage, Some(""), None);
        check_revision(asked, revision).map_err(VersionError::of_get)?;
    }
    let stored = api.store.get(&call.key(name)).ok_or_else(|| ApiError::not_found(&call.kind.subject(name)))?;
    let mut object = stored.value();
    call.to_shown(&mut object);
    if place.subresource == Subresource::Scale {
        return Ok(json_response(StatusCode::OK, &scale::show(call, &object)));
    }
    Ok(json_response(StatusCode::OK, &shown(call, form, options, object)?))
}

/// An object in the form that the client asks for.
pub fn shown(call: &Call, form: Form, options: &Options, object: Value) -> Result<Value, ApiError> {
    Ok(match form {
        Form::Object => object,
        Form::Metadata => table::partial(&object),
        Form::MetadataList => return Err(ApiError::unexpected("content is not a list")),
        Form::Table => {
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            call.kind.table(&[object], &metadata, rows_with(options)?, true, call.now)
        }
    })
}

/// What goes into the rows of a table beside the cells.
fn rows_with(options: &Options) -> Result<Include, ApiError> {
    match options.include_object.as_deref().unwrap_or_default() {
        "Object" => Ok(Include::Object),
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::Nothing),
        other => Err(ApiError::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
            names::quoted(other)
        ))),
    }
}

/// How long the rest of a list stays readable after its first page.
const PAGE_LIFE: Duration = Duration::from_secs(300);
/// How many half-read lists are kept.
const PAGE_LIMIT: usize = 64;

/// Lists that clients are in the middle of: each goes on where it was, at the revision at which
/// it began.
#[derive(Debug, Default)]
pub struct Pages(Mutex<HashMap<String, Page>>);

#[derive(Debug)]
struct Page {
    kept_until: Instant,
    objects: Vec<Arc<Stored>>,
    revision: u64,
}

impl Pages {
    fn keep(&self, objects: Vec<Arc<Stored>>, revision: u64) -> String {
        let mut pages = self.0.lock().expect("nobody panics while holding the pages");
        let now = Instant::now();
        pages.retain(|_, page| page.kept_until > now);
        if pages.len() >= PAGE_LIMIT
            && let Some(oldest) = pages.iter().min_by_key(|(_, p)| p.kept_until).map(|(token, _)| token.clone())
        {
            pages.remove(&oldest);
        }
        let token = uuid::Uuid::new_v4().simple().to_string();
        pages.insert(token.clone(), Page { kept_until: now + PAGE_LIFE, objects, revision });
        token
    }

    /// A token may be used again, as a client does whose connection broke.
    fn find(&self, token: &str) -> Result<(Vec<Arc<Stored>>, u64), ApiError> {
        if uuid::Uuid::try_parse(token).is_err() {
            return Err(ApiError::bad_request(
                "invalid continue token: continue key is not valid: this server did not give it out",
            ));
        }
        let pages = self.0.lock().expect("nobody panics while holding the pages");
        let page = pages.get(token).filter(|page| page.kept_until > Instant::now()).ok_or_else(|| {
            ApiError::expired("The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.")
        })?;
        Ok((page.objects.clone(), page.revision))
    }
}

/// GET of a resource.
pub fn list(api: &Api, call: &Call, place: &Place, form: Form, options: &Options) -> Result<Response<Body>, ApiError> {
    let selection = Selection::parse(place, options)?;
    options.check_list()?;
    if form == Form::Metadata {
        return Err(ApiError::not_that_form(format!(
            "you requested PartialObjectMetadata, but the requested object is a list (*{})",
            if call.kind.custom {
                "unstructured.UnstructuredList".to_owned()
            } else {
                format!("v1.{}List", call.kind.kind)
            }
        )));
    }
    let (stored, revision) = if let Some(token) = &options.continue_ {
        if options.resource_version.as_deref().is_some_and(|version| version != "0") {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        api.pages.find(token)?
    } else {
        let (mut stored, revision) = api.store.list(&call.kind.storage, place.namespace.as_deref(), None);
        if let Some(asked) = options.resource_version.as_deref() {
            let exact = options.resource_version_match.as_deref() == Some("Exact");
            let asked = check_revision(asked, revision).map_err(|error| error.of_list(exact))?;
            let exact = match options.resource_version_match.as_deref() {
                None => options.limit.is_some() && asked > 0,
                Some(match_) => match_ == "Exact",
            };
            if exact {
                stored = api
                    .store
                    .list_at(&call.kind.storage, place.namespace.as_deref(), asked)
                    .map_err(|expired| ApiError::expired(expired.to_string()))?;
            }
        }
        if !selection.is_all() {
            stored.retain(|s| {
                let mut object = s.value();
                call.to_shown(&mut object);
                selection.matches(&object)
            });
        }
        (stored, revision)
    };
    let limit = options.limit.unwrap_or(usize::MAX);
    let (page, rest) = stored.split_at(limit.min(stored.len()));
    let remaining = rest.len();
    let token = (remaining > 0).then(|| api.pages.keep(rest.to_vec(), revision));
    if form == Form::Object && call.kind.custom {
        return Ok(bytes_response(list_bytes(&call.kind, page, revision, token.as_deref(), remaining)));
    }
    let mut objects: Vec<Value> = page.iter().map(|s| s.value()).collect();
    for object in &mut objects {
        call.to_shown(object);
    }
    let answer = match form {
        Form::Table => {
            let metadata = list_metadata(revision, token.as_deref(), remaining);
            call.kind.table(&objects, &metadata, rows_with(options)?, true, call.now)
        }
        Form::Metadata | Form::MetadataList => {
            let items: Vec<Value> = objects.iter().map(table::partial).collect();
            json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": list_metadata(revision, token.as_deref(), remaining),
                "items": items,
            })
        }
        Form::Object => list_object(&call.kind, objects, revision, token.as_deref(), Some(remaining)),
    };
    Ok(json_response(StatusCode::OK, &answer))
}

/// What is wrong with a resource version.
enum VersionError {
    NoNumber(String),
    TooLarge { asked: u64, current: u64 },
}

impl VersionError {
    fn of_get(self) -> ApiError {
        match self {
            Self::NoNumber(why) => ApiError::unexpected(why),
            Self::TooLarge { asked, current } => ApiError::version_too_large(asked, current, true),
        }
    }

    fn of_list(self, exact: bool) -> ApiError {
        match self {
            Self::NoNumber(why) => ApiError::bad_request(format!("invalid resource version: {why}")),
            Self::TooLarge { asked, current } => ApiError::version_too_large(asked, current, !exact),
        }
    }
}

fn check_revision(asked: &str, revision: u64) -> Result<u64, VersionError> {
    let asked: u64 = asked.parse().map_err(|_| {
        let asked = names::quoted(asked);
        VersionError::NoNumber(format!(
            "resourceVersion: Invalid value: {asked}: strconv.ParseUint: parsing {asked}: invalid syntax"
        ))
    })?;
    // A client that has seen the future of this store talks to another one.
    if asked > revision { Err(VersionError::TooLarge { asked, current: revision }) } else { Ok(asked) }
}

fn list_metadata(revision: u64, token: Option<&str>, remaining: usize) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(token) = token {
        metadata["continue"] = token.into();
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

/// Lists of custom resources have the member even when it is empty.
fn add_continue(metadata: &mut Value) {
    if metadata.get("continue").is_none() {
        metadata["continue"] = "".into();
    }
}

/// A list of objects. Items of built-in kinds do not repeat what they are.
pub fn list_object(
    kind: &Kind,
    mut items: Vec<Value>,
    revision: u64,
    token: Option<&str>,
    remaining: Option<usize>,
) -> Value {
    let mut metadata = list_metadata(revision, token, remaining.unwrap_or(0));
    if kind.custom {
        add_continue(&mut metadata);
    } else {
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            item.remove("kind");
            item.remove("apiVersion");
        }
    }
    json!({
        "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": metadata, "items": items,
    })
}

/// A list made of the bytes in the store, without reading them.
fn list_bytes(kind: &Kind, page: &[Arc<Stored>], revision: u64, token: Option<&str>, remaining: usize) -> Bytes {
    let head = json!({"kind": format!("{}List", kind.kind), "apiVersion": kind.api_version()}).to_string();
    let mut metadata = list_metadata(revision, token, remaining);
    add_continue(&mut metadata);
    let metadata = metadata.to_string();
    let mut bytes = Vec::with_capacity(page.iter().map(|s| s.json.len() + 1).sum::<usize>() + head.len() + 256);
    bytes.extend_from_slice(head.trim_end_matches('}').as_bytes());
    bytes.extend_from_slice(b",\"metadata\":");
    bytes.extend_from_slice(metadata.as_bytes());
    bytes.extend_from_slice(b",\"items\":[");
    for (index, stored) in page.iter().enumerate() {
        if index > 0 {
            bytes.push(b',');
        }
        bytes.extend_from_slice(&stored.json);
    }
    bytes.extend_from_slice(b"]}");
    bytes.into()
}

fn bytes_response(bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(service::full(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Time between bookmarks of a watch that asks for them.
const BOOKMARK: Duration = Duration::from_secs(60);
/// How long a watch lasts that names no time.
const WATCH: Duration = Duration::from_secs(3600);

struct Watch {
    store: Store,
    call: Call,
    selection: Selection,
    form: Form,
    include: Include,
    bookmarks: bool,
    cursor: u64,
    /// Tables tell their columns once.
    columns_told: bool,
}

/// GET of a resource with `watch`.
pub fn watch(api: &Api, call: Call, place: &Place, form: Form, options: &Options) -> Result<Response<Body>, ApiError> {
    let selection = Selection::parse(place, options)?;
    options.check_list()?;
    let version = options.resource_version.as_deref().unwrap_or("0");
    let initial = options.initial_events.unwrap_or(version == "0");
    let (stored, revision) = api.store.list(&call.kind.storage, place.namespace.as_deref(), None);
    let cursor = if initial { revision } else { check_revision(version, revision).map_err(VersionError::of_get)? };
    let mut watch = Watch {
        store: api.store.clone(),
        call,
        selection,
        form,
        include: rows_with(options)?,
        bookmarks: options.bookmarks,
        cursor,
        columns_told: false,
    };
    let mut first = Vec::new();
    if initial {
        for stored in stored {
            watch.push(&mut first, "ADDED", &stored);
        }
        if options.initial_events == Some(true) && options.bookmarks {
            watch.push_bookmark(&mut first, true);
        }
    }
    let life = options.timeout_seconds.map_or(WATCH, Duration::from_secs);
    let mut response = Response::new(service::stream(watch.events(Bytes::from(first), life)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

impl Watch {
    fn events(self, first: Bytes, life: Duration) -> impl Stream<Item = Bytes> + Send + 'static {
        let end = tokio::time::Instant::now() + life;
        let revisions = self.store.revisions();
        let first = stream::iter((!first.is_empty()).then_some(first));
        let later = stream::unfold(Some((self, revisions)), move |state| async move {
            let (mut watch, mut revisions) = state?;
            let mut next_bookmark = tokio::time::Instant::now() + BOOKMARK;
            loop {
                revisions.mark_unchanged();
                let mut bytes = Vec::new();
                match watch.store.changes(&watch.call.kind.storage, watch.cursor) {
                    Err(expired) => {
                        let status = ApiError::expired(expired.to_string()).status();
                        let event = format!("{}\n", json!({"type": "ERROR", "object": status}));
                        return Some((Bytes::from(event), None));
                    }
                    Ok((changes, revision)) => {
                        for change in changes {
                            watch.push_change(&mut bytes, &change);
                        }
                        watch.cursor = revision;
                    }
                }
                if !bytes.is_empty() {
                    return Some((Bytes::from(bytes), Some((watch, revisions))));
                }
                tokio::select! {
                    changed = revisions.changed() => changed.ok()?,
                    () = tokio::time::sleep_until(next_bookmark), if watch.bookmarks => {
                        next_bookmark += BOOKMARK;
                        watch.push_bookmark(&mut bytes, false);
                        return Some((Bytes::from(bytes), Some((watch, revisions))));
                    }
                    () = tokio::time::sleep_until(end) => return None,
                }
            }
        });
        first.chain(later)
    }

    /// A change as this watcher sees it: an object that comes to fit its selection was added to
    /// its view, one that no longer fits was deleted from it.
    fn push_change(&mut self, bytes: &mut Vec<u8>, change: &Change) {
        if !self.selection.reaches(&change.object) {
            return;
        }
        let fits = |stored: &Stored| {
            if self.selection.is_all() {
                return true;
            }
            let mut object = stored.value();
            self.call.to_shown(&mut object);
            self.selection.matches(&object)
        };
        let before = change.previous.as_deref().is_some_and(fits);
        let after = change.type_ != ChangeType::Deleted && fits(&change.object);
        let type_ = match (before, after) {
            (false, false) => return,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        // What leaves the view is shown as it was last seen there, at the version at which it left.
        match change.previous.as_ref().filter(|_| type_ == "DELETED" && change.type_ != ChangeType::Deleted) {
            Some(previous) => self.push(bytes, type_, &previous.at(change.revision)),
            None => self.push(bytes, type_, &change.object),
        }
    }

    fn push(&mut self, bytes: &mut Vec<u8>, type_: &str, stored: &Stored) {
        if type_ == "ADDED" && !self.selection.is_all() {
            let mut object = stored.value();
            self.call.to_shown(&mut object);
            if !self.selection.matches(&object) {
                return;
            }
        }
        bytes.extend_from_slice(b"{\"type\":\"");
        bytes.extend_from_slice(type_.as_bytes());
        bytes.extend_from_slice(b"\",\"object\":");
        if self.form == Form::Object && self.call.kind.group != "events.k8s.io" {
            bytes.extend_from_slice(&stored.json);
        } else {
            let mut object = stored.value();
            self.call.to_shown(&mut object);
            let shown = match self.form {
                Form::Object => object,
                Form::Metadata | Form::MetadataList => table::partial(&object),
                Form::Table => {
                    let metadata = json!({"resourceVersion": stored.revision.to_string()});
                    let columns = !std::mem::replace(&mut self.columns_told, true);
                    self.call.kind.table(&[object], &metadata, self.include, columns, Timestamp::now())
                }
            };
            bytes.extend_from_slice(shown.to_string().as_bytes());
        }
        bytes.extend_from_slice(b"}\n");
    }

    fn push_bookmark(&self, bytes: &mut Vec<u8>, initial_events_end: bool) {
        let mut metadata = json!({"resourceVersion": self.cursor.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object =
            json!({"kind": self.call.kind.kind, "apiVersion": self.call.kind.api_version(), "metadata": metadata});
        let object = match self.form {
            Form::Object => object,
            Form::Metadata | Form::MetadataList => table::partial(&object),
            Form::Table => {
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": []})
            }
        };
        bytes.extend_from_slice(json!({"type": "BOOKMARK", "object": object}).to_string().as_bytes());
        bytes.push(b'\n');
    }
}
