//! SCSI command descriptor blocks, and the data that some of the commands return (SPC-4, SBC-3).
//! All fields are big-endian.

use alloc::format;
use alloc::string::{String, ToString};
use ringfence_abi::scsi::MAX_CDB;

const READ_10: u8 = 0x28;
const WRITE_10: u8 = 0x2a;
const READ_16: u8 = 0x88;
const WRITE_16: u8 = 0x8a;

/// A command descriptor block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; MAX_CDB],
    len_bytes: usize,
}

impl Cdb {
    fn new<const N: usize>(bytes: [u8; N]) -> Cdb {
        let mut cdb = Cdb { bytes: [0; MAX_CDB], len_bytes: N };
        if let Some(first) = cdb.bytes.first_chunk_mut() {
            *first = bytes;
        }
        cdb
    }

    /// No command.
    pub const NONE: Cdb = Cdb { bytes: [0; MAX_CDB], len_bytes: 0 };

    /// Returns all bytes; those after the end are zero.
    pub fn padded(&self) -> [u8; MAX_CDB] {
        self.bytes
    }

    /// Returns the length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Returns the READ of the blocks that this WRITE writes; `None` if the command is no WRITE.
    pub fn read_back(&self) -> Option<Cdb> {
        let mut read = *self;
        read.bytes[0] = match self.bytes[0] {
            WRITE_10 => READ_10,
            WRITE_16 => READ_16,
            _ => return None,
        };
        Some(read)
    }

    /// Returns the command's name.
    pub fn name(&self) -> &'static str {
        name(self.bytes[0])
    }
}

/// Returns the name of a command by its operation code.
fn name(operation: u8) -> &'static str {
    match operation {
        0x00 => "TEST UNIT READY",
        0x12 => "INQUIRY",
        0x25 => "READ CAPACITY(10)",
        READ_10 => "READ(10)",
        WRITE_10 => "WRITE(10)",
        0x35 => "SYNCHRONIZE CACHE(10)",
        READ_16 => "READ(16)",
        WRITE_16 => "WRITE(16)",
        0x9e => "READ CAPACITY(16)",
        0xa0 => "REPORT LUNS",
        _ => "command",
    }
}

/// Describes a command for a person: its name, and the blocks that it moves.
pub fn words(cdb: &[u8]) -> String {
    let Some(operation) = cdb.first() else { return String::new() };
    let name = name(*operation);
    let blocks = match *operation {
        READ_10 | WRITE_10 => be32(cdb, 2).zip(be16(cdb, 7)).map(|(lba, blocks)| (lba.into(), blocks.into())),
        READ_16 | WRITE_16 => {
            let lba = be32(cdb, 2).zip(be32(cdb, 6)).map(|(high, low)| u64::from(high) << 32 | u64::from(low));
            lba.zip(be32(cdb, 10))
        }
        _ => None,
    };
    match blocks {
        Some((lba, blocks)) => format!("{name} of {blocks} blocks from {lba}"),
        None => name.to_string(),
    }
}

/// Returns TEST UNIT READY (SPC-4 6.47).
pub fn test_unit_ready() -> Cdb {
    Cdb::new([0; 6])
}

/// Returns INQUIRY for at most `len_bytes` bytes of standard data (SPC-4 6.6).
pub fn inquiry(len_bytes: u16) -> Cdb {
    let [high, low] = len_bytes.to_be_bytes();
    Cdb::new([0x12, 0, 0, high, low, 0])
}

/// Returns REPORT LUNS for at most `len_bytes` bytes of the list (SPC-4 6.33).
pub fn report_luns(len_bytes: u32) -> Cdb {
    let [a, b, c, d] = len_bytes.to_be_bytes();
    Cdb::new([0xa0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0])
}

