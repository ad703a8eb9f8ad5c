//! The interface of a disk, and the list of all disks.

use super::partition::Partition;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use host::domain::Handle;
use spin::{Mutex, Once};

/// An operation under way that ends with a `T`.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
/// The result of a transfer; the error is in words for a person.
pub type Outcome = Result<(), String>;

/// Blocks that can be read and written.
pub trait Disk: Send + Sync {
    /// Returns the disk's name in the shell.
    fn name(&self) -> &str;
    /// Returns the disk that this one is a part of, if it is a partition.
    fn whole(&self) -> Option<&Arc<dyn Disk>> {
        None
    }
    /// Returns the first of its blocks in the whole disk.
    fn first(&self) -> u64 {
        0
    }
    /// Returns whether the disk is this partition.
    fn is_partition(&self, partition: &Partition) -> bool {
        let _ = partition;
        false
    }
    /// Returns the driver that the disk is behind right now.
    fn handle(&self) -> Handle;
    /// Returns the disk's target and unit, if the driver can have several disks.
    fn place(&self) -> Option<(u32, u32)>;
    /// Returns the disk's own description of itself.
    fn model(&self) -> String;
    /// Returns the number of blocks.
    fn blocks(&self) -> u64;
    /// Returns the length of a block in bytes: a power of two from 512 to 4096.
    fn block_bytes(&self) -> usize;
    /// Returns whether the disk cannot be written, as far as is known.
    fn is_read_only(&self) -> bool {
        false
    }
    /// Returns whether the disk must be looked at again before its known properties can be relied
    /// on.
    fn is_in_doubt(&self) -> bool {
        false
    }
    /// Reads whole blocks from `lba` into `data`, whose length is a multiple of the block's.
    fn read<'a>(&'a self, lba: u64, data: &'a mut [u8]) -> Doing<'a, Outcome>;
    /// Writes whole blocks from `data`, whose length is a multiple of the block's, to `lba`.
    fn write<'a>(&'a self, lba: u64, data: &'a [u8]) -> Doing<'a, Outcome>;
    /// Waits until everything written is on the medium.
    fn flush(&self) -> Doing<'_, Outcome>;
    /// Resets the device, which gives up its requests and begins anew. No waiting request is lost.
    fn reset(&self) -> Doing<'_, Outcome> {
        Box::pin(async { Err(String::from("its driver cannot reset it")) })
    }
}

/// Returns whether two disks have blocks in common: they are the same, or parts of the same disk.
pub(crate) fn overlaps(one: &dyn Disk, other: &dyn Disk) -> bool {
    fn whole(disk: &dyn Disk) -> &str {
        disk.whole().map_or(disk.name(), |whole| whole.name())
    }
    let [(first, end), (other_first, other_end)] =
        [one, other].map(|disk| (disk.first(), disk.first().saturating_add(disk.blocks())));
    whole(one) == whole(other) && first < other_end && other_first < end
}

/// A class whose disks must be searched for.
pub trait Search: Sync {
    /// Waits until the searches that are due right now have ended.
    fn settled(&self) -> Doing<'static, ()>;
    /// Searches everywhere again.
    fn look_again(&self);
}

static DISKS: Mutex<Vec<Arc<dyn Disk>>> = Mutex::new(Vec::new());
static SEARCHES: Once<&[&dyn Search]> = Once::new();

/// Installs the searches for disks, before any module is loaded.
pub fn install(searches: &'static [&'static dyn Search]) {
    SEARCHES.call_once(|| searches);
}

fn searches() -> impl Iterator<Item = &'static dyn Search> {
    SEARCHES.get().into_iter().flat_map(|searches| searches.iter().copied())
}

/// Adds the disk that `make` returns for a name that no other disk has.
pub fn add<D: Disk + 'static>(make: impl FnOnce(String) -> D) -> Arc<D> {
    let mut disks = DISKS.lock();
    let is_free = |name: &String| disks.iter().all(|disk| disk.name() != name);
    let name = (0..).map(|number| format!("disk{number}")).find(is_free).unwrap_or_default();
    let disk = Arc::new(make(name));
    disks.push(disk.clone());
    disk
}

/// Forgets the disks for which `is_gone` returns `true`, with their partitions.
pub fn forget(is_gone: impl Fn(&dyn Disk) -> bool) {
    DISKS.lock().retain(|disk| !is_gone(&**disk) && !disk.whole().is_some_and(|whole| is_gone(&**whole)));
}

/// Replaces the partitions of `whole`, if that is still among the disks. A partition that stays the
/// same is left alone: a driver may use it.
pub(crate) fn set_partitions(whole: &Arc<dyn Disk>, partitions: Vec<Partition>) {
    let mut disks = DISKS.lock();
    let is_its = |disk: &Arc<dyn Disk>| disk.whole().is_some_and(|other| Arc::ptr_eq(other, whole));
    let fresh: Vec<Arc<dyn Disk>> = partitions
        .into_iter()
        .map(|partition| {
            let same = disks.iter().filter(|disk| is_its(disk)).find(|disk| disk.is_partition(&partition));
            same.cloned().unwrap_or_else(|| Arc::new(partition))
        })
        .collect();
    disks.retain(|disk| !is_its(disk));
    if let Some(at) = disks.iter().position(|disk| Arc::ptr_eq(disk, whole)) {
        disks.splice(at + 1..at + 1, fresh);
    }
}

/// Returns all known disks.
pub fn all() -> Vec<Arc<dyn Disk>> {
    DISKS.lock().clone()
}

/// Waits until the searches for disks that are due right now have ended.
pub async fn settled() {
    for search in searches() {
        search.settled().await;
    }
}

/// Searches for disks everywhere again.
pub fn look_again() {
    searches().for_each(|search| search.look_again());
}
