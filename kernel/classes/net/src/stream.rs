//! TCP connections for other parts of the kernel, with the traits of `embedded-io-async`.

use super::client::{OwnSocket, connect, open_tcp};
use super::{INTERFACES, wake};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::net::Ipv4Addr;
use core::task::{Context, Poll};
use embassy_time::{Duration, with_timeout};
use embedded_io_async::{Error, ErrorKind, ErrorType, Read, Write};
use smoltcp::socket::tcp;
use spin::Mutex;

/// A peer that has been silent for so long is gone.
const SILENCE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(30);
/// Time for the other side to answer the first segment.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A TCP connection. Dropped, it is cut off, and the peer is told.
pub struct Stream(Option<OwnSocket>);

/// Sockets of connections that nobody uses any more, until their peers know.
static ENDING: Mutex<VecDeque<OwnSocket>> = Mutex::new(VecDeque::new());
/// The most sockets that wait for their peers. Beyond that, the oldest is forgotten.
const MOST_ENDING: usize = 16;

/// Removes the sockets in [`ENDING`] whose peers know.
fn clean_up() {
    let done: Vec<OwnSocket> = {
        let mut ending = ENDING.lock();
        let mut interfaces = INTERFACES.lock();
        let (mut left, mut done) = (VecDeque::new(), Vec::new());
        for own in ending.drain(..) {
            let is_done = own
                .get::<tcp::Socket>(&mut interfaces)
                .is_none_or(|socket| socket.remote_endpoint().is_none() || socket.state() == tcp::State::TimeWait);
            if is_done { done.push(own) } else { left.push_back(own) }
        }
        done.extend((MOST_ENDING < left.len()).then(|| left.pop_front()).flatten());
        *ending = left;
        done
    };
    // The interfaces' lock must be released first: dropping a socket takes it.
    drop(done);
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.with(|socket| socket.abort());
        self.end();
    }
}

/// The end of a connection that nobody has asked for: it was reset, its peer is silent, or its
/// interface is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is lost")
    }
}

impl core::error::Error for Lost {}

impl Error for Lost {
    fn kind(&self) -> ErrorKind {
        ErrorKind::ConnectionReset
    }
}

impl Stream {
    /// Connects to `host` and `port`.
    pub async fn connect(host: Ipv4Addr, port: u16) -> Result<Stream, String> {
        let stream = Stream(Some(connect(host, port).await?));
        let connected = stream.when(|socket, _| match socket.state() {
            tcp::State::SynSent | tcp::State::SynReceived => None,
            _ => Some(socket.may_send()),
        });
        match with_timeout(CONNECT_LIMIT, connected).await {
            Ok(Ok(true)) => Ok(stream),
            Ok(_) => Err("the connection was refused".into()),
            Err(_) => Err(alloc::format!("no answer within {} s", CONNECT_LIMIT.as_secs())),
        }
    }

    /// Waits for a connection to `port` at the first interface that has a driver, if there is one.
    pub async fn accept(port: u16) -> Result<Stream, String> {
        let number =
            INTERFACES.lock().iter().find(|interface| interface.handle().is_some()).map(|interface| interface.number);
        clean_up();
        let stream = Stream(Some(open_tcp(number.ok_or("there is no network interface")?)?));
        let listens = stream.with(|socket| {
            socket.set_nagle_enabled(false);
            // A peer that never ends its handshake is gone after that, too.
            socket.set_timeout(Some(SILENCE));
            socket.listen(port).is_ok()
        });
        if listens != Some(true) {
            return Err(alloc::format!("nobody can listen on port {port}"));
        }
        let connected = stream.when(|socket, _| match socket.state() {
            tcp::State::Listen | tcp::State::SynReceived => None,
            _ => Some(()),
        });
        connected.await.map_err(|_| "the interface is gone")?;
        Ok(stream)
    }

    /// Does something with the socket, unless its interface is gone.
    fn with<T>(&self, then: impl FnOnce(&mut tcp::Socket) -> T) -> Option<T> {
        self.0.as_ref()?.get::<tcp::Socket>(&mut INTERFACES.lock()).map(then)
    }

    /// Waits until `look` returns a value. It is called again whenever the socket has changed.
    async fn when<T>(&self, mut look: impl FnMut(&mut tcp::Socket, &mut Context) -> Option<T>) -> Result<T, Lost> {
        poll_fn(|context| {
            let looked = self.with(|socket| {
                let found = look(socket, context);
                if found.is_none() {
                    socket.register_recv_waker(context.waker());
                    socket.register_send_waker(context.waker());
                }
                found
            });
            match looked {
                None => Poll::Ready(Err(Lost)),
                Some(Some(found)) => Poll::Ready(Ok(found)),
                Some(None) => Poll::Pending,
            }
        })
        .await
    }

    /// Ends the connection in order: the written bytes are sent, and then their end. Does not wait
    /// for that.
    pub fn close(mut self) {
        self.with(|socket| socket.close());
        self.end();
    }

    /// Leaves the socket to [`ENDING`].
    fn end(&mut self) {
        ENDING.lock().extend(self.0.take());
        wake();
        clean_up();
    }

    /// Returns the two halves.
    pub fn halves(&self) -> (Half<'_>, Half<'_>) {
        (Half(self), Half(self))
    }
}

/// One of the two directions of a connection.
#[derive(Clone, Copy)]
pub struct Half<'a>(&'a Stream);

impl ErrorType for Half<'_> {
    type Error = Lost;
}

impl Read for Half<'_> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Lost> {
        let count = self.0.when(|socket, _| match socket.recv_slice(to) {
            Ok(0) if !to.is_empty() => None,
            Ok(count) => Some(Ok(count)),
            Err(tcp::RecvError::Finished) => Some(Ok(0)),
            Err(tcp::RecvError::InvalidState) => Some(Err(Lost)),
        });
        let count = count.await??;
        // The window is open again.
        wake();
        Ok(count)
    }
}

impl Write for Half<'_> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Lost> {
        let count = self.0.when(|socket, _| match socket.send_slice(from) {
            Ok(0) if !from.is_empty() => None,
            Ok(count) => Some(Ok(count)),
            Err(tcp::SendError::InvalidState) => Some(Err(Lost)),
        });
        let count = count.await??;
        wake();
        Ok(count)
    }

    async fn flush(&mut self) -> Result<(), Lost> {
        self.0.when(|socket, _| (socket.send_queue() == 0 || !socket.is_active()).then_some(())).await
    }
}
