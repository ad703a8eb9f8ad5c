//! The last events, and when they happened: a list of a fixed length, which counts the events that
//! it has dropped.

use alloc::collections::VecDeque;

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
    began: u64,
    events: VecDeque<Event<W>>,
    most: usize,
    /// How many events were dropped.
    pub lost: u64,
}

impl<W> Record<W> {
    /// Returns an empty list of at most `most` events that begins at `now`; `None` if there is no
    /// memory for it.
    pub fn new(most: usize, now: u64) -> Option<Record<W>> {
        let mut events = VecDeque::new();
        events.try_reserve_exact(most).ok()?;
        Some(Record { began: now, events, most, lost: 0 })
    }

    /// Notes an event at `now`. If the list is full, the oldest event is dropped.
    pub fn add(&mut self, now: u64, what: W) {
        if self.events.len() >= self.most {
            self.events.pop_front();
            self.lost += 1;
        }
        self.events.push_back(Event { at: now.saturating_sub(self.began), what });
    }

    /// Returns the events that are kept, oldest first.
    pub fn events(&self) -> impl ExactSizeIterator<Item = &Event<W>> {
        self.events.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_are_counted() {
        let mut record = Record::new(3, 100).unwrap();
        let capacity = record.events.capacity();
        (0..10).for_each(|number| record.add(100 + number, number));
        assert!(record.events().map(|event| (event.at, event.what)).eq([(7, 7), (8, 8), (9, 9)]));
        assert_eq!((record.lost, record.events.capacity()), (7, capacity));
        // A clock that has gone backwards.
        record.add(0, 10);
        assert_eq!(record.events().last(), Some(&Event { at: 0, what: 10 }));
    }
}
