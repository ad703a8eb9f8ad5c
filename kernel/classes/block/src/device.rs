//! The disk of a block device.

use super::disk::{Disk, Doing, Outcome};
use super::request::{Blocks, Request};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use embassy_futures::join::join_array;
use embassy_futures::yield_now;
use host::domain::Handle;
use host::requests::Server;
use host::requests::attempt::{Attempt, Done};
use ringfence_abi::block::{
    BLOCK_FLUSH, BLOCK_MAX_DATA, BLOCK_OK, BLOCK_READ, BLOCK_READ_ONLY, BLOCK_UNSUPPORTED, BLOCK_WRITE, BlockInfo,
};

/// How many requests of one transfer are under way at once.
const DEPTH: usize = 4;

/// A block device: a driver, and its successors.
pub struct Device {
    name: String,
    pub(super) server: Server,
    info: BlockInfo,
    /// Number of blocks, as the driver said last.
    blocks: AtomicU64,
    /// Set when the device is gone, or another one is in its place.
    gone: AtomicBool,
}

impl Device {
    pub(super) fn new(name: String, server: Server, info: BlockInfo) -> Device {
        Device { name, server, info, blocks: AtomicU64::new(info.blocks), gone: AtomicBool::new(false) }
    }

    /// Takes over the description that a new driver gives of the device. Returns `false` if it
    /// describes another device, whose blocks are not those of this one.
    pub(super) fn is_still(&self, info: &BlockInfo) -> bool {
        let before = self.info;
        let is_same = (before.block_bytes, before.model, before.flags) == (info.block_bytes, info.model, info.flags);
        if is_same {
            self.blocks.store(info.blocks, Ordering::Release);
        }
        is_same
    }

    /// Marks the device as gone: requests fail from now on.
    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
        self.server.set_gone();
    }

    fn check(&self, lba: u64, len_bytes: usize, writes: bool) -> Outcome {
        let blocks = (len_bytes / self.block_bytes()) as u64;
        match lba.checked_add(blocks) {
            _ if self.gone.load(Ordering::Acquire) => Err("the disk is gone".to_string()),
            _ if writes && self.is_read_only() => Err("the disk cannot be written".to_string()),
            Some(end) if end <= self.blocks() => Ok(()),
            _ => Err("beyond the end of the disk".to_string()),
        }
    }

    /// Sends one request, and waits for it. A repeated write writes the same data to the same
    /// blocks. So a repeated request need not be checked first, as long as the order stays.
    async fn send(&self, operation: u32, lba: u64, data_out: &[u8], data_in: &mut [u8]) -> Outcome {
        // A driver may answer every request at once: other tasks have their turn in between.
        yield_now().await;
        let request = Request { operation, lba };
        let mut attempt = Attempt::<Blocks>::new(&self.server);
        match attempt.outcome(&request, data_out, data_in, async || false).await {
            Ok(Done::Now(BLOCK_OK) | Done::Before) => Ok(()),
            Ok(Done::Now(BLOCK_UNSUPPORTED)) => Err("the device cannot do that".to_string()),
            Ok(Done::Now(_)) => Err("the device failed".to_string()),
            Err(_) if self.gone.load(Ordering::Acquire) => Err("the disk is gone".to_string()),
            Err(_) => Err("the driver is gone".to_string()),
        }
    }

    async fn read_all(&self, lba: u64, data: &mut [u8]) -> Outcome {
        self.check(lba, data.len(), false)?;
        let mut chunks =
            data.chunks_mut(BLOCK_MAX_DATA).zip((lba..).step_by(BLOCK_MAX_DATA / self.block_bytes())).fuse();
        loop {
            // `None` reads nothing; it fills up the last round if that is short.
            let round: [_; DEPTH] = core::array::from_fn(|_| chunks.next());
            if round[0].is_none() {
                return Ok(());
            }
            let read = async |chunk: Option<(&mut [u8], u64)>| match chunk {
                Some((data, lba)) => self.send(BLOCK_READ, lba, &[], data).await,
                None => Ok(()),
            };
            join_array(round.map(read)).await.into_iter().collect::<Outcome>()?;
        }
    }

    async fn write_all(&self, lba: u64, data: &[u8]) -> Outcome {
        self.check(lba, data.len(), true)?;
        let mut chunks = data.chunks(BLOCK_MAX_DATA).zip((lba..).step_by(BLOCK_MAX_DATA / self.block_bytes())).fuse();
        loop {
            let round: [_; DEPTH] = core::array::from_fn(|_| chunks.next());
            if round[0].is_none() {
                return Ok(());
            }
            let write = async |chunk: Option<(&[u8], u64)>| match chunk {
                Some((data, lba)) => self.send(BLOCK_WRITE, lba, data, &mut []).await,
                None => Ok(()),
            };
            join_array(round.map(write)).await.into_iter().collect::<Outcome>()?;
        }
    }
}

impl Disk for Device {
    fn name(&self) -> &str {
        &self.name
    }

    fn handle(&self) -> Handle {
        self.server.handle()
    }

    fn place(&self) -> Option<(u32, u32)> {
        None
    }

    fn model(&self) -> String {
        let text = self.info.model.iter().take_while(|byte| **byte != 0);
        text.map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' }).collect()
    }

    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    fn block_bytes(&self) -> usize {
        self.info.block_bytes as usize
    }

    fn is_read_only(&self) -> bool {
        self.info.flags & BLOCK_READ_ONLY != 0
    }

    fn read<'a>(&'a self, lba: u64, data: &'a mut [u8]) -> Doing<'a, Outcome> {
        Box::pin(self.read_all(lba, data))
    }

    fn write<'a>(&'a self, lba: u64, data: &'a [u8]) -> Doing<'a, Outcome> {
        Box::pin(self.write_all(lba, data))
    }

    fn flush(&self) -> Doing<'_, Outcome> {
        Box::pin(self.send(BLOCK_FLUSH, 0, &[], &mut []))
    }
}
