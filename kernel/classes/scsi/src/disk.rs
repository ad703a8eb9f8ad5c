//! A disk: a logical unit with blocks.

use super::command::{self, ScsiError, execute};
use super::{Host, scan};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use block::disk::{Doing, Outcome};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use embassy_futures::join::join_array;
use host::domain::Handle;
use ringfence_abi::scsi::MAX_DATA;
use ringfence_core::cdb::{self, Capacity, Identity};

/// Peripheral device type of a disk (SPC-4 6.6.2, table 174).
const DIRECT_ACCESS: u8 = 0;
/// How many commands of one transfer are under way at once.
const DEPTH: usize = 4;

/// A disk.
pub struct Disk {
    /// Its name in the shell.
    pub name: String,
    host: Arc<Host>,
    /// SCSI target.
    pub target: u32,
    /// Logical unit.
    pub lun: u32,
    /// The data of INQUIRY.
    pub identity: Identity,
    /// Block length in bytes. A disk with another block length is another disk.
    block_bytes: u32,
    /// Number of blocks, as READ CAPACITY said last.
    blocks: AtomicU64,
    /// Set when the disk is gone.
    gone: AtomicBool,
}

/// The kind of a logical unit.
pub enum Unit {
    /// A disk.
    Disk(Disk),
    /// Another device, with its peripheral device type and its identity.
    Other(u8, Identity),
    /// No unit is there.
    None,
}

impl Disk {
    /// Finds out the kind of a logical unit.
    pub async fn open(host: &Arc<Host>, target: u32, lun: u32) -> Result<Unit, ScsiError> {
        const INQUIRY_BYTES: usize = 36;
        let mut data = [0; INQUIRY_BYTES];
        let len = execute(host, target, lun, &cdb::inquiry(INQUIRY_BYTES as u16), &[], &mut data).await?;
        let identity = cdb::identity(data.get(..len).unwrap_or(&[])).ok_or(ScsiError::Short)?;
        if !identity.present {
            return Ok(Unit::None);
        }
        if identity.device_type != DIRECT_ACCESS {
            return Ok(Unit::Other(identity.device_type, identity));
        }
        execute(host, target, lun, &cdb::test_unit_ready(), &[], &mut []).await?;
        let mut data = [0; 8];
        let len = execute(host, target, lun, &cdb::read_capacity_10(), &[], &mut data).await?;
        let capacity = match cdb::capacity_10(data.get(..len).unwrap_or(&[])) {
            Some(capacity) => capacity,
            None => {
                let mut data = [0; 32];
                let len = execute(host, target, lun, &cdb::read_capacity_16(), &[], &mut data).await?;
                cdb::capacity_16(data.get(..len).unwrap_or(&[])).ok_or(ScsiError::Short)?
            }
        };
        if !(512..=4096).contains(&capacity.block_bytes) || !capacity.block_bytes.is_power_of_two() {
            return Err(ScsiError::BlockBytes(capacity.block_bytes));
        }
        Ok(Unit::Disk(Disk {
            name: String::new(),
            host: host.clone(),
            target,
            lun,
            identity,
            block_bytes: capacity.block_bytes,
            blocks: AtomicU64::new(capacity.blocks),
            gone: AtomicBool::new(false),
        }))
    }

    /// Returns the disk under a name.
    pub fn named(self, name: String) -> Disk {
        Disk { name, ..self }
    }

    /// Returns the capacity that READ CAPACITY said last.
    pub fn capacity(&self) -> Capacity {
        Capacity { blocks: self.blocks.load(Ordering::Acquire), block_bytes: self.block_bytes }
    }

