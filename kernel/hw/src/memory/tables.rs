//! Page tables (SDM vol. 3A, 4.5), reached through the mapping of physical memory.
//!
//! **An entry that maps a frame which is freed together with the entry has [`OWNED`] set.** All
//! others map what belongs to somebody else: to a device, to the kernel, or to several ([`LENT`]).
//! So what a page is mapped to is said by a [`Leaf`], not by an address.

use super::frames::{self, Frames, OutOfMemory};
use super::kernel_root;
use super::shared::SharedMemory;
use core::marker::PhantomData;
use core::ops::Range;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::queue::Words;
use ringfence_core::extent::Extent;
use x86_64::structures::paging::PageTableFlags as Flags;

/// The frame belongs to the mapping: whoever drops one frees the other.
pub const OWNED: Flags = Flags::BIT_9;
/// The frame is memory that several have.
pub const LENT: Flags = Flags::BIT_10;
/// Rights of a table's own entry: the pages below decide.
const TABLE: Flags = Flags::PRESENT.union(Flags::WRITABLE);

/// What a page is mapped to.
pub enum Leaf<'a> {
    /// One frame, which is the mapping's from then on.
    Own(Frames),
    /// The page at this offset of memory that stays longer than the mapping.
    Lent(&'a SharedMemory, u64),
    /// What the kernel's root has at this address.
    Kernels(u64),
    /// Registers of a device.
    Registers(DevicePage),
}

/// A page of a device's registers, and no memory.
#[derive(Debug, Clone, Copy)]
pub struct DevicePage(u64);

impl DevicePage {
    /// The page at physical address `pa`; `None` if that is memory, or no address.
    pub fn new(pa: u64) -> Option<DevicePage> {
        let extent = Extent::new(pa, PAGE_SIZE);
        (pa & !ADDRESS == 0 && !super::is_ram(extent)).then_some(DevicePage(pa))
    }
}

fn index(address: u64, level: u8) -> usize {
    (address >> (12 + 9 * (u64::from(level) - 1)) & 511) as usize
}

/// Bits of an entry that hold a physical address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Entries of a table.
const ENTRIES: usize = 512;

/// A frame that is there, a page table's or a page's: its own entry, or who has it, keeps it.
fn frame(pa: u64) -> SharedMemory {
    // SAFETY: memory that is mapped, or that tables are in; it stays as long as its entry is used.
    unsafe { SharedMemory::new(pa & ADDRESS, PAGE_SIZE as usize) }
}

/// A page table.
#[derive(Clone, Copy)]
struct Table(u64);

impl Table {
    fn entry(self, index: usize) -> Entry {
        Entry { table: self.0, index: index % ENTRIES }
    }

    fn entries(self) -> impl Iterator<Item = Entry> {
        (0..ENTRIES).map(move |index| self.entry(index))
    }

    /// Whether the frame at `pa` holds this table, which is of level `level`, or one below it.
    fn has(self, level: u8, pa: u64) -> bool {
        let mut below = self.entries().filter_map(Entry::table);
        self.0 == pa || level > 1 && below.any(|table| table.has(level - 1, pa))
    }
}

/// Where an entry of a page table is. The CPU reads it, and writes its accessed and dirty bits, at
/// any moment.
#[derive(Clone, Copy)]
struct Entry {
    /// Physical address of its table.
    table: u64,
    index: usize,
}

impl Entry {
    fn bits(self) -> u64 {
        frame(self.table).load(self.index)
    }

    fn set_bits(self, bits: u64) {
        frame(self.table).store(self.index, bits);
    }

    fn set(self, pa: u64, flags: Flags) {
        self.set_bits(pa & ADDRESS | flags.bits() & !ADDRESS);
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

    /// The table below, of an entry that is not in a table of level 1.
    fn table(self) -> Option<Table> {
        let bits = self.bits();
        (bits != 0 && bits & Flags::HUGE_PAGE.bits() == 0).then_some(Table(bits & ADDRESS))
    }
}

/// A top-level page table.
#[derive(Clone, Copy)]
pub struct Root<'a> {
    table: Table,
    of: PhantomData<&'a Frames>,
}

impl Root<'static> {
    /// The kernel's.
    pub fn kernel() -> Root<'static> {
        Root { table: Table(kernel_root()), of: PhantomData }
    }
}

impl Root<'static> {
    /// The one that `cr3` says, if it says one. **Only for the field of the CPU's state that holds
    /// the root of the address space that is entered**: that one is there.
    pub fn loaded(cr3: &core::cell::Cell<u64>) -> Option<Root<'static>> {
        Some(cr3.get()).filter(|root| *root != 0).map(|root| Root { table: Table(root), of: PhantomData })
    }
}

