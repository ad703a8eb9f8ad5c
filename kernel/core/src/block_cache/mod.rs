//! The cache of a disk's blocks, and the queue of the writes that the disk does not have yet.
//!
//! **The disk gets writes one by one, in the order in which they were made**, unless a filesystem
//! says otherwise, so that a power cut leaves the content that a disk without a cache would have
//! had a moment before. Two writes that follow each other in the queue become one if the second
//! continues the first one on the disk, or replaces its last sector.
//!
//! A filesystem may say of a write that it may come **late**, and of another that it may come
//! **early**, before the late ones that were made before it ([`Order`]). Early writes that follow
//! each other, to different places, are given to the disk together, and it may do them in any
//! order. Late writes come in groups. What a group writes again takes the place of the late writes
//! before it to the same blocks, unless it is in another order. So a file that grows piece by piece
//! costs one write of its length and of each block of its place on the disk, not one for each
//! piece. Only the filesystem knows that its disk makes sense without the late writes, and that
//! early ones need no order.
//!
//! What is kept of the disk is kept in extents ([`extents`]).
//!
//! Not taken: *writing each dirty page once, whenever.* It saves commands, but a filesystem without
//! a journal relies on the order of its writes.

mod extents;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use extents::{Extents, part};
use ringfence_abi::block::Order;

/// Reads of the disk begin and end at multiples of so many bytes.
pub const PAGE_BYTES: usize = 4096;
/// Length of a sector in bytes: all reads and writes begin and end at sectors.
const SECTOR: usize = 512;
/// The most bytes that one write to the disk has.
pub const MOST_AT_ONCE: usize = 64 << 10;
/// The most bytes that wait to be written.
const MOST_WAITING: usize = 1 << 20;
/// The most early writes that the disk has at once.
pub const MOST_EARLY: usize = 4;
/// The most writes that are late.
const MOST_LATE: usize = 64;
/// The longest disk, in bytes: sums of positions and lengths stay far from the end of 64 bits.
const LONGEST: u64 = 1 << 62;
/// How many sequences of reads are told apart.
const STREAMS: usize = 4;
/// How far a sequence is read ahead, at first and at most, in bytes.
const WINDOWS: [usize; 2] = [64 << 10, 256 << 10];

struct Write {
    at: u64,
    bytes: Vec<u8>,
    /// The number of the last write in it.
    number: u64,
    /// Whether all writes in it are early.
    is_early: bool,
}

impl Write {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    /// Returns whether the next write can become one with this: it continues this one, or replaces
    /// its last sector. A disk that loses its power in the middle of such a write has no later
    /// sector of it without the earlier ones, as if there were two.
    fn takes(&self, at: u64, len_bytes: usize) -> bool {
        let end = at + len_bytes as u64;
        let is_next = (self.at..=self.end()).contains(&at) && self.end() - at <= SECTOR as u64;
        is_next && end >= self.end() && end - self.at <= MOST_AT_ONCE as u64
    }
}

/// A late write.
struct Late {
    at: u64,
    bytes: Vec<u8>,
}

impl Late {
    fn is_at(&self, at: u64, len_bytes: usize) -> bool {
        (self.at, self.bytes.len()) == (at, len_bytes)
    }

    fn overlaps(&self, at: u64, len_bytes: usize) -> bool {
        self.at < at + len_bytes as u64 && at < self.at + self.bytes.len() as u64
    }
}

/// Bytes for a write, with those of the last write that waits if it becomes one with it: where they
/// begin, how many there were before, and whether those are early.
struct Joined {
    start: u64,
    before: usize,
    is_early: bool,
    bytes: Vec<u8>,
}

/// A write that the disk has right now.
struct UnderWay {
    at: u64,
    len_bytes: usize,
    number: u64,
    is_early: bool,
}

impl UnderWay {
    /// Returns whether another write may be on the disk before this one.
    fn lets_pass(&self, other: &Write) -> bool {
        let is_elsewhere = other.end() <= self.at || self.at + self.len_bytes as u64 <= other.at;
        self.is_early && other.is_early && is_elsewhere
    }
}

