//! placeholder
use std::process::ExitCode;
/// Runs.
pub fn main() -> ExitCode {
    print!("{}", serde_yaml_ng::to_string(&crate::api::crds::all()[0]).unwrap());
    ExitCode::SUCCESS
}
