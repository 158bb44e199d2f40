//! `perch canary`: releases for people.

pub mod args;
mod history;
mod screen;
mod simulate;
mod status;
mod tell;
mod watch;
mod words;

use kube::Api;
use serde::Serialize;

use super::{client, exit::Failure};
use crate::api::canary_release::{CanaryRelease, Verb};
use args::{Canary, Command, Output, Place};

/// Does what was asked for.
pub async fn run(args: Canary) -> Result<(), Failure> {
    match args.command {
        Command::Status(args) => status::run(args).await,
        Command::Watch(args) => watch::run(args).await,
        Command::Pause(args) => tell::run(Verb::Pause, args).await,
        Command::Resume(args) => tell::run(Verb::Resume, args).await,
        Command::Promote(args) => tell::run(Verb::Promote, args).await,
        Command::Skip(args) => tell::run(Verb::Skip, args).await,
        Command::Abort(args) => tell::run(Verb::Abort, args).await,
        Command::Retry(args) => tell::run(Verb::Retry, args).await,
        Command::History(args) => history::run(args).await,
        Command::Simulate(args) => simulate::run(&args),
    }
}

/// The releases of a namespace: of the file that was named, of the perch that runs here, or of the
/// cluster that kubectl uses.
async fn releases(place: &Place) -> Result<Api<CanaryRelease>, Failure> {
    let (client, _) = client::anywhere(&place.plane).await?;
    Ok(Api::namespaced(client, &place.namespace))
}

/// What the API said about a release, for people.
fn refused(error: &kube::Error) -> Failure {
    Failure::failed(client::explain(error))
}

/// Prints something as JSON or YAML.
fn print(what: &impl Serialize, output: Output) -> Result<(), Failure> {
    let text = if output == Output::Json {
        serde_json::to_string_pretty(what).map_err(|error| error.to_string())
    } else {
        serde_yaml_ng::to_string(what).map_err(|error| error.to_string())
    };
    say!("{}", text.map_err(Failure::failed)?.trim_end());
    Ok(())
}
