//! A remapping unit of Intel's VT-d (Virtualization Technology for Directed I/O, revision 4.0), in legacy mode, with queued
//! invalidation.
//!
//! **A device reaches nothing until it has a context entry**, and there is none when translation is turned on.

use super::unit::{Fault, FaultStatus, InterruptTable, Iommu, ROUTES, Remapper, Unusable, frame};
use crate::memory::frames::{self, OutOfMemory};
use crate::memory::pages;
use crate::memory::registers::{Registers, write_back};
use crate::memory::shared::SharedMemory;
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

/// Bits of command and status (10.4.4, 10.4.5).
mod bit {
    pub const TRANSLATION: u32 = 1 << 31;
    pub const ROOT_TABLE: u32 = 1 << 30;
    pub const WRITE_BUFFER: u32 = 1 << 27;
    pub const QUEUE: u32 = 1 << 26;
    pub const INTERRUPTS: u32 = 1 << 25;
    pub const INTERRUPT_TABLE: u32 = 1 << 24;
    /// Those of the status that stay set in the next command: the others are orders.
    pub const KEPT: u32 = 0x96ff_ffff;
}

/// Bits of the fault status (10.4.9): faults were lost, some are recorded, invalidation failed.
const LOST: u32 = 1;
const RECORDED: u32 = 1 << 1;
const BAD_INVALIDATION: u32 = 0b111 << 4;

/// Reads of a register until a unit has done as it was told.
const PATIENCE: u32 = 10_000_000;

/// Entries of the tables, and of the queue.
const ENTRIES: u64 = 512;
const QUEUE_ENTRIES: u64 = PAGE_SIZE / 16;

/// Rights in a second-level entry (9.8).
const READ: u64 = 1;
const WRITE: u64 = 2;

/// A unit that is on.
pub struct Unit {
    registers: Registers,
    /// Whether it reads tables past the CPU's caches.
    reads_past_caches: bool,
    /// Whether it remembers that something was not there.
    remembers_nothing: bool,
    /// Levels of its tables.
    levels: u32,
    root: SharedMemory,
    /// Context tables, by bus.
    contexts: Vec<(u8, SharedMemory)>,
    /// What each domain reaches.
    domains: Vec<(u16, Tables)>,
    queue: SharedMemory,
    tail: u64,
    /// Where it writes that it has done what was in the queue.
    done: SharedMemory,
    /// Where its fault records are, and how many.
    records: (u64, u64),
    can_remap: bool,
}

impl Unit {
    /// Turns the unit at physical address `registers` on, whatever firmware has left on there.
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
            root: frame()?,
            contexts: Vec::new(),
            domains: Vec::new(),
            queue: frame()?,
            tail: 0,
            done: frame()?,
            records: (first_record * 16, last_record + 1),
            can_remap: extended & 1 << 3 != 0,
        };
        // Translation first: a device that firmware has set going must not go through tables that are nobody's any more.
        for on in [bit::TRANSLATION, bit::INTERRUPTS, bit::QUEUE] {
            unit.turn(on, false)?;
        }
        unit.take_faults(&mut |_| ());
        const NEEDS_FLUSH: u64 = 1 << 4;
        if capability & NEEDS_FLUSH != 0 {
            unit.command(bit::WRITE_BUFFER);
            unit.wait(|unit| unit.registers.read32(reg::STATUS) & bit::WRITE_BUFFER == 0)?;
        }
        registers.write64(reg::QUEUE_TAIL, 0);
        registers.write64(reg::QUEUE_ADDRESS, unit.queue.physical());
        unit.turn(bit::QUEUE, true)?;
        registers.write64(reg::ROOT_TABLE, unit.root.physical());
        unit.order(bit::ROOT_TABLE)?;
        unit.invalidate(&[CONTEXT_ALL, IOTLB_ALL])?;
        unit.turn(bit::TRANSLATION, true)?;
        // What firmware has protected from all devices is behind the tables from now on.
        registers.write32(reg::PROTECTED_MEMORY, 0);
        Ok(unit)
    }

    /// Gives an order, or turns something on: one bit at a time, beside what is on.
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
        table.store(index, value);
        if self.reads_past_caches {
            write_back(table.physical() + index as u64 * 8, 8);
        }
    }

    /// Has the unit forget what it remembers, and waits until it has.
    fn invalidate(&mut self, descriptors: &[[u64; 2]]) -> Result<(), Unusable> {
        /// Invalidation wait (6.5.2.8): write a word.
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

    /// The context table that has the entry of `source`, and the word where that begins.
    fn context(&mut self, source: u16) -> Result<(SharedMemory, usize), Unusable> {
        let [function, bus] = source.to_le_bytes();
        let table = match self.contexts.iter().find(|(other, _)| *other == bus) {
            Some((_, table)) => *table,
            None => {
                let table = frame()?;
                self.contexts.push((bus, table));
                self.store(&self.root, usize::from(bus) * 2, table.physical() | 1);
                table
            }
        };
        Ok((table, usize::from(function) * 2))
    }

    /// The tables of `domain`.
    fn tables(&self, domain: u16) -> Option<&Tables> {
        self.domains.iter().find(|(other, _)| *other == domain).map(|(_, tables)| tables)
    }
}

