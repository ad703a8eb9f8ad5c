//! The cache of a disk's blocks, and the queue of the writes that the disk does not have yet.
//!
//! **The disk gets writes one by one, in the order in which they were made**, so that a power cut
//! leaves the content that a disk without a cache would have had a moment before. Two writes that
//! follow each other in the queue become one if the second continues the first one on the disk, or
//! replaces its last sector.
//!
//! What is kept of the disk is kept in extents ([`extents`]).
//!
//! Not taken: *writing each dirty page once, whenever.* It saves commands, but a filesystem without
//! a journal relies on the order of its writes.

mod extents;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use extents::{Extents, part};

/// Reads of the disk begin and end at multiples of so many bytes.
pub const PAGE_BYTES: usize = 4096;
/// Length of a sector in bytes: all reads and writes begin and end at sectors.
const SECTOR: usize = 512;
/// The most bytes that one write to the disk has.
pub const MOST_AT_ONCE: usize = 64 << 10;
/// The most bytes that wait to be written.
const MOST_WAITING: usize = 1 << 20;
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
}

impl Write {
    fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

/// Bytes for a write, with those of the last write that waits if it becomes one with it: where they
/// begin, and how many there were before.
struct Joined {
    start: u64,
    before: usize,
    bytes: Vec<u8>,
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
    /// The write that the disk has right now: where it begins, its length, and its number.
    under_way: Option<(u64, usize, u64)>,
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
            under_way: None,
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
        self.counts
    }

    /// Returns how many bytes of the disk are here.
    pub fn kept_bytes(&self) -> usize {
        self.content.len_bytes()
    }

    /// Returns the number of the last write. When [`Cache::done`] has reached the number, the disk
    /// has all writes until now, except for writes that were lost ([`Cache::failed`]).
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Returns the number of the last write that the disk has.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Returns whether a write of the longest kind waits for the disk: more would not make it
    /// longer.
    pub fn has_whole_write(&self) -> bool {
        self.waiting_bytes >= MOST_AT_ONCE
    }

    /// Returns whether something waits to be written.
    pub fn is_dirty(&self) -> bool {
        self.under_way.is_some() || !self.waiting.is_empty()
    }

    /// Drops everything that is not held.
    pub fn shrink(&mut self) {
        self.content.shrink();
    }

