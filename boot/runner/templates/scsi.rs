//! NAME: a SCSI adapter. It has no device yet: there is nobody at its only target.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use ringfence_sdk::class::Device;
use ringfence_sdk::scsi::{HOST_NO_DEVICE, Outcome, Queues, Scsi, ScsiDriver, ScsiInfo};
use ringfence_sdk::{Events, Kind, Manifest, Reply, Result, driver};

driver!(ScsiDriver<TYPE>, Manifest::new("NAME", env!("CARGO_PKG_VERSION")).kind(Kind::Scsi).restart());

struct TYPE;

impl Device<Scsi> for TYPE {
    /// Finds the adapter and resets it: `registers!`, `Registers::map`, `device::wait_until`.
    fn init() -> Result<TYPE> {
        log::info!("here");
        Ok(TYPE)
    }

    fn info(&self) -> ScsiInfo {
        ScsiInfo { max_targets: 1, max_luns: 1, queue_depth: 1, functions: 0 }
    }

    /// A driver with a device gives it the request here, and completes the request when an
    /// interrupt says that it is done.
    fn poll(&mut self, _events: Events, queues: &mut Queues) -> Reply {
        while let Some((ticket, _request)) = queues.take() {
            queues.complete(ticket, &Outcome::failed(HOST_NO_DEVICE));
        }
        Reply::ACKNOWLEDGED
    }

    /// Stops the adapter.
    fn exit(&mut self) {}
}
