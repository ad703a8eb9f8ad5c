//! The requests of a driver that is a client: the driver asks, and this side carries out.
//! [`super::Account`] is the counterpart for drivers that carry out requests.
//!
//! **A number that does not exist, or that is asked for again before it was answered, is
//! [`Wrong`]**. The class checks the content of requests.

use super::Wrong;
use alloc::vec::Vec;
use ringfence_abi::queue::{Complete, Consumer, Producer, Rings, Submit, Words};

/// The requests of a driver that are not answered yet.
pub struct Asked<R, M> {
    queues: M,
    submit: Consumer<Submit<R>>,
    complete: Producer<Complete<R>>,
    under_way: Vec<bool>,
}

impl<R: Rings, M: Words> Asked<R, M> {
    /// Returns an account of up to `requests` requests, none of which is under way.
    pub fn new(queues: M, requests: usize) -> Asked<R, M> {
        let under_way = (0..requests).map(|_| false).collect();
        Asked { queues, submit: Consumer::new(), complete: Producer::new(), under_way }
    }

    /// Returns the memory with rings and requests.
    pub fn queues(&self) -> &M {
        &self.queues
    }

    /// Returns how many requests are not answered yet.
    pub fn count(&self) -> usize {
        self.under_way.iter().filter(|is_asked| **is_asked).count()
    }

    /// Takes the number of the next request to carry out.
    pub fn take(&mut self) -> Result<Option<usize>, Wrong> {
        let taken = self.submit.take(&self.queues).map_err(Wrong::position("submit"))?;
        let Some(entry) = taken else { return Ok(None) };
        let bad = Wrong::Entry("submit", entry);
        let number = usize::try_from(entry).map_err(|_| bad)?;
        match self.under_way.get_mut(number) {
            Some(is_asked) if !*is_asked => *is_asked = true,
            _ => return Err(bad),
        }
        Ok(Some(number))
    }

    /// Completes a request; `write` puts its outcome beside it. Does nothing if the request is not
    /// under way.
    pub fn complete(&mut self, number: usize, write: impl FnOnce(&M)) -> Result<(), Wrong> {
        let Some(is_asked) = self.under_way.get_mut(number).filter(|is_asked| **is_asked) else { return Ok(()) };
        *is_asked = false;
        write(&self.queues);
        // The ring has room for all requests, unless the driver claims not to have taken
        // completions that it was given. Such a driver misses this completion.
        self.complete.put(&self.queues, number as u64).map_err(Wrong::position("complete"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_abi::queue::{ENTRIES, PUT, Place};
    use std::cell::Cell;
    use std::rc::Rc;

    #[derive(Clone)]
    struct Memory(Rc<Vec<Cell<u64>>>);

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

    const SUBMIT: Place = Place::new(0, 4);
    const COMPLETE: Place = Place::new(SUBMIT.end(), 4);

    struct Tested;

    impl Rings for Tested {
        const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
    }

    fn asked(entries: &[u64]) -> (Memory, Asked<Tested, Memory>) {
        let memory = Memory(Rc::new((0..COMPLETE.end()).map(|_| Cell::new(0)).collect()));
        for (index, entry) in entries.iter().enumerate() {
            memory.store(SUBMIT.base + ENTRIES + index % 4, *entry);
        }
        memory.store(SUBMIT.base + PUT, entries.len() as u64);
        (memory.clone(), Asked::new(memory, 4))
    }

    #[test]
    fn each_is_taken_and_answered_once() {
        let (memory, mut asked) = asked(&[2, 0]);
        assert_eq!((asked.take(), asked.take(), asked.take()), (Ok(Some(2)), Ok(Some(0)), Ok(None)));
        assert_eq!(asked.count(), 2);
        asked.complete(0, |queues| queues.store(COMPLETE.base + 9, 7)).unwrap();
        asked.complete(0, |_| panic!("it was answered")).unwrap();
        asked.complete(3, |_| panic!("it was not asked for")).unwrap();
        asked.complete(99, |_| panic!("there is none")).unwrap();
        assert_eq!(memory.load(COMPLETE.base + PUT), 1);
        assert_eq!((memory.load(COMPLETE.base + 9), asked.count()), (7, 1));
    }

    #[test]
    fn what_cannot_be_is_wrong() {
        for entry in [4, u64::MAX] {
            assert_eq!(asked(&[entry]).1.take(), Err(Wrong::Entry("submit", entry)));
        }
        let (memory, mut twice) = asked(&[1, 1]);
        assert_eq!((twice.take(), twice.take()), (Ok(Some(1)), Err(Wrong::Entry("submit", 1))));
        memory.store(SUBMIT.base + PUT, 1);
        assert!(matches!(twice.take(), Err(Wrong::Position("submit", _))));
    }

    #[test]
    fn one_that_was_answered_can_be_asked_again() {
        let (memory, mut asked) = asked(&[1]);
        for round in 1..20 {
            assert_eq!(asked.take(), Ok(Some(1)));
            asked.complete(1, |_| ()).unwrap();
            memory.store(COMPLETE.base + ringfence_abi::queue::TAKEN, round);
            memory.store(SUBMIT.base + ENTRIES + round as usize % 4, 1);
            memory.store(SUBMIT.base + PUT, round + 1);
        }
    }
}
