//! A frame in words: its sender, its receiver and its message, as far as its first bytes tell.

use alloc::format;
use alloc::string::{String, ToString};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Message, IpProtocol, Ipv4Packet,
};

/// Length of an IPv4 header without options (RFC 791, 3.1).
const IPV4_HEADER: usize = 20;

/// Describes a frame of which `bytes` are the first bytes.
pub fn describe(bytes: &[u8]) -> String {
    let Ok(frame) = EthernetFrame::new_checked(bytes) else { return String::new() };
    match frame.ethertype() {
        EthernetProtocol::Arp => arp(frame.payload()).unwrap_or_else(|| "ARP".to_string()),
        EthernetProtocol::Ipv4 => ipv4(frame.payload()).unwrap_or_else(|| "IPv4".to_string()),
        other => format!("{other} from {}", frame.src_addr()),
    }
}

fn arp(bytes: &[u8]) -> Option<String> {
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(bytes).ok()?).ok()?
    else {
        return None;
    };
    Some(match operation {
        ArpOperation::Request => format!("ARP who has {target_protocol_addr}, asks {source_protocol_addr}"),
        _ => format!("ARP {source_protocol_addr} is at {source_hardware_addr}"),
    })
}

fn ipv4(bytes: &[u8]) -> Option<String> {
    // Only the first bytes of the packet may be there, so the fields that are read are checked
    // here.
    let packet = Ipv4Packet::new_unchecked(bytes.get(..IPV4_HEADER)?);
    let (from, to, protocol) = (packet.src_addr(), packet.dst_addr(), packet.next_header());
    // A later fragment has no ports.
    let is_first = packet.frag_offset() == 0;
    let inside = bytes.get(packet.header_len().into()..).filter(|_| is_first).unwrap_or_default();
    let port = |at: usize| inside.get(at..at + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    Some(match (protocol, port(0), port(2)) {
        (IpProtocol::Icmp, Some(first), _) => {
            format!("ICMP {}, {from} to {to}", Icmpv4Message::from((first >> 8) as u8))
        }
        (IpProtocol::Udp | IpProtocol::Tcp, Some(source), Some(target)) => {
            format!("{protocol} {from}:{source} to {to}:{target}")
        }
        _ => format!("{protocol} {from} to {to}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::wire::Ipv4Address;

    #[test]
    fn frames_are_told_apart() {
        let [own, other] = [Ipv4Address::new(10, 0, 2, 15), Ipv4Address::new(10, 0, 2, 2)];
        let mut frame = [0; 98];
        frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame[28..32].copy_from_slice(&own.octets());
        frame[38..42].copy_from_slice(&other.octets());
        assert_eq!(describe(&frame[..60]), "ARP who has 10.0.2.2, asks 10.0.2.15");
        frame[21] = 2;
        assert_eq!(describe(&frame[..60]), "ARP 10.0.2.15 is at 00-00-00-00-00-00");
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        // No fragment.
        frame[20..22].fill(0);
        frame[23] = 1;
        frame[26..34].copy_from_slice(&[10, 0, 2, 15, 10, 0, 2, 2]);
        frame[34] = 8;
        assert_eq!(describe(&frame[..40]), "ICMP echo request, 10.0.2.15 to 10.0.2.2");
        frame[23] = 17;
        frame[34..38].copy_from_slice(&[0, 68, 0, 67]);
        assert_eq!(describe(&frame), "UDP 10.0.2.15:68 to 10.0.2.2:67");
        assert_eq!(describe(&frame[..34]), "UDP 10.0.2.15 to 10.0.2.2");
        frame[21] = 2;
        assert_eq!(describe(&frame), "UDP 10.0.2.15 to 10.0.2.2", "a later fragment");
        assert_eq!([describe(&frame[..33]), describe(&frame[..13])], ["IPv4", ""]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100), arp: bool) {
            if let Some(kind) = bytes.get_mut(12..14) {
                kind.copy_from_slice(&[8, if arp { 6 } else { 0 }]);
            }
            describe(&bytes);
        }
    }
}
