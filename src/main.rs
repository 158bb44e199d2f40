//! The `perch` binary: everything is in the library, this only carries the exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    perch::cli::main()
}
