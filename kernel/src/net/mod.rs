//! The network stack (smoltcp) above the drivers, and the small servers that make it testable.
//!
//! * [`client`]: ping, and a TCP client that checks an echo server
//! * [`queues`]: frames to and from a driver
//!
//! The servers are in `core/servers.rs`: echo (7), discard (9) and character generator (19).
//!
//! One task looks after all interfaces: it lets the stack take what drivers delivered and hands what the stack wants
//! to send to them, a batch at a time, so that one crossing moves many frames.

use crate::console::Source;
use crate::domain::Handle;
use crate::domain::fault::Cause;
use crate::limits::TRANSMIT_MS;
use crate::poll::{self, Polled};
use crate::task::wait_in;
use crate::{console, module};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use embassy_futures::select::select;
use embassy_futures::yield_now;
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use log::Level;
use queues::{Counts, Queues};
use ringfence_abi::net::{FRAME_BYTES, MAX_FRAME};
use ringfence_abi::upcall::Events;
use ringfence_core::servers::{Echoed, Servers, is_harmless, is_host};
use smoltcp::iface::{Config, Interface as Stack, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::dhcpv4;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, HardwareAddress,
    IpCidr, Ipv4Address,
};
use spin::Mutex;

pub mod client;
pub mod queues;

static INTERFACES: Mutex<Vec<Interface>> = Mutex::new(Vec::new());
static NEXT_NUMBER: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
static WORK: AtomicWaker = AtomicWaker::new();
/// Set when there may be something to do, so that no wake is lost.
static PENDING: core::sync::atomic::AtomicBool = core::sync::atomic::AtomicBool::new(false);

/// A network interface: a driver and the stack above it.
struct Interface {
    /// No other has had it.
    number: u64,
    name: String,
    handle: Handle,
    stack: Stack,
    sockets: SocketSet<'static>,
    dhcp: SocketHandle,
    servers: Servers,
    /// Who waits for a lease.
    on_lease: Vec<Waker>,
    /// The address that was last told of, and when.
    told: Option<Ipv4Address>,
    told_at: Option<Instant>,
}

fn now() -> StackInstant {
    StackInstant::from_micros(Instant::now().as_micros() as i64)
}

/// Lets the network task look whether there is something to do.
pub fn wake() {
    // Who has it set already has woken the task, which has not looked yet.
    if !PENDING.swap(true, core::sync::atomic::Ordering::AcqRel) {
        WORK.wake();
    }
}

/// Length of the shortest frame without its check sequence, in bytes (IEEE 802.3).
pub const SHORTEST_FRAME: usize = 60;

/// Most interfaces: each one's sockets take a megabyte of the kernel's heap.
const MAX_INTERFACES: usize = 4;

/// Whether the driver called `name` can have an interface. One of that name does not count: it is its successor that asks.
pub fn has_room(name: &str) -> bool {
    // A driver that runs is locked by who runs it, and is no successor.
    let others = |interface: &&Interface| interface.handle.try_lock().is_none_or(|domain| domain.name != name);
    INTERFACES.lock().iter().filter(others).count() < MAX_INTERFACES
}

/// Puts a stack above a driver that offers a network interface.
pub fn attach(handle: &Handle) {
    let Some(mac) = handle.lock().net.as_ref().map(|queues| queues.mac) else { return };
    let mut domain = handle.lock();
    let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
    config.random_seed = crate::arch::time::tsc();
    let Some(queues) = domain.net.as_mut() else { return };
    let mut cause = None;
    let stack = Stack::new(config, &mut Adapter { queues, cause: &mut cause }, now());
    drop(domain);
    let mut sockets = SocketSet::new(Vec::new());
    let dhcp = sockets.add(dhcpv4::Socket::new());
    let servers = Servers::new(&mut sockets);
    let mut interfaces = INTERFACES.lock();
    let name = (0..).map(|number| format!("eth{number}")).find(|name| interfaces.iter().all(|i| i.name != *name));
    let name = name.unwrap_or_default();
    interfaces.push(Interface {
        number: NEXT_NUMBER.fetch_add(1, core::sync::atomic::Ordering::Relaxed),
        name,
        handle: handle.clone(),
        stack,
        sockets,
        dhcp,
        servers,
        on_lease: Vec::new(),
        told: None,
        told_at: None,
    });
    drop(interfaces);
    wake();
}

/// Puts the stack of a driver that was ended above the one that came in its place: address, routes and sockets stay.
pub fn replace(dead: &Handle, fresh: &Handle) {
    let Some(mac) = fresh.lock().net.as_ref().map(|queues| queues.mac) else { return detach(dead) };
    if let Some(interface) = INTERFACES.lock().iter_mut().find(|interface| Arc::ptr_eq(&interface.handle, dead)) {
        interface.handle = fresh.clone();
        if let (Some(old), Some(new)) = (&mut dead.lock().net, &mut fresh.lock().net) {
            new.take_over(old);
            // Others know the address by the old one's, if that had another, and would for a while.
            if new.mac != old.mac
                && let Some(address) = interface.stack.ipv4_addr()
            {
                // It is as empty as its queue: there is room.
                let _ = new.send(&arp_request(mac, address, address));
            }
        }
        interface.stack.set_hardware_addr(HardwareAddress::Ethernet(EthernetAddress(mac)));
    }
    wake();
}