    /// Drops the known content of the disk, to which somebody else has written. Content that the
    /// disk does not have yet stays.
    pub fn invalidate(&mut self) {
        let waiting = self.waiting.iter().map(|write| (write.at, write.bytes.len()));
        let dirty: Vec<(u64, usize)> =
            waiting.chain(self.under_way.map(|(at, len_bytes, _)| (at, len_bytes))).collect();
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
    pub fn write(&mut self, at: u64, len_bytes: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let is_full = self.waiting_bytes + len_bytes > MOST_WAITING || self.content.are_mostly_held();
        if is_full && self.is_dirty() {
            return false;
        }
        if !self.content.reserve(at, len_bytes) {
            return false;
        }
        let Some(Joined { start, before, mut bytes }) = self.bytes_for(at, len_bytes) else { return false };
        let place = (at - start) as usize;
        fill(part(&mut bytes, place, len_bytes));
        // An extent that the last write holds is held once for both.
        self.content.put(at, bytes.get(place..).unwrap_or(&[]), start..start + before as u64);
        self.waiting_bytes += bytes.len() - before;
        self.last += 1;
        self.counts.writes += 1;
        self.waiting.push_back(Write { at: start, bytes, number: self.last });
        true
    }

    /// Returns bytes with room for a write at their end: those of the last write that waits, if
    /// this one continues it, or replaces its last sector. A disk that loses its power in the
    /// middle of such a write has no later sector of it without the earlier ones, as if there were
    /// two.
    fn bytes_for(&mut self, at: u64, len_bytes: usize) -> Option<Joined> {
        let end = at + len_bytes as u64;
        let joins = |last: &&mut Write| {
            let is_next = (last.at..=last.end()).contains(&at) && last.end() - at <= SECTOR as u64;
            is_next && end >= last.end() && end - last.at <= MOST_AT_ONCE as u64
        };
        if let Some(last) = self.waiting.back_mut().filter(joins) {
            let (before, all) = (last.bytes.len(), (end - last.at) as usize);
            last.bytes.try_reserve(all - before).ok()?;
            let Write { at: start, mut bytes, .. } = self.waiting.pop_back()?;
            bytes.resize(all, 0);
            return Some(Joined { start, before, bytes });
        }
        self.waiting.try_reserve(1).ok()?;
        let mut bytes = self.content.spare(len_bytes).unwrap_or_default();
        bytes.try_reserve_exact(len_bytes.saturating_sub(bytes.len())).ok()?;
        bytes.resize(len_bytes, 0);
        Some(Joined { start: at, before: 0, bytes })
    }

    /// Returns the next write for the disk: where it begins, and its bytes. There is none while the
    /// disk has one.
    pub fn next_write(&mut self) -> Option<(u64, Vec<u8>)> {
        if self.under_way.is_some() {
            return None;
        }
        let Write { at, bytes, number } = self.waiting.pop_front()?;
        self.under_way = Some((at, bytes.len(), number));
        Some((at, bytes))
    }

    /// Notes that the disk has done the write that it had, with these `bytes`.
    pub fn written(&mut self, bytes: Vec<u8>) {
        let Some((at, len_bytes, number)) = self.under_way.take() else { return };
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

    /// Notes that the disk has failed to do the write that it had. Drops all writes that wait
    /// behind it, so that no write is on the disk without the writes before it. Forgets the content
    /// of all of them. Returns how many bytes are lost.
    pub fn failed(&mut self) -> usize {
        let under_way = self.under_way.take().map(|(at, len_bytes, _)| (at, len_bytes));
        let waiting = core::mem::take(&mut self.waiting);
        let lost: Vec<(u64, usize)> =
            under_way.into_iter().chain(waiting.iter().map(|write| (write.at, write.bytes.len()))).collect();
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
        cache.write(at, bytes.len(), |to| to.copy_from_slice(bytes))
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
            assert_eq!(cache.next_write(), None, "one at a time");
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

    proptest! {
        /// Reads see the last write, what is kept is bounded, and at each moment the disk is as it would
        /// be with the first so many writes, and the beginning of the next: also in the middle of a
        /// write, and when one fails.
        #[test]
        fn it_is_a_disk(steps in proptest::collection::vec((0u8..12, 0u64..120, 1usize..12, any::<u8>()), 1..300)) {
            const LEN: usize = 64 << 10;
            let mut cache = Cache::new(LEN as u64, 16 << 10);
            let (mut disk, mut newest) = (vec![0u8; LEN], vec![0u8; LEN]);
            let mut history = vec![newest.clone()];
            // The write behind each state: where it begins, and its bytes.
            let mut writes: Vec<(usize, Vec<u8>)> = vec![];
            let mut fills: Vec<(Fill, Vec<u8>)> = vec![];
            let mut under_way: Option<(u64, Vec<u8>)> = None;
            for (step, block, blocks, byte) in steps {
                let blocks = blocks.min(128 - block as usize);
                let (at, len_bytes) = (block * BLOCK, blocks * BLOCK as usize);
                let range = at as usize..at as usize + len_bytes;
                match step {
                    0..3 => {
                        if put(&mut cache, at, &vec![byte; len_bytes]) {
                            newest[range].fill(byte);
                            history.push(newest.clone());
                            writes.push((at as usize, vec![byte; len_bytes]));
                        }
                    }
                    3 | 4 => prop_assert_eq!(&read(&mut cache, &disk, at, len_bytes), &newest[range]),
                    5 => under_way = under_way.take().or_else(|| cache.next_write()),
                    6 | 7 => {
                        if let Some((at, bytes)) = under_way.take() {
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
                        if under_way.take().is_some() {
                            cache.failed();
                            // The disk keeps its content, and all writes that it does not have are
                            // forgotten.
                            newest = disk.clone();
                            history.resize(cache.done() as usize, vec![]);
                            history.push(newest.clone());
                            writes.resize(cache.done() as usize, (0, vec![]));
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
            while let Some((at, bytes)) = under_way.take().or_else(|| cache.next_write()) {
                disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                cache.written(bytes);
            }
            prop_assert!(disk == newest && cache.content.held_bytes() == 0 && !cache.is_dirty());
        }
    }
}
