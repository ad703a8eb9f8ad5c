//! The network stack (smoltcp) above the drivers, and small servers with which it can be tested.
//!
//! * [`class`]: the entry in the kernel's table of classes
//! * [`interface`]: a driver, the stack above it, and its address
//! * [`adapter`]: a driver's queues as the stack sees them; [`queues`]: frames to and from a driver
//! * [`client`]: ping, name look-ups, and a TCP client that checks an echo server
//! * [`stream`]: TCP connections for other parts of the kernel
//!
//! The servers are in `core/servers.rs`: echo (7), discard (9) and character generator (19). The
//! DHCP client is in `core/dhcp.rs`.
//!
//! One task serves all interfaces. It passes received frames to the stack and the stack's frames to
//! the drivers, a batch at a time, so that one crossing moves many frames.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::net::Ipv4Addr;
use core::task::{Poll, Waker};
use embassy_futures::select::select;
use embassy_futures::yield_now;
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use host::domain::cause::Cause;
use host::domain::turn::free_clock;
use host::domain::{Handle, end};
use host::poll::{self, Polled};
use hw::memory;
use hw::task::wait_in;
pub use interface::MTU;
use interface::{Addressing, Interface, MAX_ADDRESSES, MIN_MTU, Wishes};
use queues::{Card, Counts, Queues};
use ringfence_abi::net::Hearing;
use ringfence_abi::upcall::Events;
use ringfence_core::limits::TRANSMIT_MS;
use ringfence_core::servers::{self, Echoed, is_host};
use ringfence_link::event;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Ipv4Address,
    Ipv4Cidr,
};
use spin::{Mutex, MutexGuard};

mod adapter;
mod class;
pub mod client;
mod interface;
pub mod queues;
pub mod stream;

static INTERFACES: Mutex<Vec<Interface>> = Mutex::new(Vec::new());
pub use class::CLASS;

static NEXT_NUMBER: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
static WORK: AtomicWaker = AtomicWaker::new();
/// Set when there may be work, so that no wake is lost.
static PENDING: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);
/// Wakers of the tasks that wait for an address, or for the end of an interface.
static ON_ADDRESS: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

fn now() -> StackInstant {
    StackInstant::from_micros(Instant::now().as_micros() as i64)
}

fn next_number() -> u64 {
    NEXT_NUMBER.fetch_add(1, core::sync::atomic::Ordering::Relaxed)
}

/// Wakes the tasks that wait for an address: an interface got one, lost it, or is gone.
fn note_address() {
    core::mem::take(&mut *ON_ADDRESS.lock()).into_iter().for_each(Waker::wake);
}

/// Makes the network task look whether there is something to do.
#[inline(always)]
pub fn wake() {
    if !is_woken() {
        wake_task();
    }
}

/// Returns whether the task was woken, and has not looked yet.
#[inline(always)]
pub fn is_woken() -> bool {
    PENDING.load(core::sync::atomic::Ordering::Acquire)
}

#[cold]
fn wake_task() {
    if !PENDING.swap(true, core::sync::atomic::Ordering::AcqRel) {
        WORK.wake();
    }
}

/// Length of the shortest frame without its check sequence, in bytes (IEEE 802.3).
pub const SHORTEST_FRAME: usize = 60;

