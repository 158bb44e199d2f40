//! The last step before a server's program: a process that limits itself and then becomes it.
//!
//! Perch starts its own executable with a hidden subcommand that ends here. Limits that a process
//! sets on itself need no unsafe code between fork and exec, and there is no moment at which the
//! program runs without them.

use std::{ffi::OsString, io, os::unix::process::CommandExt, process::Command};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of data (heap, private mappings) of each process, `RLIMIT_DATA`. A process beyond it
    /// is refused more memory.
    pub data_bytes: u64,
    /// Open files of each process, `RLIMIT_NOFILE`.
    pub open_files: u64,
}

/// Limits this process and replaces it by the program. Returns only when that fails.
pub fn exec(bounds: Bounds, program: &OsString, args: &[OsString]) -> io::Error {
    match limit(bounds) {
        Ok(()) => Command::new(program).args(args).exec(),
        Err(error) => error,
    }
}

fn limit(bounds: Bounds) -> io::Result<()> {
    // Nobody may raise a hard limit, so the lower of the two counts.
    let set = |resource, value: u64| {
        let value = getrlimit(resource).maximum.map_or(value, |hard| hard.min(value));
        setrlimit(resource, Rlimit { current: Some(value), maximum: Some(value) })
    };
    set(Resource::Data, bounds.data_bytes)?;
    set(Resource::Nofile, bounds.open_files)?;
    set(Resource::Core, 0)?;
    #[cfg(target_os = "linux")]
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}
