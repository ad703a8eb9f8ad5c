//! A DHCP client (RFC 2131, 2132): it takes in and sends frames, and reports its lease. Parts of a
//! server's answer that cannot be true are ignored. Parts that servers in the field leave out are
//! filled in as other clients do.

use crate::servers::is_host;
use alloc::vec;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
    UdpPacket, UdpRepr,
};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Length of the fixed part of a message (RFC 2131, 2).
const FIXED: usize = 236;
/// The options begin with this.
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Relays may drop shorter messages (RFC 1542, 2.1).
const SHORTEST: usize = 300;
/// Places of the fields `sname` and `file`, which may hold options, too.
const SNAME: core::ops::Range<usize> = 44..108;
const FILE: core::ops::Range<usize> = 108..236;

/// Wait before a message is sent again; it doubles each time (RFC 2131, 4.1).
const FIRST_RETRY: Duration = Duration::from_secs(4);
const LAST_RETRY: Duration = Duration::from_secs(64);
/// Requests that are sent for an offered address before the client begins anew and asks all
/// servers.
const REQUESTS: u32 = 4;
/// Wait before the client begins anew after a server has refused the address.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// Length of a lease in seconds if the server does not say.
const USUAL_LEASE_S: u32 = 3600;
/// Shortest length of a lease in seconds, even if the server says less.
const SHORTEST_LEASE_S: u32 = 10;
/// Shortest wait while a lease is being renewed (RFC 2131, 4.4.5).
const RENEW_RETRY: Duration = Duration::from_secs(60);
/// If the router lies outside the network, the prefix that it shares with the address is taken for
/// the network's. It must have at least so many bits.
const SHORTEST_SHARED: u8 = 8;
/// The most name servers that are kept.
const MAX_DNS: usize = 3;

mod option {
    pub const PAD: u8 = 0;
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const REQUESTED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const WANTED: u8 = 55;
    pub const RENEW: u8 = 58;
    pub const REBIND: u8 = 59;
    pub const CLIENT: u8 = 61;
    pub const END: u8 = 255;
}

mod message {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
}

/// A leased address, and the settings that come with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix in bits.
    pub prefix_len: u8,
    /// The router to all other networks.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
}

/// A change that a frame or the passing of time has caused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The client has a new address, or the same address with other settings.
    Got(Lease),
    /// The address must not be used any more.
    Lost,
}

/// A lease, the server that gave it, and the times at which it is rebound and expires.
#[derive(Debug, Clone)]
struct Bound {
    lease: Lease,
    server: Ipv4Addr,
    /// Ethernet address of the frame's sender: the server, or a router in between.
    from: EthernetAddress,
    rebind: Option<Instant>,
    expires: Option<Instant>,
}

#[derive(Debug, Clone)]
enum State {
    /// The client asks all servers for an offer.
    Selecting,
    /// The client asks a server for the address that it has offered.
    Requesting { server: Ipv4Addr, address: Ipv4Addr },
    /// The client has a lease, and renews it in time.
    Bound(Bound),
}

/// A DHCP client.
#[derive(Debug)]
pub struct Client {
    mac: EthernetAddress,
    state: State,
    transaction: u32,
    /// When the next message is due.
    due: Instant,
    sent: u32,
    /// When the client began to ask (RFC 2131, `secs`).
    since: Instant,
    /// The address that the client had before, and asks for again.
    wish: Option<Ipv4Addr>,
    /// The lease that the client keeps while it asks whether it may have it again, and when it
    /// expires.
    kept: Option<(Lease, Option<Instant>)>,
    random: u32,
}

impl Client {
    /// Returns a client that begins to ask at `now`. `seed` is the seed of its random numbers.
    pub fn new(mac: EthernetAddress, seed: u32, now: Instant) -> Client {
        let mut client = Client {
            mac,
            state: State::Selecting,
            transaction: 0,
            due: now,
            sent: 0,
            since: now,
            wish: None,
            kept: None,
            random: seed | 1,
        };
        client.begin(State::Selecting, now);
        client
    }

    /// Changes the client's own Ethernet address.
    pub fn set_mac(&mut self, mac: EthernetAddress) {
        self.mac = mac;
    }

    /// Begins anew: the link was down, and may lead to another network.
    pub fn restart(&mut self, now: Instant) {
        self.wish = self.lease().map(|lease| lease.address).or(self.wish);
        self.kept = None;
        self.since = now;
        self.begin(State::Selecting, now);
    }

