//! The command line: the composition root, and the only place that reads arguments, environment
//! and the user's files.

/// Prints a line for people. Whoever read it may be gone, as with `| head`: that is their right, and
/// no reason to end, least of all for a perch that has servers to stop.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}

/// Like `say!`, on standard error.
macro_rules! complain {
    ($($part:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

mod access;
mod args;
mod bridge;
mod canary;
mod client;
mod connect;
mod data_dir;
mod down;
mod egress_proxy;
mod exit;
mod gateway;
mod get;
mod logs;
mod machine;
mod operator;
mod policy;
mod prepare;
mod releases;
mod report;
mod status;
mod stop;
mod traces;
mod up;
mod validate;

use std::{net::SocketAddr, process::ExitCode};

use clap::{CommandFactory, Parser};
use tokio::net::TcpListener;

use crate::{
    runtime::process::launch,
    telemetry::{self, LogFormat},
};
use args::{Args, Command, Internal};
use exit::Failure;

/// The whole command line, for the generated manual.
#[must_use]
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    if let Command::Internal(Internal::Exec(exec)) = &args.command {
        return become_server(exec);
    }
    let format = if args.log_format == args::LogFormat::Json { LogFormat::Json } else { LogFormat::Text };
    telemetry::init(&args.log, format);
    // Several libraries bring TLS; they all use this implementation. Only the first call counts.
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("the async runtime does not start: {error}")).report(),
    };
    let result = runtime.block_on(async {
        match args.command {
            Command::Up(args) => up::run(args).await,
            Command::Down(args) => down::run(args).await,
            Command::Get(args) => get::run(args).await,
            Command::Status(args) => status::run(args).await,
            Command::Logs(args) => logs::run(args).await,
            Command::Report(args) => report::run(args).await,
            Command::Validate(args) => validate::run(*args).await,
            Command::Canary(args) => canary::run(args).await,
            Command::Operator(args) => operator::run(*args).await,
            Command::Gateway(args) => gateway::run(args).await,
            Command::Connect(args) => connect::run(args).await,
            Command::Access(command) => access::run(&command),
            Command::Policy(command) => policy::run(&command).await,
            Command::Bridge(args) => bridge::run(args).await,
            Command::EgressProxy(args) => egress_proxy::run(args).await,
            Command::Internal(Internal::Prepare(args)) => prepare::run(&args),
            Command::Internal(Internal::Check(args)) => check(&args.url).await,
            Command::Internal(Internal::Exec(_)) => Ok(()),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Asks a URL and says whether it answered with success, for images without any other program.
async fn check(url: &url::Url) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(format!("{url} does not answer: {error}"));
    let request = http::Request::get(url.as_str()).body(http_body_util::Empty::<bytes::Bytes>::new());
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let asked = client.request(request.map_err(|error| failed(&error))?);
    let answer = tokio::time::timeout(std::time::Duration::from_secs(10), asked).await;
    let status = answer.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?.status();
    if status.is_success() { Ok(()) } else { Err(failed(&status)) }
}

/// Listens, or says what is in the way.
async fn listen_anywhere(addr: SocketAddr, what: &str, flag: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(addr).await.map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            Failure::failed(format!("{addr}, the address of the {what}, is taken: stop what uses it, or choose another with {flag} (port 0 takes a free one)"))
        } else {
            Failure::failed(format!("the {what} cannot listen on {addr}: {error}"))
        }
    })
}

/// Turns this process into a server's program. It runs before any thread exists.
fn become_server(exec: &args::Exec) -> ExitCode {
    let Some((program, rest)) = exec.argv.split_first() else { return ExitCode::from(exit::USAGE) };
    let bounds = launch::Bounds { data_bytes: exec.data_bytes, open_files: exec.open_files };
    let error = launch::exec(bounds, program, rest);
    let program = program.to_string_lossy();
    if error.kind() == std::io::ErrorKind::NotFound {
        complain!("{program} does not exist on this machine, or is not on PATH");
        ExitCode::from(127)
    } else {
        complain!("{program} cannot be started: {error}");
        ExitCode::from(126)
    }
}
