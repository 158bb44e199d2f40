//! What a server's processes wrote, in files of bounded size.
//!
//! A line is `<RFC 3339 time> <text>`. A file beyond [`LIMIT`] becomes `.1`, and the one before
//! it goes.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::runtime::{InstanceId, LogLine, LogOptions};

/// Bytes after which a file is put aside.
const LIMIT: u64 = 8 * 1024 * 1024;
/// Longest line that is kept whole.
const LINE: usize = 16 * 1024;
/// Bytes of the last lines that explain an exit.
const TAIL: usize = 1024;
/// Time between two looks of a follower.
const FOLLOW: std::time::Duration = std::time::Duration::from_millis(200);

/// The log of one instance.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<fs::File>,
    size: u64,
    tail: VecDeque<String>,
    tail_size: usize,
}

impl LogFile {
    /// A log at `path`, appended to.
    pub fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::new(State::default()) }
    }

    /// Writes lines from `source` until it ends.
    pub async fn copy(&self, source: impl AsyncRead + Unpin) {
        let mut reader = BufReader::new(source);
        let mut line = Vec::new();
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    let text: String = text.trim_end().chars().take(LINE).collect();
                    self.write(Timestamp::now(), &text);
                }
            }
        }
    }

    fn write(&self, at: Timestamp, text: &str) {
        let mut state = self.state.lock().expect("nobody panics while holding the log");
        state.tail.push_back(text.to_owned());
        state.tail_size += text.len() + 1;
        while state.tail_size > TAIL && state.tail.len() > 1 {
            let dropped = state.tail.pop_front().map_or(0, |line| line.len() + 1);
            state.tail_size -= dropped;
        }
        if let Err(error) = self.append(&mut state, at, text) {
            tracing::warn!(%error, path = %self.path.display(), "a log line was not kept");
        }
    }

    fn append(&self, state: &mut State, at: Timestamp, text: &str) -> std::io::Result<()> {
        if state.size > LIMIT {
            state.file = None;
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
        }
        if state.file.is_none() {
            if let Some(parent) = self.path.parent() {
                fs::create_dir_all(parent)?;
            }
            let file = fs::OpenOptions::new().create(true).append(true).open(&self.path)?;
            state.size = file.metadata()?.len();
            state.file = Some(file);
        }
        let line = format!("{at} {text}\n");
        if let Some(file) = &mut state.file {
            file.write_all(line.as_bytes())?;
            state.size += line.len() as u64;
        }
        Ok(())
    }

    /// The last lines, at most 1 KiB.
    pub fn tail(&self) -> String {
        let state = self.state.lock().expect("nobody panics while holding the log");
        let mut tail = state.tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
        if tail.len() > TAIL {
            let cut = (tail.len() - TAIL..=tail.len()).find(|i| tail.is_char_boundary(*i)).unwrap_or(0);
            tail.drain(..cut);
        }
        tail
    }
}

/// The lines of all logs in a server's directory, by time.
pub fn read(dir: &Path, options: &LogOptions) -> BoxStream<'static, LogLine> {
    let since = options.since;
    let mut follower = Follower { dir: dir.to_owned(), read: HashMap::new() };
    let mut lines = follower.news();
    lines.retain(|line| since.is_none_or(|since| line.at.is_some_and(|at| at >= since)));
    if let Some(tail) = options.tail {
        lines.drain(..lines.len().saturating_sub(tail));
    }
    let past = futures::stream::iter(lines);
    if !options.follow {
        return past.boxed();
    }
    let news = futures::stream::unfold(follower, move |mut follower| async move {
        tokio::time::sleep(FOLLOW).await;
        let lines = follower.news().into_iter().filter(move |line| since.is_none() || line.at >= since);
        Some((futures::stream::iter(lines), follower))
    });
    past.chain(news.flatten()).boxed()
}

/// Reads what is new in a directory of logs.
struct Follower {
    dir: PathBuf,
    /// How far each file was read, by inode, so that one that was put aside is known again.
    read: HashMap<u64, u64>,
}

impl Follower {
    /// The lines that were written since the last look, by time.
    fn news(&mut self) -> Vec<LogLine> {
        let mut lines = Vec::new();
        // A directory that is not there has no lines, and neither has a file that went away.
        let paths = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|e| e.path());
        for path in paths {
            lines.extend(self.lines(&path).unwrap_or_default());
        }
        lines.sort_by_key(|line| line.at);
        lines
    }

    fn lines(&mut self, path: &Path) -> std::io::Result<Vec<LogLine>> {
        let mut file = fs::File::open(path)?;
        let metadata = file.metadata()?;
        let read = self.read.entry(metadata.ino()).or_default();
        if metadata.len() <= *read {
            return Ok(Vec::new());
        }
        file.seek(SeekFrom::Start(*read))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        // A line without its end is not written yet.
        content.truncate(content.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1));
        *read += content.len() as u64;
        Ok(parse(path, &content))
    }
}

fn parse(path: &Path, content: &[u8]) -> Vec<LogLine> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let instance = InstanceId(name.split(".log").next().unwrap_or_default().to_owned());
    String::from_utf8_lossy(content)
        .lines()
        .map(|line| {
            let (at, text) = line.split_once(' ').unwrap_or(("", line));
            LogLine { instance: instance.clone(), at: at.parse().ok(), text: text.to_owned() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_misses_nothing_when_a_file_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFile::new(dir.path().join("0.log"));
        let write = |from: usize, to: usize| {
            (from..to).for_each(|i| log.write(Timestamp::now(), &format!("{i} {}", "x".repeat(LINE - 10))));
        };
        let number = |line: LogLine| line.text.split(' ').next().unwrap().parse::<usize>().unwrap();
        write(0, 10);
        let mut lines = read(dir.path(), &LogOptions { tail: Some(1), follow: true, ..LogOptions::default() });
        assert_eq!(number(lines.next().await.unwrap()), 9);
        // More than a file holds.
        write(10, 700);
        assert!(dir.path().join("0.log.1").exists());
        for expected in 10..700 {
            assert_eq!(number(lines.next().await.unwrap()), expected);
        }
        assert_eq!(log.tail().len(), TAIL);
    }
}
