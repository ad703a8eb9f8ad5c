//! The caches of the disks that filesystems are on ([`ringfence_core::block_cache`]). They keep the
//! data that was read, and read data ahead. Written data reaches the disk a moment later.
//!
//! A cache belongs to the disk, not to the driver that uses it: it outlives that driver, and gives
//! the successor the data that the disk does not have yet. Only filesystems have one: nobody else
//! writes to their disk meanwhile.

use super::disk::{self, Disk, Outcome, overlaps};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::{Poll, Waker};
use embassy_futures::join::join_array;
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::{Duration, Instant, Timer, with_deadline};
use hw::console::{self, Source};
use hw::memory::{buffer, has_room, heap_use, reclaim};
use hw::task::wait_in;
use log::Level;
use ringfence_abi::block::Order;
use ringfence_core::block_cache::{self, Counts, Fill, MOST_AT_ONCE, MOST_EARLY, PAGE_BYTES};
use spin::Mutex;

/// How long the first of some writes waits for others: they may become one.
const GATHERED: Duration = Duration::from_millis(10);
/// How long late writes wait at most.
const LATEST: Duration = Duration::from_millis(100);

/// The most reads ahead of one disk that are under way, and that wait.
const MOST_AHEAD: usize = 4;
const MOST_AHEAD_WAITING: usize = 8;

static CACHES: Mutex<Vec<Arc<Cache>>> = Mutex::new(Vec::new());
/// Woken when there is something to write, or to read ahead.
static ON_WORK: AtomicWaker = AtomicWaker::new();

/// The cache of a disk.
pub struct Cache {
    name: String,
    /// A weak reference: the disk is not kept for its cache.
    disk: Weak<dyn Disk>,
    block_bytes: usize,
    content: Mutex<block_cache::Cache>,
    /// The tasks that wait for something to be read or written.
    waiting: Mutex<Vec<Waker>>,
    /// The ranges to read ahead: place and length in bytes.
    ahead: Mutex<VecDeque<(u64, usize)>>,
    reads_ahead: AtomicUsize,
    is_writing: AtomicBool,
    /// Set when somebody waits for the disk to have all writes, or for room, until these are begun.
    is_waited_for: AtomicBool,
    /// Set when a write has failed, or was refused, until the driver that uses the cache has
    /// flushed it: until then it can write nothing.
    has_failed: AtomicBool,
    /// Set when a write has failed, until a person was told of it: the driver may be ended before
    /// it has told.
    is_untold: AtomicBool,
}

/// A read of the disk that is under way. It is ended when this is dropped.
struct Filling<'a> {
    cache: &'a Cache,
    fill: Option<Fill>,
}

impl Filling<'_> {
    /// Ends it: the content that was read, if that went well, goes to `to`, and into the cache.
    fn end(&mut self, bytes: Option<Vec<u8>>, to: impl FnOnce(&[u8])) {
        if let Some(fill) = self.fill.take() {
            self.cache.content.lock().end_fill(&fill, bytes, to);
            self.cache.wake();
        }
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.end(None, |_| ());
    }
}

/// Returns the cache of a disk that a filesystem begins to use.
pub(crate) fn of(disk: &Arc<dyn Disk>) -> Arc<Cache> {
    let mut caches = CACHES.lock();
    let len_bytes = disk.blocks().saturating_mul(disk.block_bytes() as u64);
    let is_its = |cache: &Arc<Cache>| core::ptr::addr_eq(cache.disk.as_ptr(), Arc::as_ptr(disk));
    if let Some(found) = caches.iter().find(|cache| is_its(cache)) {
        // A new user is not to blame for the writes of the users before it.
        if Arc::strong_count(found) == 1 {
            found.has_failed.store(false, Ordering::Release);
        }
        let content = found.content.lock();
        if content.len_bytes() == len_bytes || content.is_dirty() {
            return found.clone();
        }
    }
    caches.retain(|cache| !is_its(cache));
    let cache = Arc::new(Cache {
        name: disk.name().into(),
        disk: Arc::downgrade(disk),
        block_bytes: disk.block_bytes(),
        content: Mutex::new(block_cache::Cache::new(len_bytes, heap_use().1 / 8)),
        waiting: Mutex::default(),
        ahead: Mutex::default(),
        reads_ahead: AtomicUsize::new(0),
        is_writing: AtomicBool::new(false),
        is_waited_for: AtomicBool::new(false),
        has_failed: AtomicBool::new(false),
        is_untold: AtomicBool::new(false),
    });
    caches.push(cache.clone());
    cache
}

