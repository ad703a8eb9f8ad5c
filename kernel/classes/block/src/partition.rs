//! Partitions: disks that are parts of other disks, by the tables on those
//! ([`ringfence_core::partition`]).
//!
//! [`look`] searches for them when somebody asks for disks: most disks never need it.

use super::disk::{self, Disk, Doing, Outcome};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use embassy_time::{Duration, with_timeout};
use host::domain::Handle;
use hw::memory::buffer;
use ringfence_core::partition::{self, Table};
use ringfence_core::path::shown;

/// How long the search on one disk may take. A disk that does not answer keeps the partitions that
/// it had.
const LIMIT: Duration = Duration::from_millis(1000);

/// A partition.
pub struct Partition {
    name: String,
    /// The disk that it is a part of. The list of disks keeps no partition of a disk that is gone.
    whole: Arc<dyn Disk>,
    first: u64,
    blocks: u64,
    label: String,
}

impl Partition {
    fn new(whole: &Arc<dyn Disk>, found: partition::Partition) -> Partition {
        let name = format!("{}p{}", whole.name(), found.number);
        Partition { name, whole: whole.clone(), first: found.first, blocks: found.blocks, label: shown(&found.name) }
    }

    /// Returns the block of the whole disk for a range of this one.
    fn at(&self, lba: u64, len_bytes: usize) -> Result<u64, String> {
        let count = (len_bytes / self.block_bytes()) as u64;
        match lba.checked_add(count) {
            Some(end) if end <= self.blocks => Ok(self.first + lba),
            _ => Err("beyond the end of the partition".to_string()),
        }
    }
}

impl Disk for Partition {
    fn name(&self) -> &str {
        &self.name
    }

    fn whole(&self) -> Option<&Arc<dyn Disk>> {
        Some(&self.whole)
    }

    fn first(&self) -> u64 {
        self.first
    }

    fn is_partition(&self, other: &Partition) -> bool {
        (&self.name, self.first, self.blocks, &self.label) == (&other.name, other.first, other.blocks, &other.label)
    }

    fn handle(&self) -> Handle {
        self.whole.handle()
    }

    fn place(&self) -> Option<(u32, u32)> {
        self.whole.place()
    }

    fn model(&self) -> String {
        if self.label.is_empty() { "partition".to_string() } else { format!("partition {}", self.label) }
    }

    fn blocks(&self) -> u64 {
        self.blocks
    }

    fn block_bytes(&self) -> usize {
        self.whole.block_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.whole.is_read_only()
    }

    fn is_in_doubt(&self) -> bool {
        self.whole.is_in_doubt()
    }

    fn read<'a>(&'a self, lba: u64, data: &'a mut [u8]) -> Doing<'a, Outcome> {
        Box::pin(async move { self.whole.read(self.at(lba, data.len())?, data).await })
    }

    fn write<'a>(&'a self, lba: u64, data: &'a [u8]) -> Doing<'a, Outcome> {
        Box::pin(async move { self.whole.write(self.at(lba, data.len())?, data).await })
    }

    fn flush(&self) -> Doing<'_, Outcome> {
        self.whole.flush()
    }

    fn reset(&self) -> Doing<'_, Outcome> {
        self.whole.reset()
    }
}

/// Reads a disk's table.
async fn read(disk: &dyn Disk) -> Result<Vec<partition::Partition>, String> {
    let mut block = buffer(disk.block_bytes())?;
    if disk.blocks() < 2 {
        return Ok(Vec::new());
    }
    disk.read(0, &mut block).await?;
    match partition::table(&block, disk.blocks()) {
        Table::None => Ok(Vec::new()),
        Table::Mbr(partitions, None) => Ok(partitions),
        Table::Mbr(mut partitions, Some(extended)) => {
            let mut next = Some(extended.first);
            while let Some(at) = next.filter(|_| partitions.len() < partition::MOST) {
                disk.read(at, &mut block).await?;
                let number = partitions.iter().map(|partition| partition.number + 1).max().unwrap_or(0);
                let (found, after) = partition::logical(&block, at, &extended, number.max(partition::FIRST_LOGICAL));
                partitions.extend(found);
                next = after;
            }
            Ok(partitions)
        }
        Table::Gpt => {
            disk.read(1, &mut block).await?;
            let Some(gpt) = partition::gpt(&block, disk.blocks()) else { return Ok(Vec::new()) };
            let mut array = buffer(gpt.len_bytes.next_multiple_of(disk.block_bytes()))?;
            disk.read(gpt.first, &mut array).await?;
            Ok(partition::gpt_partitions(&gpt, &array).unwrap_or_default())
        }
    }
}

/// Searches all disks for partitions, which are disks of their own from then on.
pub async fn look() {
    for whole in disk::all().into_iter().filter(|disk| disk.whole().is_none()) {
        if let Ok(Ok(found)) = with_timeout(LIMIT, read(&*whole)).await {
            disk::set_partitions(&whole, found.into_iter().map(|found| Partition::new(&whole, found)).collect());
        }
    }
}
