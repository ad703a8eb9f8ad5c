//! A domain's address space: its root, its slot, and its own pages of the entry area.
//!
//! **A domain's root maps its slot and the entry area, nothing else.** The kernel's root maps the
//! slot too, through the same tables below one top-level entry. That entry has NX set as long as
//! the domain is sandboxed, so that ring 0 can never run the domain's code by mistake.
//!
//! **The root of a segmented domain maps the slot a second time, from address 0 on, and the kernel
//! as well**: the domain's 32-bit code cannot name an address from 4 GiB on. The kernel goes on
//! with this root in CR3 until it enters another domain. It names the domain's memory by the
//! addresses in the slot, as it does for any other domain. Only registers hold the other addresses.

#[cfg(feature = "bench")]
mod bench;
pub mod device;
mod inherit;
pub mod watched;

#[cfg(feature = "bench")]
pub use bench::Changed;

use crate::arch::entry_area;
use crate::arch::frame::TrapFrame;
use crate::arch::gates::{self, Asleep};
use crate::arch::syscall;
use crate::memory::frames::{Frames, Lent, OutOfMemory};
use crate::memory::pages;
use crate::memory::registers::{Registers, Window};
use crate::memory::tables::{self, Leaf, Root};
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use ringfence_abi::layout::{MAX_DOMAINS, PAGE_SIZE, SLOT_SIZE, STACK_TOP, STUB_BYTES, STUBS, slot_base, slot_of};
use ringfence_abi::manifest::DomainKind;
use ringfence_abi::queue::Words;
use ringfence_abi::service::SERVICE_COUNT;
use ringfence_core::descriptor;
use ringfence_core::extent::Extent;
use ringfence_core::module::Imports;
use spin::Mutex;
use x86_64::structures::paging::PageTableFlags as Flags;

/// The slots that are taken.
static SLOTS: Mutex<[bool; MAX_DOMAINS]> = Mutex::new([false; MAX_DOMAINS]);

/// Rights of ordinary pages.
pub mod rights {
    use super::Flags;
    /// Read only.
    pub const READ: Flags = Flags::PRESENT.union(Flags::NO_EXECUTE);
    /// Read and write.
    pub const WRITE: Flags = READ.union(Flags::WRITABLE);
    /// Read and execute.
    pub const EXECUTE: Flags = Flags::PRESENT;
    /// Device registers: read and write, not cached.
    pub const DEVICE: Flags = WRITE.union(Flags::NO_CACHE).union(Flags::WRITE_THROUGH);
    /// Not readable either: the frame stays with its page, and is freed with it.
    pub const KEPT: Flags = Flags::NO_EXECUTE;
}

/// The ring that a domain runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// Ring 0: trusted, with direct calls.
    Trusted,
    /// Ring 1: sandboxed, through gates.
    Sandboxed,
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ring::Trusted => "0",
            Ring::Sandboxed => "1",
        })
    }
}

/// A domain's address space. Dropping it frees all of its memory.
pub struct Space {
    slot: usize,
    /// The slot's first address.
    start: u64,
    /// False once the space has a successor, which owns the slot from then on.
    has_slot: bool,
    ring: Ring,
    /// The offset that is added to the addresses in the driver's registers to get the kernel's
    /// addresses: the address of the slot, which a segmented driver does not know, or 0.
    lift: u64,
    /// The table that joins a segmented domain's half of the top 512 GiB with the kernel's.
    between: Option<Frames>,
    /// The root; the slot's table of level 3; the entry area's table of level 3.
    root: Frames,
    slot_table: Frames,
    entry_table: Frames,
    /// The domain's own pages of the entry area.
    ldt: Frames,
    io_bitmap: Option<Frames>,
    stacks: Frames,
    /// The last page of the driver's stack, which holds its return address, once it is mapped.
    last_of_stack: Option<Lent>,
    /// Mapped memory that has other owners as well, with its address.
    lent: Vec<(u64, Lent)>,
    /// Set when none of the space's memory may be used again.
    set_aside: bool,
    /// The state that resumes the driver, if it sleeps.
    asleep: Cell<Option<Asleep>>,
    /// The half terabyte in which the driver can be entered, by its number: that of its slot, or
    /// none while the driver sleeps.
    enters: Cell<u64>,
    /// The registers of its device whose accesses are seen.
    watched: watched::Watched,
}

