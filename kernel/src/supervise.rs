//! Brings drivers back that were ended by a fault, if their policy says so.
//!
//! The same file is loaded anew, into ring 1 whatever ring it was in, under the same name. What is above stays: an
//! interface keeps its address and its sockets, a SCSI host its disks and the commands that wait for it. The first
//! restart comes at once, each further one waits twice as long; too many in a minute are the last.

use crate::arch::time;
use crate::domain::Handle;
use crate::module;
use alloc::format;
use alloc::string::String;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::Timer;
use ringfence_abi::manifest::Policy;

/// Restarts within [`WINDOW_NS`] after which a driver is given up.
const LIMIT: usize = 8;
const WINDOW_NS: u64 = 60_000_000_000;
/// Wait before the second restart; it doubles with each further one.
const FIRST_WAIT_MS: u64 = 10;

static WORK: AtomicWaker = AtomicWaker::new();
static PENDING: AtomicBool = AtomicBool::new(false);

/// A driver may have been ended.
pub fn note() {
    PENDING.store(true, Ordering::Release);
    WORK.wake();
}

/// Whether a driver that was ended will be back.
pub fn will_be_back(handle: &Handle) -> bool {
    let domain = handle.lock();
    domain.fault.is_some() && !domain.stopped && domain.policy == Policy::Restart && !domain.given_up
}

/// The task that restarts drivers.
pub async fn run() {
    loop {
        poll_fn(|context| {
            WORK.register(context.waker());
            if PENDING.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        while let Some(dead) = module::loaded().into_iter().find(will_be_back) {
            revive(&dead).await;
        }
    }
}

async fn revive(dead: &Handle) {
    let (name, count) = {
        let mut domain = dead.lock();
        let now = time::uptime_ns();
        domain.faults_at.retain(|at| now - at < WINDOW_NS);
        domain.faults_at.push(now);
        (domain.name.clone(), domain.faults_at.len())
    };
    let note = |done: String| {
        if let Some(fault) = &dead.lock().fault {
            fault.set_done(done);
        }
    };
    if count > LIMIT {
        note(format!("it was given up after {LIMIT} restarts"));
        log::error!("{name}: given up after {LIMIT} restarts in {} s", WINDOW_NS / 1_000_000_000);
        dead.lock().given_up = true;
        crate::scsi::wake_waiting();
        return;
    }
    if count > 1 {
        Timer::after_millis(FIRST_WAIT_MS << (count - 2)).await;
    }
    // It may have been unloaded, or its policy changed, in the meantime.
    if !will_be_back(dead) {
        crate::scsi::wake_waiting();
        return;
    }
    let start = time::tsc();
    match module::replace(dead) {
        Ok(()) => {
            let microseconds = time::nanoseconds(time::tsc() - start) / 1000;
            note(format!("it was restarted in ring 1 within {microseconds} us (restart {count})"));
            log::info!("{name}: restarted in ring 1 within {microseconds} us (restart {count})");
        }
        Err(error) => {
            note(format!("restart {count} failed: {error}"));
            log::error!("{name}: restart {count}: {error}");
        }
    }
}
