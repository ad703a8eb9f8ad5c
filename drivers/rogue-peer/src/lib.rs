//! A network driver that simulates the host at the other end of the wire. The host gives the kernel
//! an address, and then is as hostile as `tell rogue-peer VERB` says. All its frames are
//! well-formed: the attack is in their number and their order.
//!
//! The driver has no device. It writes into the frames itself, as the driver of a device without
//! DMA does.
#![no_std]
#![forbid(unsafe_code)]

use ringfence_sdk::class::Device;
use ringfence_sdk::net::{FRAME_BYTES, NetInfo, Nic, NicDriver, Queues, RX_FRAMES};
use ringfence_sdk::{Events, Kind, Manifest, Refusal, Reply, Result, driver};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame,
    EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber, UdpPacket, UdpRepr,
};

driver!(NicDriver<RoguePeer>, Manifest::new("rogue-peer", env!("CARGO_PKG_VERSION")).kind(Kind::Nic).stack_kib(64));

/// The addresses of the kernel's end of the wire, and of the peer.
const OWN_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 1]);
const PEER_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 2]);
const OWN: Ipv4Address = Ipv4Address::new(10, 9, 9, 9);
const PEER: Ipv4Address = Ipv4Address::new(10, 9, 9, 1);

/// A port of the peer, and the port of the kernel's discard server (RFC 863).
const PEER_PORT: u16 = 5555;
const DISCARD: u16 = 9;
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;

/// The behaviour of the peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// The peer answers only requests.
    Quiet,
    /// The peer asks for the kernel's Ethernet address, and asks again after each reply.
    Curious,
    /// The peer opens a connection, and then at once sends more data than the kernel has room for.
    Talkative,
    /// The peer asks for the kernel's Ethernet address as often as it can, each time it is polled.
    Insistent,
}

struct RoguePeer {
    mood: Mood,
    /// Whether the peer is still to begin, with the next frame that the kernel sends.
    begins: bool,
}

impl Device<Nic> for RoguePeer {
    fn init() -> Result<RoguePeer> {
        Ok(RoguePeer { mood: Mood::Quiet, begins: false })
    }

    fn info(&self) -> NetInfo {
        NetInfo::new(OWN_MAC.0)
    }

    fn start(&mut self, _: &mut Queues) -> Result<()> {
        Ok(())
    }

    fn poll(&mut self, _: Events, queues: &mut Queues) -> Reply {
        while let Some(frame) = queues.take_transmit() {
            let mut bytes = [0; FRAME_BYTES];
            let bytes = &mut bytes[..frame.len_bytes().min(FRAME_BYTES)];
            queues.read(&frame, 0, bytes);
            // A frame that is not understood is ignored.
            let _ = self.answer(queues, bytes);
            queues.give_transmitted(frame);
        }
        if self.mood == Mood::Insistent && !self.begins {
            (0..RX_FRAMES).for_each(|_| ask(queues));
        }
        Reply::ACKNOWLEDGED
    }

    /// Sets the peer's behaviour, which begins with the next frame that the kernel sends.
    fn command(&mut self, text: &str) -> Result<u64> {
        self.mood = match text {
            "quiet" => Mood::Quiet,
            "ask-for-ever" => Mood::Curious,
            "burst" => Mood::Talkative,
            "flood" => Mood::Insistent,
            _ => return Err(Refusal::NotFound),
        };
        self.begins = true;
        Ok(0)
    }

    fn exit(&mut self) {}
}

