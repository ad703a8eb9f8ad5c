//! The kernel's servers, and clients that come, talk and vanish. The time is simulated, so the
//! tests do not wait.

use ringfence_abi::net::MAX_FRAME;
use ringfence_core::servers::{CONNECTIONS, Servers};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium};
use smoltcp::socket::{Socket, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address};
use std::collections::VecDeque;
use wire::{Received, Sending};

mod wire;

const ECHO: u16 = 7;
const GUEST: Ipv4Address = Ipv4Address::new(10, 7, 0, 2);
const CLIENT: Ipv4Address = Ipv4Address::new(10, 7, 0, 1);

/// One end of a cable.
#[derive(Default)]
struct End {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl Device for End {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        Some((Received(self.received.pop_front()?), Sending { frames: &mut self.sent, most: MAX_FRAME }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending { frames: &mut self.sent, most: MAX_FRAME })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities
    }
}

/// A guest and its clients, connected by a cable.
struct Net {
    now: Instant,
    guest: (End, Interface, SocketSet<'static>),
    clients: (End, Interface, SocketSet<'static>),
    servers: Servers,
    /// Whether the cable is plugged in.
    is_connected: bool,
}

impl Net {
    fn new() -> Net {
        let now = Instant::from_secs(1);
        let end = |mac: u8, address: Ipv4Address| {
            let mut end = End::default();
            let config = Config::new(EthernetAddress([0x52, 0x54, 0, 0, 0, mac]).into());
            let mut stack = Interface::new(config, &mut end, now);
            stack.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address.into(), 24)).unwrap());
            (end, stack, SocketSet::new(Vec::new()))
        };
        let (mut guest, clients) = (end(1, GUEST), end(2, CLIENT));
        let servers = Servers::new(&mut guest.2, |_| true);
        Net { now, guest, clients, servers, is_connected: true }
    }

    /// Polls both sides, and carries their frames over if they are connected. Returns `false` if
    /// there were none.
    fn exchange(&mut self) -> bool {
        let (end, stack, sockets) = &mut self.guest;
        self.servers.serve(sockets);
        self.servers.poll(stack, self.now, end, sockets);
        let (client_end, client_stack, client_sockets) = &mut self.clients;
        client_stack.poll(self.now, client_end, client_sockets);
        let (from_guest, from_client) = (std::mem::take(&mut end.sent), std::mem::take(&mut client_end.sent));
        let any = !from_guest.is_empty() || !from_client.is_empty();
        if self.is_connected {
            client_end.received.extend(from_guest);
            end.received.extend(from_client);
        }
        any
    }

    /// Lets `time` pass, in steps of a tenth of a second.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += Duration::from_millis(100);
            while self.exchange() {}
        }
    }

    fn connect(&mut self, own_port: u16) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.connect(self.clients.1.context(), (IpAddress::Ipv4(GUEST), ECHO), own_port).unwrap();
        self.clients.2.add(socket)
    }

    /// Returns whether sent data comes back within a second.
    fn echoes(&mut self, handle: SocketHandle) -> bool {
        let socket = self.clients.2.get_mut::<tcp::Socket>(handle);
        if !socket.can_send() || socket.send_slice(b"here").is_err() {
            return false;
        }
        self.pass(Duration::from_secs(1));
        let mut answer = [0; 4];
        self.clients.2.get_mut::<tcp::Socket>(handle).recv_slice(&mut answer) == Ok(4) && &answer == b"here"
    }

    /// Removes all clients without closing their connections.
    fn vanish(&mut self) {
        self.clients.2 = SocketSet::new(Vec::new());
    }
}

/// The last acknowledgement of a connection and the SYNs of two others are received one after the
/// other, before the servers have their turn.
#[test]
fn who_comes_when_another_leaves_is_not_refused() {
    let mut net = Net::new();
    net.pass(Duration::from_secs(1));
    let first = net.connect(2000);
    net.pass(Duration::from_secs(1));
    assert!(net.echoes(first));
    net.clients.2.get_mut::<tcp::Socket>(first).close();
    let leaves = |net: &Net| {
        let state = |socket: &Socket| match socket {
            Socket::Tcp(socket) => Some(socket.state()),
            _ => None,
        };
        net.guest.2.iter().any(|(_, socket)| state(socket) == Some(tcp::State::LastAck))
    };
    while !leaves(&net) {
        assert!(net.exchange(), "the guest does not close");
    }
    let others = [3000, 3001].map(|port| net.connect(port));
    net.pass(Duration::from_secs(1));
    assert!(others.into_iter().all(|talk| net.echoes(talk)));
}

/// RFC 1122, 4.2.3.6: a client that does not answer keep-alive probes has vanished.
#[test]
fn who_vanishes_leaves_room_for_others() {
    let mut net = Net::new();
    net.pass(Duration::from_secs(1));
    let talks: Vec<_> = (0..CONNECTIONS as u16).map(|index| net.connect(2000 + index)).collect();
    net.pass(Duration::from_secs(5));
    assert!(talks.into_iter().all(|talk| net.echoes(talk)), "there is room for {CONNECTIONS}");
    let more: Vec<_> = (0..2).map(|index| net.connect(3000 + index)).collect();
    net.pass(Duration::from_secs(5));
    assert!(!net.echoes(more[1]), "there is no more room");
    net.is_connected = false;
    net.vanish();
    net.pass(Duration::from_secs(125));
    net.is_connected = true;
    let others: Vec<_> = (0..CONNECTIONS as u16).map(|index| net.connect(4000 + index)).collect();
    net.pass(Duration::from_secs(5));
    assert!(others.into_iter().all(|talk| net.echoes(talk)), "there is room again");
}

/// A client that is only silent keeps its connection.
#[test]
fn who_is_silent_stays() {
    let mut net = Net::new();
    net.pass(Duration::from_secs(1));
    let talk = net.connect(2000);
    net.pass(Duration::from_secs(1000));
    assert!(net.echoes(talk));
}

/// More half-open connections than there is room for do not keep a real client out.
#[test]
fn who_never_finishes_a_handshake_leaves_room_for_others() {
    let mut net = Net::new();
    net.pass(Duration::from_secs(1));
    // Both sides must know each other's Ethernet addresses first.
    let first = net.connect(1000);
    net.pass(Duration::from_secs(1));
    assert!(net.echoes(first));
    for round in 0..3 {
        (0..CONNECTIONS as u16).for_each(|index| {
            net.connect(2000 + round * 100 + index);
        });
        // The SYNs arrive. The client must not see the answers, because it would reset the
        // connections.
        let (end, stack, sockets) = &mut net.clients;
        stack.poll(net.now, end, sockets);
        let syns = std::mem::take(&mut end.sent);
        assert_eq!(syns.len(), CONNECTIONS);
        net.vanish();
        net.guest.0.received.extend(syns);
        net.is_connected = false;
        net.pass(Duration::from_secs(1));
        net.is_connected = true;
    }
    let talk = net.connect(5000);
    net.pass(Duration::from_secs(1));
    assert!(net.echoes(talk));
}