const _: () = assert!((SERVICE_COUNT as u64 + 1) * STUB_BYTES <= PAGE_SIZE);
/// No address divided by [`SLOT_SIZE`] is this number.
const NOWHERE: u64 = u64::MAX;
/// The word of the stack's last page that a driver's first RSP points to ([`Space::first_rsp`]).
const FIRST_RSP_WORD: usize = (PAGE_SIZE as usize - 16) / size_of::<u64>() - 1;

/// Returns the kernel's address of the memory that a driver names by `address`. `lift` is the
/// domain's ([`Space::lift`]). A segmented driver names its memory without the address of its slot,
/// or as a service has returned it.
#[inline(always)]
pub fn lifted(address: u64, lift: u64) -> u64 {
    if lift != 0 && address < SLOT_SIZE { address | lift } else { address }
}

impl Space {
    /// Makes an empty address space of this kind, sandboxed. It takes over the slot of `before`,
    /// which is never entered again, or a free slot. Returns `None` if all slots are taken.
    pub fn new(kind: DomainKind, before: Option<&mut Space>) -> Result<Option<Space>, OutOfMemory> {
        let frame = || Frames::new(1);
        let between = if kind == DomainKind::Segmented { Some(frame()?) } else { None };
        let (root, slot_table, entry_table, ldt, stacks) = (frame()?, frame()?, frame()?, frame()?, frame()?);
        let Some(slot) = before.and_then(Space::leave_slot).or_else(take_slot) else { return Ok(None) };
        // On an error from here on, `space` is dropped, which frees its slot and its memory.
        let mut space = Space {
            slot,
            start: slot_base(slot),
            has_slot: true,
            ring: Ring::Sandboxed,
            lift: if kind == DomainKind::Segmented { slot_base(slot) } else { 0 },
            between,
            root,
            slot_table,
            entry_table,
            ldt,
            io_bitmap: None,
            stacks,
            last_of_stack: None,
            lent: Vec::new(),
            set_aside: false,
            asleep: Cell::new(None),
            enters: Cell::new(slot_base(slot) / SLOT_SIZE),
            watched: watched::Watched::default(),
        };
        let root = Root::of(&space.root);
        match kind {
            DomainKind::Paged => root.set_top(slot_base(slot), Some((&space.slot_table, Flags::empty()))),
            DomainKind::Segmented => {
                root.set_top(slot_base(slot), Some((&space.slot_table, Flags::NO_EXECUTE)));
                root.set_top(0, Some((&space.slot_table, Flags::empty())));
            }
        }
        Root::kernel().set_top(slot_base(slot), Some((&space.slot_table, Flags::NO_EXECUTE)));
        // An earlier space may have had the slot.
        x86_64::instructions::tlb::flush_all();
        root.set_top(entry_area::BASE, Some((&space.entry_table, Flags::empty())));
        for page in (entry_area::BASE..entry_area::BASE + entry_area::LEN_BYTES).step_by(PAGE_SIZE as usize) {
            // Map the kernel's own frames, read-only, except for the pages that are the domain's.
            let (leaf, flags) = match page {
                entry_area::LDT => (Leaf::Lent(&space.ldt, 0), rights::READ),
                entry_area::STACKS => (Leaf::Lent(&space.stacks, 0), rights::WRITE),
                _ if page < entry_area::BASE + entry_area::TEXT_PAGES * PAGE_SIZE => {
                    (Leaf::Kernels(page), rights::EXECUTE)
                }
                _ => (Leaf::Kernels(page), rights::READ),
            };
            root.map(page, leaf, flags)?;
        }
        if let Some(between) = &space.between {
            root.share_kernel(between, entry_area::BASE);
            space.ldt.store(entry_area::ROOT_KIND_WORD, entry_area::SEGMENTED_ROOT);
        }
        space.map_fresh(slot_base(slot) + STUBS, PAGE_SIZE, rights::EXECUTE)?;
        Ok(Some(space))
    }

    /// Returns the slot's number.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Returns the kind of the domain.
    #[inline(always)]
    pub fn kind(&self) -> DomainKind {
        // Slot 0 does not begin at 0.
        if self.lift == 0 { DomainKind::Paged } else { DomainKind::Segmented }
    }

    /// Returns the offset that is added to the addresses in the driver's registers to get the
    /// kernel's addresses: the address of a segmented domain's slot, or 0.
    #[inline(always)]
    pub fn lift(&self) -> u64 {
        self.lift
    }

