//! A TCP connection on which the kernel sends boot files by itself, from the page cache
//! (sendfile(2)), instead of copying them out of our memory.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::fs::sendfile;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::blob::Blob;

/// What a connection's answer is a part of, told by whoever makes the answer. A wrong one does no
/// harm: only bytes that are this very memory are taken from its file.
#[derive(Clone, Default)]
pub struct Sending(Arc<Mutex<Option<Blob>>>);

impl Sending {
    /// Tells it.
    pub fn set(&self, blob: Blob) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(blob);
    }

    fn get(&self) -> Option<Blob> {
        let blob = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blob.clone()
    }
}

/// The connection.
pub struct FileStream {
    stream: TcpStream,
    sending: Sending,
}

impl FileStream {
    /// A connection that asks `sending` what it sends.
    pub fn new(stream: TcpStream, sending: Sending) -> FileStream {
        FileStream { stream, sending }
    }

    /// Tries `work` whenever the connection takes more.
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        mut work: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_io(Interest::WRITABLE, &mut work) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncWrite for FileStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut parts_left = parts.iter().filter(|part| !part.is_empty());
        let (Some(blob), Some(first)) = (self.sending.get(), parts_left.next()) else {
            return Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        };
        let stream = &self.stream;
        if let Some((file, offset)) = blob.place_of(first) {
            let send_file = || sendfile(stream, file, Some(&mut { offset }), first.len());
            return self.poll_send(context, || Ok(send_file()?));
        }
        // The headers travel with the beginning of the file.
        if parts_left
            .next()
            .is_some_and(|it| blob.place_of(it).is_some())
        {
            return self.poll_send(context, || Ok(send(stream, first, SendFlags::MORE)?));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for FileStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[test]
    fn a_file_arrives_whole_between_what_is_none() {
        let content: Vec<u8> = (0..5_000_000_u32).map(|it| (it % 251) as u8).collect();
        let blob = Blob::new(content.clone().into());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.read_to_end(&mut got).map(|_| got)
        });
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let sending = Sending::default();
            sending.set(blob.clone());
            let mut stream = FileStream::new(TcpStream::from_std(accepted).unwrap(), sending);
            // Not from its beginning, and other memory with the same content in front of it.
            let parts = [
                &b"head"[..],
                &content[..1000],
                &blob.bytes()[1000..],
                b"tail",
            ];
            let mut parts = parts.map(IoSlice::new);
            let mut left = &mut parts[..];
            while !left.is_empty() {
                let sent = stream.write_vectored(left).await.unwrap();
                assert!(sent > 0);
                IoSlice::advance_slices(&mut left, sent);
            }
            stream.shutdown().await.unwrap();
        });
        let got = reader.join().unwrap().unwrap();
        assert!(got == [&b"head"[..], &content, b"tail"].concat());
    }
}
