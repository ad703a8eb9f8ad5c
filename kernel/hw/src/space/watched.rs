//! The accesses of a driver to its device's registers, seen one by one.
//!
//! Pages of registers are made not present, and ports are closed. So an access raises an exception.
//! The page or the ports are then opened for one instruction: the flags of the driver have TF set,
//! and the debug exception behind that instruction closes everything again. The driver notices
//! nothing but the time that this takes, and all other drivers run on as they do.
//!
//! The value is in a general register, before or after the instruction. If it is not, as with `or
//! [register], 1`, a page of memory stands in for the page of registers. The kernel reads the
//! device's register into it before the instruction, and writes it back behind it.
//!
//! **Only pages and ports of the driver's device are ever opened.** A trusted driver is not
//! watched, as its accesses would be exceptions of the kernel.

use super::device::DriverPorts;
use super::{Ring, Space, rights};
use crate::arch::frame::{TRAP_FLAG, TrapFrame};
use crate::memory::frames::Frames;
use crate::memory::pages;
use crate::memory::tables::{DevicePage, Leaf};
use alloc::vec::Vec;
use heapless::Vec as Few;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::manifest::DomainKind;
use ringfence_abi::queue::Words;
use ringfence_core::access::{Access, Direction};
use ringfence_core::extent::Extent;
use ringfence_core::port_bitmap::Ports;
use x86_64::structures::paging::PageTableFlags as Flags;

/// A place that a driver accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An address in its slot.
    Memory(u64),
    /// A port.
    Port(u16),
}

/// The most places that one instruction accesses: source and target, each at the edge of two pages.
const MOST: usize = 4;

/// The accesses of an instruction that were let through.
#[derive(Debug, Default)]
pub struct Accesses {
    /// The places, and the access to each.
    pub all: Few<(Place, Access), MOST>,
    /// The address of the instruction.
    pub rip: u64,
    /// The general registers before it.
    pub registers: [u64; 16],
    /// Whether the driver had set TF itself, so that it expects a debug exception.
    pub steps: bool,
}

/// The registers that are watched.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pages: Vec<(u64, DevicePage)>,
    ports: Vec<Ports>,
    /// The accesses of the instruction under way that are let through.
    open: Accesses,
    /// Memory that can stand in for a page of registers, and the address at which it does.
    memory: Option<Frames>,
    stands_in: Option<u64>,
}

impl Watched {
    fn page(&self, page: u64) -> Option<DevicePage> {
        self.pages.iter().find(|(address, _)| *address == page).map(|(_, registers)| *registers)
    }
}

/// Returns the rights of a page of registers that is watched: its usual rights without `PRESENT`.
const fn hidden() -> Flags {
    rights::DEVICE.difference(Flags::PRESENT)
}

fn page_of(address: u64) -> u64 {
    address & !(PAGE_SIZE - 1)
}

impl Space {
    /// Watches the registers in `extent`, which has whole pages of the slot. Pages without
    /// registers stay as they are. A segmented driver is not watched: its accesses are those of
    /// 32-bit code.
    pub fn watch_registers(&mut self, extent: Extent) {
        let can_be_seen = self.ring == Ring::Sandboxed && self.kind() == DomainKind::Paged;
        if !can_be_seen || !self.is_own(extent.start, extent.len_bytes) {
            return;
        }
        // Without it, some values stay unknown.
        self.watched.memory = self.watched.memory.take().or_else(|| Frames::new(1).ok());
        for page in pages(extent.len_bytes).map(|offset| extent.start + offset) {
            let registers = self.translate(page).filter(|(_, flags)| flags.contains(rights::DEVICE));
            if let Some(registers) = registers.and_then(|(pa, _)| DevicePage::new(pa))
                && self.watched.page(page).is_none()
            {
                self.watched.pages.push((page, registers));
                self.show(page, hidden());
            }
        }
        x86_64::instructions::tlb::flush_all();
    }

    /// Watches ports that the driver may use.
    pub fn watch_ports(&mut self, ports: DriverPorts) {
        if self.ring == Ring::Sandboxed && self.kind() == DomainKind::Paged {
            self.watched.ports.push(ports.ports());
            self.close(ports.ports());
        }
    }

    /// Watches no registers any more.
    pub fn end_watch(&mut self) {
        self.watched.pages.iter().for_each(|(page, _)| self.show(*page, rights::DEVICE));
        self.watched.ports.iter().for_each(|ports| self.open(*ports));
        x86_64::instructions::tlb::flush_all();
        self.watched = Watched::default();
    }

    /// Opens the registers at `place` for the instruction at `frame`'s RIP, until
    /// [`Space::accessed`], if they are watched. The frame then has TF set. Returns `false` if they
    /// are not, or if they are open already: then another reason than the watch has raised the
    /// exception. Returns `false` also if the instruction accesses too many places.
    ///
    /// If the access has no value yet, the kernel makes it on the driver's behalf.
    pub fn let_through(&mut self, place: Place, access: Access, frame: &mut TrapFrame) -> bool {
        let is_open = |(open, _): &(Place, Access)| match (*open, place) {
            (Place::Memory(open), Place::Memory(address)) => page_of(open) == page_of(address),
            (Place::Port(_), Place::Port(_)) => true,
            _ => false,
        };
        let is_watched = match place {
            Place::Memory(address) => self.watched.page(page_of(address)).is_some(),
            Place::Port(port) => self.watched.ports.iter().any(|ports| ports.has(port)),
        };
        if !is_watched || self.watched.open.all.iter().any(is_open) {
            return false;
        }
        let open = &mut self.watched.open;
        if open.all.is_empty() {
            (open.rip, open.registers) = (frame.rip, frame.general());
            open.steps = frame.rflags & TRAP_FLAG != 0;
        }
        if open.all.push((place, access)).is_err() {
            return false;
        }
        frame.rflags |= TRAP_FLAG;
        match place {
            Place::Memory(address) if access.value.is_none() && self.stand_in(address, access) => {}
            Place::Memory(address) => self.show(page_of(address), rights::DEVICE),
            Place::Port(_) => self.watched.ports.iter().for_each(|ports| self.open(*ports)),
        }
        true
    }

