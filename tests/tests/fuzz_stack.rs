//! The network stack and the servers above it, as the kernel combines them, with a hostile peer.
//! The peer holds whole conversations, derived from a seed, of segments that are nearly right.
//! Nothing may panic, because a panic in the kernel would end it.

use ringfence_abi::net::{FRAME_BYTES, MAX_FRAME};
use ringfence_core::dhcp::{self, Change, Client};
use ringfence_core::servers::{FIRST_CLIENT_PORT, Servers, is_harmless, is_host};
use ringfence_tests::times;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, HardwareAddress, Icmpv4Packet, IgmpPacket, IpCidr,
    IpProtocol, Ipv4Address, Ipv4Cidr, Ipv4Packet, TcpPacket, UdpPacket,
};
use std::collections::VecDeque;
use wire::{Received, Sending};

mod wire;

const OWN: (EthernetAddress, Ipv4Address) = (EthernetAddress([0x52, 0x54, 0, 0, 0, 1]), Ipv4Address::new(10, 0, 2, 15));
const PEER: (EthernetAddress, Ipv4Address) = (EthernetAddress([0x52, 0x54, 0, 0, 0, 2]), Ipv4Address::new(10, 0, 2, 2));
const SERVER: u16 = 8080;
/// The groups that the stack is in, and the group that all hosts are in (RFC 1112, 4).
const GROUPS: [Ipv4Address; 2] = [Ipv4Address::new(224, 0, 0, 251), Ipv4Address::new(239, 255, 255, 250)];
const ALL_HOSTS: Ipv4Address = Ipv4Address::new(224, 0, 0, 1);

#[test]
fn nothing_that_a_peer_sends_panics_the_stack() {
    let talk = |seed| {
        let mut conversation = Conversation::new(seed);
        conversation.go_on();
        conversation.leases
    };
    let count = times(600, 120);
    // The conversations run in two threads, because they take long and other tests have not begun.
    let leases: usize = std::thread::scope(|scope| {
        let odd = scope.spawn(|| (1..count).step_by(2).map(talk).sum::<usize>());
        (0..count).step_by(2).map(talk).sum::<usize>() + odd.join().expect("nothing panics")
    });
    // The stack accepted leases, which shows that it listened.
    assert!(leases > times(600, 120), "{leases} leases");
}

const DHCP_SERVER: u16 = 67;

/// Applies a lease, as the kernel does; returns whether there is a new one.
fn take_lease(stack: &mut Interface, change: Option<Change>) -> bool {
    let (lease, is_new) = match change {
        Some(Change::Got(lease)) => (Some(lease), true),
        Some(Change::Lost) => (None, false),
        None => return false,
    };
    stack.update_ip_addrs(|addresses| {
        addresses.clear();
        let cidr = lease.as_ref().map(|lease| IpCidr::Ipv4(Ipv4Cidr::new(lease.address, lease.prefix_len)));
        addresses.extend(cidr);
    });
    stack.routes_mut().remove_default_ipv4_route();
    if let Some(router) = lease.and_then(|lease| lease.router).filter(|router| is_host(*router)) {
        stack.routes_mut().add_default_ipv4_route(router).expect("there is room for one");
    }
    is_new
}

/// The wire: frames to the stack, and frames from it.
#[derive(Default)]
struct Wire {
    /// The DHCP client, and its last change.
    dhcp: Option<Client>,
    change: Option<Change>,
    to_stack: VecDeque<Vec<u8>>,
    from_stack: Vec<Vec<u8>>,
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, now: Instant) -> Option<(Received, Sending<'_>)> {
        // The same filter as in the kernel's adapter.
        while let Some(frame) = self.to_stack.pop_front() {
            if let Some(client) = self.dhcp.as_mut().filter(|_| dhcp::is_reply(&frame, OWN.0)) {
                self.change = client.receive(now, &frame).or(self.change.take());
            } else if is_harmless(&frame) {
                return Some((Received(frame), Sending { frames: &mut self.from_stack, most: MAX_FRAME }));
            }
        }
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending { frames: &mut self.from_stack, most: MAX_FRAME })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

/// One end of a TCP connection, from the peer's view: the next numbers that an honest peer would
/// send and acknowledge.
struct Talk {
    own_port: u16,
    stack_port: u16,
    next: i32,
    acknowledged: i32,
}

