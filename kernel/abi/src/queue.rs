//! A single-producer single-consumer ring of 64-bit entries in memory that kernel and driver share.
//!
//! **The kernel does not trust the driver.** Each end keeps its own position in private memory, and
//! reads only the other end's position from shared memory. A position that cannot be true is a
//! [`Lie`], and no entry is taken then. A driver in 32-bit code looks at half of the kernel's
//! position ([`Count`]), and could do nothing about a lie of the kernel. The end that takes an
//! entry must check its contents. The code is the same on both sides and never forms a reference to
//! the shared memory: all access goes through [`Words`], which either side implements with volatile
//! loads and stores.

use core::marker::PhantomData;
use core::ops::Range;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The upper half of a word.
const UPPER_HALF: u64 = !(u32::MAX as u64);

/// Shared memory as 64-bit words.
pub trait Words {
    /// Reads word `index`; an index outside the memory reads 0.
    fn load(&self, index: usize) -> u64;
    /// Writes word `index`; an index outside the memory is ignored.
    fn store(&self, index: usize, value: u64);

    /// Reads the lower half of word `index`, as [`Words::load`] does.
    #[inline]
    fn load_half(&self, index: usize) -> u32 {
        self.load(index) as u32
    }

    /// Writes the lower half of word `index`, as [`Words::store`] does.
    #[inline]
    fn store_half(&self, index: usize, value: u32) {
        self.store(index, self.load(index) & UPPER_HALF | u64::from(value));
    }

    /// Reads `N` words from word `first` on. Words outside the memory read 0, or else all of them
    /// do.
    #[inline]
    fn load_words<const N: usize>(&self, first: usize) -> [u64; N] {
        core::array::from_fn(|index| self.load(first.wrapping_add(index)))
    }

    /// Writes the whole words of `bytes`, from word `first` on. Words outside the memory are
    /// ignored, or else nothing is written.
    #[inline]
    fn store_bytes(&self, first: usize, bytes: &[u8]) {
        for (index, word) in bytes.as_chunks().0.iter().enumerate() {
            self.store(first + index, u64::from_le_bytes(*word));
        }
    }
}

/// One end of queues, in memory of a length that is known when the code is compiled: the checks of
/// most indices are left out.
pub trait HasQueues {
    /// The number of words of the memory.
    const WORDS: usize;
}

impl<W: Words> Words for &W {
    fn load(&self, index: usize) -> u64 {
        (**self).load(index)
    }
    fn store(&self, index: usize, value: u64) {
        (**self).store(index, value)
    }
    fn load_half(&self, index: usize) -> u32 {
        (**self).load_half(index)
    }
    fn store_half(&self, index: usize, value: u32) {
        (**self).store_half(index, value);
    }
    fn load_words<const N: usize>(&self, first: usize) -> [u64; N] {
        (**self).load_words(first)
    }
    fn store_bytes(&self, first: usize, bytes: &[u8]) {
        (**self).store_bytes(first, bytes);
    }
}

/// Copies a value of `WORDS` words out of shared memory, from word `first` on.
pub fn read_value<const WORDS: usize, T: FromBytes>(words: &impl Words, first: usize) -> Option<T> {
    let copy: [u64; WORDS] = words.load_words(first);
    T::read_from_bytes(copy.as_bytes()).ok()
}

/// Writes the first `count` words of a value into shared memory, from word `first` on.
pub fn write_value<T: IntoBytes + Immutable>(words: &impl Words, first: usize, value: &T, count: usize) {
    let bytes = value.as_bytes();
    words.store_bytes(first, bytes.get(..8 * count).unwrap_or(bytes));
}

/// The place of a ring in shared memory: `base` is the index of its first word, `capacity` is the
/// number of its entries, a power of two.
///
/// Words 0 and 8 of the ring (each in its own cache line) count the entries that were ever put and
/// taken; the entries begin at word 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the first word.
    pub base: usize,
    /// Number of entries, a power of two.
    pub capacity: usize,
}

/// Word of a ring that counts the entries ever put.
pub const PUT: usize = 0;
/// Word of a ring that counts the entries ever taken.
pub const TAKEN: usize = 8;
/// Word of a ring where its first entry begins.
pub const ENTRIES: usize = 16;

