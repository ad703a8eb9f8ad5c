//! A domain's address space: its root, its slot, and its own pages of the entry area.
//!
//! **A domain's root maps its slot and the entry area, nothing else.** The kernel's root maps the slot too, through the
//! same tables below one top-level entry; that entry has NX set as long as the domain is sandboxed, so that ring 0 can
//! never run its code by mistake.

#[cfg(feature = "bench")]
mod bench;
mod inherit;

#[cfg(feature = "bench")]
pub use bench::Changed;

use crate::arch::{entry_area, gates};
use crate::memory::frames::{self, Frames, OutOfMemory};
use crate::memory::registers::Registers;
use crate::memory::shared::SharedMemory;
use crate::memory::{at_physical, kernel_root, pages, tables};
use core::fmt;
use ringfence_abi::layout::{MAX_DOMAINS, PAGE_SIZE, STACK_TOP, STUBS, slot_base};
use ringfence_abi::queue::Words;
use ringfence_abi::service::SERVICE_COUNT;
use ringfence_core::descriptor;
use ringfence_core::module::Imports;
use ringfence_core::port_bitmap::{self, Ports};
use spin::Mutex;
use x86_64::structures::paging::PageTableFlags as Flags;

/// Which slots are taken.
static SLOTS: Mutex<[bool; MAX_DOMAINS]> = Mutex::new([false; MAX_DOMAINS]);

/// Rights of ordinary pages.
pub mod rights {
    use super::Flags;
    use crate::memory::tables::OWNED;
    /// Read only.
    pub const READ: Flags = Flags::PRESENT.union(Flags::NO_EXECUTE);
    /// Read and write.
    pub const WRITE: Flags = READ.union(Flags::WRITABLE);
    /// Read and execute.
    pub const EXECUTE: Flags = Flags::PRESENT;
    /// Device registers: read and write, not cached.
    pub const DEVICE: Flags = WRITE.union(Flags::NO_CACHE).union(Flags::WRITE_THROUGH);
    /// Not even read: the frame stays with its page, and goes with it.
    pub const KEPT: Flags = Flags::NO_EXECUTE;
    /// The frame goes when the mapping goes.
    pub const OWN: Flags = OWNED;
}

/// Where a domain runs.
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

/// A domain's address space. Dropping it frees all of it.
pub struct Space {
    slot: usize,
    /// Not any more once it has a successor, which is in the slot from then on.
    has_slot: bool,
    ring: Ring,
    /// The root; the slot's table of level 3; the entry area's of level 3.
    root: Frames,
    slot_table: Frames,
    entry_table: Frames,
    /// Its own pages of the entry area.
    ldt: Frames,
    io_bitmap: Option<Frames>,
    stacks: Frames,
    /// The place on the driver's stack from which it returns, once that is mapped.
    return_place: Option<SharedMemory>,
    /// Set when none of its memory may be used again.
    set_aside: bool,
}

/// Bytes from one service's stub to the next. The stub behind the last service ends an upcall.
const STUB_BYTES: u64 = 32;
const _: () = assert!((SERVICE_COUNT as u64 + 1) * STUB_BYTES <= PAGE_SIZE);

impl Space {
    /// An empty address space, sandboxed, in the slot of `before`, which is never entered again, or in a free one; `None` if
    /// all slots are taken.
    pub fn new(before: Option<&mut Space>) -> Result<Option<Space>, OutOfMemory> {
        let frame = || Frames::new(1);
        let (root, slot_table, entry_table, ldt, stacks) = (frame()?, frame()?, frame()?, frame()?, frame()?);
        let Some(slot) = before.and_then(Space::leave_slot).or_else(take_slot) else { return Ok(None) };
        // On an error from here on `space` is dropped, which frees what it has by then.
        let mut space = Space {
            slot,
            has_slot: true,
            ring: Ring::Sandboxed,
            root,
            slot_table,
            entry_table,
            ldt,
            io_bitmap: None,
            stacks,
            return_place: None,
            set_aside: false,
        };
        tables::set_top(space.cr3(), slot_base(slot), Some((space.slot_table.physical(), Flags::empty())));
        tables::set_top(kernel_root(), slot_base(slot), Some((space.slot_table.physical(), Flags::NO_EXECUTE)));
        tables::set_top(space.cr3(), entry_area::BASE, Some((space.entry_table.physical(), Flags::empty())));
        for page in (entry_area::BASE..entry_area::BASE + entry_area::LEN_BYTES).step_by(PAGE_SIZE as usize) {
            // The kernel's own frames, read-only, but for the pages that are the domain's.
            let (kernels, _) = tables::translate(kernel_root(), page).ok_or(OutOfMemory)?;
            let (pa, flags) = match page {
                entry_area::LDT => (space.ldt.physical(), rights::READ),
                entry_area::STACKS => (space.stacks.physical(), rights::WRITE),
                _ if page < entry_area::BASE + entry_area::TEXT_PAGES * PAGE_SIZE => (kernels, rights::EXECUTE),
                _ => (kernels, rights::READ),
            };
            tables::map(space.cr3(), page, pa, flags)?;
        }
        space.map_fresh(slot_base(slot) + STUBS, PAGE_SIZE, rights::EXECUTE)?;
        Ok(Some(space))
    }