/// Returns READ CAPACITY(10) (SBC-3 5.15), for 8 bytes of data.
pub fn read_capacity_10() -> Cdb {
    Cdb::new([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// Returns READ CAPACITY(16) (SBC-3 5.16), for 32 bytes of data.
pub fn read_capacity_16() -> Cdb {
    Cdb::new([0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0])
}

/// Returns READ(10) or, where the address or the count is too large for it, READ(16) (SBC-3 5.12,
/// 5.14).
pub fn read(lba: u64, blocks: u32) -> Cdb {
    transfer(READ_10, READ_16, lba, blocks)
}

/// Returns WRITE(10) or, where the address or the count is too large for it, WRITE(16) (SBC-3 5.33,
/// 5.35).
pub fn write(lba: u64, blocks: u32) -> Cdb {
    transfer(WRITE_10, WRITE_16, lba, blocks)
}

/// Returns SYNCHRONIZE CACHE(10) for the whole disk (SBC-3 5.22).
pub fn synchronize_cache() -> Cdb {
    Cdb::new([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

fn transfer(short: u8, long: u8, lba: u64, blocks: u32) -> Cdb {
    if let (Ok(lba), Ok(blocks)) = (u32::try_from(lba), u16::try_from(blocks)) {
        let ([a, b, c, d], [e, f]) = (lba.to_be_bytes(), blocks.to_be_bytes());
        return Cdb::new([short, 0, a, b, c, d, 0, e, f, 0]);
    }
    let ([a, b, c, d, e, f, g, h], [i, j, k, l]) = (lba.to_be_bytes(), blocks.to_be_bytes());
    Cdb::new([long, 0, a, b, c, d, e, f, g, h, i, j, k, l, 0, 0])
}

/// The data of READ CAPACITY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Number of blocks.
    pub blocks: u64,
    /// Length of a block in bytes.
    pub block_bytes: u32,
}

fn be16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(data.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn be32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Reads READ CAPACITY(10) data; `None` if it is cut short, or if the disk is too large for this
/// command.
pub fn capacity_10(data: &[u8]) -> Option<Capacity> {
    let last = be32(data, 0)?;
    if last == u32::MAX {
        return None;
    }
    Some(Capacity { blocks: u64::from(last) + 1, block_bytes: be32(data, 4)? })
}

/// Reads READ CAPACITY(16) data; `None` if it is cut short or makes no sense.
pub fn capacity_16(data: &[u8]) -> Option<Capacity> {
    let last = u64::from(be32(data, 0)?) << 32 | u64::from(be32(data, 4)?);
    Some(Capacity { blocks: last.checked_add(1)?, block_bytes: be32(data, 8)? })
}

/// The data of INQUIRY (SPC-4 6.6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Peripheral device type: 0 is a disk, 5 a CD or DVD drive.
    pub device_type: u8,
    /// Whether a device is there at all (peripheral qualifier 0).
    pub present: bool,
    /// T10 vendor identification.
    pub vendor: String,
    /// Product identification.
    pub product: String,
    /// Product revision level.
    pub revision: String,
}

/// Returns a peripheral device type in words (SPC-4 6.6.2, table 174).
pub fn device_type_name(kind: u8) -> &'static str {
    match kind {
        0x00 => "a disk",
        0x01 => "a tape drive",
        0x03 => "a processor",
        0x05 => "a CD or DVD drive",
        0x07 => "an optical disk",
        0x08 => "a media changer",
        0x0c => "an array controller",
        0x0d => "an enclosure",
        _ => "of a type of its own",
    }
}

/// Reads INQUIRY data; `None` if it is cut short.
pub fn identity(data: &[u8]) -> Option<Identity> {
    let text = |range: core::ops::Range<usize>| -> Option<String> {
        let printable = |byte: &u8| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '?' };
        Some(data.get(range)?.iter().map(printable).collect::<String>().trim().to_string())
    };
    let first = *data.first()?;
    Some(Identity {
        device_type: first & 0x1f,
        present: first >> 5 == 0,
        vendor: text(8..16)?,
        product: text(16..32)?,
        revision: text(32..36)?,
    })
}

/// Returns the logical units that REPORT LUNS data names (SPC-4 6.33), in the simple addressing of
/// SAM-5 4.7.
pub fn luns(data: &[u8]) -> impl Iterator<Item = u32> {
    let listed = be32(data, 0).unwrap_or(0) as usize;
    let list = data.get(8..).unwrap_or(&[]);
    list.get(..listed).unwrap_or(list).chunks_exact(8).filter_map(|entry| match entry {
        // Peripheral or flat addressing of a single level.
        [first, second, 0, 0, 0, 0, 0, 0] if *first >> 6 <= 1 => {
            Some(u32::from(*first & 0x3f) << 8 | u32::from(*second))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn large_addresses_get_the_long_form() {
        assert_eq!(read(0x0102_0304, 0x0506).bytes[..10], [0x28, 0, 1, 2, 3, 4, 0, 5, 6, 0]);
        let long = write(0x01_0000_0002, 3);
        assert_eq!(long.len_bytes(), 16);
        assert_eq!(long.bytes[..16], [0x8a, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0]);
        assert_eq!(read(0, 0x1_0000).len_bytes(), 16);
    }

    #[test]
    fn commands_are_named_with_their_blocks() {
        let words = |cdb: Cdb| words(&cdb.bytes[..cdb.len_bytes]);
        assert_eq!(words(read(4096, 8)), "READ(10) of 8 blocks from 4096");
        assert_eq!(words(write(1 << 40, 1)), "WRITE(16) of 1 blocks from 1099511627776");
        assert_eq!(words(inquiry(36)), "INQUIRY");
        assert_eq!([super::words(&[READ_10, 0]), super::words(&[])], ["READ(10)", ""]);
    }

    #[test]
    fn capacities_are_counts_not_last_addresses() {
        assert_eq!(capacity_10(&[0, 0, 0, 9, 0, 0, 2, 0]), Some(Capacity { blocks: 10, block_bytes: 512 }));
        assert_eq!(capacity_10(&[0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]), None);
        assert_eq!(capacity_16(&[0xff; 32]), None);
    }

    #[test]
    fn a_write_can_be_read_back() {
        for (lba, blocks) in [(5, 8), (1 << 40, 8), (5, 1 << 20)] {
            assert_eq!(write(lba, blocks).read_back(), Some(read(lba, blocks)));
        }
        assert_eq!(read(5, 8).read_back(), None);
        assert_eq!(synchronize_cache().read_back(), None);
    }

    #[test]
    fn luns_are_listed() {
        let mut data = vec![0, 0, 0, 16, 0, 0, 0, 0];
        data.extend([0, 0, 0, 0, 0, 0, 0, 0]);
        data.extend([0x40, 5, 0, 0, 0, 0, 0, 0]);
        assert_eq!(luns(&data).collect::<Vec<_>>(), [0, 5]);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (capacity_10(&data), capacity_16(&data), identity(&data), luns(&data).count());
        }
    }
}
