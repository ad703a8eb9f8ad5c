//! The checksum of TCP segments, where a card does a part of the work
//! ([`Offload`](ringfence_abi::net::Offload)).
//!
//! Only TCP is left to cards. A UDP datagram may be cut into fragments, and no card adds up a
//! datagram that it sees in pieces.

use ringfence_abi::net::Sum;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket};

/// Place of the checksum in a TCP header (RFC 9293, 3.1).
const CHECKSUM: usize = 16;

/// A whole IPv4 packet in an Ethernet frame.
struct Found {
    /// The first byte after the IPv4 header.
    start: usize,
    end: usize,
    source: IpAddress,
    destination: IpAddress,
    protocol: IpProtocol,
}

/// Finds a packet that is no fragment.
fn find(frame: &[u8]) -> Option<Found> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let first = EthernetFrame::<&[u8]>::header_len();
    Some(Found {
        start: first + usize::from(packet.header_len()),
        end: first + usize::from(packet.total_len()),
        source: packet.src_addr().into(),
        destination: packet.dst_addr().into(),
        protocol: packet.next_header(),
    })
}

/// Prepares a TCP segment for a card that completes its checksum: writes the sum of the
/// pseudo-header into it. Returns the sum that the card is to complete; `None` for any other frame.
pub fn prepare(frame: &mut [u8]) -> Option<Sum> {
    let found = find(frame).filter(|found| found.protocol == IpProtocol::Tcp)?;
    let (IpAddress::Ipv4(source), IpAddress::Ipv4(destination)) = (found.source, found.destination);
    let words = |bytes: [u8; 4]| {
        let [a, b, c, d] = bytes.map(u32::from);
        (a << 8 | b) + (c << 8 | d)
    };
    let length = u32::try_from(found.end.checked_sub(found.start)?).ok()?;
    let sum = words(source.octets()) + words(destination.octets()) + u32::from(u8::from(IpProtocol::Tcp)) + length;
    // Carries are added at the other end (RFC 1071, 2). Two rounds take up all of them.
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    TcpPacket::new_checked(frame.get_mut(found.start..found.end)?).ok()?.set_checksum(sum as u16);
    Some(Sum { start: u8::try_from(found.start).ok()?, offset: CHECKSUM as u8 })
}

/// Completes the checksum of a segment that was prepared for a card which is gone.
pub fn complete(frame: &mut [u8]) {
    let Some(found) = find(frame).filter(|found| found.protocol == IpProtocol::Tcp) else { return };
    let segment = frame.get_mut(found.start..found.end).map(TcpPacket::new_checked);
    if let Some(Ok(mut segment)) = segment {
        segment.fill_checksum(&found.source, &found.destination);
    }
}

/// Returns whether a frame's TCP checksum is right; `true` for a frame without one.
pub fn is_right(frame: &[u8]) -> bool {
    let Some(found) = find(frame).filter(|found| found.protocol == IpProtocol::Tcp) else { return true };
    let segment = frame.get(found.start..found.end).map(TcpPacket::new_checked);
    matches!(segment, Some(Ok(segment)) if segment.verify_checksum(&found.source, &found.destination))
}

/// Removes the checksum of a UDP datagram that a card has checked (RFC 768: 0 means none): the card
/// may have got it from another virtual machine that left it incomplete.
pub fn remove_udp(frame: &mut [u8]) {
    const CHECKSUM: usize = 6;
    if let Some(found) = find(frame).filter(|found| found.protocol == IpProtocol::Udp)
        && let Some(field) = frame.get_mut(found.start + CHECKSUM..found.start + CHECKSUM + 2)
    {
        field.fill(0);
    }
}

