//! A remapping unit of Intel's VT-d (Virtualization Technology for Directed I/O, revision 4.0), in
//! legacy mode, with queued invalidation.
//!
//! **A device reaches nothing until it has a context entry**, and no device has one when
//! translation is turned on.

use super::unit::{Fault, FaultStatus, InterruptTable, Iommu, ROUTES, Remapper, Unusable};
use crate::memory::frames::{Frames, OutOfMemory};
use crate::memory::pages;
use crate::memory::registers::Registers;
use crate::memory::shared::SharedMemory;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::queue::Words;

/// Registers (10.4).
mod reg {
    pub const CAPABILITY: u64 = 0x08;
    pub const EXTENDED_CAPABILITY: u64 = 0x10;
    pub const COMMAND: u64 = 0x18;
    pub const STATUS: u64 = 0x1c;
    pub const ROOT_TABLE: u64 = 0x20;
    pub const FAULT_STATUS: u64 = 0x34;
    pub const PROTECTED_MEMORY: u64 = 0x64;
    pub const QUEUE_HEAD: u64 = 0x80;
    pub const QUEUE_TAIL: u64 = 0x88;
    pub const QUEUE_ADDRESS: u64 = 0x90;
    pub const INTERRUPT_TABLE: u64 = 0xb8;
    pub const BYTES: u64 = 0x1000;
}

/// Bits of the command and status registers (10.4.4, 10.4.5).
mod bit {
    pub const TRANSLATION: u32 = 1 << 31;
    pub const ROOT_TABLE: u32 = 1 << 30;
    pub const WRITE_BUFFER: u32 = 1 << 27;
    pub const QUEUE: u32 = 1 << 26;
    pub const INTERRUPTS: u32 = 1 << 25;
    pub const INTERRUPT_TABLE: u32 = 1 << 24;
    /// Bits of the status that must be kept in the next command; the other bits give orders.
    pub const KEPT: u32 = 0x96ff_ffff;
}

/// Bits of the fault status (10.4.9): faults were lost, faults are recorded, invalidation failed.
const LOST: u32 = 1;
const RECORDED: u32 = 1 << 1;
const BAD_INVALIDATION: u32 = 0b111 << 4;

/// The number of reads of a register after which a unit counts as not obeying.
const PATIENCE: u32 = 10_000_000;

/// Entries of a table, and of the queue.
const ENTRIES: u64 = 512;
const QUEUE_ENTRIES: u64 = PAGE_SIZE / 16;

/// Rights in a second-level entry (9.8).
const READ: u64 = 1;
const WRITE: u64 = 2;

/// A unit that is on.
pub struct Unit {
    registers: Registers,
    /// Whether the unit reads tables past the CPU's caches.
    reads_past_caches: bool,
    /// Whether the unit caches entries that are not present.
    remembers_nothing: bool,
    /// Number of levels of the tables.
    levels: u32,
    root: Frames,
    /// Context tables, by bus.
    contexts: Vec<(u8, Frames)>,
    /// The tables of each domain.
    domains: Vec<(u16, Tables)>,
    queue: Frames,
    tail: u64,
    /// The word that the unit writes when it has processed the queue.
    done: Frames,
    /// Offset and number of the fault records.
    records: (u64, u64),
    can_remap: bool,
    /// Bits of an IOTLB invalidation that make the unit wait for writes and for reads (6.5.2.3), as
    /// far as it supports them.
    drain: u64,
}

