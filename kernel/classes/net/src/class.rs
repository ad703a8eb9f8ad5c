//! The class of network cards: acts when a driver offers an interface, takes the place of another
//! driver, or goes.

use super::interface::{Addressing, Interface, Link};
use super::queues::Queues;
use super::{INTERFACES, arp_request, next_number, note_address, wake};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use host::domain::offer::{Class, Offer};
use host::domain::{Domain, Handle};
use host::poll;
use hw::memory;
use ringfence_abi::manifest::Kind;
use ringfence_abi::net::{Hearing, NetInfo};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Events;
use ringfence_core::frames::Card;
use ringfence_core::packet;
use ringfence_core::passed::Content;
use ringfence_core::servers;
use smoltcp::wire::{EthernetAddress, HardwareAddress};
use zerocopy::FromBytes;

/// The most interfaces that have drivers: the sockets of each take a megabyte of the kernel's heap.
const MAX_INTERFACES: usize = 4;
/// Memory of the kernel's heap that an interface takes besides its servers' sockets.
pub(super) const SOCKETS_BYTES: usize = 256 << 10;

/// The class of network cards.
pub struct Nics;

/// The class's only value, for the kernel's table of classes.
pub static CLASS: Nics = Nics;

impl Class for Nics {
    fn kind(&self) -> Kind {
        Kind::Nic
    }

    fn info_bytes(&self) -> usize {
        size_of::<NetInfo>()
    }

    fn check(&self, info: &[u8]) -> Result<(), Refusal> {
        let info = NetInfo::read_from_bytes(info).map_err(|_| Refusal::Invalid)?;
        // A group address is no interface's own (IEEE 802.3, 3.2.3).
        let is_wrong = info.mac[0] & 1 != 0 || info.mac == [0; 6];
        let is_wrong = is_wrong || Card::new(&info).is_none() || info.reserved != 0;
        if is_wrong || Hearing::from_bits(info.can_hear).is_none() { Err(Refusal::Invalid) } else { Ok(()) }
    }

    fn offer(&self, domain: &mut Domain, info: &[u8]) -> Result<Box<dyn Offer>, Refusal> {
        let info = NetInfo::read_from_bytes(info).map_err(|_| Refusal::Invalid)?;
        has_room(&domain.name)?;
        Ok(Box::new(Queues::new(domain, info)?))
    }

    fn full(&self) -> &'static str {
        const { assert!(MAX_INTERFACES == 4) };
        "there can be 4 network interfaces (four at most)"
    }

    fn noun(&self) -> &'static str {
        "frame"
    }

    fn content_words(&self, content: &Content) -> String {
        match content {
            Content::Frame(frame) => packet::describe(frame),
            Content::Request(_) => String::new(),
        }
    }

    fn attach(&self, handle: &Handle) {
        let Some(mac) = handle.lock().offered::<Queues>().map(|queues| queues.mac) else { return };
        let mut interfaces = INTERFACES.lock();
        let name = (0..).map(|number| format!("eth{number}")).find(|name| interfaces.iter().all(|i| i.name != *name));
        interfaces.extend(Interface::new(next_number(), name.unwrap_or_default(), handle, mac));
        drop(interfaces);
        wake();
    }

    /// Keeps the interface with its addresses, routes and sockets.
    fn replace(&self, dead: &Handle, fresh: &Handle) {
        let Some(mac) = fresh.lock().offered::<Queues>().map(|queues| queues.mac) else { return self.detach(dead) };
        let is_its = |interface: &&mut Interface| interface.handle().is_some_and(|handle| Arc::ptr_eq(handle, dead));
        let mut hears_more = false;
        if let Some(interface) = INTERFACES.lock().iter_mut().find(is_its) {
            interface.link = Link::Driver(fresh.clone());
            let (mut old, mut new) = (dead.lock(), fresh.lock());
            if let (Some(old), Some(new)) = (old.offered_mut::<Queues>(), new.offered_mut::<Queues>()) {
                new.take_over(old);
                hears_more = new.hear(interface.hearing, &interface.groups);
                // Other hosts would send to the old driver's Ethernet address for a while, so the
                // new one is announced.
                if new.mac != old.mac {
                    for address in interface.addresses() {
                        // If the queue is full of the old driver's frames, the announcement is left
                        // out.
                        let _ = new.send(&arp_request(mac, address.address(), address.address()), None);
                    }
                }
            }
            drop((old, new));
            let mac = EthernetAddress(mac);
            interface.stack.set_hardware_addr(HardwareAddress::Ethernet(mac));
            interface.fit(fresh);
            if let Addressing::Dhcp(client) = &mut interface.addressing {
                client.set_mac(mac);
            }
        }
        if hears_more {
            poll::poll(fresh, Events::HEARING);
        }
        wake();
    }

    fn detach(&self, handle: &Handle) {
        INTERFACES.lock().retain(|interface| interface.handle().is_none_or(|other| !Arc::ptr_eq(other, handle)));
        note_address();
    }

    /// Does nothing: no task waits for a network driver without a time limit.
    fn wake_waiting(&self) {}
}

/// Checks whether there is room for an interface of the driver called `name`. An interface that a
/// driver of this name has does not count, because the driver that asks is its successor.
fn has_room(name: &str) -> Result<(), Refusal> {
    // If the lock is held, the driver is running: it was not ended, and has no successor.
    let is_other = |handle: &Handle| handle.try_lock().is_none_or(|domain| domain.name != name);
    let interfaces = INTERFACES.lock();
    let others = interfaces.iter().filter_map(Interface::handle).filter(|handle| is_other(handle)).count();
    let is_successor = interfaces.iter().filter_map(Interface::handle).count() > others;
    match others {
        MAX_INTERFACES.. => Err(Refusal::Full),
        _ if !is_successor && !memory::has_room(servers::BYTES + SOCKETS_BYTES) => Err(Refusal::NoMemory),
        _ => Ok(()),
    }
}