impl RoguePeer {
    /// Answers a frame that the kernel has sent. Fails if the frame is not understood.
    fn answer(&mut self, queues: &mut Queues, sent: &[u8]) -> smoltcp::wire::Result<()> {
        if core::mem::take(&mut self.begins) {
            match self.mood {
                Mood::Quiet | Mood::Insistent => {}
                Mood::Curious => ask(queues),
                Mood::Talkative => segment(queues, TcpControl::Syn, 0, None, &[]),
            }
        }
        let frame = EthernetFrame::new_checked(sent)?;
        match frame.ethertype() {
            EthernetProtocol::Arp => {
                let ArpRepr::EthernetIpv4 { operation, target_protocol_addr, .. } =
                    ArpRepr::parse(&ArpPacket::new_checked(frame.payload())?)?
                else {
                    return Ok(());
                };
                match operation {
                    ArpOperation::Request if target_protocol_addr == PEER => arp(queues, ArpOperation::Reply),
                    ArpOperation::Reply if self.mood == Mood::Curious => ask(queues),
                    _ => {}
                }
            }
            EthernetProtocol::Ipv4 => {
                let packet = Ipv4Packet::new_checked(frame.payload())?;
                match packet.next_header() {
                    IpProtocol::Udp => {
                        let datagram = UdpPacket::new_checked(packet.payload())?;
                        if datagram.dst_port() == DHCP_SERVER {
                            lease(queues, DhcpRepr::parse(&DhcpPacket::new_checked(datagram.payload())?)?);
                        }
                    }
                    IpProtocol::Tcp => {
                        let said = TcpPacket::new_checked(packet.payload())?;
                        if said.syn() && said.ack() && self.mood == Mood::Talkative {
                            burst(queues, said.seq_number() + 1);
                        }
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Asks for the kernel's Ethernet address.
fn ask(queues: &mut Queues) {
    arp(queues, ArpOperation::Request);
}

fn arp(queues: &mut Queues, operation: ArpOperation) {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: PEER_MAC,
        source_protocol_addr: PEER,
        target_hardware_addr: OWN_MAC,
        target_protocol_addr: OWN,
    };
    deliver(queues, EthernetProtocol::Arp, repr.buffer_len(), |bytes| repr.emit(&mut ArpPacket::new_unchecked(bytes)));
}

/// Grants the request of a DHCP client (RFC 2131).
fn lease(queues: &mut Queues, mut repr: DhcpRepr) {
    repr.message_type = match repr.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request => DhcpMessageType::Ack,
        _ => return,
    };
    repr.your_ip = OWN;
    repr.server_ip = PEER;
    repr.server_identifier = Some(PEER);
    repr.router = Some(PEER);
    repr.subnet_mask = Some(Ipv4Address::new(255, 255, 255, 0));
    repr.lease_duration = Some(3600);
    repr.requested_ip = None;
    repr.client_identifier = None;
    repr.parameter_request_list = None;
    let udp = UdpRepr { src_port: DHCP_SERVER, dst_port: DHCP_CLIENT };
    let (len_bytes, checksums) = (repr.buffer_len(), ChecksumCapabilities::default());
    packet(queues, IpProtocol::Udp, udp.header_len() + len_bytes, |bytes| {
        let emit = |bytes: &mut [u8]| {
            // There is room: the buffer has the length of the message.
            let _ = repr.emit(&mut DhcpPacket::new_unchecked(bytes));
        };
        udp.emit(&mut UdpPacket::new_unchecked(bytes), &PEER.into(), &OWN.into(), len_bytes, emit, &checksums);
    });
}

/// Sends more than 64 KiB at once, which is more than the kernel has offered to receive.
fn burst(queues: &mut Queues, acknowledged: TcpSeqNumber) {
    const SEGMENT: [u8; 1400] = [b'x'; 1400];
    for number in 0..60 {
        segment(queues, TcpControl::None, 1 + number * SEGMENT.len() as i32, Some(acknowledged), &SEGMENT);
    }
}

fn segment(queues: &mut Queues, control: TcpControl, at: i32, acknowledged: Option<TcpSeqNumber>, payload: &[u8]) {
    const FIRST: i32 = 1000;
    let is_first = control == TcpControl::Syn;
    let repr = TcpRepr {
        src_port: PEER_PORT,
        dst_port: DISCARD,
        control,
        seq_number: TcpSeqNumber(FIRST + at),
        ack_number: acknowledged,
        window_len: u16::MAX,
        window_scale: is_first.then_some(7),
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let checksums = ChecksumCapabilities::default();
    packet(queues, IpProtocol::Tcp, repr.buffer_len(), |bytes| {
        repr.emit(&mut TcpPacket::new_unchecked(bytes), &PEER.into(), &OWN.into(), &checksums);
    });
}

/// Delivers an IPv4 packet with `len_bytes` bytes after its header; `write` fills them in.
fn packet(queues: &mut Queues, next_header: IpProtocol, len_bytes: usize, write: impl FnOnce(&mut [u8])) {
    let repr = Ipv4Repr { src_addr: PEER, dst_addr: OWN, next_header, payload_len: len_bytes, hop_limit: 64 };
    deliver(queues, EthernetProtocol::Ipv4, repr.buffer_len() + len_bytes, |bytes| {
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        write(packet.payload_mut());
    });
}

/// Delivers a frame with `len_bytes` bytes after its header; `write` fills them in. Without an
/// empty frame, nothing is delivered.
fn deliver(queues: &mut Queues, ethertype: EthernetProtocol, len_bytes: usize, write: impl FnOnce(&mut [u8])) {
    let Some(mut empty) = queues.take_empty() else { return };
    let repr = EthernetRepr { src_addr: PEER_MAC, dst_addr: OWN_MAC, ethertype };
    let mut bytes = [0; FRAME_BYTES];
    let len_bytes = repr.buffer_len() + len_bytes;
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..len_bytes]);
    repr.emit(&mut frame);
    write(frame.payload_mut());
    queues.write(&mut empty, 0, &bytes[..len_bytes]);
    queues.give_received(empty, len_bytes);
}