/// Reads that follow one another.
#[derive(Clone, Copy, Default)]
struct Stream {
    /// Where the next read begins.
    next: u64,
    /// How far the disk has been read, or is being read.
    until: u64,
    window: usize,
}

/// Counts of the reads and writes so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads that the cache has answered.
    pub hits: u64,
    /// Reads that had to wait for the disk.
    pub misses: u64,
    /// Bytes read ahead.
    pub ahead_bytes: u64,
    /// Writes that the cache has taken.
    pub writes: u64,
    /// Writes that the disk has done.
    pub disk_writes: u64,
    /// Bytes that the disk does not have yet.
    pub dirty_bytes: usize,
}

/// A read of the disk that is under way. It must be ended ([`Cache::end_fill`]).
#[derive(Debug)]
pub struct Fill {
    /// The byte where it begins.
    pub at: u64,
    /// Its length in bytes.
    pub len_bytes: usize,
    /// Where the extents begin that it holds.
    held: Vec<u64>,
}

/// The cache of one disk. Positions and lengths are in bytes, and multiples of 512.
pub struct Cache {
    len_bytes: u64,
    content: Extents,
    waiting: VecDeque<Write>,
    waiting_bytes: usize,
    /// Late writes of groups that have ended, and of the group that has not. There is room for all
    /// of them in `waiting`.
    late: Vec<Late>,
    group: Vec<Late>,
    late_bytes: usize,
    /// The writes that the disk has right now. There is room for [`MOST_EARLY`].
    under_way: VecDeque<UnderWay>,
    /// The number of the last write, and of the last write that the disk has done.
    last: u64,
    done: u64,
    streams: [Stream; STREAMS],
    oldest_stream: usize,
    counts: Counts,
}

impl Cache {
    /// Returns an empty cache of a disk of `len_bytes` bytes, which takes up to `most_bytes`
    /// bytes of memory. The part of a disk beyond 2^62 bytes is not in its cache.
    pub fn new(len_bytes: u64, most_bytes: usize) -> Cache {
        Cache {
            len_bytes: len_bytes.min(LONGEST),
            content: Extents::new(most_bytes),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            late: Vec::new(),
            group: Vec::new(),
            late_bytes: 0,
            under_way: VecDeque::with_capacity(MOST_EARLY),
            last: 0,
            done: 0,
            streams: [Stream::default(); STREAMS],
            oldest_stream: 0,
            counts: Counts::default(),
        }
    }

    /// Returns the length of the disk in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Returns the counts of the reads and writes so far.
    pub fn counts(&self) -> Counts {
        Counts { dirty_bytes: self.waiting_bytes + self.late_bytes, ..self.counts }
    }

    /// Returns how many bytes of the disk are here.
    pub fn kept_bytes(&self) -> usize {
        self.content.len_bytes()
    }

    /// Returns the number of the last write that is not late. When [`Cache::done`] has reached the
    /// number, the disk has all such writes until now, except for writes that were lost
    /// ([`Cache::failed`]).
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Returns the number of the last write that the disk has.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Returns whether as much waits for the disk as it gets at once.
    pub fn has_enough(&self) -> bool {
        let first = self.waiting.iter().take(MOST_EARLY);
        let at_once = if first.clone().all(|write| write.is_early) { MOST_EARLY } else { 1 };
        self.waiting_bytes >= at_once * MOST_AT_ONCE
    }

    /// Returns whether the disk does not have all writes.
    pub fn is_dirty(&self) -> bool {
        !self.under_way.is_empty() || self.has_next() || self.has_late()
    }

