//! A network interface: a driver, the stack above it, and its address. The loopback interface has
//! no driver.

use super::adapter::{Adapter, ETHERNET_HEADER, Room};
use super::queues::{Counts, Queues};
use super::{now, wake};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use embassy_time::Instant;
use host::domain::cause::Cause;
use host::domain::{Handle, life};
use hw::console;
use hw::console::Source;
use hw::memory::has_room;
use log::Level;
use ringfence_abi::net::{Hearing, MAX_GROUPS, Offload};
use ringfence_core::dhcp::{Change, Client};
use ringfence_core::requests::Wrong;
use ringfence_core::servers::{Echoed, Servers, is_host};
use ringfence_link::event::Event;
use smoltcp::iface::{Config, Interface as Stack, SocketSet};
use smoltcp::phy::{Loopback, Medium};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Cidr};

/// The most addresses that an interface can have.
pub const MAX_ADDRESSES: usize = 4;

/// The longest IP packet that an interface sends unless a person says otherwise, in bytes (RFC
/// 894).
pub const MTU: usize = 1500;
/// The least MTU that a person can set, in bytes: every host takes packets of this length (RFC 791,
/// 3.1).
pub const MIN_MTU: usize = 576;

/// The thing below an interface.
pub enum Link {
    /// A driver.
    Driver(Handle),
    /// The machine itself.
    Loopback(Loopback),
}

/// The source of an interface's address.
pub enum Addressing {
    /// A DHCP server.
    Dhcp(Client),
    /// A person.
    Static,
}

/// A network interface.
pub struct Interface {
    /// The interface's number, which no other interface has ever had.
    pub number: u64,
    pub name: String,
    pub link: Link,
    pub stack: Stack,
    pub sockets: SocketSet<'static>,
    pub addressing: Addressing,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Whether a person has turned the interface on.
    pub is_up: bool,
    /// The other frames that a person wants its card to receive.
    pub hearing: Hearing,
    /// The groups of hosts that the interface is in.
    pub groups: Vec<Ipv4Addr>,
    /// The longest IP packet that the interface sends, in bytes: a person's wish, limited by the
    /// driver.
    pub mtu: usize,
    /// The checksums that the stack was made to leave to the driver.
    offload: Offload,
    room: Box<Room>,
    pub servers: Servers,
    /// When the stack has something to do by itself, as it said last. It is kept while there is no
    /// driver.
    stack_at: Option<smoltcp::time::Instant>,
    /// Whether the stack had its turn since it said so.
    is_served: bool,
    /// Whether a client has used its socket since the stack had its turn.
    pub is_used: bool,
    /// The addresses that programs were told last.
    told: Vec<Ipv4Cidr>,
    /// When programs were told an address last.
    told_at: Option<Instant>,
    /// The state of the link that programs were told.
    told_link: ToldLink,
}

/// The state of a link that programs were told last, and how often they were told since when.
struct ToldLink {
    is_up: bool,
    since: Option<Instant>,
    count: u32,
}

/// The times at which an interface needs its driver.
#[derive(Default)]
pub struct Wishes {
    /// Whether the driver must be polled: frames wait for it, or its device has no frames to fill.
    pub poll: bool,
    /// When the driver counts as stuck if it has sent none of its frames by then.
    pub deadline: Option<Instant>,
    /// When to poll the driver again because it may have sent frames.
    pub look_again: Option<Instant>,
}

impl Wishes {
    /// Returns the times at which an interface with these queues needs its driver.
    pub fn of(queues: &mut Queues) -> Result<Wishes, Wrong> {
        Ok(Wishes {
            poll: queues.unsent() > 0 || queues.is_starved()?,
            deadline: queues.deadline_ns()?.map(|at| Instant::from_micros(at / 1000)),
            look_again: queues.look_again_ns().map(|at| Instant::from_micros(at / 1000)),
        })
    }
}

impl Interface {
    /// Returns a stack above a driver that offers an interface; `None` if it no longer does.
    pub fn new(number: u64, name: String, handle: &Handle, mac: [u8; 6]) -> Option<Interface> {
        let mut domain = handle.lock();
        let queues = domain.offered_mut::<Queues>()?;
        let mac = EthernetAddress(mac);
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed = hw::arch::time::tsc();
        let client = Client::new(mac, config.random_seed as u32, now());
        let offload = queues.card().offload;
        let stack = stack_above(queues, config, MTU);
        let interface = Interface::with(number, name, Link::Driver(handle.clone()), stack, Addressing::Dhcp(client));
        Some(Interface { offload, ..interface })
    }

