//! The disk, as the crate sees it.

use alloc::rc::Rc;
use core::cell::Cell;
use core::fmt;
use hadris_io::{Error, ErrorKind, ErrorType};
use hadris_storage::sync::BlockDevice;
use hadris_storage::{BlockIndex, BlockSize};
use ringfence_sdk::block::{BLOCK_READ_ONLY, BufferedDisk, Order};
use ringfence_sdk::{Refusal, Result};

/// The disk has failed.
#[derive(Debug)]
pub struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk failed")
    }
}

impl core::error::Error for Failed {}

/// What the crate writes right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Anything: the crate's order is kept.
    Anything,
    /// Data behind the end of a file, in clusters behind this byte of the disk, and the clusters,
    /// which are noted in the FAT before. No file has these bytes until its length is written: so
    /// the data may be there before. A single block behind that byte may be a
    /// directory's, which gets the first cluster of a file.
    Data(u64),
    /// The length of a file whose data was written.
    Length,
}

impl Writes {
    /// Returns the order of a write of these bytes of the disk.
    fn order(self, start: u64, len_bytes: u64, block_bytes: u64) -> Order {
        match self {
            Writes::Length => Order::Last,
            Writes::Data(from) if start >= from && len_bytes > block_bytes => Order::Early,
            Writes::Data(from) if start.saturating_add(len_bytes) <= from => Order::Late,
            _ => Order::Kept,
        }
    }
}

/// The blocks of a disk.
pub struct Blocks {
    disk: BufferedDisk,
    block_size: BlockSize,
    writes: Rc<Cell<Writes>>,
}

impl Blocks {
    /// Makes a value. The caller changes `writes` when the crate begins to write something else.
    pub fn new(disk: BufferedDisk, writes: Rc<Cell<Writes>>) -> Result<Blocks> {
        let block_size = BlockSize::new(disk.info().block_bytes).ok_or(Refusal::Invalid)?;
        Ok(Blocks { disk, block_size, writes })
    }

    /// Returns the order in which the disk gets a write.
    fn order(&self, first: BlockIndex, len_bytes: usize) -> Order {
        let start = first.get().saturating_mul(self.block_size.get().into());
        self.writes.get().order(start, len_bytes as u64, self.block_size.get().into())
    }

    /// Checks that all of `len_bytes` bytes from a block on are on the disk.
    fn check(&self, first: BlockIndex, len_bytes: usize) -> core::result::Result<(), Error<Failed>> {
        let blocks = (len_bytes as u64).div_ceil(self.block_size.get().into());
        match first.get().checked_add(blocks) {
            Some(end) if end <= self.disk.info().blocks => Ok(()),
            _ => Err(Error::new(ErrorKind::Corrupt, "it leads beyond the end of the disk")),
        }
    }
}

fn said(result: Result<()>) -> core::result::Result<(), Error<Failed>> {
    result.map_err(|_| Error::new(ErrorKind::Io, "the disk failed"))
}

impl ErrorType for Blocks {
    type Error = Failed;
}

impl BlockDevice for Blocks {
    fn block_size(&self) -> BlockSize {
        self.block_size
    }

    fn block_count(&self) -> u64 {
        self.disk.info().blocks
    }

    fn writable(&self) -> bool {
        self.disk.info().flags & BLOCK_READ_ONLY == 0
    }

    fn read_blocks(&mut self, first: BlockIndex, to: &mut [u8]) -> core::result::Result<(), Error<Failed>> {
        self.check(first, to.len())?;
        said(self.disk.read(first.get(), to))
    }

    fn write_blocks(&mut self, first: BlockIndex, from: &[u8]) -> core::result::Result<(), Error<Failed>> {
        self.check(first, from.len())?;
        said(self.disk.write(first.get(), from, self.order(first, from.len())))
    }

    fn flush(&mut self) -> core::result::Result<(), Error<Failed>> {
        said(self.disk.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_is_early_and_only_tables_are_late() {
        let order = |writes: Writes, start, len_bytes| writes.order(start, len_bytes, 4096);
        // The data area may begin in the middle of a block.
        let data = Writes::Data(10_240);
        let expected = [
            (0, 4096, Order::Late),
            (4096, 4096, Order::Late),
            (8192, 4096, Order::Kept),
            (8192, 65536, Order::Kept),
            (12_288, 4096, Order::Kept),
            (12_288, 8192, Order::Early),
            (u64::MAX, 4096, Order::Kept),
        ];
        for (start, len_bytes, expected) in expected {
            assert_eq!(order(data, start, len_bytes), expected, "{len_bytes} bytes at {start}");
            assert_eq!(order(Writes::Anything, start, len_bytes), Order::Kept);
            assert_eq!(order(Writes::Length, start, len_bytes), Order::Last);
        }
    }
}