    /// Returns the linear address by which the driver names the byte at `address` in its slot.
    pub fn linear(&self, address: u64) -> u64 {
        address.wrapping_sub(self.lift)
    }

    /// Returns whether the space has its slot: a successor takes it over.
    pub fn has_slot(&self) -> bool {
        self.has_slot
    }

    /// Returns the ring whose stubs are in place.
    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// Prevents any further use of the space's memory and slot: a device may still write there.
    pub fn set_aside(&mut self) {
        self.set_aside = true;
    }

    /// Returns whether the space was set aside.
    pub fn is_set_aside(&self) -> bool {
        self.set_aside
    }

    /// Gives the slot to a successor, if the space still has it and may give it up. The memory
    /// stays the space's own.
    fn leave_slot(&mut self) -> Option<usize> {
        let leaves = self.has_slot && !self.set_aside && !self.is_entered();
        leaves.then(|| {
            self.has_slot = false;
            self.slot
        })
    }

    /// Takes the slot back, if the space has given it up and no other space has it. This is for
    /// when a successor could not be made.
    pub fn return_to_slot(&mut self) {
        let mut slots = SLOTS.lock();
        if let Some(taken) = slots.get_mut(self.slot).filter(|taken| !self.has_slot && !**taken) {
            *taken = true;
            self.has_slot = true;
            Root::kernel().set_top(self.start, Some((&self.slot_table, Flags::NO_EXECUTE)));
            x86_64::instructions::tlb::flush_all();
        }
    }

    /// Returns the value of CR3 while the domain runs sandboxed.
    pub fn cr3(&self) -> u64 {
        self.root.physical()
    }

    /// Returns whether an upcall into the domain is under way.
    pub fn is_entered(&self) -> bool {
        crate::arch::cpu::this().domain_cr3.get() == self.cr3()
    }

    /// Returns whether the driver sleeps ([`crate::upcall::Current::sleep`]).
    pub fn is_asleep(&self) -> bool {
        self.enters.get() == NOWHERE
    }

    /// Returns whether the driver can be entered at `rip`: the address must be in its slot, and the
    /// driver must not sleep, because a part of its stack may then hold the kernel's registers.
    #[inline(always)]
    pub(crate) fn can_be_entered(&self, rip: u64) -> bool {
        rip / SLOT_SIZE == self.enters.get()
    }

    /// Keeps the state that resumes the driver, which sleeps from now on.
    pub(crate) fn fall_asleep(&self, asleep: Asleep) {
        self.asleep.set(Some(asleep));
        self.enters.set(NOWHERE);
    }

    /// Returns the state that resumes the driver, which does not sleep any more; `None` if it did
    /// not sleep.
    pub(crate) fn wake(&self) -> Option<Asleep> {
        self.enters.set(self.start / SLOT_SIZE);
        self.asleep.take()
    }

    /// Returns the registers with which the driver goes on, if it stands behind a trap.
    pub fn standing(&self) -> Option<TrapFrame> {
        let asleep = self.asleep.take();
        let frame = if let Some(Asleep::Trapped(frame)) = &asleep { Some(*frame) } else { None };
        self.asleep.set(asleep);
        frame
    }

    /// Changes the registers with which the driver goes on, if it stands behind a trap. Segments
    /// and the flags that are not the driver's stay as they must be.
    pub fn set_standing(&self, frame: TrapFrame) {
        if self.standing().is_some() {
            self.asleep.set(Some(Asleep::Trapped(frame)));
        }
    }

    /// Returns the address to which the gate returns that the driver has just called. `rsp` is the
    /// stack pointer at the gate's first instruction.
    pub fn gate_returns_to(&self, rsp: u64) -> Option<u64> {
        let offset = rsp.checked_sub(entry_area::STACKS)? as usize;
        let mut bytes = [0; size_of::<u64>()];
        // The CPU has pushed it last.
        self.stacks.read(offset, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }

    /// Puts a sanitized frame into the stacks' page, where the stack for exceptions is. Returns its
    /// address there. No trap uses that stack before the driver runs.
    pub(crate) fn place_frame(&self, mut frame: TrapFrame) -> u64 {
        frame.sanitize(self.kind() == DomainKind::Segmented);
        let words = frame.words();
        let offset = entry_area::EXCEPTION_STACK_TOP - size_of_val(&words);
        words.iter().zip(offset / 8..).for_each(|(word, index)| self.stacks.store(index, *word));
        entry_area::STACKS + offset as u64
    }

    fn table(&self) -> Root<'_> {
        Root::of(&self.root)
    }