    /// Asks for the same address again, after the link was down: it may lead to another network.
    /// The lease stays until a server grants another one or refuses, or until it expires. However
    /// often the link comes up, the client asks once a second at most.
    pub fn confirm(&mut self, now: Instant) {
        if let State::Bound(bound) = &self.state {
            self.wish = Some(bound.lease.address);
            self.kept = Some((bound.lease.clone(), bound.expires));
        }
        // If the client has not asked yet, its time to ask stays: it is not put off again and
        // again.
        let is_about_to = matches!(self.state, State::Selecting) && self.sent == 0;
        let at = if is_about_to { self.since } else { now.max(self.since + Duration::from_secs(1)) };
        self.since = at;
        self.begin(State::Selecting, at);
    }

    /// Returns the lease, if there is one.
    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound(bound) => Some(&bound.lease),
            _ => self.kept.as_ref().map(|(lease, _)| lease),
        }
    }

    /// Returns when the lease expires, if it does.
    fn expires(&self) -> Option<Instant> {
        match &self.state {
            State::Bound(bound) => bound.expires,
            _ => self.kept.as_ref().and_then(|(_, expires)| *expires),
        }
    }

    /// Returns when [`Client::poll`] wants to be called next.
    pub fn due(&self) -> Instant {
        self.expires().map_or(self.due, |expires| self.due.min(expires))
    }

    /// Returns the next random number (xorshift32).
    fn random(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random
    }

    /// Enters `state`. Its first message is due at `at`.
    fn begin(&mut self, state: State, at: Instant) {
        if !matches!(state, State::Requesting { .. }) {
            self.transaction = self.random();
        }
        self.state = state;
        self.sent = 0;
        self.due = at;
    }

    /// Returns the wait before the next message. It doubles each time, give or take a second.
    fn retry(&mut self) -> Duration {
        let wait = FIRST_RETRY.total_millis() << self.sent.saturating_sub(1).min(4);
        let jitter = u64::from(self.random() % 2000);
        Duration::from_millis(wait.min(LAST_RETRY.total_millis()) + jitter - 1000)
    }

    /// Does the work that is due at `now`. Returns a frame to send, if there is one, and the change
    /// that the passing of time has caused.
    pub fn poll(&mut self, now: Instant) -> (Option<Vec<u8>>, Option<Change>) {
        if self.expires().is_some_and(|expires| now >= expires) {
            self.restart(now);
            return (None, Some(Change::Lost));
        }
        if now < self.due {
            return (None, None);
        }
        self.sent = self.sent.saturating_add(1);
        let frame = match self.state.clone() {
            State::Selecting => {
                self.due = now + self.retry();
                let wish = self.wish.map(|wish| (option::REQUESTED, wish));
                self.broadcast(now, message::DISCOVER, Ipv4Addr::UNSPECIFIED, &Vec::from_iter(wish))
            }
            State::Requesting { .. } if self.sent > REQUESTS => {
                self.begin(State::Selecting, now);
                return (None, None);
            }
            State::Requesting { server, address } => {
                self.due = now + self.retry();
                let named = [(option::REQUESTED, address), (option::SERVER, server)];
                self.broadcast(now, message::REQUEST, Ipv4Addr::UNSPECIFIED, &named)
            }
            State::Bound(bound) => self.renew(now, &bound),
        };
        (Some(frame), None)
    }

    /// Asks for more time: the server that gave the lease at first, all servers from the time to
    /// rebind on.
    fn renew(&mut self, now: Instant, bound: &Bound) -> Vec<u8> {
        if self.sent == 1 {
            self.since = now;
            self.transaction = self.random();
        }
        let rebinds = bound.rebind.is_some_and(|rebind| now >= rebind);
        // Wait for half of the time that is left, but for no less than a minute.
        let until = if rebinds { bound.expires } else { bound.rebind };
        self.due = until.map_or(now + LAST_RETRY, |until| {
            let half = Duration::from_millis((until - now).total_millis() / 2);
            (now + half.max(RENEW_RETRY)).min(until.max(now + Duration::from_secs(1)))
        });
        let address = bound.lease.address;
        let body = self.body(now, message::REQUEST, address, &[]);
        match rebinds {
            true => self.frame(EthernetAddress::BROADCAST, address, Ipv4Addr::BROADCAST, &body),
            false => self.frame(bound.from, address, bound.server, &body),
        }
    }

    fn broadcast(&self, now: Instant, kind: u8, client: Ipv4Addr, named: &[(u8, Ipv4Addr)]) -> Vec<u8> {
        let body = self.body(now, kind, client, named);
        self.frame(EthernetAddress::BROADCAST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &body)
    }

    /// Returns a message with options that are addresses.
    fn body(&self, now: Instant, kind: u8, client: Ipv4Addr, named: &[(u8, Ipv4Addr)]) -> Vec<u8> {
        const BOOT_REQUEST: u8 = 1;
        const ETHERNET: u8 = 1;
        let mac = self.mac.as_bytes();
        let seconds = u16::try_from((now - self.since).secs()).unwrap_or(u16::MAX);
        let mut body = vec![BOOT_REQUEST, ETHERNET, mac.len() as u8, 0];
        body.extend(self.transaction.to_be_bytes());
        body.extend(seconds.to_be_bytes());
        body.extend([0, 0]);
        body.extend(client.octets());
        body.resize(28, 0);
        body.extend(mac);
        body.resize(FIXED, 0);
        body.extend(MAGIC);
        body.extend([option::TYPE, 1, kind]);
        body.extend([option::CLIENT, 7, ETHERNET]);
        body.extend(mac);
        for (code, address) in named {
            body.extend([*code, 4]);
            body.extend(address.octets());
        }
        let wanted = [option::MASK, option::ROUTER, option::DNS, option::LEASE, option::RENEW, option::REBIND];
        body.extend([option::WANTED, wanted.len() as u8]);
        body.extend(wanted);
        body.push(option::END);
        body.resize(body.len().max(SHORTEST), option::PAD);
        body
    }

    /// Returns a frame with a message.
    fn frame(&self, to: EthernetAddress, source: Ipv4Addr, target: Ipv4Addr, body: &[u8]) -> Vec<u8> {
        let udp = UdpRepr { src_port: CLIENT_PORT, dst_port: SERVER_PORT };
        let ip = Ipv4Repr {
            src_addr: source,
            dst_addr: target,
            next_header: IpProtocol::Udp,
            payload_len: udp.header_len() + body.len(),
            hop_limit: 64,
        };
        let ethernet = EthernetRepr { src_addr: self.mac, dst_addr: to, ethertype: EthernetProtocol::Ipv4 };
        let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
        let checksums = ChecksumCapabilities::default();
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        ethernet.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &checksums);
        let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
        let fill = |payload: &mut [u8]| payload.copy_from_slice(body);
        let (source, target) = (IpAddress::Ipv4(source), IpAddress::Ipv4(target));
        udp.emit(&mut datagram, &source, &target, body.len(), fill, &checksums);
        bytes
    }

    /// Takes in a frame for the client ([`is_reply`]). Returns the change that it has caused.
    pub fn receive(&mut self, now: Instant, frame: &[u8]) -> Option<Change> {
        let (from, source, body) = reply(frame)?;
        let answer = Answer::parse(body)?;
        if answer.transaction != self.transaction || answer.hardware != self.mac.as_bytes() {
            return None;
        }
        match (answer.kind, self.state.clone()) {
            (message::OFFER, State::Selecting) if is_host(answer.address) => {
                // A server that sends no identifier is known by the address of its packet.
                let server = answer.server.unwrap_or(source);
                self.begin(State::Requesting { server, address: answer.address }, now);
                None
            }
            (message::ACK, State::Requesting { server, address }) => {
                let kept = self.kept.take().map(|(lease, _)| lease);
                self.bind(now, &answer, server, address, from, kept.as_ref())
            }
            (message::ACK, State::Bound(bound)) if self.sent > 0 => {
                self.bind(now, &answer, bound.server, bound.lease.address, from, Some(&bound.lease))
            }
            // A refusal of a server that was not asked is ignored: some networks have two servers.
            (message::NAK, State::Requesting { server, .. }) if answer.server.unwrap_or(server) == server => {
                self.wish = None;
                self.begin(State::Selecting, now + AFTER_REFUSAL);
                self.kept.take().map(|_| Change::Lost)
            }
            (message::NAK, State::Bound(_)) if self.sent > 0 => {
                self.wish = None;
                self.since = now;
                self.begin(State::Selecting, now + AFTER_REFUSAL);
                Some(Change::Lost)
            }
            _ => None,
        }
    }

    /// Enters a lease. Settings that the answer leaves out are taken from the lease `before`, if
    /// that was for the same address.
    fn bind(
        &mut self,
        now: Instant,
        answer: &Answer,
        server: Ipv4Addr,
        asked: Ipv4Addr,
        from: EthernetAddress,
        before: Option<&Lease>,
    ) -> Option<Change> {
        // If the server grants another address than the client asked for, that address counts. If
        // the server names no address, it grants the address that the client asked for.
        let address = if is_host(answer.address) { answer.address } else { asked };
        let same = before.filter(|before| before.address == address);
        let prefix_len = answer.prefix_len.or(same.map(|same| same.prefix_len)).unwrap_or(usual_prefix_len(address));
        let router = answer.router.or(same.and_then(|same| same.router));
        let dns = match (answer.dns.is_empty(), same) {
            (true, Some(same)) => same.dns.clone(),
            _ => answer.dns.clone(),
        };
        // Some servers give a mask so long that the router lies outside the network, though it can
        // be reached. The prefix that address and router share is then taken for the network's.
        let shared = router.map_or(0, |router| (router.to_bits() ^ address.to_bits()).leading_zeros() as u8);
        let prefix_len =
            if router.is_some() && (SHORTEST_SHARED..prefix_len).contains(&shared) { shared } else { prefix_len };
        let lease = Lease { address, prefix_len, router, dns };
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let (renew, rebind, expires) = match answer.lease_s.unwrap_or(USUAL_LEASE_S) {
            // The lease never expires.
            u32::MAX => (None, None, None),
            lease_s => {
                let lease_s = lease_s.max(SHORTEST_LEASE_S);
                // Times to renew and to rebind that are not in this order, and before the end, are
                // ignored.
                let rebind = answer.rebind_s.filter(|rebind| (1..lease_s).contains(rebind));
                let rebind = rebind.unwrap_or((u64::from(lease_s) * 7 / 8) as u32);
                let renew =
                    answer.renew_s.filter(|renew| (1..rebind).contains(renew)).unwrap_or((lease_s / 2).min(rebind));
                (Some(now + seconds(renew)), Some(now + seconds(rebind)), Some(now + seconds(lease_s)))
            }
        };
        let server = answer.server.unwrap_or(server);
        let changed = before != Some(&lease);
        let bound = Bound { lease: lease.clone(), server, from, rebind, expires };
        let far = now + Duration::from_secs(u64::from(u32::MAX));
        self.begin(State::Bound(bound), renew.unwrap_or(far));
        self.wish = Some(address);
        changed.then_some(Change::Got(lease))
    }
}