/// Returns all caches.
fn all() -> Vec<Arc<Cache>> {
    CACHES.lock().clone()
}

/// Returns the caches with writes that their disks do not have yet.
pub fn dirty() -> Vec<Arc<Cache>> {
    all().into_iter().filter(|cache| cache.content.lock().is_dirty()).collect()
}

/// Returns the disk of each cache, the number of bytes that the cache has of it, and its counts.
pub fn state() -> Vec<(String, usize, Counts)> {
    let state = |cache: &Arc<Cache>| {
        let content = cache.content.lock();
        (cache.name.clone(), content.kept_bytes(), content.counts())
    };
    CACHES.lock().iter().map(state).collect()
}

/// Returns the caches of all disks that have blocks in common with `disk`.
fn caches_of(disk: &dyn Disk) -> impl Iterator<Item = Arc<Cache>> {
    all().into_iter().filter(|cache| cache.disk.upgrade().is_some_and(|other| overlaps(disk, &*other)))
}

/// Waits until a disk has all writes so far, also the writes to disks that have blocks in common
/// with it.
pub async fn written(disk: &dyn Disk) {
    for cache in caches_of(disk) {
        cache.written().await;
    }
}

/// Drops the known content of a disk that a user without a cache writes to, or that another disk
/// may have replaced.
pub fn changed(disk: &dyn Disk) {
    caches_of(disk).for_each(|cache| cache.content.lock().invalidate());
}

/// Waits for the writes of all caches, and drops what they keep, so that it must be read
/// again: for measurements.
pub async fn forget_all() {
    for cache in all() {
        cache.written().await;
        cache.content.lock().shrink();
    }
}

/// Gives up all that can be read again.
fn give_up() {
    // A task that holds a lock right now needs the content.
    let Some(caches) = CACHES.try_lock() else { return };
    caches.iter().filter_map(|cache| cache.content.try_lock()).for_each(|mut content| content.shrink());
}

/// Returns whether the heap has room for `len_bytes` bytes twice: for a read or write, and to be
/// kept.
fn has_room_for(len_bytes: usize) -> bool {
    has_room(2 * len_bytes + 2 * PAGE_BYTES)
}

impl Cache {
    /// Returns the name of its disk.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the place of `len_bytes` bytes from a block on; `None` if they are not all on the
    /// disk.
    fn place(&self, lba: u64, len_bytes: usize) -> Option<u64> {
        let at = lba.checked_mul(self.block_bytes as u64)?;
        let end = at.checked_add(len_bytes as u64)?;
        (end <= self.content.lock().len_bytes()).then_some(at)
    }

    fn wake(&self) {
        core::mem::take(&mut *self.waiting.lock()).into_iter().for_each(Waker::wake);
    }

    async fn until(&self, is_so: impl Fn(&mut block_cache::Cache) -> bool) {
        poll_fn(|context| {
            if is_so(&mut self.content.lock()) {
                return Poll::Ready(());
            }
            wait_in(&mut self.waiting.lock(), context.waker());
            Poll::Pending
        })
        .await;
    }

    /// Waits until the disk has all writes so far.
    async fn written(&self) {
        let (last, done) = {
            let mut content = self.content.lock();
            content.end_late();
            (content.last(), content.done())
        };
        if done < last {
            self.hurry();
        }
        self.until(|content| content.done() >= last).await;
    }

