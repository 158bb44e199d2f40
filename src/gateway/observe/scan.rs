//! Finds out how a call went from the bytes of its answer, as they pass.
//!
//! Nothing is kept but a few members of the message, and nothing is parsed twice: the reader counts
//! braces, jumps over strings, and looks closely only at the two outermost levels. A message of any
//! size, cut anywhere, costs no more memory than a small one.

/// Longest text of a member that is kept.
const LONGEST: usize = 64;
/// Longest state that is kept: what a client must bring back to the revision that gave it.
const LONGEST_STATE: usize = 8192;
/// Length of a short text.
const SHORT: usize = 24;

/// What an answer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Code of a JSON-RPC error.
    pub error: Option<i64>,
    /// Whether there is an error, also one without a code.
    pub failed: bool,
    /// `isError` of the result.
    pub is_error: bool,
    /// Whether the result asks the client for more input.
    pub input_required: bool,
    /// `requestState` and task ids of the result, as they stand between their quotes.
    pub states: Vec<Vec<u8>>,
}

/// How closely answers are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Look into the result, not only at whether there is one.
    pub result: bool,
    /// Keep state that the client must bring back.
    pub states: bool,
}

/// Reads one message after another.
#[derive(Debug)]
pub struct Scan {
    interest: Interest,
    /// Braces that are open.
    depth: u32,
    inside: Inside,
    /// The last text at a level that is looked at: a key if a colon follows. One byte more than the
    /// longest shows that it is too long.
    text: [u8; LONGEST + 1],
    length: usize,
    /// The last state, or as much of it as was read.
    state: Vec<u8>,
    /// The key whose value is next, on each of the three outermost levels.
    keys: [Key; 3],
    /// The value of this key is being kept.
    value: Option<Key>,
    is_call: bool,
    has_result: bool,
    over: bool,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    /// Between tokens.
    Between,
    /// In a string.
    Text,
    /// In a string, after a backslash.
    Escape,
    /// In a number or a word.
    Word,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    #[default]
    Other,
    Method,
    Result,
    Error,
    Code,
    IsError,
    ResultType,
    Task,
    State,
}

impl Scan {
    /// A reader at the beginning of a message.
    pub fn new(interest: Interest) -> Self {
        Self {
            interest,
            depth: 0,
            inside: Inside::Between,
            text: [0; LONGEST + 1],
            length: 0,
            state: Vec::new(),
            keys: [Key::Other; 3],
            value: None,
            is_call: false,
            has_result: false,
            over: false,
            answer: Answer::default(),
        }
    }

    /// The answer, once a whole one has passed, or as much of it as is of interest.
    pub fn answer(&self) -> Option<&Answer> {
        let is_answer = !self.is_call && (self.has_result || self.answer.failed);
        (self.over && is_answer).then_some(&self.answer)
    }

    /// Begins with the next message.
    pub fn reset(&mut self) {
        *self = Self::new(self.interest);
    }

