//! Interrupts that a device sends as messages (MSI-X: PCI 3.0, 6.8.2). They need an IOMMU, which
//! checks which device a message comes from.
//!
//! **No driver writes an entry of the MSI-X table**, which says where a message goes: the pages
//! that hold the table are mapped into no slot.

use hw::arch::{interrupts, line};
use hw::iommu::Fence;
use hw::memory::registers::Registers;
use hw::pci::Function;
use ringfence_abi::upcall::MAX_VECTORS;
use ringfence_core::pci::MsiX;

/// Bits of the message control, which is the upper half of the capability's first word.
const ENABLE: u32 = 1 << 31;
const MASK_ALL: u32 = 1 << 30;
/// Offsets of the words of a table entry.
const ADDRESS: u64 = 0;
const ADDRESS_HIGH: u64 = 4;
const DATA: u64 = 8;
const ENTRY_BYTES: u64 = 16;
/// The maximum number of messages that a device is given.
const MOST: usize = MAX_VECTORS as usize;

/// The messages that a device may send.
pub struct Messages {
    first: u8,
    count: u8,
}

impl Messages {
    /// Gives `function` up to `wanted` messages, all masked, and turns its line off. Returns `None`
    /// if the function, its fence or the machine supports none.
    pub fn new(function: &Function, fence: &Fence, wanted: u8) -> Option<Messages> {
        let capability = MsiX::find(|offset| function.read(offset))?;
        let count = wanted.min(MOST as u8).min(u8::try_from(capability.entries).unwrap_or(u8::MAX));
        let (bar, offset) = capability.table;
        function.registers(bar, offset.into(), u64::from(capability.entries) * ENTRY_BYTES)?;
        let entry =
            |index: u8| function.registers(bar, u64::from(offset) + u64::from(index) * ENTRY_BYTES, ENTRY_BYTES);
        let entries = (0..count).map(entry).collect::<Option<heapless::Vec<Registers, MOST>>>()?;
        let first = interrupts::take_lines(count)?;
        let messages = Messages { first, count };
        control(function, MASK_ALL | ENABLE);
        for (line, entry) in (first..).zip(&entries) {
            let Some(address) = fence.route(line - line::WIRES, interrupts::vector_of(line)) else {
                messages.remove(function, fence);
                return None;
            };
            interrupts::set_message(line, *entry);
            interrupts::set_masked(line, true);
            entry.write32(ADDRESS, address);
            entry.write32(ADDRESS_HIGH, 0);
            entry.write32(DATA, 0);
        }
        control(function, ENABLE);
        Some(messages)
    }

    /// Returns the number of messages.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Returns the lines of the messages, as a set of bits.
    pub fn lines(&self) -> u64 {
        ((1 << self.count) - 1) << self.first
    }

    /// Returns the device's messages that are in a set of lines; bit 0 is its first message.
    pub fn in_lines(&self, lines: u64) -> u64 {
        (lines & self.lines()) >> self.first
    }

    /// Takes the messages away: all are masked, and their routes end. MSI-X stays on until the line
    /// is needed ([`turn_off`]): QEMU's e1000e ends QEMU if MSI-X is off when a deferred message
    /// comes.
    pub fn remove(self, function: &Function, fence: &Fence) {
        control(function, MASK_ALL | ENABLE);
        for line in (self.first..).take(self.count.into()) {
            fence.end_route(line - line::WIRES);
        }
        interrupts::give_back_lines(self.lines());
    }
}

fn control(function: &Function, bits: u32) {
    // Of the device's messages, the IOMMU passes only the messages that the device was given.
    function.control_messages(ENABLE | MASK_ALL, bits);
}

/// Turns MSI-X off, so that `function` interrupts by its line.
pub fn turn_off(function: &Function) {
    if let Some(MsiX { at, .. }) = MsiX::find(|offset| function.read(offset))
        && function.read(at) & ENABLE != 0
    {
        control(function, 0);
    }
}
