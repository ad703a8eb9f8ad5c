//! The class of network cards: what is done when a driver offers an interface, comes in place of
//! another one, or goes.

use super::interface::{Addressing, Interface, Link};
use super::queues::Queues;
use super::{INTERFACES, arp_request, next_number, note_address, wake};
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use host::domain::offer::{Class, Offer};
use host::domain::{Domain, Handle};
use host::poll;
use hw::memory;
use ringfence_abi::manifest::Kind;
use ringfence_abi::net::{Hearing, NetInfo};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Events;
use ringfence_core::servers;
use smoltcp::wire::{EthernetAddress, HardwareAddress};
use zerocopy::FromBytes;

/// Most interfaces that have drivers: each one's sockets take a megabyte of the kernel's heap.
const MAX_INTERFACES: usize = 4;
/// What an interface takes of the kernel's heap beside its servers' sockets.
pub(super) const SOCKETS_BYTES: usize = 256 << 10;

/// Network cards.
pub struct Nics;

/// The one row of the kernel's table of classes.
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
        // A group address is nobody's (IEEE 802.3, 3.2.3).
        let is_wrong = info.mac[0] & 1 != 0 || info.mac == [0; 6];
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

    fn attach(&self, handle: &Handle) {
        let Some(mac) = handle.lock().offered::<Queues>().map(|queues| queues.mac) else { return };
        let mut interfaces = INTERFACES.lock();
        let name = (0..).map(|number| format!("eth{number}")).find(|name| interfaces.iter().all(|i| i.name != *name));
        interfaces.extend(Interface::new(next_number(), name.unwrap_or_default(), handle, mac));
        drop(interfaces);
        wake();
    }

    /// Address, routes and sockets stay.
    fn replace(&self, dead: &Handle, fresh: &Handle) {
        let Some(mac) = fresh.lock().offered::<Queues>().map(|queues| queues.mac) else { return self.detach(dead) };
        let is_its = |interface: &&mut Interface| interface.handle().is_some_and(|handle| Arc::ptr_eq(handle, dead));
        let mut hears_more = false;
        if let Some(interface) = INTERFACES.lock().iter_mut().find(is_its) {
            interface.link = Link::Driver(fresh.clone());
            let (mut old, mut new) = (dead.lock(), fresh.lock());
            if let (Some(old), Some(new)) = (old.offered_mut::<Queues>(), new.offered_mut::<Queues>()) {
                new.take_over(old);
                hears_more = new.hear(interface.hearing);
                // Others know the address by the old one's, if that had another, and would for a
                // while.
                if new.mac != old.mac {
                    for address in interface.addresses() {
                        // It is as empty as its queue: there is room.
                        let _ = new.send(&arp_request(mac, address.address(), address.address()));
                    }
                }
            }
            drop((old, new));
            let mac = EthernetAddress(mac);
            interface.stack.set_hardware_addr(HardwareAddress::Ethernet(mac));
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

    /// Nobody waits for a driver without a limit of time.
    fn wake_waiting(&self) {}
}

/// Whether the driver called `name` can have an interface. One of that name does not count: it is
/// its successor that asks.
fn has_room(name: &str) -> Result<(), Refusal> {
    // A driver that runs is locked by who runs it, and is no successor.
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
