//! `perch connect`: MCP on standard input and output, for clients that only start commands.
//!
//! Each line of the client goes to the gateway as a request of Streamable HTTP ([`relay`]), in the
//! era that the client speaks, and what comes back goes out as lines, byte for byte but for line
//! breaks. The gateway may be started again in between: a modern client does not notice, and a
//! legacy session is opened anew ([`legacy`]). Standard output carries messages only; everything
//! else is said on standard error.

mod door;
mod legacy;
mod relay;

use std::{
    io::{BufRead, BufReader, Read},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{args::Connect, exit::Failure, stop::Stop};
use door::Door;
use relay::Relay;

/// Longest line that is taken from the client, in bytes.
const LONGEST_LINE: usize = 16 * 1024 * 1024;
/// Lines that wait, each way: who reads slowly slows the other down.
const WAITING: usize = 64;
/// Time for answers to come when the client closed standard input.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// Connects standard input and output with the gateway until the client ends it.
pub async fn run(args: Connect) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    let door = tokio::select! {
        door = Door::find(&args) => door?,
        () = stop.wait() => return Ok(()),
    };
    tracing::info!(url = door.url(), "connected");
    let (out, lines) = mpsc::channel(WAITING);
    let gone = CancellationToken::new();
    let writer = tokio::spawn(write(lines, gone.clone()));
    let relay = Arc::new(Relay::new(door, out.clone()));
    let mut input = read();
    let mut closed = false;
    loop {
        let line = tokio::select! {
            line = input.recv() => line,
            () = stop.wait() => break,
            () = gone.cancelled() => break,
        };
        let Some(line) = line else {
            closed = true;
            break;
        };
        tokio::select! {
            () = relay.handle(line) => {}
            () = stop.wait() => break,
            () = gone.cancelled() => break,
        }
    }
    if closed {
        tokio::select! {
            () = relay.finish(LAST_ANSWERS) => {}
            () = stop.wait() => {}
            () = gone.cancelled() => {}
        }
    }
    relay.end().await;
    // An empty line is the end: nothing that is still under way is written any more.
    if !gone.is_cancelled() && out.send(Bytes::new()).await.is_ok() {
        tokio::select! {
            _ = writer => {}
            () = stop.wait() => {}
        }
    }
    Ok(())
}

/// The lines of standard input. A thread of its own reads them, for a read from a terminal or a
/// pipe cannot be given up, and nobody should wait for one at the end.
fn read() -> mpsc::Receiver<Bytes> {
    let (lines, received) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut input = BufReader::with_capacity(64 * 1024, std::io::stdin());
        loop {
            match next_line(&mut input, LONGEST_LINE) {
                Ok(Some(line)) if line.trim_ascii().is_empty() => {}
                Ok(Some(line)) => {
                    if lines.blocking_send(line.into()).is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "standard input broke");
                    return;
                }
            }
        }
    });
    received
}

/// The next line, nothing at the end. Of a line that is too long the rest is left out, so that it
/// is no message and is refused as such.
fn next_line(input: &mut impl BufRead, longest: usize) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let limit = u64::try_from(longest).unwrap_or(u64::MAX);
    input.by_ref().take(limit).read_until(b'\n', &mut line)?;
    if line.len() == longest && line.last() != Some(&b'\n') {
        tracing::warn!(longest, "a line of the client is too long");
        input.skip_until(b'\n')?;
    }
    Ok(Some(line).filter(|line| !line.is_empty()))
}

/// Writes lines to standard output, until an empty one comes or nobody reads any more.
async fn write(mut lines: mpsc::Receiver<Bytes>, gone: CancellationToken) {
    let mut output = tokio::io::stdout();
    while let Some(line) = lines.recv().await.filter(|line| !line.is_empty()) {
        let written = async {
            output.write_all(&line).await?;
            output.flush().await
        };
        if let Err(error) = written.await {
            tracing::info!(%error, "the client no longer reads");
            break;
        }
    }
    gone.cancel();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart_and_bounded() {
        let mut input = &b"one\n\ntoo long by far\nfour\r\nfive!"[..];
        let mut next = || next_line(&mut input, 6).unwrap().map(|line| String::from_utf8(line).unwrap());
        assert_eq!(next().as_deref(), Some("one\n"));
        assert_eq!(next().as_deref(), Some("\n"));
        assert_eq!(next().as_deref(), Some("too lo"));
        assert_eq!(next().as_deref(), Some("four\r\n"));
        assert_eq!(next().as_deref(), Some("five!"));
        assert_eq!(next(), None);
    }
}
