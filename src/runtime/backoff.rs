//! When an instance that ended by itself starts again.
//!
//! The first restart is immediate. Then the wait doubles from one second up to five minutes. An
//! instance that ran for [`RESET_AFTER`] counts as healthy and starts afresh.

use std::time::Duration;

/// Wait before the second restart in a row.
pub const FIRST: Duration = Duration::from_secs(1);
/// Longest wait.
pub const MAX: Duration = Duration::from_secs(300);
/// An instance that ran this long clears the count.
pub const RESET_AFTER: Duration = Duration::from_secs(60);

/// The wait before a restart, when `failures` ends came before it without a healthy run between
/// them (1 for the first end).
#[must_use]
pub fn wait(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        n => FIRST.saturating_mul(1u32.checked_shl(n - 2).unwrap_or(u32::MAX)).min(MAX),
    }
}

/// The count of failures in a row after an end, given the count before and how long it ran.
#[must_use]
pub fn failures_after(before: u32, ran: Duration) -> u32 {
    if ran >= RESET_AFTER { 1 } else { before.saturating_add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_minutes() {
        let waits: Vec<u64> = (1..=13).map(|n| wait(n).as_secs()).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(wait(u32::MAX), MAX);
    }

    #[test]
    fn a_healthy_run_clears_the_count() {
        assert_eq!(failures_after(7, Duration::from_secs(59)), 8);
        assert_eq!(failures_after(7, RESET_AFTER), 1);
    }
}