/// Returns the prefix length that an address has without a mask (RFC 791, 2.3).
fn usual_prefix_len(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

/// An answer of a server.
struct Answer<'a> {
    transaction: u32,
    hardware: &'a [u8],
    kind: u8,
    address: Ipv4Addr,
    server: Option<Ipv4Addr>,
    prefix_len: Option<u8>,
    router: Option<Ipv4Addr>,
    dns: Vec<Ipv4Addr>,
    lease_s: Option<u32>,
    renew_s: Option<u32>,
    rebind_s: Option<u32>,
}

impl<'a> Answer<'a> {
    fn parse(body: &'a [u8]) -> Option<Answer<'a>> {
        const BOOT_REPLY: u8 = 2;
        let word = |at: usize| Some(u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?));
        if *body.first()? != BOOT_REPLY || body.get(FIXED..FIXED + MAGIC.len())? != MAGIC {
            return None;
        }
        let mut answer = Answer {
            transaction: word(4)?,
            hardware: body.get(28..34)?,
            kind: 0,
            address: Ipv4Addr::from_bits(word(16)?),
            server: None,
            prefix_len: None,
            router: None,
            dns: Vec::new(),
            lease_s: None,
            renew_s: None,
            rebind_s: None,
        };
        let overload = answer.read(body.get(FIXED + MAGIC.len()..)?);
        if overload & 1 != 0 {
            answer.read(body.get(FILE)?);
        }
        if overload & 2 != 0 {
            answer.read(body.get(SNAME)?);
        }
        (answer.kind != 0).then_some(answer)
    }

