//! Whether a proxy keeps to its list, asked by those whom it should serve.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// A name that is on nobody's list, by which a network is tried (RFC 6761). It is neither counted nor logged.
pub const PROBE: &str = "perch-probe.invalid";
/// Time for an answer of the proxy, which may have to ask who its client is.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest first line of that answer.
const LINE: u64 = 256;

/// The first line of a proxy's answer to a name that is on nobody's list, or why there is none. It blocks.
///
/// # Errors
/// When the proxy does not answer.
pub fn ask(proxy: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&proxy, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "CONNECT {PROBE}:443 HTTP/1.1\r\nHost: {PROBE}:443\r\n\r\n")?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE)).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Whether that line is the refusal that it should be.
pub fn is_refusal(line: &str) -> bool {
    line.starts_with("HTTP/1.1 403 ")
}
