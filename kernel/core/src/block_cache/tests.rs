//! Tests of the cache, with a disk that is a model.

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
        early(&mut cache, 8192) && early(&mut cache, 0) && cache.next_write().is_some() && cache.next_write().is_some()
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
    assert_eq!((cache.done(), cache.is_dirty(), cache.content.held_bytes(), cache.next_write()), (3, false, 0, None));
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
    assert_eq!((get(&mut cache, 0, 512), get(&mut cache, 8192, 512), get(&mut cache, 4608, 512)), (None, None, None));
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
