//! What a disk is, and all that are there.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use host::domain::Handle;
use spin::{Mutex, Once};

/// Something under way that ends with a `T`.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;
/// What becomes of a transfer; the error is in words for a person.
pub type Outcome = Result<(), String>;

/// Blocks that can be read and written.
pub trait Disk: Send + Sync {
    /// Its name in the shell.
    fn name(&self) -> &str;
    /// The driver that it is behind right now.
    fn handle(&self) -> Handle;
    /// Where it is behind that, if there are several: target and unit.
    fn place(&self) -> Option<(u32, u32)>;
    /// What it says it is.
    fn model(&self) -> String;
    /// How many blocks it has.
    fn blocks(&self) -> u64;
    /// Length of a block in bytes: a power of two from 512 to 4096.
    fn block_bytes(&self) -> usize;
    /// Whether it cannot be written, as far as is known.
    fn is_read_only(&self) -> bool {
        false
    }
    /// Whether it is to be looked at again before anybody relies on what is known of it.
    fn is_in_doubt(&self) -> bool {
        false
    }
    /// Reads whole blocks from `lba` into `data`, whose length is a multiple of the block's.
    fn read<'a>(&'a self, lba: u64, data: &'a mut [u8]) -> Doing<'a, Outcome>;
    /// Writes whole blocks from `data`, whose length is a multiple of the block's, to `lba`.
    fn write<'a>(&'a self, lba: u64, data: &'a [u8]) -> Doing<'a, Outcome>;
    /// Waits until everything written is on the medium.
    fn flush(&self) -> Doing<'_, Outcome>;
    /// Has the device give up what it does, and begin anew; nothing that waits for it is lost.
    fn reset(&self) -> Doing<'_, Outcome> {
        Box::pin(async { Err(String::from("its driver cannot reset it")) })
    }
}

/// A class whose disks must be looked for.
pub trait Search: Sync {
    /// Waits until it has looked where it is to look right now.
    fn settled(&self) -> Doing<'static, ()>;
    /// Looks everywhere again.
    fn look_again(&self);
}

static DISKS: Mutex<Vec<Arc<dyn Disk>>> = Mutex::new(Vec::new());
static SEARCHES: Once<&[&dyn Search]> = Once::new();

/// Installs what looks for disks, before any module is loaded.
pub fn install(searches: &'static [&'static dyn Search]) {
    SEARCHES.call_once(|| searches);
}

fn searches() -> impl Iterator<Item = &'static dyn Search> {
    SEARCHES.get().into_iter().flat_map(|searches| searches.iter().copied())
}

/// Adds the disk that `make` makes of a name that no other has.
pub fn add<D: Disk + 'static>(make: impl FnOnce(String) -> D) -> Arc<D> {
    let mut disks = DISKS.lock();
    let is_free = |name: &String| disks.iter().all(|disk| disk.name() != name);
    let name = (0..).map(|number| format!("disk{number}")).find(is_free).unwrap_or_default();
    let disk = Arc::new(make(name));
    disks.push(disk.clone());
    disk
}

/// Forgets the disks for which `is_gone` says so.
pub fn forget(is_gone: impl Fn(&dyn Disk) -> bool) {
    DISKS.lock().retain(|disk| !is_gone(&**disk));
}

/// All disks that are known.
pub fn all() -> Vec<Arc<dyn Disk>> {
    DISKS.lock().clone()
}

/// Waits until disks have been looked for where they are to be looked for right now.
pub async fn settled() {
    for search in searches() {
        search.settled().await;
    }
}

/// Looks for disks everywhere again.
pub fn look_again() {
    searches().for_each(|search| search.look_again());
}
