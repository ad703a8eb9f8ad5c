//! The order in which requests that were under way when their driver was ended are sent again.
//!
//! **Each request has a number, and a successor gets the requests in the order of their numbers,
//! one by one**: the next is sent when the one before it is done. A request that was carried out
//! but not answered is carried out twice. It keeps its place in the order, so that a later write to
//! the same block stays the later one.
//!
//! Not taken:
//! * *Sending all at once.* A device may carry them out in any order, and two writes to one block
//!   would change places.
//! * *A log of all writes,* to send again only the missing ones. Only a class can know which
//!   requests overlap; this module does not.
//! * *Failing the requests that were under way,* and leaving the repetition to the client. Every
//!   user of a disk would need this module then.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use spin::Mutex;

/// A server's requests that are to be sent again, lowest number first.
#[derive(Default)]
pub struct Repeats {
    numbers: Mutex<BTreeSet<u64>>,
    waiting: Mutex<Vec<Waker>>,
}

impl Repeats {
    /// Notes that request `number` is to be sent again.
    pub fn add(&self, number: u64) {
        self.numbers.lock().insert(number);
    }

    /// Returns the place of request `number`, which is not to be sent again yet.
    pub fn place(&self, number: u64) -> Place<'_> {
        Place { repeats: self, number }
    }
}

/// A request's place in the order of the requests that are sent again. Dropping it leaves the
/// place.
pub struct Place<'a> {
    repeats: &'a Repeats,
    number: u64,
}

impl Place<'_> {
    /// Notes that the request is to be sent again.
    pub fn join(&self) {
        self.repeats.add(self.number);
    }

    /// Waits until all requests with smaller numbers were sent again. The request must have joined.
    pub async fn come(&self) {
        poll_fn(|context| {
            if self.repeats.numbers.lock().first() == Some(&self.number) {
                return Poll::Ready(());
            }
            wait_in(&mut self.repeats.waiting.lock(), context.waker());
            Poll::Pending
        })
        .await;
    }

    /// Leaves the place: the next request may be sent.
    pub fn leave(&self) {
        if self.repeats.numbers.lock().remove(&self.number) {
            core::mem::take(&mut *self.repeats.waiting.lock()).into_iter().for_each(Waker::wake);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Adds `waker` to the waiting wakers, unless it is among them: a task may be polled any number of
/// times before it is woken.
pub fn wait_in(waiting: &mut Vec<Waker>, waker: &Waker) {
    if !waiting.iter().any(|other| other.will_wake(waker)) {
        waiting.push(waker.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;
    use core::future::Future;
    use core::pin::pin;
    use core::sync::atomic::{AtomicUsize, Ordering};
    use core::task::Context;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns whether it is the turn of `place`.
    fn is_next(place: &Place, count: &Arc<Count>) -> bool {
        let waker = Waker::from(count.clone());
        pin!(place.come()).poll(&mut Context::from_waker(&waker)).is_ready()
    }

    #[test]
    fn requests_are_sent_again_in_the_order_in_which_they_were_first_sent() {
        let (repeats, count) = (Repeats::default(), Arc::new(Count::default()));
        let places: Vec<Place> = [4, 9, 7].map(|number| repeats.place(number)).into();
        // The requests are noted in the order in which the driver had them.
        [9, 4, 7].into_iter().for_each(|number| repeats.add(number));
        let order = |which: [bool; 3]| assert_eq!([0, 1, 2].map(|place| is_next(&places[place], &count)), which);
        order([true, false, false]);
        places[0].leave();
        order([false, false, true]);
        places[2].leave();
        order([false, true, false]);
    }

    #[test]
    fn who_waits_is_woken_when_one_leaves_and_once_for_each() {
        let (repeats, count) = (Repeats::default(), Arc::new(Count::default()));
        let (first, second) = (repeats.place(1), repeats.place(2));
        first.join();
        second.join();
        assert!(!is_next(&second, &count) && !is_next(&second, &count));
        first.leave();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        // The first request has left its place already.
        first.leave();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_place_that_is_given_up_holds_nobody_up() {
        let (repeats, count) = (Repeats::default(), Arc::new(Count::default()));
        let second = repeats.place(2);
        second.join();
        {
            let first = repeats.place(1);
            first.join();
            assert!(!is_next(&second, &count));
        }
        assert!(is_next(&second, &count));
    }
}
