//! Partition tables: the MBR's four primary partitions, the logical ones in a chain that begins in
//! an extended one, and GPT (UEFI Specification 2.10, 5).
//!
//! A disk may have anything in the place of a table. An entry whose blocks lie outside of the disk,
//! or overlap the table itself, is no partition. A chain goes on only towards the disk's end, so
//! that it has one.

use alloc::string::String;
use alloc::vec::Vec;
use crc::{CRC_32_ISO_HDLC, Crc};

/// The most partitions of a disk.
pub const MOST: usize = 128;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number in the table, from 1 on.
    pub number: u32,
    /// Its first block.
    pub first: u64,
    /// How many blocks it has, at least one.
    pub blocks: u64,
    /// Its name, if the table has names; not harmless for a terminal.
    pub name: String,
}

/// A GPT's description of its array of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpt {
    /// The first block of the array.
    pub first: u64,
    /// The length of the array in bytes.
    pub len_bytes: usize,
    entry_bytes: usize,
    sum: u32,
    /// The blocks in which partitions may lie.
    usable: (u64, u64),
}

/// The tables that begin in a disk's first block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Table {
    /// There is no table.
    None,
    /// The partitions of the MBR, and the extended one if there is one.
    Mbr(Vec<Partition>, Option<Extended>),
    /// A protective MBR: the table is a GPT, whose header is in block 1.
    Gpt,
}

/// An extended partition, which has logical ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extended {
    /// Its first block, which has the first table of the chain.
    pub first: u64,
    /// How many blocks it has.
    pub blocks: u64,
}

/// The number of the first logical partition, by convention.
pub const FIRST_LOGICAL: u32 = 5;
const ENTRIES: usize = 446;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// Returns the kind of an entry of an MBR, its first block, and how many it has.
fn entry(block: &[u8], number: usize) -> Option<(u8, u64, u64)> {
    let entry = block.get(ENTRIES + 16 * number..ENTRIES + 16 * (number + 1))?;
    Some((*entry.get(4)?, word(entry, 8)?.into(), word(entry, 12)?.into()))
}