impl Place {
    /// Describes a ring at word `base` with room for `capacity` entries, which must be a power of
    /// two.
    pub const fn new(base: usize, capacity: usize) -> Place {
        assert!(capacity.is_power_of_two());
        Place { base, capacity }
    }

    /// Returns the first word behind the ring.
    pub const fn end(self) -> usize {
        self.base + ENTRIES + self.capacity
    }

    fn entry(self, position: u64) -> usize {
        self.base + ENTRIES + (position as usize & (self.capacity - 1))
    }
}

/// A ring whose place is known when the code is compiled. Both ends of a ring take its place from
/// its type, so that no end spends an instruction on it.
pub trait Ring {
    /// The place.
    const PLACE: Place;
}

/// Two rings of requests.
pub trait Rings {
    /// The two rings: the numbers of the requests to carry out, and of the completed requests.
    const RINGS: [Place; 2];
}

/// The requests to carry out, of the rings `R`.
pub struct Submit<R>(PhantomData<R>);
/// The completed requests, of the rings `R`.
pub struct Complete<R>(PhantomData<R>);

impl<R: Rings> Ring for Submit<R> {
    const PLACE: Place = R::RINGS[0];
}

impl<R: Rings> Ring for Complete<R> {
    const PLACE: Place = R::RINGS[1];
}

/// The other side's position cannot be true: it went backwards, or ahead by more than the ring
/// holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lie {
    /// The position that the other side claims.
    pub claimed: u64,
    /// The position that this side has counted.
    pub own: u64,
}

/// A position, as an end keeps it: a count of entries.
///
/// In shared memory it has 64 bits and does not wrap: no machine puts 2^64 entries. 32-bit code
/// keeps the lower half, as it needs two instructions and more for a word of 64 bits. **The kernel
/// keeps all of it, so that a lie is seen.**
pub trait Count: Copy + PartialEq {
    /// The position of an empty ring.
    const ZERO: Self;

    /// Reads the position in word `index`.
    fn load(words: &impl Words, index: usize) -> Self;

    /// Writes this position to word `index`, which has `before`: an earlier position, by less than
    /// half of all positions.
    fn store(self, before: Self, words: &impl Words, index: usize);

    /// Returns the position `count` entries on.
    fn plus(self, count: usize) -> Self;

    /// Returns the next position.
    #[inline]
    fn next(self) -> Self {
        self.plus(1)
    }

    /// Returns how far this position is ahead of an earlier one. If it is behind by less than half
    /// of all positions, that is more than any ring has.
    fn ahead_of(self, earlier: Self) -> u64;

    /// Returns the position as far as it is kept.
    fn whole(self) -> u64;
}

impl Count for u64 {
    const ZERO: u64 = 0;

    #[inline]
    fn load(words: &impl Words, index: usize) -> u64 {
        words.load(index)
    }

    #[inline]
    fn store(self, _: u64, words: &impl Words, index: usize) {
        words.store(index, self);
    }

    #[inline]
    fn plus(self, count: usize) -> u64 {
        self.wrapping_add(count as u64)
    }

    #[inline]
    fn ahead_of(self, earlier: u64) -> u64 {
        self.wrapping_sub(earlier)
    }

    #[inline]
    fn whole(self) -> u64 {
        self
    }
}

impl Count for u32 {
    const ZERO: u32 = 0;

    #[inline]
    fn load(words: &impl Words, index: usize) -> u32 {
        words.load_half(index)
    }

    #[inline]
    fn store(self, before: u32, words: &impl Words, index: usize) {
        if self < before {
            let upper = words.load(index) & UPPER_HALF;
            return words.store(index, upper.wrapping_add(1 << 32) | u64::from(self));
        }
        words.store_half(index, self);
    }

    #[inline]
    fn plus(self, count: usize) -> u32 {
        self.wrapping_add(count as u32)
    }

    #[inline]
    fn ahead_of(self, earlier: u32) -> u64 {
        self.wrapping_sub(earlier).into()
    }

    #[inline]
    fn whole(self) -> u64 {
        self.into()
    }
}

/// The count of this code's width.
#[cfg(target_pointer_width = "64")]
pub type Native = u64;
/// The count of this code's width.
#[cfg(target_pointer_width = "32")]
pub type Native = u32;

/// The end that puts entries into a ring.
pub struct Producer<R, C = Native> {
    put: C,
    taken: C,
    ring: PhantomData<fn() -> R>,
}

