//! A single-producer single-consumer ring of 64-bit entries in memory that kernel and driver share.
//!
//! **Neither side trusts the other.** Each end keeps its own position in private memory, and reads
//! only the other end's position from shared memory. A position that cannot be true is a [`Lie`],
//! and no entry is taken then. The end that takes an entry must check its contents. The code is the
//! same on both sides and never forms a reference to the shared memory: all access goes through
//! [`Words`], which either side implements with volatile loads and stores.

use core::marker::PhantomData;
use core::ops::Range;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Shared memory as 64-bit words.
pub trait Words {
    /// Reads word `index`; an index outside the memory reads 0.
    fn load(&self, index: usize) -> u64;
    /// Writes word `index`; an index outside the memory is ignored.
    fn store(&self, index: usize, value: u64);

    /// Writes the whole words of `bytes`, from word `first` on. Words outside the memory are
    /// ignored, or else nothing is written.
    #[inline]
    fn store_bytes(&self, first: usize, bytes: &[u8]) {
        for (index, word) in bytes.as_chunks().0.iter().enumerate() {
            self.store(first + index, u64::from_le_bytes(*word));
        }
    }
}

impl<W: Words + ?Sized> Words for &W {
    fn load(&self, index: usize) -> u64 {
        (**self).load(index)
    }
    fn store(&self, index: usize, value: u64) {
        (**self).store(index, value)
    }
    fn store_bytes(&self, first: usize, bytes: &[u8]) {
        (**self).store_bytes(first, bytes);
    }
}

/// Copies a value of `WORDS` words out of shared memory, from word `first` on.
pub fn read_value<const WORDS: usize, T: FromBytes>(words: &impl Words, first: usize) -> Option<T> {
    let copy: [u64; WORDS] = core::array::from_fn(|index| words.load(first + index));
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

/// The end that puts entries into a ring. Its positions do not wrap: no machine puts 2^64 entries.
pub struct Producer<R> {
    put: u64,
    taken: u64,
    ring: PhantomData<fn() -> R>,
}

impl<R: Ring> Producer<R> {
    /// Makes the producer's end of an empty ring.
    #[allow(clippy::new_without_default, reason = "an end is made once, beside the memory of its ring")]
    pub const fn new() -> Producer<R> {
        Producer { put: 0, taken: 0, ring: PhantomData }
    }

    /// Returns how many more entries fit into the ring.
    #[inline]
    pub fn room(&mut self, words: &impl Words) -> Result<usize, Lie> {
        let taken = words.load(R::PLACE.base + TAKEN);
        if taken < self.taken || taken > self.put {
            return Err(Lie { claimed: taken, own: self.put });
        }
        self.taken = taken;
        Ok(R::PLACE.capacity - (self.put - taken) as usize)
    }

    /// Returns how many entries this end has put since the ring was made.
    pub fn position(&self) -> u64 {
        self.put
    }

    /// Returns the entry that was put at `position`. **The other side can change it.**
    pub fn entry(words: &impl Words, position: u64) -> u64 {
        words.load(R::PLACE.entry(position))
    }

    /// Returns how many of this end's entries the other side has taken.
    pub fn taken(&mut self, words: &impl Words) -> Result<u64, Lie> {
        self.room(words)?;
        Ok(self.taken)
    }

    /// Puts `entry` into the ring; `Ok(false)` if the ring is full.
    #[inline]
    pub fn put(&mut self, words: &impl Words, entry: u64) -> Result<bool, Lie> {
        // Only read the other side's position (and its cache line) when the ring looks full.
        if self.put.wrapping_sub(self.taken) as usize == R::PLACE.capacity && self.room(words)? == 0 {
            return Ok(false);
        }
        words.store(R::PLACE.entry(self.put), entry);
        self.put = self.put.wrapping_add(1);
        words.store(R::PLACE.base + PUT, self.put);
        Ok(true)
    }
}

/// The end that takes entries out of a ring.
pub struct Consumer<R> {
    taken: u64,
    put: u64,
    ring: PhantomData<fn() -> R>,
}

impl<R: Ring> Consumer<R> {
    /// Makes the consumer's end of an empty ring.
    #[allow(clippy::new_without_default, reason = "an end is made once, beside the memory of its ring")]
    pub const fn new() -> Consumer<R> {
        Consumer { taken: 0, put: 0, ring: PhantomData }
    }

    /// Returns how many entries can be taken.
    #[inline]
    pub fn len(&mut self, words: &impl Words) -> Result<usize, Lie> {
        let put = words.load(R::PLACE.base + PUT);
        if put < self.put || put - self.taken > R::PLACE.capacity as u64 {
            return Err(Lie { claimed: put, own: self.taken });
        }
        self.put = put;
        Ok((put - self.taken) as usize)
    }

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

    /// Returns the entry at `position`, and leaves it there. **The other side can change it until
    /// it is taken.**
    pub fn entry(words: &impl Words, position: u64) -> u64 {
        words.load(R::PLACE.entry(position))
    }

    /// Takes the oldest entry, if there is one.
    #[inline]
    pub fn take(&mut self, words: &impl Words) -> Result<Option<u64>, Lie> {
        if self.taken == self.put && self.len(words)? == 0 {
            return Ok(None);
        }
        let entry = words.load(R::PLACE.entry(self.taken));
        self.taken = self.taken.wrapping_add(1);
        words.store(R::PLACE.base + TAKEN, self.taken);
        Ok(Some(entry))
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

    proptest! {
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
