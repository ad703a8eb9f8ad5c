//! The cache of a disk's blocks, and the queue of the writes that the disk does not have yet.
//!
//! **The disk gets writes one by one, in the order in which they were made**, so that a power cut
//! leaves the content that a disk without a cache would have had a moment before. Two writes that
//! follow each other in the queue become one if the second continues the first one on the disk, or
//! replaces its last sector.
//!
//! Blocks are kept in pages of 4 KiB, each of which knows which of its sectors are valid. A page is
//! held, and not evicted, while a write of it waits or while it is being read from the disk: so the
//! disk's older content never takes the place of newer content.
//!
//! Not taken: *writing each dirty page once, whenever.* It saves commands, but a filesystem without
//! a journal relies on the order of its writes.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::ops::{Range, RangeInclusive};

/// Length of a page in bytes.
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

struct Page {
    /// Memory for the whole page. It has no bytes until the page has content.
    bytes: Vec<u8>,
    /// A bit for each sector.
    valid: u8,
    /// How many writes and reads are under way that need the page.
    held: u32,
    /// How many of them are reads of the disk.
    coming: u32,
    /// Whether the content from these reads is old by now.
    is_spoiled: bool,
    /// Whether it was read since the hand has passed by: a page that is written or read once, and
    /// never again, goes first.
    is_used: bool,
}

impl Page {
    /// Takes content from `start` on.
    fn put(&mut self, start: usize, from: &[u8]) {
        if from.len() == PAGE_BYTES {
            self.bytes.clear();
            self.bytes.extend_from_slice(from);
        } else {
            self.bytes.resize(PAGE_BYTES, 0);
            copy(part(&mut self.bytes, start, from.len()), from);
        }
        self.valid |= sectors(start, from.len());
    }

    fn has(&self, wanted: u8) -> bool {
        self.valid & wanted == wanted
    }

    /// Holds the page for a read or write. `held_pages` counts the pages that are held.
    fn hold(&mut self, held_pages: &mut usize) {
        *held_pages += usize::from(self.held == 0);
        self.held += 1;
    }

    fn release(&mut self, held_pages: &mut usize) {
        *held_pages = held_pages.saturating_sub(usize::from(self.held == 1));
        self.held = self.held.saturating_sub(1);
    }

    /// Takes content that was `read` from the disk, if a read has held the page for it. Newer
    /// content of the page replaces what was read.
    fn end_fill(&mut self, start: usize, read: &mut [u8], is_held: bool) {
        let takes = is_held && !self.is_spoiled;
        if self.valid == 0 && takes {
            return self.put(start, read);
        }
        for (sector, read) in read.chunks_mut(SECTOR).enumerate() {
            let place = start + sector * SECTOR;
            if self.has(sectors(place, SECTOR)) {
                copy(read, part(&mut self.bytes, place, SECTOR));
            } else if takes {
                self.put(place, read);
            }
        }
    }
}

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
    held: Vec<u64>,
}

/// The cache of one disk. Positions and lengths are in bytes, and multiples of 512.
pub struct Cache {
    len_bytes: u64,
    most_pages: usize,
    pages: BTreeMap<u64, Page>,
    /// Where the search for a page to evict goes on.
    hand: u64,
    waiting: VecDeque<Write>,
    waiting_bytes: usize,
    /// Memory of a read or write that is done, for the next of the same length.
    spare: Vec<u8>,
    /// The write that the disk has right now: where it begins, its length, and its number.
    under_way: Option<(u64, usize, u64)>,
    /// Pages that are held.
    held_pages: usize,
    /// The number of the last write, and of the last write that the disk has done.
    last: u64,
    done: u64,
    streams: [Stream; STREAMS],
    oldest_stream: usize,
    counts: Counts,
}

/// Returns the pages that a range lies in.
fn pages_of(at: u64, len_bytes: usize) -> RangeInclusive<u64> {
    let page = PAGE_BYTES as u64;
    at / page..=(at + len_bytes.max(1) as u64 - 1) / page
}