    /// Reads on.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() && !self.over {
            at += match self.inside {
                Inside::Text => self.text(&bytes[at..]),
                Inside::Escape => {
                    self.keep(&bytes[at..=at]);
                    self.inside = Inside::Text;
                    1
                }
                Inside::Word => self.word(&bytes[at..]),
                Inside::Between => self.between(&bytes[at..]),
            };
        }
    }

    /// Whether texts at this level are of interest.
    fn looks(&self) -> bool {
        match self.depth {
            1 => true,
            2 => matches!(self.keys[0], Key::Result | Key::Error),
            3 => self.interest.states && self.keys[0] == Key::Result && self.keys[1] == Key::Task,
            _ => false,
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.value == Some(Key::State) {
            let room = (LONGEST_STATE + 1).saturating_sub(self.state.len());
            self.state.extend_from_slice(&bytes[..bytes.len().min(room)]);
        } else if self.looks() {
            let new = bytes.len().min(self.text.len() - self.length);
            self.text[self.length..self.length + new].copy_from_slice(&bytes[..new]);
            self.length += new;
        }
    }

    fn last_text(&self) -> &[u8] {
        &self.text[..self.length]
    }

    fn text(&mut self, bytes: &[u8]) -> usize {
        let Some(end) = memchr::memchr2(b'"', b'\\', bytes) else {
            self.keep(bytes);
            return bytes.len();
        };
        if bytes[end] == b'\\' {
            self.keep(&bytes[..=end]);
            self.inside = Inside::Escape;
        } else {
            self.keep(&bytes[..end]);
            self.inside = Inside::Between;
            if let Some(key) = self.value.take() {
                self.learn_text(key);
            }
        }
        end + 1
    }

    fn word(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|b| !matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'+' | b'.'));
        self.keep(&bytes[..end.unwrap_or(bytes.len())]);
        if end.is_some() {
            self.inside = Inside::Between;
            if let Some(key) = self.value.take() {
                self.learn_word(key);
            }
        }
        end.unwrap_or(bytes.len())
    }

    fn between(&mut self, bytes: &[u8]) -> usize {
        if !self.looks() {
            return self.skip(bytes);
        }
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'"' => {
                    (self.length, self.inside) = (0, Inside::Text);
                    self.state.clear();
                    return at + 1;
                }
                b'{' => {
                    self.open();
                    return at + 1;
                }
                b'}' => {
                    self.close();
                    return at + 1;
                }
                b':' => {
                    self.key();
                    if self.over {
                        return at + 1;
                    }
                }
                // An array is of no interest itself, but what is in it is nobody's value.
                b'[' => self.value = None,
                b'a'..=b'z' | b'0'..=b'9' | b'-' if self.value.is_some() => {
                    (self.length, self.inside) = (0, Inside::Word);
                    return at;
                }
                _ => {}
            }
        }
        bytes.len()
    }

    /// Goes over what is too deep to be of interest.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            at += 1;
            match byte {
                b'"' => {
                    // Most texts are short: looking at each byte is faster then.
                    let near = bytes.len().min(at + SHORT);
                    let end = bytes[at..near].iter().position(|b| matches!(b, b'"' | b'\\'));
                    match end {
                        Some(end) if bytes[at + end] == b'"' => at += end + 1,
                        _ => {
                            self.inside = Inside::Text;
                            return at;
                        }
                    }
                }
                b'{' if self.depth < 3 => {
                    self.open();
                    return at;
                }
                b'{' => self.depth += 1,
                b'}' => {
                    self.close();
                    if self.depth <= 3 {
                        return at;
                    }
                }
                _ => {}
            }
        }
        at
    }

    fn open(&mut self) {
        self.value = None;
        match (self.depth, self.keys[0]) {
            (1, Key::Error) => self.answer.failed = true,
            (1, Key::Result) if !self.interest.result && !self.is_call => self.over = true,
            _ => {}
        }
        self.depth += 1;
        if let Some(key) = self.keys.get_mut(self.depth as usize - 1) {
            *key = Key::Other;
        }
    }

    fn close(&mut self) {
        self.value = None;
        self.depth = self.depth.saturating_sub(1);
        self.over |= self.depth == 0;
    }

    /// A colon: the last text was a key.
    fn key(&mut self) {
        let key = match (self.depth, self.keys[0], self.last_text()) {
            (1, _, b"method") => Key::Method,
            (1, _, b"result") => Key::Result,
            (1, _, b"error") => Key::Error,
            (2, Key::Error, b"code") => Key::Code,
            (2, Key::Result, b"isError") => Key::IsError,
            (2, Key::Result, b"resultType") => Key::ResultType,
            (2, Key::Result, b"task") => Key::Task,
            (2, Key::Result, b"requestState" | b"taskId") | (3, Key::Result, b"taskId") if self.interest.states => {
                Key::State
            }
            _ => Key::Other,
        };
        self.keys[self.depth as usize - 1] = key;
        match key {
            Key::Method => self.is_call = true,
            Key::Result => self.has_result = true,
            Key::Code | Key::IsError | Key::ResultType | Key::State => self.value = Some(key),
            Key::Other | Key::Error | Key::Task => {}
        }
    }

    /// A value of interest that is a string is complete.
    fn learn_text(&mut self, key: Key) {
        match key {
            Key::ResultType => self.answer.input_required = self.last_text() == b"input_required",
            // Two are more than an answer gives: state of its own, and a task.
            Key::State if self.state.len() <= LONGEST_STATE && self.answer.states.len() < 2 => {
                self.answer.states.push(std::mem::take(&mut self.state));
            }
            _ => {}
        }
    }

    /// A value of interest that is a number or a word is complete.
    fn learn_word(&mut self, key: Key) {
        match key {
            Key::Code => {
                self.answer.error = std::str::from_utf8(self.last_text()).ok().and_then(|code| code.parse().ok());
            }
            Key::IsError => self.answer.is_error = self.last_text() == b"true",
            _ => {}
        }
    }
}