/// An ARP request for `target` by `sender`, who has `mac` (RFC 826). If both are the same, everybody learns who has that now: an
/// announcement (RFC 5227, 3).
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

/// Takes the stack away from a driver.
pub fn detach(handle: &Handle) {
    let mut interfaces = INTERFACES.lock();
    for interface in interfaces.iter_mut().filter(|interface| Arc::ptr_eq(&interface.handle, handle)) {
        interface.on_lease.drain(..).for_each(Waker::wake);
    }
    interfaces.retain(|interface| !Arc::ptr_eq(&interface.handle, handle));
}

/// The task that looks after all interfaces.
pub async fn run() {
    loop {
        let mut next = None;
        let count = INTERFACES.lock().len();
        for index in 0..count {
            let began = poll::free_clock();
            // The lock is not held while a driver runs: its frames come back through here.
            let (handle, unsent, deadline, at) = {
                let mut interfaces = INTERFACES.lock();
                let Some(interface) = interfaces.get_mut(index) else { break };
                let (unsent, deadline) = match interface.serve() {
                    Ok(served) => served,
                    Err(cause) => {
                        let handle = interface.handle.clone();
                        drop(interfaces);
                        module::condemn(&handle, cause);
                        continue;
                    }
                };
                let alive = interface.handle.lock().is_alive();
                let at = interface.stack.poll_at(now(), &interface.sockets);
                let at = at.map(|at| Instant::from_micros(at.total_micros().max(0) as u64));
                let at = at.into_iter().chain(deadline).min().filter(|_| alive);
                (interface.handle.clone(), unsent, deadline, at)
            };
            // What the stack does with its frames is done for it.
            poll::charge_work(&handle, began);
            let overdue = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= Instant::now());
            // Only a driver that has just had its chance is to blame.
            let had_its_turn = (unsent > 0 || overdue(deadline)) && poll::poll(&handle, Events::QUEUE) == Polled::Now;
            if had_its_turn && overdue(deadline) {
                let again = handle.lock().net.as_mut().map(|queues| queues.deadline_ns());
                let cause = match again {
                    Some(Ok(Some(at))) if overdue(Some(Instant::from_micros(at / 1000))) => {
                        Some(Cause::Stuck { what: "frame", limit_ms: TRANSMIT_MS.get() })
                    }
                    Some(Err(cause)) => Some(cause),
                    _ => None,
                };
                if let Some(cause) = cause {
                    module::condemn(&handle, cause);
                }
            }
            // One that takes long keeps nobody but the next from its turn.
            if index + 1 < count {
                yield_now().await;
            }
            if let Some(at) = at {
                next = Some(next.map_or(at, |next: Instant| next.min(at)));
            }
        }
        // Driver and stack may have an answer for each other for ever: others have their turn in between.
        yield_now().await;
        let work = poll_fn(|context| {
            WORK.register(context.waker());
            match PENDING.swap(false, core::sync::atomic::Ordering::AcqRel) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        match next {
            // What is due and was not done just now waits for the driver: it is tried again at the next tick.
            Some(at) => {
                select(work, Timer::at(at.max(Instant::now() + Duration::from_millis(1)))).await;
            }
            None => work.await,
        }
    }
}

impl Interface {
    /// Lets the stack and the servers do all they can; returns how many frames wait for the driver, and when it
    /// is taken for stuck if it sends none of those it has.
    fn serve(&mut self) -> Result<(usize, Option<Instant>), Cause> {
        let mut domain = self.handle.lock();
        if !domain.is_alive() {
            return Ok((0, None));
        }
        let Some(queues) = domain.net.as_mut() else { return Ok((0, None)) };
        let mut cause = None;
        loop {
            let mut device = Adapter { queues, cause: &mut cause };
            let changed = self.servers.poll(&mut self.stack, now(), &mut device, &mut self.sockets);
            if let Some(cause) = cause {
                return Err(cause);
            }
            let served = self.servers.serve(&mut self.sockets);
            if !changed && !served {
                break;
            }
        }
        if let Some(event) = self.sockets.get_mut::<dhcpv4::Socket>(self.dhcp).poll() {
            self.stack.update_ip_addrs(|addresses| addresses.clear());
            self.stack.routes_mut().remove_default_ipv4_route();
            if let dhcpv4::Event::Configured(config) = event
                && is_host(config.address.address())
            {
                let address = config.address;
                // There is room for one address and one route: both tables were just emptied.
                self.stack.update_ip_addrs(|addresses| {
                    let _ = addresses.push(IpCidr::Ipv4(address));
                });
                // The stack takes for granted that routers are hosts.
                if let Some(router) = config.router.filter(|router| is_host(*router)) {
                    let _ = self.stack.routes_mut().add_default_ipv4_route(router);
                }
                for waker in self.on_lease.drain(..) {
                    waker.wake();
                }
            }
        }
        let deadline = queues.deadline_ns()?.map(|at| Instant::from_micros(at / 1000));
        let served = (queues.take_unsent(), deadline);
        let address = self.stack.ipv4_addr();
        // A driver can have it be another one as often as it likes: once a second is told of.
        let is_due = address != self.told && self.told_at.is_none_or(|at| at.elapsed().as_secs() >= 1);
        if is_due {
            self.told = address;
            if let Some(address) = self.address() {
                let text = format_args!("{}: address {address} from DHCP", self.name);
                console::say_because_of(&Source::by_itself(&domain.name), Level::Info, text);
                self.told_at = Some(Instant::now());
            }
        }
        Ok(served)
    }

    fn address(&self) -> Option<String> {
        self.stack.ip_addrs().first().map(ToString::to_string)
    }
}

/// A driver's queues as smoltcp sees them.
struct Adapter<'a> {
    queues: &'a mut Queues,
    /// What the driver did wrong, if it did.
    cause: &'a mut Option<Cause>,
}

