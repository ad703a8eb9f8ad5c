//! The PCI function that a domain drives: it has this one and no other.

use crate::arch::interrupts;
use crate::pci::{self, Function};
use alloc::vec::Vec;
use pci_types::{CommandRegister, PciAddress};
use ringfence_core::extent::Extent;
use spin::Mutex;

/// Functions that a domain has.
static TAKEN: Mutex<Vec<PciAddress>> = Mutex::new(Vec::new());

/// A PCI function that a domain has. [`Device::release`] gives it back.
pub struct Device {
    function: &'static Function,
    /// Whether its interrupts reach the driver.
    pub interrupts: bool,
    /// Its BARs that are mapped: where the driver sees them, or the first port.
    pub mapped: [Option<u64>; pci_types::MAX_BARS],
    /// Where the next BAR goes, from the start of the slot's MMIO region.
    pub next: u64,
}

impl Device {
    /// Takes `function`, if no domain has it.
    pub fn take(function: &'static Function) -> Option<Device> {
        let mut taken = TAKEN.lock();
        if taken.contains(&function.address) {
            return None;
        }
        taken.push(function.address);
        // Memory and I/O decoding on; no DMA and no interrupts until the driver asks.
        function.change_command(
            CommandRegister::MEMORY_ENABLE | CommandRegister::IO_ENABLE | CommandRegister::INTERRUPT_DISABLE,
            CommandRegister::BUS_MASTER_ENABLE,
        );
        Some(Device { function, interrupts: false, mapped: [None; pci_types::MAX_BARS], next: 0 })
    }

    /// The function.
    pub fn function(&self) -> &'static Function {
        self.function
    }

    /// Its interrupt line, if its interrupts are to reach the driver.
    pub fn active_line(&self) -> Option<u8> {
        self.function.line.filter(|_| self.interrupts)
    }

    /// Lets its interrupts through.
    ///
    /// What holds back a device whose driver has not acknowledged is the device's own interrupt-disable bit, not the
    /// line's mask: other devices may share the line.
    pub fn unmask(&self) {
        self.function.change_command(CommandRegister::empty(), CommandRegister::INTERRUPT_DISABLE);
        if let Some(line) = self.function.line {
            interrupts::set_masked(line, false);
        }
    }

    /// Holds its interrupts back.
    pub fn mask(&self) {
        self.function.change_command(CommandRegister::INTERRUPT_DISABLE, CommandRegister::empty());
    }

    /// Stops its interrupts and its DMA and gives it back. From here on it writes to no memory.
    pub fn release(self) {
        self.function.change_command(CommandRegister::INTERRUPT_DISABLE, CommandRegister::BUS_MASTER_ENABLE);
        TAKEN.lock().retain(|address| *address != self.function.address);
    }
}

/// Whether a domain has the function at `address`.
pub fn is_taken(address: PciAddress) -> bool {
    TAKEN.lock().contains(&address)
}

/// Whether the pages of `bar`, a BAR of `function`, hold registers of another function too.
pub fn shares_pages(function: &Function, bar: Extent) -> bool {
    pci::functions()
        .iter()
        .filter(|other| other.address != function.address)
        .flat_map(|other| other.bars.iter().flatten())
        .filter_map(pci::memory_extent)
        .any(|(start, len_bytes)| bar.overlaps(Extent::new(start, len_bytes)))
}