/// Reads the messages in a stream of server-sent events.
#[derive(Debug)]
pub struct EventScan {
    message: Scan,
    line: Line,
    /// Whether the last byte was a carriage return, of which a line feed may be the other half.
    half: bool,
    has_data: bool,
    numbered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// So many bytes of the field's name have passed, and may be the beginning of `data:` or `id:`.
    Field(&'static [u8], usize),
    /// Data of a message.
    Data,
    /// Anything else.
    Other,
}

impl EventScan {
    /// A reader at the beginning of a stream.
    pub fn new(interest: Interest) -> Self {
        Self { message: Scan::new(interest), line: Line::Field(b"", 0), half: false, has_data: false, numbered: false }
    }

    /// The answer, once a whole one has passed, or as much of it as is of interest.
    pub fn answer(&self) -> Option<&Answer> {
        self.message.answer()
    }

    /// Whether the stream's events have numbers, by which a client can take it up again.
    pub fn is_numbered(&self) -> bool {
        self.numbered
    }

    /// Whether no part of an event has passed that would go on.
    pub fn is_between(&self) -> bool {
        matches!(self.line, Line::Field(_, 0)) && !self.has_data
    }

    /// Reads on, up to the answer.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() && self.answer().is_none() {
            if std::mem::take(&mut self.half) && bytes[at] == b'\n' {
                at += 1;
                continue;
            }
            match self.line {
                Line::Field(name, seen) => {
                    self.line = self.field(name, seen, bytes[at]);
                    at += 1;
                }
                Line::Data | Line::Other => {
                    let rest = &bytes[at..];
                    let end = memchr::memchr2(b'\n', b'\r', rest);
                    if self.line == Line::Data {
                        self.message.feed(&rest[..end.unwrap_or(rest.len())]);
                    }
                    at += end.unwrap_or(rest.len());
                    if end.is_some() {
                        self.half = bytes[at] == b'\r';
                        self.line = Line::Field(b"", 0);
                        at += 1;
                    }
                }
            }
        }
    }

    fn field(&mut self, name: &'static [u8], seen: usize, byte: u8) -> Line {
        if matches!(byte, b'\n' | b'\r') {
            self.half = byte == b'\r';
            if seen == 0 && std::mem::take(&mut self.has_data) {
                // The event is over, and it was no answer.
                self.message.reset();
            }
            return Line::Field(b"", 0);
        }
        let name = match (seen, byte) {
            (0, b'd') => &b"data:"[..],
            (0, b'i') => &b"id:"[..],
            _ => name,
        };
        if name.get(seen) != Some(&byte) {
            return Line::Other;
        }
        if seen + 1 < name.len() {
            return Line::Field(name, seen + 1);
        }
        if name == b"id:" {
            self.numbered = true;
            return Line::Other;
        }
        self.has_data = true;
        Line::Data
    }
}

#[cfg(test)]
mod tests;
