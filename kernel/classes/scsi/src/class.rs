//! The class of SCSI hosts: the kernel's work when a driver offers one, takes the place of another
//! driver, or goes.

use super::queues::{Queues, Scsi};
use super::{HOSTS, Host, host_of, queues, scan};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use host::domain::offer::{Class, Offer};
use host::domain::{Domain, Handle};
use host::requests::{Protocol, Server};
use ringfence_abi::manifest::Kind;
use ringfence_abi::scsi::{CAN_ALL, REQUESTS, ScsiInfo};
use ringfence_abi::service::Refusal;
use ringfence_core::passed::Content;
use zerocopy::FromBytes;

/// The most targets, and the most logical units of a target.
const MAX_UNITS: u32 = 256;

/// The class of SCSI hosts.
pub struct Hosts;

/// The class's only value, for the kernel's table of classes.
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

    fn noun(&self) -> &'static str {
        Scsi::NAMES[0]
    }

    fn content_words(&self, content: &Content) -> String {
        queues::content_words(content)
    }

    fn result_words(&self, result: u32, detail: &[u8]) -> String {
        queues::result_words(result, detail)
    }

    /// Adds the host, and searches for its units.
    fn attach(&self, handle: &Handle) {
        let Some(server) = Server::new::<Scsi>(handle) else { return };
        let host = Arc::new(Host::new(server));
        HOSTS.lock().push(host.clone());
        scan::look_at(host);
    }

    /// Goes on with the commands that wait for the driver.
    fn replace(&self, dead: &Handle, fresh: &Handle) {
        let Some(host) = host_of(dead) else { return };
        host.replace::<Scsi>(fresh);
        // If the old driver had lost units, the new one is asked. A scan that was cut short begins
        // again.
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