impl Iommu for Unit {
    fn attach(&mut self, source: u16, domain: u16) -> Result<(), Unusable> {
        let (context, at) = self.context(source)?;
        let tables = Tables::new(self)?;
        let table = tables.physical();
        self.domains.push((domain, tables));
        self.store(&context, at + 1, u64::from(domain) << 8 | u64::from(self.levels - 2));
        self.store(&context, at, table | 1);
        // A unit may remember that there was none.
        self.invalidate(&[context_of(source, domain), iotlb_of(domain)])
    }

    fn map(&mut self, domain: u16, start: u64, pa: u64, len_bytes: u64, is_written: bool) -> Result<(), Unusable> {
        let rights = if is_written { READ | WRITE } else { READ };
        let tables = self.tables(domain).ok_or(Unusable::Unknown)?;
        pages(len_bytes).try_for_each(|offset| tables.map(start + offset, pa + offset, rights))?;
        if self.remembers_nothing { self.flush(domain) } else { Ok(()) }
    }

    fn unmap(&mut self, domain: u16, start: u64, len_bytes: u64) -> Result<(), Unusable> {
        let tables = self.tables(domain).ok_or(Unusable::Unknown)?;
        pages(len_bytes).for_each(|offset| tables.unmap(start + offset));
        Ok(())
    }

    fn flush(&mut self, domain: u16) -> Result<(), Unusable> {
        self.invalidate(&[iotlb_of(domain)])
    }

    fn silence(&mut self, source: u16, domain: u16) -> Result<(), Unusable> {
        const NO_FAULTS: u64 = 1 << 1;
        let (context, at) = self.context(source)?;
        self.store(&context, at, context.load(at) | NO_FAULTS);
        self.invalidate(&[context_of(source, domain)])
    }

    fn detach(&mut self, source: u16, domain: u16) -> Result<(), Unusable> {
        let (context, at) = self.context(source)?;
        self.store(&context, at, 0);
        self.store(&context, at + 1, 0);
        self.invalidate(&[context_of(source, domain), iotlb_of(domain)])?;
        if let Some(index) = self.domains.iter().position(|(other, _)| *other == domain) {
            self.domains.swap_remove(index).1.free();
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
            // Some bits in between are a process's number, or anything.
            take(Fault { source: high as u16, address, writes: high & READS == 0, reason: (high >> 32) as u8 });
            self.registers.write32(record + 12, 1 << 31);
        }
        self.registers.write32(reg::FAULT_STATUS, LOST);
    }

    fn parts(&self) -> Vec<(&'static str, u64)> {
        let own = [("root-table", self.root), ("queue", self.queue), ("status", self.done)];
        let contexts = self.contexts.iter().map(|(_, table)| ("context-table", *table));
        own.into_iter().chain(contexts).map(|(name, frame)| (name, frame.physical())).collect()
    }

    fn table(&self, domain: u16) -> Option<u64> {
        self.tables(domain).map(Tables::physical)
    }

    fn has_table(&self, domain: u16, page: u64) -> bool {
        self.tables(domain).is_some_and(|tables| tables.has(page))
    }

    fn remapper(&mut self) -> Option<&mut dyn Remapper> {
        if self.can_remap { Some(self) } else { None }
    }
}

impl Remapper for Unit {
    /// Messages that name no entry are blocked: bit 23 of the command, which would let them pass, is never set (5.1.4).
    fn remap(&mut self, table: &InterruptTable) -> Result<(), Unusable> {
        const LOG2_ENTRIES: u64 = ROUTES.trailing_zeros() as u64;
        self.registers.write64(reg::INTERRUPT_TABLE, table.physical() | (LOG2_ENTRIES - 1));
        self.order(bit::INTERRUPT_TABLE)?;
        self.invalidate(&[INTERRUPTS_ALL])?;
        self.turn(bit::INTERRUPTS, true)
    }