/// Returns an ARP request for `target` by `sender`, whose Ethernet address is `mac` (RFC 826). If
/// `sender` and `target` are the same, the request announces to all hosts that `mac` has the
/// address now (RFC 5227, 3).
pub fn arp_request(mac: [u8; 6], sender: Ipv4Address, target: Ipv4Address) -> [u8; SHORTEST_FRAME] {
    let mac = EthernetAddress(mac);
    let mut bytes = [0; SHORTEST_FRAME];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    EthernetRepr { src_addr: mac, dst_addr: EthernetAddress::BROADCAST, ethertype: EthernetProtocol::Arp }
        .emit(&mut frame);
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: sender,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    request.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

/// Serves all interfaces, for ever; this is the network task.
pub async fn run() {
    loop {
        let mut next = None;
        let count = INTERFACES.lock().len();
        for index in 0..count {
            if let Some(at) = step(index) {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
            }
            // An interface that takes long delays other tasks only by its own turn.
            if index + 1 < count {
                yield_now().await;
            }
        }
        // Driver and stack may answer each other for ever: other tasks have their turn in between.
        // The driver has often collected an answer by then, and nobody asks for the time of the
        // next work.
        yield_now().await;
        if take_pending() {
            continue;
        }
        let next = INTERFACES.lock().iter_mut().filter_map(Interface::poll_at).chain(next).min();
        let work = poll_fn(|context| {
            WORK.register(context.waker());
            if take_pending() { Poll::Ready(()) } else { Poll::Pending }
        });
        match next {
            // Work that is due and was not done just now waits for the driver. It is tried again at
            // the next tick.
            Some(at) => {
                select(work, Timer::at(at.max(Instant::now() + Duration::from_millis(1)))).await;
            }
            None => work.await,
        }
    }
}

/// Returns whether there may be work since the last call.
fn take_pending() -> bool {
    PENDING.swap(false, core::sync::atomic::Ordering::AcqRel)
}

/// Lets an interface do all it can. Returns when its driver is needed.
fn step(index: usize) -> Option<Instant> {
    let began = free_clock();
    // The lock must not be held while a driver runs, because its frames come back through here.
    let (handle, wishes) = {
        let mut interfaces = INTERFACES.lock();
        let interface = interfaces.get_mut(index)?;
        let handle = interface.handle().cloned();
        let wishes = match (interface.serve(), &handle) {
            (Ok(wishes), _) => wishes,
            (Err(cause), Some(handle)) => {
                let handle = handle.clone();
                drop(interfaces);
                end::condemn(&handle, cause);
                return None;
            }
            // The loopback interface has no driver that could lie.
            (Err(_), None) => return None,
        };
        (handle?, wishes)
    };
    // The stack's work on a driver's frames is charged to the driver.
    poll::charge_work(&handle, began);
    if !handle.lock().is_alive() {
        return None;
    }
    let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
    let Wishes { mut deadline, mut look_again, .. } = wishes;
    // A driver is to blame only if it was polled just now.
    if (wishes.poll || is_due(look_again) || is_due(deadline)) && poll(&handle) == Polled::Now {
        if is_due(deadline) {
            blame(&handle);
        }
        // If the driver has left something in its queues, this task is woken, and finds lies too.
        if let Some(queues) = handle.lock().offered_mut::<Queues>()
            && let Ok(wishes) = Wishes::of(queues)
        {
            (deadline, look_again) = (wishes.deadline, wishes.look_again);
        }
    }
    deadline.into_iter().chain(look_again).min()
}

/// Polls a driver, so that it looks into its queues.
fn poll(handle: &Handle) -> Polled {
    if let Some(queues) = handle.lock().offered_mut::<Queues>() {
        queues.before_poll(hw::arch::time::uptime_ns());
    }
    poll::poll(handle, Events::QUEUE)
}

/// Ends a driver if it has left a frame unsent for too long.
fn blame(handle: &Handle) {
    let again = {
        let mut domain = handle.lock();
        let stands = domain.stands();
        if stands && let Some(queues) = domain.offered_mut::<Queues>() {
            queues.excuse();
        }
        domain.offered_mut::<Queues>().map(|queues| queues.deadline_ns())
    };
    let cause = match again {
        Some(Ok(Some(at))) if Instant::from_micros(at / 1000) <= Instant::now() => {
            Some(Cause::Stuck { what: "frame", limit_ms: TRANSMIT_MS.get() })
        }
        Some(Err(cause)) => Some(cause.into()),
        _ => None,
    };
    if let Some(cause) = cause {
        end::condemn(handle, cause);
    }
}

/// The status of an interface.
pub struct Status {
    /// Its name.
    pub name: String,
    /// The driver's name; empty for the loopback interface.
    pub driver: String,
    /// Whether the driver runs.
    pub is_alive: bool,
    /// Whether a person has turned the interface on.
    pub is_up: bool,
    /// Whether the card has a link, as far as the driver has said.
    pub has_link: bool,
    /// The frames that the card is to receive besides frames to itself and to all.
    pub hearing: Hearing,
    /// The groups of hosts that it is in.
    pub groups: Vec<Ipv4Addr>,
    /// The longest IP packet that it sends, in bytes.
    pub mtu: usize,
    /// Ethernet address.
    pub mac: String,
    /// IPv4 addresses with prefix lengths.
    pub addresses: Vec<String>,
    /// Whether a person has chosen the addresses.
    pub is_static: bool,
    /// Default router.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// The abilities of the card.
    pub card: Option<Card>,
    /// Counts of frames.
    pub counts: Counts,
    /// The last stream that the echo server received to its end.
    pub echoed: Option<Echoed>,
}

impl Status {
    /// Returns the status in the form for programs.
    pub fn event(&self) -> event::Interface<'static> {
        event::Interface {
            name: self.name.clone().into(),
            driver: self.driver.clone().into(),
            addresses: self.addresses.iter().map(|address| address.clone().into()).collect(),
            router: self.router.map(|router| router.octets()),
            is_up: self.is_up,
            has_link: self.has_link,
            mtu: self.mtu as u32,
            sent: self.counts.sent(),
            received: self.counts.received(),
            errors: self.counts.errors,
        }
    }
}

