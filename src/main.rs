//! The `perch` binary: everything is in the library, this only carries the exit code out.

use std::process::ExitCode;

/// Requests are answered in several threads, and much of what one allocates another one frees; the
/// allocators of C libraries let them wait for each other, that of musl most of all.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    perch::cli::main()
}