    /// Returns the physical address of the domain's entry stacks.
    pub fn stacks(&self) -> u64 {
        self.stacks.physical()
    }

    /// Returns whether the frame at `pa` holds one of the domain's own tables, or its LDT.
    pub fn has_table(&self, pa: u64) -> bool {
        pa == self.cr3()
            || pa == self.ldt.physical()
            || self.between.as_ref().is_some_and(|between| pa == between.physical())
            || tables::is_below(&self.slot_table, pa)
            || tables::is_below(&self.entry_table, pa)
    }

    /// Returns the address at which the kernel sees the stacks' page.
    pub fn stacks_alias(&self) -> u64 {
        self.stacks.seen_at()
    }

    /// Maps the driver's stack, of `len_bytes` bytes (whole pages).
    pub fn map_stack(&mut self, len_bytes: u64) -> Result<(), OutOfMemory> {
        let top = self.start + STACK_TOP;
        self.map_fresh(top - len_bytes, len_bytes - PAGE_SIZE, rights::WRITE)?;
        self.last_of_stack = Some(self.map_lent(top - PAGE_SIZE, PAGE_SIZE)?);
        Ok(())
    }

    /// Returns RSP for the entry into the driver. As after a call, the return address is there, and
    /// the stack is aligned right above it.
    pub fn first_rsp(&self) -> u64 {
        self.start.wrapping_add(STACK_TOP - 16 - 8)
    }

    /// Makes the next upcall return through the stub that ends it. The stub's address lies on the
    /// stack, where the driver may have overwritten it.
    #[inline]
    pub fn set_return(&self) {
        // The shim of a segmented driver pushes its own.
        if let Some(page) = self.last_of_stack.as_ref().filter(|_| self.lift == 0) {
            page.store(FIRST_RSP_WORD, self.stub(SERVICE_COUNT));
        }
    }

    /// Returns the address of service `number`'s stub.
    pub fn stub(&self, number: usize) -> u64 {
        self.start.wrapping_add(STUBS + number as u64 * STUB_BYTES)
    }

    /// Writes the capability table: ring-1 code and data, the return gate, and a gate for each
    /// granted service.
    ///
    /// A service that was not granted has a gate that is not present, so that calling it faults
    /// with its selector.
    pub fn set_grants(&mut self, granted: Imports) {
        let (segments, end, entries) = match self.kind() {
            DomainKind::Paged => {
                let segments = [descriptor::code64(1), descriptor::data(1)];
                (segments, gates::return_gate_entry(), gates::gate_entries())
            }
            // No 64-bit code segment: with one, the driver could name any address.
            DomainKind::Segmented => {
                let segments = [descriptor::code32(1), descriptor::data32(1)];
                (segments, gates::return_gate32_entry(), gates::gate32_entries())
            }
        };
        self.set_ldt(1, segments);
        self.set_ldt(descriptor::return_gate_entry(), descriptor::call_gate(end, true));
        for (number, entry) in entries.into_iter().enumerate() {
            self.set_ldt(descriptor::gate_entry(number), descriptor::call_gate(entry, granted.contains(number)));
        }
    }

    /// Writes entry `index` of the LDT and the one behind it.
    fn set_ldt(&mut self, index: usize, [low, high]: [u64; 2]) {
        if index + 2 <= descriptor::LDT_BYTES / 8 {
            self.ldt.store(index, low);
            self.ldt.store(index + 1, high);
        }
    }

