//! What the gateway costs: the same server called directly, through nginx as a plain HTTP proxy, and
//! through Perch with access control, audit log, metrics and sessions; then many sessions, many
//! streams, and routes that change under load.
//!
//! `gateway [compare] [paced] [sessions] [streams] [toolbox] [swaps] [soak]` measures these parts, or all but the
//! last, and prints Markdown. `hack/bench.sh gateway` sets up what it needs. `PERCH_BENCH_SECONDS` is
//! the time of one run of the comparison (2), of which there are three for each line.

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../one_machine/report.rs"]
mod report;

mod compare;
mod load;
mod many;
mod proxy;
mod soak;
mod swaps;
mod toolbox;
mod wire;

use report::Report;

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() && name != "soak" || only.iter().any(|o| o == name);
    tokio_rustls::rustls::crypto::ring::default_provider().install_default().unwrap();
    // One thread, so that as much as can be is left to what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if wanted("compare") {
        runtime.block_on(compare::measure());
    }
    let mut report = Report::default();
    if wanted("paced") {
        runtime.block_on(compare::paced(&mut report));
    }
    if wanted("sessions") {
        runtime.block_on(many::sessions(&mut report));
    }
    if wanted("streams") {
        runtime.block_on(many::streams(&mut report));
    }
    if wanted("toolbox") {
        runtime.block_on(toolbox::measure(&mut report));
    }
    if wanted("swaps") {
        runtime.block_on(swaps::measure(&mut report));
    }
    if wanted("soak") {
        runtime.block_on(soak::measure(&mut report));
    }
    report.print();
}