    /// Sets the number of blocks.
    pub fn set_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Release);
    }

    /// Marks the disk as gone: reads and writes fail from now on.
    pub fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// Turns an error of a command into one for the user of the disk.
    fn explain(&self, error: ScsiError) -> ScsiError {
        if error.is_no_unit() {
            // Other users of the disk are told after the unit was looked at again.
            scan::look_again(&self.host, self.target, self.lun);
            return ScsiError::Gone;
        }
        error
    }

    /// Returns the disk's host.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Returns the driver that the host has right now.
    pub fn handle(&self) -> Handle {
        self.host.handle()
    }

    /// Returns the length of a block in bytes.
    pub fn block_bytes(&self) -> usize {
        self.block_bytes as usize
    }

    fn check_range(&self, lba: u64, blocks: u64) -> Result<(), ScsiError> {
        match lba.checked_add(blocks) {
            _ if self.gone.load(Ordering::Acquire) => Err(ScsiError::Gone),
            Some(end) if end <= self.capacity().blocks => Ok(()),
            _ => Err(ScsiError::OutOfRange),
        }
    }

    /// Reads whole blocks from `lba` into `data`, whose length is a multiple of the block's.
    pub async fn read(&self, lba: u64, data: &mut [u8]) -> Result<(), ScsiError> {
        let block_bytes = self.block_bytes();
        self.check_range(lba, (data.len() / block_bytes) as u64)?;
        let mut chunks = data.chunks_mut(MAX_DATA).zip((lba..).step_by(MAX_DATA / block_bytes)).fuse();
        loop {
            // `None` reads nothing; it fills up the last round if that is short.
            let round: [_; DEPTH] = core::array::from_fn(|_| chunks.next());
            if round[0].is_none() {
                return Ok(());
            }
            for result in join_array(round.map(|chunk| self.read_chunk(chunk))).await {
                result?;
            }
        }
    }

    async fn read_chunk(&self, chunk: Option<(&mut [u8], u64)>) -> Result<(), ScsiError> {
        let Some((data, lba)) = chunk else { return Ok(()) };
        let cdb = cdb::read(lba, (data.len() / self.block_bytes()) as u32);
        let moved =
            execute(&self.host, self.target, self.lun, &cdb, &[], data).await.map_err(|error| self.explain(error))?;
        if moved == data.len() { Ok(()) } else { Err(ScsiError::Short) }
    }

    /// Writes whole blocks from `data`, whose length is a multiple of the block's, to `lba`.
    pub async fn write(&self, lba: u64, data: &[u8]) -> Result<(), ScsiError> {
        let block_bytes = self.block_bytes();
        self.check_range(lba, (data.len() / block_bytes) as u64)?;
        let mut chunks = data.chunks(MAX_DATA).zip((lba..).step_by(MAX_DATA / block_bytes)).fuse();
        loop {
            let round: [_; DEPTH] = core::array::from_fn(|_| chunks.next());
            if round[0].is_none() {
                return Ok(());
            }
            for result in join_array(round.map(|chunk| self.write_chunk(chunk))).await {
                result?;
            }
        }
    }

    async fn write_chunk(&self, chunk: Option<(&[u8], u64)>) -> Result<(), ScsiError> {
        let Some((data, lba)) = chunk else { return Ok(()) };
        let cdb = cdb::write(lba, (data.len() / self.block_bytes()) as u32);
        let moved = execute(&self.host, self.target, self.lun, &cdb, data, &mut [])
            .await
            .map_err(|error| self.explain(error))?;
        if moved == data.len() { Ok(()) } else { Err(ScsiError::Short) }
    }

    /// Waits until everything written is on the medium.
    pub async fn flush(&self) -> Result<(), ScsiError> {
        let flushed = execute(&self.host, self.target, self.lun, &cdb::synchronize_cache(), &[], &mut []).await;
        flushed.map(|_| ()).map_err(|error| self.explain(error))
    }
}

impl block::disk::Disk for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn handle(&self) -> Handle {
        self.host.handle()
    }

    fn place(&self) -> Option<(u32, u32)> {
        Some((self.target, self.lun))
    }

    fn model(&self) -> String {
        format!("{} {} {}", self.identity.vendor, self.identity.product, self.identity.revision)
    }

    fn blocks(&self) -> u64 {
        self.capacity().blocks
    }

    fn block_bytes(&self) -> usize {
        self.block_bytes as usize
    }

    fn is_in_doubt(&self) -> bool {
        self.host.is_in_doubt()
    }

    fn read<'a>(&'a self, lba: u64, data: &'a mut [u8]) -> Doing<'a, Outcome> {
        Box::pin(async move { Disk::read(self, lba, data).await.map_err(said) })
    }

    fn write<'a>(&'a self, lba: u64, data: &'a [u8]) -> Doing<'a, Outcome> {
        Box::pin(async move { Disk::write(self, lba, data).await.map_err(said) })
    }

    fn flush(&self) -> Doing<'_, Outcome> {
        Box::pin(async move { Disk::flush(self).await.map_err(said) })
    }

    fn reset(&self) -> Doing<'_, Outcome> {
        Box::pin(async move { command::reset(&self.host, self.target, self.lun).await.map_err(said) })
    }
}

fn said(error: ScsiError) -> String {
    error.to_string()
}
