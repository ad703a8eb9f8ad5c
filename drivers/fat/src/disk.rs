//! The disk, as the crate sees it.

use alloc::rc::Rc;
use core::cell::RefCell;
use core::fmt;
use hadris_io::{Error, ErrorKind, ErrorType};
use hadris_storage::sync::BlockDevice;
use hadris_storage::{BlockIndex, BlockSize};
use ringfence_sdk::block::{BLOCK_READ_ONLY, BlockInfo, BufferedDisk};
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

/// The blocks of a disk. Copies are the same disk: the crate has one, the driver another.
#[derive(Clone)]
pub struct Blocks {
    disk: Rc<RefCell<BufferedDisk>>,
    info: BlockInfo,
    block_size: BlockSize,
}

impl Blocks {
    pub fn new(disk: BufferedDisk) -> Result<Blocks> {
        let info = disk.info();
        let block_size = BlockSize::new(info.block_bytes).ok_or(Refusal::Invalid)?;
        Ok(Blocks { disk: Rc::new(RefCell::new(disk)), info, block_size })
    }

    /// Waits until the kernel has all writes.
    pub fn settle(&self) -> Result<()> {
        self.disk.borrow_mut().settle()
    }

    /// Checks that all of `len_bytes` bytes from a block on are on the disk.
    fn check(&self, first: BlockIndex, len_bytes: usize) -> core::result::Result<(), Error<Failed>> {
        let blocks = (len_bytes as u64).div_ceil(self.block_size.get().into());
        match first.get().checked_add(blocks) {
            Some(end) if end <= self.info.blocks => Ok(()),
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
        self.info.blocks
    }

    fn writable(&self) -> bool {
        self.info.flags & BLOCK_READ_ONLY == 0
    }

    fn read_blocks(&mut self, first: BlockIndex, to: &mut [u8]) -> core::result::Result<(), Error<Failed>> {
        self.check(first, to.len())?;
        said(self.disk.borrow_mut().read(first.get(), to))
    }

    fn write_blocks(&mut self, first: BlockIndex, from: &[u8]) -> core::result::Result<(), Error<Failed>> {
        self.check(first, from.len())?;
        said(self.disk.borrow_mut().write(first.get(), from))
    }

    fn flush(&mut self) -> core::result::Result<(), Error<Failed>> {
        said(self.disk.borrow_mut().flush())
    }
}
