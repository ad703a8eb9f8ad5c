//! The order in which commands are sent again that were under way when their driver was ended.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use hw::task::wait_in;
use spin::Mutex;

/// A host's commands that are to be sent again: lowest number first.
#[derive(Default)]
pub struct Repeats {
    numbers: Mutex<BTreeSet<u64>>,
    waiting: Mutex<Vec<Waker>>,
}

impl Repeats {
    /// Command `number` is to be sent again.
    pub fn add(&self, number: u64) {
        self.numbers.lock().insert(number);
    }

    /// The place of command `number`, which is not to be sent again yet.
    pub fn place(&self, number: u64) -> Place<'_> {
        Place { repeats: self, number }
    }
}

/// A command's place among those that are sent again. It is left when this goes.
pub struct Place<'a> {
    repeats: &'a Repeats,
    number: u64,
}

impl Place<'_> {
    /// It is to be sent again.
    pub fn join(&self) {
        self.repeats.add(self.number);
    }

    /// Waits until all commands with smaller numbers were sent again. It must have joined.
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

    /// The next one may be sent.
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