/// Returns the status of all interfaces.
pub fn status() -> Vec<Status> {
    let describe = |interface: &mut Interface| {
        let counts = interface.counts();
        let (mut driver, mut is_alive, mut has_link, mut mac) = (String::new(), true, true, String::new());
        let mut card = None;
        if let Some(handle) = interface.handle() {
            let domain = handle.lock();
            (driver, is_alive) = (domain.name.clone(), domain.is_alive());
            let queues = domain.offered::<Queues>();
            has_link = queues.is_none_or(|queues| queues.has_link());
            card = queues.map(|queues| queues.card());
            mac = queues.map(|queues| EthernetAddress(queues.mac).to_string()).unwrap_or_default();
        }
        Status {
            name: interface.name.clone(),
            driver,
            is_alive,
            is_up: interface.is_up,
            has_link,
            hearing: interface.hearing,
            groups: interface.groups.clone(),
            mtu: interface.mtu,
            mac,
            addresses: interface.addresses().map(|cidr| cidr.to_string()).collect(),
            is_static: matches!(interface.addressing, Addressing::Static),
            router: interface.router(),
            dns: interface.dns.clone(),
            card,
            counts,
            echoed: interface.echoed(),
        }
    };
    INTERFACES.lock().iter_mut().map(describe).collect()
}

/// Returns the driver of the first interface that has one.
pub fn first_driver() -> Option<Handle> {
    INTERFACES.lock().iter().find_map(|interface| interface.handle().cloned())
}

/// Longest wait for an address: three of a DHCP client's messages may be lost.
pub const LEASE_LIMIT: Duration = Duration::from_secs(15);

/// Waits until `found` returns a value. Waits for at most [`LEASE_LIMIT`], and only as long as an
/// interface may still get an address. The error says why there is no value.
async fn wait_for<T>(mut found: impl FnMut(&mut Vec<Interface>) -> Option<T>) -> Result<T, String> {
    let outcome = poll_fn(|context| {
        let mut interfaces = INTERFACES.lock();
        if let Some(found) = found(&mut interfaces) {
            return Poll::Ready(Ok(found));
        }
        let drivers = || interfaces.iter().filter(|interface| interface.handle().is_some());
        let Some(first) = drivers().next() else {
            return Poll::Ready(Err("there is no network interface".to_string()));
        };
        if drivers().all(|interface| !interface.is_up) {
            return Poll::Ready(Err(format!("{} is down", first.name)));
        }
        if drivers().all(|interface| !interface.has_future()) {
            return Poll::Ready(Err(format!("{}'s driver was ended, and stays so", first.name)));
        }
        let waits = |interface: &Interface| {
            matches!(interface.addressing, Addressing::Dhcp(_)) && interface.addresses().next().is_none()
        };
        if !drivers().any(|interface| interface.has_future() && waits(interface)) {
            return Poll::Ready(Err("no interface leads there".to_string()));
        }
        wait_in(&mut ON_ADDRESS.lock(), context.waker());
        Poll::Pending
    });
    with_timeout(LEASE_LIMIT, outcome)
        .await
        .unwrap_or_else(|_| Err(format!("there was no address from DHCP within {} s", LEASE_LIMIT.as_secs())))
}

/// Waits until an interface has an address. The error says why no interface has an address.
pub async fn wait_for_address() -> Result<(), String> {
    let has_address = |interface: &Interface| interface.handle().is_some() && interface.addresses().next().is_some();
    wait_for(|interfaces| interfaces.iter().any(has_address).then_some(())).await
}