    /// Has all writes so far that are not late done at once.
    fn hurry(&self) {
        self.is_waited_for.store(true, Ordering::Release);
        ON_WORK.wake();
    }

    /// Notes the ranges to read ahead after a read.
    fn note_read(&self, at: u64, len_bytes: usize) {
        let Some((from, len_bytes)) = self.content.lock().ahead(at, len_bytes) else { return };
        let mut ahead = self.ahead.lock();
        // In pieces, so that a reader of the first need not wait for the last.
        for (from, done) in (from..).step_by(MOST_AT_ONCE).zip((0..len_bytes).step_by(MOST_AT_ONCE)) {
            if ahead.len() < MOST_AHEAD_WAITING {
                ahead.push_back((from, (len_bytes - done).min(MOST_AT_ONCE)));
            }
        }
        ON_WORK.wake();
    }

    /// Reads from the cache, if it has it all: hands each piece to `to`, with its place.
    pub(crate) fn read_at_once(&self, lba: u64, len_bytes: usize, to: impl FnMut(usize, &[u8])) -> bool {
        let Some(at) = self.place(lba, len_bytes) else { return false };
        let is_here = self.content.lock().read(at, len_bytes, to);
        if is_here {
            self.note_read(at, len_bytes);
        }
        is_here
    }

    /// Takes a write, if there is room for it: `fill` puts its bytes in place.
    pub(crate) fn write_at_once(&self, lba: u64, len_bytes: usize, order: Order, fill: impl FnOnce(&mut [u8])) -> bool {
        let Some(at) = self.place(lba, len_bytes) else { return false };
        let is_taken = !self.has_failed.load(Ordering::Acquire)
            && has_room_for(len_bytes)
            && self.content.lock().write(at, len_bytes, order, fill);
        if is_taken {
            ON_WORK.wake();
        }
        is_taken
    }

    /// Notes that a write was refused: nothing that is written later overtakes it.
    pub(crate) fn write_failed(&self) {
        self.has_failed.store(true, Ordering::Release);
    }

    /// Reads `len_bytes` bytes from a block on: hands each piece to `to`, with its place.
    pub(crate) async fn read(&self, lba: u64, len_bytes: usize, mut to: impl FnMut(usize, &[u8])) -> Outcome {
        let at = self.place(lba, len_bytes).ok_or("beyond the end of the disk")?;
        self.until(|content| !content.is_coming(at, len_bytes)).await;
        if self.read_at_once(lba, len_bytes, &mut to) {
            return Ok(());
        }
        self.content.lock().note_miss();
        self.note_read(at, len_bytes);
        let place = (at % PAGE_BYTES as u64) as usize;
        let filled = self.fill(at, len_bytes, |bytes| to(0, bytes.get(place..place + len_bytes).unwrap_or(&[]))).await;
        if filled.is_ok() {
            return Ok(());
        }
        // The disk may have failed at a block beside the blocks that were asked for.
        let mut bytes = room_for(len_bytes).await?;
        self.disk().await?.read(lba, &mut bytes).await?;
        self.content.lock().overlay(at, &mut bytes);
        to(0, &bytes);
        Ok(())
    }

    /// Reads a range from the disk, in whole pages, and hands the content to `to`.
    async fn fill(&self, at: u64, len_bytes: usize, to: impl FnOnce(&[u8])) -> Outcome {
        let keeps = has_room_for(len_bytes);
        let fill = self.content.lock().begin_fill(at, len_bytes, keeps);
        let (at, len_bytes) = (fill.at, fill.len_bytes);
        let mut filling = Filling { cache: self, fill: Some(fill) };
        let spare = self.content.lock().spare(len_bytes);
        let mut bytes = match spare {
            Some(bytes) => bytes,
            None => room_for(len_bytes).await?,
        };
        let disk = self.disk().await?;
        disk.read(at / self.block_bytes as u64, &mut bytes).await?;
        filling.end(Some(bytes), to);
        Ok(())
    }

