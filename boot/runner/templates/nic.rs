//! NAME: a network card. It has no device yet: each frame to send is dropped, and none comes.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use ringfence_sdk::class::Device;
use ringfence_sdk::net::{NetInfo, Nic, NicDriver, Queues};
use ringfence_sdk::{Events, Kind, Manifest, Reply, Result, driver};

driver!(NicDriver<TYPE>, Manifest::new("NAME", env!("CARGO_PKG_VERSION")).kind(Kind::Nic).restart());

/// An Ethernet address for local use. A card has its own.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

struct TYPE;

impl Device<Nic> for TYPE {
    /// Finds the card and resets it: `registers!`, `Registers::map`, `device::wait_until`.
    fn init() -> Result<TYPE> {
        log::info!("here");
        Ok(TYPE)
    }

    fn info(&self) -> NetInfo {
        NetInfo::new(MAC)
    }

    /// Starts the card: `device::enable_dma`, the empty frames, `device::enable_interrupts`.
    fn start(&mut self, _queues: &mut Queues) -> Result<()> {
        Ok(())
    }

    fn poll(&mut self, _events: Events, queues: &mut Queues) -> Reply {
        while let Some(frame) = queues.take_transmit() {
            queues.give_transmitted(frame);
        }
        Reply::ACKNOWLEDGED
    }

    /// Stops the card.
    fn exit(&mut self) {}
}
