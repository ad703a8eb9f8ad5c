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
        let place = |late: &[Late], newer: &Late| late.iter().position(|older| older.is_at(newer.at, newer.bytes.len()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    const BLOCK: u64 = 512;

    fn put(cache: &mut Cache, at: u64, bytes: &[u8]) -> bool {
        put_when(cache, at, bytes, Order::Kept)
    }

    fn put_when(cache: &mut Cache, at: u64, bytes: &[u8], order: Order) -> bool {
        cache.write(at, bytes.len(), order, |to| to.copy_from_slice(bytes))
    }

    fn get(cache: &mut Cache, at: u64, len_bytes: usize) -> Option<Vec<u8>> {
        let mut all = vec![0; len_bytes];
        cache.read(at, len_bytes, |place, bytes| all[place..place + bytes.len()].copy_from_slice(bytes)).then_some(all)
    }

    /// Reads through the cache, as its user does.
    fn read(cache: &mut Cache, disk: &[u8], at: u64, len_bytes: usize) -> Vec<u8> {
        if let Some(found) = get(cache, at, len_bytes) {
            return found;
        }
        let fill = cache.begin_fill(at, len_bytes, true);
        let bytes = disk[fill.at as usize..fill.at as usize + fill.len_bytes].to_vec();
        let place = (at - fill.at) as usize;
        filled(cache, &fill, bytes)[place..place + len_bytes].to_vec()
    }

    /// Ends a read of the disk. Returns what its user gets.
    fn filled(cache: &mut Cache, fill: &Fill, bytes: Vec<u8>) -> Vec<u8> {
        let mut all = vec![];
        cache.end_fill(fill, Some(bytes), |bytes| all.extend_from_slice(bytes));
        all
    }

    #[test]
    fn what_was_written_is_read_before_the_disk_has_it() {
        let mut cache = Cache::new(1 << 20, 64 << 10);
        assert!(put(&mut cache, 1024, &[7; 512]));
        assert_eq!(get(&mut cache, 1024, 512), Some(vec![7; 512]));
        assert_eq!(get(&mut cache, 512, 1024), None);
        // The rest of the page comes from the disk, which has something older.
        let disk = vec![1; 1 << 20];
        assert_eq!(read(&mut cache, &disk, 512, 1024), [vec![1; 512], vec![7; 512]].concat());
        assert_eq!(get(&mut cache, 0, 4096).map(|page| page[1024]), Some(7));
    }

    #[test]
    fn neighbours_become_one_write_and_the_order_stays() {
        let mut cache = Cache::new(1 << 20, 256 << 10);
        for (at, byte) in [(0, 1), (512, 2), (8192, 3), (1024, 4), (0, 5)] {
            assert!(put(&mut cache, at, &[byte; 512]));
        }
        let mut writes = vec![];
        while let Some((at, bytes)) = cache.next_write() {
            assert_eq!(cache.next_write(), None, "one at a time, as the order is kept");
            writes.push((at, bytes[0], bytes.len()));
            cache.written(bytes);
        }
        assert_eq!(writes, [(0, 1, 1024), (8192, 3, 512), (1024, 4, 512), (0, 5, 512)]);
        assert_eq!((cache.done(), cache.last(), cache.is_dirty(), cache.content.held_bytes()), (5, 5, false, 0));
        assert_eq!(cache.counts().disk_writes, 4);
    }

    /// A directory's block is written once for all names that are put into it meanwhile.
    #[test]
    fn the_last_sector_of_the_last_write_is_replaced() {
        let mut cache = Cache::new(1 << 20, 256 << 10);
        let first = [(0, 1, 512), (0, 2, 512), (0, 3, 1024), (512, 4, 1024)];
        // Neither the beginning of the last write alone, nor a write before that one, nor more than
        // a sector, nor with more bytes than one write has.
        let others = [(0, 5, 512), (4096, 6, 1024), (3584, 7, 512), (0, 8, 1024), (0, 8, 65536), (65024, 9, 1024)];
        for (at, byte, len_bytes) in first.into_iter().chain(others) {
            assert!(put(&mut cache, at, &vec![byte; len_bytes]));
        }
        assert_eq!(cache.waiting_bytes, 1536 + 512 + 1024 + 512 + 1024 + 65536 + 1024);
        let mut writes = vec![];
        while let Some((at, bytes)) = cache.next_write() {
            writes.push((at, bytes[0], bytes[bytes.len() - 1], bytes.len()));
            cache.written(bytes);
        }
        let first = [(0, 3, 4, 1536), (0, 5, 5, 512), (4096, 6, 6, 1024), (3584, 7, 7, 512)];
        let expected = [&first[..], &[(0, 8, 8, 1024), (0, 8, 8, 65536), (65024, 9, 9, 1024)]].concat();
        assert_eq!(writes, expected);
        assert_eq!((cache.done(), cache.content.held_bytes(), cache.waiting_bytes), (10, 0, 0));
    }

    /// Takes all that is queued for the disk: where each write begins, its first byte, its length.
    fn drain(cache: &mut Cache) -> Vec<(u64, u8, usize)> {
        let mut writes = vec![];
        while let Some((at, bytes)) = cache.next_write() {
            writes.push((at, bytes[0], bytes.len()));
            cache.written(bytes);
        }
        writes
    }

    /// A file that grows: both tables, its data, and its length, again and again.
    #[test]
    fn a_group_of_late_writes_takes_the_place_of_the_one_before() {
        let mut cache = Cache::new(1 << 20, 256 << 10);
        for piece in 0..4u8 {
            let data = 65536 + u64::from(piece) * 4096;
            let steps = [(512, Order::Late), (2048, Order::Late), (data, Order::Early), (8192, Order::Last)];
            for (at, order) in steps {
                let bytes = if order == Order::Early { vec![9; 4096] } else { vec![piece; 512] };
                assert!(put_when(&mut cache, at, &bytes, order));
            }
        }
        assert_eq!((get(&mut cache, 512, 512), cache.last()), (Some(vec![3; 512]), 4));
        assert_eq!(drain(&mut cache), [(65536, 9, 16384)]);
        assert!(cache.is_dirty() && !cache.has_next() && cache.has_late() && cache.content.held_bytes() > 0);
        cache.end_late();
        assert_eq!(drain(&mut cache), [(512, 3, 512), (2048, 3, 512), (8192, 3, 512)]);
        assert_eq!((cache.is_dirty(), cache.content.held_bytes(), cache.late_bytes), (false, 0, 0));
        assert_eq!(cache.done(), cache.last());
    }

    /// A file that grows fast: the disk gets several pieces of its data at once, and nothing else
    /// beside them.
    #[test]
    fn only_early_writes_to_different_places_are_under_way_together() {
        let mut cache = Cache::new(1 << 20, 256 << 10);
        let early = |cache: &mut Cache, at| put_when(cache, at, &[1; 1024], Order::Early);
        // The second overlaps the first; the last is the seventh.
        for at in [8192, 8192, 0, 16384, 24576, 32768, 65536] {
            assert!(early(&mut cache, at));
        }
        assert!(put(&mut cache, 4096, &[2; 512]) && early(&mut cache, 40960));
        assert!(put_when(&mut cache, 2048, &[3; 512], Order::Late));
        cache.end_late();
        let mut rounds = vec![];
        while cache.is_dirty() {
            let round: Vec<_> = core::iter::from_fn(|| cache.next_write()).collect();
            rounds.push(round.iter().map(|(at, _)| *at).collect::<Vec<_>>());
            round.into_iter().for_each(|(_, bytes)| cache.written(bytes));
        }
        let expected: [&[u64]; 6] = [&[8192], &[8192, 0, 16384, 24576], &[32768, 65536], &[4096], &[40960], &[2048]];
        assert_eq!(rounds, expected);
        assert_eq!((cache.done(), cache.content.held_bytes(), cache.waiting_bytes), (10, 0, 0));
        // One that becomes a part of a write whose order is kept is as that one.
        assert!(put(&mut cache, 0, &[1; 512]) && early(&mut cache, 512) && early(&mut cache, 8192));
        assert!(cache.next_write().is_some_and(|(_, bytes)| bytes.len() == 1536) && cache.next_write().is_none());
        cache.written(vec![]);
        drain(&mut cache);
        let late = |cache: &mut Cache, at| put_when(cache, at, &[1; 512], Order::Late);
        assert!(early(&mut cache, 0) && late(&mut cache, 1024));
        cache.end_late();
        assert!(early(&mut cache, 8192));
        assert!(cache.next_write().is_some_and(|(_, bytes)| bytes.len() == 1536) && cache.next_write().is_none());
        // A write that fails takes those beside it.
        cache.written(vec![]);
        drain(&mut cache);
        assert!(
            early(&mut cache, 8192)
                && early(&mut cache, 0)
                && cache.next_write().is_some()
                && cache.next_write().is_some()
        );
        assert_eq!((cache.failed(), get(&mut cache, 8192, 512), get(&mut cache, 0, 512)), (2048, None, None));
        assert_eq!((cache.is_dirty(), cache.content.held_bytes()), (false, 0));
    }

    #[test]
    fn four_early_writes_or_one_of_another_order_are_enough() {
        let orders = [Order::Early, Order::Early, Order::Early, Order::Early];
        for kept in 0..=MOST_EARLY {
            let mut cache = Cache::new(1 << 20, 1 << 20);
            let orders = orders.into_iter().take(kept).chain([Order::Kept]);
            let enough: Vec<bool> = (0..)
                .zip(orders)
                .map(|(number, order)| {
                    assert!(!cache.has_enough() || number == MOST_EARLY as u64);
                    put_when(&mut cache, number << 16, &[0; 65536], order) && cache.has_enough()
                })
                .collect();
            let expected: Vec<bool> = (0..=kept).map(|number| number == kept || number + 1 >= MOST_EARLY).collect();
            assert_eq!(enough, expected);
        }
    }

    #[test]
    fn late_writes_that_are_not_written_again_stay() {
        const GROUPS: [(&[u64], &[u64]); 9] = [
            // The same, with a block before, with one behind.
            (&[1, 2], &[]),
            (&[3, 1, 2], &[]),
            (&[3, 1, 2, 4], &[]),
            // Not all of them.
            (&[3, 2], &[]),
            // Two others: the first comes right before its successor, the second behind all.
            (&[5, 2, 6], &[]),
            // The order is another one.
            (&[2, 1], &[3, 1, 5, 2, 4, 6]),
            (&[6, 2], &[]),
            (&[1, 2], &[6, 2, 1]),
            // Only the end is written again.
            (&[2], &[]),
        ];
        let mut cache = Cache::new(1 << 20, 256 << 10);
        for (group, queued) in GROUPS {
            for (number, block) in group.iter().enumerate() {
                let order = if number + 1 == group.len() { Order::Last } else { Order::Late };
                assert!(put_when(&mut cache, block * 1024, &[*block as u8; 512], order));
            }
            let queued: Vec<(u64, u8, usize)> = queued.iter().map(|block| (block * 1024, *block as u8, 512)).collect();
            assert_eq!(drain(&mut cache), queued, "{group:?}");
        }
        // A group that writes a block twice, a write that is in the place of a part of a late one,
        // and an early one in the place of a late one come behind what is late.
        let late = |cache: &mut Cache, at, byte, len_bytes| put_when(cache, at, &vec![byte; len_bytes], Order::Late);
        assert!(late(&mut cache, 1024, 1, 512) && late(&mut cache, 1024, 9, 512));
        // The second of the same two writes replaces the first.
        assert_eq!(drain(&mut cache), [(1024, 1, 512), (2048, 2, 512), (1024, 1, 512)]);
        assert!(late(&mut cache, 1024, 8, 1024));
        assert_eq!(drain(&mut cache), [(1024, 9, 512)]);
        assert!(put_when(&mut cache, 1024, &[7; 512], Order::Early));
        assert_eq!(drain(&mut cache), [(1024, 8, 1024), (1024, 7, 512)]);
        assert!(late(&mut cache, 512, 6, 512) && put(&mut cache, 8192, &[5; 512]));
        assert_eq!(drain(&mut cache), [(512, 6, 512), (8192, 5, 512)]);
        // They are few.
        for number in 0..1000 {
            assert!(put_when(&mut cache, number * 512, &[0; 512], [Order::Late, Order::Last][number as usize % 2]));
            assert!(cache.late.len() + cache.group.len() <= 64);
            drain(&mut cache);
        }
    }

    /// Old content that was on its way from the disk does not replace content that was written
    /// meanwhile, even if the disk has the newer content by then.
    #[test]
    fn the_past_does_not_come_back() {
        let mut cache = Cache::new(1 << 20, 8000);
        let fill = cache.begin_fill(0, 4096, true);
        assert!(put(&mut cache, 512, &[2; 512]));
        let (_, bytes) = cache.next_write().unwrap();
        cache.written(bytes);
        // There is no room for as much again while this is held.
        let other = cache.begin_fill(4096, 4096, true);
        filled(&mut cache, &other, vec![9; 4096]);
        assert_eq!(get(&mut cache, 4096, 4096), None);
        let old = filled(&mut cache, &fill, vec![1; 4096]);
        let expected = [vec![1; 512], vec![2; 512], vec![1; 3072]].concat();
        assert_eq!((get(&mut cache, 0, 4096), old), (Some(expected.clone()), expected));
    }

    #[test]
    fn one_reads_the_disk_for_all() {
        let mut cache = Cache::new(1 << 20, 64 << 10);
        let fill = cache.begin_fill(4096, 8192, true);
        assert!(cache.is_coming(8192, 4096) && cache.is_coming(4608, 512));
        assert!(!cache.is_coming(8192, 8192), "the next page was not asked for");
        filled(&mut cache, &fill, vec![3; 8192]);
        assert!(!cache.is_coming(8192, 4096) && get(&mut cache, 4096, 8192).is_some());
        // A read that fails leaves nothing.
        let fill = cache.begin_fill(0, 4096, true);
        cache.end_fill(&fill, None, |_| ());
        assert!(!cache.is_coming(0, 4096) && get(&mut cache, 0, 512).is_none());
        // Without room, nothing is kept.
        let fill = cache.begin_fill(40960, 4096, false);
        filled(&mut cache, &fill, vec![3; 4096]);
        assert_eq!((get(&mut cache, 40960, 512), cache.content.held_bytes()), (None, 0));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut cache = Cache::new(1 << 30, 4 << 20);
        let taken = (0..1000u64).take_while(|number| put(&mut cache, number * (128 << 10), &[0; 65536])).count();
        assert_eq!(taken, 16);
        // Many small writes take more than their bytes.
        let mut cache = Cache::new(1 << 30, 64 << 10);
        let taken = (0..1000u64).take_while(|number| put(&mut cache, number * 8192, &[0; 512])).count();
        assert_eq!((taken, cache.kept_bytes()), (43, 43 * 512));
        while let Some((_, bytes)) = cache.next_write() {
            cache.written(bytes);
        }
        assert!(put(&mut cache, 1 << 20, &[0; 512]));
        for number in 0..1000 {
            let fill = cache.begin_fill(number * 65536, 65536 >> (number % 8), true);
            filled(&mut cache, &fill, vec![0; fill.len_bytes]);
            assert!(cache.kept_bytes() <= 64 << 10);
        }
    }

    /// No write is on the disk without the writes before it.
    #[test]
    fn a_write_that_fails_takes_all_behind_it() {
        let mut cache = Cache::new(1 << 20, 64 << 10);
        assert!(put(&mut cache, 512, &[1; 512]));
        cache.next_write().unwrap();
        assert!(put(&mut cache, 0, &[2; 512]) && put(&mut cache, 4096, &[3; 1024]));
        assert_eq!(cache.failed(), 2048);
        assert!((0..8).all(|block| get(&mut cache, block * 512, 512).is_none()), "what the disk may not have");
        assert_eq!(
            (cache.done(), cache.is_dirty(), cache.content.held_bytes(), cache.next_write()),
            (3, false, 0, None)
        );
        assert!(put(&mut cache, 512, &[4; 512]) && cache.next_write().is_some());
    }

    /// Content that somebody else writes to the disk is read again, and waiting writes are not
    /// lost.
    #[test]
    fn what_others_write_is_not_hidden() {
        let mut cache = Cache::new(1 << 20, 64 << 10);
        let old = cache.begin_fill(0, 4096, true);
        filled(&mut cache, &old, vec![1; 4096]);
        assert!(put(&mut cache, 4096, &[2; 512]));
        let coming = cache.begin_fill(8192, 4096, true);
        let half = cache.begin_fill(4096, 4096, true);
        cache.invalidate();
        filled(&mut cache, &coming, vec![1; 4096]);
        let bytes = filled(&mut cache, &half, vec![1; 4096]);
        assert_eq!(
            (get(&mut cache, 0, 512), get(&mut cache, 8192, 512), get(&mut cache, 4608, 512)),
            (None, None, None)
        );
        assert_eq!((get(&mut cache, 4096, 512), bytes[0], bytes[512]), (Some(vec![2; 512]), 2, 1));
        let mut read = [7; 1024];
        cache.overlay(4096, &mut read);
        assert_eq!((read[0], read[512]), (2, 7));
        let fresh = cache.begin_fill(8192, 4096, true);
        filled(&mut cache, &fresh, vec![5; 4096]);
        assert_eq!(get(&mut cache, 8192, 512), Some(vec![5; 512]));
    }

    /// A disk may claim any length.
    #[test]
    fn the_end_of_a_huge_disk_can_be_read() {
        let mut cache = Cache::new(u64::MAX, 256 << 10);
        let end = cache.len_bytes();
        for _ in 0..2 {
            for len_bytes in [512, 4096, 65536] {
                let at = end - len_bytes as u64;
                assert!(put(&mut cache, at, &vec![1; len_bytes]) && get(&mut cache, at, len_bytes).is_some());
                cache.ahead(at - 65536, 65536);
                cache.ahead(at, len_bytes);
                let fill = cache.begin_fill(at, len_bytes, true);
                cache.end_fill(&fill, None, |_| ());
            }
        }
    }

    #[test]
    fn only_sequences_are_read_ahead() {
        let mut cache = Cache::new(1 << 20, 1 << 20);
        for at in [0, 200 << 10, 40 << 10, 900 << 10] {
            assert_eq!(cache.ahead(at, 4096), None);
        }
        assert_eq!(cache.ahead((40 << 10) + 4096, 4096), Some((48 << 10, 64 << 10)));
        assert_eq!(cache.ahead(48 << 10, 4096), Some((112 << 10, 68 << 10)));
        assert_eq!(cache.ahead(52 << 10, 4096), Some((180 << 10, 132 << 10)));
        assert_eq!(cache.ahead(56 << 10, 4096), None);
        // The disk's end is the end.
        assert_eq!(cache.ahead((900 << 10) + 4096, 64 << 10), Some((968 << 10, 56 << 10)));
        assert_eq!(cache.ahead(968 << 10, 56 << 10), None);
    }

    /// Returns `disk` with these bytes at `at`.
    fn with(disk: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut disk = disk.to_vec();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
        disk
    }

    type Place = (usize, Vec<u8>);

    /// The late writes: those of the groups that have ended, and those of the last group.
    #[derive(Default)]
    struct Model(Vec<Place>, Vec<Place>);

    impl Model {
        fn is_empty(&self) -> bool {
            self.0.is_empty() && self.1.is_empty()
        }

        fn all(&mut self) -> Vec<Place> {
            [core::mem::take(&mut self.0), core::mem::take(&mut self.1)].concat()
        }

        /// Takes a write. Returns what the disk gets before the late writes that remain.
        fn put(&mut self, write: Place, order: Order) -> Vec<Place> {
            let range = |place: &Place| place.0..place.0 + place.1.len();
            let this = range(&write);
            let overlaps = |other: &Place| range(other).start < this.end && this.start < range(other).end;
            let is_late = matches!(order, Order::Late | Order::Last);
            let is_behind = self.1.iter().any(overlaps)
                || self.0.iter().any(|other| overlaps(other) && !(is_late && range(other) == this))
                || self.0.len() + self.1.len() >= MOST_LATE;
            let mut queued = if order == Order::Kept || is_behind { self.all() } else { vec![] };
            if !is_late {
                queued.push(write);
                return queued;
            }
            self.1.push(write);
            if order == Order::Last {
                let place = |newer: &Place| self.0.iter().position(|older| range(older) == range(newer));
                if !self.1.iter().filter_map(place).is_sorted() {
                    queued.append(&mut self.0);
                }
                // The writes of the group that come before the next one that is there already.
                let mut first = vec![];
                let mut before = core::mem::take(&mut self.0).into_iter();
                for newer in self.1.drain(..) {
                    let is_again = before.as_slice().iter().any(|older| range(older) == range(&newer));
                    if is_again {
                        self.0.extend(before.by_ref().take_while(|older| range(older) != range(&newer)));
                    }
                    first.push(newer);
                    if is_again {
                        self.0.append(&mut first);
                    }
                }
                self.0.extend(before.chain(first));
            }
            queued
        }
    }

    proptest! {
        /// Reads see the last write, what is kept is bounded, and at each moment the disk is as it
        /// would be with the first so many writes, and the beginning of the next: also in the
        /// middle of a write, and when one fails. The order of the writes is that which was asked
        /// for: early ones that the disk has at once may come in any order.
        #[test]
        fn it_is_a_disk(steps in proptest::collection::vec((0u8..12, 0u64..120, 1usize..12, any::<u8>()), 1..300)) {
            const LEN: usize = 64 << 10;
            let mut cache = Cache::new(LEN as u64, 16 << 10);
            let (mut disk, mut newest) = (vec![0u8; LEN], vec![0u8; LEN]);
            let mut history = vec![newest.clone()];
            // The write behind each state: where it begins, and its bytes. And whether it is early.
            let mut writes: Vec<(usize, Vec<u8>)> = vec![];
            let mut are_early: Vec<bool> = vec![];
            let mut late = Model::default();
            let mut fills: Vec<(Fill, Vec<u8>)> = vec![];
            let mut under_way: Vec<(u64, Vec<u8>)> = vec![];
            for (step, block, blocks, byte) in steps {
                let blocks = blocks.min(128 - block as usize);
                let (at, len_bytes) = (block * BLOCK, blocks * BLOCK as usize);
                let range = at as usize..at as usize + len_bytes;
                match step {
                    0..3 => {
                        // Late writes are to few places, so that groups are often the same.
                        let (order, at, len_bytes) = match step {
                            0 if byte % 4 == 0 => (Order::Kept, at, len_bytes),
                            0 => (Order::Early, at, len_bytes),
                            1 => (Order::Late, block % 5 * 4096, SECTOR),
                            _ => (Order::Last, block % 3 * 4096, SECTOR),
                        };
                        let bytes = vec![byte; len_bytes];
                        let had_late = cache.has_late();
                        let mut queued = vec![];
                        if put_when(&mut cache, at, &bytes, order) {
                            newest = with(&newest, at as usize, &bytes);
                            queued = late.put((at as usize, bytes), order);
                        } else if had_late && !cache.has_late() {
                            queued = late.all();
                        }
                        // The late ones that come before it are queued first.
                        let count = queued.len();
                        for (number, (at, bytes)) in queued.into_iter().enumerate() {
                            history.push(with(history.last().unwrap(), at, &bytes));
                            writes.push((at, bytes));
                            are_early.push(order == Order::Early && number + 1 == count);
                        }
                        prop_assert_eq!(cache.has_late(), !late.is_empty());
                    }
                    3 | 4 => prop_assert_eq!(&read(&mut cache, &disk, at, len_bytes), &newest[range]),
                    5 => under_way.extend(cache.next_write()),
                    6 | 7 if under_way.len() > 1 => {
                        let last = cache.under_way.back().unwrap().number as usize;
                        prop_assert!(are_early[cache.done() as usize..last].iter().all(|is_early| *is_early));
                        // The last of them may be the first that is done.
                        for (at, bytes) in under_way.iter().rev() {
                            disk = with(&disk, *at as usize, bytes);
                        }
                        under_way.drain(..).for_each(|(_, bytes)| cache.written(bytes));
                        prop_assert!(disk == history[cache.done() as usize]);
                    }
                    6 | 7 => {
                        if let Some((at, bytes)) = under_way.pop() {
                            // The power may be cut in the middle.
                            let cut = usize::from(byte) * SECTOR % bytes.len();
                            let torn = with(&disk, at as usize, &bytes[..cut]);
                            let is_possible = (cache.done() as usize..writes.len()).any(|number| {
                                let (at, bytes) = &writes[number];
                                let done = (0..=bytes.len()).step_by(SECTOR);
                                done.into_iter().any(|done| with(&history[number], *at, &bytes[..done]) == torn)
                            });
                            prop_assert!(is_possible, "{cut} bytes of {} at {at}", bytes.len());
                            disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                            cache.written(bytes);
                            prop_assert!(disk == history[cache.done() as usize]);
                        }
                    }
                    8 if byte < 40 => {
                        // Those beside the one that fails may be done.
                        let done = under_way.iter().skip(1).step_by(1 + usize::from(byte % 2));
                        disk = done.fold(disk, |disk, (at, bytes)| with(&disk, *at as usize, bytes));
                        if !core::mem::take(&mut under_way).is_empty() {
                            cache.failed();
                            // The disk keeps its content, and all writes that it does not have are
                            // forgotten.
                            newest = disk.clone();
                            late.all();
                            history.resize(cache.done() as usize, vec![]);
                            history.push(newest.clone());
                            writes.resize(cache.done() as usize, (0, vec![]));
                            are_early.resize(cache.done() as usize, false);
                        }
                    }
                    9 if fills.len() < 2 => {
                        let begun = cache.begin_fill(at, len_bytes, byte > 50);
                        let bytes = disk[begun.at as usize..begun.at as usize + begun.len_bytes].to_vec();
                        fills.push((begun, bytes));
                    }
                    10 if byte < 100 => if byte < 50 { cache.shrink() } else { cache.invalidate() },
                    _ => {
                        if let Some((fill, bytes)) = fills.pop() {
                            cache.end_fill(&fill, (byte > 30).then_some(bytes), |_| ());
                        }
                    }
                }
                cache.content.check();
            }
            for (fill, bytes) in fills {
                cache.end_fill(&fill, Some(bytes), |_| ());
            }
            cache.end_late();
            under_way.reverse();
            while let Some((at, bytes)) = under_way.pop().or_else(|| cache.next_write()) {
                disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                cache.written(bytes);
            }
            prop_assert!(disk == newest && cache.content.held_bytes() == 0 && !cache.is_dirty());
        }
    }
}
