//! Page tables (SDM vol. 3A, 4.5), reached through the mapping of physical memory.
//!
//! **An entry that owns its frame has [`OWNED`] set: the frame is freed together with the entry.**
//! All other entries map frames with other owners: a device, the kernel, or several ([`LENT`]).
//! This is why callers name the target of a mapping by a [`Leaf`], not by an address.

use super::frames::{self, Frames, OutOfMemory};
use super::kernel_root;
use super::shared::SharedMemory;
use core::marker::PhantomData;
use core::ops::Range;
use ringfence_abi::layout::{PAGE_SIZE, SLOT_SIZE};
use ringfence_abi::queue::Words;
use ringfence_core::extent::Extent;
use x86_64::structures::paging::PageTableFlags as Flags;

/// The mapping owns the frame: dropping the mapping frees the frame.
pub const OWNED: Flags = Flags::BIT_9;
/// The frame is memory with several owners.
pub const LENT: Flags = Flags::BIT_10;
/// Rights of an entry that leads to a table: the pages below decide.
const TABLE: Flags = Flags::PRESENT.union(Flags::WRITABLE);

/// The target of a page's mapping.
pub enum Leaf<'a> {
    /// One frame, which the mapping owns from then on.
    Own(Frames),
    /// The page at this offset of memory that stays longer than the mapping.
    Lent(&'a SharedMemory, u64),
    /// The frame that the kernel's root maps at this address.
    Kernels(u64),
    /// Registers of a device.
    Registers(DevicePage),
}

/// A page of a device's registers; it is not memory.
#[derive(Debug, Clone, Copy)]
pub struct DevicePage(u64);

impl DevicePage {
    /// Returns the page at physical address `pa`; `None` if it is memory, or not a page's address.
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

/// Returns a frame in use, of a page table or of a page: its entry, or its owner, keeps it
/// allocated.
fn frame(pa: u64) -> SharedMemory {
    // SAFETY: the frame is mapped memory or holds a table; it stays as long as its entry is used.
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

    /// Returns whether the frame at `pa` holds this table, which is of level `level`, or one below
    /// it.
    fn has(self, level: u8, pa: u64) -> bool {
        let mut below = self.entries().filter_map(Entry::table);
        self.0 == pa || level > 1 && below.any(|table| table.has(level - 1, pa))
    }
}

/// The place of an entry of a page table. The CPU reads it, and writes its accessed and dirty bits,
/// at any moment.
#[derive(Clone, Copy)]
struct Entry {
    /// Physical address of the table that holds the entry.
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

    /// Returns the address of the table or the frame that the entry leads to.
    fn pa(self) -> u64 {
        self.bits() & ADDRESS
    }

    fn flags(self) -> Flags {
        Flags::from_bits_truncate(self.bits())
    }

    fn is_unused(self) -> bool {
        self.bits() == 0
    }

    /// Returns the table below, for an entry that is not in a table of level 1.
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
    /// Returns the kernel's root.
    pub fn kernel() -> Root<'static> {
        Root { table: Table(kernel_root()), of: PhantomData }
    }
}

impl Root<'static> {
    /// Returns the root in `cr3`, if there is one. **Only for the field of the CPU's state that
    /// holds the root of the address space that is entered**: that root exists.
    pub fn loaded(cr3: &core::cell::Cell<u64>) -> Option<Root<'static>> {
        Some(cr3.get()).filter(|root| *root != 0).map(|root| Root { table: Table(root), of: PhantomData })
    }
}

impl<'a> Root<'a> {
    /// Returns the root in `frames`, which hold a root, or zeros.
    pub fn of(frames: &'a Frames) -> Root<'a> {
        Root { table: Table(frames.physical()), of: PhantomData }
    }

    /// Returns the lowest-level entry for `address`. If `make` is set, missing tables above it are
    /// made.
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

    /// Maps the page at `address` to `leaf`, replacing its previous mapping.
    pub fn map(self, address: u64, leaf: Leaf, flags: Flags) -> Result<(), OutOfMemory> {
        let entry = self.entry(address, true)?.ok_or(OutOfMemory)?;
        let (pa, more) = match leaf {
            Leaf::Own(frames) => (frames.into_raw(), OWNED),
            Leaf::Lent(memory, offset) => (memory.physical() + offset, LENT),
            Leaf::Kernels(address) => (Root::kernel().translate(address).ok_or(OutOfMemory)?.0, Flags::empty()),
            Leaf::Registers(DevicePage(pa)) => (pa, Flags::empty()),
        };
        let was_mapped = !entry.is_unused();
        entry.set(pa, (flags - (OWNED | LENT)) | more);
        if was_mapped {
            // The root may be loaded: a segmented domain's stays so between its upcalls.
            x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(address));
        }
        Ok(())
    }

