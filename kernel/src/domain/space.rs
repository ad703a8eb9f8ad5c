//! A domain's address space: its root, its slot, and its own pages of the entry area.
//!
//! **A domain's root maps its slot and the entry area, nothing else.** The kernel's root maps the slot too, through the
//! same tables below one top-level entry; that entry has NX set as long as the domain is sandboxed, so that ring 0 can
//! never run its code by mistake.

use crate::arch::{entry_area, gates};
use crate::memory::frames::{self, OutOfMemory};
use crate::memory::{at_physical, kernel_root, pages, tables};
use core::fmt;
use ringfence_abi::layout::{MAX_DOMAINS, PAGE_SIZE, STUBS, slot_base};
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
    /// Physical addresses: the root; the slot's table of level 3; the entry area's of level 3.
    root: u64,
    slot_table: u64,
    entry_table: u64,
    /// Physical addresses of its own pages of the entry area.
    ldt: u64,
    io_bitmap: Option<u64>,
    stacks: u64,
    /// Set when none of its memory may be used again.
    set_aside: bool,
}

/// See [`Space::shared_root`].
pub struct SharedRoot {
    /// What CR3 holds to use it.
    pub root: u64,
    table: u64,
}

impl SharedRoot {
    /// Frees it; nobody may use it any more.
    pub fn free(self) {
        frames::free(self.root);
        frames::free(self.table);
    }
}

/// Bytes from one service's stub to the next. The stub behind the last service ends an upcall.
const STUB_BYTES: u64 = 32;
const _: () = assert!((SERVICE_COUNT as u64 + 1) * STUB_BYTES <= PAGE_SIZE);

impl Space {
    /// An empty address space, sandboxed, in the slot of `before`, which is never entered again, or in a free one; `None` if
    /// all slots are taken.
    pub fn new(before: Option<&mut Space>) -> Result<Option<Space>, OutOfMemory> {
        let Some(slot) = before.and_then(Space::leave_slot).or_else(take_slot) else { return Ok(None) };
        let mut space = Space {
            slot,
            has_slot: true,
            ring: Ring::Sandboxed,
            root: 0,
            slot_table: 0,
            entry_table: 0,
            ldt: 0,
            io_bitmap: None,
            stacks: 0,
            set_aside: false,
        };
        // On an error `space` is dropped, which frees what it has by then.
        space.root = frames::allocate(1)?;
        space.slot_table = frames::allocate(1)?;
        space.entry_table = frames::allocate(1)?;
        space.ldt = frames::allocate(1)?;
        space.stacks = frames::allocate(1)?;
        tables::set_top(space.root, slot_base(slot), Some((space.slot_table, Flags::empty())));
        tables::set_top(kernel_root(), slot_base(slot), Some((space.slot_table, Flags::NO_EXECUTE)));
        tables::set_top(space.root, entry_area::BASE, Some((space.entry_table, Flags::empty())));
        for page in (entry_area::BASE..entry_area::BASE + entry_area::LEN_BYTES).step_by(PAGE_SIZE as usize) {
            // The kernel's own frames, read-only, but for the pages that are the domain's.
            let (kernels, _) = tables::translate(kernel_root(), page).ok_or(OutOfMemory)?;
            let (pa, flags) = match page {
                entry_area::LDT => (space.ldt, rights::READ),
                entry_area::STACKS => (space.stacks, rights::WRITE),
                _ if page < entry_area::BASE + entry_area::TEXT_PAGES * PAGE_SIZE => (kernels, rights::EXECUTE),
                _ => (kernels, rights::READ),
            };
            tables::map(space.root, page, pa, flags)?;
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
            tables::set_top(kernel_root(), slot_base(self.slot), Some((self.slot_table, Flags::NO_EXECUTE)));
            x86_64::instructions::tlb::flush_all();
        }
    }

    /// What CR3 holds while the domain runs sandboxed.
    pub fn cr3(&self) -> u64 {
        self.root
    }

    /// Physical address of its entry stacks.
    pub fn stacks(&self) -> u64 {
        self.stacks
    }

