//! A cable between QEMU's network card and a socket of the host's, on which a datagram is a frame;
//! and the frames that a made-up host at its other end sends to the guest.

use anyhow::Result;
use std::net::UdpSocket;

/// Addresses of the guest and of the host that is made up.
pub const GUEST: [u8; 4] = [10, 7, 0, 2];
/// See [`GUEST`].
pub const PEER: [u8; 4] = [10, 7, 0, 1];
/// The Ethernet address of that host.
pub const PEER_MAC: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0xbb, 0xcc];
/// That of everybody.
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// Types of frames (IEEE 802 numbers).
pub const IPV4: u16 = 0x0800;
/// See [`IPV4`].
pub const ARP: u16 = 0x0806;
/// What the host's echo requests are told apart by.
pub const ECHO_ID: [u8; 2] = [0x12, 0x34];

/// The host's end of a cable, and what a machine's card is to be connected to
/// ([`Machine::network`](crate::machine::Machine::network)).
pub fn cable() -> Result<(UdpSocket, String)> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // A port that is free, for QEMU.
    let other = UdpSocket::bind("127.0.0.1:0")?;
    let (ours, its) = (socket.local_addr()?.port(), other.local_addr()?.port());
    socket.connect(("127.0.0.1", its))?;
    let end = |name: &str, port: u16| format!("{name}.type=inet,{name}.host=127.0.0.1,{name}.port={port}");
    Ok((socket, format!("dgram,{},{}", end("local", its), end("remote", ours))))
}

/// A frame to `to` from the host, as short as that makes it.
pub fn frame(to: &[u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &PEER_MAC, &ethertype.to_be_bytes(), payload].concat()
}

/// The same with a VLAN tag (IEEE 802.1Q).
pub fn tagged(to: &[u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &PEER_MAC, &[0x81, 0, 0, 7], &ethertype.to_be_bytes(), payload].concat()
}

/// An ARP packet (RFC 826).
pub fn arp(operation: u8, from: &[u8], from_address: &[u8], to: &[u8], to_address: &[u8]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation], from, from_address, to, to_address].concat()
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let pairs = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let sum: u32 = pairs.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum + (sum >> 16)) as u16).to_be_bytes()
}

/// An IPv4 packet to the guest (RFC 791).
pub fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let mut header = [&[0x45, 0, len[0], len[1], 0, 1, 0, 0, 64, protocol, 0, 0][..], &PEER, &GUEST].concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [&header, payload].concat()
}

/// A datagram to the guest (RFC 768), which may have no checksum.
pub fn datagram(ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len() as u16).to_be_bytes();
    packet(17, &[&ports[0].to_be_bytes()[..], &ports[1].to_be_bytes(), &len, &[0, 0], payload].concat())
}

/// An ICMP message of a kind, about an echo of `data` (RFC 792).
pub fn icmp(kind: u8, id: &[u8], sequence: &[u8], data: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0], id, sequence, data].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// An IPv4 packet to the guest with an echo request.
pub fn echo_request(data: &[u8]) -> Vec<u8> {
    packet(1, &icmp(8, &ECHO_ID, &[0, 1], data))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, 3: the example; and a sum with its checksum is all ones.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), [0x22, 0x0d]);
        for request in [echo_request(b"even"), echo_request(b"odd")] {
            assert_eq!((checksum(&request[..20]), checksum(&request[20..])), ([0, 0], [0, 0]));
        }
    }
}