    /// Reads options, up to their end or to the place where they are cut off. Returns which other
    /// fields hold options, too (the value of option 52).
    fn read(&mut self, mut options: &[u8]) -> u8 {
        let mut overload = 0;
        while let Some((code, rest)) = options.split_first() {
            match *code {
                option::PAD => {
                    options = rest;
                    continue;
                }
                option::END => break,
                _ => {}
            }
            let Some((len_bytes, rest)) = rest.split_first() else { break };
            let Some((value, rest)) = rest.split_at_checked(usize::from(*len_bytes)) else { break };
            options = rest;
            let number = || Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?));
            let mut addresses = value.chunks_exact(4).filter_map(|bytes| {
                let address = Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?);
                is_host(address).then_some(address)
            });
            match *code {
                option::TYPE => self.kind = value.first().copied().unwrap_or(0),
                option::SERVER => self.server = addresses.next(),
                option::ROUTER => self.router = addresses.next(),
                option::DNS => self.dns = addresses.take(MAX_DNS).collect(),
                option::MASK => {
                    // A mask of zero, or one with holes, counts as no mask.
                    let bits = number().filter(|mask| *mask != 0 && mask.leading_ones() == mask.count_ones());
                    self.prefix_len = bits.map(|mask| mask.count_ones() as u8);
                }
                option::LEASE => self.lease_s = number(),
                option::RENEW => self.renew_s = number(),
                option::REBIND => self.rebind_s = number(),
                option::OVERLOAD => overload = value.first().copied().unwrap_or(0),
                _ => {}
            }
        }
        overload
    }
}

