//! From a request to its answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header, request::Parts};
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};

use super::{
    decode, discovery, openapi, openapi_v2, read,
    registry::Registry,
    request::{self, Form, Options, Place, Review, Subresource, Target, Verb},
    service::{Body, full},
    status::ApiError,
    store::Store,
    verbs::{
        Call, Written, create,
        delete::{self, DeleteOptions},
        scale, update,
    },
};

/// Everything that a request may need.
#[derive(Debug)]
pub struct Api {
    pub(super) store: Store,
    pub(super) registry: Registry,
    pub(super) pages: read::Pages,
}

impl Api {
    /// Answers a request.
    pub async fn answer(&self, parts: &Parts, body: Bytes) -> Result<Response<Body>, ApiError> {
        match request::target(&self.registry, parts.uri.path())? {
            Target::Resource(place) => self.resource(parts, place, body).await,
            Target::Review(review) if parts.method == http::Method::POST => {
                let mut object = decode::object(&parts.headers, &body)?.value;
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
            Target::Health => Ok(Response::new(full("ok"))),
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

    async fn resource(&self, parts: &Parts, place: Place, body: Bytes) -> Result<Response<Body>, ApiError> {
        let options = Options::parse(&parts.uri, &parts.headers)?;
        let verb = request::verb(&parts.method, &place, &options)?;
        let form = request::form(&parts.headers)?;
        if !place.kind.writable && !matches!(verb, Verb::Get | Verb::List | Verb::Watch) {
            return Err(ApiError::method_not_allowed());
        }
        if place.kind.namespaced && place.namespace.is_none() && !matches!(verb, Verb::List | Verb::Watch) {
            return Err(ApiError::method_not_allowed());
        }
        let call = Call {
            kind: Arc::clone(&place.kind),
            namespace: place.namespace.clone().unwrap_or_default(),
            subresource: place.subresource,
            manager: options.manager.clone(),
            now: Timestamp::now(),
            field_validation: options.field_validation,
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
        let body = decode::object(&parts.headers, &body)?;
        let request = create::Create { object: body.value, duplicates: body.duplicates, uid: uid(), suffix: suffix() };
        let written = self.run(options, call.clone(), move |tx, call| create::create(tx, call, request)).await?;
        Ok(written_response(&call, form, written))
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
        let body = decode::object(&parts.headers, &body)?;
        let name = place.name.unwrap_or_default();
        let written = self
            .run(options, call.clone(), move |tx, call| match call.subresource {
                Subresource::Scale => scale::write(tx, call, &name, |_| Ok(body.value)),
                _ => update::replace(tx, call, &name, body.value, &body.duplicates),
            })
            .await?;
        Ok(written_response(&call, form, written))
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
        let patch = update::read_patch(media_type, &body, options.force, uid())?;
        if matches!(patch, update::Patch::Apply { .. }) && !options.manager_given {
            return Err(ApiError::bad_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            ));
        }
        let name = place.name.unwrap_or_default();
        let written = self
            .run(options, call.clone(), move |tx, call| match call.subresource {
                Subresource::Scale => scale::write(tx, call, &name, |current| scale::patched(current, &patch)),
                _ => update::patch(tx, call, &name, patch),
            })
            .await?;
        Ok(written_response(&call, form, written))
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
        let left = self.run(&options, call, move |tx, call| delete::delete(tx, call, &name, &deletion)).await?;
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
                match delete::delete(tx, call, name, &deletion) {
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
    let body = if body.is_empty() { Value::Null } else { decode::object(&parts.headers, body)?.value };
    let deletion = DeleteOptions::parse(&body, options.propagation.as_deref())?;
    let dry_run = options.dry_run || deletion.dry_run;
    Ok((deletion, dry_run))
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

fn written_response(call: &Call, form: Form, written: Written) -> Response<Body> {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let shown = match form {
        Form::Object => written.object,
        Form::Metadata => super::objects::table::partial(&written.object),
        Form::Table => {
            let metadata = json!({"resourceVersion": written.object["metadata"]["resourceVersion"]});
            call.kind.columns.table(&[written.object], &metadata, false, true, call.now)
        }
    };
    let mut response = json_response(code, &shown);
    for warning in written.warnings {
        let text = format!("299 - {:?}", warning.replace(['\r', '\n'], " "));
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

/// A JSON answer.
pub fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
