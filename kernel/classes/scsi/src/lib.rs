//! SCSI above the drivers: commands, their errors, and the disks that were found.
//!
//! * [`class`]: what the kernel below knows of all this
//! * [`queues`]: requests to and from a driver
//! * [`command`]: sends a command, again if its driver was ended, and says what became of it
//! * [`repeat`]: the order in which commands are sent again
//! * [`scan`]: looks for the disks of a host
//! * [`disk`]: the blocks of one disk
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Poll, Waker};
use embassy_time::{Duration, with_timeout};
use host::domain::{Domain, Handle, life};
use hw::task::wait_in;
use repeat::Repeats;
use ringfence_core::limits::PAUSE_MS;
use spin::Mutex;

mod class;
pub mod command;
pub mod disk;
pub mod queues;
pub mod repeat;
pub mod scan;

/// A SCSI host: a driver, and whatever comes in its place when it was ended.
pub struct Host {
    current: Mutex<Handle>,
    /// Set when it was unloaded.
    gone: AtomicBool,
    /// Set when its units have been looked at, as far as they are.
    scanned: AtomicBool,
    /// Whether units went while this driver said what is there: the next one may say otherwise.
    lost_some: AtomicBool,
    /// Whether what is known of its units is from a driver that lost some, until they were looked at again.
    in_doubt: AtomicBool,
    /// Who waits for another driver.
    waiting: Mutex<Vec<Waker>>,
    /// Commands so far: each one's number is its place among those that are sent again.
    commands: AtomicU64,
    /// Commands that are to be sent again.
    repeats: Arc<Repeats>,
    /// Units that are to be looked at again.
    stale: Mutex<Vec<(u32, u32)>>,
    /// Units of which it was said why they are not used.
    told: Mutex<Vec<(u32, u32)>>,
}

pub use class::CLASS;

static HOSTS: Mutex<Vec<Arc<Host>>> = Mutex::new(Vec::new());

impl Host {
    /// The host that a driver offers, whose commands are `repeats` when they are to be sent again.
    fn new(handle: &Handle, repeats: Arc<Repeats>) -> Host {
        Host {
            current: Mutex::new(handle.clone()),
            gone: AtomicBool::new(false),
            scanned: AtomicBool::new(false),
            lost_some: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
            waiting: Mutex::new(Vec::new()),
            commands: AtomicU64::new(0),
            repeats,
            stale: Mutex::new(Vec::new()),
            told: Mutex::new(Vec::new()),
        }
    }

    /// The driver that it has right now.
    pub fn handle(&self) -> Handle {
        self.current.lock().clone()
    }

    /// Whether its units are to be looked at again before anybody relies on what is known of them.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Acquire)
    }

    /// The driver that it has right now, for [`Host::has_other_than`]: it is not kept from being freed.
    fn driver(&self) -> Weak<Mutex<Domain>> {
        Arc::downgrade(&self.current.lock())
    }

    /// Whether it has another driver than `driver` by now.
    fn has_other_than(&self, driver: &Weak<Mutex<Domain>>) -> bool {
        !core::ptr::eq(Arc::as_ptr(&self.current.lock()), driver.as_ptr())
    }

    fn wake(&self) {
        core::mem::take(&mut *self.waiting.lock()).into_iter().for_each(Waker::wake);
    }

    /// Waits until another driver is in place of `old`; `false` if none will be.
    async fn another_than(&self, old: &Handle) -> bool {
        let another = poll_fn(|context| {
            let current = self.handle();
            if self.gone.load(Ordering::Acquire) {
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

/// All hosts.
fn hosts() -> Vec<Arc<Host>> {
    HOSTS.lock().clone()
}

fn host_of(handle: &Handle) -> Option<Arc<Host>> {
    HOSTS.lock().iter().find(|host| Arc::ptr_eq(&host.handle(), handle)).cloned()
}
