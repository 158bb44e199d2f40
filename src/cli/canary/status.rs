//! `perch canary status`.

use jiff::Timestamp;
use kube::{ResourceExt, api::ListParams};

use super::{
    args::{Output, Status},
    print, refused, releases, screen, words,
};
use crate::{
    api::canary_release::CanaryRelease,
    cli::{exit::Failure, get},
};

/// Shows a release, or lists all.
pub async fn run(args: Status) -> Result<(), Failure> {
    let api = releases(&args.place).await?;
    let Some(name) = &args.name else {
        let all = api.list(&ListParams::default()).await.map_err(|error| refused(&error))?.items;
        if args.output != Output::Text {
            return print(&all, args.output);
        }
        list(&all, &args.place.namespace);
        return Ok(());
    };
    let release = api.get(name).await.map_err(|error| refused(&error))?;
    if args.output != Output::Text {
        return print(&release, args.output);
    }
    say!("{}", screen::screen(&release, Timestamp::now()).trim_end());
    Ok(())
}

fn list(all: &[CanaryRelease], namespace: &str) {
    if all.is_empty() {
        say!("No releases in namespace {namespace}. Apply one: perch up --apply FILE, or kubectl apply -f FILE");
        return;
    }
    let mut table = get::plain();
    table.set_header(["NAME", "SERVER", "PHASE", "STAGE", "WHO", "VERDICT", "WHY"]);
    for release in all {
        let status = release.status.clone().unwrap_or_default();
        let routing = &status.routing;
        table.add_row([
            release.name_any(),
            release.spec.target_ref.name.clone(),
            status.phase.as_str().to_owned(),
            status.stage.map(|stage| stage.name).unwrap_or_default(),
            words::users(routing.percentage, &routing.users, &routing.groups),
            status.verdict.map(|v| words::verdict(v).to_owned()).unwrap_or_default(),
            status.message,
        ]);
    }
    say!("{table}");
}