    /// Writes `len_bytes` bytes from a block on, which `fill` puts in place: waits until there is
    /// room for them.
    pub(crate) async fn write(&self, lba: u64, len_bytes: usize, order: Order, fill: impl Fn(&mut [u8])) -> Outcome {
        self.place(lba, len_bytes).ok_or("beyond the end of the disk")?;
        let mut tries = TRIES;
        while !self.write_at_once(lba, len_bytes, order, &fill) {
            if self.has_failed.load(Ordering::Acquire) {
                return Err("a write before has failed".into());
            }
            let (is_dirty, done) = {
                let mut content = self.content.lock();
                if !content.has_next() {
                    content.end_late();
                }
                (content.is_dirty(), content.done())
            };
            if is_dirty {
                // The next write that the disk has done makes room.
                self.hurry();
                self.until(|content| content.done() != done).await;
            } else if tries > 0 {
                tries -= 1;
                reclaim();
                Timer::after_millis(PAUSE_MS).await;
            } else {
                return Err("out of memory: there is no room for a write right now".into());
            }
        }
        Ok(())
    }

    /// Waits until all writes so far are on the medium. A write that has failed since the last time
    /// is told of here.
    pub(crate) async fn flush(&self) -> Outcome {
        self.written().await;
        let flushed = self.disk().await?.flush().await;
        match self.has_failed.swap(false, Ordering::AcqRel) {
            true => Err("a write has failed".into()),
            false => flushed,
        }
    }

    /// Waits until all writes so far are on the medium, and tells of a write that has failed since
    /// the last call.
    ///
    /// # Errors
    /// In words: a write or the flush has failed, or the disk is gone.
    pub async fn settle(&self) -> Outcome {
        self.written().await;
        let flushed = match self.disk().await {
            Ok(disk) => disk.flush().await,
            Err(gone) => Err(gone),
        };
        match self.is_untold.swap(false, Ordering::AcqRel) {
            true => Err("some writes have failed, and are not on the disk".into()),
            false => flushed,
        }
    }

    async fn disk(&self) -> Result<Arc<dyn Disk>, String> {
        let disk = self.disk.upgrade().ok_or("the disk is gone")?;
        if disk.is_in_doubt() {
            disk::settled().await;
        }
        Ok(disk)
    }