    /// Changes the rights of the page at `address`; a page that is not mapped stays so. The
    /// ownership of the frame does not change.
    pub fn set_flags(self, address: u64, flags: Flags) {
        if let Ok(Some(entry)) = self.entry(address, false)
            && !entry.is_unused()
        {
            let whose = entry.flags() & (OWNED | LENT);
            entry.set(entry.pa(), (flags - (OWNED | LENT)) | whose);
        }
    }

    /// Unmaps the page at `address`; returns its frame if the mapping owned it.
    pub fn take(self, address: u64) -> Option<Frames> {
        let entry = self.entry(address, false).ok()?.filter(|entry| !entry.is_unused())?;
        let (pa, is_owned) = (entry.pa(), entry.flags().contains(OWNED));
        entry.set_bits(0);
        x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(address));
        // A segmented domain has the same page at the address without its slot.
        x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(address % SLOT_SIZE));
        // SAFETY: the mapping owned the frame, and the mapping is gone.
        is_owned.then(|| unsafe { Frames::from_raw(pa, 1) })
    }

    /// Returns the physical address and the rights of `address`, if a 4 KiB page maps it.
    pub fn translate(self, address: u64) -> Option<(u64, Flags)> {
        let entry = self.entry(address, false).ok()??;
        entry.flags().contains(Flags::PRESENT).then(|| (entry.pa() + address % PAGE_SIZE, entry.flags()))
    }

    /// Calls `with` with the page of memory at `address`, and with the offset of `address` in it.
    /// Returns `None` if nothing is mapped there, or the page is neither owned by the mapping nor
    /// lent to it: it has registers, or belongs to the kernel.
    pub fn with_page<R>(self, address: u64, with: impl FnOnce(&SharedMemory, usize) -> R) -> Option<R> {
        // The tables would accept it: they ignore the bits that make an address non-canonical.
        x86_64::VirtAddr::try_new(address).ok()?;
        let (pa, flags) = self.translate(address)?;
        if !flags.intersects(OWNED | LENT) {
            return None;
        }
        let offset = (address % PAGE_SIZE) as usize;
        // The page stays mapped until `with` returns.
        Some(with(&frame(pa), offset))
    }

    /// Returns whether anything is mapped at `address`, by a page of any size.
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

    /// Returns whether the frame at `pa` holds one of the root's page tables.
    pub fn has_table(self, pa: u64) -> bool {
        self.table.has(4, pa)
    }

    /// Calls `with` for each 4 KiB page that has a frame: its address, in ascending order, and its
    /// rights.
    pub fn for_each_page(self, with: &mut dyn FnMut(u64, Flags)) {
        self.for_each_page_where(&|_| true, with);
    }

    /// Calls `with` for the pages below the top-level entries that are `wanted`.
    fn for_each_page_where(self, wanted: &dyn Fn(usize) -> bool, with: &mut dyn FnMut(u64, Flags)) {
        fn visit(table: Table, level: u8, base: u64, wanted: &dyn Fn(usize) -> bool, with: &mut dyn FnMut(u64, Flags)) {
            for (index, entry) in table.entries().enumerate().filter(|(_, entry)| !entry.is_unused()) {
                if !wanted(index) {
                    continue;
                }
                let address = base | (index as u64) << (12 + 9 * (u64::from(level) - 1));
                match entry.table() {
                    Some(below) if level > 1 => visit(below, level - 1, address, &|_| true, with),
                    // Bit 47 is extended into the bits above it (canonical form).
                    _ => with(((address << 16) as i64 >> 16) as u64, entry.flags()),
                }
            }
        }
        visit(self.table, 4, 0, wanted, with);
    }

    /// Calls `with` as [`Root::for_each_page`] does, for the pages below the top-level entry of
    /// `address` only.
    pub fn for_each_page_around(self, address: u64, with: &mut dyn FnMut(u64, Flags)) {
        let top = index(address, 4);
        self.for_each_page_where(&|index| index == top, with);
    }

    /// Sets the top-level entry for `address` to the table of level 3 in `to`, which must stay as
    /// long as the entry, or clears it.
    pub fn set_top(self, address: u64, to: Option<(&Frames, Flags)>) {
        let entry = self.table.entry(index(address, 4));
        match to {
            Some((table, flags)) => entry.set(table.physical(), TABLE | flags),
            None => entry.set_bits(0),
        }
    }

    /// Maps the kernel's half as in the kernel's root, except for the GiB around `address`, which
    /// stays as it is in this root. The frame `between` becomes the table of level 3 that joins
    /// them. The kernel's top-level entries never change once the first driver is loaded.
    pub fn share_kernel(self, between: &Frames, address: u64) {
        let top = index(address, 4);
        let kernel = Root::kernel().table;
        for number in (ENTRIES / 2..ENTRIES).filter(|number| *number != top) {
            self.table.entry(number).set_bits(kernel.entry(number).bits());
        }
        let (Some(kernels), Some(own)) = (kernel.entry(top).table(), self.table.entry(top).table()) else { return };
        let joined = Table(between.physical());
        kernels.entries().zip(joined.entries()).for_each(|(from, to)| to.set_bits(from.bits()));
        joined.entry(index(address, 3)).set_bits(own.entry(index(address, 3)).bits());
        self.set_top(address, Some((between, Flags::empty())));
    }
}