impl Unit {
    /// Turns on the unit at physical address `registers`, which firmware may have left in any
    /// state.
    pub fn start(registers: u64) -> Result<Unit, Unusable> {
        let registers = Registers::at(registers, reg::BYTES).ok_or(Unusable::NoRegisters)?;
        let (capability, extended) = (registers.read64(reg::CAPABILITY), registers.read64(reg::EXTENDED_CAPABILITY));
        let has_levels = |levels: u32| capability >> 8 & 0x1f & 1 << (levels - 2) != 0;
        let levels = [3, 4].into_iter().find(|levels| has_levels(*levels)).ok_or(Unusable::Unknown)?;
        let has_queue = extended & 1 << 1 != 0;
        if !has_queue {
            return Err(Unusable::Unknown);
        }
        let (first_record, last_record) = (capability >> 24 & 0x3ff, capability >> 40 & 0xff);
        if (first_record + last_record + 1) * 16 > reg::BYTES {
            return Err(Unusable::Unknown);
        }
        let mut unit = Unit {
            registers,
            reads_past_caches: extended & 1 == 0,
            remembers_nothing: capability & 1 << 7 != 0,
            levels,
            root: Frames::new(1)?,
            contexts: Vec::new(),
            domains: Vec::new(),
            queue: Frames::new(1)?,
            tail: 0,
            done: Frames::new(1)?,
            records: (first_record * 16, last_record + 1),
            can_remap: extended & 1 << 3 != 0,
            // DWD and DRD (10.4.2) have the same order as DW and DR.
            drain: capability >> 54 << 6 & 0b11 << 6,
        };
        // Translation is turned off first: a device that firmware has set going must not go through
        // tables whose memory has been freed.
        for on in [bit::TRANSLATION, bit::INTERRUPTS, bit::QUEUE] {
            unit.turn(on, false)?;
        }
        unit.take_faults(&mut |_| ());
        const NEEDS_FLUSH: u64 = 1 << 4;
        if capability & NEEDS_FLUSH != 0 {
            unit.command(bit::WRITE_BUFFER);
            unit.wait(|unit| unit.registers.read32(reg::STATUS) & bit::WRITE_BUFFER == 0)?;
        }
        unit.registers.write64(reg::QUEUE_TAIL, 0);
        unit.registers.write64(reg::QUEUE_ADDRESS, unit.queue.physical());
        unit.turn(bit::QUEUE, true)?;
        unit.registers.write64(reg::ROOT_TABLE, unit.root.physical());
        unit.order(bit::ROOT_TABLE)?;
        unit.invalidate(&[CONTEXT_ALL, IOTLB_ALL])?;
        unit.turn(bit::TRANSLATION, true)?;
        // From now on the tables protect the memory that firmware had protected from all devices.
        unit.registers.write32(reg::PROTECTED_MEMORY, 0);
        Ok(unit)
    }

    /// Writes one more bit to the command register: it gives an order, or turns something on.
    /// All functions that are on stay on.
    fn command(&self, bit: u32) {
        let on = self.registers.read32(reg::STATUS) & bit::KEPT;
        self.registers.write32(reg::COMMAND, on | bit);
    }

    fn order(&self, bit: u32) -> Result<(), Unusable> {
        self.command(bit);
        self.wait(|unit| unit.registers.read32(reg::STATUS) & bit != 0)
    }

    fn turn(&self, bit: u32, on: bool) -> Result<(), Unusable> {
        let status = self.registers.read32(reg::STATUS);
        if (status & bit != 0) == on {
            return Ok(());
        }
        if on {
            return self.order(bit);
        }
        self.registers.write32(reg::COMMAND, status & bit::KEPT & !bit);
        self.wait(|unit| unit.registers.read32(reg::STATUS) & bit == 0)
    }

    fn wait(&self, is_done: impl Fn(&Unit) -> bool) -> Result<(), Unusable> {
        if (0..PATIENCE).any(|_| is_done(self)) { Ok(()) } else { Err(Unusable::Silent) }
    }

    /// Writes a word of a table so that the unit sees it.
    fn store(&self, table: &SharedMemory, index: usize, value: u64) {
        store(table, index, value, self.reads_past_caches);
    }

    /// Makes the unit forget the cached entries that `descriptors` name, and waits until it has
    /// done so.
    fn invalidate(&mut self, descriptors: &[[u64; 2]]) -> Result<(), Unusable> {
        /// Invalidation wait descriptor (6.5.2.8) with a status write.
        const WAIT: u64 = 5 | 1 << 5;
        const DONE: u64 = 1;
        self.store(&self.done, 0, 0);
        let wait = [WAIT | DONE << 32, self.done.physical()];
        for [low, high] in descriptors.iter().chain([&wait]) {
            let at = (self.tail % QUEUE_ENTRIES) as usize * 2;
            self.store(&self.queue, at, *low);
            self.store(&self.queue, at + 1, *high);
            self.tail += 1;
        }
        self.registers.write64(reg::QUEUE_TAIL, self.tail % QUEUE_ENTRIES * 16);
        self.wait(|unit| unit.done.load(0) & 0xffff_ffff == DONE)?;
        let failed = self.registers.read32(reg::FAULT_STATUS) & BAD_INVALIDATION != 0;
        let all_taken = self.registers.read64(reg::QUEUE_HEAD) == self.tail % QUEUE_ENTRIES * 16;
        if failed || !all_taken { Err(Unusable::Silent) } else { Ok(()) }
    }

    /// Changes the two words of the context entry of `source`: `change` computes the new words from
    /// the old ones. The upper word is written first.
    fn set_context(&mut self, source: u16, change: impl FnOnce([u64; 2]) -> [u64; 2]) -> Result<(), Unusable> {
        let [function, bus] = source.to_le_bytes();
        let is_of_bus = |(other, _): &(u8, Frames)| *other == bus;
        let index = match self.contexts.iter().position(is_of_bus) {
            Some(index) => index,
            None => {
                let table = Frames::new(1)?;
                self.store(&self.root, usize::from(bus) * 2, table.physical() | 1);
                self.contexts.push((bus, table));
                self.contexts.len() - 1
            }
        };
        let (_, table) = self.contexts.get(index).ok_or(Unusable::Unknown)?;
        let at = usize::from(function) * 2;
        let [low, high] = change([table.load(at), table.load(at + 1)]);
        if low == 0 {
            self.store(table, at, low);
        }
        self.store(table, at + 1, high);
        self.store(table, at, low);
        Ok(())
    }

