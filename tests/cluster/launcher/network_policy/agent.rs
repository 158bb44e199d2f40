//! Watches policies and pods, and keeps the packet filter as they want it.
use std::path::Path;

use crate::layout::Error;

/// Runs until it is ended.
pub fn run(_kubeconfig: &Path) -> Result<(), Error> {
    Err("not yet".into())
}