    /// Writes the data that waits to be written, until there is no more.
    async fn write_behind(self: Arc<Cache>) {
        let mut late_until = None;
        loop {
            self.end_late(&mut late_until);
            let has_next = self.content.lock().has_next();
            let until = match late_until {
                Some(until) if !has_next => until,
                None if !has_next => break,
                _ => Instant::now() + GATHERED,
            };
            // All work is polled when a write comes, and when somebody waits.
            let is_enough = poll_fn(|_| {
                // Whoever waits has queued the late writes: the next round sees them, and the flag.
                let is_waited_for = has_next && self.is_waited_for.swap(false, Ordering::AcqRel);
                let content = self.content.lock();
                match is_waited_for || content.has_enough() || content.has_next() != has_next {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            });
            let _ = with_deadline(until, is_enough).await;
            if has_next {
                self.write_all(&mut late_until).await;
            }
        }
        self.is_waited_for.store(false, Ordering::Release);
        self.is_writing.store(false, Ordering::Release);
    }

    /// Queues the late writes if they have waited long enough. `until` is the end of that time.
    fn end_late(&self, until: &mut Option<Instant>) {
        let mut content = self.content.lock();
        let now = Instant::now();
        *until = content.has_late().then(|| until.unwrap_or(now + LATEST));
        if until.is_some_and(|until| now >= until) {
            content.end_late();
            *until = None;
        }
    }

    /// Writes what waits and is not late, until there is no more.
    async fn write_all(&self, late_until: &mut Option<Instant>) {
        loop {
            // There may always be more.
            self.end_late(late_until);
            let writes: [Option<(u64, Vec<u8>)>; MOST_EARLY] = {
                let mut content = self.content.lock();
                core::array::from_fn(|_| content.next_write())
            };
            let Some((at, _)) = &writes[0] else { return };
            let lba = at / self.block_bytes as u64;
            match self.put(&writes).await {
                Ok(()) => {
                    let mut content = self.content.lock();
                    writes.into_iter().flatten().for_each(|(_, bytes)| content.written(bytes));
                }
                Err(error) => {
                    let lost = self.content.lock().failed();
                    self.has_failed.store(true, Ordering::Release);
                    self.is_untold.store(true, Ordering::Release);
                    let text = format_args!("{}: {lost} bytes from block {lba} on are not written: {error}", self.name);
                    console::say_because_of(&Source::by_itself(&self.name), Level::Error, text);
                }
            }
            self.wake();
        }
    }

    /// Gives writes to the disk at the same time.
    async fn put(&self, writes: &[Option<(u64, Vec<u8>)>; MOST_EARLY]) -> Outcome {
        let disk = self.disk().await?;
        let one = async |write: &Option<(u64, Vec<u8>)>| match write {
            Some((at, bytes)) => disk.write(at / self.block_bytes as u64, bytes).await,
            None => Ok(()),
        };
        join_array(writes.each_ref().map(one)).await.into_iter().collect()
    }

    /// Reads a range ahead.
    async fn read_ahead(self: Arc<Cache>, at: u64, len_bytes: usize) {
        // A reader that needs the range is told of an error.
        let _ = self.fill(at, len_bytes, |_| ()).await;
        self.reads_ahead.fetch_sub(1, Ordering::AcqRel);
        ON_WORK.wake();
    }

    /// Returns the work that is to be begun.
    fn work(self: &Arc<Cache>) -> Vec<Work> {
        let mut works: Vec<Work> = Vec::new();
        if self.content.lock().is_dirty() && !self.is_writing.swap(true, Ordering::AcqRel) {
            works.push(Box::pin(self.clone().write_behind()));
        }
        while self.reads_ahead.load(Ordering::Acquire) < MOST_AHEAD
            && let Some((at, len_bytes)) = self.ahead.lock().pop_front()
        {
            self.reads_ahead.fetch_add(1, Ordering::AcqRel);
            works.push(Box::pin(self.clone().read_ahead(at, len_bytes)));
        }
        works
    }
}

type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Notes that a user has ceased to use a cache: a cache without a user goes, when the disk has all
/// its writes.
pub fn let_go() {
    ON_WORK.wake();
}

/// Writes the data that waits to be written and reads ahead, for ever.
pub async fn run() {
    hw::memory::install_reclaim(give_up);
    let mut works: Vec<Work> = Vec::new();
    poll_fn(|context| {
        ON_WORK.register(context.waker());
        all().iter().for_each(|cache| works.extend(cache.work()));
        works.retain_mut(|work| work.as_mut().poll(context) == Poll::Pending);
        CACHES.lock().retain(|cache| Arc::strong_count(cache) > 1 || cache.content.lock().is_dirty());
        Poll::<()>::Pending
    })
    .await;
}

/// How often, and after which time, memory is asked for that there is no room for.
const TRIES: usize = 100;
const PAUSE_MS: u64 = 20;

/// Waits for room for a buffer of `len_bytes` bytes.
pub(crate) async fn room_for(len_bytes: usize) -> Result<Vec<u8>, String> {
    for _ in 1..TRIES {
        if let Ok(buffer) = buffer(len_bytes) {
            return Ok(buffer);
        }
        Timer::after_millis(PAUSE_MS).await;
    }
    buffer(len_bytes)
}
