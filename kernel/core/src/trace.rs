//! What happened last, and when: a list that keeps so many events, and counts those that it does
//! not.

use alloc::collections::VecDeque;

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<W> {
    /// When, since the list was begun.
    pub at: u64,
    /// What.
    pub what: W,
}

/// The last events, oldest first. **It takes no more memory than it has at first, whatever
/// happens.**
#[derive(Debug)]
pub struct Record<W> {
    began: u64,
    events: VecDeque<Event<W>>,
    most: usize,
    /// How many were not kept.
    pub lost: u64,
}

impl<W> Record<W> {
    /// An empty one that keeps `most` events, and begins at `now`; `None` if there is no memory for
    /// it.
    pub fn new(most: usize, now: u64) -> Option<Record<W>> {
        let mut events = VecDeque::new();
        events.try_reserve_exact(most).ok()?;
        Some(Record { began: now, events, most, lost: 0 })
    }

    /// Notes what happens at `now`.
    pub fn add(&mut self, now: u64, what: W) {
        if self.events.len() >= self.most {
            self.events.pop_front();
            self.lost += 1;
        }
        self.events.push_back(Event { at: now.saturating_sub(self.began), what });
    }

    /// The events that are kept, oldest first.
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
        // A clock that went backwards.
        record.add(0, 10);
        assert_eq!(record.events().last(), Some(&Event { at: 0, what: 10 }));
    }
}
