//! A peer at the other end of the cable, which can send any frames.

use ringfence::machine::Monitor;
use ringfence::machine::{Machine, Running};
use ringfence::wire::{
    self, ARP, BROADCAST, GUEST, IPV4, PEER, PEER_MAC, arp, checksum, datagram, echo_request, packet,
};
use ringfence_link::event::{self, Event};
use ringfence_tests::{at_prompt, interface, leave, machine, run_well, wait_for_address, wait_for_interface};
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

/// IEEE 802 local experimental ethertype 1, which no host answers.
const EXPERIMENTAL: u16 = 0x88b5;

/// The other end of the cable. Each datagram on its socket is one frame.
struct Peer {
    socket: UdpSocket,
}

impl Peer {
    /// Returns the peer, and a machine whose card is connected to it and has no address yet.
    fn new() -> (Peer, Machine) {
        let (socket, network) = wire::cable().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut machine = machine("");
        machine.hba = "none".into();
        machine.network = Some(network);
        (Peer { socket }, machine)
    }

    fn send(&self, to: [u8; 6], ethertype: u16, payload: &[u8]) {
        let mut frame = wire::frame(&to, ethertype, payload);
        frame.resize(frame.len().max(60), 0);
        // The socket may be full while QEMU is stopped. The frame is then lost, as on a cable.
        let _ = self.socket.send(&frame);
    }

    /// Calls `ask` until a frame comes for which `is_answer` is true; returns the frame.
    fn ask(&self, ask: impl Fn(&Peer), is_answer: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            ask(self);
            let mut frame = [0; 2048];
            while let Ok(len) = self.socket.recv(&mut frame) {
                self.answer_arp(&frame[..len]);
                if is_answer(&frame[..len]) {
                    return frame[..len].to_vec();
                }
            }
        }
        panic!("the guest does not answer");
    }

    /// Answers an ARP request for a host of the peer's network with the peer's Ethernet address.
    fn answer_arp(&self, frame: &[u8]) {
        let is_ours = frame[12..14] == ARP.to_be_bytes() && frame[20..22] == [0, 1] && frame[38..41] == PEER[..3];
        if is_ours && frame[38..42] != GUEST {
            let reply = arp(2, &PEER_MAC, &frame[38..42], &frame[22..28], &frame[28..32]);
            self.send(BROADCAST, ARP, &reply);
        }
    }

    /// Asks for the guest's Ethernet address with ARP (RFC 826), as the host `host` of the network.
    /// Answers to other hosts do not count.
    fn resolve(&self, host: u8) -> [u8; 6] {
        let asker = [PEER[0], PEER[1], PEER[2], host];
        let request = arp(1, &PEER_MAC, &asker, &[0; 6], &GUEST);
        let is_answer = |frame: &[u8]| {
            frame[12..14] == ARP.to_be_bytes()
                && frame[20..22] == [0, 2]
                && frame[28..32] == GUEST
                && frame[38..42] == asker
        };
        let answer = self.ask(|peer| peer.send(BROADCAST, ARP, &request), is_answer);
        answer[22..28].try_into().unwrap()
    }
}

/// Returns a SYN to the guest's echo server (RFC 9293, 3.1).
fn syn(from_port: u16) -> Vec<u8> {
    let [high, low] = from_port.to_be_bytes();
    let mut tcp = vec![high, low, 0, 7, 1, 2, 3, 4, 0, 0, 0, 0, 5 << 4, 0x02, 0x10, 0, 0, 0, 0, 0];
    let len = tcp.len() as u8;
    let sum = checksum(&[&PEER[..], &GUEST, &[0, 6, 0, len], &tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
    packet(6, &tcp)
}

fn signal(running: &Running, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &running.process().to_string()]).status();
    assert!(status.unwrap().success());
}

