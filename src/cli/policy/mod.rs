//! `perch policy`: what may run, checked before anything runs.

pub mod args;
mod read;
mod report;
mod scan;

use jiff::Timestamp;

use self::{
    args::{Check, Format, PolicyCommand},
    read::Document,
};
use super::exit::Failure;
use crate::{
    admission,
    api::mcp_server::PolicyAction,
    policy::{Bundle, Judgement, Mode, Policies, Scope, Subject},
    supply_chain::Registries,
};

/// Something that was read, and what was found about it.
pub struct Checked {
    document: Document,
    judgement: Judgement,
}

/// Does what the command says.
pub async fn run(command: &PolicyCommand) -> Result<(), Failure> {
    let PolicyCommand::Check(args) = command;
    check(args).await
}

/// Registries to ask who signed an image.
pub fn registries() -> Result<Registries, Failure> {
    Registries::new().map_err(|error| Failure::failed(format!("registries cannot be asked: {error}")))
}

/// The bundles of folders.
pub fn bundles(folders: &[std::path::PathBuf]) -> Result<Vec<Bundle>, Failure> {
    let mut bundles = Vec::new();
    for folder in folders {
        let found = admission::folder(folder).map_err(|error| {
            Failure::failed(format!("the policies in {} cannot be read: {error}", folder.display()))
        })?;
        bundles.extend(found);
    }
    Ok(bundles)
}

async fn check(args: &Check) -> Result<(), Failure> {
    let policies = Policies::new(&bundles(&args.policies)?);
    if !policies.refused().is_empty() {
        let refused: Vec<String> = policies.refused().iter().map(ToString::to_string).collect();
        return Err(Failure::failed(format!("the policies are not good:\n{}", refused.join("\n"))));
    }
    let scope = Scope { level: args.level.into(), mode: Mode::Deny };
    let now = Timestamp::now();
    let mut checked = Vec::new();
    let mut documents = read::read(&args.files)?;
    scan::apply(&args.scan, &mut documents, now)?;
    let registries = if args.verify_images { Some(registries()?) } else { None };
    for document in documents {
        let level = scope.level_of(&document.object);
        let mut subject = Subject { object: &document.object, level, now, images: None };
        let images = match &registries {
            Some(registries) => Some(registries.look(&policies.wanted(&subject)).await),
            None => None,
        };
        subject.images = images.as_ref();
        let judgement = policies.judge(&subject);
        checked.push(Checked { document, judgement });
    }
    match args.output {
        Format::Human => report::human(&checked),
        Format::Json => say!("{:#}", report::json(&checked)),
        Format::Sarif => say!("{:#}", report::sarif(&checked)),
    }
    let all = || checked.iter().flat_map(|c| &c.judgement.violations);
    let denied = all().filter(|v| v.action == PolicyAction::Deny).count();
    let warned = all().count() - denied;
    let faults: Vec<String> = checked.iter().flat_map(|c| &c.judgement.faults).map(ToString::to_string).collect();
    if !faults.is_empty() {
        return Err(Failure::failed(format!("not everything could be judged:\n{}", faults.join("\n"))));
    }
    if denied > 0 || (args.strict && warned > 0) {
        return Err(Failure::failed(format!("policies are broken: {denied} times, with {warned} warnings beside")));
    }
    Ok(())
}