    /// Writes the stubs for `ring`, and lets the kernel's root execute the slot if `ring` is 0.
    ///
    /// A segmented domain stays in ring 1: in ring 0 its code would run as 64-bit code.
    pub fn set_ring(&mut self, ring: Ring, granted: Imports) {
        let ring = if self.kind() == DomainKind::Segmented { Ring::Sandboxed } else { ring };
        if ring == Ring::Trusted {
            self.end_watch();
        }
        let services = gates::service_functions();
        for (number, service) in services.into_iter().enumerate() {
            let stub = match ring {
                _ if !granted.contains(number) => [0xcc; STUB_BYTES as usize], // int3
                Ring::Sandboxed if self.kind() == DomainKind::Segmented => {
                    far_call_stub32(descriptor::gate_selector(number))
                }
                Ring::Sandboxed => far_call_stub(descriptor::gate_selector(number)),
                Ring::Trusted => jump_stub(service),
            };
            self.write_stub(number, stub);
        }
        // Only a sandboxed upcall ends here; a trusted one returns to the kernel.
        let end = match self.kind() {
            DomainKind::Paged => far_call_stub(descriptor::RETURN_GATE),
            DomainKind::Segmented => upcall_shim(),
        };
        self.write_stub(SERVICE_COUNT, end);
        let flags = match ring {
            Ring::Sandboxed => Flags::NO_EXECUTE,
            Ring::Trusted => Flags::empty(),
        };
        if self.has_slot {
            Root::kernel().set_top(self.start, Some((&self.slot_table, flags)));
            x86_64::instructions::tlb::flush_all();
        }
        self.ring = ring;
    }

    fn write_stub(&self, number: usize, stub: [u8; STUB_BYTES as usize]) {
        // The page is read-only for everyone at its own address; the kernel writes it through
        // physical memory.
        self.write(self.stub(number), &stub);
    }

    /// Returns whether `len_bytes` bytes from `start` are in the domain's own slot. **Nothing
    /// outside the slot changes once the space is made**, above all not the entry area with the
    /// capability table.
    fn is_in_slot(&self, start: u64, len_bytes: u64) -> bool {
        Extent::new(self.start, SLOT_SIZE).encloses(Extent::new(start, len_bytes))
    }

    /// Returns whether `len_bytes` bytes from `start` are whole pages of the domain's own slot.
    fn is_own(&self, start: u64, len_bytes: u64) -> bool {
        start.is_multiple_of(PAGE_SIZE) && len_bytes.is_multiple_of(PAGE_SIZE) && self.is_in_slot(start, len_bytes)
    }

    /// Maps fresh zeroed frames from `start` for `len_bytes` bytes, whole pages of the slot.
    pub fn map_fresh(&mut self, start: u64, len_bytes: u64, flags: Flags) -> Result<(), OutOfMemory> {
        if !self.is_own(start, len_bytes) {
            return Err(OutOfMemory);
        }
        for offset in pages(len_bytes) {
            let mapped = Frames::new(1).and_then(|frame| self.table().map(start + offset, Leaf::Own(frame), flags));
            if mapped.is_err() {
                self.unmap(start, offset);
                return Err(OutOfMemory);
            }
        }
        Ok(())
    }

    /// Maps fresh zeroed contiguous memory with several owners, from `start` for `len_bytes` bytes,
    /// whole pages of the slot. The driver can write there as long as it is mapped; the memory
    /// stays as long as it has an owner.
    pub fn map_lent(&mut self, start: u64, len_bytes: u64) -> Result<Lent, OutOfMemory> {
        if !self.is_own(start, len_bytes) {
            return Err(OutOfMemory);
        }
        let memory = Lent::new((len_bytes / PAGE_SIZE) as usize)?;
        self.lent.push((start, memory.clone()));
        for offset in pages(len_bytes) {
            if self.table().map(start + offset, Leaf::Lent(&memory, offset), rights::WRITE).is_err() {
                self.unmap(start, len_bytes);
                return Err(OutOfMemory);
            }
        }
        Ok(memory)
    }

    /// Unmaps `len_bytes` bytes from `start`, whole pages, and frees the frames that have no other
    /// owner. A piece of lent memory is released only when all of it is unmapped at once.
    pub fn unmap(&mut self, start: u64, len_bytes: u64) {
        if !self.is_own(start, len_bytes) {
            return;
        }
        for offset in pages(len_bytes) {
            drop(self.table().take(start + offset));
        }
        let gone = Extent::new(start, len_bytes);
        self.lent.retain(|(at, memory)| !gone.encloses(Extent::new(*at, memory.len_bytes() as u64)));
    }

    /// Changes the rights of `len_bytes` bytes from `start`, whole pages of the slot.
    pub fn protect(&mut self, start: u64, len_bytes: u64, flags: Flags) {
        if !self.is_own(start, len_bytes) {
            return;
        }
        for offset in pages(len_bytes) {
            self.table().set_flags(start + offset, flags);
        }
        x86_64::instructions::tlb::flush_all();
    }