    /// Whether the frame at `pa` holds one of its own tables, or of its other pages of the entry area.
    pub fn has_table(&self, pa: u64) -> bool {
        let level_3 = 3;
        pa == self.root
            || pa == self.ldt
            || tables::is_below(self.slot_table, level_3, pa)
            || tables::is_below(self.entry_table, level_3, pa)
    }

    /// Where the kernel sees the stacks' page.
    pub fn stacks_alias(&self) -> u64 {
        at_physical(self.stacks) as u64
    }

    /// Address of the stub that ends an upcall.
    pub fn return_stub(&self) -> u64 {
        self.stub(SERVICE_COUNT)
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
        let Some(entries) = (index + 2 <= descriptor::LDT_BYTES / 8).then(|| at_physical(self.ldt).cast::<u64>())
        else {
            return;
        };
        // SAFETY: both lie in the LDT, which is one page of the domain's.
        unsafe {
            entries.add(index).write(low);
            entries.add(index + 1).write(high);
        }
    }

    /// Opens I/O ports to the domain.
    pub fn allow_ports(&mut self, ports: Ports) -> Result<(), OutOfMemory> {
        let bitmap = match self.io_bitmap {
            Some(bitmap) => bitmap,
            None => {
                let bitmap = frames::allocate(port_bitmap::BYTES / PAGE_SIZE as usize)?;
                // SAFETY: the frames are ours since just now.
                unsafe { at_physical(bitmap).write_bytes(0xff, port_bitmap::BYTES) };
                self.io_bitmap = Some(bitmap);
                for offset in (0..port_bitmap::BYTES as u64).step_by(PAGE_SIZE as usize) {
                    tables::map(self.root, entry_area::IO_BITMAP + offset, bitmap + offset, rights::READ)?;
                }
                bitmap
            }
        };
        // SAFETY: the frames are ours, and no domain can write them.
        let bitmap = unsafe { &mut *at_physical(bitmap).cast::<[u8; port_bitmap::BYTES]>() };
        ports.allow(bitmap);
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
            tables::set_top(kernel_root(), slot_base(self.slot), Some((self.slot_table, flags)));
            x86_64::instructions::tlb::flush_all();
        }
        self.ring = ring;
    }

    /// Has service `number`'s gate lead elsewhere, for `bench`. [`Space::set_grants`] takes it back.
    pub fn retarget_gate(&mut self, number: usize, target: u64) {
        self.set_ldt(descriptor::gate_entry(number), descriptor::call_gate(target, true));
    }

    /// Has service `number`'s stub raise an interrupt, for `bench`. [`Space::set_ring`] takes it back.
    pub fn stub_to_interrupt(&mut self, number: usize, vector: u8) {
        let mut stub = [0xcc; STUB_BYTES as usize];
        stub[..3].copy_from_slice(&[0xcd, vector, 0xc3]);
        self.write_stub(number, stub);
    }

    /// A root that maps the kernel as well as the domain: what crossings cost if there were no protection of memory.
    /// For `bench` only.
    pub fn shared_root(&self) -> Result<SharedRoot, OutOfMemory> {
        let root = frames::allocate(1)?;
        let Ok(table) = frames::allocate(1) else {
            frames::free(root);
            return Err(OutOfMemory);
        };
        tables::merge(root, kernel_root(), table, self.root, entry_area::BASE);
        tables::set_top(root, slot_base(self.slot), Some((self.slot_table, Flags::empty())));
        Ok(SharedRoot { root, table })
    }

    /// Has upcalls use another root; returns the one before.
    pub fn use_root(&mut self, root: u64) -> u64 {
        core::mem::replace(&mut self.root, root)
    }

    fn write_stub(&self, number: usize, stub: [u8; STUB_BYTES as usize]) {
        // The page is read-only for everyone at its own address; the kernel writes it through physical memory.
        self.write(self.stub(number), &stub);
    }

    /// Maps fresh zeroed frames from `start` for `len_bytes` bytes, whole pages.
    pub fn map_fresh(&mut self, start: u64, len_bytes: u64, flags: Flags) -> Result<(), OutOfMemory> {
        for offset in pages(len_bytes) {
            let frame = frames::allocate(1)?;
            let mapped = tables::map(self.root, start + offset, frame, flags | rights::OWN);
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
            if tables::map(self.root, start + offset, pa + offset, rights::WRITE | rights::OWN).is_err() {
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
            if tables::map(self.root, start + offset, pa + offset, rights::DEVICE).is_err() {
                self.unmap(start, offset);
                return Err(OutOfMemory);
            }
        }
        Ok(())
    }

    /// Unmaps `len_bytes` bytes from `start`, whole pages, and frees the frames that it owns.
    pub fn unmap(&mut self, start: u64, len_bytes: u64) {
        for offset in pages(len_bytes) {
            tables::unmap(self.root, start + offset);
        }
    }

    /// Changes the rights of `len_bytes` bytes from `start`, whole pages.
    pub fn protect(&mut self, start: u64, len_bytes: u64, flags: Flags) {
        for offset in pages(len_bytes) {
            tables::set_flags(self.root, start + offset, flags);
        }
        x86_64::instructions::tlb::flush_all();
    }

    /// Physical address and rights of `address`, if the domain has it mapped.
    pub fn translate(&self, address: u64) -> Option<(u64, Flags)> {
        translate(self.root, address)
    }

    /// Writes `bytes` at `start`, whatever the domain's own rights are; `false` if a page is not mapped.
    pub fn write(&self, start: u64, bytes: &[u8]) -> bool {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let address = start + done as u64;
            let Some((pa, _)) = self.translate(address) else { return false };
            let here = rest.len().min((PAGE_SIZE - address % PAGE_SIZE) as usize);
            // SAFETY: `here` bytes from `pa` lie in one frame of the domain.
            unsafe { core::ptr::copy_nonoverlapping(rest.as_ptr(), at_physical(pa), here) };
            done += here;
        }
        true
    }

    /// Copies bytes from `start` into `to`; `false` if a page is not the domain's own memory ([`read`]).
    pub fn read(&self, start: u64, to: &mut [u8]) -> bool {
        read(self.root, start, to)
    }
}

