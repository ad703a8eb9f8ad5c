//! Clients: ping (RFC 792), name look-ups (RFC 1035), and a TCP client that checks an echo server
//! (RFC 862), and thereby the driver in between.

use super::interface::Interface;
use super::{INTERFACES, route, wait_for, wake};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::net::Ipv4Addr;
use core::sync::atomic::{AtomicU16, Ordering};
use core::task::Poll;
use embassy_time::{Duration, Instant, with_timeout};
use ringfence_core::servers::FIRST_CLIENT_PORT;
use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{AnySocket, dns, icmp, tcp};
use smoltcp::wire::{DnsQueryType, Icmpv4Packet, Icmpv4Repr, IpAddress};

/// Buffer size of a connection in each direction, in bytes.
const BUFFER_BYTES: usize = 16384;
/// The most data in a ping that can be sent in fragments and reassembled.
pub const MAX_PING: usize = 16000;
const ICMP_HEADER: usize = 8;

static NEXT_IDENT: AtomicU16 = AtomicU16::new(0x5246);

/// Number of client ports, from [`FIRST_CLIENT_PORT`] on. Each connection gets the next port,
/// because the other side may remember a connection that was cut off.
const PORTS: u16 = 16384;
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

/// A socket of one command, which is removed when this is dropped. Data that one command cannot
/// send does not block other commands.
pub(crate) struct OwnSocket {
    /// Number of the socket's interface, which may go before the socket does.
    interface: u64,
    pub(crate) handle: SocketHandle,
}

impl OwnSocket {
    pub(crate) fn open(number: u64, socket: impl AnySocket<'static>) -> Result<OwnSocket, String> {
        let mut interfaces = INTERFACES.lock();
        let interface = interfaces.iter_mut().find(|interface| interface.number == number);
        let interface = interface.ok_or("the interface is gone")?;
        interface.is_used = true;
        Ok(OwnSocket { interface: number, handle: interface.sockets.add(socket) })
    }

