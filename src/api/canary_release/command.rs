//! What a person tells a release, once.
//!
//! `spec` is a standing wish; a command is not, so it travels in an annotation. Its id makes a
//! repeat harmless, and the release and stage that it was meant for keep it from hitting another.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The annotation of a `CanaryRelease` that carries the last [`Command`] as JSON.
pub const COMMAND_ANNOTATION: &str = "perch.dev/command";

/// What a person tells a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Command {
    /// Unique for this command. A command whose id was seen before does nothing.
    pub id: String,
    /// What to do.
    pub verb: Verb,
    /// `status.releaseId` of the release that is meant.
    pub release_id: String,
    /// `status.stage.name` at the time of the command; none before the first stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Who says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A command that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "annotation {COMMAND_ANNOTATION} is no command ({0}): use `perch canary`, or write {{\"id\": …, \"verb\": \"Pause\", \"releaseId\": …}}"
)]
pub struct CommandError(#[from] serde_json::Error);

impl Command {
    /// Reads the annotation's value.
    ///
    /// # Errors
    /// When it is not the JSON of a command.
    pub fn parse(annotation: &str) -> Result<Self, CommandError> {
        Ok(serde_json::from_str(annotation)?)
    }
}

/// What a release can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Verb {
    /// Hold the release where it is.
    Pause,
    /// Go on after a pause, an approval, a review, or for lack of data.
    Resume,
    /// Give the candidate to everybody now, past all stages that are left.
    Promote,
    /// End this stage now and go on to the next.
    Skip,
    /// Take the candidate back.
    Abort,
    /// Release a revision again that was taken back.
    Retry,
}

impl Verb {
    /// The verb as it stands in the annotation.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Promote => "Promote",
            Self::Skip => "Skip",
            Self::Abort => "Abort",
            Self::Retry => "Retry",
        }
    }
}

/// The last command that a release was told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandResult {
    /// Its id.
    pub id: String,
    /// What was to be done.
    pub verb: Verb,
    /// Who said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// When it was read.
    pub at: Time,
    /// Whether it was done.
    pub accepted: bool,
    /// What was done, or why not.
    pub result: String,
}
