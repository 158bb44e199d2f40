//! The standard streams of a running process, lent to one holder at a time.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    process::{ChildStdin, ChildStdout},
};

use crate::runtime::StdioStreams;

/// Where the streams wait while nobody holds them.
#[derive(Debug, Default)]
pub struct Slot {
    stdin: Mutex<Option<ChildStdin>>,
    stdout: Mutex<Option<ChildStdout>>,
}

impl Slot {
    /// A slot with the streams of a process that was just started.
    pub fn new(stdin: Option<ChildStdin>, stdout: Option<ChildStdout>) -> Arc<Self> {
        Arc::new(Self { stdin: Mutex::new(stdin), stdout: Mutex::new(stdout) })
    }

    /// Lends both streams, if both are there. They come back when they are dropped.
    pub fn lend(self: &Arc<Self>) -> Option<StdioStreams> {
        let mut stdin = self.stdin.lock().expect("nobody panics while holding a stream");
        let mut stdout = self.stdout.lock().expect("nobody panics while holding a stream");
        if stdin.is_none() || stdout.is_none() {
            return None;
        }
        Some(StdioStreams {
            stdin: Box::pin(Lent { stream: stdin.take(), home: Arc::clone(self), give_back: |slot| &slot.stdin }),
            stdout: Box::pin(Lent { stream: stdout.take(), home: Arc::clone(self), give_back: |slot| &slot.stdout }),
        })
    }
}

struct Lent<T> {
    /// Always there until dropped.
    stream: Option<T>,
    home: Arc<Slot>,
    give_back: fn(&Slot) -> &Mutex<Option<T>>,
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        *(self.give_back)(&self.home).lock().expect("nobody panics while holding a stream") = self.stream.take();
    }
}

fn gone() -> std::io::Error {
    std::io::ErrorKind::BrokenPipe.into()
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Lent<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.stream.as_mut().map_or(Poll::Ready(Err(gone())), |s| Pin::new(s).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stream.as_mut().map_or(Poll::Ready(Err(gone())), |s| Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // The next holder wants to write too.
        self.poll_flush(cx)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lent<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.stream.as_mut().map_or(Poll::Ready(Err(gone())), |s| Pin::new(s).poll_read(cx, buf))
    }
}