    /// Calls `with` for each page that has a frame: its address, in ascending order, and its
    /// rights.
    pub fn for_each_page(&self, with: &mut dyn FnMut(u64, Flags)) {
        match self.kind() {
            DomainKind::Paged => self.table().for_each_page(with),
            // The others are the kernel's, which the driver cannot name.
            DomainKind::Segmented => self.table().for_each_page_around(self.start, with),
        }
    }

    /// Returns the physical address and the rights of `address`, if the domain has it mapped.
    pub fn translate(&self, address: u64) -> Option<(u64, Flags)> {
        // The tables would accept it: they ignore the bits that make an address non-canonical.
        x86_64::VirtAddr::try_new(address).ok()?;
        self.table().translate(address)
    }

    /// Writes `bytes` at `start`, even if the domain itself may not write there. Returns `false` if
    /// some of them are outside the slot, or a page is not the domain's memory.
    pub fn write(&self, start: u64, bytes: &[u8]) -> bool {
        if !self.is_in_slot(start, bytes.len() as u64) {
            return false;
        }
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let Some(address) = start.checked_add(done as u64) else { return false };
            let here = rest.len().min((PAGE_SIZE - address % PAGE_SIZE) as usize);
            let part = rest.get(..here).unwrap_or_default();
            if self.table().with_page(address, |page, offset| page.write(offset, part)) != Some(true) {
                return false;
            }
            done += here;
        }
        true
    }

    /// Calls `with` with the registers of the domain's device that hold the `len_bytes` bytes at
    /// `start`, and with the offset of the first byte in them. Returns `None` if not all are
    /// mapped.
    pub fn with_registers<R>(&self, start: u64, len_bytes: u64, with: impl FnOnce(&Window, u64) -> R) -> Option<R> {
        crate::arch::cpu::load_kernel_root();
        let (first, end) = (start & !7, start.checked_add(len_bytes)?);
        let pages = (first & !(PAGE_SIZE - 1)..end).step_by(PAGE_SIZE as usize);
        self.unwatched(pages.clone(), || {
            let is_device = |page: u64| self.translate(page).is_some_and(|(_, flags)| flags.contains(rights::DEVICE));
            if !self.has_slot || slot_of(first) != Some(self.slot) || !pages.clone().all(is_device) {
                return None;
            }
            // SAFETY: all pages are registers of the domain's device, and the kernel's root maps
            // the slot through the same tables until `with` returns.
            let registers = unsafe { Registers::mapped(first, end - first) };
            Some(with(&Window::new(registers), start - first))
        })
    }

    /// Copies bytes from `start` into `to`. Returns `false` if some of them are outside the slot,
    /// or a page is not the domain's own memory. Device registers do not count as memory: reading
    /// them has side effects, and they may lie where the kernel has no physical memory mapped.
    pub fn read(&self, start: u64, to: &mut [u8]) -> bool {
        self.is_in_slot(start, to.len() as u64) && read(self.table(), start, to)
    }
}

/// Copies bytes from `start` into `to` from the memory of the domain whose upcall is under way, as
/// [`Space::read`] does.
pub fn read_entered(start: u64, to: &mut [u8]) -> bool {
    entered().is_some_and(|root| read(root, start, to))
}

/// Returns the root of the domain whose upcall is under way. It stays valid, as the caller that
/// entered the domain has its address space.
fn entered() -> Option<Root<'static>> {
    Root::loaded(&crate::arch::cpu::this().domain_cr3)
}

fn read(root: Root, start: u64, to: &mut [u8]) -> bool {
    let mut done = 0;
    while done < to.len() {
        let Some(address) = start.checked_add(done as u64) else { return false };
        let here = (to.len() - done).min((PAGE_SIZE - address % PAGE_SIZE) as usize);
        let Some(part) = to.get_mut(done..done + here) else { return false };
        if root.with_page(address, |page, offset| page.read(offset, part)) != Some(true) {
            return false;
        }
        done += here;
    }
    true
}