    /// The slot's number.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// The ring whose stubs are in place.
    pub fn ring(&self) -> Ring {
        self.ring
    }

    /// Has its memory and its slot never used again: a device may still write there.
    pub fn set_aside(&mut self) {
        self.set_aside = true;
    }

    /// Whether that was done.
    pub fn is_set_aside(&self) -> bool {
        self.set_aside
    }

    /// Leaves its slot to a successor, if it may and still has it. Its memory stays its own.
    fn leave_slot(&mut self) -> Option<usize> {
        let leaves = self.has_slot && !self.set_aside;
        leaves.then(|| {
            self.has_slot = false;
            self.slot
        })
    }

    /// Takes its slot again, if it has left that and nobody has it: no successor came of it.
    pub fn return_to_slot(&mut self) {
        let mut slots = SLOTS.lock();
        if let Some(taken) = slots.get_mut(self.slot).filter(|taken| !self.has_slot && !**taken) {
            *taken = true;
            self.has_slot = true;
            tables::set_top(kernel_root(), slot_base(self.slot), Some((self.slot_table.physical(), Flags::NO_EXECUTE)));
            x86_64::instructions::tlb::flush_all();
        }
    }

    /// What CR3 holds while the domain runs sandboxed.
    pub fn cr3(&self) -> u64 {
        self.root.physical()
    }

    /// Whether an upcall into it is under way.
    pub fn is_entered(&self) -> bool {
        crate::arch::cpu::this().domain_cr3.get() == self.cr3()
    }

    /// Physical address of its entry stacks.
    pub fn stacks(&self) -> u64 {
        self.stacks.physical()
    }

    /// Whether the frame at `pa` holds one of its own tables, or of its other pages of the entry area.
    pub fn has_table(&self, pa: u64) -> bool {
        let level_3 = 3;
        pa == self.cr3()
            || pa == self.ldt.physical()
            || tables::is_below(self.slot_table.physical(), level_3, pa)
            || tables::is_below(self.entry_table.physical(), level_3, pa)
    }

    /// Where the kernel sees the stacks' page.
    pub fn stacks_alias(&self) -> u64 {
        at_physical(self.stacks.physical()) as u64
    }

    /// Maps the driver's stack, of `len_bytes` bytes (whole pages).
    pub fn map_stack(&mut self, len_bytes: u64) -> Result<(), OutOfMemory> {
        self.map_fresh(slot_base(self.slot) + STACK_TOP - len_bytes, len_bytes, rights::WRITE)?;
        let (pa, _) = self.translate(self.first_rsp()).ok_or(OutOfMemory)?;
        self.return_place = Some(SharedMemory::new(pa, size_of::<u64>()));
        Ok(())
    }

    /// RSP when the driver is entered. As after a call: the return address is there, and the stack is aligned right above it.
    pub fn first_rsp(&self) -> u64 {
        slot_base(self.slot) + STACK_TOP - 16 - 8
    }

    /// Has the next upcall return through the stub that ends it: that is on the stack, where the driver may have written.
    #[inline]
    pub fn set_return(&self) {
        if let Some(place) = &self.return_place {
            place.store(0, self.stub(SERVICE_COUNT));
        }
    }

    /// Address of service `number`'s stub.
    pub fn stub(&self, number: usize) -> u64 {
        slot_base(self.slot) + STUBS + number as u64 * STUB_BYTES
    }