impl<R: Ring, C: Count> Producer<R, C> {
    /// Makes the producer's end of an empty ring.
    #[allow(clippy::new_without_default, reason = "an end is made once, beside the memory of its ring")]
    pub const fn new() -> Producer<R, C> {
        Producer { put: C::ZERO, taken: C::ZERO, ring: PhantomData }
    }

    /// Returns how many more entries fit into the ring.
    #[inline]
    pub fn room(&mut self, words: &impl Words) -> Result<usize, Lie> {
        self.taken = Self::look(words, self.put, self.taken)?;
        Ok(R::PLACE.capacity - self.put.ahead_of(self.taken) as usize)
    }

    /// Returns the other side's position, if it can be true: `put` entries were put, and `taken`
    /// were known to be taken.
    #[inline]
    fn look(words: &impl Words, put: C, taken: C) -> Result<C, Lie> {
        let claimed = C::load(words, R::PLACE.base + TAKEN);
        if claimed.ahead_of(taken) > put.ahead_of(taken) {
            return Err(Lie { claimed: claimed.whole(), own: put.whole() });
        }
        Ok(claimed)
    }

    /// Returns the entry that was put at `position`. **The other side can change it.**
    pub fn entry(words: &impl Words, position: u64) -> u64 {
        words.load(R::PLACE.entry(position))
    }

    /// Puts `entry` into the ring; `Ok(false)` if the ring is full.
    #[inline]
    pub fn put(&mut self, words: &impl Words, entry: u64) -> Result<bool, Lie> {
        self.putting(words).put(entry)
    }

    /// Begins to put several entries, which the other side sees together when the result is
    /// dropped.
    #[inline]
    pub fn putting<W: Words>(&mut self, words: W) -> Putting<'_, R, C, W> {
        let (put, taken) = (self.put, self.taken);
        Putting { end: self, words, put, taken }
    }
}

/// Several entries that are put into a ring.
///
/// The positions are in registers meanwhile. In the end itself, the compiler would read and write
/// them for each entry: what others may write, may be the end as well.
pub struct Putting<'a, R: Ring, C: Count, W: Words> {
    end: &'a mut Producer<R, C>,
    words: W,
    put: C,
    taken: C,
}

impl<R: Ring, C: Count, W: Words> Putting<'_, R, C, W> {
    /// Puts `entry` into the ring; `Ok(false)` if the ring is full.
    #[inline(always)]
    pub fn put(&mut self, entry: u64) -> Result<bool, Lie> {
        let is_full = |taken| self.put.ahead_of(taken) >= R::PLACE.capacity as u64;
        // Only read the other side's position (and its cache line) when the ring looks full.
        if is_full(self.taken) {
            let taken = Producer::<R, C>::look(&self.words, self.put, self.taken)?;
            if is_full(taken) {
                return Ok(false);
            }
            self.taken = taken;
        }
        self.put_within_room(entry);
        Ok(true)
    }

    /// Puts `entry` into a ring that is known to have room. Otherwise the oldest entry is lost.
    #[inline(always)]
    pub fn put_within_room(&mut self, entry: u64) {
        self.words.store(R::PLACE.entry(self.put.whole()), entry);
        self.put = self.put.next();
    }

    /// Puts an entry of 32 bits into a ring that is known to have room. No entry of the ring has
    /// ever had more.
    #[inline(always)]
    pub fn put_half(&mut self, entry: u32) {
        self.words.store_half(R::PLACE.entry(self.put.whole()), entry);
        self.put = self.put.next();
    }
}

impl<R: Ring, C: Count, W: Words> Drop for Putting<'_, R, C, W> {
    #[inline(always)]
    fn drop(&mut self) {
        let before = self.end.put;
        (self.end.put, self.end.taken) = (self.put, self.taken);
        if self.put != before {
            self.put.store(before, &self.words, R::PLACE.base + PUT);
        }
    }
}

// The kernel's end.
impl<R: Ring> Producer<R, u64> {
    /// Returns how many entries this end has put since the ring was made.
    pub fn position(&self) -> u64 {
        self.put
    }

    /// Returns how many of this end's entries the other side has taken.
    pub fn taken(&mut self, words: &impl Words) -> Result<u64, Lie> {
        self.room(words)?;
        Ok(self.taken)
    }
}

