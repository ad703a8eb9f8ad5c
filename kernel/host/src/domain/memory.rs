//! Pointers that drivers pass. Such a pointer is only an allegation, and is opened here and nowhere
//! else.

use super::Domain;
use super::cause::Cause;
use alloc::vec;
use alloc::vec::Vec;
use hw::symbols::map;
use ringfence_abi::layout::{self, Region};
use ringfence_core::extent::Extent;
use x86_64::structures::paging::PageTableFlags as Flags;

/// A range of memory that a driver says is its own.
#[derive(Debug, Clone, Copy)]
pub struct Allegation(Extent);

impl Allegation {
    /// Takes an address and a length from a driver, without any check.
    pub const fn new(address: u64, len_bytes: u64) -> Allegation {
        Allegation(Extent::new(address, len_bytes))
    }

    /// Returns the alleged length in bytes.
    pub const fn len_bytes(self) -> u64 {
        self.0.len_bytes
    }

    /// Returns the first `len_bytes` bytes of the range, or all of it if it is shorter.
    pub fn first(self, len_bytes: u64) -> Allegation {
        Allegation::new(self.0.start, self.0.len_bytes.min(len_bytes))
    }

    /// Copies the range in, if all of it is mapped in the driver's own slot. Otherwise the driver
    /// is at fault.
    ///
    /// The caller must bound the length first. The copy is the kernel's own: later writes by the
    /// driver or its device do not change it.
    pub fn copy_in(self, domain: &Domain) -> Result<Vec<u8>, Cause> {
        let bad = Cause::BadPointer { address: self.0.start, len_bytes: self.0.len_bytes };
        if !domain.slot_extent().encloses(self.0) {
            return Err(bad);
        }
        let mut copy = vec![0; self.0.len_bytes as usize];
        if domain.space.read(self.0.start, &mut copy) { Ok(copy) } else { Err(bad) }
    }
}

/// Describes the memory at an address as seen from `domain`, in words for a person.
pub fn describe(domain: &Domain, address: u64) -> &'static str {
    const FIRST_PAGE: u64 = 0x1000;
    if address < FIRST_PAGE {
        return "null";
    }
    match (address >> 47, layout::slot_of(address)) {
        (0, None) => "unmapped",
        (0, Some(slot)) if slot == domain.space.slot() => own(domain, address),
        (0, Some(slot)) if hw::space::is_taken(slot) => "another domain's slot",
        (0, Some(_)) => "unmapped",
        (0x1_ffff, _) => map::describe(address),
        _ => "non-canonical",
    }
}

/// Describes the memory at an address in the domain's own slot.
fn own(domain: &Domain, address: u64) -> &'static str {
    let offset = address % layout::SLOT_SIZE;
    let Some((_, flags)) = domain.space.translate(address) else {
        let stack_bottom = layout::STACK_TOP - u64::from(domain.manifest.stack_bytes);
        let below_stack = (layout::STACK_TOP - layout::STACK_MAX - (1 << 20)..stack_bottom).contains(&offset);
        return if below_stack { "guard below own stack" } else { "own slot, unmapped" };
    };
    match layout::region_of(address) {
        Region::Image => match (flags.contains(Flags::WRITABLE), flags.contains(Flags::NO_EXECUTE)) {
            (false, false) => "own text",
            (false, true) => "own read-only data",
            (true, _) => "own data",
        },
        Region::Stubs => "own service stubs",
        Region::Stack => "own stack",
        Region::Mailbox => "own mailbox",
        Region::Queues => "own queues",
        Region::Heap => "own heap",
        Region::Dma => "own DMA memory",
        Region::Registers => "own device's registers",
        Region::None => "own slot",
    }
}
