//! The content of a disk that is kept, in extents: what was read or written in one piece is kept in
//! one piece, and goes as one. So it takes as many steps to keep 64 KiB as to keep 512 bytes.
//!
//! Extents do not overlap. Each knows which of its sectors are valid. It is held, and not evicted,
//! while a write of it waits or while it is being read from the disk: so the disk's older content
//! never takes the place of newer content.

use super::{MOST_AT_ONCE, SECTOR};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::mem::take;
use core::ops::Range;

/// What an extent takes beside its bytes, at most: its place in the map, and the heap's own words.
const OVERHEAD: usize = 256;
/// The most pieces of memory that are kept for the next extents and writes.
const MOST_SPARES: usize = 2;

struct Extent {
    len_bytes: usize,
    /// No bytes until there is content, and then `len_bytes`.
    bytes: Vec<u8>,
    /// A bit for each sector.
    valid: u128,
    /// How many writes and reads are under way that need the extent.
    held: u32,
    /// How many of them are reads of the disk, each of the whole extent.
    coming: u32,
    /// Whether the content from these reads is old by now.
    is_spoiled: bool,
    /// Whether it was used since the hand has passed by: an extent that is written or read once,
    /// and never again, goes first.
    is_used: bool,
}

impl Extent {
    fn new(len_bytes: usize) -> Extent {
        Extent { len_bytes, bytes: Vec::new(), valid: 0, held: 0, coming: 0, is_spoiled: false, is_used: false }
    }

    /// Returns what it takes of the cache's room.
    fn cost(&self) -> usize {
        self.len_bytes + OVERHEAD
    }

    /// Returns whether the extent, which is at `first`, has bytes of a range.
    fn overlaps(&self, first: u64, range: &Range<u64>) -> bool {
        !range.is_empty() && first < range.end && range.start < first + self.len_bytes as u64
    }

    fn has(&self, wanted: u128) -> bool {
        self.valid & wanted == wanted
    }

    /// Returns whether nothing would be lost without it.
    fn is_idle(&self) -> bool {
        self.valid == 0 && self.held == 0
    }

    /// Sees to it that there is memory for the content. Returns `false` if there is none right now.
    fn reserve(&mut self) -> bool {
        self.bytes.try_reserve_exact(self.len_bytes - self.bytes.len()).is_ok()
    }

    /// Takes content from `start` on. The memory must be reserved.
    fn put(&mut self, start: usize, from: &[u8]) {
        if from.len() == self.len_bytes {
            self.bytes.clear();
            self.bytes.extend_from_slice(from);
        } else {
            self.bytes.resize(self.len_bytes, 0);
            copy(part(&mut self.bytes, start, from.len()), from);
        }
        self.valid |= sectors(start, from.len());
    }

    /// Calls `each` for the places of the sectors from `start` on that are valid, or are not.
    fn sectors_that(
        &mut self,
        are_valid: bool,
        start: usize,
        len_bytes: usize,
        mut each: impl FnMut(&mut Extent, usize),
    ) {
        for place in (start..start + len_bytes).step_by(SECTOR) {
            if self.has(sectors(place, SECTOR)) == are_valid {
                each(self, place);
            }
        }
    }

    /// Copies the valid sectors from `start` on over `to`.
    fn overlay(&mut self, start: usize, to: &mut [u8]) {
        if self.valid == 0 {
            return;
        }
        let len_bytes = to.len();
        if self.has(sectors(start, len_bytes)) {
            return copy(to, part(&mut self.bytes, start, len_bytes));
        }
        self.sectors_that(true, start, len_bytes, |extent, place| {
            copy(part(to, place - start, SECTOR), part(&mut extent.bytes, place, SECTOR));
        });
    }

    /// Takes the whole content as the disk has it. Sectors that are valid already are newer.
    fn complete(&mut self, read: &mut [u8]) {
        if !self.reserve() {
            return;
        }
        if self.valid == 0 {
            return self.put(0, read);
        }
        self.sectors_that(false, 0, read.len(), |extent, place| extent.put(place, part(read, place, SECTOR)));
    }
}

/// The extents of a disk. Positions and lengths are in bytes, and multiples of 512.
pub(super) struct Extents {
    map: BTreeMap<u64, Extent>,
    most_bytes: usize,
    /// What all extents take, and what those take that are held.
    taken_bytes: usize,
    held_bytes: usize,
    /// Where the search for an extent to evict goes on.
    hand: u64,
    /// Memory of extents and writes that are done, [`MOST_AT_ONCE`] bytes each.
    spares: Vec<Vec<u8>>,
}

/// The part of a range that is in one extent: where the part begins in the extent, and its place in
/// the range.
type Part = (usize, Range<usize>);