/// Returns the sender's Ethernet and IP addresses, and the message, of a frame that was sent to a
/// DHCP client's port; `None` for other frames.
fn reply(frame: &[u8]) -> Option<(EthernetAddress, Ipv4Addr, &[u8])> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let from = frame.src_addr();
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if packet.next_header() != IpProtocol::Udp || packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let source = packet.src_addr();
    let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
    if datagram.dst_port() != CLIENT_PORT {
        return None;
    }
    Some((from, source, datagram.payload()))
}

/// Returns whether a frame is for a DHCP client with this Ethernet address: sent to it, or to all.
pub fn is_reply(frame: &[u8], mac: EthernetAddress) -> bool {
    let to = EthernetFrame::new_checked(frame).map(|frame| frame.dst_addr());
    to.is_ok_and(|to| to == mac || to.is_broadcast()) && reply(frame).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 1]);
    const SERVER: (EthernetAddress, Ipv4Addr) = (EthernetAddress([2; 6]), Ipv4Addr::new(10, 0, 2, 2));
    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const MASK: (u8, &[u8]) = (option::MASK, &[255, 255, 255, 0]);
    const ROUTER: (u8, &[u8]) = (option::ROUTER, &[10, 0, 2, 2]);
    const DNS: (u8, &[u8]) = (option::DNS, &[10, 0, 2, 3]);
    const IS_SERVER: (u8, &[u8]) = (option::SERVER, &[10, 0, 2, 2]);
    const LEASE: (u8, &[u8]) = (option::LEASE, &[0, 0, 0, 100]);

    fn seconds(seconds: i64) -> Instant {
        Instant::from_secs(seconds)
    }

    /// Returns a server's frame to the client that has sent `asked`.
    fn answer(asked: &[u8], kind: u8, address: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
        let asked = &asked[42..];
        let mut body = vec![2, 1, 6, 0];
        body.extend(&asked[4..8]);
        body.resize(16, 0);
        body.extend(address.octets());
        body.resize(28, 0);
        body.extend(&asked[28..34]);
        body.resize(FIXED, 0);
        body.extend(MAGIC);
        body.extend([option::TYPE, 1, kind]);
        for (code, value) in options {
            body.extend([*code, value.len() as u8]);
            body.extend(*value);
        }
        body.push(option::END);
        let sender = Client::new(SERVER.0, 1, seconds(0));
        let mut frame = sender.frame(MAC, SERVER.1, address, &body);
        // The client's function has the ports the other way round. The checksum is not verified.
        frame[34..38].copy_from_slice(&[0, 67, 0, 68]);
        frame
    }

    fn kind(frame: &[u8]) -> u8 {
        frame[42 + FIXED + 6]
    }

    fn has_option(frame: &[u8], code: u8) -> bool {
        let mut options = &frame[42 + FIXED + 4..];
        while let [found, len, rest @ ..] = options {
            match *found {
                option::END => return false,
                found if found == code => return true,
                _ => options = &rest[usize::from(*len)..],
            }
        }
        false
    }

    /// Returns a client that has a lease with these options since second 0, and the change when it
    /// got it.
    fn bound(options: &[(u8, &[u8])]) -> (Client, Change) {
        let mut client = Client::new(MAC, 7, seconds(0));
        let discover = client.poll(seconds(0)).0.expect("it asks");
        assert_eq!(kind(&discover), message::DISCOVER);
        let offer = answer(&discover, message::OFFER, OWN, options);
        assert!(is_reply(&offer, MAC));
        assert_eq!(client.receive(seconds(0), &offer), None);
        let request = client.poll(seconds(0)).0.expect("it asks for what was offered");
        assert_eq!(kind(&request), message::REQUEST);
        assert!(has_option(&request, option::REQUESTED) && has_option(&request, option::SERVER));
        let change = client.receive(seconds(0), &answer(&request, message::ACK, OWN, options));
        (client, change.expect("it has it"))
    }

    fn lease(router: Option<[u8; 4]>, prefix_len: u8) -> Lease {
        Lease { address: OWN, prefix_len, router: router.map(Ipv4Addr::from), dns: vec![Ipv4Addr::new(10, 0, 2, 3)] }
    }

    #[test]
    fn a_lease_is_what_the_server_says() {
        let (client, change) = bound(&[IS_SERVER, LEASE, MASK, ROUTER, DNS]);
        assert_eq!(change, Change::Got(lease(Some([10, 0, 2, 2]), 24)));
        // The lease is renewed after half of its time.
        assert_eq!(client.due(), seconds(50));
    }

    /// smoltcp's `wire` can read the client's messages.
    #[test]
    fn messages_are_well_formed() {
        let mut client = Client::new(MAC, 7, seconds(0));
        let frame = client.poll(seconds(3)).0.unwrap();
        let ethernet = EthernetFrame::new_checked(&frame[..]).unwrap();
        assert!(ethernet.dst_addr().is_broadcast() && ethernet.src_addr() == MAC);
        let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
        assert!(packet.verify_checksum() && packet.dst_addr().is_broadcast());
        let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
        assert!(datagram.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
        assert_eq!((datagram.src_port(), datagram.dst_port()), (68, 67));
        assert!(datagram.payload().len() >= SHORTEST);
        assert_eq!(datagram.payload()[8..10], [0, 3]);
    }

    /// RFC 2131, 4.1: the waits are about 4, 8, 16 and 32 seconds, and then 64 each.
    #[test]
    fn what_nobody_answers_is_said_again() {
        let mut client = Client::new(MAC, 9, seconds(0));
        let mut last = seconds(0);
        client.poll(last).0.expect("at once");
        for expected in [4, 8, 16, 32, 64, 64, 64] {
            let due = client.due();
            let wait = (due - last).total_millis() as i64;
            assert!((wait - expected * 1000).abs() <= 1000, "{wait} ms in place of {expected} s");
            assert_eq!(client.poll(due - Duration::from_millis(1)).0, None);
            assert_eq!(kind(&client.poll(due).0.unwrap()), message::DISCOVER);
            last = due;
        }
        // If a server makes an offer and then no longer answers, the client asks all servers again.
        let mut client = Client::new(MAC, 9, seconds(0));
        let discover = client.poll(seconds(0)).0.unwrap();
        client.receive(seconds(0), &answer(&discover, message::OFFER, OWN, &[]));
        let mut kinds = Vec::new();
        let mut now = seconds(0);
        while kinds.len() < 6 {
            kinds.extend(client.poll(now).0.map(|frame| kind(&frame)));
            now = client.due();
        }
        assert_eq!(kinds, [3, 3, 3, 3, 1, 1]);
    }

    /// The lease keeps its settings when a renewal leaves them out.
    #[test]
    fn a_renewal_may_leave_out_what_was_said() {
        let (mut client, change) = bound(&[IS_SERVER, LEASE, MASK, ROUTER, DNS]);
        let renewal = client.poll(seconds(50)).0.unwrap();
        assert_eq!(renewal[..6], SERVER.0.0);
        assert_eq!(renewal[30..34], SERVER.1.octets());
        assert!(!has_option(&renewal, option::REQUESTED) && !has_option(&renewal, option::SERVER));
        assert_eq!(client.receive(seconds(51), &answer(&renewal, message::ACK, OWN, &[LEASE])), None);
        assert_eq!(Some(&change), client.lease().cloned().map(Change::Got).as_ref());
        assert_eq!(client.due(), seconds(101));
        // The lease does not end either when the address is left out as well.
        let renewal = client.poll(seconds(101)).0.unwrap();
        assert_eq!(client.receive(seconds(102), &answer(&renewal, message::ACK, Ipv4Addr::UNSPECIFIED, &[])), None);
        assert_eq!(client.lease().unwrap().address, OWN);
        // A lease with another router is a change.
        let renewal = client.poll(client.due()).0.unwrap();
        let other = answer(&renewal, message::ACK, OWN, &[LEASE, (option::ROUTER, &[10, 0, 2, 9])]);
        assert_eq!(client.receive(seconds(3000), &other), Some(Change::Got(lease(Some([10, 0, 2, 9]), 24))));
    }

    #[test]
    fn a_lease_is_renewed_then_rebound_then_lost() {
        let (mut client, _) = bound(&[IS_SERVER, (option::LEASE, &[0, 0, 1, 0x90]), MASK]);
        let mut said = Vec::new();
        let mut now = client.due();
        let lost_at = loop {
            match client.poll(now) {
                (Some(frame), None) => said.push((now.secs(), frame[..6] == [0xff; 6])),
                (None, Some(Change::Lost)) => break now,
                other => panic!("{other:?}"),
            }
            now = client.due();
        };
        assert_eq!(lost_at, seconds(400));
        assert_eq!(said[0], (200, false));
        assert!(said.iter().filter(|(_, all)| *all).all(|(at, _)| *at >= 350), "{said:?}");
        assert!(said.iter().any(|(_, all)| *all) && said.len() < 12, "{said:?}");
        assert_eq!(kind(&client.poll(lost_at).0.unwrap()), message::DISCOVER);
    }

    #[test]
    fn what_servers_leave_out_is_made_up_for() {
        // The options have no server identifier, lease time, mask or router.
        let (client, change) = bound(&[DNS]);
        assert_eq!(change, Change::Got(lease(None, 8)));
        assert_eq!(client.due(), seconds(i64::from(USUAL_LEASE_S) / 2));
        // A mask with holes; a time to renew after the end; two routers, the first of which is no
        // host.
        let holes: (u8, &[u8]) = (option::MASK, &[255, 0, 255, 0]);
        let routers: (u8, &[u8]) = (option::ROUTER, &[0, 0, 0, 0, 10, 0, 2, 7]);
        let late: (u8, &[u8]) = (option::RENEW, &[0, 0, 0, 200]);
        let (client, change) = bound(&[IS_SERVER, LEASE, holes, routers, late, DNS]);
        assert_eq!(change, Change::Got(lease(Some([10, 0, 2, 7]), 8)));
        assert_eq!(client.due(), seconds(50));
        // A mask of 32 bits with a router near the address, and with a router that shares no prefix
        // with it.
        let alone: (u8, &[u8]) = (option::MASK, &[255; 4]);
        let (_, change) = bound(&[IS_SERVER, LEASE, alone, ROUTER, DNS]);
        assert_eq!(change, Change::Got(lease(Some([10, 0, 2, 2]), 28)));
        let (_, change) = bound(&[IS_SERVER, LEASE, alone, (option::ROUTER, &[192, 168, 0, 1]), DNS]);
        assert_eq!(change, Change::Got(lease(Some([192, 168, 0, 1]), 32)));
        // A lease that never expires.
        let (client, _) = bound(&[IS_SERVER, (option::LEASE, &[0xff; 4]), MASK]);
        assert!(client.due() > seconds(1 << 31));
        // A lease of no time at all.
        let (client, _) = bound(&[IS_SERVER, (option::LEASE, &[0; 4]), MASK]);
        assert_eq!(client.due(), seconds(5));
    }

    #[test]
    fn what_is_refused_is_lost_and_asked_for_anew() {
        let (mut client, _) = bound(&[IS_SERVER, LEASE, MASK]);
        let renewal = client.poll(seconds(50)).0.unwrap();
        let refusal = answer(&renewal, message::NAK, Ipv4Addr::UNSPECIFIED, &[IS_SERVER]);
        assert_eq!(client.receive(seconds(50), &refusal), Some(Change::Lost));
        assert_eq!(client.lease(), None);
        // The client does not ask at once: a server may refuse for ever.
        assert_eq!(client.poll(seconds(50)).0, None);
        let discover = client.poll(seconds(51)).0.unwrap();
        assert!(kind(&discover) == message::DISCOVER && !has_option(&discover, option::REQUESTED));
        // Nor does it heed the refusal of a server that it has not chosen.
        let mut client = Client::new(MAC, 7, seconds(0));
        let discover = client.poll(seconds(0)).0.unwrap();
        client.receive(seconds(0), &answer(&discover, message::OFFER, OWN, &[IS_SERVER]));
        let request = client.poll(seconds(0)).0.unwrap();
        let other: (u8, &[u8]) = (option::SERVER, &[10, 0, 2, 9]);
        assert_eq!(client.receive(seconds(0), &answer(&request, message::NAK, Ipv4Addr::UNSPECIFIED, &[other])), None);
        assert!(client.receive(seconds(0), &answer(&request, message::ACK, OWN, &[IS_SERVER, MASK])).is_some());
        // A refusal without a request is ignored.
        let (mut client, _) = bound(&[IS_SERVER, LEASE, MASK]);
        assert_eq!(client.receive(seconds(1), &refusal), None);
    }

    #[test]
    fn what_is_somebody_else_s_is_not_believed() {
        let mut client = Client::new(MAC, 7, seconds(0));
        let discover = client.poll(seconds(0)).0.unwrap();
        let offer = answer(&discover, message::OFFER, OWN, &[IS_SERVER]);
        for (at, what) in
            [(42, "no reply"), (46, "transaction"), (70, "hardware address"), (278, "magic"), (284, "type")]
        {
            let mut other = offer.clone();
            other[at] ^= 0x55;
            client.receive(seconds(0), &other);
            assert!(matches!(client.state, State::Selecting), "{what}");
        }
        for address in [[0; 4], [255; 4], [224, 0, 0, 1], [127, 0, 0, 1]] {
            client.receive(seconds(0), &answer(&discover, message::OFFER, address.into(), &[IS_SERVER]));
            assert!(matches!(client.state, State::Selecting), "{address:?}");
        }
        assert!(!is_reply(&offer, EthernetAddress([4; 6])));
        client.receive(seconds(0), &offer);
        assert!(matches!(client.state, State::Requesting { .. }));
    }

    /// Options may continue in the fields `file` and `sname`.
    #[test]
    fn options_are_found_where_they_go_on() {
        let mut client = Client::new(MAC, 7, seconds(0));
        let discover = client.poll(seconds(0)).0.unwrap();
        client.receive(seconds(0), &answer(&discover, message::OFFER, OWN, &[IS_SERVER]));
        let request = client.poll(seconds(0)).0.unwrap();
        let mut ack = answer(&request, message::ACK, OWN, &[IS_SERVER, (option::OVERLOAD, &[3]), DNS]);
        ack[42 + FILE.start..][..7].copy_from_slice(&[option::MASK, 4, 255, 255, 0, 0, option::END]);
        ack[42 + SNAME.start..][..8].copy_from_slice(&[option::PAD, option::ROUTER, 4, 10, 0, 2, 2, option::END]);
        assert_eq!(client.receive(seconds(0), &ack), Some(Change::Got(lease(Some([10, 0, 2, 2]), 16))));
    }

    #[test]
    fn beginning_anew_asks_for_what_there_was() {
        let (mut client, _) = bound(&[IS_SERVER, LEASE, MASK]);
        client.restart(seconds(20));
        assert_eq!((client.lease(), client.due()), (None, seconds(20)));
        let discover = client.poll(seconds(20)).0.unwrap();
        assert!(kind(&discover) == message::DISCOVER && has_option(&discover, option::REQUESTED));
    }

    /// A cable that is pulled and plugged in again leads to the same network most of the time.
    #[test]
    fn a_link_that_comes_back_is_asked_for_the_same() {
        let options = [IS_SERVER, LEASE, MASK, ROUTER, DNS];
        let asks = |at| {
            let (mut client, _) = bound(&options);
            client.confirm(seconds(at));
            assert_eq!((client.lease().unwrap().address, client.due()), (OWN, seconds(at)));
            let discover = client.poll(seconds(at)).0.unwrap();
            assert!(kind(&discover) == message::DISCOVER && has_option(&discover, option::REQUESTED));
            (client, discover)
        };
        let offered = |address, options: &[(u8, &[u8])]| {
            let (mut client, discover) = asks(20);
            client.receive(seconds(20), &answer(&discover, message::OFFER, address, options));
            let request = client.poll(seconds(20)).0.unwrap();
            (client, request)
        };
        // The same address; the answer leaves out its settings.
        let (mut client, request) = offered(OWN, &options);
        assert_eq!(client.receive(seconds(20), &answer(&request, message::ACK, OWN, &[IS_SERVER, LEASE])), None);
        assert_eq!(client.due(), seconds(70));
        // Another address.
        let other = Ipv4Addr::new(192, 168, 0, 9);
        let (mut client, request) = offered(other, &options);
        let change = client.receive(seconds(20), &answer(&request, message::ACK, other, &options));
        assert!(matches!(change, Some(Change::Got(lease)) if lease.address == other));
        // A refusal.
        let (mut client, request) = offered(OWN, &options);
        let refusal = answer(&request, message::NAK, Ipv4Addr::UNSPECIFIED, &[IS_SERVER]);
        assert_eq!(client.receive(seconds(20), &refusal), Some(Change::Lost));
        assert_eq!(client.lease(), None);
        // No server answers: the lease stays until it expires.
        let (mut client, _) = asks(20);
        let mut now = client.due();
        while let (_, None) = client.poll(now) {
            now = client.due();
        }
        assert_eq!((now, client.lease()), (seconds(100), None));
    }

    /// The client asks once a second at most, however often a link comes up.
    #[test]
    fn a_link_that_comes_up_for_ever_is_asked_once_a_second() {
        let mut client = Client::new(MAC, 7, seconds(0));
        let mut said = 0;
        for millis in (0..10_000).step_by(10) {
            let now = Instant::from_millis(millis);
            client.confirm(now);
            said += client.poll(now).0.is_some() as u32;
        }
        assert!((9..=10).contains(&said), "{said}");
    }

    proptest! {
        /// The client does not panic at any answer of a server, at any time.
        #[test]
        fn nothing_panics(
            changes in proptest::collection::vec((0usize..400, any::<u8>()), 0..20),
            cut in 0usize..400,
            times in proptest::collection::vec(0i64..1 << 33, 1..8),
        ) {
            let (mut client, _) = bound(&[IS_SERVER, LEASE, MASK, ROUTER]);
            let mut now = 0;
            for time in times {
                now += time;
                let asked = client.poll(seconds(now)).0;
                if let Some(asked) = asked {
                    let mut frame = answer(&asked, message::ACK, OWN, &[IS_SERVER, LEASE, MASK, ROUTER]);
                    for (at, byte) in &changes {
                        if let Some(place) = frame.get_mut(*at) { *place = *byte; }
                    }
                    frame.truncate(frame.len().saturating_sub(cut % 64));
                    let _ = is_reply(&frame, MAC);
                    client.receive(seconds(now), &frame);
                }
                let _ = client.due();
            }
        }
    }
}