    /// Returns the descriptor that makes the unit forget all entries of a domain. Reads and writes
    /// that were translated before have ended when it is done.
    fn iotlb_of(&self, domain: u16) -> [u64; 2] {
        [2 | 2 << 4 | self.drain | u64::from(domain) << 16, 0]
    }

    /// Returns the tables of `domain`.
    fn of(&self, domain: u16) -> Option<&Tables> {
        self.domains.iter().find(|(other, _)| *other == domain).map(|(_, tables)| tables)
    }

    /// Returns the tables of `domain`, to be changed.
    fn tables(&mut self, domain: u16) -> Option<&mut Tables> {
        self.domains.iter_mut().find(|(other, _)| *other == domain).map(|(_, tables)| tables)
    }
}

impl Iommu for Unit {
    fn attach(&mut self, source: u16, domain: u16) -> Result<(), Unusable> {
        let tables = Tables::new(self)?;
        let entry = [tables.physical() | 1, u64::from(domain) << 8 | u64::from(self.levels - 2)];
        self.domains.push((domain, tables));
        self.set_context(source, |_| entry)?;
        // A unit may have cached that there was no entry.
        self.invalidate(&[context_of(source, domain), self.iotlb_of(domain)])
    }

    fn map(&mut self, domain: u16, start: u64, memory: &SharedMemory, is_written: bool) -> Result<(), Unusable> {
        let rights = if is_written { READ | WRITE } else { READ };
        let tables = self.tables(domain).ok_or(Unusable::Unknown)?;
        pages(memory.len_bytes() as u64).try_for_each(|offset| tables.map(start + offset, memory, offset, rights))?;
        if self.remembers_nothing { self.flush(domain) } else { Ok(()) }
    }

    fn unmap(&mut self, domain: u16, start: u64, len_bytes: u64) -> Result<(), Unusable> {
        let tables = self.tables(domain).ok_or(Unusable::Unknown)?;
        pages(len_bytes).for_each(|offset| tables.unmap(start + offset));
        Ok(())
    }

    fn flush(&mut self, domain: u16) -> Result<(), Unusable> {
        self.invalidate(&[self.iotlb_of(domain)])
    }

    fn silence(&mut self, source: u16, domain: u16) -> Result<(), Unusable> {
        const NO_FAULTS: u64 = 1 << 1;
        self.set_context(source, |[low, high]| [low | NO_FAULTS, high])?;
        self.invalidate(&[context_of(source, domain)])
    }

    fn detach(&mut self, source: u16, domain: u16) -> Result<(), Unusable> {
        self.set_context(source, |_| [0, 0])?;
        self.invalidate(&[context_of(source, domain), self.iotlb_of(domain)])?;
        if let Some(index) = self.domains.iter().position(|(other, _)| *other == domain) {
            self.domains.swap_remove(index);
        }
        Ok(())
    }

    fn fault_status(&self) -> FaultStatus {
        FaultStatus::new(self.registers.one(reg::FAULT_STATUS), RECORDED | LOST)
    }

    fn take_faults(&mut self, take: &mut dyn FnMut(Fault)) {
        const VALID: u64 = 1 << 63;
        const READS: u64 = 1 << 62;
        let (first, count) = self.records;
        for record in (0..count).map(|record| first + record * 16) {
            let high = self.registers.read64(record + 8);
            if high & VALID == 0 {
                continue;
            }
            let address = self.registers.read64(record) & !(PAGE_SIZE - 1);
            // Other bits of the upper word may hold a process id, or anything.
            take(Fault { source: high as u16, address, writes: high & READS == 0, reason: (high >> 32) as u8 });
            self.registers.write32(record + 12, 1 << 31);
        }
        self.registers.write32(reg::FAULT_STATUS, LOST);
    }

    fn parts(&self) -> Vec<(&'static str, u64)> {
        let own = [("root-table", &self.root), ("queue", &self.queue), ("status", &self.done)];
        let contexts = self.contexts.iter().map(|(_, table)| ("context-table", table));
        own.into_iter().chain(contexts).map(|(name, frame)| (name, frame.physical())).collect()
    }

    fn table(&self, domain: u16) -> Option<u64> {
        self.of(domain).map(Tables::physical)
    }

    fn has_table(&self, domain: u16, page: u64) -> bool {
        self.of(domain).is_some_and(|tables| tables.has(page))
    }

    fn remapper(&mut self) -> Option<&mut dyn Remapper> {
        if self.can_remap { Some(self) } else { None }
    }
}