struct Conversation {
    random: fastrand::Rng,
    wire: Wire,
    talks: Vec<Talk>,
    /// Whether the stack has a DHCP client, which accepts the leases that it is given.
    has_leases: bool,
    /// Number of leases that the stack has accepted.
    leases: usize,
    /// The transaction of the stack's last DHCP message (RFC 2131, xid).
    transaction: [u8; 4],
}

impl Conversation {
    fn new(seed: u64) -> Conversation {
        let mut random = fastrand::Rng::with_seed(seed);
        let ports = [(5000, 7), (5001, 9), (5002, 19), (5003, 7), (SERVER, FIRST_CLIENT_PORT)];
        let talks =
            ports.map(|(own_port, stack_port)| Talk { own_port, stack_port, next: random.i32(..), acknowledged: 0 });
        let has_leases = seed.is_multiple_of(2);
        Conversation { random, wire: Wire::default(), talks: talks.into(), has_leases, leases: 0, transaction: [0; 4] }
    }

    fn go_on(&mut self) {
        let mut now = Instant::from_millis(10);
        let mut stack = Interface::new(Config::new(HardwareAddress::Ethernet(OWN.0)), &mut self.wire, now);
        stack.update_ip_addrs(|addresses| {
            let own = Ipv4Cidr::new(OWN.1, 24);
            addresses.push(IpCidr::Ipv4(own)).expect("there is room for one");
        });
        GROUPS.iter().for_each(|group| stack.join_multicast_group(*group).expect("there is room for two"));
        let mut sockets = SocketSet::new(Vec::new());
        let mut servers = Servers::new(&mut sockets, |_| true);
        self.wire.dhcp = self.has_leases.then(|| Client::new(OWN.0, 1, now));
        let buffer = || tcp::SocketBuffer::new(vec![0; 16384]);
        let client = sockets.add(tcp::Socket::new(buffer(), buffer()));
        for _ in 0..self.random.usize(50..300) {
            let most = if self.random.u8(..8) == 0 { 80 } else { 4 };
            for _ in 0..self.random.usize(..most) {
                let frame = self.frame();
                self.wire.to_stack.push_back(frame);
            }
            now += Duration::from_millis(if self.random.u8(..8) == 0 { self.random.u64(..100_000) } else { 5 });
            while servers.poll(&mut stack, now, &mut self.wire, &mut sockets) | servers.serve(&mut sockets) {}
            self.leases += usize::from(take_lease(&mut stack, self.wire.change.take()));
            while let Some((frame, change)) = self.wire.dhcp.as_mut().map(|client| client.poll(now)) {
                self.leases += usize::from(take_lease(&mut stack, change.clone()));
                if frame.is_none() && change.is_none() {
                    break;
                }
                self.wire.from_stack.extend(frame);
            }
            let socket = sockets.get_mut::<tcp::Socket>(client);
            if !socket.is_open() {
                // The connection fails without an address.
                socket.connect(stack.context(), (PEER.1, SERVER), FIRST_CLIENT_PORT).ok();
            } else if socket.can_send() {
                socket.send_slice(&[1; 1000]).expect("it can send");
                socket.recv(|bytes| (bytes.len(), ())).ok();
            }
            self.listen();
        }
    }

    /// Answers ARP requests, and learns the stack's position in each connection.
    fn listen(&mut self) {
        for sent in std::mem::take(&mut self.wire.from_stack) {
            let frame = EthernetFrame::new_checked(&*sent).expect("the stack's frames are whole");
            if frame.ethertype() == EthernetProtocol::Arp {
                let mut answer = frame.payload().to_vec();
                answer[7] = 2;
                answer[8..14].copy_from_slice(PEER.0.as_bytes());
                answer[14..18].copy_from_slice(&frame.payload()[24..28]);
                answer[18..24].copy_from_slice(OWN.0.as_bytes());
                answer[24..28].copy_from_slice(&OWN.1.octets());
                self.wire.to_stack.push_back(framed(EthernetProtocol::Arp, &answer));
                continue;
            }
            let packet = Ipv4Packet::new_checked(frame.payload()).expect("so are its packets");
            if packet.next_header() == IpProtocol::Udp
                && let Ok(said) = UdpPacket::new_checked(packet.payload())
                && said.dst_port() == DHCP_SERVER
                && let Some(transaction) = said.payload().get(4..8)
            {
                self.transaction.copy_from_slice(transaction);
            }
            if packet.next_header() != IpProtocol::Tcp {
                continue;
            }
            let said = TcpPacket::new_checked(packet.payload()).expect("and its segments");
            if let Some(talk) = self.talks.iter_mut().find(|talk| talk.own_port == said.dst_port()) {
                let len = said.payload().len() as i32 + i32::from(said.syn()) + i32::from(said.fin());
                talk.acknowledged = said.seq_number().0.wrapping_add(len);
                if said.ack() && self.random.u8(..4) != 0 {
                    talk.next = said.ack_number().0;
                }
            }
        }
    }

