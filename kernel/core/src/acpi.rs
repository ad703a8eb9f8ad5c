//! ACPI tables (ACPI specification 6.5, 5.2), which firmware wrote and which may hold anything.
//! **Memory is read through `read` only**, which decides which memory may be read. A table with a
//! wrong checksum is ignored. There are crates for ACPI, but they map any memory that a table
//! names.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

/// Length in bytes of the header that all tables have.
const HEADER_BYTES: usize = 36;
/// Length in bytes of the root pointer of ACPI 1.0.
const ROOT_POINTER_1_BYTES: usize = 20;
/// Length in bytes of the root pointer of later versions.
const ROOT_POINTER_2_BYTES: usize = 36;
/// Longest table in bytes that is read.
const MOST_BYTES: usize = 1 << 20;
/// The most tables, and the most structures of a table, that are read.
const MOST_TABLES: usize = 256;

/// All tables that the root pointer leads to.
#[derive(Debug, Clone, Copy)]
pub struct Tables<R> {
    read: R,
    /// Physical address of the root table, which lists the others.
    root: u64,
    /// Length of an address in the root table, in bytes: 4 in an RSDT, 8 in an XSDT.
    address_bytes: usize,
}

impl<'a, R: Fn(u64, usize) -> Option<&'a [u8]>> Tables<R> {
    /// Finds the tables that the root pointer at physical address `pointer` leads to. `read`
    /// returns so many bytes at a physical address, if they are in firmware's memory.
    pub fn at(pointer: u64, read: R) -> Option<Tables<R>> {
        let first =
            read(pointer, ROOT_POINTER_1_BYTES).filter(|bytes| bytes.starts_with(b"RSD PTR ") && is_whole(bytes))?;
        let revision = *first.get(15)?;
        if revision >= 2 {
            let whole = read(pointer, ROOT_POINTER_2_BYTES).filter(|bytes| is_whole(bytes))?;
            let root = number(whole, 24, 8)?;
            if root != 0 {
                return Some(Tables { read, root, address_bytes: 8 });
            }
        }
        Some(Tables { read, root: number(first, 16, 4)?, address_bytes: 4 })
    }

    /// Returns the first whole table with this signature.
    pub fn find(&self, signature: &[u8; 4]) -> Option<&'a [u8]> {
        let root = self.table(self.root)?;
        let addresses = root.get(HEADER_BYTES..)?.chunks_exact(self.address_bytes).take(MOST_TABLES);
        addresses
            .filter_map(|bytes| self.table(number(bytes, 0, bytes.len())?))
            .find(|table| table.starts_with(signature))
    }

    fn table(&self, address: u64) -> Option<&'a [u8]> {
        let header = (self.read)(address, HEADER_BYTES)?;
        let len_bytes = usize::try_from(number(header, 4, 4)?).ok()?;
        let is_plausible = (HEADER_BYTES..=MOST_BYTES).contains(&len_bytes);
        (self.read)(address, is_plausible.then_some(len_bytes)?).filter(|bytes| is_whole(bytes))
    }
}

/// Returns whether the sum of the bytes is 0: the checksum field makes it so.
fn is_whole(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// Returns the little-endian number of `len_bytes` bytes at `at`, 8 bytes at most.
fn number(bytes: &[u8], at: usize, len_bytes: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(len_bytes)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The place of a register (generic address structure, 5.2.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In memory, at this physical address.
    Memory(u64),
    /// At this port.
    Port(u16),
}

fn place(table: &[u8], at: usize) -> Option<Place> {
    let address = number(table, at + 4, 8).filter(|address| *address != 0)?;
    match table.get(at)? {
        0 => Some(Place::Memory(address)),
        1 => address.try_into().ok().map(Place::Port),
        _ => None,
    }
}

/// Returns the physical address of the registers of the high precision event timer (IA-PC HPET
/// specification 1.0a, 3.2.4).
pub fn hpet(table: &[u8]) -> Option<u64> {
    match place(table, 40)? {
        Place::Memory(address) => Some(address),
        Place::Port(_) => None,
    }
}

/// The power management timer (4.8.2.1), which counts at 3.579545 MHz.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PmTimer {
    /// Its register, which is read as 32 bits at once.
    pub place: Place,
    /// Whether it counts 32 bits, not 24.
    pub has_32_bits: bool,
}

/// Reads the power management timer's place and width from the fixed description table, `FACP`
/// (5.2.9).
pub fn pm_timer(table: &[u8]) -> Option<PmTimer> {
    let has_32_bits = number(table, 112, 4)? & 1 << 8 != 0;
    if *table.get(91)? != 4 {
        return None;
    }
    let old = || number(table, 76, 4).filter(|port| *port != 0)?.try_into().ok().map(Place::Port);
    Some(PmTimer { place: place(table, 208).or_else(old)?, has_32_bits })
}

/// Returns the buses of PCI segment 0 that a table of memory-mapped configuration spaces, `MCFG`,
/// names (PCI Firmware Specification 3.0, 4.1.2).
pub fn buses(table: &[u8]) -> impl Iterator<Item = RangeInclusive<u8>> {
    const FIRST: usize = 44;
    const ENTRY_BYTES: usize = 16;
    let entries = table.get(FIRST..).unwrap_or_default().chunks_exact(ENTRY_BYTES);
    entries.filter(|entry| number(entry, 8, 2) == Some(0)).filter_map(|entry| Some(*entry.get(10)?..=*entry.get(11)?))
}

/// The wiring of interrupt lines, from the multiple APIC description table, `APIC` (5.2.12).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wiring {
    /// The I/O APICs: id, physical address of the registers, and the first global interrupt that
    /// the I/O APIC has a pin for.
    pub io_apics: Vec<(u8, u64, u32)>,
    /// Lines of the two 8259s that are not wired to the global interrupt of the same number: line,
    /// global interrupt, flags.
    pub overrides: Vec<(u8, u32, u16)>,
}

