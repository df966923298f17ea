//! A connection of any kind, a Unix socket's, TCP's or TLS's, and the listener it comes from.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::tls::Tls;

/// Where connections come from.
#[derive(Debug)]
pub(super) enum Listener {
    /// From this machine; the kernel knows who it is.
    Unix(UnixListener),
    /// From anywhere the address lets in; with TLS where the operator has a certificate.
    Tcp(TcpListener, Option<Tls>),
}

impl Listener {
    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<Arrival> {
        match self {
            Listener::Unix(listener) => {
                Ok(Arrival { stream: Stream::Unix(listener.accept().await?.0), tls: None })
            }
            Listener::Tcp(listener, tls) => {
                let stream = listener.accept().await?.0;
                // Pieces of an answer are small, and each is worth sending. A connection that is gone already ends by itself.
                let _ = stream.set_nodelay(true);
                let tls = tls.as_ref().map(Tls::acceptor);
                Ok(Arrival { stream: Stream::Tcp(stream), tls })
            }
        }
    }
}

/// A connection as it was accepted, before anything was read from it.
pub(super) struct Arrival {
    pub(super) stream: Stream,
    tls: Option<TlsAcceptor>,
}

impl Arrival {
    /// Writes what fits at once, where the other end can read it already.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.stream {
            _ if self.tls.is_some() => Ok(0),
            Stream::Unix(stream) => stream.try_write(bytes),
            Stream::Tcp(stream) => stream.try_write(bytes),
            Stream::Tls(_) => Ok(0),
        }
    }

    /// The connection when both sides have agreed on how to speak; at once without TLS. It waits as long as the client does.
    pub(super) async fn agree(self) -> io::Result<Stream> {
        match (self.stream, self.tls) {
            (Stream::Tcp(stream), Some(tls)) => {
                Ok(Stream::Tls(Box::new(tls.accept(stream).await?)))
            }
            (stream, _) => Ok(stream),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Calls a method of whichever stream it is.
macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self {
            Stream::Unix($stream) => $call,
            Stream::Tcp($stream) => $call,
            Stream::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }
}