fn started(machine: Machine, ring: u8) -> Running {
    let mut running = at_prompt(machine);
    run_well(&mut running, &format!("ring e1000 {ring}"));
    run_well(&mut running, "ip addr add 10.7.0.2/24 dev eth0");
    running
}

/// A burst that needs no answer fills the card's ring while the guest is stopped. Then all frames
/// are handed back at once, and the card, which has no free buffer left, interrupts no more.
#[test]
fn a_burst_that_needs_no_answer_leaves_it_hearing() {
    for ring in [1, 0] {
        let (peer, machine) = Peer::new();
        let running = started(machine, ring);
        let guest = peer.resolve(10);
        for host in 11..14 {
            signal(&running, "STOP");
            (0..300).for_each(|_| peer.send(BROADCAST, EXPERIMENTAL, &[0x55; 46]));
            signal(&running, "CONT");
            assert_eq!(peer.resolve(host), guest);
        }
        leave(running);
    }
}

/// RFC 1122, 3.2.2.6.
#[test]
fn the_guest_answers_pings() {
    let (peer, machine) = Peer::new();
    let running = started(machine, 1);
    let guest = peer.resolve(PEER[3]);
    let data: Vec<u8> = (0..200).collect();
    let is_answer = |frame: &[u8]| frame[12..14] == IPV4.to_be_bytes() && frame[23] == 1 && frame[34] == 0;
    let answer = peer.ask(|peer| peer.send(guest, IPV4, &echo_request(&data)), is_answer);
    assert_eq!(answer[38..42], [0x12, 0x34, 0, 1]);
    assert_eq!(answer[42..242], data[..]);
    leave(running);
}

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

/// A DHCP server (RFC 2131) that can send any answer.
impl Peer {
    /// Waits for the guest's next message; returns its kind and the message.
    fn dhcp(&self) -> (u8, Vec<u8>) {
        let is_message = |frame: &[u8]| {
            frame[12..14] == IPV4.to_be_bytes() && frame[23] == 17 && frame[36..38] == [0, 67] && frame.len() > 284
        };
        let frame = self.ask(|_| (), is_message);
        // The message's first option is its kind.
        (frame[284], frame[42..].to_vec())
    }

    /// Answers a message of the guest.
    fn answer_dhcp(&self, message: &[u8], kind: u8, options: &[(u8, &[u8])]) {
        let mut answer = message[..240].to_vec();
        answer[0] = 2;
        answer[16..20].copy_from_slice(&GUEST);
        answer.extend([53, 1, kind, 54, 4]);
        answer.extend(PEER);
        for (code, value) in options {
            answer.extend([*code, value.len() as u8]);
            answer.extend(*value);
        }
        answer.push(255);
        self.send(BROADCAST, IPV4, &datagram([67, 68], &answer));
    }
}

impl Peer {
    /// Gives the guest its address with these options, in answer to its requests.
    fn lease(&self, options: &[(u8, &[u8])]) {
        for (expected, kind) in [(DISCOVER, OFFER), (REQUEST, ACK)] {
            let (asked, message) = self.dhcp();
            assert_eq!(asked, expected);
            self.answer_dhcp(&message, kind, options);
        }
    }
}

/// The options of a lease, with a renewal after two seconds out of twenty.
const OPTIONS: [(u8, &[u8]); 5] =
    [(1, &[255, 255, 255, 0]), (3, &PEER), (6, &PEER), (51, &[0, 0, 0, 20]), (58, &[0, 0, 0, 2])];

