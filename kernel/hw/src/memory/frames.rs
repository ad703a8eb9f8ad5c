//! The allocator of physical frames. It knows only the free ones; each owner keeps its own:
//! [`Frames`] is one owner's, [`Lent`] has several.

use super::shared::SharedMemory;
use super::stray;
use crate::latency::breathe;
use alloc::sync::Arc;
use alloc::vec::Vec;
use buddy_system_allocator::FrameAllocator;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::queue::Words;
use ringfence_core::requests::Data;
use spin::{Lazy, Mutex};

/// Blocks of up to 2^20 frames, 4 GiB.
const ORDERS: usize = 21;

type Pool = Lazy<Mutex<FrameAllocator<ORDERS>>>;

/// The free frames below 4 GiB, which every device reaches, and those above.
static FREE: [Pool; 2] = [const { Lazy::new(|| Mutex::new(FrameAllocator::new())) }; 2];
/// The first frame above 4 GiB.
const FIRST_ABOVE: usize = 1 << 20;

/// The pool that `frame` belongs to.
fn pool_of(frame: usize) -> &'static Pool {
    let [below, above] = &FREE;
    if frame < FIRST_ABOVE { below } else { above }
}

/// The reader of frames, which decides where they should lie.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// The CPU alone: frames above 4 GiB are as good, and are taken first.
    Cpu,
    /// A device, which may have addresses of 32 bits: frames below 4 GiB are taken first.
    Device,
}
static FREE_COUNT: AtomicU64 = AtomicU64::new(0);
static TOTAL_COUNT: AtomicU64 = AtomicU64::new(0);
static PROMISED: AtomicU64 = AtomicU64::new(0);

/// There are not enough free frames in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

impl From<OutOfMemory> for ringfence_abi::service::Refusal {
    fn from(_: OutOfMemory) -> ringfence_abi::service::Refusal {
        ringfence_abi::service::Refusal::NoMemory
    }
}

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory")
    }
}