impl Wiring {
    /// Reads a whole table.
    pub fn parse(table: &[u8]) -> Wiring {
        const STRUCTURES: usize = 44;
        const IO_APIC: u8 = 1;
        const OVERRIDE: u8 = 2;
        let mut wiring = Wiring::default();
        let mut rest = table.get(STRUCTURES..).unwrap_or_default();
        for _ in 0..MOST_TABLES {
            let [kind, len_bytes, ..] = rest else { break };
            let Some(structure) = rest.get(..usize::from(*len_bytes)).filter(|structure| structure.len() >= 2) else {
                break;
            };
            let field = |at, len_bytes| number(structure, at, len_bytes);
            match *kind {
                IO_APIC => wiring.io_apics.extend(
                    field(2, 1).zip(field(4, 4)).zip(field(8, 4)).map(|((id, at), first)| (id as u8, at, first as u32)),
                ),
                OVERRIDE => wiring.overrides.extend(
                    field(3, 1)
                        .zip(field(4, 4))
                        .zip(field(8, 2))
                        .map(|((line, to), flags)| (line as u8, to as u32, flags as u16)),
                ),
                _ => {}
            }
            rest = rest.get(structure.len()..).unwrap_or_default();
        }
        wiring
    }

    /// Returns the global interrupt to which line `line` of the 8259s is wired; whether it is
    /// level-triggered, if the table says; and whether it is active low.
    pub fn of_line(&self, line: u8) -> (u32, Option<bool>, bool) {
        match self.overrides.iter().find(|(other, ..)| *other == line) {
            // Flags: polarity in the lower two bits, trigger mode in the next two. 1 is active high
            // and edge, 3 active low and level, 0 as the bus defines it.
            Some((_, to, flags)) => {
                let is_level = match flags >> 2 & 3 {
                    1 => Some(false),
                    3 => Some(true),
                    _ => None,
                };
                (*to, is_level, flags & 3 == 3)
            }
            None => (line.into(), None, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: u64 = 0xf_0000;

    fn closed(mut bytes: Vec<u8>, checksum_at: usize) -> Vec<u8> {
        bytes[checksum_at] = 0;
        bytes[checksum_at] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
        bytes
    }

    fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..4].copy_from_slice(signature);
        bytes[4..8].copy_from_slice(&((HEADER_BYTES + body.len()) as u32).to_le_bytes());
        bytes.extend(body);
        closed(bytes, 9)
    }

    /// Returns firmware's memory from `AT` on: a root pointer of this revision, its root table, and
    /// `tables`.
    fn firmware(revision: u8, tables: &[Vec<u8>]) -> Vec<u8> {
        let address_bytes = if revision < 2 { 4 } else { 8 };
        let root_at = AT + 64;
        let mut at = root_at + (HEADER_BYTES + tables.len() * address_bytes) as u64;
        let mut addresses = Vec::new();
        for table in tables {
            addresses.extend_from_slice(&at.to_le_bytes()[..address_bytes]);
            at += table.len() as u64;
        }
        let mut pointer = vec![0; ROOT_POINTER_1_BYTES];
        pointer[..8].copy_from_slice(b"RSD PTR ");
        pointer[15] = revision;
        if revision < 2 {
            pointer[16..20].copy_from_slice(&(root_at as u32).to_le_bytes());
        }
        pointer = closed(pointer, 8);
        pointer.resize(ROOT_POINTER_2_BYTES, 0);
        pointer[24..32].copy_from_slice(&root_at.to_le_bytes());
        pointer = closed(pointer, 32);
        pointer.resize(64, 0);
        pointer.extend(self::table(if revision < 2 { b"RSDT" } else { b"XSDT" }, &addresses));
        pointer.extend(tables.iter().flatten());
        pointer
    }

    fn reader<'a>(memory: &'a [u8]) -> impl Fn(u64, usize) -> Option<&'a [u8]> {
        move |address, len_bytes| {
            let from = usize::try_from(address.checked_sub(AT)?).ok()?;
            memory.get(from..from.checked_add(len_bytes)?)
        }
    }

    fn mcfg(segment: u8, first: u8, last: u8) -> Vec<u8> {
        let mut body = vec![0; 8];
        body.extend([0, 0, 0, 0xb0, 0, 0, 0, 0, segment, 0, first, last, 0, 0, 0, 0]);
        table(b"MCFG", &body)
    }

    #[test]
    fn wires_are_found() {
        let mut body = vec![0; 8];
        body.extend([1, 12, 5, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
        body.extend([2, 10, 0, 11, 11, 0, 0, 0, 0x0d, 0]);
        body.extend([0, 8, 0, 0, 1, 0, 0, 0]);
        let wiring = Wiring::parse(&table(b"APIC", &body));
        assert_eq!(wiring.io_apics, [(5, 0xfec0_0000, 0)]);
        assert_eq!(wiring.of_line(0), (2, None, false));
        assert_eq!(wiring.of_line(11), (11, Some(true), false));
        assert_eq!(wiring.of_line(4), (4, None, false));
        // A structure whose length cannot be true ends the table.
        for bad in [[1, 0], [1, 1], [2, 255]] {
            assert_eq!(Wiring::parse(&table(b"APIC", &[[0; 8].as_slice(), &bad].concat())), Wiring::default());
        }
    }

    #[test]
    fn tables_are_found_by_either_root() {
        for revision in [0, 2] {
            let memory = firmware(revision, &[table(b"HPET", &[0; 20]), mcfg(0, 0, 63)]);
            let tables = Tables::at(AT, reader(&memory)).unwrap();
            let found = tables.find(b"MCFG").unwrap();
            assert_eq!(buses(found).collect::<Vec<_>>(), [0..=63]);
            assert!(tables.find(b"DMAR").is_none());
        }
    }

    #[test]
    fn what_is_damaged_is_none() {
        let good = firmware(2, &[mcfg(0, 0, 63)]);
        for at in (0..ROOT_POINTER_2_BYTES).chain(64..good.len()) {
            let mut memory = good.clone();
            memory[at] ^= 0x40;
            assert!(Tables::at(AT, reader(&memory)).and_then(|tables| tables.find(b"MCFG")).is_none(), "byte {at}");
        }
    }

    #[test]
    fn buses_of_other_segments_are_left_out() {
        assert_eq!(buses(&mcfg(1, 0, 255)).count(), 0);
    }

    #[test]
    fn timers_are_found() {
        let mut body = vec![0; 20];
        body[4..16].copy_from_slice(&[0, 64, 0, 0, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(hpet(&table(b"HPET", &body)), Some(0xfed0_0000));
        // A table of ACPI 1.0, without an extended address.
        let mut body = vec![0; 80];
        (body[91 - 36], body[76 - 36], body[77 - 36]) = (4, 0x08, 0x06);
        let expected = PmTimer { place: Place::Port(0x608), has_32_bits: false };
        assert_eq!(pm_timer(&table(b"FACP", &body)), Some(expected));
        body.resize(244 - 36, 0);
        body[113 - 36] = 1;
        body[208 - 36..216 - 36].copy_from_slice(&[1, 32, 0, 3, 0x10, 0x07, 0, 0]);
        let expected = PmTimer { place: Place::Port(0x710), has_32_bits: true };
        assert_eq!(pm_timer(&table(b"FACP", &body)), Some(expected));
        body[91 - 36] = 0;
        assert_eq!(pm_timer(&table(b"FACP", &body)), None);
    }

    proptest! {
        #[test]
        fn no_tables_make_it_panic(memory in proptest::collection::vec(any::<u8>(), 0..300), at in 0..300usize, byte in any::<u8>()) {
            let _ = (hpet(&memory), pm_timer(&memory), buses(&memory).count());
            let mut damaged = firmware(2, &[mcfg(0, 0, 63), memory]);
            if let Some(place) = damaged.get_mut(at) {
                *place = byte;
            }
            let tables = Tables::at(AT, reader(&damaged));
            let _ = tables.and_then(|tables| tables.find(b"MCFG"));
        }
    }
}