    /// Returns a frame for the stack: most often a segment of one of the connections.
    fn frame(&mut self) -> Vec<u8> {
        let mut frame = match self.random.u8(..20) {
            0 => std::iter::repeat_with(|| self.random.u8(..)).take(100).collect(),
            1 => {
                let len_bytes = self.random.usize(8..200);
                let mut message: Vec<u8> = std::iter::repeat_with(|| self.random.u8(..)).take(len_bytes).collect();
                let protocol = if self.random.bool() { IpProtocol::Icmp } else { IpProtocol::Udp };
                message[2..4].copy_from_slice(&[0, if protocol == IpProtocol::Udp { 7 } else { 0 }]);
                self.packet(protocol, &message)
            }
            2 => self.long(),
            3 => self.lease(),
            4 => self.membership(),
            _ => self.segment(),
        };
        if self.random.u8(..50) == 0 {
            let at = self.random.usize(..frame.len());
            frame[at] = self.random.u8(..);
        }
        if self.random.u8(..80) == 0 {
            frame.truncate(self.random.usize(..frame.len()));
        }
        frame
    }

    /// Returns a datagram that is answered with an equally long one, which may be too long for the
    /// network.
    fn long(&mut self) -> Vec<u8> {
        let len_bytes = self.random.usize(1400..FRAME_BYTES - 14 - 20);
        let mut message = vec![0; len_bytes];
        if self.random.bool() {
            message[0] = 8;
            Icmpv4Packet::new_unchecked(&mut message[..]).fill_checksum();
            return self.packet(IpProtocol::Icmp, &message);
        }
        message[..6].copy_from_slice(&[0x13, 0x88, 0, 7, (len_bytes >> 8) as u8, len_bytes as u8]);
        self.packet(IpProtocol::Udp, &message)
    }

    /// Returns a message about groups (RFC 2236): a query, a report, or that a host leaves a group.
    fn membership(&mut self) -> Vec<u8> {
        let group = match self.random.u8(..3) {
            0 => Ipv4Address::UNSPECIFIED,
            1 => GROUPS[self.random.usize(..2)],
            _ => Ipv4Address::from_bits(self.random.u32(..)),
        };
        let mut message = vec![[0x11, 0x11, 0x12, 0x16, 0x17][self.random.usize(..5)], self.random.u8(..), 0, 0];
        message.extend(group.octets());
        IgmpPacket::new_unchecked(&mut message[..]).fill_checksum();
        self.packet(IpProtocol::Igmp, &message)
    }

    /// Returns a message of a DHCP server (RFC 2131): an offer, an acknowledgement or a refusal,
    /// with a lease that makes sense or not.
    fn lease(&mut self) -> Vec<u8> {
        const COOKIE: [u8; 4] = [99, 130, 83, 99];
        let mut message = vec![0; 8 + 236];
        message[..8].copy_from_slice(&[0, DHCP_SERVER as u8, 0, 68, 0, 0, 0, 0]);
        message[8..12].copy_from_slice(&[2, 1, 6, 0]);
        message[12..16].copy_from_slice(&self.transaction);
        let address = if self.random.u8(..3) == 0 { Ipv4Address::from_bits(self.random.u32(..)) } else { OWN.1 };
        message[24..28].copy_from_slice(&address.octets());
        message[36..42].copy_from_slice(OWN.0.as_bytes());
        message.extend(COOKIE);
        let numbers = [0, 1, 60, 3600, u32::MAX];
        let number = |random: &mut fastrand::Rng| numbers[random.usize(..numbers.len())].to_be_bytes();
        message.extend([53, 1, [2, 5, 5, 6][self.random.usize(..4)]]);
        message.extend([&[54, 4][..], &PEER.1.octets()].concat());
        // Times of the lease, its renewal and its rebinding; then mask, router and name servers.
        for option in [51, 58, 59] {
            message.extend([&[option, 4][..], &number(&mut self.random)].concat());
        }
        let mask = if self.random.u8(..4) == 0 { self.random.u32(..) } else { 0xffff_ff00 };
        message.extend([&[1, 4][..], &mask.to_be_bytes()].concat());
        let router = if self.random.u8(..4) == 0 { self.random.u32(..) } else { PEER.1.to_bits() };
        message.extend([&[3, 4][..], &router.to_be_bytes()].concat());
        message.extend([6, 4 * self.random.u8(..5)]);
        message.extend([255; 20]);
        let len_bytes = message.len() as u16;
        message[4..6].copy_from_slice(&len_bytes.to_be_bytes());
        self.packet(IpProtocol::Udp, &message)
    }

