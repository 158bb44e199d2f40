//! What registries say about images: the digest that a tag leads to, and who signed it.
//!
//! [`Registries::look`] takes what the policies want to know and gives facts; what follows from them
//! is for the policies. Signatures are those that cosign makes with a key, found under the tag
//! `sha256-….sig`, or among the referrers of the image.
//!
//! # Guarantees
//! * It always answers, within [`PATIENCE`]; what could not be found out is said as a problem.
//! * A registry is trusted with nothing: what it sends is bounded, its digest is computed, and only
//!   a signature by a wanted key counts.
//! * Only registries that the policies name are asked. Whoever declares an image cannot make Perch
//!   ask anybody else, beyond where such a registry sends it: over TLS, and three times at most.
//! * Who signed a digest is remembered while a registry does not answer. A tag is asked for anew
//!   each time.
//!
//! Registries that ask for credentials are not read. May import: `policy`.

mod client;
mod reference;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use serde_json::Value;

use crate::policy::{ImageFacts, Images, Wanted, signature::PublicKey};
use client::{Client, Session, Trouble};
use reference::{Reference, is_digest};

/// Longest time that a look at an image takes: an API server waits five seconds for a webhook.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// How long it is not asked again who signed a digest.
const FRESH: Duration = Duration::from_secs(600);
/// Images that are looked at together.
const TOGETHER: usize = 16;
/// Signatures of one image that are looked at, and things that refer to it.
const MOST: usize = 32;
/// Digests that are remembered.
const KEPT: usize = 10_000;

/// Media type of a payload of simple signing.
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// Annotation with the signature of a payload.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Artifact type of signatures that refer to their image, with payloads of simple signing.
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Begin of the media types of sigstore's bundles.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";

/// Registries, and what is remembered of them. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct Registries {
    client: Client,
    kept: Arc<Mutex<HashMap<(String, String), Kept>>>,
    patience: Duration,
}

/// Who signed a digest.
#[derive(Clone, Debug)]
struct Kept {
    signatures: usize,
    signed_by: BTreeSet<String>,
    seen: Instant,
}

/// The keys that are looked for.
struct Keys<'a>(Vec<(&'a str, PublicKey)>);

/// What was found so far.
#[derive(Default)]
struct Found {
    signatures: usize,
    signed_by: BTreeSet<String>,
}

impl Registries {
    /// Nobody was asked yet.
    ///
    /// # Errors
    /// When the TLS library does not work.
    pub fn new() -> reqwest::Result<Self> {
        Ok(Self { client: Client::new()?, kept: Arc::default(), patience: PATIENCE })
    }

    /// Finds out what is wanted.
    pub async fn look(&self, wanted: &[Wanted]) -> Images {
        let look = |wanted: Wanted| async move {
            let facts = self.image(&wanted).await;
            (wanted.image, facts)
        };
        stream::iter(wanted.iter().cloned()).map(look).buffer_unordered(TOGETHER).collect().await
    }

    async fn image(&self, wanted: &Wanted) -> ImageFacts {
        let problem = |problem: String| ImageFacts { problem: Some(problem), ..ImageFacts::default() };
        let Some(reference) = Reference::parse(&wanted.image) else {
            return problem("its name is none that a registry knows".into());
        };
        if let Ok(facts) = tokio::time::timeout(self.patience, self.find(&reference, wanted)).await {
            return facts;
        }
        let late = format!("registry {} does not answer within {} s", reference.host, self.patience.as_secs());
        let known = self.remembered(&reference, reference.digest.clone(), wanted).unwrap_or_default();
        ImageFacts { problem: Some(late), ..known }
    }

    async fn find(&self, reference: &Reference, wanted: &Wanted) -> ImageFacts {
        let session = self.client.session(reference);
        let digest = match &reference.digest {
            Some(digest) => digest.clone(),
            None => match session.manifest(&reference.tag).await {
                Ok(Some((_, digest))) => digest,
                Ok(None) => {
                    let why = format!("registry {} has no such image", reference.host);
                    return ImageFacts { problem: Some(why), ..ImageFacts::default() };
                }
                Err(trouble) => return ImageFacts { problem: Some(trouble.to_string()), ..ImageFacts::default() },
            },
        };
        if let Some(facts) = self.remembered(reference, Some(digest.clone()), wanted)
            && self.is_fresh(reference, &digest)
        {
            return facts;
        }
        let keys = Keys::parse(&wanted.keys);
        match signatures(&session, &digest, &keys).await {
            Ok(found) => {
                self.keep(reference, &digest, &found);
                ImageFacts {
                    digest: Some(digest),
                    signatures: found.signatures,
                    signed_by: found.signed_by.into_iter().collect(),
                    problem: None,
                }
            }
            Err(trouble) => {
                let known = self.remembered(reference, Some(digest.clone()), wanted);
                let known = known.unwrap_or(ImageFacts { digest: Some(digest), ..ImageFacts::default() });
                ImageFacts { problem: Some(trouble.to_string()), ..known }
            }
        }
    }