/// RFC 2131, 4.1 and 4.4.5: a lost message is sent again, and a command that needs the address
/// waits for it. A renewal that has only a time changes nothing else.
#[test]
fn a_lost_discover_is_sent_again_and_a_bare_renewal_changes_nothing() {
    let (peer, machine) = Peer::new();
    let mut running = at_prompt(machine);
    running.type_line("ip").unwrap();
    assert_eq!(peer.dhcp().0, DISCOVER);
    peer.lease(&OPTIONS);
    let address = |interface: event::Interface| (interface.addresses.join(" "), interface.router);
    let leased = ("10.7.0.2/24".to_string(), Some(PEER));
    // The `ip` that was typed before waits for the address.
    let eth0 = wait_for_interface(&mut running, "eth0");
    assert_eq!(address(eth0), leased);
    for _ in 0..2 {
        let (kind, renewal) = peer.dhcp();
        // The client has the address, and names it in its request.
        assert_eq!((kind, &renewal[12..16]), (REQUEST, &GUEST[..]));
        peer.answer_dhcp(&renewal, ACK, &[(58, &[0, 0, 0, 2])]);
    }
    assert_eq!(address(interface(&mut running, "eth0")), leased);
    running.type_line("shutdown").unwrap();
    let text = running.finish(|_| ()).unwrap().text();
    assert_eq!(text.matches("address 10.7.0.2/24 from DHCP").count(), 1, "{text}");
}