    /// Returns an error for a number: none, a small one, about the width of a window, or any.
    fn off(&mut self) -> i32 {
        match self.random.u8(..24) {
            0 => self.random.i32(..),
            1 => [i32::MIN, i32::MAX, 65535, -65535][self.random.usize(..4)],
            2 => self.random.i32(-70_000..70_000),
            3 => self.random.i32(-3..4),
            _ => 0,
        }
    }

    fn segment(&mut self) -> Vec<u8> {
        const FIN: u8 = 1;
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const ACK: u8 = 16;
        let (seq_off, ack_off) = (self.off(), self.off());
        let flags = match self.random.u8(..10) {
            0 => self.random.u8(..),
            1 => ACK | FIN,
            2 => RST,
            3 => SYN,
            4 => SYN | ACK,
            _ => ACK,
        };
        let options: &[u8] = match self.random.u8(..6) {
            0 => &[3, 3, 7, 1],
            1 => &[2, 4, 0, 1],
            2 => &[4, 2, 1, 1],
            3 => &[5, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1],
            _ => &[],
        };
        let len_bytes = match self.random.u8(..5) {
            0 => 1400,
            1 => self.random.usize(..1400),
            _ => 0,
        };
        let window = [0, 1, 1460, u16::MAX][self.random.usize(..4)];
        let which = self.random.usize(..self.talks.len());
        let talk = &mut self.talks[which];
        let seq = talk.next.wrapping_add(seq_off);
        let mut segment = vec![b'x'; 20 + options.len() + len_bytes];
        segment[..2].copy_from_slice(&talk.own_port.to_be_bytes());
        segment[2..4].copy_from_slice(&talk.stack_port.to_be_bytes());
        segment[4..8].copy_from_slice(&seq.to_be_bytes());
        segment[8..12].copy_from_slice(&talk.acknowledged.wrapping_add(ack_off).to_be_bytes());
        segment[12..14].copy_from_slice(&[((20 + options.len()) * 4) as u8, flags]);
        segment[14..16].copy_from_slice(&window.to_be_bytes());
        segment[16..20].fill(0);
        segment[20..20 + options.len()].copy_from_slice(options);
        talk.next = seq.wrapping_add(len_bytes as i32 + i32::from(flags & (SYN | FIN) != 0));
        TcpPacket::new_unchecked(&mut segment[..]).fill_checksum(&PEER.1.into(), &OWN.1.into());
        self.packet(IpProtocol::Tcp, &segment)
    }

    fn packet(&mut self, protocol: IpProtocol, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + content.len()];
        bytes[20..].copy_from_slice(content);
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_version(4);
        packet.set_header_len(20);
        packet.set_total_len(20 + content.len() as u16);
        packet.set_hop_limit(64);
        packet.set_next_header(protocol);
        packet.set_src_addr(if self.random.u8(..30) == 0 {
            Ipv4Address::from_bits(self.random.u32(..))
        } else {
            PEER.1
        });
        let is_for_all = protocol == IpProtocol::Igmp && self.random.bool();
        packet.set_dst_addr(match self.random.u8(..30) {
            0 => Ipv4Address::BROADCAST,
            1 => GROUPS[self.random.usize(..2)],
            _ if is_for_all => ALL_HOSTS,
            _ => OWN.1,
        });
        if self.random.u8(..12) == 0 {
            // A fragment, which may fit earlier fragments or not.
            packet.set_ident(self.random.u16(..3));
            packet.set_frag_offset([0, 8, 1392, 65528][self.random.usize(..4)]);
            packet.set_more_frags(self.random.bool());
        }
        packet.fill_checksum();
        framed(EthernetProtocol::Ipv4, &bytes)
    }
}

fn framed(ethertype: EthernetProtocol, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; EthernetFrame::<&[u8]>::header_len() + content.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    EthernetRepr { src_addr: PEER.0, dst_addr: OWN.0, ethertype }.emit(&mut frame);
    frame.payload_mut().copy_from_slice(content);
    bytes
}