    /// Makes memory with the register's value stand in for the page of registers at `address`, if
    /// that is possible.
    fn stand_in(&mut self, address: u64, access: Access) -> bool {
        let width_bytes = u64::from(access.width_bytes);
        let Some(memory) = self.watched.memory.as_ref().filter(|_| self.watched.stands_in.is_none()) else {
            return false;
        };
        if !matches!(width_bytes, 1 | 2 | 4) || !address.is_multiple_of(width_bytes) {
            return false;
        }
        let mut value = 0;
        if access.direction != Direction::Writes {
            let read =
                self.with_registers(address, width_bytes, |window, offset| window.read(offset, width_bytes as u32));
            let Some(read) = read else { return false };
            value = read;
        }
        let (offset, bytes) = ((address % PAGE_SIZE) as usize, value.to_le_bytes());
        memory.write(offset, bytes.get(..width_bytes as usize).unwrap_or_default());
        let page = page_of(address);
        let is_there = self.table().map(page, Leaf::Lent(memory, 0), rights::WRITE).is_ok();
        x86_64::instructions::tlb::flush_all();
        if is_there {
            self.watched.stands_in = Some(address);
            if let Some((_, access)) =
                self.watched.open.all.last_mut().filter(|_| access.direction != Direction::Writes)
            {
                access.before = Some(value.into());
            }
        }
        is_there
    }

    /// Closes the registers that are open, behind the instruction whose debug exception has
    /// `frame`, and takes TF back. Returns the accesses of the instruction.
    pub fn accessed(&mut self, frame: &mut TrapFrame) -> Accesses {
        let mut accesses = core::mem::take(&mut self.watched.open);
        for (place, access) in &mut accesses.all {
            match *place {
                Place::Memory(address) => {
                    self.show(page_of(address), hidden());
                    if self.watched.stands_in == Some(address) {
                        self.take_value(address, access);
                    }
                }
                Place::Port(_) => self.watched.ports.iter().for_each(|ports| self.close(*ports)),
            }
        }
        if !accesses.all.is_empty() {
            x86_64::instructions::tlb::flush_all();
            if !accesses.steps {
                frame.rflags &= !TRAP_FLAG;
            }
        }
        accesses
    }

    /// Closes the registers that are open for an instruction that was not executed.
    pub fn hide_again(&mut self) {
        let Accesses { all, .. } = core::mem::take(&mut self.watched.open);
        self.watched.stands_in = None;
        for (place, _) in &all {
            match *place {
                Place::Memory(address) => self.show(page_of(address), hidden()),
                Place::Port(_) => self.watched.ports.iter().for_each(|ports| self.close(*ports)),
            }
        }
        if !all.is_empty() {
            x86_64::instructions::tlb::flush_all();
        }
    }

    /// Takes the value from the memory that stood in for the registers at `address`, and writes it
    /// to the device if the instruction has written it.
    fn take_value(&mut self, address: u64, access: &mut Access) {
        self.watched.stands_in = None;
        let mut bytes = [0; 4];
        let width_bytes = u32::from(access.width_bytes);
        if let (Some(memory), Some(bytes)) = (&self.watched.memory, bytes.get_mut(..width_bytes as usize)) {
            memory.read((address % PAGE_SIZE) as usize, bytes);
        }
        let value = u32::from_le_bytes(bytes);
        access.value = Some(value.into());
        if access.direction == Direction::Reads {
            access.before = None;
            return;
        }
        // The pages are there, as they are watched.
        let _ = self.with_registers(address, width_bytes.into(), |window, offset| {
            window.write(offset, width_bytes, value);
        });
    }

    /// Maps a watched page to its registers, with rights `flags`.
    fn show(&self, page: u64, flags: Flags) {
        if let Some(registers) = self.watched.page(page) {
            // The tables are there, as the page was mapped before.
            let _ = self.table().map(page, Leaf::Registers(registers), flags);
        }
    }

    /// Runs `with` while the registers in `pages`, whose addresses they are, can be reached by the
    /// kernel as well.
    pub(super) fn unwatched<R>(&self, pages: impl Iterator<Item = u64> + Clone, with: impl FnOnce() -> R) -> R {
        pages.clone().for_each(|page| self.show(page, rights::DEVICE));
        let result = with();
        if !self.watched.pages.is_empty() {
            pages.for_each(|page| self.show(page, hidden()));
            x86_64::instructions::tlb::flush_all();
        }
        result
    }

    fn close(&self, ports: Ports) {
        if let Some(bitmap) = &self.io_bitmap {
            ports.words().for_each(|(index, closed)| bitmap.store(index, bitmap.load(index) | closed));
        }
    }

    pub(super) fn open(&self, ports: Ports) {
        // No domain can write the bitmap.
        if let Some(bitmap) = &self.io_bitmap {
            ports.words().for_each(|(index, open)| bitmap.store(index, bitmap.load(index) & !open));
        }
    }
}