/// Returns the part of a range in an extent at `first`.
fn part_in(first: u64, extent_bytes: usize, at: u64, len_bytes: usize) -> Part {
    let from = at.max(first);
    let to = (at + len_bytes as u64).min(first + extent_bytes as u64).max(from);
    ((from - first) as usize, (from - at) as usize..(to - at) as usize)
}

/// Returns the bits of the sectors of a part of an extent.
fn sectors(start: usize, len_bytes: usize) -> u128 {
    let first = start / SECTOR;
    let count = (start + len_bytes).div_ceil(SECTOR) - first;
    let bits = if count >= 128 { u128::MAX } else { (1 << count) - 1 };
    bits << first.min(127)
}

/// Returns `length` bytes from `start` on.
pub(super) fn part(bytes: &mut [u8], start: usize, len_bytes: usize) -> &mut [u8] {
    bytes.get_mut(start..start + len_bytes).unwrap_or(&mut [])
}

/// Copies as much as both have.
fn copy(to: &mut [u8], from: &[u8]) {
    let len_bytes = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..len_bytes), from.get(..len_bytes)) {
        to.copy_from_slice(from);
    }
}

impl Extents {
    pub(super) fn new(most_bytes: usize) -> Extents {
        let (map, spares) = (BTreeMap::new(), Vec::new());
        Extents { map, most_bytes, taken_bytes: 0, held_bytes: 0, hand: 0, spares }
    }

    /// Returns how many bytes of the disk are kept.
    pub(super) fn len_bytes(&self) -> usize {
        self.taken_bytes.saturating_sub(self.map.len() * OVERHEAD)
    }

    /// Returns whether more than half of the room is held.
    pub(super) fn are_mostly_held(&self) -> bool {
        self.held_bytes > self.most_bytes / 2
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Checks what always holds.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut end = 0;
        for (first, extent) in &self.map {
            assert!(*first >= end && extent.len_bytes > 0, "extents overlap at {first}");
            end = first + extent.len_bytes as u64;
            assert!(!extent.is_idle(), "an extent at {first} has nothing");
            assert!(extent.valid == 0 || extent.bytes.len() == extent.len_bytes);
        }
        assert_eq!(self.taken_bytes, self.map.values().map(Extent::cost).sum::<usize>());
        assert_eq!(
            self.held_bytes,
            self.map.values().filter(|extent| extent.held > 0).map(Extent::cost).sum::<usize>()
        );
        assert!(self.taken_bytes <= self.most_bytes);
    }

    /// Returns the keys between which the extents of a range are.
    fn keys(&self, at: u64, len_bytes: usize) -> Range<u64> {
        let before = self.map.range(..=at).next_back();
        let reaches = |(first, extent): &(&u64, &Extent)| **first + extent.len_bytes as u64 > at;
        let first = before.filter(reaches).map_or(at, |(first, _)| *first);
        first..(at + len_bytes as u64).max(first)
    }

    /// Returns the extents of a range, each with where it begins and its part of the range.
    fn parts(&mut self, at: u64, len_bytes: usize) -> impl Iterator<Item = (u64, &mut Extent, Part)> {
        let keys = self.keys(at, len_bytes);
        self.map.range_mut(keys).map(move |(first, extent)| {
            let part = part_in(*first, extent.len_bytes, at, len_bytes);
            (*first, extent, part)
        })
    }

    /// Returns whether there are extents for all of a range, and each one `is_so`: with the sectors
    /// of the range in it.
    fn all(&self, at: u64, len_bytes: usize, is_so: impl Fn(&Extent, u128) -> bool) -> bool {
        let mut next = 0;
        for (first, extent) in self.map.range(self.keys(at, len_bytes)) {
            let (start, place) = part_in(*first, extent.len_bytes, at, len_bytes);
            if place.start != next || !is_so(extent, sectors(start, place.len())) {
                return false;
            }
            next = place.end;
        }
        next == len_bytes
    }

    /// Returns whether all of a range is here.
    pub(super) fn has(&self, at: u64, len_bytes: usize) -> bool {
        self.all(at, len_bytes, Extent::has)
    }

    /// Returns whether all of a range is here or is being read from the disk.
    pub(super) fn has_or_reads(&self, at: u64, len_bytes: usize) -> bool {
        self.all(at, len_bytes, |extent, wanted| extent.has(wanted) || extent.coming > 0)
    }

    /// Hands the content of a range, which must be here, to `to`, piece by piece, each with its
    /// place in the range.
    pub(super) fn read(&mut self, at: u64, len_bytes: usize, mut to: impl FnMut(usize, &[u8])) {
        for (_, extent, (start, place)) in self.parts(at, len_bytes) {
            extent.is_used = true;
            to(place.start, part(&mut extent.bytes, start, place.len()));
        }
    }

