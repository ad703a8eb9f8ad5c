//! Requests to drivers, of any class. A class defines its requests ([`Protocol`]), and gets queues,
//! an account of the requests that the driver has ([`ringfence_core::requests`]), and **the promise
//! that requests under way at the end of a driver are sent again to its successor, in order**.
//!
//! * [`queue`]: the kernel's end of a driver's queues
//! * [`attempt`]: sends one request until some driver has carried it out
//!
//! Each request has a number, which is its place in the order of its server. Requests are sent
//! again one by one in that order.
//!
//! Not taken: *a log of written data.* It has to know the meaning of a request, such as the blocks
//! that it overlaps, and only the class knows that.

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

/// A driver, and its successors after its end.
pub struct Server {
    current: Mutex<Handle>,
    /// Set when the driver was unloaded.
    gone: AtomicBool,
    /// The wakers of the tasks that wait for another driver.
    waiting: Mutex<Vec<Waker>>,
    /// The number of requests so far: the number of the next request.
    count: AtomicU64,
    /// The requests that are to be sent again.
    repeats: Arc<Repeats>,
}

impl Server {
    /// Returns the server of a driver that offers queues of `P`; `None` if it does not.
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

    /// Returns the current driver.
    pub fn handle(&self) -> Handle {
        self.current.lock().clone()
    }

    /// Returns the current driver for [`Server::has_other_than`]. This does not keep the driver
    /// from being freed.
    pub fn driver(&self) -> Weak<Mutex<Domain>> {
        Arc::downgrade(&self.current.lock())
    }

    /// Returns whether the current driver is not `driver`.
    pub fn has_other_than(&self, driver: &Weak<Mutex<Domain>>) -> bool {
        !core::ptr::eq(Arc::as_ptr(&self.current.lock()), driver.as_ptr())
    }

    /// Returns whether the driver was unloaded.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Sets the driver's successor: tasks that wait for it go on.
    pub fn replace<P: Protocol>(&self, fresh: &Handle) {
        if let Some(queues) = fresh.lock().offered_mut::<queue::Queues<P>>() {
            queues.set_repeats(&self.repeats);
        }
        *self.current.lock() = fresh.clone();
        self.wake();
    }

    /// Notes that the driver is unloaded.
    pub fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
        self.wake();
    }

    /// Wakes the tasks that wait for a driver, so that they check again whether one will come.
    pub fn wake(&self) {
        core::mem::take(&mut *self.waiting.lock()).into_iter().for_each(Waker::wake);
    }

    /// Waits until another driver is in place of `old`. Returns `false` if none will come.
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