    /// Writes the capability table: ring-1 code and data, the return gate, and a gate for each granted service.
    ///
    /// A service that was not granted has a gate that is not present, so that calling it faults with its selector.
    pub fn set_grants(&mut self, granted: Imports) {
        self.set_ldt(1, [descriptor::code64(1), descriptor::data(1)]);
        self.set_ldt(descriptor::return_gate_entry(), descriptor::call_gate(gates::return_gate_entry(), true));
        for (number, entry) in gates::gate_entries().into_iter().enumerate() {
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

    /// Opens I/O ports to the domain.
    pub fn allow_ports(&mut self, ports: Ports) -> Result<(), OutOfMemory> {
        if self.io_bitmap.is_none() {
            let bitmap = Frames::new(port_bitmap::BYTES / PAGE_SIZE as usize)?;
            bitmap.fill(0, port_bitmap::BYTES / size_of::<u64>(), u64::MAX);
            let first = bitmap.physical();
            // It is the domain's from here on: on an error some of it may be mapped.
            self.io_bitmap = Some(bitmap);
            for offset in (0..port_bitmap::BYTES as u64).step_by(PAGE_SIZE as usize) {
                tables::map(self.cr3(), entry_area::IO_BITMAP + offset, first + offset, rights::READ)?;
            }
        }
        // No domain can write it.
        if let Some(bitmap) = &self.io_bitmap {
            ports.words().for_each(|(index, open)| bitmap.store(index, bitmap.load(index) & !open));
        }
        Ok(())
    }

    /// Writes the stubs for `ring` and lets the kernel's root execute the slot, or not.
    pub fn set_ring(&mut self, ring: Ring, granted: Imports) {
        let services = gates::service_functions();
        for (number, service) in services.into_iter().enumerate() {
            let stub = match ring {
                _ if !granted.contains(number) => [0xcc; STUB_BYTES as usize], // int3
                Ring::Sandboxed => far_call_stub(descriptor::gate_selector(number)),
                Ring::Trusted => jump_stub(service),
            };
            self.write_stub(number, stub);
        }
        // Only a sandboxed upcall returns through a gate; a trusted one returns to the kernel.
        self.write_stub(SERVICE_COUNT, far_call_stub(descriptor::RETURN_GATE));
        let flags = match ring {
            Ring::Sandboxed => Flags::NO_EXECUTE,
            Ring::Trusted => Flags::empty(),
        };
        if self.has_slot {
            tables::set_top(kernel_root(), slot_base(self.slot), Some((self.slot_table.physical(), flags)));
            x86_64::instructions::tlb::flush_all();
        }
        self.ring = ring;
    }

    fn write_stub(&self, number: usize, stub: [u8; STUB_BYTES as usize]) {
        // The page is read-only for everyone at its own address; the kernel writes it through physical memory.
        self.write(self.stub(number), &stub);
    }

    /// Maps fresh zeroed frames from `start` for `len_bytes` bytes, whole pages.
    pub fn map_fresh(&mut self, start: u64, len_bytes: u64, flags: Flags) -> Result<(), OutOfMemory> {
        for offset in pages(len_bytes) {
            let frame = frames::allocate(1)?;
            let mapped = tables::map(self.cr3(), start + offset, frame, flags | rights::OWN);
            if mapped.is_err() {
                frames::free(frame);
                self.unmap(start, offset);
                return Err(OutOfMemory);
            }
        }
        Ok(())
    }

    /// Maps fresh zeroed contiguous frames from `start` for `len_bytes` bytes, whole pages; returns their address.
    pub fn map_contiguous(&mut self, start: u64, len_bytes: u64) -> Result<u64, OutOfMemory> {
        let pa = frames::allocate((len_bytes / PAGE_SIZE) as usize)?;
        for offset in pages(len_bytes) {
            if tables::map(self.cr3(), start + offset, pa + offset, rights::WRITE | rights::OWN).is_err() {
                self.unmap(start, offset);
                frames::free_run(pa + offset, ((len_bytes - offset) / PAGE_SIZE) as usize);
                return Err(OutOfMemory);
            }
        }
        Ok(pa)
    }

    /// Maps device registers at physical address `pa` from `start` for `len_bytes` bytes, whole pages.
    pub fn map_device(&mut self, start: u64, pa: u64, len_bytes: u64) -> Result<(), OutOfMemory> {
        for offset in pages(len_bytes) {
            if tables::map(self.cr3(), start + offset, pa + offset, rights::DEVICE).is_err() {
                self.unmap(start, offset);
                return Err(OutOfMemory);
            }
        }
        Ok(())
    }

    /// Unmaps `len_bytes` bytes from `start`, whole pages, and frees the frames that it owns.
    pub fn unmap(&mut self, start: u64, len_bytes: u64) {
        for offset in pages(len_bytes) {
            tables::unmap(self.cr3(), start + offset);
        }
    }

    /// Changes the rights of `len_bytes` bytes from `start`, whole pages.
    pub fn protect(&mut self, start: u64, len_bytes: u64, flags: Flags) {
        for offset in pages(len_bytes) {
            tables::set_flags(self.cr3(), start + offset, flags);
        }
        x86_64::instructions::tlb::flush_all();
    }

    /// Physical address and rights of `address`, if the domain has it mapped.
    pub fn translate(&self, address: u64) -> Option<(u64, Flags)> {
        translate(self.cr3(), address)
    }

    /// Writes `bytes` at `start`, whatever the domain's own rights are; `false` if a page is not mapped.
    pub fn write(&self, start: u64, bytes: &[u8]) -> bool {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let address = start + done as u64;
            let Some((pa, _)) = self.translate(address) else { return false };
            let here = rest.len().min((PAGE_SIZE - address % PAGE_SIZE) as usize);
            // They lie in one frame.
            SharedMemory::new(pa, here).write(0, rest.get(..here).unwrap_or_default());
            done += here;
        }
        true
    }

    /// The `len_bytes` bytes of its device's registers at `start`, and the offset of the first of them there; `None` if they are not all
    /// mapped. They stay so as long as the domain has its device, and the kernel's root maps the slot.
    pub fn registers(&self, start: u64, len_bytes: u64) -> Option<(Registers, u64)> {
        let (first, end) = (start & !7, start.checked_add(len_bytes)?);
        let is_device = |page: u64| self.translate(page).is_some_and(|(_, flags)| flags.contains(rights::DEVICE));
        let mut pages = (first & !(PAGE_SIZE - 1)..end).step_by(PAGE_SIZE as usize);
        // SAFETY: all are registers of the domain's device. Who keeps them is the device, which goes before its domain leaves the slot.
        pages.all(is_device).then(|| (unsafe { Registers::mapped(first, end - first) }, start - first))
    }

    /// Copies bytes from `start` into `to`; `false` if a page is not the domain's own memory ([`read`]).
    pub fn read(&self, start: u64, to: &mut [u8]) -> bool {
        read(self.cr3(), start, to)
    }
}

/// What is mapped at `address` under `root`: its physical address and rights.
fn translate(root: u64, address: u64) -> Option<(u64, Flags)> {
    // The tables would not know: they ignore the bits that make an address non-canonical.
    x86_64::VirtAddr::try_new(address).ok()?;
    tables::translate(root, address)
}

/// Copies bytes from `start` into `to` from the memory of the domain whose upcall is under way, as [`Space::read`] does.
pub fn read_entered(start: u64, to: &mut [u8]) -> bool {
    let root = crate::arch::cpu::this().domain_cr3.get();
    root != 0 && read(root, start, to)
}

/// Copies bytes from `start` into `to`; `false` if a page is not the memory of the domain that has `root`. Registers of its
/// device are not: reading them does things, and they need not lie where the kernel has physical memory mapped.
fn read(root: u64, start: u64, to: &mut [u8]) -> bool {
    let mut done = 0;
    while done < to.len() {
        let Some(address) = start.checked_add(done as u64) else { return false };
        let Some((pa, flags)) = translate(root, address) else { return false };
        if !flags.contains(rights::OWN) {
            return false;
        }
        let here = (to.len() - done).min((PAGE_SIZE - address % PAGE_SIZE) as usize);
        // They lie in one frame.
        SharedMemory::new(pa, here).read(0, to.get_mut(done..done + here).unwrap_or_default());
        done += here;
    }
    true
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.set_aside {
            let own = [&mut self.root, &mut self.slot_table, &mut self.entry_table, &mut self.ldt, &mut self.stacks];
            own.into_iter().chain(&mut self.io_bitmap).for_each(Frames::keep);
            return;
        }
        if self.has_slot {
            tables::set_top(kernel_root(), slot_base(self.slot), None);
            x86_64::instructions::tlb::flush_all();
            SLOTS.lock()[self.slot] = false;
        }
        for table in [&self.slot_table, &self.entry_table] {
            tables::free_below(table.physical(), 3);
        }
    }
}

