//! The disk, as the crate sees it: bytes from any byte on.

use alloc::boxed::Box;
use alloc::vec;
use core::error::Error;
use core::fmt;
use ext4_view::Ext4Read;
use ringfence_sdk::block::BufferedDisk;
use ringfence_sdk::fs::Space;
use ringfence_sdk::{Refusal, Result};

/// The disk has failed, or the filesystem leads beyond its end.
#[derive(Debug)]
struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk failed, or is too short")
    }
}

impl Error for Failed {}

/// The bytes of a disk.
pub struct Blocks(BufferedDisk);

impl Blocks {
    pub fn new(disk: BufferedDisk) -> Blocks {
        Blocks(disk)
    }

    /// Reads the size of the filesystem from its superblock, which the crate does not tell: the
    /// numbers of blocks, low halves at 4 and 12 and high halves at 0x150 and 0x158, and the
    /// logarithm of their length in KiB at 24.
    pub fn space(&mut self) -> Result<Space> {
        const SUPERBLOCK: u64 = 1024;
        const HAS_64_BITS: u32 = 0x80;
        let mut bytes = [0; 1024];
        self.read_bytes(SUPERBLOCK, &mut bytes).ok_or(Refusal::NoAnswer)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let has_high = word(96) & HAS_64_BITS != 0;
        let blocks = |low, high| u64::from(word(low)) | if has_high { u64::from(word(high)) << 32 } else { 0 };
        let block_bytes = 1024u64.checked_shl(word(24)).ok_or(Refusal::Invalid)?;
        let bytes = |count: u64| count.saturating_mul(block_bytes);
        Ok(Space { total: bytes(blocks(4, 0x150)), free: bytes(blocks(12, 0x158)) })
    }

    /// Reads bytes from any byte on; `None` if the disk fails, or has no such bytes.
    fn read_bytes(&mut self, start: u64, to: &mut [u8]) -> Option<()> {
        let block_bytes = u64::from(self.0.info().block_bytes);
        let end = start.checked_add(to.len() as u64)?;
        let (first, last) = (start / block_bytes, end.div_ceil(block_bytes));
        if last > self.0.info().blocks {
            return None;
        }
        if start.is_multiple_of(block_bytes) && end.is_multiple_of(block_bytes) {
            return self.0.read(first, to).ok();
        }
        let mut whole = vec![0; ((last - first) * block_bytes) as usize];
        self.0.read(first, &mut whole).ok()?;
        let skipped = (start - first * block_bytes) as usize;
        to.copy_from_slice(&whole[skipped..skipped + to.len()]);
        Some(())
    }
}

impl Ext4Read for Blocks {
    fn read(&mut self, start: u64, to: &mut [u8]) -> core::result::Result<(), Box<dyn Error + Send + Sync>> {
        self.read_bytes(start, to).ok_or_else(|| Box::from(Failed))
    }
}
