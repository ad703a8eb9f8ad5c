//! The disk, as the crate sees it.

use core::fmt;
use hadris_io::{Error, ErrorKind, ErrorType};
use hadris_storage::sync::BlockDevice;
use hadris_storage::{BlockIndex, BlockSize};
use ringfence_sdk::block::{BLOCK_READ_ONLY, BufferedDisk};
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

/// The blocks of a disk.
pub struct Blocks {
    disk: BufferedDisk,
    block_size: BlockSize,
}

impl Blocks {
    pub fn new(disk: BufferedDisk) -> Result<Blocks> {
        let block_size = BlockSize::new(disk.info().block_bytes).ok_or(Refusal::Invalid)?;
        Ok(Blocks { disk, block_size })
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
        said(self.disk.write(first.get(), from))
    }

    fn flush(&mut self) -> core::result::Result<(), Error<Failed>> {
        said(self.disk.flush())
    }
}
