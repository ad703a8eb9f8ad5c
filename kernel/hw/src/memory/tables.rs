//! Page tables (SDM vol. 3A, 4.5), reached through the mapping of physical memory.
//!
//! An entry that maps a frame which is freed together with the entry has [`OWNED`] set; all others map what belongs to
//! somebody else: a device, or the kernel.

use super::frames::{self, OutOfMemory};
use super::kernel_root;
use super::shared::SharedMemory;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::queue::Words;
use x86_64::structures::paging::PageTableFlags as Flags;

/// The frame belongs to the mapping: whoever drops one frees the other.
pub const OWNED: Flags = Flags::BIT_9;
/// Rights of a table's own entry: the pages below decide.
const TABLE: Flags = Flags::PRESENT.union(Flags::WRITABLE);

fn index(address: u64, level: u8) -> usize {
    (address >> (12 + 9 * (u64::from(level) - 1)) & 511) as usize
}

/// Bits of an entry that hold a physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Entries of a table.
const ENTRIES: usize = 512;

/// Where an entry of a page table is. The CPU reads it, and writes its accessed and dirty bits, at any moment.
#[derive(Clone, Copy)]
struct Entry {
    /// Its physical address.
    pa: u64,
}

impl Entry {
    /// Entry `index` of the table in the frame at `table`, which is one of those that [`frames`] gave for tables, or the loader's.
    fn of(table: u64, index: usize) -> Entry {
        Entry { pa: table + (index % ENTRIES * size_of::<u64>()) as u64 }
    }

    fn word(self) -> SharedMemory {
        SharedMemory::new(self.pa, size_of::<u64>())
    }

    fn bits(self) -> u64 {
        self.word().load(0)
    }

    /// What a table maps is what callers of this module answer for.
    fn set_bits(self, bits: u64) {
        self.word().store(0, bits);
    }

    fn set(self, pa: u64, flags: Flags) {
        self.set_bits(pa & ADDRESS | flags.bits());
    }

    /// The table or the frame that it leads to.
    fn pa(self) -> u64 {
        self.bits() & ADDRESS
    }

    fn flags(self) -> Flags {
        Flags::from_bits_truncate(self.bits())
    }

    fn is_unused(self) -> bool {
        self.bits() == 0
    }
}

/// The entries of the table in the frame at `table`.
fn entries(table: u64) -> impl Iterator<Item = Entry> {
    (0..ENTRIES).map(move |index| Entry::of(table, index))
}

/// The lowest-level entry for `address` under `root`, with the tables above it made if `make` says so.
fn entry(root: u64, address: u64, make: bool) -> Result<Option<Entry>, OutOfMemory> {
    let mut table = root;
    for level in [4, 3, 2] {
        let entry = Entry::of(table, index(address, level));
        if entry.flags().contains(Flags::HUGE_PAGE) {
            return Ok(None);
        }
        if entry.is_unused() {
            if !make {
                return Ok(None);
            }
            entry.set(frames::allocate(1)?, TABLE);
        }
        table = entry.pa();
    }
    Ok(Some(Entry::of(table, index(address, 1))))
}

/// Maps the page at `address` under `root` to the frame at `pa`, replacing what was there.
pub fn map(root: u64, address: u64, pa: u64, flags: Flags) -> Result<(), OutOfMemory> {
    let entry = entry(root, address, true)?.ok_or(OutOfMemory)?;
    entry.set(pa, flags);
    Ok(())
}

/// Changes the rights of the page at `address` under `root`; one that is not mapped stays so. OWNED stays as it is.
pub fn set_flags(root: u64, address: u64, flags: Flags) {
    if let Ok(Some(entry)) = entry(root, address, false)
        && !entry.is_unused()
    {
        let owned = entry.flags() & OWNED;
        entry.set(entry.pa(), flags | owned);
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
    let (pa, owned) = (entry.pa(), entry.flags().contains(OWNED));
    entry.set_bits(0);
    x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(address));
    owned.then_some(pa)
}

/// Physical address and rights of `address` under `root`, if it is mapped by a 4 KiB page.
pub fn translate(root: u64, address: u64) -> Option<(u64, Flags)> {
    let entry = entry(root, address, false).ok()??;
    entry.flags().contains(Flags::PRESENT).then(|| (entry.pa() + address % PAGE_SIZE, entry.flags()))
}