    /// Sets the longest IP packet that is sent, at least [`MIN_MTU`] bytes.
    ///
    /// # Errors
    /// The longest packet that the driver takes, in bytes, if `mtu` is longer.
    pub fn set_mtu(&mut self, queues: &mut Queues, mtu: usize) -> Result<(), usize> {
        let most = queues.card().max_frame - ETHERNET_HEADER;
        if mtu > most {
            return Err(most);
        }
        self.rebuild(queues, mtu);
        Ok(())
    }

    /// Makes a stack for this MTU and for the driver's checksums, which a stack cannot change. The
    /// addresses, the router, the groups and the sockets stay.
    fn rebuild(&mut self, queues: &mut Queues, mtu: usize) {
        let offload = queues.card().offload;
        if (mtu, offload) != (self.mtu, self.offload) {
            let (addresses, router): (Vec<_>, _) = (self.addresses().collect(), self.router());
            let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(queues.mac)));
            config.random_seed = hw::arch::time::tsc();
            self.stack = stack_above(queues, config, mtu);
            (self.mtu, self.offload) = (mtu, offload);
            self.set_addresses(&addresses);
            self.set_router(router);
        }
    }

    /// Fits the stack to `fresh`, the interface's new driver: the MTU is lowered to the longest
    /// packet that the driver takes.
    pub fn fit(&mut self, fresh: &Handle) {
        if let Some(queues) = fresh.lock().offered_mut::<Queues>() {
            let most = queues.card().max_frame - ETHERNET_HEADER;
            self.rebuild(queues, self.mtu.min(most));
        }
    }

    /// Returns the loopback interface (RFC 1122, 3.2.1.3).
    pub fn loopback(number: u64) -> Interface {
        let mut loopback = Loopback::new(Medium::Ip);
        let stack = Stack::new(Config::new(HardwareAddress::Ip), &mut loopback, now());
        Interface::with(number, "lo".to_string(), Link::Loopback(loopback), stack, Addressing::Static)
    }

    fn with(number: u64, name: String, link: Link, stack: Stack, addressing: Addressing) -> Interface {
        let mut sockets = SocketSet::new(Vec::new());
        let servers = Servers::new(&mut sockets, has_room);
        Interface {
            number,
            name,
            link,
            stack,
            sockets,
            addressing,
            dns: Vec::new(),
            is_up: true,
            hearing: Hearing::empty(),
            groups: Vec::new(),
            mtu: MTU,
            offload: Offload::empty(),
            room: Room::new(),
            servers,
            stack_at: None,
            is_served: false,
            // At first the servers begin to listen.
            is_used: true,
            told: Vec::new(),
            told_at: None,
            told_link: ToldLink { is_up: true, since: None, count: 0 },
        }
    }

    /// Joins a group of hosts: other hosts are told (IGMP, RFC 2236). Whether the card hears the
    /// group is the caller's concern.
    ///
    /// # Errors
    /// A text, if `group` is none, or the interface is in as many groups as it can be.
    pub fn join(&mut self, group: Ipv4Addr) -> Result<(), String> {
        if !group.is_multicast() {
            return Err(format!("{group} is not a group: those are 224.0.0.0 to 239.255.255.255"));
        }
        if self.groups.contains(&group) {
            return Ok(());
        }
        if self.groups.len() >= MAX_GROUPS {
            return Err(format!("{} is in {MAX_GROUPS} groups already", self.name));
        }
        self.groups.push(group);
        self.tell_groups();
        Ok(())
    }

    /// Has the stack join the interface's groups. A stack without an address tells nobody, and
    /// would not do so later.
    fn tell_groups(&mut self) {
        if self.addresses().next().is_some() {
            for group in &self.groups {
                // The stack has room for as many groups, and joins no group twice.
                let _ = self.stack.join_multicast_group(*group);
            }
        }
    }

    /// Leaves a group of hosts. Returns whether the interface was in it.
    pub fn leave(&mut self, group: Ipv4Addr) -> bool {
        let was_in = self.groups.contains(&group);
        self.groups.retain(|other| *other != group);
        // The stack is in the same groups.
        let _ = self.stack.leave_multicast_group(group);
        was_in
    }

    /// Returns the interface's driver.
    pub fn handle(&self) -> Option<&Handle> {
        match &self.link {
            Link::Driver(handle) => Some(handle),
            Link::Loopback(_) => None,
        }
    }

    /// Returns whether the interface can be used now, or when its driver is back.
    pub fn has_future(&self) -> bool {
        self.is_up && self.handle().is_none_or(|handle| handle.lock().is_alive() || life::will_be_back(handle))
    }

    /// Returns the interface's addresses, as they are in the stack.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Cidr> {
        self.stack.ip_addrs().iter().map(|IpCidr::Ipv4(cidr)| *cidr)
    }

    /// Replaces all addresses.
    pub fn set_addresses(&mut self, addresses: &[Ipv4Cidr]) {
        self.stack.update_ip_addrs(|own| {
            own.clear();
            // The stack has room for more addresses than callers pass.
            own.extend(addresses.iter().take(own.capacity()).map(|cidr| IpCidr::Ipv4(*cidr)));
        });
        self.tell_groups();
    }

    /// Sets the router to other networks, or none.
    pub fn set_router(&mut self, router: Option<Ipv4Addr>) {
        let routes = self.stack.routes_mut();
        routes.remove_default_ipv4_route();
        // The stack assumes that routers are hosts. It has room for one route: the old one was just
        // removed.
        if let Some(router) = router.filter(|router| is_host(*router)) {
            let _ = routes.add_default_ipv4_route(router);
        }
    }

    /// Returns the router to other networks.
    pub fn router(&mut self) -> Option<Ipv4Addr> {
        let mut router = None;
        self.stack.routes_mut().update(|routes| {
            router = routes.first().map(|route| match route.via_router {
                IpAddress::Ipv4(router) => router,
            });
        });
        router
    }

    /// Returns how good the way to `host` by this interface is: the prefix length of its network
    /// that contains `host`, or 0 if `host` is behind the router. `None` if the interface does not
    /// lead there.
    pub fn route_to(&mut self, host: Ipv4Addr) -> Option<u8> {
        let shared = self.addresses().filter(|own| own.contains_addr(&host)).map(|own| own.prefix_len()).max();
        let router = self.router();
        let has_address = self.addresses().next().is_some();
        shared.or((router.is_some() && has_address).then_some(0)).filter(|_| self.is_up)
    }

    /// Returns whether `host` is one of the interface's own addresses.
    pub fn is_own(&self, host: Ipv4Addr) -> bool {
        self.addresses().any(|own| own.address() == host)
    }

    /// Turns the interface on or off for a person. An address from DHCP is given up, and asked for
    /// again.
    pub fn set_up(&mut self, up: bool) {
        if self.is_up == up {
            return;
        }
        self.is_up = up;
        if let Addressing::Dhcp(client) = &mut self.addressing {
            client.restart(now());
            self.lose_address();
        }
        wake();
    }

    fn lose_address(&mut self) {
        self.set_addresses(&[]);
        self.set_router(None);
        self.dns.clear();
    }

    /// Lets the stack and the servers do all they can. Returns when the driver is needed.
    pub fn serve(&mut self) -> Result<Wishes, Cause> {
        match &mut self.link {
            Link::Driver(handle) => {
                let handle = handle.clone();
                let mut domain = handle.lock();
                if !domain.is_alive() {
                    return Ok(Wishes::default());
                }
                let Some(queues) = domain.offered_mut::<Queues>() else { return Ok(Wishes::default()) };
                if !self.is_up {
                    return drop_all(queues);
                }
                let wishes = self.serve_driver(queues)?;
                let has_link = queues.has_link();
                drop(domain);
                self.tell_link(has_link);
                self.tell(&handle);
                Ok(wishes)
            }
            Link::Loopback(loopback) => {
                let now = now();
                // Nothing comes from outside. The task looks here for each frame of another
                // interface.
                if !core::mem::take(&mut self.is_used) && self.stack_at.is_none_or(|at| at > now) {
                    return Ok(Wishes::default());
                }
                loop {
                    let changed = self.servers.poll(&mut self.stack, now, loopback, &mut self.sockets);
                    if !self.servers.serve(&mut self.sockets) && !changed {
                        break;
                    }
                }
                self.is_served = true;
                Ok(Wishes::default())
            }
        }
    }

    fn serve_driver(&mut self, queues: &mut super::queues::Queues) -> Result<Wishes, Cause> {
        let (mut cause, mut change) = (None, None);
        let now = now();
        if queues.take_link_up()
            && let Addressing::Dhcp(client) = &mut self.addressing
        {
            client.confirm(now);
        }
        loop {
            let dhcp = match &mut self.addressing {
                Addressing::Dhcp(client) => Some(client),
                Addressing::Static => None,
            };
            let mut device =
                Adapter { mtu: self.mtu, queues, room: &mut self.room, cause: &mut cause, dhcp, change: &mut change };
            self.servers.poll(&mut self.stack, now, &mut device, &mut self.sockets);
            if let Some(cause) = cause {
                return Err(cause);
            }
            if !self.servers.serve(&mut self.sockets) {
                break;
            }
        }
        self.is_served = true;
        // Apply the change from a received answer. Then send a message or end the lease, if that is
        // due.
        while let Addressing::Dhcp(client) = &mut self.addressing {
            if change.is_none() && queues.can_send()? {
                let (frame, due) = client.poll(now);
                change = due;
                if let Some(frame) = &frame {
                    queues.send(frame, None)?;
                }
                if frame.is_none() && change.is_none() {
                    break;
                }
            }
            match change.take() {
                Some(Change::Got(lease)) => {
                    let cidr = Ipv4Cidr::new(lease.address, lease.prefix_len);
                    // An address that stays is left alone, because connections use it.
                    if !self.addresses().eq([cidr]) {
                        self.set_addresses(&[cidr]);
                    }
                    self.set_router(lease.router);
                    self.dns = lease.dns;
                    super::note_address();
                }
                Some(Change::Lost) => self.lose_address(),
                None if !queues.can_send()? => break,
                None => {}
            }
        }
        Ok(Wishes::of(queues)?)
    }

    /// Tells programs of the link, ten times a second at most: a driver can report changes as often
    /// as it likes.
    fn tell_link(&mut self, is_up: bool) {
        const MOST: u32 = 10;
        let told = &mut self.told_link;
        if is_up == told.is_up {
            return;
        }
        if told.since.is_none_or(|since| since.elapsed().as_secs() >= 1) {
            (told.since, told.count) = (Some(Instant::now()), 0);
        }
        if told.count < MOST {
            (told.is_up, told.count) = (is_up, told.count + 1);
            hw::link::tell(&Event::Link { name: self.name.as_str().into(), is_up });
        }
    }

    /// Tells programs and the log of a new address from DHCP, once a second at most: a driver can
    /// cause a new address as often as it likes.
    fn tell(&mut self, driver: &Handle) {
        let is_told = self.addresses().eq(self.told.iter().copied());
        if is_told || self.told_at.is_some_and(|at| at.elapsed().as_secs() < 1) {
            return;
        }
        self.told = self.addresses().collect();
        if let (Some(address), Addressing::Dhcp(_)) = (self.told.first(), &self.addressing) {
            let text = format_args!("{}: address {address} from DHCP", self.name);
            console::say_because_of(&Source::by_itself(&driver.lock().name), Level::Info, text);
            hw::link::tell(&Event::Address { name: self.name.as_str().into(), address: address.address().octets() });
            self.told_at = Some(Instant::now());
        }
    }

    /// Returns when the stack or the DHCP client has something to do without a new frame; `None` if
    /// they have not, or without a driver that runs.
    pub fn poll_at(&mut self) -> Option<Instant> {
        let can_send = self.handle().is_none_or(|handle| handle.lock().is_alive());
        if !self.is_up || !can_send {
            return None;
        }
        if core::mem::take(&mut self.is_served) {
            self.stack_at = self.stack.poll_at(now(), &self.sockets);
        }
        let due = match &self.addressing {
            Addressing::Dhcp(client) => Some(client.due()),
            Addressing::Static => None,
        };
        // The stack does not say when it has to answer a router's query about groups (RFC 2236, 3).
        let in_groups = (!self.groups.is_empty()).then(|| now() + smoltcp::time::Duration::from_secs(1));
        let at = self.stack_at.into_iter().chain(due).chain(in_groups).min();
        at.map(|at| Instant::from_micros(at.total_micros().max(0) as u64))
    }

    /// Returns the counts of frames that went through the interface.
    pub fn counts(&self) -> Counts {
        let counts = |handle: &Handle| handle.lock().offered::<Queues>().map(|queues| queues.all_counts());
        self.handle().and_then(counts).unwrap_or_default()
    }

    /// Returns the last stream that the echo server received to its end.
    pub fn echoed(&self) -> Option<Echoed> {
        self.servers.last_echoed().cloned()
    }
}

/// Returns a stack above a driver's queues that sends IP packets of `mtu` bytes at most, and leaves
/// the checksums to the driver that the driver offers to do.
fn stack_above(queues: &mut Queues, config: Config, mtu: usize) -> Stack {
    let mut room = Room::new();
    let mut adapter = Adapter { mtu, queues, room: &mut room, cause: &mut None, dhcp: None, change: &mut None };
    let mut stack = Stack::new(config, &mut adapter, now());
    // There is room for a few fragmented packets only. A packet whose remaining fragments do not
    // come makes room for others soon.
    stack.set_reassembly_timeout(smoltcp::time::Duration::from_secs(3));
    stack
}

/// Drops the frames that were received by an interface that is turned off.
fn drop_all(queues: &mut super::queues::Queues) -> Result<Wishes, Cause> {
    let mut frame = [0; ringfence_abi::net::FRAME_BYTES];
    while queues.receive(&mut frame)?.is_some() {}
    Ok(Wishes { poll: queues.is_starved()?, ..Wishes::default() })
}
