//! The end of a driver that does not run right now, and those who wait for one.

use super::cause::Cause;
use super::{Domain, Handle};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Poll, Waker};
use embassy_sync::waitqueue::AtomicWaker;
use hw::task::wait_in;
use spin::Mutex;

/// Who brings drivers back: woken, and told that there may be something to do.
static ON_NEXT: AtomicWaker = AtomicWaker::new();
static PENDING: AtomicBool = AtomicBool::new(false);
/// Who waits for the end of a certain driver, or for it to wake.
static ON_END: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

/// Ends a driver that does not run right now: for what it left in a queue or undone, or because a
/// person says so.
pub fn condemn(handle: &Handle, cause: Cause) {
    let mut domain = handle.lock();
    domain.condemn(cause);
    quiesce(&mut domain);
}

/// Stops the device of a driver that was ended, and tells those who wait for it.
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

/// A driver may have been ended or have woken, or what is to become of one may have changed.
pub fn note() {
    PENDING.store(true, Ordering::Release);
    ON_NEXT.wake();
    core::mem::take(&mut *ON_END.lock()).into_iter().for_each(Waker::wake);
}

/// Waits until one may have been, since this was waited for last. For one task.
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

/// Waits until `look` finds something: it looks whenever a driver was ended, or has woken.
pub async fn changed<T>(mut look: impl FnMut() -> Option<T>) -> T {
    poll_fn(|context| {
        wait_in(&mut ON_END.lock(), context.waker());
        look().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
