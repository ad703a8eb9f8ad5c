//! The hardware that a driver drives: the extension point for kinds of hardware.
//!
//! * [`pci`]: a PCI function
//! * [`fixed`]: a device at fixed ports
//!
//! The third kind is no hardware at all: a driver's device is an `Option`. The operations that
//! drivers ask for, and that all kinds have in common, are in [`super::device`].

use super::device::Device;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use hw::fixed::Fixed;
use hw::iommu::{Fence, Unfenced};
use hw::pci::Function;
use hw::space::device::{BarPages, DriverPorts};
use ringfence_abi::manifest::Manifest;
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Events;
use spin::Mutex;

mod fixed;
mod messages;
mod pci;

/// The maximum number of register regions of a device: the base address registers of a PCI
/// function.
pub const MOST_REGIONS: usize = pci_types::MAX_BARS;

/// A region of a device's registers.
pub enum Region {
    /// The registers are in memory.
    Memory(BarPages),
    /// The registers are I/O ports.
    Ports(DriverPorts),
}

/// A piece of hardware that a driver drives.
///
/// It belongs to one domain, so it is safe to let the driver control it. The hardware interrupts
/// and reaches memory only after it was allowed to, and no longer once it is quiet.
pub trait Hardware: Send {
    /// Returns which hardware this is.
    fn which(&self) -> Which;

    /// Returns region `index` of the registers. A region that holds anything else is refused.
    fn region(&self, index: usize) -> Result<Region, Refusal>;

    /// Returns the region's length in bytes, or in ports.
    fn region_len(&self, index: usize) -> Result<u64, Refusal>;

    /// Returns the lines by which the hardware interrupts, as a set of bits.
    fn lines(&self) -> u64;

    /// Returns the events that the driver is polled for when the lines in `fired` have fired.
    fn events(&self, fired: u64) -> Events {
        let _ = fired;
        Events::INTERRUPT
    }

    /// Prepares for [`Hardware::let_through`], once.
    fn prepare_interrupts(&mut self) {}

    /// Lets the interrupts through.
    fn let_through(&self);

    /// Holds the interrupts back.
    fn hold_back(&self);

    /// Returns whether the hardware can reach memory by itself right now.
    fn is_bus_master(&self) -> bool {
        false
    }

    /// Allows or forbids the hardware to reach memory by itself. Hardware that cannot reach memory
    /// refuses.
    fn set_bus_master(&self, on: bool) -> Result<(), Refusal>;

    /// Stops the interrupts and the access to memory.
    fn quiet(&self);

    /// Takes away the interrupts of its own and the memory that the hardware reaches. Returns
    /// whether it is certain to reach no memory from now on.
    fn detach(&mut self) -> bool;

    /// Returns the PCI function, if the hardware is one.
    fn function(&self) -> Option<&'static Function> {
        None
    }

    /// Returns the fence that confines the hardware to its driver's memory, or the reason why there
    /// is no fence. Returns `None` if the hardware cannot reach memory at all.
    fn fence(&self) -> Option<&Result<Fence, Unfenced>> {
        None
    }

    /// Returns the fence, to change the memory that the hardware reaches.
    fn fence_mut(&mut self) -> Option<&mut Fence> {
        None
    }

    /// Gives the hardware up to `wanted` interrupts of its own, in place of its line. Returns how
    /// many it has now.
    fn give_messages(&mut self, wanted: u8) -> u8 {
        let _ = wanted;
        0
    }

    /// Returns whether the hardware has interrupts of its own.
    fn has_messages(&self) -> bool {
        false
    }
}

/// The name of a piece of hardware that drivers can have.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    /// A PCI function.
    Pci(&'static Function),
    /// A device at fixed ports.
    Fixed(&'static Fixed),
}

impl PartialEq for Which {
    fn eq(&self, other: &Which) -> bool {
        match (self, other) {
            (Which::Pci(own), Which::Pci(other)) => own.address == other.address,
            (Which::Fixed(own), Which::Fixed(other)) => own.first_port() == other.first_port(),
            _ => false,
        }
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Pci(function) => write!(f, "{}", function.address),
            Which::Fixed(device) => write!(f, "{device}"),
        }
    }
}

/// The state of a piece of hardware: whether a domain has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No domain has it.
    Free,
    /// A domain has it.
    Driven,
    /// No domain has it or will get it: it could not be stopped.
    SetAside,
}

/// Hardware that a domain has, or that is set aside.
static TAKEN: Mutex<Vec<(Which, State)>> = Mutex::new(Vec::new());

impl Which {
    /// Returns all hardware in this machine.
    pub fn all() -> impl Iterator<Item = Which> {
        hw::pci::functions().iter().map(Which::Pci).chain(hw::fixed::all().map(Which::Fixed))
    }

    /// Returns whether `manifest` says that its driver drives this hardware.
    pub fn is_driven_by(self, manifest: &Manifest) -> bool {
        match self {
            Which::Pci(function) => manifest.pci_ids().any(|id| id == function.id),
            Which::Fixed(device) => manifest.fixed_ports().any(|port| port == device.first_port()),
        }
    }

    /// Returns the PCI function, if the hardware is one.
    pub fn function(self) -> Option<&'static Function> {
        match self {
            Which::Pci(function) => Some(function),
            Which::Fixed(_) => None,
        }
    }

    /// Returns whether a domain has the hardware.
    pub fn state(self) -> State {
        TAKEN.lock().iter().find(|(taken, _)| *taken == self).map_or(State::Free, |(_, state)| *state)
    }

    /// Takes the hardware, if no domain has it and drivers can have it at all. [`Device::stop`]
    /// gives it back. With `needs_fence`, hardware that reaches memory by itself is taken only if
    /// it is fenced.
    pub fn take(self, needs_fence: bool) -> Option<Device> {
        let mut taken = TAKEN.lock();
        if taken.iter().any(|(other, _)| *other == self) {
            return None;
        }
        let hardware: Box<dyn Hardware> = match self {
            Which::Pci(function) => Box::new(pci::Pci::take(function, needs_fence)?),
            Which::Fixed(device) => Box::new(fixed::AtPorts::take(device)),
        };
        taken.push((self, State::Driven));
        Some(Device::new(hardware))
    }

    /// Gives the hardware back, or sets it aside for good.
    pub(super) fn give_back(self, is_stopped: bool) {
        let mut taken = TAKEN.lock();
        match is_stopped {
            true => taken.retain(|(other, _)| *other != self),
            false => {
                let own = taken.iter_mut().filter(|(other, _)| *other == self);
                own.for_each(|(_, state)| *state = State::SetAside);
            }
        }
    }
}
