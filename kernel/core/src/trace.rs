//! The last events, and when they happened: a list of a fixed length, which counts the events that
//! it has dropped. Events that have some content, such as text, keep it in a ring of bytes.

use alloc::vec::Vec;

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<W> {
    /// When it happened, since the list was begun.
    pub at: u64,
    /// What happened.
    pub what: W,
}

/// The last events, oldest first. **It allocates all its memory at the start, and never more.**
#[derive(Debug)]
pub struct Record<W> {
    /// When the list was begun.
    pub began: u64,
    /// Event number `n` is at index `n` modulo the length, which is a power of two.
    events: Vec<Event<W>>,
    /// How many events there were.
    count: u64,
}

impl<W: Clone> Record<W> {
    /// Returns an empty list of at most `most` events, rounded up to a power of two, that begins at
    /// `now`; `None` if there is no memory for it. `filler` is in the places of events that are to
    /// come.
    pub fn new(most: usize, now: u64, filler: W) -> Option<Record<W>> {
        let most = most.checked_next_power_of_two()?;
        let mut events = Vec::new();
        events.try_reserve_exact(most).ok()?;
        events.resize(most, Event { at: 0, what: filler });
        Some(Record { began: now, events, count: 0 })
    }

    /// Notes an event at `now`. If the list is full, the oldest event is dropped.
    #[inline]
    pub fn add(&mut self, now: u64, what: W) {
        let place = self.count as usize & self.events.len().wrapping_sub(1);
        if let Some(event) = self.events.get_mut(place) {
            event.at = now.wrapping_sub(self.began);
            event.what = what;
        }
        // No trace has 2^64 events.
        self.count = self.count.wrapping_add(1);
    }

    /// Returns how many events there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns how many events were dropped.
    pub fn lost(&self) -> u64 {
        self.count.saturating_sub(self.events.len() as u64)
    }

    /// Returns the events that are kept of those after the first `before` ones, oldest first.
    pub fn after(&self, before: u64) -> impl Iterator<Item = &Event<W>> {
        let mask = self.events.len() as u64 - 1;
        (before.max(self.lost())..self.count).filter_map(move |number| self.events.get((number & mask) as usize))
    }
}

/// The place of some bytes in [`Bytes`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// How many bytes were kept before.
    at: u64,
    len_bytes: u16,
}

/// The last bytes that were kept. **It allocates all its memory at the start, and never more.**
#[derive(Debug)]
pub struct Bytes {
    ring: Vec<u8>,
    /// How many bytes were kept so far.
    count: u64,
}

impl Bytes {
    /// Returns an empty ring of `len_bytes` bytes; `None` if there is no memory for it.
    pub fn new(len_bytes: usize) -> Option<Bytes> {
        let mut ring = Vec::new();
        ring.try_reserve_exact(len_bytes).ok()?;
        ring.resize(len_bytes, 0);
        Some(Bytes { ring, count: 0 })
    }

    /// Keeps `bytes`, as many of them as fit. Bytes that were kept before may be lost. They are
    /// kept in one piece: bytes that would go beyond the ring's end go to its beginning.
    #[inline(never)]
    pub fn keep(&mut self, bytes: &[u8]) -> Span {
        let room = self.ring.len();
        let bytes = bytes.get(..room.min(u16::MAX.into())).unwrap_or(bytes);
        if bytes.is_empty() {
            return Span::default();
        }
        let mut start = (self.count % room as u64) as usize;
        if room - start < bytes.len() {
            self.count += (room - start) as u64;
            start = 0;
        }
        let at = self.count;
        if let Some(to) = self.ring.get_mut(start..start + bytes.len()) {
            to.copy_from_slice(bytes);
        }
        self.count += bytes.len() as u64;
        Span { at, len_bytes: bytes.len() as u16 }
    }

    /// Returns bytes that were kept; `None` if others have taken their place.
    pub fn get(&self, span: Span) -> Option<&[u8]> {
        if span.len_bytes == 0 {
            return Some(&[]);
        }
        let start = (span.at % self.ring.len() as u64) as usize;
        let is_there = self.count <= span.at + self.ring.len() as u64;
        self.ring.get(start..start + usize::from(span.len_bytes)).filter(|_| is_there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_oldest_go_and_are_counted() {
        let mut record = Record::new(3, 100, 0).unwrap();
        let capacity = record.events.capacity();
        (0..10).for_each(|number| record.add(100 + number, number));
        assert!(record.after(0).map(|event| (event.at, event.what)).eq([(6, 6), (7, 7), (8, 8), (9, 9)]));
        assert_eq!((record.lost(), record.count(), record.events.capacity()), (6, 10, capacity));
        assert!(record.after(8).map(|event| event.what).eq([8, 9]));
        assert_eq!([10, 11].map(|before| record.after(before).count()), [0, 0]);
    }

    #[test]
    fn too_many_bytes_are_cut_off() {
        let mut bytes = Bytes::new(4).unwrap();
        let all = bytes.keep(b"abcdef");
        assert_eq!(bytes.get(all), Some(&b"abcd"[..]));
        let none = Bytes::new(0).unwrap().keep(b"a");
        assert_eq!(bytes.get(none), Some(&b""[..]));
    }

    proptest! {
        /// Bytes that are still there are the bytes that were kept. The last bytes that were kept
        /// are there.
        #[test]
        fn bytes_are_right_or_gone(texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..40)) {
            let mut bytes = Bytes::new(100).unwrap();
            let spans: Vec<Span> = texts.iter().map(|text| bytes.keep(text)).collect();
            for (span, text) in spans.iter().zip(&texts) {
                prop_assert!(bytes.get(*span).is_none_or(|kept| kept == text));
            }
            prop_assert_eq!(bytes.get(*spans.last().unwrap()), Some(&texts.last().unwrap()[..]));
        }
    }
}
