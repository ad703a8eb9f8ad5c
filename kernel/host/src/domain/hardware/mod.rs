//! What a driver drives: the extension point for kinds of hardware.
//!
//! * [`pci`]: a PCI function
//! * [`fixed`]: a device at fixed ports
//!
//! The third kind is none at all: a driver's device is an `Option`. What all have in common, which
//! is what drivers ask for, is in [`super::device`].

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

/// Regions of registers that a device has at most: base address registers of a PCI function.
pub const MOST_REGIONS: usize = pci_types::MAX_BARS;

/// Registers of a device.
pub enum Region {
    /// They are memory.
    Memory(BarPages),
    /// They are ports.
    Ports(DriverPorts),
}

/// What a driver drives.
///
/// It belongs to one domain, which is what makes it safe to have it do as the driver says. By
/// itself it interrupts and reaches memory only when it was let, and not any more when it is quiet.
pub trait Hardware: Send {
    /// Which one it is.
    fn which(&self) -> Which;

    /// Region `index` of its registers. One that holds anything else is refused.
    fn region(&self, index: usize) -> Result<Region, Refusal>;

    /// Its length in bytes, or in ports.
    fn region_len(&self, index: usize) -> Result<u64, Refusal>;

    /// The lines by which it interrupts, as a set of bits.
    fn lines(&self) -> u64;

    /// Why its driver is polled when these lines have fired.
    fn events(&self, fired: u64) -> Events {
        let _ = fired;
        Events::INTERRUPT
    }

    /// Prepares for [`Hardware::let_through`], once.
    fn prepare_interrupts(&mut self) {}

    /// Lets its interrupts through.
    fn let_through(&self);

    /// Holds them back.
    fn hold_back(&self);

    /// Whether it can reach memory by itself right now.
    fn is_bus_master(&self) -> bool {
        false
    }

    /// Lets it reach memory by itself, or not any more. Hardware that cannot do that refuses.
    fn set_bus_master(&self, on: bool) -> Result<(), Refusal>;

    /// Ends its interrupts, and its reach for memory by itself.
    fn quiet(&self);

    /// Takes away what it was given: interrupts of its own, and memory that it reaches. Whether it
    /// reaches none for certain from now on.
    fn detach(&mut self) -> bool;

    /// The PCI function that it is, if it is one.
    fn function(&self) -> Option<&'static Function> {
        None
    }

    /// What keeps it within its driver's memory, or why nothing does, if it can reach memory at
    /// all.
    fn fence(&self) -> Option<&Result<Fence, Unfenced>> {
        None
    }

    /// The same, to change what it reaches.
    fn fence_mut(&mut self) -> Option<&mut Fence> {
        None
    }

    /// Gives it up to `wanted` interrupts of its own, in place of its line; how many.
    fn give_messages(&mut self, wanted: u8) -> u8 {
        let _ = wanted;
        0
    }

    /// Whether it has interrupts of its own.
    fn has_messages(&self) -> bool {
        false
    }
}

/// Names a piece of hardware that drivers can have.
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

/// Who has a piece of hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody.
    Free,
    /// A domain.
    Driven,
    /// Nobody, and nobody will: it could not be stopped.
    SetAside,
}

/// Hardware that a domain has, or that is set aside.
static TAKEN: Mutex<Vec<(Which, State)>> = Mutex::new(Vec::new());

impl Which {
    /// All that there is in this machine.
    pub fn all() -> impl Iterator<Item = Which> {
        hw::pci::functions().iter().map(Which::Pci).chain(hw::fixed::all().map(Which::Fixed))
    }

    /// Whether `manifest` says that its driver drives it.
    pub fn is_driven_by(self, manifest: &Manifest) -> bool {
        match self {
            Which::Pci(function) => manifest.pci_ids().any(|id| id == function.id),
            Which::Fixed(device) => manifest.fixed_ports().any(|port| port == device.first_port()),
        }
    }

    /// The PCI function that it is, if it is one.
    pub fn function(self) -> Option<&'static Function> {
        match self {
            Which::Pci(function) => Some(function),
            Which::Fixed(_) => None,
        }
    }

    /// Who has it.
    pub fn state(self) -> State {
        TAKEN.lock().iter().find(|(taken, _)| *taken == self).map_or(State::Free, |(_, state)| *state)
    }

    /// Takes it, if no domain has it, and a driver can have it at all. [`Device::stop`] gives it
    /// back. One that `needs_fence` gets none that reaches memory by itself and is not fenced.
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

    /// Gives it back, or sets it aside for good.
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