/// A cable that is unplugged and plugged in again.
#[test]
fn a_link_that_comes_back_is_asked_for_an_address_again() {
    let (peer, mut machine) = Peer::new();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    machine.extra = vec!["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display()).into()];
    let mut running = at_prompt(machine);
    let lease: Vec<_> = OPTIONS.into_iter().filter(|(code, _)| *code != 58).collect();
    peer.lease(&lease);
    wait_for_address(&mut running, [10, 7, 0, 2]);
    let mut monitor = Monitor::new(&socket).unwrap();
    let mut set_link = |up: bool| {
        monitor.execute(&format!(r#"{{"execute": "set_link", "arguments": {{"name": "net0", "up": {up}}}}}"#)).unwrap();
    };
    set_link(false);
    let link = |running: &mut Running| {
        let told = |event| if let Event::Link { is_up, .. } = event { Some(is_up) } else { None };
        running.wait_for_event("a link", told).unwrap()
    };
    assert!(!link(&mut running));
    let eth0 = interface(&mut running, "eth0");
    assert_eq!((eth0.addresses.join(" "), eth0.has_link), ("10.7.0.2/24".to_string(), false));
    set_link(true);
    assert!(link(&mut running));
    peer.lease(&lease);
    let eth0 = interface(&mut running, "eth0");
    assert_eq!((eth0.addresses.join(" "), eth0.has_link), ("10.7.0.2/24".to_string(), true));
    leave(running);
}

/// Two such peers were once enough to block a service for everybody.
#[test]
fn peers_that_never_finish_a_handshake_leave_room_for_others() {
    let (peer, machine) = Peer::new();
    let running = started(machine, 1);
    let guest = peer.resolve(PEER[3]);
    for port in 2000..2032u16 {
        let is_answer = |frame: &[u8]| {
            frame[12..14] == IPV4.to_be_bytes()
                && frame[23] == 6
                && frame[36..38] == port.to_be_bytes()
                && frame[47] == 0x12
        };
        peer.ask(|peer| peer.send(guest, IPV4, &syn(port)), is_answer);
    }
    leave(running);
}

/// If a name server fails or is silent, the next one is asked.
#[test]
fn each_name_server_is_asked() {
    const SERVERS: [u8; 12] = [10, 7, 0, 1, 10, 7, 0, 3, 10, 7, 0, 4];
    let (peer, machine) = Peer::new();
    let mut running = at_prompt(machine);
    let lease: [(u8, &[u8]); 3] = [(1, &[255, 255, 255, 0]), (6, &SERVERS), (51, &[0, 0, 3, 0])];
    peer.lease(&lease);
    wait_for_address(&mut running, [10, 7, 0, 2]);
    let guest = peer.resolve(10);
    running.type_line("nslookup host.example").unwrap();
    let is_query = |frame: &[u8]| frame[12..14] == IPV4.to_be_bytes() && frame[23] == 17 && frame[36..38] == [0, 53];
    let mut asked = Vec::new();
    while asked.last() != Some(&4) {
        let query = peer.ask(|_| (), is_query);
        let (server, port) = (query[33], u16::from_be_bytes([query[34], query[35]]));
        asked.push(server);
        let mut answer = query[42..].to_vec();
        match server {
            // The first name server fails (RFC 1035, 4.1.1).
            1 => answer[2..4].copy_from_slice(&[0x81, 0x82]),
            // The second name server is silent.
            3 => continue,
            _ => {
                answer[2..4].copy_from_slice(&[0x81, 0x80]);
                answer[7] = 1;
                // The name from the question, type A, class IN, an hour, four bytes.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 10, 9, 8, 7]);
            }
        }
        let mut frame = datagram([53, port], &answer);
        frame[15] = server;
        frame[10..12].fill(0);
        let sum = checksum(&frame[..20]);
        frame[10..12].copy_from_slice(&sum);
        peer.send(guest, IPV4, &frame);
    }
    running.wait_for("host.example 10.9.8.7").unwrap();
    leave(running);
}

/// Returns a fragment of an IPv4 packet (RFC 791, 3.2), from the byte `offset` on.
fn fragment(protocol: u8, id: u16, offset: usize, is_last: bool, payload: &[u8]) -> Vec<u8> {
    let mut fragment = packet(protocol, payload);
    let place = (offset / 8) as u16 | if is_last { 0 } else { 0x2000 };
    fragment[4..6].copy_from_slice(&id.to_be_bytes());
    fragment[6..8].copy_from_slice(&place.to_be_bytes());
    fragment[10..12].fill(0);
    let sum = checksum(&fragment[..20]);
    fragment[10..12].copy_from_slice(&sum);
    fragment
}

/// Packets whose rest never comes leave room for others. Fragments may come in any order.
#[test]
fn fragments_without_an_end_leave_room_for_others() {
    let (peer, machine) = Peer::new();
    let running = started(machine, 1);
    let guest = peer.resolve(PEER[3]);
    for id in 1000..1100 {
        peer.send(guest, IPV4, &fragment(1, id, 0, false, &[0x55; 64]));
    }
    let data: Vec<u8> = (0..8000u32).map(|byte| byte as u8).collect();
    let request = echo_request(&data)[20..].to_vec();
    let id = std::cell::Cell::new(2000);
    let ask = |peer: &Peer| {
        id.set(id.get() + 1);
        let parts: Vec<_> = request.chunks(1000).enumerate().collect();
        // First the odd fragments, then the even ones.
        for (index, part) in parts.iter().filter(|(i, _)| i % 2 == 1).chain(parts.iter().filter(|(i, _)| i % 2 == 0)) {
            peer.send(guest, IPV4, &fragment(1, id.get(), index * 1000, index + 1 == parts.len(), part));
        }
    };
    // The first fragment of an answer.
    let is_answer = |frame: &[u8]| frame[12..14] == IPV4.to_be_bytes() && frame[23] == 1 && frame[34] == 0;
    peer.ask(ask, is_answer);
    leave(running);
}

/// A SYN that is put together from two fragments would bypass the check of SYNs.
#[test]
fn segments_in_fragments_are_not_answered() {
    let (peer, machine) = Peer::new();
    let running = started(machine, 1);
    let guest = peer.resolve(PEER[3]);
    let whole = syn(4000)[20..].to_vec();
    peer.send(guest, IPV4, &fragment(6, 7, 0, false, &whole[..8]));
    peer.send(guest, IPV4, &fragment(6, 7, 8, true, &whole[8..]));
    // The guest goes on; the second SYN is the first that it answers.
    let is_answer = |frame: &[u8]| frame[12..14] == IPV4.to_be_bytes() && frame[23] == 6;
    let answer = peer.ask(|peer| peer.send(guest, IPV4, &syn(4001)), is_answer);
    assert_eq!(answer[36..38], 4001u16.to_be_bytes());
    leave(running);
}
