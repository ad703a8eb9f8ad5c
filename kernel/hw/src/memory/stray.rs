//! Stray writes: a device that its driver has misprogrammed writes to memory that is not the
//! driver's. Without an IOMMU nothing prevents this, but stray writes to free memory can be
//! detected: free frames are filled with ones, and checked.
//!
//! Off until it is asked for ([`count`]), because it reads all of free memory.

use super::frames;
use super::shared::SharedMemory;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::queue::Words;
use spin::Mutex;

/// The word that free frames are filled with. Ones allow a check by one AND per word.
const FILL: u64 = u64::MAX;
/// Frames of conventional memory, which have no owner ([`super::init`]).
const CONVENTIONAL_FRAMES: usize = (640 << 10) / PAGE_SIZE as usize;

static ON: AtomicBool = AtomicBool::new(false);
/// Changed free frames, and changes of [`constant_sum`], that were found since the last count.
static FOUND: AtomicU64 = AtomicU64::new(0);
/// The last value of [`constant_sum`].
static SUM: Mutex<u64> = Mutex::new(0);

/// Returns how many free frames were written to since the last call. The first call begins the
/// watch.
pub fn count() -> u64 {
    let sum = constant_sum();
    let before = core::mem::replace(&mut *SUM.lock(), sum);
    if !ON.swap(true, Ordering::Relaxed) {
        frames::for_each_free(fill);
        return 0;
    }
    if sum != before {
        FOUND.fetch_add(1, Ordering::Relaxed);
    }
    frames::for_each_free(check);
    FOUND.swap(0, Ordering::Relaxed)
}

/// Notes that the frame is free from now on.
pub(super) fn freed(frame: &SharedMemory) {
    if ON.load(Ordering::Relaxed) {
        fill(frame);
    }
}

/// Notes that the frame is not free any more.
pub(super) fn allocated(frame: &SharedMemory) {
    if ON.load(Ordering::Relaxed) {
        check(frame);
    }
}

const WORDS: usize = PAGE_SIZE as usize / size_of::<u64>();

/// Returns the words of some memory, which a device may write to.
fn words(memory: &SharedMemory) -> impl Iterator<Item = u64> {
    (0..memory.len_bytes() / size_of::<u64>()).map(|index| memory.load(index))
}

fn fill(frame: &SharedMemory) {
    frame.fill(0, WORDS, FILL);
}

/// Counts the frame if its contents have changed, and fills it again.
fn check(frame: &SharedMemory) {
    if words(frame).fold(FILL, |all, word| all & word) != FILL {
        FOUND.fetch_add(1, Ordering::Relaxed);
        fill(frame);
    }
}

/// Memory that is in use and never changes, besides the kernel's own.
static CONSTANT: Mutex<Vec<&'static [u8]>> = Mutex::new(Vec::new());

/// Watches `bytes` as well, from the next count on.
pub fn watch(bytes: &'static [u8]) {
    CONSTANT.lock().push(bytes);
}

/// Returns a sum over memory that is in use or has no owner, and that never changes: conventional
/// memory, and the bytes that [`watch`] was given.
fn constant_sum() -> u64 {
    let mut sum: u64 = 0;
    let mut add = |word: u64| sum = sum.rotate_left(1).wrapping_add(word);
    for frame in 0..CONVENTIONAL_FRAMES {
        words(&frames::nobodys(frame)).for_each(&mut add);
    }
    for bytes in CONSTANT.lock().iter() {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| add(u64::from_le_bytes(*word)));
        rest.iter().for_each(|byte| add((*byte).into()));
    }
    sum
}