impl<'a> Root<'a> {
    /// The one in `frames`, which hold one, or zeros.
    pub fn of(frames: &'a Frames) -> Root<'a> {
        Root { table: Table(frames.physical()), of: PhantomData }
    }

    /// The lowest-level entry for `address`, with the tables above it made if `make` says so.
    fn entry(self, address: u64, make: bool) -> Result<Option<Entry>, OutOfMemory> {
        let mut table = self.table;
        for level in [4, 3, 2] {
            let entry = table.entry(index(address, level));
            if entry.is_unused() {
                if !make {
                    return Ok(None);
                }
                entry.set(Frames::new(1)?.into_raw(), TABLE);
            }
            let Some(below) = entry.table() else { return Ok(None) };
            table = below;
        }
        Ok(Some(table.entry(index(address, 1))))
    }

    /// Maps the page at `address` to `leaf`, replacing what was there.
    pub fn map(self, address: u64, leaf: Leaf, flags: Flags) -> Result<(), OutOfMemory> {
        let entry = self.entry(address, true)?.ok_or(OutOfMemory)?;
        let (pa, more) = match leaf {
            Leaf::Own(frames) => (frames.into_raw(), OWNED),
            Leaf::Lent(memory, offset) => (memory.physical() + offset, LENT),
            Leaf::Kernels(address) => (Root::kernel().translate(address).ok_or(OutOfMemory)?.0, Flags::empty()),
            Leaf::Registers(DevicePage(pa)) => (pa, Flags::empty()),
        };
        entry.set(pa, (flags - (OWNED | LENT)) | more);
        Ok(())
    }

    /// Changes the rights of the page at `address`; one that is not mapped stays so. Whose the
    /// frame is stays as it is.
    pub fn set_flags(self, address: u64, flags: Flags) {
        if let Ok(Some(entry)) = self.entry(address, false)
            && !entry.is_unused()
        {
            let whose = entry.flags() & (OWNED | LENT);
            entry.set(entry.pa(), (flags - (OWNED | LENT)) | whose);
        }
    }

    /// Unmaps the page at `address`; returns its frame if it was the mapping's.
    pub fn take(self, address: u64) -> Option<Frames> {
        let entry = self.entry(address, false).ok()?.filter(|entry| !entry.is_unused())?;
        let (pa, is_owned) = (entry.pa(), entry.flags().contains(OWNED));
        entry.set_bits(0);
        x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(address));
        // SAFETY: it was the mapping's, and that is gone.
        is_owned.then(|| unsafe { Frames::from_raw(pa, 1) })
    }

    /// Physical address and rights of `address`, if it is mapped by a 4 KiB page.
    pub fn translate(self, address: u64) -> Option<(u64, Flags)> {
        let entry = self.entry(address, false).ok()??;
        entry.flags().contains(Flags::PRESENT).then(|| (entry.pa() + address % PAGE_SIZE, entry.flags()))
    }

    /// Calls `with` with the page of memory at `address`, and the offset of that in it; `None` if
    /// nothing is mapped there, or what is no memory of the mapping's own or lent to it: registers,
    /// or the kernel's.
    pub fn with_page<R>(self, address: u64, with: impl FnOnce(&SharedMemory, usize) -> R) -> Option<R> {
        // The tables would not know: they ignore the bits that make an address non-canonical.
        x86_64::VirtAddr::try_new(address).ok()?;
        let (pa, flags) = self.translate(address)?;
        if !flags.intersects(OWNED | LENT) {
            return None;
        }
        let offset = (address % PAGE_SIZE) as usize;
        // It stays mapped until `with` is back.
        Some(with(&frame(pa), offset))
    }

    /// Whether anything is mapped at `address`, by pages of whatever size.
    pub fn is_mapped(self, address: u64) -> bool {
        let mut current = self.table;
        for level in [4, 3, 2, 1] {
            let entry = current.entry(index(address, level));
            if !entry.flags().contains(Flags::PRESENT) {
                return false;
            }
            match entry.table() {
                Some(below) if level > 1 => current = below,
                _ => break,
            }
        }
        true
    }

    /// Whether the frame at `pa` holds one of its page tables.
    pub fn has_table(self, pa: u64) -> bool {
        self.table.has(4, pa)
    }

    /// Calls `with` for each page of 4 KiB that it has a frame for: its address, in ascending
    /// order, and its rights.
    pub fn for_each_page(self, with: &mut dyn FnMut(u64, Flags)) {
        fn visit(table: Table, level: u8, base: u64, with: &mut dyn FnMut(u64, Flags)) {
            for (index, entry) in table.entries().enumerate().filter(|(_, entry)| !entry.is_unused()) {
                let address = base | (index as u64) << (12 + 9 * (u64::from(level) - 1));
                match entry.table() {
                    Some(below) if level > 1 => visit(below, level - 1, address, with),
                    // Bit 47 goes on into the bits above it.
                    _ => with(((address << 16) as i64 >> 16) as u64, entry.flags()),
                }
            }
        }
        visit(self.table, 4, 0, with);
    }

    /// Sets the top-level entry for `address`: the table of level 3 in `to`, which stays as long as
    /// that, or nothing.
    pub fn set_top(self, address: u64, to: Option<(&Frames, Flags)>) {
        let entry = self.table.entry(index(address, 4));
        match to {
            Some((table, flags)) => entry.set(table.physical(), TABLE | flags),
            None => entry.set_bits(0),
        }
    }