    fn set_route(&mut self, table: &InterruptTable, index: u8, [low, high]: [u64; 2]) -> Result<(), Unusable> {
        let at = usize::from(index) * 2;
        // Not present in between.
        self.store(table.words(), at, 0);
        self.store(table.words(), at + 1, high);
        self.store(table.words(), at, low);
        self.invalidate(&[INTERRUPTS_ALL])
    }
}

/// Descriptors of the invalidation queue (6.5.2).
const CONTEXT_ALL: [u64; 2] = [1 | 1 << 4, 0];
const IOTLB_ALL: [u64; 2] = [2 | 1 << 4, 0];

/// Interrupt entry cache, all of it (6.5.2.7).
const INTERRUPTS_ALL: [u64; 2] = [4, 0];

fn context_of(source: u16, domain: u16) -> [u64; 2] {
    [1 | 3 << 4 | u64::from(domain) << 16 | u64::from(source) << 32, 0]
}

fn iotlb_of(domain: u16) -> [u64; 2] {
    [2 | 2 << 4 | u64::from(domain) << 16, 0]
}

/// Second-level tables (3.7): what a device reaches, by its own addresses.
struct Tables {
    root: SharedMemory,
    levels: u32,
    reads_past_caches: bool,
}

impl Tables {
    /// Tables for `unit` that map nothing.
    fn new(unit: &Unit) -> Result<Tables, OutOfMemory> {
        Ok(Tables { root: frame()?, levels: unit.levels, reads_past_caches: unit.reads_past_caches })
    }

    /// Their physical address.
    fn physical(&self) -> u64 {
        self.root.physical()
    }

    fn store(&self, table: &SharedMemory, index: usize, value: u64) {
        table.store(index, value);
        if self.reads_past_caches {
            write_back(table.physical() + index as u64 * 8, 8);
        }
    }

    /// The lowest table for `address`, and the place of its entry there; `None` if there is none and none is made.
    fn entry(&self, address: u64, make: bool) -> Result<Option<(SharedMemory, usize)>, OutOfMemory> {
        let index = |level: u32| (address >> (12 + 9 * (level - 1)) & (ENTRIES - 1)) as usize;
        let mut table = self.root;
        for level in (2..=self.levels).rev() {
            let below = table.load(index(level));
            table = match below & READ {
                0 if !make => return Ok(None),
                0 => {
                    let fresh = frame()?;
                    if self.reads_past_caches {
                        write_back(fresh.physical(), PAGE_SIZE);
                    }
                    self.store(&table, index(level), fresh.physical() | READ | WRITE);
                    fresh
                }
                _ => SharedMemory::new(below & !(PAGE_SIZE - 1), PAGE_SIZE as usize),
            };
        }
        Ok(Some((table, index(1))))
    }

    /// Maps the page at the device's `address` to the frame at `pa`.
    fn map(&self, address: u64, pa: u64, rights: u64) -> Result<(), OutOfMemory> {
        if let Some((table, index)) = self.entry(address, true)? {
            self.store(&table, index, pa | rights);
        }
        Ok(())
    }

    /// Unmaps it.
    fn unmap(&self, address: u64) {
        if let Ok(Some((table, index))) = self.entry(address, false) {
            self.store(&table, index, 0);
        }
    }

    /// Whether one of them is in the page at `page`.
    fn has(&self, page: u64) -> bool {
        fn has(table: SharedMemory, level: u32, page: u64) -> bool {
            let mut below = (0..ENTRIES as usize).map(|index| table.load(index)).filter(|below| below & READ != 0);
            table.physical() == page
                || level > 1
                    && below.any(|below| {
                        has(SharedMemory::new(below & !(PAGE_SIZE - 1), PAGE_SIZE as usize), level - 1, page)
                    })
        }
        has(self.root, self.levels, page)
    }

    /// Frees them. Nothing may use them any more.
    fn free(self) {
        fn free(table: SharedMemory, level: u32) {
            for index in 0..ENTRIES as usize {
                let below = table.load(index);
                if level > 1 && below & READ != 0 {
                    free(SharedMemory::new(below & !(PAGE_SIZE - 1), PAGE_SIZE as usize), level - 1);
                }
            }
            frames::free(table.physical());
        }
        free(self.root, self.levels);
    }
}
