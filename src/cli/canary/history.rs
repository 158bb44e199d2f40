//! `perch canary history`.

use jiff::Timestamp;

use super::{
    args::{History, Output},
    print, refused, releases, words,
};
use crate::{
    api::canary_release::CanaryRelease,
    cli::{exit::Failure, get},
    controllers::canary_release::incident::incidents,
};

/// Shows releases that ended, or the incident records of those that ended badly.
pub async fn run(args: History) -> Result<(), Failure> {
    let api = releases(&args.place).await?;
    let release = api.get(&args.name).await.map_err(|error| refused(&error))?;
    if args.output != Output::Text {
        return print(&incidents(&release), args.output);
    }
    show(&release, Timestamp::now());
    Ok(())
}

fn show(release: &CanaryRelease, now: Timestamp) {
    let history = release.status.as_ref().map(|s| s.history.as_slice()).unwrap_or_default();
    if history.is_empty() {
        say!("No release has ended yet.");
        return;
    }
    let mut table = get::plain();
    table.set_header(["ENDED", "OUTCOME", "REASON", "REVISION", "STAGE", "REACHED", "TOOK", "WHY"]);
    for entry in history {
        table.add_row([
            words::ago(entry.ended_at.0, now),
            format!("{:?}", entry.outcome),
            entry.reason.as_str().to_owned(),
            entry.candidate_revision.clone(),
            entry.stage.clone().unwrap_or_default(),
            format!("{}%", entry.percentage),
            words::span(entry.ended_at.0.as_second() - entry.started_at.0.as_second()),
            entry.message.clone(),
        ]);
    }
    say!("{table}");
}