    /// Fills this one with all that the kernel's maps, but with what `domain` maps for the GiB
    /// around `address`; the frame `between` becomes the table of level 3 that joins them.
    #[cfg(feature = "bench")]
    pub fn merge(self, between: &Frames, domain: Root, address: u64) {
        let copy = |to: Table, from: Table| {
            to.entries().zip(from.entries()).for_each(|(to, from)| to.set_bits(from.bits()));
        };
        copy(self.table, Root::kernel().table);
        let below = |root: Root| root.table.entry(index(address, 4)).table();
        let (Some(kernels), Some(domains)) = (below(Root::kernel()), below(domain)) else { return };
        let joined = Table(between.physical());
        copy(joined, kernels);
        joined.entry(index(address, 3)).set_bits(domains.entry(index(address, 3)).bits());
        self.set_top(address, Some((between, Flags::empty())));
    }
}

impl Root<'static> {
    /// Drops what the loader left in the kernel's lower half, where the domains' slots will be.
    pub(super) fn drop_lower_half(self) {
        self.table.entries().take(ENTRIES / 2).for_each(|entry| entry.set_bits(0));
        x86_64::instructions::tlb::flush_all();
    }
}

/// Whether the frame at `pa` holds the table of level 3 in `table`, or one below that.
pub fn is_below(table: &Frames, pa: u64) -> bool {
    Table(table.physical()).has(3, pa)
}

/// Frees all tables below the table of level 3 in `table`, and all frames that they own. Nothing is
/// mapped by them any more.
pub fn free_below(table: &Frames) {
    fn free(table: Table, level: u8) {
        if level > 1 {
            table.entries().filter_map(Entry::table).for_each(|below| {
                free(below, level - 1);
                frames::free_run(below.0, 1);
            });
            return;
        }
        // Most lie in a row.
        let (mut first, mut count) = (0, 0);
        let owned = table.entries().filter(|entry| entry.flags().contains(OWNED)).map(Entry::pa);
        for frame in owned {
            if frame != first + count as u64 * PAGE_SIZE {
                frames::free_run(first, count);
                (first, count) = (frame, 0);
            }
            count += 1;
        }
        frames::free_run(first, count);
    }
    let table = Table(table.physical());
    free(table, 3);
    table.entries().for_each(|entry| entry.set_bits(0));
}

/// Calls `with` for each entry that the kernel's root has for its own half, tables and pages,
/// without the bits that the CPU sets by itself.
pub fn for_each_kernel_entry(with: &mut dyn FnMut(u64)) {
    fn visit(entries_of_one: &mut dyn Iterator<Item = Entry>, level: u8, with: &mut dyn FnMut(u64)) {
        for entry in entries_of_one.filter(|entry| !entry.is_unused()) {
            let flags = entry.flags() - Flags::ACCESSED - Flags::DIRTY;
            with(entry.pa() | flags.bits());
            if let Some(below) = entry.table().filter(|_| level > 1) {
                visit(&mut below.entries(), level - 1, with);
            }
        }
    }
    visit(&mut Root::kernel().table.entries().skip(ENTRIES / 2), 4, with);
}

/// The word at `address`, a multiple of 8, in the kernel's own address space; `None` if no memory
/// is mapped there.
pub fn read_kernel(address: u64) -> Option<u64> {
    let address = x86_64::VirtAddr::try_new(address).ok().filter(|address| address.is_aligned(8u64))?.as_u64();
    let (pa, _) = Root::kernel().translate(address)?;
    // Registers may lie where the kernel does not see physical memory.
    super::is_ram(Extent::new(pa, size_of::<u64>() as u64)).then(|| frame(pa).load(word_of(pa)))
}

/// Calls `with` for each word of the kernel's memory in `addresses`, which begin and end with a
/// word.
pub fn for_each_kernel_word(addresses: Range<u64>, with: &mut dyn FnMut(u64)) {
    let mut address = addresses.start;
    while address < addresses.end {
        let end = addresses.end.min((address & !(PAGE_SIZE - 1)) + PAGE_SIZE);
        let page = Root::kernel().translate(address).filter(|(pa, _)| super::is_ram(Extent::new(*pa, 1)));
        if let Some((pa, _)) = page {
            let count = ((end - address) / 8) as usize;
            (word_of(pa)..word_of(pa) + count).for_each(|index| with(frame(pa).load(index)));
        }
        address = end;
    }
}

/// Writes words from `address` on, a multiple of 8, in a page of the kernel that is read-only once
/// it runs: through physical memory.
///
/// # Safety
/// They must be such a page's, of which there is no reference, and what they say must be right.
pub unsafe fn write_constant(address: u64, words: &[u64]) {
    if let Some((pa, _)) = Root::kernel().translate(address) {
        words.iter().enumerate().for_each(|(index, word)| frame(pa).store(word_of(pa) + index, *word));
    }
}

/// The place in its page of the word at `pa`.
fn word_of(pa: u64) -> usize {
    (pa % PAGE_SIZE) as usize / size_of::<u64>()
}
