//! From a request to its answer.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};

use crate::{
    admission::Gate,
    policy::{Images, Wanted},
};

use super::{
    decode, discovery, openapi, openapi_v2,
    options::Options,
    read,
    registry::Registry,
    request::{self, Form, Place, Review, Subresource, Target, Verb},
    service::{Body, full},
    status::{ApiError, add_warnings},
    store::Store,
    verbs::{
        Call, Written, create,
        delete::{self, DeleteOptions},
        scale, update,
    },
};

/// How often registries are asked for one request: an object that changes meanwhile may name others.
const LOOKS: usize = 3;

/// Everything that a request may need.
#[derive(Debug)]
pub struct Api {
    pub(super) store: Store,
    pub(super) registry: Registry,
    pub(super) pages: read::Pages,
    pub(super) gate: std::sync::OnceLock<Gate>,
}

impl Api {
    /// Answers a request.
    pub async fn answer(&self, parts: &Parts, body: Bytes) -> Result<Response<Body>, ApiError> {
        match request::target(&self.registry, parts.uri.path())? {
            Target::Resource(place) => self.resource(parts, place, body).await,
            Target::Review(review) if parts.method == http::Method::POST => {
                let mut object = decode::object(&parts.headers, &body, review.kind())?.value;
                if !object.is_object() {
                    return Err(ApiError::bad_request("the object provided is unrecognized: it is not a JSON object"));
                }
                object["status"] = reviewed(review);
                Ok(json_response(StatusCode::CREATED, &object))
            }
            Target::Review(_) => Err(ApiError::method_not_allowed()),
            target if parts.method != http::Method::GET => {
                let _ = target;
                Err(ApiError::method_not_allowed())
            }
            Target::Health => {
                let mut response = Response::new(full("ok"));
                let type_ = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, type_);
                Ok(response)
            }
            Target::Version => Ok(json_response(StatusCode::OK, &discovery::version())),
            Target::CoreVersions => Ok(discovery::core_versions(&self.registry, &parts.headers)),
            Target::Groups => Ok(discovery::groups(&self.registry, &parts.headers)),
            Target::Group(group) => discovery::group(&self.registry, &group),
            Target::GroupVersion(group, version) => discovery::resources(&self.registry, &group, &version),
            Target::OpenApiV2 => openapi_v2::document(&self.registry, &parts.headers),
            Target::OpenApiIndex => Ok(openapi::index(&self.registry)),
            Target::OpenApi(group, version) => openapi::document(&self.registry, &group, &version),
        }
    }

    /// Does what is asked of a resource. Where it cannot be judged before registries were asked, they
    /// are asked, and it is begun anew: the object may have changed meanwhile.
    async fn resource(&self, parts: &Parts, place: Place, body: Bytes) -> Result<Response<Body>, ApiError> {
        let mut images = Images::new();
        let mut turns = 0..LOOKS;
        loop {
            let wanted = Arc::new(Mutex::default());
            let known = (Arc::new(images.clone()), Arc::clone(&wanted));
            let answer = self.attempt(parts, place.clone(), body.clone(), known).await;
            let wanted: Vec<Wanted> =
                std::mem::take(&mut *wanted.lock().expect("nobody panics while holding what is wanted"));
            match self.gate.get() {
                Some(gate) if !wanted.is_empty() && turns.next().is_some() => images.extend(gate.look(&wanted).await),
                _ => return answer,
            }
        }
    }

    async fn attempt(
        &self,
        parts: &Parts,
        place: Place,
        body: Bytes,
        (images, wanted): (Arc<Images>, Arc<Mutex<Vec<Wanted>>>),
    ) -> Result<Response<Body>, ApiError> {
        let options = Options::parse(&parts.uri, &parts.headers)?;
        if place.kind.custom && place.kind.namespaced && place.namespace.is_none() && parts.method != http::Method::GET
        {
            return Err(ApiError::no_handler());
        }
        if place.kind.custom && parts.method == http::Method::PATCH {
            update::check_patch_form(decode::media_type(&parts.headers))?;
        }
        let verb = request::verb(&parts.method, &place, &options)?;
        let form = request::form(&parts.headers, place.kind.custom)?;
        if !place.kind.writable && !matches!(verb, Verb::Get | Verb::List | Verb::Watch) {
            return Err(ApiError::method_not_allowed());
        }
        if place.kind.namespaced && place.namespace.is_none() && !matches!(verb, Verb::List | Verb::Watch) {
            return Err(ApiError::method_not_allowed());
        }
        if place.kind.is_namespace() && verb == Verb::DeleteCollection {
            return Err(ApiError::method_not_allowed());
        }
        let call = Call {
            kind: Arc::clone(&place.kind),
            registry: self.registry.clone(),
            namespace: place.namespace.clone().unwrap_or_default(),
            subresource: place.subresource,
            manager: options.manager.clone(),
            now: Timestamp::now(),
            field_validation: options.field_validation,
            gate: self.gate.get().cloned(),
            images,
            wanted,
        };
        match verb {
            Verb::Get => read::get(self, &call, &place, form, &options),
            Verb::List => read::list(self, &call, &place, form, &options),
            Verb::Watch => read::watch(self, call, &place, form, &options),
            Verb::Create => self.create(parts, call, form, &options, body).await,
            Verb::Update => self.update(parts, call, place, form, &options, body).await,
            Verb::Patch => self.patch(parts, call, place, form, &options, body).await,
            Verb::Delete => self.delete(parts, call, place, &options, body).await,
            Verb::DeleteCollection => self.delete_collection(parts, call, &place, &options, body).await,
        }
    }

    async fn create(
        &self,
        parts: &Parts,
        call: Call,
        form: Form,
        options: &Options,
        body: Bytes,
    ) -> Result<Response<Body>, ApiError> {
        let read = decode::object(&parts.headers, &body, &call.kind.kind)?;
        options.check_write("CreateOptions", false)?;
        let request =
            create::Create { object: read.value, body, problems: read.problems, uid: uid(), suffix: suffix() };
        let mut written = self.run(options, call.clone(), move |tx, call| create::create(tx, call, request)).await?;
        forget_version(options, &mut written);
        written_response(&call, form, options, written)
    }

    async fn update(
        &self,
        parts: &Parts,
        call: Call,
        place: Place,
        form: Form,
        options: &Options,
        body: Bytes,
    ) -> Result<Response<Body>, ApiError> {
        let wanted = if call.subresource == Subresource::Scale { "Scale" } else { &call.kind.kind };
        let read = decode::object(&parts.headers, &body, wanted)?;
        options.check_write("UpdateOptions", false)?;
        let name = place.name.unwrap_or_default();
        let uid = uid();
        let mut written = self
            .run(options, call.clone(), move |tx, call| {
                if call.subresource == Subresource::Scale {
                    scale::write(tx, call, &name, scale::Change::Replace(read.value, body))
                } else {
                    let replace = update::Replace { object: read.value, body, problems: read.problems, uid };
                    update::replace(tx, call, &name, replace)
                }
            })
            .await?;
        forget_version(options, &mut written);
        written_response(&call, form, options, written)
    }

    async fn patch(
        &self,
        parts: &Parts,
        call: Call,
        place: Place,
        form: Form,
        options: &Options,
        body: Bytes,
    ) -> Result<Response<Body>, ApiError> {
        let media_type = decode::media_type(&parts.headers);
        let patch = update::read_patch(call.kind.custom, media_type, &body, options.force == Some(true), uid())?;
        options.check_write("PatchOptions", matches!(patch, update::Patch::Apply { .. }))?;
        let name = place.name.unwrap_or_default();
        let mut written = self
            .run(options, call.clone(), move |tx, call| match call.subresource {
                Subresource::Scale => scale::write(tx, call, &name, scale::Change::Patch(patch)),
                _ => update::patch(tx, call, &name, patch),
            })
            .await?;
        forget_version(options, &mut written);
        written_response(&call, form, options, written)
    }

    async fn delete(
        &self,
        parts: &Parts,
        call: Call,
        place: Place,
        options: &Options,
        body: Bytes,
    ) -> Result<Response<Body>, ApiError> {
        let (deletion, dry_run) = deletion(parts, options, &body)?;
        let name = place.name.unwrap_or_default();
        let options = Options { dry_run, ..options.clone() };
        let left =
            self.run(&options, call, move |tx, call| delete::delete(tx, call, &name, &deletion, dry_run)).await?;
        Ok(json_response(StatusCode::OK, &left))
    }

    async fn delete_collection(
        &self,
        parts: &Parts,
        call: Call,
        place: &Place,
        options: &Options,
        body: Bytes,
    ) -> Result<Response<Body>, ApiError> {
        let (deletion, dry_run) = deletion(parts, options, &body)?;
        let selection = read::Selection::parse(place, options)?;
        let (objects, revision) = self.store.list(&call.kind.storage, Some(&call.namespace), None);
        let chosen: Vec<Value> = objects.iter().map(|o| o.value()).filter(|object| selection.matches(object)).collect();
        let options = Options { dry_run, ..options.clone() };
        let names: Vec<String> = chosen.iter().map(|o| request::name_of(o).to_owned()).collect();
        self.run(&options, call.clone(), move |tx, call| {
            for name in &names {
                match delete::delete(tx, call, name, &deletion, dry_run) {
                    Ok(_) => {}
                    Err(error) if error.code == StatusCode::NOT_FOUND => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
        .await?;
        let list = read::list_object(&call.kind, chosen, revision, None, None);
        Ok(json_response(StatusCode::OK, &list))
    }

    async fn run<T, F>(&self, options: &Options, call: Call, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut super::store::Transaction<'_>, &Call) -> Result<T, ApiError> + Send + 'static,
    {
        let work = move |transaction: &mut super::store::Transaction<'_>| work(transaction, &call);
        if options.dry_run { self.store.dry_run(work).await } else { self.store.write(work).await }
    }
}

/// Whoever has the token may do everything.
fn reviewed(review: Review) -> Value {
    match review {
        Review::Access => json!({"allowed": true, "reason": "this control plane is yours alone"}),
        Review::Rules => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }),
        Review::Identity => json!({"userInfo": {"username": "perch", "groups": ["system:masters"]}}),
    }
}

fn deletion(parts: &Parts, options: &Options, body: &[u8]) -> Result<(DeleteOptions, bool), ApiError> {
    let body = if body.is_empty() { Value::Null } else { decode::options(&parts.headers, body)? };
    // Who sends options in the body means all of them: those of the query do not count.
    if !body.is_null() {
        let deletion = DeleteOptions::parse(&body, None)?;
        let dry_run = deletion.dry_run;
        return Ok((deletion, dry_run));
    }
    options.check_write("DeleteOptions", false)?;
    Ok((DeleteOptions::parse(&body, options.propagation.as_deref())?, options.dry_run))
}

fn uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Five characters that cannot spell a word, as Kubernetes chooses them.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

/// What a dry run makes has no version: a new object none at all, a changed one that which it had.
fn forget_version(options: &Options, written: &mut Written) {
    if !options.dry_run {
        return;
    }
    if let Some(metadata) = written.object["metadata"].as_object_mut() {
        match written.previous.take() {
            Some(version) => metadata.insert("resourceVersion".into(), version.to_string().into()),
            None => metadata.remove("resourceVersion"),
        };
    }
}

fn written_response(call: &Call, form: Form, options: &Options, written: Written) -> Result<Response<Body>, ApiError> {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let shown = read::shown(call, form, options, written.object)?;
    let mut response = json_response(code, &shown);
    add_warnings(response.headers_mut(), &written.warnings);
    Ok(response)
}

/// A JSON answer.
pub fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
