//! `perch access`: what an administrator of a gateway prepares.

use serde_json::json;

use super::{
    args::{AccessCommand, CreateKey, KeyCommand},
    exit::Failure,
};
use crate::gateway::access::api_key;

/// Does what the command says.
pub fn run(command: &AccessCommand) -> Result<(), Failure> {
    let AccessCommand::Key(KeyCommand::Create(args)) = command;
    create(args)
}

/// Makes a key. Only its hash is for keeping.
fn create(args: &CreateKey) -> Result<(), Failure> {
    let user = args.user.as_ref().unwrap_or(&args.name);
    let (key, hash) = api_key::create();
    let mut entry = json!({"name": args.name, "hash": hash, "user": user});
    if !args.groups.is_empty() {
        entry["groups"] = json!(args.groups);
    }
    if let Some(expires) = args.expires {
        entry["expires"] = json!(expires.to_string());
    }
    api_key::check(&entry).map_err(|why| Failure::usage(format!("no gateway would take this key: {why}")))?;
    complain!("The key, which nobody can show again:");
    say!("{key}");
    complain!("The line for `apiKeys` in the file of access, or for one of its `apiKeyFiles`:");
    say!("- {entry}");
    Ok(())
}