/// Whether anything is mapped at `address` under `root`, by pages of whatever size.
pub fn is_mapped(root: u64, address: u64) -> bool {
    let mut current = root;
    for level in [4, 3, 2, 1] {
        let entry = Entry::of(current, index(address, level));
        if !entry.flags().contains(Flags::PRESENT) {
            return false;
        }
        if level == 1 || entry.flags().contains(Flags::HUGE_PAGE) {
            break;
        }
        current = entry.pa();
    }
    true
}

/// Whether the frame at `pa` holds a page table of the kernel's root, or one that a domain shares with it.
pub fn is_table(pa: u64) -> bool {
    is_below(kernel_root(), 4, pa)
}

/// Whether the frame at `pa` holds the table of level `level` at `table_pa`, or one below that.
pub fn is_below(table_pa: u64, level: u8, pa: u64) -> bool {
    let is_table = |entry: &Entry| !entry.is_unused() && !entry.flags().contains(Flags::HUGE_PAGE);
    let mut below = entries(table_pa).filter(is_table).map(Entry::pa);
    table_pa == pa || level > 1 && below.any(|next| is_below(next, level - 1, pa))
}

/// Calls `with` for each page of 4 KiB that `root` has a frame for: its address, in ascending order, and its rights.
pub fn for_each_page(root: u64, with: &mut dyn FnMut(u64, Flags)) {
    fn visit(table_pa: u64, level: u8, base: u64, with: &mut dyn FnMut(u64, Flags)) {
        for (index, entry) in entries(table_pa).enumerate().filter(|(_, entry)| !entry.is_unused()) {
            let address = base | (index as u64) << (12 + 9 * (u64::from(level) - 1));
            if level > 1 {
                visit(entry.pa(), level - 1, address, with);
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
    let entry = Entry::of(root, index(address, 4));
    match to {
        Some((pa, flags)) => entry.set(pa, TABLE | flags),
        None => entry.set_bits(0),
    }
}

/// Frees all tables below the table at `pa`, of `level`, and all frames that they own.
pub fn free_below(pa: u64, level: u8) {
    let used = entries(pa).filter(|entry| !entry.is_unused());
    if level > 1 {
        used.map(Entry::pa).for_each(|table| {
            free_below(table, level - 1);
            frames::free(table);
        });
    } else {
        // Most lie in a row.
        let (mut first, mut count) = (0, 0);
        for frame in used.filter(|entry| entry.flags().contains(OWNED)).map(|entry| entry.pa()) {
            if frame != first + count as u64 * PAGE_SIZE {
                frames::free_run(first, count);
                (first, count) = (frame, 0);
            }
            count += 1;
        }
        frames::free_run(first, count);
    }
}

/// Fills `root` with all that `kernel` maps, but with what `domain` maps for the GiB around `address`; the frame at
/// `table_pa` becomes the table of level 3 that joins them.
pub fn merge(root: u64, kernel: u64, table_pa: u64, domain: u64, address: u64) {
    let copy = |to: u64, from: u64| {
        entries(to).zip(entries(from)).for_each(|(to, from)| to.set_bits(from.bits()));
    };
    copy(root, kernel);
    let below = |root: u64| Entry::of(root, index(address, 4)).pa();
    copy(table_pa, below(kernel));
    Entry::of(table_pa, index(address, 3)).set_bits(Entry::of(below(domain), index(address, 3)).bits());
    Entry::of(root, index(address, 4)).set(table_pa, TABLE);
}

/// Calls `with` for each entry that the kernel's root has for its own half, tables and pages, without the bits that the
/// CPU sets by itself.
pub fn for_each_kernel_entry(with: &mut dyn FnMut(u64)) {
    fn visit(entries_of_one: &mut dyn Iterator<Item = Entry>, level: u8, with: &mut dyn FnMut(u64)) {
        for entry in entries_of_one.filter(|entry| !entry.is_unused()) {
            let flags = entry.flags() - Flags::ACCESSED - Flags::DIRTY;
            with(entry.pa() | flags.bits());
            if level > 1 && !flags.contains(Flags::HUGE_PAGE) {
                visit(&mut entries(entry.pa()), level - 1, with);
            }
        }
    }
    visit(&mut entries(kernel_root()).skip(ENTRIES / 2), 4, with);
}

/// Drops what the loader left in the kernel's lower half, where the domains' slots will be.
pub fn drop_lower_half() {
    entries(kernel_root()).take(ENTRIES / 2).for_each(|entry| entry.set_bits(0));
    x86_64::instructions::tlb::flush_all();
}