/// Whether a domain has slot `slot`.
pub fn is_taken(slot: usize) -> bool {
    SLOTS.lock().get(slot).copied().unwrap_or(false)
}

fn take_slot() -> Option<usize> {
    let mut slots = SLOTS.lock();
    let slot = slots.iter().position(|taken| !taken)?;
    slots[slot] = true;
    Some(slot)
}

/// `lcall *2(%rip); ret`, and behind it the 6-byte operand: an offset, which a gate ignores, and the selector.
///
/// FF /3 without REX.W: AMD has no m16:64 form (APM vol. 3, CALL far).
fn far_call_stub(selector: u16) -> [u8; STUB_BYTES as usize] {
    let mut stub = [0xcc; STUB_BYTES as usize];
    let [low, high] = selector.to_le_bytes();
    let code = [0xff, 0x1d, 2, 0, 0, 0, 0xc3, 0xcc, 0, 0, 0, 0, low, high];
    stub[..code.len()].copy_from_slice(&code);
    stub
}

/// `movabs $target, %rax; jmp *%rax`
fn jump_stub(target: u64) -> [u8; STUB_BYTES as usize] {
    let mut stub = [0xcc; STUB_BYTES as usize];
    stub[..2].copy_from_slice(&[0x48, 0xb8]);
    stub[2..10].copy_from_slice(&target.to_le_bytes());
    stub[10..12].copy_from_slice(&[0xff, 0xe0]);
    stub
}