impl Root<'static> {
    /// Drops the loader's mappings in the kernel's lower half, where the domains' slots will be.
    pub(super) fn drop_lower_half(self) {
        self.table.entries().take(ENTRIES / 2).for_each(|entry| entry.set_bits(0));
        x86_64::instructions::tlb::flush_all();
    }
}

/// Returns whether the frame at `pa` holds the table of level 3 in `table`, or one below it.
pub fn is_below(table: &Frames, pa: u64) -> bool {
    Table(table.physical()).has(3, pa)
}

/// Frees all tables below the table of level 3 in `table`, and all frames that they own. They map
/// nothing any more.
pub fn free_below(table: &Frames) {
    fn free(table: Table, level: u8) {
        if level > 1 {
            table.entries().filter_map(Entry::table).for_each(|below| {
                free(below, level - 1);
                frames::free_run(below.0, 1);
            });
            return;
        }
        // Most of the frames lie in a row.
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

/// Makes all pages below the table of level 3 in `table` pages of user mode, or of supervisor mode
/// again. Translations that are cached stay.
#[cfg(feature = "bench")]
pub fn set_user(table: &Frames, is_user: bool) {
    fn visit(table: Table, level: u8, is_user: bool) {
        for entry in table.entries().filter(|entry| !entry.is_unused()) {
            let (bits, user) = (entry.bits(), Flags::USER_ACCESSIBLE.bits());
            entry.set_bits(if is_user { bits | user } else { bits & !user });
            if let Some(below) = entry.table().filter(|_| level > 1) {
                visit(below, level - 1, is_user);
            }
        }
    }
    visit(Table(table.physical()), 3, is_user);
}

/// Calls `with` for each entry that the kernel's root has for its own half, of tables and pages,
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

/// Returns the word at `address`, a multiple of 8, in the kernel's own address space; `None` if no
/// memory is mapped there.
pub fn read_kernel(address: u64) -> Option<u64> {
    let address = x86_64::VirtAddr::try_new(address).ok().filter(|address| address.is_aligned(8u64))?.as_u64();
    let (pa, _) = Root::kernel().translate(address)?;
    // Registers may lie where the kernel has no mapping of physical memory.
    super::is_ram(Extent::new(pa, size_of::<u64>() as u64)).then(|| frame(pa).load(word_of(pa)))
}

/// Calls `with` for each word of the kernel's memory in `addresses`, whose ends are multiples of 8.
pub fn for_each_kernel_word(addresses: Range<u64>, mut with: impl FnMut(u64)) {
    let mut address = addresses.start;
    while address < addresses.end {
        let end = addresses.end.min((address & !(PAGE_SIZE - 1)) + PAGE_SIZE);
        let page = Root::kernel().translate(address).filter(|(pa, _)| super::is_ram(Extent::new(*pa, 1)));
        if let Some((pa, _)) = page {
            let (memory, count) = (frame(pa), ((end - address) / 8) as usize);
            (word_of(pa)..word_of(pa) + count).for_each(|index| with(memory.load(index)));
        }
        address = end;
    }
}

/// Writes words from `address` on, a multiple of 8, in a page that is read-only for the kernel once
/// it runs. It writes through the mapping of physical memory.
///
/// # Safety
/// The words must lie in such a page, to which no reference leads, and their new values must be
/// right.
pub unsafe fn write_constant(address: u64, words: &[u64]) {
    if let Some((pa, _)) = Root::kernel().translate(address) {
        words.iter().enumerate().for_each(|(index, word)| frame(pa).store(word_of(pa) + index, *word));
    }
}

/// Returns the index of the word at `pa` in its page.
fn word_of(pa: u64) -> usize {
    (pa % PAGE_SIZE) as usize / size_of::<u64>()
}