/// Reads a table of the chain of logical partitions, which is in the block `at` of the disk.
/// Returns its partition, which gets this `number`, and the block of the next table.
pub fn logical(block: &[u8], at: u64, extended: &Extended, number: u32) -> (Option<Partition>, Option<u64>) {
    if block.get(510..512) != Some(&[0x55, 0xaa]) {
        return (None, None);
    }
    let end = extended.first + extended.blocks;
    let partition = entry(block, 0).and_then(|(kind, first, blocks)| {
        let first = at + first;
        let is_good = kind != 0 && !EXTENDED.contains(&kind) && first > at && blocks > 0 && first + blocks <= end;
        is_good.then_some(Partition { number, first, blocks, name: String::new() })
    });
    let next = entry(block, 1).and_then(|(kind, first, _)| {
        let next = extended.first + first;
        (EXTENDED.contains(&kind) && next > at && next < end).then_some(next)
    });
    (partition, next)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// Returns the table in a disk's first block. The disk has `blocks` blocks.
pub fn table(block: &[u8], blocks: u64) -> Table {
    const PROTECTIVE: u8 = 0xee;
    if block.get(510..512) != Some(&[0x55, 0xaa]) {
        return Table::None;
    }
    let (mut partitions, mut extended) = (Vec::new(), None);
    for number in 0..4 {
        let status = block.get(ENTRIES + 16 * number).copied().unwrap_or(0);
        // A boot sector of a filesystem has the same end, and code or text here.
        if status & 0x7f != 0 {
            return Table::None;
        }
        let Some((kind, first, count)) = entry(block, number) else { return Table::None };
        if kind == PROTECTIVE {
            return Table::Gpt;
        }
        if kind == 0 || first == 0 || count == 0 || first + count > blocks {
            continue;
        }
        if EXTENDED.contains(&kind) {
            extended.get_or_insert(Extended { first, blocks: count });
            continue;
        }
        partitions.push(Partition { number: number as u32 + 1, first, blocks: count, name: String::new() });
    }
    if partitions.is_empty() && extended.is_none() { Table::None } else { Table::Mbr(partitions, extended) }
}

/// Reads the header of a GPT, from block 1 of a disk with `blocks` blocks of `block.len()` bytes.
pub fn gpt(block: &[u8], blocks: u64) -> Option<Gpt> {
    const SUM: usize = 16;
    if block.get(..8)? != b"EFI PART" {
        return None;
    }
    let header_bytes = word(block, 12)? as usize;
    let mut header = block.get(..header_bytes).filter(|_| (92..=block.len()).contains(&header_bytes))?.to_vec();
    header.get_mut(SUM..SUM + 4)?.fill(0);
    if sum(&header) != word(block, SUM)? || long(block, 24)? != 1 {
        return None;
    }
    let usable = (long(block, 40)?, long(block, 48)?.min(blocks.saturating_sub(1)));
    let (first, count, entry_bytes) = (long(block, 72)?, word(block, 80)? as usize, word(block, 84)? as usize);
    if !(128..=512).contains(&entry_bytes) || !entry_bytes.is_power_of_two() || count > MOST {
        return None;
    }
    let len_bytes = count * entry_bytes;
    let end = first.checked_add(len_bytes.div_ceil(block.len()) as u64)?;
    (first >= 2 && end <= blocks).then_some(Gpt { first, len_bytes, entry_bytes, sum: word(block, 88)?, usable })
}

/// Returns the partitions of a GPT from its array of entries, if its checksum is right.
pub fn gpt_partitions(gpt: &Gpt, array: &[u8]) -> Option<Vec<Partition>> {
    let array = array.get(..gpt.len_bytes).filter(|array| sum(array) == gpt.sum)?;
    let mut partitions = Vec::new();
    for (entry, number) in array.chunks_exact(gpt.entry_bytes).zip(1..) {
        let (Some(first), Some(last)) = (long(entry, 32), long(entry, 40)) else { continue };
        let is_used = entry.get(..16).is_some_and(|kind| kind.iter().any(|byte| *byte != 0));
        if !is_used || first < gpt.usable.0 || last < first || last > gpt.usable.1 {
            continue;
        }
        let units = entry.get(56..128).unwrap_or(&[]).as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
        let name = char::decode_utf16(units.take_while(|unit| *unit != 0));
        let name = name.map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        partitions.push(Partition { number, first, blocks: last - first + 1, name });
    }
    Some(partitions)
}

/// The CRC-32 of a GPT (UEFI Specification 2.10, 5.3.1).
fn sum(bytes: &[u8]) -> u32 {
    const SUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    SUM.checksum(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mbr(entries: &[(u8, u8, u32, u32)]) -> Vec<u8> {
        let mut block = vec![0; 512];
        for (entry, (status, kind, first, count)) in block[446..].chunks_mut(16).zip(entries) {
            (entry[0], entry[4]) = (*status, *kind);
            entry[8..12].copy_from_slice(&first.to_le_bytes());
            entry[12..16].copy_from_slice(&count.to_le_bytes());
        }
        block[510..].copy_from_slice(&[0x55, 0xaa]);
        block
    }

    fn partition(number: u32, first: u64, blocks: u64, name: &str) -> Partition {
        Partition { number, first, blocks, name: name.into() }
    }

    #[test]
    fn the_partitions_of_an_mbr() {
        let block = mbr(&[(0x80, 0x0c, 2048, 1000), (0, 0x05, 4000, 10), (0, 0x83, 5000, 100), (0, 0, 9, 9)]);
        let expected = vec![partition(1, 2048, 1000, ""), partition(3, 5000, 100, "")];
        assert_eq!(table(&block, 6000), Table::Mbr(expected, Some(Extended { first: 4000, blocks: 10 })));
        // An entry that reaches beyond the end, covers the table or has no blocks, is no partition.
        let bad = mbr(&[(0, 0x83, 0, 10), (0, 0x83, 10, 0), (0, 0x83, 90, 11), (0, 0x83, u32::MAX, u32::MAX)]);
        assert_eq!(table(&bad, 100), Table::None);
        assert_eq!(table(&mbr(&[(0, 0xee, 1, u32::MAX)]), 100), Table::Gpt);
    }

    #[test]
    fn the_logical_partitions_of_an_mbr() {
        let extended = Extended { first: 1000, blocks: 500 };
        let read = |at, entries: &[_]| logical(&mbr(entries), at, &extended, 6);
        // The partition's place is counted from its own table, the next table's from the first.
        let both = read(1100, &[(0, 0x83, 8, 50), (0, 0x05, 300, 60)]);
        assert_eq!(both, (Some(partition(6, 1108, 50, "")), Some(1300)));
        let last = read(1300, &[(0, 0x0c, 8, 192), (0, 0, 0, 0)]);
        assert_eq!(last, (Some(partition(6, 1308, 192, "")), None));
        // A chain that goes back, or out of the extended partition, ends, and so does a partition.
        for (first, count, next) in [(8, 193, 300), (0, 10, 500), (8, 0, 0), (u32::MAX, u32::MAX, u32::MAX)] {
            assert_eq!(read(1300, &[(0, 0x83, first, count), (0, 0x05, next, 10)]), (None, None));
        }
        assert_eq!(logical(&[0; 512], 1000, &extended, 5), (None, None));
        assert_eq!(logical(&[], 1000, &extended, 5), (None, None));
    }

    #[test]
    fn what_is_no_mbr() {
        assert_eq!(table(&[], 100), Table::None);
        assert_eq!(table(&[0; 512], 100), Table::None);
        // Code in the place of the entries.
        assert_eq!(table(&mbr(&[(0x33, 0x83, 10, 10)]), 100), Table::None);
        assert_eq!(table(&mbr(&[(0, 0x83, 10, 10)])[..511], 100), Table::None);
    }

    /// Returns a header and an array with one partition.
    fn table_of_one(first: u64, last: u64) -> (Vec<u8>, Vec<u8>) {
        let mut array = vec![0; 4 * 128];
        array[128..144].fill(7);
        array[160..168].copy_from_slice(&first.to_le_bytes());
        array[168..176].copy_from_slice(&last.to_le_bytes());
        array[184..188].copy_from_slice(&[b'r', 0, b'f', 0]);
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = 92;
        header[24] = 1;
        header[40] = 34;
        header[48..50].copy_from_slice(&900u16.to_le_bytes());
        header[72] = 2;
        header[80] = 4;
        header[84] = 128;
        header[88..92].copy_from_slice(&sum(&array).to_le_bytes());
        let sum = sum(&header[..92]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        (header, array)
    }

    #[test]
    fn the_partitions_of_a_gpt() {
        assert_eq!(sum(b"123456789"), 0xcbf4_3926);
        let (header, mut array) = table_of_one(100, 199);
        let table = gpt(&header, 1000).unwrap();
        assert_eq!((table.first, table.len_bytes), (2, 512));
        assert_eq!(gpt_partitions(&table, &array), Some(vec![partition(2, 100, 100, "rf")]));
        array[0] ^= 1;
        assert_eq!(gpt_partitions(&table, &array), None);
        assert_eq!(gpt_partitions(&table, &array[..100]), None);
        for (first, last) in [(33, 50), (200, 199), (100, 901), (u64::MAX, u64::MAX)] {
            let (header, array) = table_of_one(first, last);
            assert_eq!(gpt_partitions(&gpt(&header, 1000).unwrap(), &array), Some(Vec::new()), "{first} to {last}");
        }
    }

    #[test]
    fn a_damaged_header_is_none() {
        let (header, _) = table_of_one(100, 199);
        assert_eq!(gpt(&header, 2), None);
        for at in 0..92 {
            let mut damaged = header.clone();
            damaged[at] ^= 0x41;
            assert_eq!(gpt(&damaged, 1000), None, "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(mut block in proptest::collection::vec(any::<u8>(), 0..600), blocks: u64) {
            let _ = table(&block, blocks);
            if let Some(start) = block.get_mut(..8) {
                start.copy_from_slice(b"EFI PART");
            }
            let _ = gpt(&block, blocks);
        }
    }
}