/// What is mapped at `address` under `root`: its physical address and rights.
fn translate(root: u64, address: u64) -> Option<(u64, Flags)> {
    // The tables would not know: they ignore the bits that make an address non-canonical.
    x86_64::VirtAddr::try_new(address).ok()?;
    tables::translate(root, address)
}

/// Copies bytes from `start` into `to`; `false` if a page is not the memory of the domain that has `root`. Registers of its
/// device are not: reading them does things, and they need not lie where the kernel has physical memory mapped.
pub fn read(root: u64, start: u64, to: &mut [u8]) -> bool {
    let mut done = 0;
    while done < to.len() {
        let Some(address) = start.checked_add(done as u64) else { return false };
        let Some((pa, flags)) = translate(root, address) else { return false };
        if !flags.contains(rights::OWN) {
            return false;
        }
        let here = (to.len() - done).min((PAGE_SIZE - address % PAGE_SIZE) as usize);
        // SAFETY: `here` bytes from `pa` lie in one frame of the domain, and `to` has room for them.
        unsafe { core::ptr::copy_nonoverlapping(at_physical(pa), to.as_mut_ptr().add(done), here) };
        done += here;
    }
    true
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.set_aside {
            return;
        }
        if self.has_slot {
            tables::set_top(kernel_root(), slot_base(self.slot), None);
            x86_64::instructions::tlb::flush_all();
            SLOTS.lock()[self.slot] = false;
        }
        for (table, level) in [(self.slot_table, 3), (self.entry_table, 3)] {
            if table != 0 {
                tables::free_tree(table, level);
            }
        }
        for frame in [self.root, self.ldt, self.stacks] {
            if frame != 0 {
                frames::free(frame);
            }
        }
        if let Some(bitmap) = self.io_bitmap {
            frames::free_run(bitmap, port_bitmap::BYTES / PAGE_SIZE as usize);
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
