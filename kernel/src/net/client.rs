//! A TCP client that checks an echo server (RFC 862), and by that the driver in between.

use super::{INTERFACES, Interface, wake};
use alloc::vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicU16, Ordering};
use core::task::Poll;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, Ipv4Address};

/// Room in each direction in bytes.
const BUFFER_BYTES: usize = 16384;

/// The dynamic ports (RFC 6335, 6). Each connection gets the next one: the other side may remember one that was cut off.
const FIRST_PORT: u16 = 49152;
const PORTS: u16 = 16384;
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// The connection, which goes when this goes.
struct Connection {
    /// Number of its interface, which may be gone before it.
    interface: u64,
    socket: SocketHandle,
}

impl Connection {
    /// Its interface among those that there are.
    fn interface<'a>(&self, interfaces: &'a mut [Interface]) -> Option<&'a mut Interface> {
        interfaces.iter_mut().find(|interface| interface.number == self.interface)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(interface) = self.interface(&mut INTERFACES.lock()) {
            interface.sockets.get_mut::<tcp::Socket>(self.socket).abort();
            interface.sockets.remove(self.socket);
        }
    }
}

/// The byte at `offset` of what is sent.
fn pattern(offset: usize) -> u8 {
    (offset.wrapping_mul(0x9e37_79b1) >> 16) as u8
}

/// Sends `len_bytes` bytes to the echo server at `host` and `port`, and compares what comes back.
pub async fn echo(host: Ipv4Address, port: u16, len_bytes: usize) -> Result<(), &'static str> {
    let connection = {
        let mut interfaces = INTERFACES.lock();
        let interface = interfaces.first_mut().ok_or("there is no network interface")?;
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let handle = interface.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let connection = Connection { interface: interface.number, socket: handle };
        let local = FIRST_PORT + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % PORTS;
        let socket = interface.sockets.get_mut::<tcp::Socket>(handle);
        let begun = socket.connect(interface.stack.context(), (IpAddress::Ipv4(host), port), local);
        if begun.is_err() {
            // The lock is not held when the connection goes.
            drop(interfaces);
            return Err("no connection can be made");
        }
        connection
    };
    wake();
    let (mut sent, mut received) = (0, 0);
    let result = poll_fn(|context| {
        let mut interfaces = INTERFACES.lock();
        let Some(interface) = connection.interface(&mut interfaces) else {
            return Poll::Ready(Err("the interface is gone"));
        };
        let socket = interface.sockets.get_mut::<tcp::Socket>(connection.socket);
        if !socket.is_open() {
            return Poll::Ready(Err("the connection was refused or reset"));
        }
        let mut moved = false;
        while socket.can_send() && sent < len_bytes {
            let count = socket.send(|room| {
                let count = room.len().min(len_bytes - sent);
                room.iter_mut().take(count).enumerate().for_each(|(index, byte)| *byte = pattern(sent + index));
                (count, count)
            });
            sent += count.unwrap_or(0);
            moved = true;
        }
        while socket.can_recv() {
            let start = received;
            let count = socket.recv(|data| {
                let same = data.iter().enumerate().take_while(|(index, byte)| **byte == pattern(start + index)).count();
                (data.len(), (data.len(), same))
            });
            let Ok((count, same)) = count else { break };
            if same < count {
                return Poll::Ready(Err("other bytes came back"));
            }
            received += count;
            moved = true;
        }
        if received >= len_bytes {
            return Poll::Ready(if received == len_bytes { Ok(()) } else { Err("too many bytes came back") });
        }
        socket.register_recv_waker(context.waker());
        socket.register_send_waker(context.waker());
        if moved {
            wake();
        }
        Poll::Pending
    })
    .await;
    drop(connection);
    wake();
    result
}