/// The end that takes entries out of a ring.
pub struct Consumer<R, C = Native> {
    taken: C,
    put: C,
    ring: PhantomData<fn() -> R>,
}

impl<R: Ring, C: Count> Consumer<R, C> {
    /// Makes the consumer's end of an empty ring.
    #[allow(clippy::new_without_default, reason = "an end is made once, beside the memory of its ring")]
    pub const fn new() -> Consumer<R, C> {
        Consumer { taken: C::ZERO, put: C::ZERO, ring: PhantomData }
    }

    /// Returns how many entries can be taken.
    #[inline]
    pub fn len(&mut self, words: &impl Words) -> Result<usize, Lie> {
        self.put = Self::look(words, self.taken, self.put)?;
        Ok(self.put.ahead_of(self.taken) as usize)
    }

    /// Returns whether there is no entry, if the other side is believed.
    #[inline]
    pub fn is_empty(&self, words: &impl Words) -> bool {
        C::load(words, R::PLACE.base + PUT) == self.taken
    }

    /// Returns how many entries can be taken, if the other side is believed.
    #[inline]
    pub fn believed_len(&self, words: &impl Words) -> u64 {
        C::load(words, R::PLACE.base + PUT).ahead_of(self.taken)
    }

    /// Returns the other side's position, if it can be true: `taken` entries were taken, and `put`
    /// were known to be put.
    #[inline]
    fn look(words: &impl Words, taken: C, put: C) -> Result<C, Lie> {
        let claimed = C::load(words, R::PLACE.base + PUT);
        let ahead = claimed.ahead_of(taken);
        if ahead < put.ahead_of(taken) || ahead > R::PLACE.capacity as u64 {
            return Err(Lie { claimed: claimed.whole(), own: taken.whole() });
        }
        Ok(claimed)
    }

    /// Returns the entry at `position`, and leaves it there. **The other side can change it until
    /// it is taken.**
    pub fn entry(words: &impl Words, position: u64) -> u64 {
        words.load(R::PLACE.entry(position))
    }

    /// Takes the oldest entry, if there is one.
    #[inline]
    pub fn take(&mut self, words: &impl Words) -> Result<Option<u64>, Lie> {
        self.taking(words).take()
    }

    /// Begins to take several entries. The other side sees that when the result is dropped.
    #[inline]
    pub fn taking<W: Words>(&mut self, words: W) -> Taking<'_, R, C, W> {
        let (taken, put) = (self.taken, self.put);
        Taking { end: self, words, taken, put }
    }
}

/// Several entries that are taken out of a ring. The positions are in registers meanwhile, as in
/// [`Putting`].
pub struct Taking<'a, R: Ring, C: Count, W: Words> {
    end: &'a mut Consumer<R, C>,
    words: W,
    taken: C,
    put: C,
}

impl<R: Ring, C: Count, W: Words> Taking<'_, R, C, W> {
    /// Takes the oldest entry, if there is one.
    #[inline(always)]
    pub fn take(&mut self) -> Result<Option<u64>, Lie> {
        if self.taken == self.put {
            self.put = Consumer::<R, C>::look(&self.words, self.taken, self.put)?;
        }
        Ok(self.take_known())
    }

    /// Looks for entries, and believes the other side. After this, [`Taking::take_known`] returns
    /// all that are there, but no more than `most`.
    #[inline(always)]
    pub fn look(&mut self, most: usize) {
        let put = C::load(&self.words, R::PLACE.base + PUT);
        self.put = if put.ahead_of(self.taken) > most as u64 { self.taken.plus(most) } else { put };
    }

    /// Takes the oldest entry, if it is known that there is one.
    #[inline(always)]
    pub fn take_known(&mut self) -> Option<u64> {
        if self.taken == self.put {
            return None;
        }
        let entry = self.words.load(R::PLACE.entry(self.taken.whole()));
        self.taken = self.taken.next();
        Some(entry)
    }
}

impl<R: Ring, C: Count, W: Words> Drop for Taking<'_, R, C, W> {
    #[inline(always)]
    fn drop(&mut self) {
        let before = self.end.taken;
        (self.end.taken, self.end.put) = (self.taken, self.put);
        if self.taken != before {
            self.taken.store(before, &self.words, R::PLACE.base + TAKEN);
        }
    }
}