    /// Finds the socket's interface.
    pub(crate) fn interface<'a>(&self, interfaces: &'a mut [Interface]) -> Option<&'a mut Interface> {
        let interface = interfaces.iter_mut().find(|interface| interface.number == self.interface)?;
        interface.is_used = true;
        Some(interface)
    }

    /// Returns the socket, unless its interface is gone.
    pub(crate) fn get<'a, T: AnySocket<'static>>(&self, interfaces: &'a mut [Interface]) -> Option<&'a mut T> {
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

/// A sender of ICMP echo requests to one host.
pub struct Pinger {
    host: Ipv4Addr,
    data: Vec<u8>,
    own: OwnSocket,
    /// The identifier of its requests. Each pinger has its own, so that no answer is taken for
    /// another's.
    ident: u16,
}

impl Pinger {
    /// Makes a sender of requests with `len_bytes` bytes, at most [`MAX_PING`]. The error says why
    /// no request can be sent.
    pub async fn open(host: Ipv4Addr, len_bytes: usize) -> Result<Pinger, String> {
        let number = route(host).await?;
        let ident = NEXT_IDENT.fetch_add(1, Ordering::Relaxed);
        let packet_bytes = ICMP_HEADER + len_bytes;
        // A host that pings itself receives its own requests as well.
        let buffer = |packets: usize| {
            let room = hw::memory::buffer(packets * packet_bytes)?;
            Ok::<_, String>(icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; packets], room))
        };
        let mut socket = icmp::Socket::new(buffer(4)?, buffer(1)?);
        socket.bind(icmp::Endpoint::Ident(ident)).map_err(|_| "the ICMP socket is in use")?;
        let data = (0..len_bytes).map(pattern).collect();
        Ok(Pinger { host, data, own: OwnSocket::open(number, socket)?, ident })
    }

    /// Sends a request, and waits for its answer. Returns the round trip time, or `None` after
    /// `limit`. The error says why no request can be sent.
    pub async fn ping(&mut self, sequence: u16, limit: Duration) -> Result<Option<Duration>, String> {
        let started = Instant::now();
        if !self.send(sequence) {
            // The interface is gone, or has not sent an earlier request.
            *self = Pinger::open(self.host, self.data.len()).await?;
            if !self.send(sequence) {
                return Err("no request can be sent".to_string());
            }
        }
        wake();
        let answered = poll_fn(|context| {
            let mut interfaces = INTERFACES.lock();
            let Some(socket) = self.own.get::<icmp::Socket>(&mut interfaces) else {
                return Poll::Ready(Err("the interface is gone".to_string()));
            };
            while let Ok((packet, from)) = socket.recv() {
                let Ok(packet) = Icmpv4Packet::new_checked(packet) else { continue };
                // The stack has checked the checksum.
                let reply = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::ignored());
                if let Ok(Icmpv4Repr::EchoReply { seq_no, data, .. }) = reply
                    && seq_no == sequence
                    && from == IpAddress::Ipv4(self.host)
                    && data == self.data
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

    /// Queues a request; `false` if it cannot be.
    fn send(&self, sequence: u16) -> bool {
        let request = Icmpv4Repr::EchoRequest { ident: self.ident, seq_no: sequence, data: &self.data };
        let mut interfaces = INTERFACES.lock();
        let socket = self.own.get::<icmp::Socket>(&mut interfaces);
        let Some(Ok(packet)) = socket.map(|socket| socket.send(request.buffer_len(), IpAddress::Ipv4(self.host)))
        else {
            return false;
        };
        // The stack fills the checksum in.
        request.emit(&mut Icmpv4Packet::new_unchecked(packet), &ChecksumCapabilities::ignored());
        true
    }
}

/// Returns the addresses of the host called `name`. Asks each known name server, one after the
/// other, until one knows the host.
pub async fn look_up(name: &str) -> Result<Vec<Ipv4Addr>, String> {
    if name == "localhost" {
        return Ok(vec![Ipv4Addr::LOCALHOST]);
    }
    let known = wait_for(|interfaces| {
        let known = interfaces.iter().filter(|interface| interface.has_future());
        let known = known.flat_map(|interface| interface.dns.iter().map(|server| (interface.number, *server)));
        Some(known.collect::<Vec<_>>()).filter(|known| !known.is_empty())
    });
    let known = known.await.map_err(|why| format!("no name server is known, which DHCP brings: {why}"))?;
    let mut has_answered = false;
    for (number, server) in known {
        match ask(number, server, name).await? {
            Answer::Addresses(addresses) => return Ok(addresses),
            Answer::Unknown => has_answered = true,
            Answer::Silence => {}
        }
    }
    match has_answered {
        // A server that failed counts like a server that does not know the host.
        true => Err(format!("there is no host '{name}' that a name server knows")),
        false => Err(format!("no name server has answered within {} s each", SERVER_LIMIT.as_secs())),
    }
}

/// Time that a name server has to answer.
const SERVER_LIMIT: Duration = Duration::from_secs(5);

/// An answer of a name server.
enum Answer {
    Addresses(Vec<Ipv4Addr>),
    /// The server does not know the host, or fails.
    Unknown,
    Silence,
}

/// Asks a name server through the interface `number`.
async fn ask(number: u64, server: Ipv4Addr, name: &str) -> Result<Answer, String> {
    let own = OwnSocket::open(number, dns::Socket::new(&[], vec![]))?;
    let query = {
        let mut interfaces = INTERFACES.lock();
        let interface = own.interface(&mut interfaces).ok_or("the interface is gone")?;
        let socket = interface.sockets.get_mut::<dns::Socket>(own.handle);
        socket.update_servers(&[IpAddress::Ipv4(server)]);
        let begun = socket.start_query(interface.stack.context(), name, DnsQueryType::A);
        begun.map_err(|_| format!("'{name}' is neither an IPv4 address nor a host's name"))?
    };
    wake();
    let answered = poll_fn(|context| {
        let mut interfaces = INTERFACES.lock();
        let Some(socket) = own.get::<dns::Socket>(&mut interfaces) else {
            // The next server may be behind another interface.
            return Poll::Ready(Answer::Silence);
        };
        match socket.get_query_result(query) {
            Ok(addresses) => {
                Poll::Ready(Answer::Addresses(addresses.iter().map(|IpAddress::Ipv4(address)| *address).collect()))
            }
            Err(dns::GetQueryResultError::Pending) => {
                socket.register_query_waker(query, context.waker());
                Poll::Pending
            }
            Err(dns::GetQueryResultError::Failed) => Poll::Ready(Answer::Unknown),
        }
    });
    Ok(with_timeout(SERVER_LIMIT, answered).await.unwrap_or(Answer::Silence))
}

/// Makes a TCP socket with buffers of its own at the interface `number`.
pub(crate) fn open_tcp(number: u64) -> Result<OwnSocket, String> {
    let buffer = || Ok::<_, String>(tcp::SocketBuffer::new(hw::memory::buffer(BUFFER_BYTES)?));
    OwnSocket::open(number, tcp::Socket::new(buffer()?, buffer()?))
}

/// Begins to connect to `host` and `port`.
pub(crate) async fn connect(host: Ipv4Addr, port: u16) -> Result<OwnSocket, String> {
    let own = open_tcp(route(host).await?)?;
    let local = FIRST_CLIENT_PORT + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % PORTS;
    let mut interfaces = INTERFACES.lock();
    let interface = own.interface(&mut interfaces).ok_or("the interface is gone");
    let begun = interface.map(|interface| {
        let socket = interface.sockets.get_mut::<tcp::Socket>(own.handle);
        socket.connect(interface.stack.context(), (IpAddress::Ipv4(host), port), local)
    });
    // The lock must be released first: dropping the socket takes it.
    drop(interfaces);
    begun?.map_err(|_| "no connection can be made")?;
    wake();
    Ok(own)
}

/// Returns the byte at `offset` of the data that is sent.
fn pattern(offset: usize) -> u8 {
    (offset.wrapping_mul(0x9e37_79b1) >> 16) as u8
}

/// Sends `len_bytes` bytes to the echo server at `host` and `port`, and compares the bytes that
/// come back.
pub async fn echo(host: Ipv4Addr, port: u16, len_bytes: usize) -> Result<(), String> {
    let own = connect(host, port).await?;
    let (mut sent, mut received) = (0, 0);
    let result = poll_fn(|context| {
        let mut interfaces = INTERFACES.lock();
        let Some(socket) = own.get::<tcp::Socket>(&mut interfaces) else {
            return Poll::Ready(Err("the interface is gone".to_string()));
        };
        if !socket.is_open() {
            return Poll::Ready(Err("the connection was refused or reset".to_string()));
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
                return Poll::Ready(Err("other bytes came back".to_string()));
            }
            received += count;
            moved = true;
        }
        if received >= len_bytes {
            return Poll::Ready(if received == len_bytes {
                Ok(())
            } else {
                Err("too many bytes came back".to_string())
            });
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
