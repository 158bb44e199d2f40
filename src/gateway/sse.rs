//! Server-sent events, read from a body as they come.

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, stream};
use http_body_util::BodyExt;
use hyper::body::Body;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its id, by which a stream is taken up again after it broke.
    pub id: Option<String>,
    /// Its data, lines joined by line breaks.
    pub data: Bytes,
}

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection broke.
    #[error("the stream broke: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// An event is larger than allowed.
    #[error("an event is larger than {0} bytes")]
    TooLarge(usize),
}

/// Takes bytes, gives events.
#[derive(Debug, Default)]
pub struct Parser {
    buffer: BytesMut,
    /// Up to here there is no line break.
    searched: usize,
    event: Event,
    data: BytesMut,
    has_data: bool,
}

impl Parser {
    /// Adds bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait for their event's end.
    pub fn waiting(&self) -> usize {
        self.buffer.len() + self.data.len()
    }

    /// The next event that is complete and has data, or an id.
    pub fn next(&mut self) -> Option<Event> {
        loop {
            let rest = &self.buffer[self.searched..];
            let Some(found) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.searched = self.buffer.len();
                return None;
            };
            let end = self.searched + found;
            // A carriage return may be the first half of a line break.
            let width = match (self.buffer[end], self.buffer.get(end + 1)) {
                (b'\r', None) => return None,
                (b'\r', Some(b'\n')) => 2,
                _ => 1,
            };
            let line = self.buffer.split_to(end).freeze();
            self.buffer.advance(width);
            self.searched = 0;
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                let data = self.data.split().freeze();
                if std::mem::take(&mut self.has_data) || event.id.is_some() {
                    return Some(Event { data, ..event });
                }
                continue;
            }
            self.line(&line);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &b""[..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                if self.has_data {
                    self.data.extend_from_slice(b"\n");
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"id" => self.event.id = Some(String::from_utf8_lossy(value).into_owned()),
            _ => {}
        }
    }
}

/// The events of a body.
pub fn events<B>(body: B, limit: usize) -> impl Stream<Item = Result<Event, Broken>> + Send
where
    B: Body<Data = Bytes> + Unpin + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    stream::unfold(Some((body, Parser::default())), move |state| async move {
        let (mut body, mut parser) = state?;
        loop {
            if let Some(event) = parser.next() {
                return Some((Ok(event), Some((body, parser))));
            }
            if parser.waiting() > limit {
                return Some((Err(Broken::TooLarge(limit)), None));
            }
            match body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        parser.feed(&data);
                    }
                }
                Err(error) => return Some((Err(Broken::Body(error.into())), None)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<(Option<String>, String)> {
        let mut parser = Parser::default();
        let mut all = Vec::new();
        for chunk in chunks {
            parser.feed(chunk);
            while let Some(event) = parser.next() {
                all.push((event.id, String::from_utf8_lossy(&event.data).into_owned()));
            }
        }
        all
    }

    const STREAM: &[u8] = b": hello\n\nid: 1\r\nevent: message\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\ndata:x\n\nid: 2\n\ndata\n\nretry: 5\n\nlost";

    #[test]
    fn events_come_out_as_they_went_in() {
        let expected = vec![
            (Some("1".into()), "{\"a\":\n1}".into()),
            (None, "x".into()),
            (Some("2".into()), String::new()),
            (None, String::new()),
        ];
        assert_eq!(parse(&[STREAM]), expected);
        let bytes: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(parse(&bytes), expected, "byte by byte");
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(cut in 0..STREAM.len(), garbage in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(parse(&[&STREAM[..cut], &STREAM[cut..]]), parse(&[STREAM]));
            parse(&[&garbage]);
        }
    }
}