// The kernel's end.
impl<R: Ring> Consumer<R, u64> {
    /// Returns how many entries the other side has put since the ring was made.
    pub fn put(&mut self, words: &impl Words) -> Result<u64, Lie> {
        self.len(words)?;
        Ok(self.put)
    }

    /// Returns the positions of the entries that can be taken, from `position` on. There are none
    /// if the other side lies about its position.
    pub fn ahead(&mut self, words: &impl Words, position: u64) -> Range<u64> {
        let end = if self.len(words).is_ok() { self.put } else { self.taken };
        position.max(self.taken)..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::Cell;
    use std::collections::VecDeque;

    struct Memory(Vec<Cell<u64>>);

    impl Memory {
        fn new(words: usize) -> Memory {
            Memory(vec![Cell::new(0); words])
        }
    }

    impl Words for Memory {
        fn load(&self, index: usize) -> u64 {
            self.0.get(index).map_or(0, Cell::get)
        }
        fn store(&self, index: usize, value: u64) {
            if let Some(word) = self.0.get(index) {
                word.set(value);
            }
        }
    }

    const PLACE: Place = Place::new(3, 8);

    struct Tested;

    impl Ring for Tested {
        const PLACE: Place = PLACE;
    }

    #[test]
    fn a_full_ring_takes_no_more_and_an_empty_one_gives_nothing() {
        let memory = Memory::new(PLACE.end());
        let (mut producer, mut consumer) = (Producer::<Tested>::new(), Consumer::<Tested>::new());
        assert_eq!(consumer.take(&memory), Ok(None));
        for entry in 0..8 {
            assert_eq!(producer.put(&memory, entry), Ok(true));
        }
        assert_eq!(producer.put(&memory, 8), Ok(false));
        assert_eq!(consumer.len(&memory), Ok(8));
        assert_eq!(consumer.take(&memory), Ok(Some(0)));
        assert_eq!(producer.put(&memory, 8), Ok(true));
    }

    #[test]
    fn lies_are_seen() {
        let memory = Memory::new(PLACE.end());
        let mut consumer = Consumer::<Tested>::new();
        memory.store(PLACE.base, 9);
        assert_eq!(consumer.take(&memory), Err(Lie { claimed: 9, own: 0 }));
        memory.store(PLACE.base, 2);
        assert_eq!(consumer.len(&memory), Ok(2));
        memory.store(PLACE.base, 1);
        assert_eq!(consumer.len(&memory), Err(Lie { claimed: 1, own: 0 }));

        let memory = Memory::new(PLACE.end());
        let mut producer = Producer::<Tested>::new();
        assert_eq!(producer.put(&memory, 1), Ok(true));
        memory.store(PLACE.base + TAKEN, 2);
        assert_eq!(producer.room(&memory), Err(Lie { claimed: 2, own: 1 }));
        memory.store(PLACE.base + TAKEN, u64::MAX);
        assert_eq!(producer.room(&memory), Err(Lie { claimed: u64::MAX, own: 1 }));
    }

    /// Ends that have put and taken `begin` entries.
    fn ends_at<C: Count, D: Count>(
        memory: &Memory,
        begin: u64,
        put: C,
        taken: D,
    ) -> (Producer<Tested, C>, Consumer<Tested, D>) {
        [PUT, TAKEN].iter().for_each(|word| memory.store(PLACE.base + word, begin));
        (Producer { put, taken: put, ring: PhantomData }, Consumer { taken, put: taken, ring: PhantomData })
    }

    #[test]
    fn positions_in_memory_have_64_bits_whoever_writes_them() {
        const BEGIN: u64 = (7 << 32) - 3;
        let memory = Memory::new(PLACE.end());
        let (mut producer, mut consumer) = ends_at(&memory, BEGIN, BEGIN as u32, BEGIN);
        for entry in 0..20 {
            assert_eq!(producer.put(&memory, entry), Ok(true));
            assert_eq!(memory.load(PLACE.base + PUT), BEGIN + 1 + entry);
            assert_eq!(consumer.take(&memory), Ok(Some(entry)));
        }
        let (mut producer, mut consumer) = ends_at(&memory, BEGIN, BEGIN, BEGIN as u32);
        for entry in 0..20 {
            assert_eq!(producer.put(&memory, entry), Ok(true));
            assert_eq!(consumer.take(&memory), Ok(Some(entry)));
            assert_eq!(memory.load(PLACE.base + TAKEN), BEGIN + 1 + entry);
            assert_eq!(producer.room(&memory), Ok(8));
        }
    }

    /// Several entries at once, also where the lower half of a position wraps between them.
    #[test]
    fn several_entries_are_put_and_taken_together() {
        const BEGIN: u64 = (7 << 32) - 3;
        let memory = Memory::new(PLACE.end());
        let (mut producer, mut consumer) = ends_at(&memory, BEGIN, BEGIN as u32, BEGIN as u32);
        for round in 0..3 {
            let mut putting = producer.putting(&memory);
            putting.put_within_room(10);
            putting.put_half(11);
            (12..18).for_each(|entry| assert_eq!(putting.put(entry), Ok(true)));
            assert_eq!(putting.put(18), Ok(false));
            assert_eq!((memory.load(PLACE.base + PUT), consumer.is_empty(&memory)), (BEGIN + 8 * round, true));
            drop(putting);
            assert_eq!((memory.load(PLACE.base + PUT), consumer.is_empty(&memory)), (BEGIN + 8 * round + 8, false));
            let mut taking = consumer.taking(&memory);
            assert_eq!(taking.take_known(), None);
            taking.look(3);
            for entry in 10..13 {
                assert_eq!(taking.take_known(), Some(entry));
            }
            assert_eq!(taking.take_known(), None);
            for entry in 13..18 {
                assert_eq!(taking.take(), Ok(Some(entry)));
            }
            assert_eq!(taking.take(), Ok(None));
            assert_eq!(memory.load(PLACE.base + TAKEN), BEGIN + 8 * round);
            drop(taking);
            assert_eq!(memory.load(PLACE.base + TAKEN), BEGIN + 8 * round + 8);
        }
    }

    proptest! {
        /// Every entry that is put comes out, once and in order, whichever width the ends have, and
        /// whenever the lower half of a position wraps.
        #[test]
        fn ends_of_different_widths_understand_each_other(
            steps in proptest::collection::vec(any::<Option<u64>>(), 0..400),
            before in 0_u64..300,
        ) {
            let begin = (3 << 32) - before;
            let memories = [(); 2].map(|()| Memory::new(PLACE.end()));
            let (mut narrow, mut wide) = ends_at(&memories[0], begin, begin as u32, begin);
            let (mut wide_producer, mut narrow_consumer) = ends_at(&memories[1], begin, begin, begin as u32);
            let mut model = VecDeque::new();
            for step in steps {
                match step {
                    Some(entry) => {
                        let fits = model.len() < PLACE.capacity;
                        prop_assert_eq!(narrow.put(&memories[0], entry), Ok(fits));
                        prop_assert_eq!(wide_producer.put(&memories[1], entry), Ok(fits));
                        if fits { model.push_back(entry); }
                    }
                    None => {
                        let oldest = model.pop_front();
                        prop_assert_eq!(wide.take(&memories[0]), Ok(oldest));
                        prop_assert_eq!(narrow_consumer.take(&memories[1]), Ok(oldest));
                    }
                }
            }
        }

        /// Every entry that is put comes out, once and in order.
        #[test]
        fn behaves_like_a_queue(steps in proptest::collection::vec(any::<Option<u64>>(), 0..400)) {
            let memory = Memory::new(PLACE.end());
            let (mut producer, mut consumer) = (Producer::<Tested>::new(), Consumer::<Tested>::new());
            let mut model = VecDeque::new();
            for step in steps {
                match step {
                    Some(entry) => {
                        let fits = model.len() < PLACE.capacity;
                        prop_assert_eq!(producer.put(&memory, entry), Ok(fits));
                        if fits { model.push_back(entry); }
                    }
                    None => prop_assert_eq!(consumer.take(&memory), Ok(model.pop_front())),
                }
            }
        }

        /// No position that the other side writes makes a consumer see more entries than the ring
        /// has.
        #[test]
        fn a_lying_producer_gains_nothing(claims in proptest::collection::vec(any::<u64>(), 0..50)) {
            let memory = Memory::new(PLACE.end());
            let mut consumer = Consumer::<Tested>::new();
            for claim in claims {
                memory.store(PLACE.base, claim);
                if let Ok(len) = consumer.len(&memory) { prop_assert!(len <= PLACE.capacity); }
                let _ = consumer.take(&memory);
            }
        }
    }
}