    /// Copies the valid sectors of a range over `bytes`, which were read from the disk.
    pub(super) fn overlay(&mut self, at: u64, bytes: &mut [u8]) {
        for (_, extent, (start, place)) in self.parts(at, bytes.len()) {
            extent.overlay(start, part(bytes, place.start, place.len()));
        }
    }

    /// Evicts an extent that has not been used for a while. Returns `false` if all are held.
    fn evict(&mut self) -> bool {
        // Twice round: the first time may find that all were used.
        for _ in 0..2 * (self.map.len() + 1) {
            let Some((&first, extent)) = self.map.range_mut(self.hand..).next() else {
                self.hand = 0;
                continue;
            };
            self.hand = first + 1;
            let is_used = take(&mut extent.is_used);
            if extent.held == 0 && !is_used {
                self.remove(first);
                return true;
            }
        }
        false
    }

    fn remove(&mut self, first: u64) {
        if let Some(extent) = self.map.remove(&first) {
            self.taken_bytes = self.taken_bytes.saturating_sub(extent.cost());
            self.keep_spare(extent.bytes);
        }
    }

    /// Returns the extent that has all of a range, and where the range begins in it.
    fn whole(&mut self, at: u64, len_bytes: usize) -> Option<(&mut Extent, usize)> {
        let (first, extent) = self.map.range_mut(..=at).next_back()?;
        let start = usize::try_from(at - first).ok()?;
        (start.checked_add(len_bytes)? <= extent.len_bytes).then_some((extent, start))
    }

    /// Makes extents for those parts of a range that have none, as long as there is room.
    pub(super) fn make(&mut self, at: u64, len_bytes: usize) {
        let mut gaps = Vec::new();
        let mut next = 0;
        for (_, extent, (start, place)) in self.parts(at, len_bytes) {
            // It is needed more than the others, which make room, if it has what is needed.
            extent.is_used = extent.has(sectors(start, place.len()));
            gaps.push(next..place.start);
            next = place.end;
        }
        gaps.push(next..len_bytes);
        for gap in gaps {
            for start in gap.clone().step_by(MOST_AT_ONCE) {
                let extent = Extent::new((gap.end - start).min(MOST_AT_ONCE));
                while self.taken_bytes + extent.cost() > self.most_bytes {
                    if !self.evict() {
                        return;
                    }
                }
                self.taken_bytes += extent.cost();
                self.map.insert(at + start as u64, extent);
            }
        }
    }

    /// Sees to it that there are extents for a range, and memory for their content. Returns `false`
    /// if there is no room for them now.
    pub(super) fn reserve(&mut self, at: u64, len_bytes: usize) -> bool {
        // As most writes of a filesystem: a block that it has written before.
        if let Some((extent, start)) = self.whole(at, len_bytes)
            && extent.valid != 0
        {
            extent.is_used = extent.has(sectors(start, len_bytes));
            return true;
        }
        self.make(at, len_bytes);
        // An extent of the range may have been evicted for another.
        let has_room = self.all(at, len_bytes, |_, _| true) && {
            let mut spares = take(&mut self.spares);
            let has_memory = self.parts(at, len_bytes).all(|(_, extent, _)| {
                if extent.bytes.capacity() == 0 && extent.len_bytes == MOST_AT_ONCE {
                    extent.bytes = spares.pop().unwrap_or_default();
                    extent.bytes.clear();
                }
                extent.reserve()
            });
            self.spares = spares;
            has_memory
        };
        if !has_room {
            self.forget_idle(at, len_bytes);
        }
        has_room
    }

