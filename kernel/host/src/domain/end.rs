//! The end of a driver that is not running, and the tasks that wait for it.

use super::cause::Cause;
use super::{Domain, Handle};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Poll, Waker};
use embassy_sync::waitqueue::AtomicWaker;
use hw::task::wait_in;
use spin::Mutex;

/// The supervisor's waker, and whether there may be work for it.
static ON_NEXT: AtomicWaker = AtomicWaker::new();
static PENDING: AtomicBool = AtomicBool::new(false);
/// The wakers of all tasks that wait for a driver to be ended or to wake.
static ON_END: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

/// Ends a driver that is not running: for an entry in a queue, for something it left undone, or
/// because a person said so.
pub fn condemn(handle: &Handle, cause: Cause) {
    let mut domain = handle.lock();
    domain.condemn(cause);
    quiesce(&mut domain);
}

/// Stops the device of a driver that was ended, and tells all tasks that wait for the driver.
#[cold]
pub fn quiesce(domain: &mut Domain) {
    domain.stop_device();
    if let Some(offer) = &mut domain.offer {
        offer.driver_ended();
    }
    if let Some(used) = &mut domain.used {
        used.driver_ended();
    }
    note();
}

/// Notes that a driver may have been ended or have woken, or that a driver's future may have
/// changed.
pub fn note() {
    PENDING.store(true, Ordering::Release);
    ON_NEXT.wake();
    core::mem::take(&mut *ON_END.lock()).into_iter().for_each(Waker::wake);
}

/// Waits until [`note`] has been called since the last wait. For one task only.
pub async fn next() {
    poll_fn(|context| {
        ON_NEXT.register(context.waker());
        if PENDING.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Waits until a driver is ended.
pub async fn of(handle: &Handle) {
    changed(|| (!handle.lock().is_alive()).then_some(())).await;
}

/// Waits until `look` returns a value. Calls it again whenever [`note`] is called.
pub async fn changed<T>(mut look: impl FnMut() -> Option<T>) -> T {
    poll_fn(|context| {
        wait_in(&mut ON_END.lock(), context.waker());
        look().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