/// Returns the part of a range in one of its pages: where it begins in the page, and its place in
/// the range.
fn part_in(page: u64, at: u64, len_bytes: usize) -> (usize, Range<usize>) {
    let start = page * PAGE_BYTES as u64;
    let from = at.max(start);
    let to = (at + len_bytes as u64).min(start + PAGE_BYTES as u64);
    ((from - start) as usize, (from - at) as usize..(to - at) as usize)
}

/// Returns the bits of the sectors of a part of a page.
fn sectors(start: usize, len_bytes: usize) -> u8 {
    let (first, end) = (start / SECTOR, (start + len_bytes).div_ceil(SECTOR));
    (first..end).fold(0, |bits, sector| bits | 1 << sector)
}

/// Returns `length` bytes of a page from `start` on.
fn part(bytes: &mut [u8], start: usize, len_bytes: usize) -> &mut [u8] {
    bytes.get_mut(start..start + len_bytes).unwrap_or(&mut [])
}

/// Copies as much as both have.
fn copy(to: &mut [u8], from: &[u8]) {
    let len_bytes = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..len_bytes), from.get(..len_bytes)) {
        to.copy_from_slice(from);
    }
}

impl Cache {
    /// Returns an empty cache of a disk of `len_bytes` bytes, which has up to `most_pages` pages.
    /// The part of a disk beyond 2^62 bytes is not in its cache.
    pub fn new(len_bytes: u64, most_pages: usize) -> Cache {
        Cache {
            len_bytes: len_bytes.min(LONGEST),
            most_pages,
            pages: BTreeMap::new(),
            hand: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            spare: Vec::new(),
            under_way: None,
            held_pages: 0,
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

    /// Returns the number of pages.
    pub fn pages(&self) -> usize {
        self.pages.len()
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

    /// Releases the pages of a range that a write has held.
    fn release(&mut self, at: u64, len_bytes: usize) {
        for page in self.pages.range_mut(pages_of(at, len_bytes)).map(|(_, page)| page) {
            page.release(&mut self.held_pages);
        }
    }

    /// Takes out a page that has not been used for a while, for its memory; `None` if all are held.
    fn evicted(&mut self) -> Option<Vec<u8>> {
        // Twice round: the first time may find that all were used.
        for _ in 0..2 * self.pages.len() {
            let Some((&number, page)) = self.pages.range_mut(self.hand..).next() else {
                self.hand = 0;
                continue;
            };
            self.hand = number + 1;
            let is_used = core::mem::take(&mut page.is_used);
            if page.held == 0 && !is_used {
                return self.pages.remove(&number).map(|page| page.bytes);
            }
        }
        None
    }

    fn new_page(&mut self) -> Option<Vec<u8>> {
        if self.pages.len() >= self.most_pages {
            return self.evicted();
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(PAGE_BYTES).ok()?;
        Some(bytes)
    }

    /// Makes room for the pages of a range, until there is none.
    fn make(&mut self, pages: RangeInclusive<u64>) {
        let mut there = self.pages.range(pages.clone()).map(|(number, _)| *number).peekable();
        let missing: Vec<u64> = pages.filter(|number| there.next_if_eq(number).is_none()).collect();
        for number in missing {
            let Some(bytes) = self.new_page() else { return };
            self.pages.insert(number, Page { bytes, valid: 0, held: 0, coming: 0, is_spoiled: false, is_used: false });
        }
    }

    /// Drops all pages that are not held.
    pub fn shrink(&mut self) {
        self.spare = Vec::new();
        self.pages.retain(|_, page| page.held > 0);
    }

    /// Drops the known content of the disk, to which somebody else has written. Content that the
    /// disk does not have yet stays.
    pub fn invalidate(&mut self) {
        self.shrink();
        let waiting = self.waiting.iter().map(|write| (write.at, write.bytes.len()));
        let dirty: Vec<(u64, usize)> =
            waiting.chain(self.under_way.map(|(at, len_bytes, _)| (at, len_bytes))).collect();
        for page in self.pages.values_mut() {
            page.is_spoiled = page.coming > 0;
            page.valid = 0;
        }
        self.mark(&dirty, |page, sectors| page.valid |= sectors);
    }

    /// Calls `mark` for the pages of these ranges, with the sectors of each.
    fn mark(&mut self, ranges: &[(u64, usize)], mark: impl Fn(&mut Page, u8)) {
        for (at, len_bytes) in ranges.iter().copied() {
            for (number, page) in self.pages.range_mut(pages_of(at, len_bytes)) {
                let (start, range) = part_in(*number, at, len_bytes);
                mark(page, sectors(start, range.len()));
            }
        }
    }

    /// Copies the cached sectors of a range over `bytes`, which were read from the disk.
    pub fn overlay(&mut self, at: u64, bytes: &mut [u8]) {
        for (number, page) in self.pages.range_mut(pages_of(at, bytes.len())) {
            let (start, range) = part_in(*number, at, bytes.len());
            for (sector, place) in range.step_by(SECTOR).enumerate() {
                let from = start + sector * SECTOR;
                if page.has(sectors(from, SECTOR)) {
                    copy(part(bytes, place, SECTOR), part(&mut page.bytes, from, SECTOR));
                }
            }
        }
    }

    /// Returns whether all pages of a range are here, and each one `is_so`: with the sectors of the
    /// range in it.
    fn all(&self, at: u64, len_bytes: usize, is_so: impl Fn(&Page, u8) -> bool) -> bool {
        let mut there = self.pages.range(pages_of(at, len_bytes));
        pages_of(at, len_bytes).all(|number| {
            let (start, range) = part_in(number, at, len_bytes);
            there.next().is_some_and(|(here, page)| *here == number && is_so(page, sectors(start, range.len())))
        })
    }

    fn has(&self, at: u64, len_bytes: usize) -> bool {
        self.all(at, len_bytes, Page::has)
    }

    /// Hands the content of a range to `to`, piece by piece, each with its place in the range.
    /// Returns `false`, and hands out nothing, if some of it is not here.
    pub fn read(&mut self, at: u64, len_bytes: usize, mut to: impl FnMut(usize, &[u8])) -> bool {
        if !self.has(at, len_bytes) {
            return false;
        }
        self.counts.hits += 1;
        for (number, page) in self.pages.range_mut(pages_of(at, len_bytes)) {
            let (start, range) = part_in(*number, at, len_bytes);
            page.is_used = true;
            to(range.start, part(&mut page.bytes, start, range.len()));
        }
        true
    }

    /// Notes that a reader must wait for the disk.
    pub fn note_miss(&mut self) {
        self.counts.misses += 1;
    }

    /// Returns whether some of a range is not here, and all of that is being read from the disk.
    pub fn is_coming(&self, at: u64, len_bytes: usize) -> bool {
        !self.has(at, len_bytes) && self.all(at, len_bytes, |page, wanted| page.has(wanted) || page.coming > 0)
    }

    /// Begins to read a range from the disk, in whole pages. New pages are made only if the cache
    /// `keeps` the content, and if there is room.
    pub fn begin_fill(&mut self, at: u64, len_bytes: usize, keeps: bool) -> Fill {
        let pages = pages_of(at, len_bytes);
        let at = pages.start() * PAGE_BYTES as u64;
        let end = ((pages.end() + 1) * PAGE_BYTES as u64).min(self.len_bytes);
        if keeps {
            self.make(pages.clone());
        }
        let mut held = Vec::new();
        for (number, page) in self.pages.range_mut(pages) {
            page.hold(&mut self.held_pages);
            page.coming += 1;
            held.push(*number);
        }
        Fill { at, len_bytes: end.saturating_sub(at) as usize, held }
    }

    /// Ends a read of the disk. `bytes` is the content that was read, if that went well. Newer
    /// content of the cache replaces its sectors in `bytes`. The other sectors go into the pages
    /// that the read holds, unless they are old by now.
    pub fn end_fill(&mut self, fill: &Fill, bytes: Option<&mut [u8]>) {
        let bytes = bytes.unwrap_or(&mut []);
        for (number, page) in self.pages.range_mut(pages_of(fill.at, fill.len_bytes)) {
            let is_held = fill.held.binary_search(number).is_ok();
            let (start, range) = part_in(*number, fill.at, fill.len_bytes);
            // Without bytes, the read has failed.
            page.end_fill(start, bytes.get_mut(range).unwrap_or(&mut []), is_held);
            if is_held {
                page.coming = page.coming.saturating_sub(1);
                page.is_spoiled &= page.coming > 0;
                page.release(&mut self.held_pages);
            }
        }
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
        if self.has(from, len_bytes) {
            return None;
        }
        self.counts.ahead_bytes += len_bytes as u64;
        Some((from, len_bytes))
    }

    /// Takes a write; `fill` puts its bytes in place. Returns `false`, and takes nothing, if there
    /// is no room for it now.
    pub fn write(&mut self, at: u64, len_bytes: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let is_full = self.waiting_bytes + len_bytes > MOST_WAITING || self.held_pages > self.most_pages / 2;
        if is_full && self.is_dirty() {
            return false;
        }
        self.make(pages_of(at, len_bytes));
        // There may be no room, or one of the pages may have been evicted for another.
        if !self.all(at, len_bytes, |_, _| true) {
            return false;
        }
        let Some(Joined { start, before, mut bytes }) = self.bytes_for(at, len_bytes) else { return false };
        let place = (at - start) as usize;
        fill(part(&mut bytes, place, len_bytes));
        // A page that the last write holds is held once for both.
        let is_held = |number: &u64| before > 0 && pages_of(start, before).contains(number);
        for (number, page) in self.pages.range_mut(pages_of(at, len_bytes)) {
            let (from, range) = part_in(*number, at, len_bytes);
            page.put(from, bytes.get(place..).and_then(|bytes| bytes.get(range)).unwrap_or(&[]));
            if !is_held(number) {
                page.hold(&mut self.held_pages);
            }
        }
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
        let mut bytes = self.spare(len_bytes).unwrap_or_default();
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
        self.keep_spare(bytes);
        self.done = number;
        self.waiting_bytes = self.waiting_bytes.saturating_sub(len_bytes);
        self.counts.disk_writes += 1;
        self.release(at, len_bytes);
    }

    /// Takes the memory of a read or write that is done, if it was of this length: a length that is
    /// often needed, in one piece. It has old bytes.
    pub fn spare(&mut self, len_bytes: usize) -> Option<Vec<u8>> {
        (self.spare.len() == len_bytes).then(|| core::mem::take(&mut self.spare)).filter(|spare| !spare.is_empty())
    }

    /// Keeps the memory of a read or write that is done.
    pub fn keep_spare(&mut self, bytes: Vec<u8>) {
        if bytes.len() == MOST_AT_ONCE {
            self.spare = bytes;
        }
    }

    /// Notes that the disk has failed to do the write that it had. Drops all writes that wait
    /// behind it, so that no write is on the disk without the writes before it. Forgets the content
    /// of all of them. Returns how many bytes are lost.
    pub fn failed(&mut self) -> usize {
        let under_way = self.under_way.take().map(|(at, len_bytes, _)| (at, len_bytes));
        let waiting = core::mem::take(&mut self.waiting);
        let lost: Vec<(u64, usize)> =
            under_way.into_iter().chain(waiting.iter().map(|write| (write.at, write.bytes.len()))).collect();
        self.mark(&lost, |page, sectors| {
            page.valid &= !sectors;
            page.is_spoiled = page.coming > 0;
        });
        lost.iter().for_each(|(at, len_bytes)| self.release(*at, *len_bytes));
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
        let mut bytes = disk[fill.at as usize..fill.at as usize + fill.len_bytes].to_vec();
        cache.end_fill(&fill, Some(&mut bytes));
        let place = (at - fill.at) as usize;
        bytes[place..place + len_bytes].to_vec()
    }

    #[test]
    fn what_was_written_is_read_before_the_disk_has_it() {
        let mut cache = Cache::new(1 << 20, 16);
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
        let mut cache = Cache::new(1 << 20, 64);
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
        assert_eq!((cache.done(), cache.last(), cache.is_dirty(), cache.held_pages), (5, 5, false, 0));
        assert_eq!(cache.counts().disk_writes, 4);
    }

    /// A directory's block is written once for all names that are put into it meanwhile.
    #[test]
    fn the_last_sector_of_the_last_write_is_replaced() {
        let mut cache = Cache::new(1 << 20, 64);
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
        assert_eq!((cache.done(), cache.held_pages, cache.waiting_bytes), (10, 0, 0));
    }

    /// Old content that was on its way from the disk does not replace content that was written
    /// meanwhile, even if the disk has the newer content by then.
    #[test]
    fn the_past_does_not_come_back() {
        let mut cache = Cache::new(1 << 20, 1);
        let fill = cache.begin_fill(0, 4096, true);
        let mut old = vec![1; 4096];
        assert!(put(&mut cache, 512, &[2; 512]));
        let (_, bytes) = cache.next_write().unwrap();
        cache.written(bytes);
        // There is no room for another page while this one is held.
        let other = cache.begin_fill(4096, 4096, true);
        cache.end_fill(&other, Some(&mut [9; 4096]));
        assert_eq!(get(&mut cache, 4096, 4096), None);
        cache.end_fill(&fill, Some(&mut old));
        let expected = [vec![1; 512], vec![2; 512], vec![1; 3072]].concat();
        assert_eq!((get(&mut cache, 0, 4096), old), (Some(expected.clone()), expected));
    }

    #[test]
    fn one_reads_the_disk_for_all() {
        let mut cache = Cache::new(1 << 20, 16);
        let fill = cache.begin_fill(4096, 8192, true);
        assert!(cache.is_coming(8192, 4096) && cache.is_coming(4608, 512));
        assert!(!cache.is_coming(8192, 8192), "the next page was not asked for");
        cache.end_fill(&fill, Some(&mut [3; 8192]));
        assert!(!cache.is_coming(8192, 4096) && get(&mut cache, 4096, 8192).is_some());
        // A read that fails leaves nothing.
        let fill = cache.begin_fill(0, 4096, true);
        cache.end_fill(&fill, None);
        assert!(!cache.is_coming(0, 4096) && get(&mut cache, 0, 512).is_none());
        // Without room, nothing is kept.
        let fill = cache.begin_fill(40960, 4096, false);
        cache.end_fill(&fill, Some(&mut [3; 4096]));
        assert_eq!((get(&mut cache, 40960, 512), cache.held_pages), (None, 0));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut cache = Cache::new(1 << 30, 1024);
        let taken = (0..1000u64).take_while(|number| put(&mut cache, number * (128 << 10), &[0; 65536])).count();
        assert_eq!(taken, 16);
        // One sector in each of many pages holds as many pages.
        let mut cache = Cache::new(1 << 30, 64);
        let taken = (0..1000u64).take_while(|number| put(&mut cache, number * 8192, &[0; 512])).count();
        assert_eq!(taken, 33);
        assert!(cache.pages() <= 64);
        while let Some((_, bytes)) = cache.next_write() {
            cache.written(bytes);
        }
        assert!(put(&mut cache, 1 << 20, &[0; 512]) && cache.pages() <= 64);
    }

    /// No write is on the disk without the writes before it.
    #[test]
    fn a_write_that_fails_takes_all_behind_it() {
        let mut cache = Cache::new(1 << 20, 16);
        assert!(put(&mut cache, 512, &[1; 512]));
        cache.next_write().unwrap();
        assert!(put(&mut cache, 0, &[2; 512]) && put(&mut cache, 4096, &[3; 1024]));
        assert_eq!(cache.failed(), 2048);
        assert!((0..8).all(|block| get(&mut cache, block * 512, 512).is_none()), "what the disk may not have");
        assert_eq!((cache.done(), cache.is_dirty(), cache.held_pages, cache.next_write()), (3, false, 0, None));
        assert!(put(&mut cache, 512, &[4; 512]) && cache.next_write().is_some());
    }

    /// Content that somebody else writes to the disk is read again, and waiting writes are not
    /// lost.
    #[test]
    fn what_others_write_is_not_hidden() {
        let mut cache = Cache::new(1 << 20, 16);
        let old = cache.begin_fill(0, 4096, true);
        cache.end_fill(&old, Some(&mut [1; 4096]));
        assert!(put(&mut cache, 4096, &[2; 512]));
        let coming = cache.begin_fill(8192, 4096, true);
        let half = cache.begin_fill(4096, 4096, true);
        cache.invalidate();
        cache.end_fill(&coming, Some(&mut [1; 4096]));
        let mut bytes = [1; 4096];
        cache.end_fill(&half, Some(&mut bytes));
        assert_eq!(
            (get(&mut cache, 0, 512), get(&mut cache, 8192, 512), get(&mut cache, 4608, 512)),
            (None, None, None)
        );
        assert_eq!((get(&mut cache, 4096, 512), bytes[0], bytes[512]), (Some(vec![2; 512]), 2, 1));
        let mut read = [7; 1024];
        cache.overlay(4096, &mut read);
        assert_eq!((read[0], read[512]), (2, 7));
        let fresh = cache.begin_fill(8192, 4096, true);
        cache.end_fill(&fresh, Some(&mut [5; 4096]));
        assert_eq!(get(&mut cache, 8192, 512), Some(vec![5; 512]));
    }

    /// A disk may claim any length.
    #[test]
    fn the_end_of_a_huge_disk_can_be_read() {
        let mut cache = Cache::new(u64::MAX, 64);
        let end = cache.len_bytes();
        for _ in 0..2 {
            for len_bytes in [512, 4096, 65536] {
                let at = end - len_bytes as u64;
                assert!(put(&mut cache, at, &vec![1; len_bytes]) && get(&mut cache, at, len_bytes).is_some());
                cache.ahead(at - 65536, 65536);
                cache.ahead(at, len_bytes);
                let fill = cache.begin_fill(at, len_bytes, true);
                cache.end_fill(&fill, None);
            }
        }
    }

    #[test]
    fn only_sequences_are_read_ahead() {
        let mut cache = Cache::new(1 << 20, 256);
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
        /// Reads see the last write, the pages stay few, and at each moment the disk is as it would
        /// be with the first so many writes, and the beginning of the next: also in the middle of a
        /// write, and when one fails.
        #[test]
        fn it_is_a_disk(steps in proptest::collection::vec((0u8..12, 0u64..120, 1usize..12, any::<u8>()), 1..300)) {
            const LEN: usize = 64 << 10;
            let mut cache = Cache::new(LEN as u64, 6);
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
                        if let Some((fill, mut bytes)) = fills.pop() {
                            cache.end_fill(&fill, (byte > 30).then_some(&mut bytes));
                        }
                    }
                }
                prop_assert!(cache.pages() <= 6);
            }
            for (fill, mut bytes) in fills {
                cache.end_fill(&fill, Some(&mut bytes));
            }
            while let Some((at, bytes)) = under_way.take().or_else(|| cache.next_write()) {
                disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
                cache.written(bytes);
            }
            prop_assert!(disk == newest && cache.held_pages == 0 && !cache.is_dirty());
        }
    }
}
