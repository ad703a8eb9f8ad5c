//! Page tables (SDM vol. 3A, 4.5), reached through the mapping of physical memory.
//!
//! An entry that maps a frame which is freed together with the entry has [`OWNED`] set; all others map what belongs to
//! somebody else: a device, or the kernel.

use super::frames::{self, OutOfMemory};
use super::{at_physical, kernel_root};
use ringfence_abi::layout::PAGE_SIZE;
use x86_64::PhysAddr;
use x86_64::structures::paging::page_table::PageTableEntry;
use x86_64::structures::paging::{PageTable, PageTableFlags as Flags};

/// The frame belongs to the mapping: whoever drops one frees the other.
pub const OWNED: Flags = Flags::BIT_9;
/// Rights of a table's own entry: the pages below decide.
const TABLE: Flags = Flags::PRESENT.union(Flags::WRITABLE);

fn index(address: u64, level: u8) -> usize {
    (address >> (12 + 9 * (u64::from(level) - 1)) & 511) as usize
}

/// The table at physical address `pa`.
///
/// One CPU, and no two calls into this module at once: the reference is the only one while it lives.
fn table<'a>(pa: u64) -> &'a mut PageTable {
    // SAFETY: callers pass frames that hold page tables.
    unsafe { &mut *at_physical(pa).cast() }
}

/// The lowest-level entry for `address` under `root`, with the tables above it made if `make` says so.
fn entry<'a>(root: u64, address: u64, make: bool) -> Result<Option<&'a mut PageTableEntry>, OutOfMemory> {
    let mut current = table(root);
    for level in [4, 3, 2] {
        let entry = &mut current[index(address, level)];
        if entry.flags().contains(Flags::HUGE_PAGE) {
            return Ok(None);
        }
        if entry.is_unused() {
            if !make {
                return Ok(None);
            }
            entry.set_addr(PhysAddr::new(frames::allocate(1)?), TABLE);
        }
        current = table(entry.addr().as_u64());
    }
    Ok(Some(&mut current[index(address, 1)]))
}

/// Maps the page at `address` under `root` to the frame at `pa`, replacing what was there.
pub fn map(root: u64, address: u64, pa: u64, flags: Flags) -> Result<(), OutOfMemory> {
    let entry = entry(root, address, true)?.ok_or(OutOfMemory)?;
    entry.set_addr(PhysAddr::new(pa), flags);
    Ok(())
}

/// Changes the rights of the page at `address` under `root`; one that is not mapped stays so. OWNED stays as it is.
pub fn set_flags(root: u64, address: u64, flags: Flags) {
    if let Ok(Some(entry)) = entry(root, address, false)
        && !entry.is_unused()
    {
        let owned = entry.flags() & OWNED;
        entry.set_flags(flags | owned);
    }
}

/// Unmaps the page at `address` under `root` and frees its frame if it is owned.
pub fn unmap(root: u64, address: u64) {
    if let Some(frame) = take(root, address) {
        frames::free(frame);
    }
}

/// Unmaps the page at `address` under `root`; returns its frame, which is the caller's then, if it was owned.
pub fn take(root: u64, address: u64) -> Option<u64> {
    let entry = entry(root, address, false).ok()?.filter(|entry| !entry.is_unused())?;
    let (pa, owned) = (entry.addr().as_u64(), entry.flags().contains(OWNED));
    entry.set_unused();
    x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(address));
    owned.then_some(pa)
}

/// Physical address and rights of `address` under `root`, if it is mapped by a 4 KiB page.
pub fn translate(root: u64, address: u64) -> Option<(u64, Flags)> {
    let entry = entry(root, address, false).ok()??;
    entry.flags().contains(Flags::PRESENT).then(|| (entry.addr().as_u64() + address % PAGE_SIZE, entry.flags()))
}

/// Whether anything is mapped at `address` under `root`, by pages of whatever size.
pub fn is_mapped(root: u64, address: u64) -> bool {
    let mut current = root;
    for level in [4, 3, 2, 1] {
        let entry = &table(current)[index(address, level)];
        if !entry.flags().contains(Flags::PRESENT) {
            return false;
        }
        if level == 1 || entry.flags().contains(Flags::HUGE_PAGE) {
            break;
        }
        current = entry.addr().as_u64();
    }
    true
}

