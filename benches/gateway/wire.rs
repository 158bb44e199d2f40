//! HTTP/1.1 as a load generator needs it: requests that are bytes already, answers of which little
//! more is read than where they end.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A connection.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Bytes of the buffer that belong to the last answer.
    used: usize,
}

/// What stands in an answer's head.
#[derive(Clone, Debug)]
pub struct Head {
    /// HTTP status.
    pub status: u16,
    /// `Mcp-Session-Id`.
    pub session: Option<String>,
    /// Where the body begins in the buffer.
    at: usize,
    /// Of the body; none when it comes in chunks.
    length: Option<usize>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Mcp-Session-Id`.
    pub session: Option<String>,
    /// The body; of one in chunks, with the chunks' sizes in it.
    pub body: Vec<u8>,
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, why.to_owned())
}

impl Wire {
    /// Connects.
    pub async fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024), used: 0 })
    }

    async fn more(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(broken("the connection was closed"));
        }
        Ok(())
    }

    /// Sends a request and reads the head of its answer.
    pub async fn send(&mut self, request: &[u8]) -> io::Result<Head> {
        self.buffer.drain(..self.used);
        self.used = 0;
        self.stream.write_all(request).await?;
        let end = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            self.more().await?;
        };
        let head = std::str::from_utf8(&self.buffer[..end]).map_err(|_| broken("the head is no text"))?;
        let status = head.get(9..12).and_then(|s| s.parse().ok()).ok_or_else(|| broken("there is no status"))?;
        let header = |name: &str| {
            head.split("\r\n").skip(1).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let length = match header("content-length") {
            Some(length) => Some(length.parse().map_err(|_| broken("the length is no number"))?),
            None if header("transfer-encoding").is_some() => None,
            None => Some(0),
        };
        Ok(Head { status, session: header("mcp-session-id").map(str::to_owned), at: end + 4, length })
    }

    /// Reads to the end of an answer. What it says is looked for by `check`, without a copy.
    pub async fn finish<T>(&mut self, head: &Head, check: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let end = loop {
            let end = match head.length {
                Some(length) => Some(head.at + length).filter(|end| *end <= self.buffer.len()),
                None => chunks_end(&self.buffer, head.at),
            };
            if let Some(end) = end {
                break end;
            }
            self.more().await?;
        };
        self.used = end;
        Ok(check(&self.buffer[head.at..end]))
    }

    /// Sends a request and reads all of its answer.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        let head = self.send(request).await?;
        let body = self.finish(&head, <[u8]>::to_vec).await?;
        Ok(Answer { status: head.status, session: head.session, body })
    }

    /// Reads on until `part` was seen once more in a stream, of which nothing is kept.
    pub async fn event(&mut self, head: &mut Head, part: &[u8]) -> io::Result<()> {
        loop {
            if let Some(found) = memchr::memmem::find(&self.buffer[head.at..], part) {
                self.buffer.drain(..head.at + found + part.len());
                head.at = 0;
                return Ok(());
            }
            self.more().await?;
        }
    }
}

/// The end of a body in chunks, when all of it is there.
fn chunks_end(buffer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let line = memchr::memmem::find(&buffer[at..], b"\r\n")?;
        let size = std::str::from_utf8(&buffer[at..at + line]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        at += line + 2 + size + 2;
        if at > buffer.len() {
            return None;
        }
        if size == 0 {
            return Some(at);
        }
    }
}

/// A request as bytes. `more` are lines of the head.
pub fn request(method: &str, host: &str, path: &str, more: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n{more}Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}
