//! A cable between QEMU's network card and a socket of the host, on which each datagram is one
//! frame. Also builds the frames that a simulated host at the other end sends to the guest.

use anyhow::Result;
use std::net::UdpSocket;

/// Address of the guest.
pub const GUEST: [u8; 4] = [10, 7, 0, 2];
/// Address of the simulated host.
pub const PEER: [u8; 4] = [10, 7, 0, 1];
/// Ethernet address of the simulated host.
pub const PEER_MAC: [u8; 6] = [0x52, 0x54, 0, 0xaa, 0xbb, 0xcc];
/// Ethernet broadcast address.
pub const BROADCAST: [u8; 6] = [0xff; 6];
/// Ethernet type of IPv4 (IEEE 802 numbers).
pub const IPV4: u16 = 0x0800;
/// Ethernet type of ARP.
pub const ARP: u16 = 0x0806;
/// Identifier of the simulated host's echo requests.
pub const ECHO_ID: [u8; 2] = [0x12, 0x34];

/// Makes a cable. Returns the host's end, and the setting that connects a machine's card to the
/// other end ([`Machine::network`](crate::machine::Machine::network)).
pub fn cable() -> Result<(UdpSocket, String)> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    // Binds a socket only to find a free port for QEMU.
    let other = UdpSocket::bind("127.0.0.1:0")?;
    let (ours, its) = (socket.local_addr()?.port(), other.local_addr()?.port());
    socket.connect(("127.0.0.1", its))?;
    let end = |name: &str, port: u16| format!("{name}.type=inet,{name}.host=127.0.0.1,{name}.port={port}");
    Ok((socket, format!("dgram,{},{}", end("local", its), end("remote", ours))))
}

/// Builds a frame from the simulated host to `to`, without padding.
pub fn frame(to: &[u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &PEER_MAC, &ethertype.to_be_bytes(), payload].concat()
}

/// Builds the same frame with a VLAN tag (IEEE 802.1Q).
pub fn tagged(to: &[u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &PEER_MAC, &[0x81, 0, 0, 7], &ethertype.to_be_bytes(), payload].concat()
}

/// Builds an ARP packet (RFC 826).
pub fn arp(operation: u8, from: &[u8], from_address: &[u8], to: &[u8], to_address: &[u8]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, operation], from, from_address, to, to_address].concat()
}

/// Computes the Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let pairs = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let sum: u32 = pairs.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!(sum + (sum >> 16)) as u16).to_be_bytes()
}

/// Builds an IPv4 packet to the guest (RFC 791).
pub fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len() as u16).to_be_bytes();
    let mut header = [&[0x45, 0, len[0], len[1], 0, 1, 0, 0, 64, protocol, 0, 0][..], &PEER, &GUEST].concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [&header, payload].concat()
}

/// Builds a UDP datagram to the guest (RFC 768), without the optional checksum.
pub fn datagram(ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len() as u16).to_be_bytes();
    packet(17, &[&ports[0].to_be_bytes()[..], &ports[1].to_be_bytes(), &len, &[0, 0], payload].concat())
}

/// Computes the checksum of a TCP segment or UDP datagram between the peer and the guest, with the
/// pseudo-header of its protocol (RFC 9293, 3.1). It is 0 for a whole payload with its checksum.
pub fn transport_checksum(protocol: u8, payload: &[u8]) -> [u8; 2] {
    let len = (payload.len() as u16).to_be_bytes();
    checksum(&[&PEER, &GUEST, &[0, protocol, len[0], len[1]][..], payload].concat())
}

/// Builds a TCP segment that asks the guest for a connection (RFC 9293, 3.5). `error` is added to
/// the right checksum.
pub fn syn(ports: [u16; 2], error: u16) -> Vec<u8> {
    let mut segment = [&ports[0].to_be_bytes()[..], &ports[1].to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0x10, 0, 0, 0, 0, 0]);
    let sum = u16::from_be_bytes(transport_checksum(6, &segment)).wrapping_add(error);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    packet(6, &segment)
}

/// Builds a UDP datagram to the guest with a checksum. `error` is added to the right one.
pub fn datagram_with_sum(ports: [u16; 2], payload: &[u8], error: u16) -> Vec<u8> {
    let mut whole = datagram(ports, payload);
    let sum = u16::from_be_bytes(transport_checksum(17, &whole[20..])).wrapping_add(error);
    whole[26..28].copy_from_slice(&sum.to_be_bytes());
    whole
}

/// Builds an ICMP message of type `kind` about an echo of `data` (RFC 792).
pub fn icmp(kind: u8, id: &[u8], sequence: &[u8], data: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0], id, sequence, data].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// Builds an IPv4 packet to the guest with an echo request.
pub fn echo_request(data: &[u8]) -> Vec<u8> {
    packet(1, &icmp(8, &ECHO_ID, &[0, 1], data))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 1071, section 3. Data with its checksum included must sum to all ones.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), [0x22, 0x0d]);
        for request in [echo_request(b"even"), echo_request(b"odd")] {
            assert_eq!((checksum(&request[..20]), checksum(&request[20..])), ([0, 0], [0, 0]));
        }
        assert_eq!(transport_checksum(6, &syn([1, 2], 0)[20..]), [0, 0]);
        assert_ne!(transport_checksum(6, &syn([1, 2], 1)[20..]), [0, 0]);
        assert_eq!(transport_checksum(17, &datagram_with_sum([1, 2], b"odd", 0)[20..]), [0, 0]);
    }
}