/// A received frame: a copy that the driver cannot change any more.
struct Received {
    frame: [u8; FRAME_BYTES],
    len_bytes: usize,
}

struct Sending<'a> {
    queues: &'a mut Queues,
    cause: &'a mut Option<Cause>,
}

impl phy::Device for Adapter<'_> {
    type RxToken<'a>
        = Received
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, _now: StackInstant) -> Option<(Received, Sending<'_>)> {
        // An answer may be due at once: only take a frame if one can be sent.
        self.transmit(_now)?;
        let mut received = Received { frame: [0; FRAME_BYTES], len_bytes: 0 };
        loop {
            match self.queues.receive(&mut received.frame) {
                Ok(len_bytes) => received.len_bytes = len_bytes?,
                Err(cause) => {
                    *self.cause = Some(cause);
                    return None;
                }
            }
            if received.frame.get(..received.len_bytes).is_some_and(is_harmless) {
                return Some((received, Sending { queues: self.queues, cause: self.cause }));
            }
        }
    }

    fn transmit(&mut self, _now: StackInstant) -> Option<Sending<'_>> {
        match self.queues.can_send() {
            Ok(true) => Some(Sending { queues: self.queues, cause: self.cause }),
            Ok(false) => None,
            Err(cause) => {
                *self.cause = Some(cause);
                None
            }
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MAX_FRAME;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame.get(..self.len_bytes).unwrap_or(&[]))
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len_bytes: usize, f: F) -> R {
        let mut frame = [0; FRAME_BYTES];
        // smoltcp keeps to the size that `capabilities` names.
        let frame = &mut frame[..len_bytes.min(MAX_FRAME)];
        let result = f(frame);
        if let Err(cause) = self.queues.send(frame) {
            *self.cause = Some(cause);
        }
        result
    }
}

/// What is known of an interface.
pub struct Status {
    /// Its name.
    pub name: String,
    /// The driver's name.
    pub driver: String,
    /// Whether that runs.
    pub is_alive: bool,
    /// Ethernet address.
    pub mac: String,
    /// IPv4 address with prefix length, once there is one.
    pub address: Option<String>,
    /// Default router.
    pub router: Option<String>,
    /// Frames.
    pub counts: Counts,
    /// The last stream that its echo server took in to its end.
    pub echoed: Option<Echoed>,
}

/// What is known of all interfaces.
pub fn status() -> Vec<Status> {
    let describe = |interface: &mut Interface| {
        let domain = interface.handle.lock();
        let mut router = None;
        interface.stack.routes_mut().update(|routes| router = routes.first().map(|route| route.via_router.to_string()));
        Status {
            name: interface.name.clone(),
            driver: domain.name.clone(),
            is_alive: domain.is_alive(),
            mac: domain.net.as_ref().map(|queues| EthernetAddress(queues.mac).to_string()).unwrap_or_default(),
            address: interface.address(),
            router,
            counts: domain.net.as_ref().map(|queues| queues.counts).unwrap_or_default(),
            echoed: interface.servers.last_echoed().cloned(),
        }
    };
    INTERFACES.lock().iter_mut().map(describe).collect()
}

/// The driver of the first interface.
pub fn first_driver() -> Option<Handle> {
    INTERFACES.lock().first().map(|interface| interface.handle.clone())
}

/// Waits until the first interface has an address; `false` if there is no interface or `limit` has passed.
pub async fn wait_for_address(limit: Duration) -> bool {
    let leased = poll_fn(|context| {
        let mut interfaces = INTERFACES.lock();
        match interfaces.first_mut() {
            None => Poll::Ready(false),
            Some(interface) if interface.address().is_some() => Poll::Ready(true),
            Some(interface) => {
                wait_in(&mut interface.on_lease, context.waker());
                Poll::Pending
            }
        }
    });
    with_timeout(limit, leased).await.unwrap_or(false)
}
