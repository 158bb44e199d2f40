//! The audit log: who did what, whether they might, how it went and how long it took. One JSON
//! object a line, in a file of bounded size.
//!
//! Writing never holds a request up: records wait in a bounded queue for a thread that writes them.
//! What does not fit is lost, and that is said: in a metric, in the program's log, and by a record
//! in the audit log itself as soon as there is room again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use tokio::sync::{mpsc, oneshot};

/// Records that wait to be written.
const QUEUE: usize = 16_384;
/// Rest of the writer after it wrote all that there was, so that it is woken seldom.
const REST: Duration = Duration::from_millis(20);
/// Time that the last records get to be written at the end.
const CLOSE: Duration = Duration::from_secs(5);
/// Longest text of an argument that is kept.
const LONGEST_ARGUMENT: usize = 256;
/// Largest arguments that are looked into, in bytes.
const LARGEST_ARGUMENTS: usize = 64 * 1024;

/// Where audit records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// The file. When it is full it becomes `FILE.1`, that one `FILE.2`, and so on.
    pub path: PathBuf,
    /// Size in bytes at which a file is full.
    pub max_bytes: u64,
    /// Full files that are kept beside the current one.
    pub keep: u32,
    /// Whether the arguments of calls are recorded, with what looks like a secret taken out.
    pub arguments: bool,
}

impl AuditConfig {
    /// A log at `path`: files of 100 MiB, five of them kept, no arguments.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, max_bytes: 100 * 1024 * 1024, keep: 5, arguments: false }
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// When it was over.
    pub time: Timestamp,
    /// The server, `namespace/name`.
    pub server: String,
    /// The revision that served it, empty when none was reached.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// The user, empty for everyone whom nobody checked.
    pub user: Arc<str>,
    /// The address of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<std::net::IpAddr>,
    /// What was asked for.
    pub method: String,
    /// The tool, prompt or resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether the operation was allowed.
    pub decision: Decision,
    /// How it went.
    pub outcome: &'static str,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// Arguments of a call, as far as they may be shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Value>,
}

/// Whether an operation was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It was passed on, or answered.
    Allow,
    /// It was refused by the gateway.
    Deny,
}

enum Entry {
    Record(Box<Record>),
    Close(oneshot::Sender<()>),
}

/// The audit log.
#[derive(Debug)]
pub struct Audit {
    queue: mpsc::Sender<Entry>,
    lost: Arc<AtomicU64>,
    arguments: bool,
}