    /// Takes content from `at` on, for which room must be reserved, and holds its extents. Those
    /// that overlap the range `before` are held already.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8], before: Range<u64>) {
        let mut held_bytes = 0;
        for (first, extent, (start, place)) in self.parts(at, bytes.len()) {
            extent.put(start, bytes.get(place).unwrap_or(&[]));
            if !extent.overlaps(first, &before) {
                held_bytes += if extent.held == 0 { extent.cost() } else { 0 };
                extent.held += 1;
            }
        }
        self.held_bytes += held_bytes;
    }

    /// Releases the extents of a range that was written.
    pub(super) fn release(&mut self, at: u64, len_bytes: usize) {
        self.release_shared(at, len_bytes, 0..u64::MAX);
    }

    /// Releases the extents of a range that overlap the range `other` as well.
    pub(super) fn release_shared(&mut self, at: u64, len_bytes: usize, other: Range<u64>) {
        let mut released_bytes = 0;
        for (first, extent, _) in self.parts(at, len_bytes) {
            if extent.overlaps(first, &other) {
                released_bytes += release(extent);
            }
        }
        self.held_bytes = self.held_bytes.saturating_sub(released_bytes);
        self.forget_idle(at, len_bytes);
    }

    /// Drops extents of a range that have no content, and of which none is coming.
    pub(super) fn forget_idle(&mut self, at: u64, len_bytes: usize) {
        let idle = |(first, extent): (&u64, &Extent)| extent.is_idle().then_some(*first);
        while let Some(first) = self.map.range(self.keys(at, len_bytes)).find_map(idle) {
            self.remove(first);
        }
    }

    /// Holds the extents that are whole in a range, which is read from the disk. Returns where they
    /// begin.
    pub(super) fn begin_fill(&mut self, at: u64, len_bytes: usize) -> Vec<u64> {
        let (mut held, mut held_bytes) = (Vec::new(), 0);
        for (first, extent, (_, place)) in self.parts(at, len_bytes) {
            if place.len() == extent.len_bytes {
                held_bytes += if extent.held == 0 { extent.cost() } else { 0 };
                extent.held += 1;
                extent.coming += 1;
                held.push(first);
            }
        }
        self.held_bytes += held_bytes;
        held
    }

    /// Ends a read of the disk: gives its content, if that went well, to the extents that it holds,
    /// unless the content is old by now.
    pub(super) fn end_fill(&mut self, at: u64, len_bytes: usize, held: &[u64], mut bytes: Option<Vec<u8>>) {
        let mut released_bytes = 0;
        for (first, extent, (_, place)) in self.parts(at, len_bytes) {
            if held.binary_search(&first).is_err() {
                continue;
            }
            if let Some(read) = bytes.as_mut().filter(|_| !extent.is_spoiled) {
                if extent.valid == 0 && extent.len_bytes == read.len() {
                    // The memory becomes the extent's.
                    extent.bytes = take(read);
                    extent.valid = sectors(0, extent.len_bytes);
                } else {
                    extent.complete(part(read, place.start, place.len()));
                }
            }
            extent.coming = extent.coming.saturating_sub(1);
            extent.is_spoiled &= extent.coming > 0;
            released_bytes += release(extent);
        }
        self.held_bytes = self.held_bytes.saturating_sub(released_bytes);
        self.forget_idle(at, len_bytes);
        self.keep_spare(bytes.unwrap_or_default());
    }

    /// Drops the known content, except for `dirty` ranges, which the disk does not have yet.
    pub(super) fn invalidate(&mut self, dirty: &[(u64, usize)]) {
        self.shrink();
        for extent in self.map.values_mut() {
            extent.is_spoiled = extent.coming > 0;
            extent.valid = 0;
        }
        for (at, len_bytes) in dirty.iter().copied() {
            self.parts(at, len_bytes)
                .for_each(|(_, extent, (start, place))| extent.valid |= sectors(start, place.len()));
        }
    }

    /// Drops the content of a range that was to be written and was not, and releases its extents.
    pub(super) fn lose(&mut self, at: u64, len_bytes: usize) {
        for (_, extent, (start, place)) in self.parts(at, len_bytes) {
            extent.valid &= !sectors(start, place.len());
            extent.is_spoiled = extent.coming > 0;
        }
        self.release(at, len_bytes);
    }

    /// Drops all extents that are not held, and all memory that is kept.
    pub(super) fn shrink(&mut self) {
        self.map.retain(|_, extent| extent.held > 0);
        self.taken_bytes = self.map.values().map(Extent::cost).sum();
        self.spares = Vec::new();
    }

    /// Takes memory of this length that is not needed any more, if there is some. It has old bytes.
    pub(super) fn spare(&mut self, len_bytes: usize) -> Option<Vec<u8>> {
        if len_bytes == MOST_AT_ONCE { self.spares.pop() } else { None }
    }

    /// Keeps memory that is not needed any more, if it has the length that is often needed.
    pub(super) fn keep_spare(&mut self, bytes: Vec<u8>) {
        if bytes.len() == MOST_AT_ONCE
            && bytes.capacity() == MOST_AT_ONCE
            && self.spares.len() < MOST_SPARES
            && self.spares.try_reserve(1).is_ok()
        {
            self.spares.push(bytes);
        }
    }
}

/// Releases an extent for a read or write. Returns how many bytes less are held.
fn release(extent: &mut Extent) -> usize {
    let is_last = extent.held == 1;
    extent.held = extent.held.saturating_sub(1);
    if is_last { extent.cost() } else { 0 }
}
