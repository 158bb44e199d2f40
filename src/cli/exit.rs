//! How a command ends: `0` done, `1` failed, `2` wrong usage, `3` the data directory is in use.

use std::{fmt, process::ExitCode};

/// Wrong usage, as clap has it.
pub const USAGE: u8 = 2;
/// Another perch holds the data directory.
pub const HELD: u8 = 3;

/// Why a command ends without having done its work.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It was tried and did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// It cannot be meant like that.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }

    /// Another perch holds the data directory.
    pub fn held(message: impl Into<String>) -> Self {
        Self { code: HELD, message: message.into() }
    }

    /// Tells the person and gives the exit code.
    pub fn report(&self) -> ExitCode {
        complain!("error: {}", self.message);
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
