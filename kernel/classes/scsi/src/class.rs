//! The class of SCSI hosts: what is done when a driver offers one, comes in place of another one,
//! or goes.

use super::queues::{Queues, Scsi};
use super::{HOSTS, Host, host_of, scan};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use host::domain::offer::{Class, Offer};
use host::domain::{Domain, Handle};
use host::requests::Server;
use ringfence_abi::manifest::Kind;
use ringfence_abi::scsi::{CAN_ALL, REQUESTS, ScsiInfo};
use ringfence_abi::service::Refusal;
use zerocopy::FromBytes;

/// Most targets, and logical units a target.
const MAX_UNITS: u32 = 256;

/// SCSI hosts.
pub struct Hosts;

/// The one row of the kernel's table of classes.
pub static CLASS: Hosts = Hosts;

impl Class for Hosts {
    fn kind(&self) -> Kind {
        Kind::Scsi
    }

    fn info_bytes(&self) -> usize {
        size_of::<ScsiInfo>()
    }

    fn check(&self, info: &[u8]) -> Result<(), Refusal> {
        let info = ScsiInfo::read_from_bytes(info).map_err(|_| Refusal::Invalid)?;
        let within = |value: u32, most: u32| (1..=most).contains(&value);
        if !within(info.max_targets, MAX_UNITS)
            || !within(info.max_luns, MAX_UNITS)
            || !within(info.queue_depth, REQUESTS as u32)
            || info.functions & !CAN_ALL != 0
        {
            return Err(Refusal::Invalid);
        }
        Ok(())
    }

    fn offer(&self, domain: &mut Domain, info: &[u8]) -> Result<Box<dyn Offer>, Refusal> {
        let info = ScsiInfo::read_from_bytes(info).map_err(|_| Refusal::Invalid)?;
        Ok(Box::new(Queues::new(domain, info)?))
    }

    /// Its units are looked for.
    fn attach(&self, handle: &Handle) {
        let Some(server) = Server::new::<Scsi>(handle) else { return };
        let host = Arc::new(Host::new(server));
        HOSTS.lock().push(host.clone());
        scan::look_at(host);
    }

    /// What waits for the driver goes on.
    fn replace(&self, dead: &Handle, fresh: &Handle) {
        let Some(host) = host_of(dead) else { return };
        host.replace::<Scsi>(fresh);
        // A scan that its end cut short begins again.
        if host.lost_some.swap(false, Ordering::AcqRel) {
            host.in_doubt.store(true, Ordering::Release);
        }
        if host.is_in_doubt() || !host.scanned.load(Ordering::Acquire) {
            scan::look_at(host);
        }
    }

    fn detach(&self, handle: &Handle) {
        let Some(host) = host_of(handle) else { return };
        host.set_gone();
        HOSTS.lock().retain(|other| !Arc::ptr_eq(other, &host));
        scan::forget(&host);
    }

    fn wake_waiting(&self) {
        HOSTS.lock().iter().for_each(|host| host.wake());
    }
}