    /// What was found before, where one of the wanted keys had signed it.
    fn remembered(&self, reference: &Reference, digest: Option<String>, wanted: &Wanted) -> Option<ImageFacts> {
        let digest = digest?;
        let kept = self.kept.lock().expect("nobody panics while holding what is kept");
        let kept = kept.get(&place(reference, &digest))?;
        let signed_by: Vec<String> = wanted.keys.iter().filter(|key| kept.signed_by.contains(*key)).cloned().collect();
        let facts = ImageFacts { digest: Some(digest), signatures: kept.signatures, signed_by, problem: None };
        (!facts.signed_by.is_empty()).then_some(facts)
    }

    fn is_fresh(&self, reference: &Reference, digest: &str) -> bool {
        let kept = self.kept.lock().expect("nobody panics while holding what is kept");
        kept.get(&place(reference, digest)).is_some_and(|kept| kept.seen.elapsed() < FRESH)
    }

    fn keep(&self, reference: &Reference, digest: &str, found: &Found) {
        let mut kept = self.kept.lock().expect("nobody panics while holding what is kept");
        // What is not signed may be signed in a moment.
        if found.signed_by.is_empty() {
            kept.remove(&place(reference, digest));
            return;
        }
        if kept.len() >= KEPT {
            kept.clear();
        }
        let signed_by = found.signed_by.clone();
        kept.insert(place(reference, digest), Kept { signatures: found.signatures, signed_by, seen: Instant::now() });
    }
}

fn place(reference: &Reference, digest: &str) -> (String, String) {
    (format!("{}/{}", reference.host, reference.repository), digest.to_owned())
}

impl<'a> Keys<'a> {
    /// Keys that cannot be read were refused with their policy.
    fn parse(keys: &'a [String]) -> Self {
        Self(keys.iter().filter_map(|pem| Some((pem.as_str(), PublicKey::parse(pem).ok()?))).collect())
    }

    /// The keys for which something holds.
    fn which(&self, holds: impl Fn(&PublicKey) -> bool) -> BTreeSet<String> {
        self.0.iter().filter(|(_, key)| holds(key)).map(|(pem, _)| (*pem).to_owned()).collect()
    }
}

/// Looks for signatures of a digest until one is by a wanted key.
async fn signatures(session: &Session<'_>, digest: &str, keys: &Keys<'_>) -> Result<Found, Trouble> {
    let mut found = Found::default();
    let tag = digest.replace(':', "-");
    if let Some((manifest, _)) = session.manifest(&format!("{tag}.sig")).await? {
        payloads(session, &manifest, digest, keys, &mut found).await?;
    }
    if !found.signed_by.is_empty() {
        return Ok(found);
    }
    let index = match session.referrers(digest).await? {
        Some(index) => Some(index),
        // Where registries do not know what refers to what, clients keep a list under this tag.
        None => session.manifest(&tag).await?.map(|(index, _)| index),
    };
    for referrer in list(index.as_ref().unwrap_or(&Value::Null), "manifests") {
        let kind = referrer["artifactType"].as_str().unwrap_or_default();
        let Some(name) = referrer["digest"].as_str().filter(|d| is_digest(d)) else { continue };
        if kind != ARTIFACT && !kind.starts_with(BUNDLE) {
            continue;
        }
        let Some((manifest, _)) = session.manifest(name).await? else { continue };
        if kind == ARTIFACT {
            payloads(session, &manifest, digest, keys, &mut found).await?;
        } else {
            bundles(session, &manifest, digest, keys, &mut found).await?;
        }
        if !found.signed_by.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// Signatures whose payloads are the layers of a manifest.
async fn payloads(
    session: &Session<'_>,
    manifest: &Value,
    digest: &str,
    keys: &Keys<'_>,
    found: &mut Found,
) -> Result<(), Trouble> {
    for layer in list(manifest, "layers").filter(|layer| layer["mediaType"] == SIMPLE) {
        let (Some(name), Some(signature)) = (layer["digest"].as_str(), layer["annotations"][SIGNATURE].as_str()) else {
            continue;
        };
        if !is_digest(name) {
            continue;
        }
        found.signatures += 1;
        let Some(payload) = session.blob(name).await? else { continue };
        found.signed_by.extend(keys.which(|key| key.signed_payload(&payload, signature, digest)));
    }
    Ok(())
}

/// Signatures in bundles that are the layers of a manifest.
async fn bundles(
    session: &Session<'_>,
    manifest: &Value,
    digest: &str,
    keys: &Keys<'_>,
    found: &mut Found,
) -> Result<(), Trouble> {
    for layer in list(manifest, "layers") {
        let Some(name) = layer["digest"].as_str().filter(|d| is_digest(d)) else { continue };
        let Some(bundle) = session.blob(name).await? else { continue };
        found.signatures += 1;
        found.signed_by.extend(keys.which(|key| key.signed_bundle(&bundle, digest)));
    }
    Ok(())
}

/// The first members of a list.
fn list<'a>(object: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    object[name].as_array().into_iter().flatten().take(MOST)
}

#[cfg(test)]
mod tests;
