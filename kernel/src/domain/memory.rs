//! A pointer that a driver passed is an allegation: it is opened here or nowhere.

use super::Domain;
use super::fault::Cause;
use crate::arch::entry_area;
use alloc::vec;
use alloc::vec::Vec;
use ringfence_core::extent::Extent;

/// Memory that a driver says is its own.
#[derive(Debug, Clone, Copy)]
pub struct Allegation(Extent);

impl Allegation {
    /// What a driver said: nothing is checked yet.
    pub const fn new(address: u64, len_bytes: u64) -> Allegation {
        Allegation(Extent::new(address, len_bytes))
    }

    /// Copies it in, if all of it is mapped in the driver's own slot; otherwise the driver is at fault.
    ///
    /// The caller bounds the length first. The copy is the kernel's: what the driver or its device write afterwards
    /// does not change it.
    pub fn copy_in(self, domain: &Domain) -> Result<Vec<u8>, Cause> {
        let bad = Cause::BadPointer { address: self.0.start, len_bytes: self.0.len_bytes };
        if !domain.slot_extent().encloses(self.0) {
            return Err(bad);
        }
        let mut copy = vec![0; self.0.len_bytes as usize];
        if domain.space.read(self.0.start, &mut copy) { Ok(copy) } else { Err(bad) }
    }
}

/// What lies at an address, seen from `domain`: in words for a person.
pub fn describe(domain: &Domain, address: u64) -> &'static str {
    use ringfence_abi::layout;
    const FIRST_PAGE: u64 = 0x1000;
    if address < FIRST_PAGE {
        return "null";
    }
    if address >> 47 != 0 && address >> 47 != 0x1_ffff {
        return "non-canonical";
    }
    if (entry_area::BASE..entry_area::BASE + entry_area::LEN_BYTES).contains(&address) {
        return match address & !0xfff {
            entry_area::STACKS => "entry stacks",
            entry_area::LDT => "capability table (LDT)",
            page if page >= entry_area::IO_BITMAP => "I/O bitmap",
            page if page >= entry_area::CONSTANTS => "descriptor tables",
            _ => "entry text",
        };
    }
    if address >> 47 != 0 {
        return crate::symbols::kernel_region(address);
    }
    match layout::slot_of(address) {
        None => "unmapped",
        Some(slot) if slot != domain.space.slot() && super::space::is_taken(slot) => "another domain's slot",
        Some(slot) if slot != domain.space.slot() => "unmapped",
        Some(_) => match domain.space.translate(address) {
            Some((_, flags)) => {
                use x86_64::structures::paging::PageTableFlags as Flags;
                match (flags.contains(Flags::WRITABLE), flags.contains(Flags::NO_EXECUTE)) {
                    (false, false) => "own text",
                    (false, true) => "own read-only data",
                    (true, _) => "own data",
                }
            }
            None => {
                let stack_bottom = layout::STACK_TOP - u64::from(domain.manifest.stack_bytes);
                let offset = address % layout::SLOT_SIZE;
                if (layout::STACK_TOP - layout::STACK_MAX - (1 << 20)..stack_bottom).contains(&offset) {
                    "guard below own stack"
                } else {
                    "own slot, unmapped"
                }
            }
        },
    }
}