impl Remapper for Unit {
    /// Messages that name no entry are blocked: bit 23 of the command, which would let them pass,
    /// is never set (5.1.4).
    fn remap(&mut self, table: &InterruptTable) -> Result<(), Unusable> {
        const LOG2_ENTRIES: u64 = ROUTES.trailing_zeros() as u64;
        self.registers.write64(reg::INTERRUPT_TABLE, table.physical() | (LOG2_ENTRIES - 1));
        self.order(bit::INTERRUPT_TABLE)?;
        self.invalidate(&[INTERRUPTS_ALL])?;
        self.turn(bit::INTERRUPTS, true)
    }

    fn set_route(&mut self, table: &InterruptTable, index: u8, [low, high]: [u64; 2]) -> Result<(), Unusable> {
        let at = usize::from(index) * 2;
        // The entry is not present while it is written.
        self.store(table.words(), at, 0);
        self.store(table.words(), at + 1, high);
        self.store(table.words(), at, low);
        self.invalidate(&[INTERRUPTS_ALL])
    }
}

/// Descriptors of the invalidation queue (6.5.2).
const CONTEXT_ALL: [u64; 2] = [1 | 1 << 4, 0];
const IOTLB_ALL: [u64; 2] = [2 | 1 << 4, 0];

/// Descriptor that invalidates the whole interrupt entry cache (6.5.2.7).
const INTERRUPTS_ALL: [u64; 2] = [4, 0];

fn context_of(source: u16, domain: u16) -> [u64; 2] {
    [1 | 3 << 4 | u64::from(domain) << 16 | u64::from(source) << 32, 0]
}

/// Second-level tables (3.7): they map a device's own addresses to the memory that it reaches.
/// Dropping them frees them: no device may use them any more.
struct Tables {
    root: Frames,
    /// The tables below the root, by their physical address.
    below: BTreeMap<u64, Frames>,
    levels: u32,
    reads_past_caches: bool,
}

impl Tables {
    /// Makes tables for `unit` that map nothing.
    fn new(unit: &Unit) -> Result<Tables, OutOfMemory> {
        let (levels, reads_past_caches) = (unit.levels, unit.reads_past_caches);
        Ok(Tables { root: Frames::new(1)?, below: BTreeMap::new(), levels, reads_past_caches })
    }

    /// Returns the physical address of the root.
    fn physical(&self) -> u64 {
        self.root.physical()
    }

    /// Returns the lowest table for `address`, and the index of its entry there. Returns `None` if
    /// that table does not exist and `make` is false.
    fn entry(&mut self, address: u64, make: bool) -> Result<Option<(&Frames, usize)>, OutOfMemory> {
        let index = |level: u32| (address >> (12 + 9 * (level - 1)) & (ENTRIES - 1)) as usize;
        let mut at = None;
        for level in (2..=self.levels).rev() {
            let Some(table) = self.table(at) else { return Ok(None) };
            let below = table.load(index(level));
            if below & READ == 0 {
                if !make {
                    return Ok(None);
                }
                let fresh = Frames::new(1)?;
                if self.reads_past_caches {
                    fresh.write_back(0, PAGE_SIZE as usize);
                }
                let pa = fresh.physical();
                store(table, index(level), pa | READ | WRITE, self.reads_past_caches);
                self.below.insert(pa, fresh);
                at = Some(pa);
            } else {
                at = Some(below & !(PAGE_SIZE - 1));
            }
        }
        Ok(self.table(at).map(|table| (table, index(1))))
    }

    /// Returns the table at a physical address, or the root for `None`.
    fn table(&self, at: Option<u64>) -> Option<&Frames> {
        at.map_or(Some(&self.root), |at| self.below.get(&at))
    }

    /// Maps the page at the device's `address` to the page at `offset` of `memory`.
    fn map(&mut self, address: u64, memory: &SharedMemory, offset: u64, rights: u64) -> Result<(), OutOfMemory> {
        let reads_past_caches = self.reads_past_caches;
        if let Some((table, index)) = self.entry(address, true)? {
            store(table, index, (memory.physical() + offset) | rights, reads_past_caches);
        }
        Ok(())
    }

    /// Unmaps the page at the device's `address`.
    fn unmap(&mut self, address: u64) {
        let reads_past_caches = self.reads_past_caches;
        if let Ok(Some((table, index))) = self.entry(address, false) {
            store(table, index, 0, reads_past_caches);
        }
    }

    /// Returns whether one of the tables is in the page at `page`.
    fn has(&self, page: u64) -> bool {
        self.physical() == page || self.below.contains_key(&page)
    }
}

/// Writes a word of a table so that the unit sees it.
fn store(table: &SharedMemory, index: usize, value: u64, reads_past_caches: bool) {
    table.store(index, value);
    if reads_past_caches {
        table.write_back(index * size_of::<u64>(), size_of::<u64>());
    }
}
