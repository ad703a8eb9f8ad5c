//! Small servers over smoltcp: echo (RFC 862) over TCP and UDP, discard (RFC 863) and character
//! generator (RFC 864) over TCP. [`is_harmless`] filters out frames on which smoltcp 0.14 would
//! panic. `tests/tests/fuzz_stack.rs` looks for more.

use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Waker;
use sha2::{Digest, Sha256};
use smoltcp::iface::{Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::{tcp, udp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket};

const ECHO: u16 = 7;
const DISCARD: u16 = 9;
const CHARGEN: u16 = 19;

/// Connections that each TCP server can have at once.
pub const CONNECTIONS: usize = 32;
/// Connections of each TCP server that have large buffers.
const ROOMY: usize = 2;
/// Buffer size in each direction of a connection that comes when the roomy ones are taken.
const LITTLE_BYTES: usize = 8192;
/// Time that a peer has to finish its handshake.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// A connection ends when its peer has been silent for so long (RFC 1122, 4.2.3.5).
const SILENCE: Duration = Duration::from_secs(120);
/// A peer that has been silent for so long is asked whether it is there (RFC 1122, 4.2.3.6).
const KEEP_ALIVE: Duration = Duration::from_secs(45);
/// Buffer size in each direction of a roomy connection, in bytes: the largest window that can be
/// announced without a scale (RFC 9293, 3.1). smoltcp 0.14 takes the window of its SYN, which is
/// never scaled, for a scaled one. With larger buffers it would accept more data than it has room
/// for, and panic, if a peer sent so much before smoltcp's next segment.
const BUFFER_BYTES: usize = 65535;

/// A TCP socket of a server.
struct Listener {
    handle: SocketHandle,
    port: u16,
    /// Whether the socket is removed when its connection ends.
    is_extra: bool,
    /// Whether the socket was listening when it was last looked at.
    was_listening: bool,
    /// The character generator's position in its pattern.
    generated: usize,
    /// The data that the echo server has received.
    echoed: Echoed,
}

/// A stream that the echo server has received.
#[derive(Debug, Clone, Default)]
pub struct Echoed {
    /// Its length in bytes.
    pub len_bytes: u64,
    sum: Sha256,
}

impl Echoed {
    /// Returns the SHA-256 of the stream.
    pub fn sum(&self) -> [u8; 32] {
        self.sum.clone().finalize().into()
    }
}

/// The sockets of all servers.
pub struct Servers {
    tcp: Vec<Listener>,
    udp_echo: SocketHandle,
    last_echoed: Option<Echoed>,
    /// Returns whether there is memory for so many bytes more.
    has_room: fn(usize) -> bool,
    /// Whether one of the sockets has changed since the servers looked at them.
    changed: Arc<Changed>,
    /// What a socket wakes when it changes.
    on_change: Waker,
}

/// Set when a socket of a server changes. Most frames are not for a server, whose sockets need not
/// be looked at then.
struct Changed(AtomicBool);

impl Changed {
    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Changed {
    fn wake(self: Arc<Changed>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Memory that the TCP sockets take from the start, in bytes.
pub const BYTES: usize = 3 * ROOMY * 2 * BUFFER_BYTES;

impl Listener {
    fn new(sockets: &mut SocketSet<'static>, port: u16, is_extra: bool) -> Listener {
        let room = if is_extra { LITTLE_BYTES } else { BUFFER_BYTES };
        let buffer = || tcp::SocketBuffer::new(vec![0; room]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let handle = sockets.add(socket);
        Listener { handle, port, is_extra, was_listening: false, generated: 0, echoed: Echoed::default() }
    }

    /// Listens. A peer that connects has a limited time to finish its handshake.
    fn listen(&mut self, sockets: &mut SocketSet<'static>) {
        (self.generated, self.echoed) = (0, Echoed::default());
        let socket = sockets.get_mut::<tcp::Socket>(self.handle);
        socket.set_timeout(Some(HANDSHAKE));
        socket.set_keep_alive(None);
        // Listening fails only on a socket that is open, or on port 0.
        self.was_listening = socket.listen(self.port).is_ok();
    }
}

impl Servers {
    /// Makes the sockets; they listen from the first [`Servers::serve`] on. `has_room` returns
    /// whether there is memory for so many bytes more.
    pub fn new(sockets: &mut SocketSet<'static>, has_room: fn(usize) -> bool) -> Servers {
        let mut tcp = Vec::new();
        for port in [ECHO, DISCARD, CHARGEN] {
            tcp.extend((0..ROOMY).map(|_| Listener::new(sockets, port, false)));
        }
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 64 * 1500]);
        let udp_echo = sockets.add(udp::Socket::new(buffer(), buffer()));
        // At first the sockets are to listen.
        let changed = Arc::new(Changed(AtomicBool::new(true)));
        let on_change = Waker::from(changed.clone());
        Servers { tcp, udp_echo, last_echoed: None, has_room, changed, on_change }
    }

    /// Keeps a socket listening on each port. If none listens, makes another one, as long as the
    /// port may have more. After that, the oldest connection without a complete handshake gives
    /// way.
    fn keep_listening(&mut self, sockets: &mut SocketSet<'static>) {
        for port in [ECHO, DISCARD, CHARGEN] {
            let is_in = |listener: &Listener, sockets: &SocketSet<'static>, state: tcp::State| {
                listener.port == port && sockets.get::<tcp::Socket>(listener.handle).state() == state
            };
            if self.tcp.iter().any(|listener| is_in(listener, sockets, tcp::State::Listen)) {
                continue;
            }
            // A connection has just ended, and the next frame may be the SYN of another one.
            if let Some(closed) = self.tcp.iter_mut().find(|listener| is_in(listener, sockets, tcp::State::Closed)) {
                closed.listen(sockets);
                continue;
            }
            let of_port = self.tcp.iter().filter(|listener| listener.port == port);
            let state = |listener: &&Listener| sockets.get::<tcp::Socket>(listener.handle).state();
            // One socket more than connections: a port still listens when all its connections are
            // taken.
            if of_port.clone().count() <= CONNECTIONS && (self.has_room)(2 * LITTLE_BYTES) {
                let mut listener = Listener::new(sockets, port, true);
                listener.listen(sockets);
                self.tcp.push(listener);
                continue;
            }
            // The list begins with the oldest. A half-open connection that is the only one is also
            // the newest: it is left alone, so that it has a chance.
            let mut half_open = of_port.clone().filter(|listener| state(listener) == tcp::State::SynReceived);
            let first = half_open.next().filter(|_| half_open.next().is_some());
            if let Some(handle) = first.map(|listener| listener.handle) {
                sockets.get_mut::<tcp::Socket>(handle).abort();
                if let Some(place) = self.tcp.iter().position(|listener| listener.handle == handle) {
                    let mut listener = self.tcp.remove(place);
                    listener.listen(sockets);
                    self.tcp.push(listener);
                }
            }
        }
    }

    /// Returns the last stream that the echo server received to its end.
    pub fn last_echoed(&self) -> Option<&Echoed> {
        self.last_echoed.as_ref()
    }

    /// Lets the stack receive and send all it can, as its own `poll` does. Returns whether a socket
    /// may have changed.
    pub fn poll(
        &mut self,
        stack: &mut Interface,
        now: Instant,
        device: &mut (impl Device + ?Sized),
        sockets: &mut SocketSet<'static>,
    ) -> bool {
        let mut changed = false;
        loop {
            match stack.poll_ingress_single(now, device, sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed => {}
                PollIngressSingleResult::SocketStateChanged => {
                    changed = true;
                    if self.changed.is_set() {
                        self.forget_who_gave_up(sockets);
                        // A socket must listen before the next frame, which may be another peer's
                        // SYN.
                        self.keep_listening(sockets);
                    }
                }
            }
        }
        while stack.poll_egress(now, device, sockets) == PollResult::SocketStateChanged {
            changed = true;
        }
        changed
    }

    /// Resets each socket whose peer has reset an incomplete connection. Such a socket listens
    /// again, but keeps state of the old connection: smoltcp 0.14 would subtract the next peer's
    /// sequence numbers from it, and panic.
    fn forget_who_gave_up(&mut self, sockets: &mut SocketSet<'static>) {
        for listener in &mut self.tcp {
            let socket = sockets.get_mut::<tcp::Socket>(listener.handle);
            let listens = socket.state() == tcp::State::Listen;
            if listens && !listener.was_listening {
                socket.abort();
                listener.listen(sockets);
            }
            listener.was_listening = listens;
        }
    }

    /// Moves all data that can be moved, and closes the connections that are to be closed, if a
    /// socket has changed: by a frame, or because its time was over. Returns whether the stack has
    /// something to send for that.
    pub fn serve(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        if !self.changed.take() {
            return false;
        }
        let mut moved = false;
        // A socket that was made for a connection is removed with it.
        self.tcp.retain(|listener| {
            let goes = listener.is_extra && !sockets.get::<tcp::Socket>(listener.handle).is_open();
            if goes {
                sockets.remove(listener.handle);
            }
            !goes
        });
        for listener in &mut self.tcp {
            if !sockets.get::<tcp::Socket>(listener.handle).is_open() {
                listener.listen(sockets);
            }
            let socket = sockets.get_mut::<tcp::Socket>(listener.handle);
            let waits = matches!(socket.state(), tcp::State::Listen | tcp::State::SynReceived);
            if !waits && socket.timeout() == Some(HANDSHAKE) {
                socket.set_timeout(Some(SILENCE));
                socket.set_keep_alive(Some(KEEP_ALIVE));
            }
            moved |= match listener.port {
                ECHO => echo(socket, &mut listener.echoed),
                DISCARD => discard(socket),
                _ => generate(socket, &mut listener.generated),
            };
            if !socket.may_recv() && socket.may_send() && (listener.port != ECHO || !socket.can_recv()) {
                // There is a FIN to send.
                socket.close();
                moved = true;
                if listener.port == ECHO {
                    self.last_echoed = Some(core::mem::take(&mut listener.echoed));
                }
            }
            // A socket that has woken its waker has none.
            socket.register_recv_waker(&self.on_change);
            socket.register_send_waker(&self.on_change);
        }
        let socket = sockets.get_mut::<udp::Socket>(self.udp_echo);
        if !socket.is_open() {
            let _ = socket.bind(ECHO);
        }
        while socket.can_send() {
            let Ok((data, from)) = socket.recv() else { break };
            let data = data.to_vec();
            // There was room a line ago. A datagram that is too large for the buffer is dropped, as
            // UDP may.
            let _ = socket.send_slice(&data, from.endpoint);
            moved = true;
        }
        socket.register_recv_waker(&self.on_change);
        socket.register_send_waker(&self.on_change);
        moved
    }
}

fn echo(socket: &mut tcp::Socket, echoed: &mut Echoed) -> bool {
    let mut moved = false;
    while socket.can_recv() && socket.can_send() {
        let mut chunk = [0; 2048];
        let room = (socket.send_capacity() - socket.send_queue()).min(chunk.len());
        let Some(chunk) = chunk.get_mut(..room) else { break };
        let Ok(received) = socket.recv_slice(chunk) else { break };
        let received = chunk.get(..received).unwrap_or(&[]);
        if received.is_empty() || socket.send_slice(received).is_err() {
            break;
        }
        echoed.len_bytes += received.len() as u64;
        echoed.sum.update(received);
        moved = true;
    }
    moved
}

fn discard(socket: &mut tcp::Socket) -> bool {
    let mut moved = false;
    while socket.can_recv() {
        match socket.recv(|data| (data.len(), data.len())) {
            Ok(len_bytes) if len_bytes > 0 => moved = true,
            _ => break,
        }
    }
    moved
}

/// Length of a generated line: 72 printable characters and its end.
const LINE: usize = 74;
/// The number of printable characters, after which the lines begin again.
const PRINTABLE: usize = 95;
/// The generated lines, each beginning one character later (RFC 864, 2). A table, because the
/// generator is to be as fast as its connection.
static PATTERN: [u8; LINE * PRINTABLE] = {
    let mut pattern = [0; LINE * PRINTABLE];
    let mut place = 0;
    while place < pattern.len() {
        let (line, column) = (place / LINE, place % LINE);
        pattern[place] = match column {
            72 => b'\r',
            73 => b'\n',
            column => b' ' + ((line + column) % PRINTABLE) as u8,
        };
        place += 1;
    }
    pattern
};

/// Generates lines.
fn generate(socket: &mut tcp::Socket, generated: &mut usize) -> bool {
    let mut moved = false;
    while socket.can_send() {
        let filled = socket.send(|buffer| {
            let mut rest = &mut *buffer;
            while !rest.is_empty() {
                let next = PATTERN.get(*generated..).unwrap_or_default();
                let (room, behind) = rest.split_at_mut(rest.len().min(next.len()));
                room.copy_from_slice(&next[..room.len()]);
                *generated = (*generated + room.len()) % PATTERN.len();
                rest = behind;
            }
            (buffer.len(), buffer.len())
        });
        match filled {
            Ok(len_bytes) if len_bytes > 0 => moved = true,
            _ => break,
        }
    }
    // Data from the peer is discarded.
    moved | discard(socket)
}

/// Returns whether an address can be a single host's (RFC 1122, 3.2.1.3).
pub fn is_host(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast() && !address.is_loopback()
}

/// The first of the ports that clients use (RFC 6335, 6).
pub const FIRST_CLIENT_PORT: u16 = 49152;

/// Returns whether a frame may be given to smoltcp. smoltcp assumes that the sender of a frame can
/// be answered. It panics when its SYN is answered with a SYN alone (simultaneous open, RFC 9293,
/// 3.5).
pub fn is_harmless(frame: &[u8]) -> bool {
    let Ok(frame) = EthernetFrame::new_checked(frame) else { return true };
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return true;
    }
    let Ok(packet) = Ipv4Packet::new_checked(frame.payload()) else { return false };
    if !is_host(packet.src_addr()) {
        return false;
    }
    if packet.next_header() != IpProtocol::Tcp {
        return true;
    }
    // A segment to a group, or to 255.255.255.255, is nobody's (RFC 9293, 3.10.7). smoltcp would
    // answer it.
    if !is_host(packet.dst_addr()) {
        return false;
    }
    // Only a whole segment can be checked. No peer needs to fragment a segment: the peer was told
    // how long its segments may be. Overlapping fragments could be put together into a segment that
    // was not checked (RFC 3128).
    if packet.more_frags() || packet.frag_offset() != 0 {
        return false;
    }
    let Ok(segment) = TcpPacket::new_checked(packet.payload()) else { return false };
    !(segment.syn() && !segment.ack() && segment.dst_port() >= FIRST_CLIENT_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a frame with an IPv4 packet from `source` that carries a TCP segment to `port` with
    /// `flags`.
    fn frame(source: [u8; 4], port: u16, flags: u8) -> Vec<u8> {
        let mut frame = vec![0; 54];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..24].copy_from_slice(&[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]);
        frame[26..30].copy_from_slice(&source);
        frame[30..34].copy_from_slice(&[10, 0, 2, 15]);
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame[46..48].copy_from_slice(&[0x50, flags]);
        frame
    }

    #[test]
    fn what_would_be_a_panic_is_not_let_through() {
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        assert!(is_harmless(&frame([10, 0, 2, 2], 7, SYN)));
        assert!(is_harmless(&frame([10, 0, 2, 2], FIRST_CLIENT_PORT, SYN | ACK)));
        assert!(!is_harmless(&frame([10, 0, 2, 2], FIRST_CLIENT_PORT, SYN)));
        for source in [[0; 4], [255; 4], [224, 0, 0, 1], [127, 0, 0, 1]] {
            assert!(!is_harmless(&frame(source, 7, ACK)), "{source:?}");
        }
        for destination in [[255; 4], [224, 0, 0, 251]] {
            let mut to_many = frame([10, 0, 2, 2], 7, SYN);
            to_many[30..34].copy_from_slice(&destination);
            assert!(!is_harmless(&to_many), "{destination:?}");
        }
        // The frame that is changed or cut off below.
        let whole = frame([10, 0, 2, 2], 7, ACK);
        // The first fragment of a packet, and one from the middle.
        for (at, byte) in [(20, 0x20), (21, 1)] {
            let mut fragment = whole.clone();
            fragment[at] = byte;
            assert!(!is_harmless(&fragment));
        }
        assert!((14..54).all(|len_bytes| !is_harmless(&whole[..len_bytes])));
        assert!(is_harmless(&whole[..13]) && is_harmless(&[0; 60]));
    }
}