/// Whether the frame at `pa` holds a page table of the kernel's root, or one that a domain shares with it.
pub fn is_table(pa: u64) -> bool {
    fn is_below(table_pa: u64, level: u8, pa: u64) -> bool {
        let is_table = |entry: &&PageTableEntry| !entry.is_unused() && !entry.flags().contains(Flags::HUGE_PAGE);
        let mut below = table(table_pa).iter().filter(is_table).map(|entry| entry.addr().as_u64());
        table_pa == pa || level > 1 && below.any(|next| is_below(next, level - 1, pa))
    }
    is_below(kernel_root(), 4, pa)
}

/// Calls `with` for each page of 4 KiB that `root` has a frame for: its address, in ascending order, and its rights.
pub fn for_each_page(root: u64, with: &mut dyn FnMut(u64, Flags)) {
    fn visit(table_pa: u64, level: u8, base: u64, with: &mut dyn FnMut(u64, Flags)) {
        for (index, entry) in table(table_pa).iter().enumerate().filter(|(_, entry)| !entry.is_unused()) {
            let address = base | (index as u64) << (12 + 9 * (u64::from(level) - 1));
            if level > 1 {
                visit(entry.addr().as_u64(), level - 1, address, with);
            } else {
                // Bit 47 goes on into the bits above it.
                with(((address << 16) as i64 >> 16) as u64, entry.flags());
            }
        }
    }
    visit(root, 4, 0, with);
}

/// Sets the top-level entry of `root` for `address`: the table at `pa`, or nothing.
pub fn set_top(root: u64, address: u64, to: Option<(u64, Flags)>) {
    let entry = &mut table(root)[index(address, 4)];
    match to {
        Some((pa, flags)) => entry.set_addr(PhysAddr::new(pa), TABLE | flags),
        None => entry.set_unused(),
    }
}

/// Frees the table at `pa` of `level`, all tables below it and all frames they own.
pub fn free_tree(pa: u64, level: u8) {
    for entry in table(pa).iter().filter(|entry| !entry.is_unused()) {
        if level > 1 {
            free_tree(entry.addr().as_u64(), level - 1);
        } else if entry.flags().contains(OWNED) {
            frames::free(entry.addr().as_u64());
        }
    }
    frames::free(pa);
}

/// Fills `root` with all that `kernel` maps, but with what `domain` maps for the GiB around `address`; the frame at
/// `table_pa` becomes the table of level 3 that joins them.
pub fn merge(root: u64, kernel: u64, table_pa: u64, domain: u64, address: u64) {
    let copy = |to: u64, from: u64| {
        for (to, from) in table(to).iter_mut().zip(table(from).iter()) {
            *to = from.clone();
        }
    };
    copy(root, kernel);
    let below = |root: u64| table(root)[index(address, 4)].addr().as_u64();
    copy(table_pa, below(kernel));
    table(table_pa)[index(address, 3)] = table(below(domain))[index(address, 3)].clone();
    table(root)[index(address, 4)].set_addr(PhysAddr::new(table_pa), TABLE);
}

/// Calls `with` for each entry that the kernel's root has for its own half, tables and pages, without the bits that the
/// CPU sets by itself.
pub fn for_each_kernel_entry(with: &mut dyn FnMut(u64)) {
    fn visit(entries: &mut dyn Iterator<Item = &PageTableEntry>, level: u8, with: &mut dyn FnMut(u64)) {
        for entry in entries.filter(|entry| !entry.is_unused()) {
            let flags = entry.flags() - Flags::ACCESSED - Flags::DIRTY;
            with(entry.addr().as_u64() | flags.bits());
            if level > 1 && !flags.contains(Flags::HUGE_PAGE) {
                visit(&mut table(entry.addr().as_u64()).iter(), level - 1, with);
            }
        }
    }
    visit(&mut table(kernel_root()).iter().skip(256), 4, with);
}

/// Drops what the loader left in the kernel's lower half, where the domains' slots will be.
pub fn drop_lower_half() {
    for entry in table(kernel_root()).iter_mut().take(256) {
        entry.set_unused();
    }
    x86_64::instructions::tlb::flush_all();
}
