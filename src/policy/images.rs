//! What registries say about images, and what they are to be asked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An image, and the keys one of which must have signed it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Wanted {
    /// The image as it is named, with its registry: `registry.example.com/team/name:1`.
    pub image: String,
    /// Public keys (ECDSA P-256, PEM).
    pub keys: Vec<String>,
}

/// What is known of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageFacts {
    /// The digest that it is named by, or that its tag leads to: `sha256:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// How many signatures were found, by whomever.
    pub signatures: usize,
    /// Those of the wanted keys that signed the digest.
    pub signed_by: Vec<String>,
    /// Why not everything is known, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What is known of images, by [`Wanted::image`].
pub type Images = BTreeMap<String, ImageFacts>;

/// As the rules read it.
pub(super) fn input(images: &Images) -> Value {
    json!(images)
}

/// Whether a level names somebody who signs.
pub(super) fn any_signer(data: &Value) -> bool {
    let levels = data["perch"]["levels"].as_object();
    let signers = |level: &Value| level["parameters"]["imageSigners"].as_array().is_some_and(|s| !s.is_empty());
    levels.into_iter().flat_map(|levels| levels.values()).any(signers)
}
