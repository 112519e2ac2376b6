//! A connection that has to say something in time.
//!
//! Which version of HTTP a client speaks is known after its first bytes; until then no timer of the HTTP
//! implementation runs. **Invariant:** once the version is known, nothing here delays or ends a connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

/// Specified: what a client of HTTP/2 says first (RFC 9113, section 3.4). Anything else is HTTP/1.1.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream whose reads fail when its first bytes do not come in time.
#[derive(Debug)]
pub(super) struct FirstBytes<S> {
    stream: S,
    /// The connection's place, which goes with the stream where it is upgraded to something else than HTTP.
    _place: Option<OwnedSemaphorePermit>,
    /// Bytes of the preface that came so far.
    heard: usize,
    /// `None` once the version is known.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> FirstBytes<S> {
    pub(super) fn within(limit: Duration, stream: S, place: Option<OwnedSemaphorePermit>) -> Self {
        Self { stream, _place: place, heard: 0, deadline: Some(Box::pin(tokio::time::sleep(limit))) }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let wanted = &PREFACE[self.heard..];
        let compared = wanted.len().min(bytes.len());
        self.heard += compared;
        if bytes[..compared] != wanted[..compared] || self.heard == PREFACE.len() {
            self.deadline = None;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstBytes<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let own = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut own.stream).poll_read(cx, buf);
        if own.deadline.is_none() {
            return read;
        }
        if let Poll::Ready(read) = read {
            own.hear(&buf.filled()[before..]);
            return Poll::Ready(read);
        }
        if let Some(deadline) = &mut own.deadline {
            ready!(deadline.as_mut().poll(cx));
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client sent no request in time")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FirstBytes<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What comes of reading after a client said `parts` and then nothing for much longer than the limit.
    async fn read_after(parts: &[&[u8]]) -> io::Result<usize> {
        const LIMIT: Duration = Duration::from_millis(50);
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = FirstBytes::within(LIMIT, server, None);
        let mut buf = [0; 64];
        let mut last = Ok(0);
        for part in parts {
            client.write_all(part).await.expect("the pipe has room");
            last = server.read(&mut buf).await;
        }
        tokio::select! {
            read = server.read(&mut buf) => read,
            () = tokio::time::sleep(LIMIT * 6) => last,
        }
    }

    #[tokio::test]
    async fn only_who_says_what_he_speaks_may_be_silent() {
        let is_timeout = |read: io::Result<usize>| read.is_err_and(|e| e.kind() == io::ErrorKind::TimedOut);
        assert!(is_timeout(read_after(&[]).await), "nothing at all");
        assert!(is_timeout(read_after(&[b"P", b"R"]).await), "a beginning that may become either version");
        assert_eq!(read_after(&[b"PO"]).await.ok(), Some(2), "HTTP/1.1 is known by its second byte");
        assert_eq!(read_after(&[b"GET / HTTP/1.1\r\n"]).await.ok(), Some(16));
        assert_eq!(read_after(&[PREFACE]).await.ok(), Some(PREFACE.len()));
        assert_eq!(read_after(&[&PREFACE[..5], &PREFACE[5..]]).await.ok(), Some(PREFACE.len() - 5));
    }
}