/// Returns the number of the interface that leads to `host`. If there is none, waits as long as one
/// may come. The host's own addresses, and the addresses of 127.0.0.0/8, are behind the loopback
/// interface.
async fn route(host: Ipv4Addr) -> Result<u64, String> {
    wait_for(|interfaces| {
        if host.is_loopback() || interfaces.iter().any(|interface| interface.is_own(host)) {
            return Some(loopback(interfaces, host));
        }
        let ways = interfaces.iter_mut().filter(|interface| interface.handle().is_some() && interface.has_future());
        let ways = ways.filter_map(|interface| Some((interface.route_to(host)?, interface.number)));
        // Among equally good interfaces, the one with the lowest number.
        ways.min_by_key(|(shared, number)| (u8::MAX - shared, *number)).map(|(_, number)| Ok(number))
    })
    .await?
}

/// Returns the number of the loopback interface, which is made when it is first needed. `host`
/// becomes one of its addresses, and so do as many of the other interfaces' addresses as it can
/// have.
fn loopback(interfaces: &mut Vec<Interface>, host: Ipv4Addr) -> Result<u64, String> {
    let wanted = Ipv4Cidr::new(host, if host.is_loopback() { 8 } else { 32 });
    let alone = |own: Ipv4Cidr| Ipv4Cidr::new(own.address(), 32);
    let own: Vec<Ipv4Cidr> = interfaces
        .iter()
        .filter(|interface| interface.handle().is_some())
        .flat_map(Interface::addresses)
        .map(alone)
        .collect();
    let place = match interfaces.iter().position(|interface| interface.handle().is_none()) {
        Some(place) => place,
        None => {
            if !memory::has_room(servers::BYTES + class::SOCKETS_BYTES) {
                return Err("out of memory: there is no room for the loopback interface right now".into());
            }
            interfaces.push(Interface::loopback(next_number()));
            interfaces.len() - 1
        }
    };
    let interface = interfaces.get_mut(place).ok_or("there is no loopback interface")?;
    if !interface.addresses().any(|own| own == wanted) {
        let mut all: Vec<Ipv4Cidr> = [wanted, Ipv4Cidr::new(Ipv4Address::LOCALHOST, 8)].to_vec();
        all.extend(own);
        all.dedup();
        interface.set_addresses(&all);
    }
    Ok(interface.number)
}

/// Finds the interface called `name`, which has a driver.
fn named(name: &str) -> Result<InterfaceGuard, String> {
    let interfaces = INTERFACES.lock();
    let place = interfaces.iter().position(|interface| interface.name == name && interface.handle().is_some());
    let place = place.ok_or_else(|| format!("there is no interface '{name}'; 'ip' lists them"))?;
    Ok(InterfaceGuard { interfaces, place })
}

/// An interface that was found, with the lock of all interfaces.
struct InterfaceGuard {
    interfaces: MutexGuard<'static, Vec<Interface>>,
    place: usize,
}

impl InterfaceGuard {
    fn with<T>(&mut self, then: impl FnOnce(&mut Interface) -> Result<T, String>) -> Result<T, String> {
        then(self.interfaces.get_mut(self.place).ok_or("it is gone")?)
    }
}

/// Gives an interface an address that a person has chosen. From then on no DHCP server is asked for
/// one.
pub fn add_address(name: &str, address: Ipv4Cidr, router: Option<Ipv4Addr>) -> Result<(), String> {
    named(name)?.with(|interface| {
        if !is_host(address.address()) || address.prefix_len() == 0 {
            return Err(format!("{address} is no host's address"));
        }
        if router.is_some_and(|router| !is_host(router) || !address.contains_addr(&router)) {
            return Err(format!("the router is not in {}", address.network()));
        }
        let mut addresses: Vec<Ipv4Cidr> = match interface.addressing {
            Addressing::Static => interface.addresses().collect(),
            Addressing::Dhcp(_) => Vec::new(),
        };
        if addresses.iter().any(|own| own.address() == address.address()) {
            return Err(format!("{name} has {} already", address.address()));
        }
        if addresses.len() >= MAX_ADDRESSES {
            return Err(format!("{name} has {MAX_ADDRESSES} addresses, which is the most"));
        }
        if matches!(interface.addressing, Addressing::Dhcp(_)) {
            interface.addressing = Addressing::Static;
            interface.set_router(None);
            interface.dns.clear();
        }
        addresses.push(address);
        interface.set_addresses(&addresses);
        if router.is_some() {
            interface.set_router(router);
        }
        Ok(())
    })?;
    note_address();
    wake();
    Ok(())
}

