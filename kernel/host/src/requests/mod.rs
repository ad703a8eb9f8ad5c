//! Requests that a driver carries out, whatever they are about: a class says what one looks like
//! ([`Protocol`]), and gets queues, an account of what the driver has
//! ([`ringfence_core::requests`]), and **the promise that what was under way when a driver ended is
//! sent again to its successor, in order**.
//!
//! * [`queue`]: the kernel's end of a driver's queues
//! * [`attempt`]: sends one request until some driver has carried it out
//!
//! Each request has a number, and all of one server's share an order. Sending them again one by
//! one, in that order, was taken and not a log of what they wrote: what a request means (which
//! blocks it overlaps) is its class's to know.

use crate::domain::{Domain, Handle, life};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Poll, Waker};
use embassy_time::{Duration, with_timeout};
use hw::task::wait_in;
use ringfence_core::limits::PAUSE_MS;
use ringfence_core::requests::repeat::Repeats;
use spin::Mutex;

pub mod attempt;
pub mod queue;

pub use ringfence_core::requests::{Direction, Lost, Protocol, Transfer};

/// A driver, and whatever comes in its place when it was ended.
pub struct Server {
    current: Mutex<Handle>,
    /// Set when it was unloaded.
    gone: AtomicBool,
    /// Who waits for another driver.
    waiting: Mutex<Vec<Waker>>,
    /// Requests so far: each one's number is its place among those that are sent again.
    count: AtomicU64,
    /// Requests that are to be sent again.
    repeats: Arc<Repeats>,
}

impl Server {
    /// The one of a driver that offers queues of `P`; `None` if it does not.
    pub fn new<P: Protocol>(handle: &Handle) -> Option<Server> {
        let repeats = handle.lock().offered::<queue::Queues<P>>().map(|queues| queues.repeats().clone())?;
        Some(Server {
            current: Mutex::new(handle.clone()),
            gone: AtomicBool::new(false),
            waiting: Mutex::new(Vec::new()),
            count: AtomicU64::new(0),
            repeats,
        })
    }

    /// The driver that it has right now.
    pub fn handle(&self) -> Handle {
        self.current.lock().clone()
    }

    /// The driver that it has right now, for [`Server::has_other_than`]: it is not kept from being
    /// freed.
    pub fn driver(&self) -> Weak<Mutex<Domain>> {
        Arc::downgrade(&self.current.lock())
    }

    /// Whether it has another driver than `driver` by now.
    pub fn has_other_than(&self, driver: &Weak<Mutex<Domain>>) -> bool {
        !core::ptr::eq(Arc::as_ptr(&self.current.lock()), driver.as_ptr())
    }

    /// Whether it was unloaded.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// It has another driver: what waits for one goes on.
    pub fn replace<P: Protocol>(&self, fresh: &Handle) {
        if let Some(queues) = fresh.lock().offered_mut::<queue::Queues<P>>() {
            queues.set_repeats(&self.repeats);
        }
        *self.current.lock() = fresh.clone();
        self.wake();
    }

    /// It is unloaded.
    pub fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
        self.wake();
    }

    /// Has those who wait for a driver look again whether one will come.
    pub fn wake(&self) {
        core::mem::take(&mut *self.waiting.lock()).into_iter().for_each(Waker::wake);
    }

    /// Waits until another driver is in place of `old`; `false` if none will be.
    async fn another_than(&self, old: &Handle) -> bool {
        let another = poll_fn(|context| {
            let current = self.handle();
            if self.is_gone() {
                Poll::Ready(false)
            } else if !Arc::ptr_eq(&current, old) {
                Poll::Ready(true)
            } else if !life::will_be_back(&current) {
                Poll::Ready(false)
            } else {
                wait_in(&mut self.waiting.lock(), context.waker());
                Poll::Pending
            }
        });
        with_timeout(Duration::from_millis(PAUSE_MS.get()), another).await.unwrap_or(false)
    }
}
