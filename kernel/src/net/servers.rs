//! Small servers: echo (RFC 862) over TCP and UDP, discard (RFC 863) and character generator (RFC 864) over TCP.

use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};

const ECHO: u16 = 7;
const DISCARD: u16 = 9;
const CHARGEN: u16 = 19;

/// Connections that each TCP server can have at once.
const CONNECTIONS: usize = 2;
/// Room in each direction of a connection, in bytes: the most that a window can say without a scale (RFC 9293, 3.1). smoltcp
/// 0.14 takes the window that it offered in its SYN, which has none, for a scaled one: it would take in more than there is
/// room for, and panic, if more came before its next segment.
const BUFFER_BYTES: usize = 65535;

/// The sockets of all servers.
pub struct Servers {
    tcp: Vec<(SocketHandle, u16)>,
    udp_echo: SocketHandle,
    /// How far into the pattern the character generator is, per socket of `tcp`.
    generated: Vec<usize>,
}

impl Servers {
    /// Makes the sockets; they listen from the first [`Servers::serve`] on.
    pub fn new(sockets: &mut SocketSet<'static>) -> Servers {
        let mut tcp = Vec::new();
        for port in [ECHO, DISCARD, CHARGEN] {
            for _ in 0..CONNECTIONS {
                let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
                let mut socket = tcp::Socket::new(buffer(), buffer());
                socket.set_nagle_enabled(false);
                tcp.push((sockets.add(socket), port));
            }
        }
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 64 * 1500]);
        let udp_echo = sockets.add(udp::Socket::new(buffer(), buffer()));
        let generated = vec![0; tcp.len()];
        Servers { tcp, udp_echo, generated }
    }

    /// Moves what can be moved; `true` if something was.
    pub fn serve(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let mut moved = false;
        for ((handle, port), generated) in self.tcp.iter().zip(&mut self.generated) {
            let socket = sockets.get_mut::<tcp::Socket>(*handle);
            if !socket.is_open() {
                *generated = 0;
                // Listening fails only on a socket that is open, or on port 0.
                let _ = socket.listen(*port);
                continue;
            }
            moved |= match *port {
                ECHO => echo(socket),
                DISCARD => discard(socket),
                _ => generate(socket, generated),
            };
            if !socket.may_recv() && socket.may_send() && (*port != ECHO || !socket.can_recv()) {
                socket.close();
            }
        }
        let socket = sockets.get_mut::<udp::Socket>(self.udp_echo);
        if !socket.is_open() {
            let _ = socket.bind(ECHO);
        }
        while socket.can_send() {
            let Ok((data, from)) = socket.recv() else { break };
            let data = data.to_vec();
            // Room was there a line ago; what is too large for the buffer is dropped, as UDP may.
            let _ = socket.send_slice(&data, from.endpoint);
            moved = true;
        }
        moved
    }
}

fn echo(socket: &mut tcp::Socket) -> bool {
    let mut moved = false;
    while socket.can_recv() && socket.can_send() {
        let mut chunk = [0; 2048];
        let room = (socket.send_capacity() - socket.send_queue()).min(chunk.len());
        let Some(chunk) = chunk.get_mut(..room) else { break };
        let Ok(received) = socket.recv_slice(chunk) else { break };
        if received == 0 || socket.send_slice(chunk.get(..received).unwrap_or(&[])).is_err() {
            break;
        }
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

/// Lines of 72 printable characters, each line beginning one character later (RFC 864).
fn generate(socket: &mut tcp::Socket, generated: &mut usize) -> bool {
    const LINE: usize = 74;
    let mut moved = false;
    while socket.can_send() {
        let filled = socket.send(|buffer| {
            for byte in buffer.iter_mut() {
                let (line, column) = (*generated / LINE, *generated % LINE);
                *byte = match column {
                    72 => b'\r',
                    73 => b'\n',
                    column => b' ' + ((line + column) % 95) as u8,
                };
                *generated = (*generated + 1) % (LINE * 95);
            }
            (buffer.len(), buffer.len())
        });
        match filled {
            Ok(len_bytes) if len_bytes > 0 => moved = true,
            _ => break,
        }
    }
    // What the other side sends is not wanted.
    moved | discard(socket)
}
