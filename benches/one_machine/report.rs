//! Figures and the table that they go into.

#![allow(dead_code, reason = "no benchmark needs all of it")]

use std::time::Duration;

/// The lines of the table.
#[derive(Default)]
pub struct Report(Vec<[String; 3]>);

impl Report {
    /// Adds a line, and shows it at once.
    pub fn line(&mut self, what: &str, goal: &str, seen: String) {
        eprintln!("{what}: {seen} (goal: {goal})");
        self.0.push([what.into(), goal.into(), seen]);
    }

    /// Prints the table as Markdown.
    pub fn print(&self) {
        println!("| What | Goal | Seen |\n|---|---|---|");
        for [what, goal, seen] in &self.0 {
            println!("| {what} | {goal} | {seen} |");
        }
    }
}

/// Minimum, median and maximum of some durations, in milliseconds.
pub fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let (first, last) = (times[0], times[times.len() - 1]);
    let median = times[times.len() / 2];
    format!("median {:.1} ms ({:.1} to {:.1}, {} runs)", ms(median), ms(first), ms(last), times.len())
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Resident memory of a process in KiB.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Megabytes of 2^20 bytes, from KiB.
pub fn mib(kib: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let mib = kib as f64 / 1024.0;
    format!("{mib:.1} MiB")
}
