//! Clients: ping (RFC 792), and a TCP client that checks an echo server (RFC 862), and by that the driver in between.

use super::{INTERFACES, Interface, wake};
use alloc::vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicU16, Ordering};
use core::task::Poll;
use embassy_time::{Duration, Instant, with_timeout};
use ringfence_core::servers::FIRST_CLIENT_PORT;
use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{AnySocket, icmp, tcp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpAddress, Ipv4Address};

/// Room in each direction in bytes: of a connection, and of a ping.
const BUFFER_BYTES: usize = 16384;
const PACKET_BYTES: usize = 128;

static NEXT_IDENT: AtomicU16 = AtomicU16::new(0x5246);

/// Ports from [`FIRST_CLIENT_PORT`] on. Each connection gets the next one: the other side may remember one that was cut off.
const PORTS: u16 = 16384;
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A socket of one command's own, which goes when this goes. What one command cannot send is in nobody else's way.
struct OwnSocket {
    /// Number of its interface, which may be gone before it.
    interface: u64,
    handle: SocketHandle,
}

impl OwnSocket {
    fn open(interface: &mut Interface, socket: impl AnySocket<'static>) -> OwnSocket {
        OwnSocket { interface: interface.number, handle: interface.sockets.add(socket) }
    }

    /// Its interface among those that there are.
    fn interface<'a>(&self, interfaces: &'a mut [Interface]) -> Option<&'a mut Interface> {
        interfaces.iter_mut().find(|interface| interface.number == self.interface)
    }

    /// The socket, unless its interface is gone.
    fn get<'a, T: AnySocket<'static>>(&self, interfaces: &'a mut [Interface]) -> Option<&'a mut T> {
        Some(self.interface(interfaces)?.sockets.get_mut(self.handle))
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        if let Some(interface) = self.interface(&mut INTERFACES.lock()) {
            interface.sockets.remove(self.handle);
        }
    }
}

/// Sends one ICMP echo request to `host` and waits for the answer; returns the round trip, or `None` after `limit`.
pub async fn ping(host: Ipv4Address, sequence: u16, limit: Duration) -> Result<Option<Duration>, &'static str> {
    let started = Instant::now();
    // An answer that comes too late must not be taken for the next one's.
    let ident = NEXT_IDENT.fetch_add(1, Ordering::Relaxed);
    let own = {
        let mut interfaces = INTERFACES.lock();
        let interface = interfaces.first_mut().ok_or("there is no network interface")?;
        interface.stack.ipv4_addr().ok_or("the interface has no address yet")?;
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 1], vec![0; PACKET_BYTES]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(ident)).map_err(|_| "the ICMP socket is in use")?;
        let request = Icmpv4Repr::EchoRequest { ident, seq_no: sequence, data: &[0x52; 56] };
        let packet = socket.send(request.buffer_len(), IpAddress::Ipv4(host)).map_err(|_| "no request can be sent")?;
        request.emit(&mut Icmpv4Packet::new_unchecked(packet), &ChecksumCapabilities::default());
        OwnSocket::open(interface, socket)
    };
    wake();
    let answered = poll_fn(|context| {
        let mut interfaces = INTERFACES.lock();
        let Some(socket) = own.get::<icmp::Socket>(&mut interfaces) else {
            return Poll::Ready(Err("the interface is gone"));
        };
        while let Ok((packet, from)) = socket.recv() {
            let Ok(packet) = Icmpv4Packet::new_checked(packet) else { continue };
            let reply = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default());
            if let Ok(Icmpv4Repr::EchoReply { seq_no, .. }) = reply
                && seq_no == sequence
                && from == IpAddress::Ipv4(host)
            {
                return Poll::Ready(Ok(()));
            }
        }
        socket.register_recv_waker(context.waker());
        Poll::Pending
    });
    match with_timeout(limit, answered).await {
        Ok(answered) => answered.map(|()| Some(started.elapsed())),
        Err(_) => Ok(None),
    }
}

/// The byte at `offset` of what is sent.
fn pattern(offset: usize) -> u8 {
    (offset.wrapping_mul(0x9e37_79b1) >> 16) as u8
}

/// Sends `len_bytes` bytes to the echo server at `host` and `port`, and compares what comes back.
pub async fn echo(host: Ipv4Address, port: u16, len_bytes: usize) -> Result<(), &'static str> {
    let own = {
        let mut interfaces = INTERFACES.lock();
        let interface = interfaces.first_mut().ok_or("there is no network interface")?;
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        let own = OwnSocket::open(interface, tcp::Socket::new(buffer(), buffer()));
        let local = FIRST_CLIENT_PORT + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % PORTS;
        let socket = interface.sockets.get_mut::<tcp::Socket>(own.handle);
        let begun = socket.connect(interface.stack.context(), (IpAddress::Ipv4(host), port), local);
        if begun.is_err() {
            // The lock is not held when the socket goes.
            drop(interfaces);
            return Err("no connection can be made");
        }
        own
    };
    wake();
    let (mut sent, mut received) = (0, 0);
    let result = poll_fn(|context| {
        let mut interfaces = INTERFACES.lock();
        let Some(socket) = own.get::<tcp::Socket>(&mut interfaces) else {
            return Poll::Ready(Err("the interface is gone"));
        };
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
    drop(own);
    wake();
    result
}