impl Audit {
    /// Opens the file and starts the writer.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(config: AuditConfig) -> io::Result<Self> {
        let (queue, entries) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let arguments = config.arguments;
        let writer = Writer { log: Rotated::open(config)?, lost: Arc::clone(&lost), told: 0, failing: false };
        std::thread::Builder::new().name("audit".into()).spawn(move || writer.run(entries))?;
        Ok(Self { queue, lost, arguments })
    }

    /// Whether arguments are recorded.
    pub fn wants_arguments(&self) -> bool {
        self.arguments
    }

    /// Records an operation, or loses it when too many wait.
    pub fn record(&self, record: Record) {
        if self.queue.try_send(Entry::Record(Box::new(record))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records that were lost.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until everything before is written.
    pub async fn close(&self) {
        let (done, written) = oneshot::channel();
        let close = async {
            if self.queue.send(Entry::Close(done)).await.is_ok() {
                // A writer that is gone has nothing to write any more.
                let _ = written.await;
            }
        };
        if tokio::time::timeout(CLOSE, close).await.is_err() {
            tracing::warn!("the last records of the audit log may not have been written");
        }
    }
}

struct Writer {
    log: Rotated,
    lost: Arc<AtomicU64>,
    /// Lost records that the log speaks of.
    told: u64,
    failing: bool,
}

impl Writer {
    fn run(mut self, mut entries: mpsc::Receiver<Entry>) {
        let mut lines = Vec::new();
        while let Some(first) = entries.blocking_recv() {
            let mut closing = None;
            let mut count = 0;
            let mut next = Some(first);
            while let Some(entry) = next {
                match entry {
                    Entry::Record(record) => {
                        count += 1;
                        // A record serialises; if one did not, the others still would.
                        let _ = serde_json::to_writer(&mut lines, &*record);
                        lines.push(b'\n');
                    }
                    Entry::Close(done) => closing = Some(done),
                }
                next = if lines.len() < 1 << 20 && closing.is_none() { entries.try_recv().ok() } else { None };
            }
            self.write(&mut lines, count);
            if let Some(done) = closing {
                // Whoever asked may have given up.
                let _ = done.send(());
            } else if entries.is_empty() {
                std::thread::sleep(REST);
            }
        }
    }

    fn write(&mut self, lines: &mut Vec<u8>, count: u64) {
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > self.told {
            let more = lost - self.told;
            tracing::warn!(lost = more, "records of the audit log were lost: more came than could be written");
            let _ = writeln!(lines, r#"{{"time":"{}","lost":{more}}}"#, Timestamp::now());
        }
        match self.log.write(lines) {
            Ok(()) => {
                self.told = lost;
                if std::mem::take(&mut self.failing) {
                    tracing::warn!("the audit log is written again");
                }
            }
            Err(error) => {
                self.lost.fetch_add(count, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, path = %self.log.config.path.display(), "the audit log cannot be written: its records are lost until it can");
                }
            }
        }
        lines.clear();
    }
}

/// A file that is put aside when it is full.
struct Rotated {
    config: AuditConfig,
    file: File,
    size: u64,
}

impl Rotated {
    fn open(config: AuditConfig) -> io::Result<Self> {
        let (file, size) = append(&config.path)?;
        Ok(Self { config, file, size })
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + lines.len() as u64 > self.config.max_bytes {
            self.rotate()?;
        }
        // Lines are written as a whole, so that no other reader sees half of one for long.
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.config.path;
        let numbered = |number: u32| {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.config.keep).rev() {
            absent_is_fine(fs::rename(numbered(number), numbered(number + 1)))?;
        }
        let moved = if self.config.keep == 0 { fs::remove_file(path) } else { fs::rename(path, numbered(1)) };
        absent_is_fine(moved)?;
        (self.file, self.size) = append(path)?;
        Ok(())
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file that is only added to, and that only its owner reads.
fn append(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// Parts of names of what must not be shown.
const SECRETS: [&str; 12] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "credential",
    "authorization",
    "cookie",
    "privatekey",
    "accesskey",
    "session",
];

/// Arguments of a call as they may be shown: what is named like a secret is taken out, and long
/// texts are cut.
pub fn shown(arguments: &RawValue) -> Value {
    if arguments.get().len() > LARGEST_ARGUMENTS {
        return Value::from(format!("[{} bytes]", arguments.get().len()));
    }
    let mut value = serde_json::from_str(arguments.get()).unwrap_or_default();
    redact(&mut value);
    value
}

fn redact(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
                let plain = plain.to_ascii_lowercase();
                if SECRETS.iter().any(|secret| plain.contains(secret)) {
                    *member = "[redacted]".into();
                } else {
                    redact(member);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::String(text) if text.len() > LONGEST_ARGUMENT => {
            let beginning = &text[..text.floor_char_boundary(LONGEST_ARGUMENT)];
            *text = format!("{beginning}[… {} bytes]", text.len());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(user: &str) -> Record {
        Record {
            time: Timestamp::UNIX_EPOCH,
            server: "default/a".into(),
            revision: "a-1".into(),
            user: user.into(),
            client: None,
            method: "tools/call".into(),
            name: Some("echo".into()),
            decision: Decision::Allow,
            outcome: "ok",
            duration_ms: 1.5,
            arguments: None,
        }
    }

    fn lines(path: &Path) -> Vec<Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn each_operation_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(AuditConfig::new(path.clone())).unwrap();
        audit.record(record("dana"));
        audit.record(Record { name: None, decision: Decision::Deny, ..record("a\nb\"") });
        audit.close().await;
        let lines = lines(&path);
        assert_eq!(
            lines[0],
            json!({"time": "1970-01-01T00:00:00Z", "server": "default/a", "revision": "a-1", "user": "dana",
                "method": "tools/call", "name": "echo", "decision": "allow", "outcome": "ok", "duration_ms": 1.5})
        );
        assert_eq!((&lines[1]["user"], &lines[1]["decision"], lines.len()), (&json!("a\nb\""), &json!("deny"), 2));
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o777, 0o600);
    }

    #[test]
    fn full_files_are_put_aside_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut log = Rotated::open(AuditConfig { max_bytes: 10, keep: 2, ..AuditConfig::new(path.clone()) }).unwrap();
        for line in ["first\n", "second\n", "third\n", "fourth\n", "5\n"] {
            log.write(line.as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            (read("audit.log"), read("audit.log.1"), read("audit.log.2")),
            ("fourth\n5\n".into(), "third\n".into(), "second\n".into())
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        drop(log);
        let mut again = Rotated::open(AuditConfig { max_bytes: 10, keep: 2, ..AuditConfig::new(path) }).unwrap();
        again.write(b"next one\n").unwrap();
        assert_eq!(read("audit.log.1"), "fourth\n5\n", "what is there counts after a restart");
    }

    #[test]
    fn what_is_lost_is_said_and_nobody_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        // Nobody takes records out of this queue.
        let (queue, entries) = mpsc::channel(2);
        let audit = Audit { queue, lost: Arc::default(), arguments: false };
        for _ in 0..5 {
            audit.record(record("x"));
        }
        assert_eq!(audit.lost(), 3);
        let lost = Arc::clone(&audit.lost);
        drop(audit);
        let log = Rotated::open(AuditConfig::new(path.clone())).unwrap();
        Writer { log, lost, told: 0, failing: false }.run(entries);
        let lines = lines(&path);
        assert_eq!((lines.len(), &lines[2]["lost"]), (3, &json!(3)));
    }

    #[test]
    fn records_that_cannot_be_written_count_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut log = Rotated::open(AuditConfig { max_bytes: 1, keep: 1, ..AuditConfig::new(path.clone()) }).unwrap();
        log.size = 1;
        // A directory in the place of the next file stands for a disk that takes nothing.
        fs::create_dir(dir.path().join("audit.log.1")).unwrap();
        fs::write(dir.path().join("audit.log.1/x"), "").unwrap();
        let mut writer = Writer { log, lost: Arc::default(), told: 0, failing: false };
        writer.write(&mut b"{}\n".to_vec(), 1);
        assert_eq!((writer.lost.load(Ordering::Relaxed), writer.failing), (1, true));
        fs::remove_dir_all(dir.path().join("audit.log.1")).unwrap();
        writer.write(&mut b"{}\n".to_vec(), 1);
        let lines = lines(&path);
        assert_eq!((lines.len(), &lines[1]["lost"], writer.failing), (2, &json!(1), false));
    }

    #[test]
    fn secrets_are_not_shown() {
        let raw = |value: &Value| RawValue::from_string(value.to_string()).unwrap();
        let arguments = json!({"user": "dana", "Api-Key": "k", "db": [{"PASSWORD": {"x": 1}, "host": "h"}], "text": "é".repeat(500)});
        let shown_ = shown(&raw(&arguments));
        assert_eq!(shown_["Api-Key"], "[redacted]");
        assert_eq!(shown_["db"], json!([{"PASSWORD": "[redacted]", "host": "h"}]));
        assert_eq!(shown_["text"], format!("{}[… 1000 bytes]", "é".repeat(128)));
        assert_eq!(shown(&raw(&json!("x".repeat(LARGEST_ARGUMENTS)))), json!("[65538 bytes]"));
    }
}
