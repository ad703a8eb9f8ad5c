//! A device at fixed I/O ports. It has its ports and its line, and cannot reach memory by itself.

use super::{Hardware, Region, Which};
use hw::arch::interrupts;
use hw::fixed::Fixed;
use hw::space::device::DriverPorts;
use ringfence_abi::service::Refusal;

/// A device at fixed ports that a domain has.
pub struct AtPorts(&'static Fixed);

impl AtPorts {
    /// Takes `device`, which no other domain has.
    pub fn take(device: &'static Fixed) -> AtPorts {
        device.confine();
        AtPorts(device)
    }

    fn ports(&self, index: usize) -> Result<DriverPorts, Refusal> {
        DriverPorts::of_fixed(self.0, index).ok_or(Refusal::NotFound)
    }
}

impl Hardware for AtPorts {
    fn which(&self) -> Which {
        Which::Fixed(self.0)
    }

    fn region(&self, index: usize) -> Result<Region, Refusal> {
        self.ports(index).map(Region::Ports)
    }

    fn region_len(&self, index: usize) -> Result<u64, Refusal> {
        Ok(self.ports(index)?.ports().count.into())
    }

    fn lines(&self) -> u64 {
        1 << self.0.line
    }

    fn let_through(&self) {
        interrupts::release(self.lines());
    }

    /// Masks the line: no other device uses it.
    fn hold_back(&self) {
        interrupts::hold(self.lines());
    }

    fn set_bus_master(&self, _: bool) -> Result<(), Refusal> {
        Err(Refusal::NotFound)
    }

    fn quiet(&self) {
        self.hold_back();
    }

    fn detach(&mut self) -> bool {
        true
    }
}