    /// Returns whether a write waits that is not late.
    pub fn has_next(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns whether there are late writes.
    pub fn has_late(&self) -> bool {
        !self.late.is_empty() || !self.group.is_empty()
    }

    /// Drops everything that is not held.
    pub fn shrink(&mut self) {
        self.content.shrink();
    }

    /// Drops the known content of the disk, to which somebody else has written. Content that the
    /// disk does not have yet stays.
    pub fn invalidate(&mut self) {
        let waiting = self.waiting.iter().map(|write| (write.at, write.bytes.len()));
        let late = self.late.iter().chain(&self.group).map(|late| (late.at, late.bytes.len()));
        let under_way = self.under_way.iter().map(|write| (write.at, write.len_bytes));
        let dirty: Vec<(u64, usize)> = waiting.chain(late).chain(under_way).collect();
        self.content.invalidate(&dirty);
    }

    /// Copies the cached sectors of a range over `bytes`, which were read from the disk.
    pub fn overlay(&mut self, at: u64, bytes: &mut [u8]) {
        self.content.overlay(at, bytes);
    }

    /// Hands the content of a range to `to`, piece by piece, each with its place in the range.
    /// Returns `false`, and hands out nothing, if some of it is not here.
    pub fn read(&mut self, at: u64, len_bytes: usize, to: impl FnMut(usize, &[u8])) -> bool {
        let is_here = self.content.has(at, len_bytes);
        if is_here {
            self.counts.hits += 1;
            self.content.read(at, len_bytes, to);
        }
        is_here
    }

    /// Notes that a reader must wait for the disk.
    pub fn note_miss(&mut self) {
        self.counts.misses += 1;
    }

    /// Returns whether some of a range is not here, and all of that is being read from the disk.
    pub fn is_coming(&self, at: u64, len_bytes: usize) -> bool {
        !self.content.has(at, len_bytes) && self.content.has_or_reads(at, len_bytes)
    }

    /// Begins to read a range from the disk, from a multiple of [`PAGE_BYTES`] to another. The
    /// content is kept only if the cache `keeps` it, and if there is room.
    pub fn begin_fill(&mut self, at: u64, len_bytes: usize, keeps: bool) -> Fill {
        let page = PAGE_BYTES as u64;
        let end = (at + len_bytes as u64).next_multiple_of(page).min(self.len_bytes);
        let at = at / page * page;
        let len_bytes = end.saturating_sub(at) as usize;
        if keeps {
            self.content.make(at, len_bytes);
        }
        Fill { at, len_bytes, held: self.content.begin_fill(at, len_bytes) }
    }

    /// Ends a read of the disk. `bytes` is the content that was read, if that went well. Newer
    /// content of the cache replaces its sectors there, and `to` gets the result. The cache keeps
    /// it, unless it is old by now.
    pub fn end_fill(&mut self, fill: &Fill, mut bytes: Option<Vec<u8>>, to: impl FnOnce(&[u8])) {
        if let Some(bytes) = &mut bytes {
            self.content.overlay(fill.at, bytes);
            to(bytes);
        }
        self.content.end_fill(fill.at, fill.len_bytes, &fill.held, bytes);
    }

    /// Returns the range to read ahead after a read: where it begins, and its length.
    pub fn ahead(&mut self, at: u64, len_bytes: usize) -> Option<(u64, usize)> {
        let next = at + len_bytes as u64;
        let Some(stream) = self.streams.iter_mut().find(|stream| stream.next == at && stream.next > 0) else {
            let oldest = self.streams.get_mut(self.oldest_stream)?;
            *oldest = Stream { next, until: next, window: 0 };
            self.oldest_stream = (self.oldest_stream + 1) % STREAMS;
            return None;
        };
        let [least, most] = WINDOWS;
        stream.next = next;
        stream.window = (stream.window * 2).clamp(least, most);
        let from = stream.until.max(next).next_multiple_of(PAGE_BYTES as u64);
        let until = (next + stream.window as u64).min(self.len_bytes);
        // Half a window at a time at least: a few commands do it.
        if from >= until || from - next > stream.window as u64 / 2 {
            return None;
        }
        stream.until = until;
        let len_bytes = (until - from) as usize;
        if self.content.has(from, len_bytes) {
            return None;
        }
        self.counts.ahead_bytes += len_bytes as u64;
        Some((from, len_bytes))
    }

    /// Takes a write; `fill` puts its bytes in place. Returns `false`, and takes nothing, if there
    /// is no room for it now.
    pub fn write(&mut self, at: u64, len_bytes: usize, order: Order, fill: impl FnOnce(&mut [u8])) -> bool {
        let waiting_bytes = self.waiting_bytes + self.late_bytes;
        let is_full = waiting_bytes + len_bytes > MOST_WAITING || self.content.are_mostly_held();
        if is_full && self.is_dirty() {
            return false;
        }
        let has_room = self.waiting.try_reserve(self.late.len() + self.group.len() + 1).is_ok();
        if !has_room || !self.content.reserve(at, len_bytes) {
            return false;
        }
        let is_taken = self.take_write(at, len_bytes, order, fill).is_some();
        if is_taken {
            self.counts.writes += 1;
        } else {
            self.content.forget_idle(at, len_bytes);
        }
        is_taken
    }

    /// Takes a write, for whose content room is reserved. Returns `None`, and takes nothing, if
    /// there is no memory for its bytes.
    fn take_write(&mut self, at: u64, len_bytes: usize, order: Order, fill: impl FnOnce(&mut [u8])) -> Option<()> {
        let is_late = matches!(order, Order::Late | Order::Last);
        let is_in_the_way = |late: &Late| late.overlaps(at, len_bytes) && !(is_late && late.is_at(at, len_bytes));
        let are_many = self.late.len() + self.group.len() >= MOST_LATE;
        let is_in_group = self.group.iter().any(|late| late.overlaps(at, len_bytes));
        if order == Order::Kept || are_many || is_in_group || self.late.iter().any(is_in_the_way) {
            self.end_late();
        }
        if is_late {
            self.group.try_reserve(1).ok()?;
            self.late.try_reserve(self.group.len() + 1).ok()?;
            let mut bytes = self.new_bytes(len_bytes)?;
            fill(&mut bytes);
            self.content.put(at, &bytes, at..at);
            self.late_bytes += len_bytes;
            self.group.push(Late { at, bytes });
            if order == Order::Last {
                self.end_group();
            }
            return Some(());
        }
        let Joined { start, before, is_early, mut bytes } = self.bytes_for(at, len_bytes)?;
        let place = (at - start) as usize;
        fill(part(&mut bytes, place, len_bytes));
        // An extent that the last write holds is held once for both.
        self.content.put(at, bytes.get(place..).unwrap_or(&[]), start..start + before as u64);
        self.waiting_bytes += bytes.len() - before;
        self.last += 1;
        let is_early = is_early && order == Order::Early;
        self.waiting.push_back(Write { at: start, bytes, number: self.last, is_early });
        Some(())
    }

    /// Returns bytes with room for a write at their end: those of the last write that waits, if it
    /// [takes](Write::takes) this one.
    fn bytes_for(&mut self, at: u64, len_bytes: usize) -> Option<Joined> {
        let end = at + len_bytes as u64;
        if let Some(last) = self.waiting.back_mut().filter(|last| last.takes(at, len_bytes)) {
            let (before, all) = (last.bytes.len(), (end - last.at) as usize);
            last.bytes.try_reserve(all - before).ok()?;
            let Write { at: start, mut bytes, is_early, .. } = self.waiting.pop_back()?;
            bytes.resize(all, 0);
            return Some(Joined { start, before, is_early, bytes });
        }
        Some(Joined { start: at, before: 0, is_early: true, bytes: self.new_bytes(len_bytes)? })
    }

    /// Returns memory for a write of its own.
    fn new_bytes(&mut self, len_bytes: usize) -> Option<Vec<u8>> {
        let mut bytes = self.content.spare(len_bytes).unwrap_or_default();
        bytes.try_reserve_exact(len_bytes.saturating_sub(bytes.len())).ok()?;
        bytes.resize(len_bytes, 0);
        Some(bytes)
    }

    /// Ends a group of late writes. Those to blocks of which there is a late write before take its
    /// place, if they come in the order of those; if not, all those before are queued. Each other
    /// one comes right before the next of the group that has taken a place, or behind all.
    fn end_group(&mut self) {
        let group = core::mem::take(&mut self.group);
        let place =
            |late: &[Late], newer: &Late| late.iter().position(|older| older.is_at(newer.at, newer.bytes.len()));
        if !group.iter().filter_map(|newer| place(&self.late, newer)).is_sorted() {
            self.queue_late();
        }
        let mut next = self.late.len();
        for newer in group.into_iter().rev() {
            let before = place(&self.late, &newer);
            next = before.unwrap_or(next);
            match before.and_then(|place| self.late.get_mut(place)) {
                Some(older) => {
                    let Late { at, bytes } = core::mem::replace(older, newer);
                    self.late_bytes -= bytes.len();
                    // The newer write holds the same extents.
                    self.content.release(at, bytes.len());
                }
                None => self.late.insert(next, newer),
            }
        }
    }

    /// Queues the late writes for the disk.
    pub fn end_late(&mut self) {
        self.queue_late();
        self.late = core::mem::take(&mut self.group);
        self.queue_late();
    }

    /// Queues the late writes of groups that have ended.
    fn queue_late(&mut self) {
        for Late { at, bytes } in core::mem::take(&mut self.late) {
            self.last += 1;
            self.late_bytes -= bytes.len();
            if let Some(last) = self.waiting.back_mut()
                && last.takes(at, bytes.len())
                && last.bytes.try_reserve(bytes.len()).is_ok()
            {
                let before = last.bytes.len();
                // Extents that both hold are held once for both.
                self.content.release_shared(at, bytes.len(), last.at..last.end());
                last.bytes.truncate((at - last.at) as usize);
                last.bytes.extend_from_slice(&bytes);
                (last.number, last.is_early) = (self.last, false);
                self.waiting_bytes += last.bytes.len() - before;
            } else {
                self.waiting_bytes += bytes.len();
                self.waiting.push_back(Write { at, bytes, number: self.last, is_early: false });
            }
        }
    }

    /// Returns the next write for the disk: where it begins, and its bytes. While the disk has
    /// writes, there is one only if it may be done before them, and they are fewer than
    /// [`MOST_EARLY`].
    pub fn next_write(&mut self) -> Option<(u64, Vec<u8>)> {
        let next = self.waiting.front()?;
        if self.under_way.len() >= MOST_EARLY || !self.under_way.iter().all(|before| before.lets_pass(next)) {
            return None;
        }
        let Write { at, bytes, number, is_early } = self.waiting.pop_front()?;
        self.under_way.push_back(UnderWay { at, len_bytes: bytes.len(), number, is_early });
        Some((at, bytes))
    }

    /// Notes that the disk has done the first of the writes that it had, with these `bytes`.
    pub fn written(&mut self, bytes: Vec<u8>) {
        let Some(UnderWay { at, len_bytes, number, .. }) = self.under_way.pop_front() else { return };
        self.content.keep_spare(bytes);
        self.done = number;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(len_bytes);
        self.counts.disk_writes += 1;
        self.content.release(at, len_bytes);
    }

    /// Takes memory of this length that is not needed any more, if there is some. It has old bytes.
    pub fn spare(&mut self, len_bytes: usize) -> Option<Vec<u8>> {
        self.content.spare(len_bytes)
    }

    /// Notes that the disk has failed to do a write that it had, and has no others any more. Drops
    /// all writes that wait, so that no write is on the disk without the writes before it. Forgets
    /// the content of all of them. Returns how many bytes are lost, at most: those of an early
    /// write beside the one that failed may be on the disk.
    pub fn failed(&mut self) -> usize {
        self.end_late();
        let waiting = core::mem::take(&mut self.waiting);
        let under_way = self.under_way.drain(..).map(|write| (write.at, write.len_bytes));
        let lost: Vec<(u64, usize)> =
            under_way.chain(waiting.iter().map(|write| (write.at, write.bytes.len()))).collect();
        lost.iter().for_each(|(at, len_bytes)| self.content.lose(*at, *len_bytes));
        self.done = self.last;
        core::mem::take(&mut self.waiting_bytes)
    }
}
