//! `perch canary pause|resume|promote|skip|abort|retry`.

use std::time::Duration;

use futures::TryStreamExt;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher::watch_object},
};
use serde_json::json;

use super::{args::Tell, refused, releases};
use crate::{
    api::canary_release::{COMMAND_ANNOTATION, CanaryRelease, Command, CommandResult, Verb},
    cli::exit::Failure,
};

/// Tells a release something, waits for its answer, and prints it.
pub async fn run(verb: Verb, args: Tell) -> Result<(), Failure> {
    let api = releases(&args.place).await?;
    let release = api.get(&args.name).await.map_err(|error| refused(&error))?;
    let status = release.status.unwrap_or_default();
    let Some(release_id) = status.release_id else {
        return Err(Failure::failed(format!(
            "{} has not released anything yet: change the server {} to start",
            args.name, release.spec.target_ref.name
        )));
    };
    let command = Command {
        id: uuid::Uuid::new_v4().to_string(),
        verb,
        release_id,
        stage: status.stage.map(|stage| stage.name),
        by: args.by.filter(|by| !by.is_empty()),
    };
    let annotation = serde_json::to_string(&command).map_err(|error| Failure::failed(error.to_string()))?;
    let patch = json!({"metadata": {"annotations": {COMMAND_ANNOTATION: annotation}}});
    api.patch(&args.name, &PatchParams::default(), &Patch::Merge(&patch)).await.map_err(|error| refused(&error))?;
    let patience = Duration::from_secs(args.timeout);
    let answer = tokio::time::timeout(patience, answer(api, &args.name, &command)).await.unwrap_or_else(|_| {
        Err(Failure::failed(format!(
            "no answer within {} s: is an operator running? The command stays with the release, and is obeyed when one comes",
            args.timeout
        )))
    })?;
    if !answer.accepted {
        return Err(Failure::failed(format!("{} was refused: {}", verb.as_str(), answer.result)));
    }
    say!("{}: {}", args.name, answer.result);
    Ok(())
}

/// Waits until the command was read.
async fn answer(api: Api<CanaryRelease>, name: &str, command: &Command) -> Result<CommandResult, Failure> {
    let changes = watch_object(api, name).default_backoff();
    futures::pin_mut!(changes);
    loop {
        match changes.try_next().await {
            Ok(Some(Some(release))) => {
                if let Some(result) = of(&release, command)? {
                    return Ok(result);
                }
            }
            Ok(Some(None)) => return Err(Failure::failed(format!("{name} was deleted"))),
            Ok(None) => return Err(Failure::failed("the watch ended")),
            Err(error) => tracing::debug!(%error, "the release is out of sight for a moment"),
        }
    }
}

/// The answer to a command, when there is one; or that there will be none.
fn of(release: &CanaryRelease, command: &Command) -> Result<Option<CommandResult>, Failure> {
    let status = release.status.as_ref();
    if let Some(result) = status.and_then(|s| s.last_command.as_ref()).filter(|last| last.id == command.id) {
        return Ok(Some(result.clone()));
    }
    if status.is_some_and(|s| s.seen_commands.contains(&command.id)) {
        return Err(Failure::failed("it was read, and another command was answered since: see `perch canary status`"));
    }
    let there = release.annotations().get(COMMAND_ANNOTATION).and_then(|text| Command::parse(text).ok());
    match there {
        Some(there) if there.id == command.id => Ok(None),
        Some(other) => {
            let by = other.by.as_deref().unwrap_or("somebody");
            Err(Failure::failed(format!("{} by {by} took its place before it was read", other.verb.as_str())))
        }
        None => Err(Failure::failed("somebody removed the command before it was read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(id: &str) -> Command {
        Command { id: id.into(), verb: Verb::Pause, release_id: "r".into(), stage: None, by: Some("dana".into()) }
    }

    fn release(annotation: Option<&Command>, status: &serde_json::Value) -> CanaryRelease {
        let annotations = annotation.map(|c| json!({COMMAND_ANNOTATION: serde_json::to_string(c).unwrap()}));
        serde_json::from_value(json!({"apiVersion": "perch.dev/v1alpha1", "kind": "CanaryRelease",
            "metadata": {"name": "r", "annotations": annotations},
            "spec": {"targetRef": {"name": "s"}, "stages": []}, "status": status}))
        .unwrap()
    }

    fn said(annotation: Option<&Command>, status: &serde_json::Value) -> String {
        match of(&release(annotation, status), &command("mine")) {
            Ok(None) => "wait".into(),
            Ok(Some(result)) => result.result,
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn only_the_answer_to_this_command_counts() {
        let last = |id: &str| json!({"lastCommand": {"id": id, "verb": "Pause", "at": "2026-01-01T00:00:00Z", "accepted": true, "result": "done"}});
        let mine = command("mine");
        assert_eq!(said(Some(&mine), &last("mine")), "done");
        assert_eq!(said(Some(&mine), &last("older")), "wait");
        assert_eq!(said(Some(&mine), &json!({})), "wait");
    }

    #[test]
    fn a_command_that_will_not_be_answered_is_not_waited_for() {
        let other = command("other");
        assert_eq!(said(Some(&other), &json!({})), "Pause by dana took its place before it was read");
        assert!(said(None, &json!({})).contains("removed"));
        assert!(said(Some(&other), &json!({"seenCommands": ["other", "mine"]})).contains("it was read"));
    }
}