impl Drop for Space {
    fn drop(&mut self) {
        // A space in use is never freed. If it was replaced while its driver runs, its memory is
        // lost.
        if self.set_aside || self.is_entered() {
            let own = [&self.root, &self.slot_table, &self.entry_table, &self.ldt, &self.stacks];
            own.into_iter().chain(&self.io_bitmap).chain(&self.between).for_each(Frames::keep);
            self.lent.iter().for_each(|(_, memory)| memory.keep());
            return;
        }
        // The kernel may still go on with this root.
        crate::arch::cpu::load_kernel_root();
        if self.has_slot {
            Root::kernel().set_top(self.start, None);
            x86_64::instructions::tlb::flush_all();
            SLOTS.lock()[self.slot] = false;
        }
        for table in [&self.slot_table, &self.entry_table] {
            tables::free_below(table);
        }
    }
}

/// Returns whether a domain has slot `slot`.
pub fn is_taken(slot: usize) -> bool {
    SLOTS.lock().get(slot).copied().unwrap_or(false)
}

fn take_slot() -> Option<usize> {
    let mut slots = SLOTS.lock();
    let slot = slots.iter().position(|taken| !taken)?;
    slots[slot] = true;
    Some(slot)
}

/// Returns `lcall *2(%rip); ret`, followed by the 6-byte operand: an offset, which a gate ignores,
/// and the selector.
///
/// This is FF /3 without REX.W: AMD has no m16:64 form (APM vol. 3, CALL far).
fn far_call_stub(selector: u16) -> [u8; STUB_BYTES as usize] {
    let mut stub = [0xcc; STUB_BYTES as usize];
    let [low, high] = selector.to_le_bytes();
    let code = [0xff, 0x1d, 2, 0, 0, 0, 0xc3, 0xcc, 0, 0, 0, 0, low, high];
    stub[..code.len()].copy_from_slice(&code);
    stub
}

/// Returns the stub of a service for a segmented driver: it takes the arguments from the stack,
/// where the i386's calling convention has them as 64-bit words, and calls the gate. The first two
/// are passed as they are, in EBX:EAX and ESI:EDX; no third argument has more than the 32 bits of
/// ECX.
fn far_call_stub32(selector: u16) -> [u8; STUB_BYTES as usize] {
    let [low, high] = selector.to_le_bytes();
    let push_ebx_esi = [0x53, 0x56];
    // mov OFFSET(%esp) to EAX, EBX, EDX, ESI, ECX
    let first = [0x8b, 0x44, 0x24, 12, 0x8b, 0x5c, 0x24, 16];
    let second = [0x8b, 0x54, 0x24, 20, 0x8b, 0x74, 0x24, 24];
    let third = [0x8b, 0x4c, 0x24, 28];
    let lcall = [0x9a, 0, 0, 0, 0, low, high];
    let pop_esi_ebx_ret = [0x5e, 0x5b, 0xc3];
    stub_of(&[&push_ebx_esi, &first, &second, &third, &lcall, &pop_esi_ebx_ret])
}

/// Returns the code in which an upcall of a segmented driver begins and ends: it pushes EAX, EDX,
/// ECX and EBX as four 64-bit arguments, the last one first, calls the entry point in ESI, and ends
/// by SYSCALL, or at the return gate.
fn upcall_shim() -> [u8; STUB_BYTES as usize] {
    let [low, high] = descriptor::RETURN_GATE.to_le_bytes();
    let arguments = [0x6a, 0, 0x53, 0x6a, 0, 0x51, 0x6a, 0, 0x52, 0x6a, 0, 0x50];
    let call_entry_point = [0xff, 0xd6];
    let end: &[u8] = if syscall::ends_upcalls() { &[0x0f, 0x05] } else { &[0x9a, 0, 0, 0, 0, low, high] };
    stub_of(&[&arguments, &call_entry_point, end])
}

/// Returns a stub with these parts, filled up with breakpoints.
fn stub_of(parts: &[&[u8]]) -> [u8; STUB_BYTES as usize] {
    let mut stub = [0xcc; STUB_BYTES as usize];
    let bytes = parts.iter().copied().flatten();
    stub.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    stub
}

/// Returns `movabs $target, %rax; jmp *%rax`.
fn jump_stub(target: u64) -> [u8; STUB_BYTES as usize] {
    let mut stub = [0xcc; STUB_BYTES as usize];
    stub[..2].copy_from_slice(&[0x48, 0xb8]);
    stub[2..10].copy_from_slice(&target.to_le_bytes());
    stub[10..12].copy_from_slice(&[0xff, 0xe0]);
    stub
}