/// Takes an address away. When no address is left, a DHCP server is asked for one.
pub fn remove_address(name: &str, address: Ipv4Addr) -> Result<(), String> {
    named(name)?.with(|interface| {
        let rest: Vec<Ipv4Cidr> = interface.addresses().filter(|own| own.address() != address).collect();
        if rest.len() == interface.addresses().count() {
            return Err(format!("{name} does not have {address}"));
        }
        interface.set_addresses(&rest);
        let router = interface.router();
        if router.is_some_and(|router| !rest.iter().any(|own| own.contains_addr(&router))) {
            interface.set_router(None);
        }
        if rest.is_empty() {
            let mac =
                interface.handle().and_then(|handle| Some(handle.lock().offered::<Queues>()?.mac)).unwrap_or_default();
            let seed = hw::arch::time::tsc() as u32;
            interface.addressing =
                Addressing::Dhcp(ringfence_core::dhcp::Client::new(EthernetAddress(mac), seed, now()));
        }
        Ok(())
    })?;
    note_address();
    wake();
    Ok(())
}

/// Makes the card of an interface receive frames besides those to itself and to all, or stop
/// receiving them.
pub fn set_hearing(name: &str, what: Hearing, on: bool) -> Result<(), String> {
    change_hearing(name, |interface, queues| {
        let can = !on || queues.can_hear.contains(what);
        if can {
            interface.hearing.set(what, on);
        }
        Ok(can)
    })
}

/// Makes an interface join a group of hosts, and has its card hear the group.
pub fn join(name: &str, group: Ipv4Addr) -> Result<(), String> {
    change_hearing(name, |interface, queues| match queues.hears_groups_by() {
        Some(_) => interface.join(group).map(|()| true),
        None => Ok(false),
    })
}

/// Makes an interface leave a group of hosts.
pub fn leave(name: &str, group: Ipv4Addr) -> Result<(), String> {
    let was_in = |interface: &mut Interface, _: &Queues| match interface.leave(group) {
        true => Ok(true),
        false => Err(format!("{name} is not in {group}")),
    };
    change_hearing(name, was_in)
}

/// Changes the set of frames that an interface's card is to receive, and tells the driver. `change`
/// returns whether the card can do it.
fn change_hearing(
    name: &str,
    change: impl FnOnce(&mut Interface, &Queues) -> Result<bool, String>,
) -> Result<(), String> {
    let handle = named(name)?.with(|interface| {
        let handle = interface.handle().cloned().ok_or("it has no driver")?;
        let mut domain = handle.lock();
        let driver = domain.name.clone();
        let queues = domain.offered_mut::<Queues>().ok_or("its driver was ended")?;
        if !change(interface, queues)? {
            return Err(format!("{driver} cannot have its card hear that"));
        }
        queues.hear(interface.hearing, &interface.groups);
        drop(domain);
        Ok::<Handle, String>(handle)
    })?;
    poll::poll(&handle, Events::HEARING);
    wake();
    Ok(())
}

/// Sets the longest IP packet that an interface sends, in bytes.
pub fn set_mtu(name: &str, mtu: usize) -> Result<(), String> {
    if mtu < MIN_MTU {
        return Err(format!("the MTU is {MIN_MTU} bytes at least"));
    }
    named(name)?.with(|interface| {
        let handle = interface.handle().cloned().ok_or("it has no driver")?;
        let mut domain = handle.lock();
        let driver = domain.name.clone();
        let queues = domain.offered_mut::<Queues>().ok_or("its driver was ended")?;
        interface.set_mtu(queues, mtu).map_err(|most| format!("{driver} takes packets of {most} bytes at most"))
    })?;
    wake();
    Ok(())
}

/// Turns an interface on or off.
pub fn set_up(name: &str, up: bool) -> Result<(), String> {
    named(name)?.with(|interface| {
        interface.set_up(up);
        Ok(())
    })?;
    note_address();
    Ok(())
}