/// Returns a number that all frames of a TCP connection have in common, and so do all other packets
/// between two hosts: a card with several queues keeps the order only within one. Only some
/// fragments of a datagram have its ports, so that these do not count.
pub fn flow(frame: &[u8]) -> usize {
    let addresses = |frame: &[u8]| {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        let is_ip = ethernet.ethertype() == EthernetProtocol::Ipv4;
        is_ip.then(|| (u32::from(packet.src_addr()), u32::from(packet.dst_addr())))
    };
    let Some((source, destination)) = addresses(frame) else { return 0 };
    let segment = find(frame).filter(|found| found.protocol == IpProtocol::Tcp);
    let ports = segment.and_then(|found| frame.get(found.start..found.start + 4)?.try_into().ok());
    let ports = ports.map_or(0, u32::from_be_bytes);
    let mixed = (source ^ destination.rotate_left(8) ^ ports).wrapping_mul(0x9e37_79b1);
    (mixed >> 24) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a frame with an IPv4 packet of protocol `protocol` and `payload`.
    fn frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 20 + payload.len() as u8, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend([10, 0, 2, 15, 200, 254, 253, 252]);
        frame.extend(payload);
        // Padding is no part of the packet.
        frame.extend([0xee; 5]);
        frame
    }

    fn segment() -> Vec<u8> {
        let mut segment = vec![0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
        segment.extend(b"odd");
        segment
    }

    /// Does a card's work: RFC 1071, word by word.
    fn finish(frame: &mut [u8], sum: Sum, end: usize) {
        let (start, place) = (usize::from(sum.start), usize::from(sum.start + sum.offset));
        let mut total: u32 = 0;
        for pair in frame[start..end].chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        frame[place..place + 2].copy_from_slice(&(!(total as u16)).to_be_bytes());
    }

    #[test]
    fn a_card_or_the_kernel_completes_a_prepared_segment() {
        let mut prepared = frame(6, &segment());
        assert!(!is_right(&prepared));
        let sum = prepare(&mut prepared).unwrap();
        assert_eq!(sum, Sum { start: 34, offset: 16 });
        assert!(!is_right(&prepared));
        let end = prepared.len() - 5;
        let mut by_card = prepared.clone();
        finish(&mut by_card, sum, end);
        complete(&mut prepared);
        assert!(is_right(&by_card));
        assert_eq!(prepared, by_card);
        prepared[end - 1] ^= 1;
        assert!(!is_right(&prepared));
    }

    #[test]
    fn nothing_but_a_whole_segment_is_prepared() {
        let untouched = |mut bytes: Vec<u8>| {
            let before = bytes.clone();
            assert_eq!(prepare(&mut bytes), None);
            complete(&mut bytes);
            assert_eq!(bytes, before);
            assert!(is_right(&bytes));
        };
        untouched(Vec::new());
        untouched(vec![8; 14]);
        untouched(frame(17, &segment()));
        untouched(frame(1, &[8, 0, 0, 0]));
        // A fragment, the first and another.
        let mut fragment = frame(6, &segment());
        fragment[20] = 0x20;
        untouched(fragment.clone());
        fragment[20..22].copy_from_slice(&[0, 1]);
        untouched(fragment);
        // A segment that is cut off is not right.
        let mut cut = frame(6, &segment()[..10]);
        assert_eq!(prepare(&mut cut), None);
        assert!(!is_right(&cut));
    }

    #[test]
    fn a_datagram_that_a_card_has_checked_has_no_checksum() {
        let mut datagram = frame(17, &[0, 7, 0, 7, 0, 9, 0x12, 0x34, 1]);
        remove_udp(&mut datagram);
        assert_eq!(datagram[40..42], [0, 0]);
        let mut other = frame(6, &segment());
        let before = other.clone();
        remove_udp(&mut other);
        assert_eq!(other, before);
        remove_udp(&mut frame(17, &[0, 7]));
    }

    #[test]
    fn connections_differ_and_their_frames_do_not() {
        let mut other = segment();
        other[7] = 9;
        assert_eq!(flow(&frame(6, &segment())), flow(&frame(6, &other)));
        let flows: std::collections::BTreeSet<usize> = (0..16)
            .map(|port| {
                let mut segment = segment();
                segment[1] = port;
                flow(&frame(6, &segment)) % 2
            })
            .collect();
        assert_eq!(flows.len(), 2, "sixteen connections use both queues");
        assert_eq!(flow(&[]), 0);
        // A datagram has the queue of its fragments.
        let mut fragment = frame(17, &[0, 7, 0, 7, 0, 9, 0, 0, 1]);
        let whole = flow(&fragment);
        fragment[20] = 0x20;
        assert_eq!(flow(&fragment), whole);
    }
}