/// Gives the memory from `start` to `end` to the allocator; parts of frames at the ends are left
/// out.
pub(super) fn add(start: u64, end: u64) {
    let (first, last) = (start.div_ceil(PAGE_SIZE) as usize, (end / PAGE_SIZE) as usize);
    for range in [first..last.min(FIRST_ABOVE), first.max(FIRST_ABOVE)..last] {
        if !range.is_empty() {
            let count = range.len() as u64;
            pool_of(range.start).lock().add_frame(range.start, range.end);
            FREE_COUNT.fetch_add(count, Ordering::Relaxed);
            TOTAL_COUNT.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Returns the physical address of `count` zeroed frames in a row, which the caller then owns.
fn allocate(count: usize, needs: Needs) -> Result<u64, OutOfMemory> {
    if count == 0 {
        return Err(OutOfMemory);
    }
    let [below, above] = &FREE;
    let order = if needs == Needs::Device { [below, above] } else { [above, below] };
    let first = order.into_iter().find_map(|pool| pool.lock().alloc(count)).ok_or(OutOfMemory)?;
    // The allocator deals in powers of two: the frames beyond `count` go back at once.
    give_back(first + count..first + count.next_power_of_two());
    FREE_COUNT.fetch_sub(count as u64, Ordering::Relaxed);
    let address = first as u64 * PAGE_SIZE;
    for frames in pieces(first..first + count) {
        frames.for_each(|frame| stray::allocated(&nobodys(frame)));
    }
    Ok(address)
}

/// Yields `frames` in pieces. Interrupts are let in between them, for callers that have them off:
/// services of a driver in ring 1.
fn pieces(frames: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = frames.end;
    frames.step_by(AT_ONCE).map(move |first| {
        if AT_ONCE <= end - first {
            breathe();
        }
        first..end.min(first + AT_ONCE)
    })
}

/// Frames in a piece.
const AT_ONCE: usize = 16;

/// Returns `count` frames in a row from physical address `address` on. Only this file may call it:
/// for frames that it hands out right now, takes back, or has in the allocator.
fn in_hand(address: u64, count: usize) -> SharedMemory {
    // SAFETY: these frames have no other owner.
    unsafe { SharedMemory::new(address, count * PAGE_SIZE as usize) }
}

/// Returns a frame without an owner, for a moment: a free one, or one of conventional memory.
pub(super) fn nobodys(frame: usize) -> SharedMemory {
    in_hand(frame as u64 * PAGE_SIZE, 1)
}

/// Zeroed frames in a row with one owner: dropping the value frees them.
#[derive(Debug)]
pub struct Frames {
    memory: SharedMemory,
    is_kept: AtomicBool,
}

impl Frames {
    /// Allocates `count` frames.
    pub fn new(count: usize) -> Result<Frames, OutOfMemory> {
        Frames::for_needs(count, Needs::Cpu)
    }

    fn for_needs(count: usize, needs: Needs) -> Result<Frames, OutOfMemory> {
        let frames = Frames { memory: in_hand(allocate(count, needs)?, count), is_kept: AtomicBool::new(false) };
        frames.zero();
        Ok(frames)
    }

    /// Makes a value from all or some of the frames that [`Frames::into_raw`] has given up.
    ///
    /// # Safety
    /// These frames must have no other owner.
    pub(super) unsafe fn from_raw(address: u64, count: usize) -> Frames {
        Frames { memory: in_hand(address, count), is_kept: AtomicBool::new(false) }
    }

    /// Gives the frames up and returns their physical address, from which [`Frames::from_raw`]
    /// restores them.
    pub(super) fn into_raw(self) -> u64 {
        self.keep();
        self.memory.physical()
    }

    /// Fills the frames with zeros.
    pub fn zero(&self) {
        const WORDS: usize = PAGE_SIZE as usize / size_of::<u64>();
        for frames in pieces(0..self.memory.len_bytes() / PAGE_SIZE as usize) {
            self.memory.fill(frames.start * WORDS, frames.len() * WORDS, 0);
        }
    }

    /// Prevents the frames from ever being freed: a device or driver may still use them.
    pub fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }
}

impl core::ops::Deref for Frames {
    type Target = SharedMemory;

    fn deref(&self) -> &SharedMemory {
        &self.memory
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        if !*self.is_kept.get_mut() {
            free_run(self.memory.physical(), self.memory.len_bytes() / PAGE_SIZE as usize);
        }
    }
}

/// Frames with several owners: a driver's address space, a device's, the kernel. They are freed
/// when the last owner drops them.
#[derive(Debug, Clone)]
pub struct Lent {
    frames: Arc<Frames>,
}

impl Lent {
    /// Allocates `count` zeroed frames in a row, below 4 GiB as long as there are such frames: they
    /// may be for a device with 32-bit addresses.
    pub fn new(count: usize) -> Result<Lent, OutOfMemory> {
        Ok(Lent { frames: Arc::new(Frames::for_needs(count, Needs::Device)?) })
    }
}

impl core::ops::Deref for Lent {
    type Target = Frames;

    #[inline(always)]
    fn deref(&self) -> &Frames {
        &self.frames
    }
}

impl Data for Lent {
    fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        self.frames.memory.read(offset, to)
    }

    fn write(&self, offset: usize, from: &[u8]) -> bool {
        self.frames.memory.write(offset, from)
    }
}

impl Words for Lent {
    #[inline(always)]
    fn load(&self, index: usize) -> u64 {
        self.frames.memory.load(index)
    }

    #[inline(always)]
    fn store(&self, index: usize, value: u64) {
        self.frames.memory.store(index, value);
    }

    #[inline(always)]
    fn load_words<const N: usize>(&self, first: usize) -> [u64; N] {
        self.frames.memory.load_words(first)
    }

    #[inline(always)]
    fn store_bytes(&self, first: usize, bytes: &[u8]) {
        self.frames.memory.store_bytes(first, bytes);
    }
}

/// Gives back `count` frames in a row from physical address `address` on, which came from
/// [`allocate`]. For [`Frames`], and for page tables, whose entries own frames.
pub(super) fn free_run(address: u64, count: usize) {
    let first = (address / PAGE_SIZE) as usize;
    for frames in pieces(first..first + count) {
        frames.for_each(|frame| stray::freed(&nobodys(frame)));
    }
    give_back(first..first + count);
    FREE_COUNT.fetch_add(count as u64, Ordering::Relaxed);
}

/// Gives frames back to the allocator in the largest blocks that it knows: a large block costs as
/// much as a single frame.
fn give_back(mut frames: Range<usize>) {
    while !frames.is_empty() {
        let order = frames.start.trailing_zeros().min(frames.len().ilog2()).min(ORDERS as u32 - 1);
        pool_of(frames.start).lock().dealloc(frames.start, 1 << order);
        frames.start += 1 << order;
    }
}

/// Calls `visit` with each free frame. `visit` must not allocate or free frames.
pub fn for_each_free(mut visit: impl FnMut(&SharedMemory)) {
    // All blocks are taken, the largest first, and given back at the end.
    for pool in &FREE {
        let mut free = pool.lock();
        let mut taken = Vec::new();
        for order in (0..ORDERS).rev() {
            while let Some(first) = free.alloc(1 << order) {
                taken.push((first, 1 << order));
            }
        }
        for (first, count) in &taken {
            (*first..first + count).for_each(|frame| visit(&nobodys(frame)));
        }
        taken.into_iter().for_each(|(first, count)| free.dealloc(first, count));
    }
}

/// Returns the most frames that can be promised to one module. It is a part of all, as a driver
/// that is restarted has its memory twice for a while.
pub fn most_of_one() -> u64 {
    most_of_all() / 4
}

/// Returns the most frames that can be promised to all modules together; the rest is for the
/// kernel.
fn most_of_all() -> u64 {
    TOTAL_COUNT.load(Ordering::Relaxed) / 4 * 3
}

/// Reserves frames for a module; [`take_back_promise`] ends the reservation.
pub fn promise(count: u64) -> Result<(), OutOfMemory> {
    let promised = PROMISED.load(Ordering::Relaxed) + count;
    if promised > most_of_all() || count > most_of_one() {
        return Err(OutOfMemory);
    }
    PROMISED.store(promised, Ordering::Relaxed);
    Ok(())
}

/// Ends a reservation of [`promise`].
pub fn take_back_promise(count: u64) {
    PROMISED.fetch_sub(count, Ordering::Relaxed);
}

/// Returns the number of free frames, and of all frames.
pub fn count() -> (u64, u64) {
    (FREE_COUNT.load(Ordering::Relaxed), TOTAL_COUNT.load(Ordering::Relaxed))
}
