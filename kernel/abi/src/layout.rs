//! The layout of a domain's slot: one top-level page-table entry (512 GiB), the same in ring 0 and
//! in ring 1.
//!
//! Every region is followed by unmapped addresses, so that running off its end faults. The first
//! pages of the regions differ in the lower bits of their numbers: QEMU's TCG keeps translated
//! addresses by these bits, and 256 of them until it has seen more, so that pages that are used
//! together would drive each other out.

/// Number of domains that can exist at once, and so the number of slots.
pub const MAX_DOMAINS: usize = 64;
/// Bytes of address space from one slot to the next: the range that one entry of the top-level page
/// table covers.
pub const SLOT_SIZE: u64 = 0x80_0000_0000;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

/// Stubs through which the module calls services: written by the kernel, executable and read-only
/// for the driver.
pub const STUBS: u64 = 0x0022_0000;
/// Bytes from one service's stub to the next. The stub behind the last service ends an upcall.
pub const STUB_BYTES: u64 = 32;
/// The module's segments, as linked from address 0.
pub const IMAGE: u64 = 0x0043_0000;
/// Largest extent of a module's segments, in bytes.
pub const IMAGE_MAX: u64 = 0x0100_0000;
/// First address above the stack, which grows down from here.
pub const STACK_TOP: u64 = 0x0180_0000;
/// Largest stack, in bytes.
pub const STACK_MAX: u64 = 0x0010_0000;
/// One page through which the kernel hands text to the driver ([`crate::upcall::COMMAND`]).
pub const MAILBOX: u64 = 0x01f0_0000;
/// Queues shared with the kernel.
pub const QUEUE: u64 = 0x0206_0000;
/// Queues of the disk that the driver uses, shared with the kernel, and the data for their
/// requests.
pub const USED: u64 = 0x0300_0000;
/// Heap, which grows up from here.
pub const HEAP: u64 = 0x0408_0000;
/// Largest heap, in bytes.
pub const HEAP_MAX: u64 = 0x0400_0000;
/// DMA memory.
pub const DMA: u64 = 0x100c_0000;
/// Largest extent of DMA memory, in bytes.
pub const DMA_MAX: u64 = 0x1000_0000;
/// Memory BARs of the domain's device.
pub const MMIO: u64 = 0x201a_0000;
/// Largest extent of mapped BARs, in bytes.
pub const MMIO_MAX: u64 = 0x1000_0000;

/// Returns the first address of slot `slot`. Slot 0 begins at 512 GiB, so that address 0 and its
/// neighbours lie in no slot.
pub const fn slot_base(slot: usize) -> u64 {
    (slot as u64 + 1) * SLOT_SIZE
}

/// Returns the slot that `address` lies in, if any.
pub const fn slot_of(address: u64) -> Option<usize> {
    let index = address / SLOT_SIZE;
    if index >= 1 && index <= MAX_DOMAINS as u64 { Some(index as usize - 1) } else { None }
}

/// A region of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// [`STUBS`]
    Stubs,
    /// [`IMAGE`]
    Image,
    /// Below [`STACK_TOP`]
    Stack,
    /// [`MAILBOX`]
    Mailbox,
    /// [`QUEUE`] and [`USED`]
    Queues,
    /// [`HEAP`]
    Heap,
    /// [`DMA`]
    Dma,
    /// [`MMIO`]
    Registers,
    /// Outside of all regions.
    None,
}

/// Returns the region that an address lies in, within its slot.
pub const fn region_of(address: u64) -> Region {
    match address % SLOT_SIZE {
        STUBS..IMAGE => Region::Stubs,
        IMAGE..0x0143_0000 => Region::Image,
        0x0170_0000..STACK_TOP => Region::Stack,
        MAILBOX..QUEUE => Region::Mailbox,
        QUEUE..HEAP => Region::Queues,
        HEAP..0x0808_0000 => Region::Heap,
        DMA..MMIO => Region::Dma,
        MMIO..0x301a_0000 => Region::Registers,
        _ => Region::None,
    }
}

// The regions do not overlap, and the literals that patterns need agree with the constants.
const _: () = {
    assert!(IMAGE + IMAGE_MAX == 0x0143_0000);
    assert!(STACK_TOP - STACK_MAX == 0x0170_0000);
    assert!(IMAGE + IMAGE_MAX < STACK_TOP - STACK_MAX);
    assert!(HEAP + HEAP_MAX == 0x0808_0000);
    assert!(HEAP + HEAP_MAX <= DMA);
    assert!(DMA + DMA_MAX <= MMIO);
    assert!(MMIO + MMIO_MAX == 0x301a_0000);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_knows_its_own_addresses_and_no_others() {
        for slot in 0..MAX_DOMAINS {
            assert_eq!(slot_of(slot_base(slot)), Some(slot));
            assert_eq!(slot_of(slot_base(slot) + SLOT_SIZE - 1), Some(slot));
        }
        assert_eq!(slot_of(0), None);
        assert_eq!(slot_of(SLOT_SIZE - 1), None);
        assert_eq!(slot_of(slot_base(MAX_DOMAINS)), None);
        assert_eq!(slot_of(u64::MAX), None);
    }
}
