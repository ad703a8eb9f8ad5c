//! Cooperative tasks on one executor, and the times they wait for. When no task can go on, the CPU
//! halts.

use crate::arch::interrupts::{fired, halt_unless};
use crate::arch::time;
use alloc::boxed::Box;
use core::cell::RefCell;
use core::future::Future;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::Waker;
use critical_section::{CriticalSection, Mutex, RawRestoreState};
use embassy_executor::Spawner;
use embassy_executor::raw::{Executor, TaskStorage};
use embassy_time_driver::Driver;
use embassy_time_queue_utils::Queue;
pub use ringfence_core::requests::repeat::wait_in;
use x86_64::instructions::interrupts;

/// Set whenever a task can go on.
static PENDING: AtomicBool = AtomicBool::new(false);

#[unsafe(export_name = "__pender")]
fn pend(_context: *mut ()) {
    PENDING.store(true, Ordering::Release);
}

struct InterruptsOff;
critical_section::set_impl!(InterruptsOff);

// SAFETY: there is one CPU, so with interrupts off nothing else runs.
unsafe impl critical_section::Impl for InterruptsOff {
    unsafe fn acquire() -> RawRestoreState {
        let were_on = interrupts::are_enabled();
        interrupts::disable();
        were_on
    }

    unsafe fn release(were_on: RawRestoreState) {
        if were_on {
            interrupts::enable();
        }
    }
}

/// embassy-time's clock: microseconds since boot. A waiting task is woken by the first timer tick
/// at or after its time.
struct Clock {
    queue: Mutex<RefCell<Queue>>,
    next: AtomicU64,
}

embassy_time_driver::time_driver_impl!(static CLOCK: Clock = Clock {
    queue: Mutex::new(RefCell::new(Queue::new())),
    next: AtomicU64::new(u64::MAX),
});

impl Driver for Clock {
    fn now(&self) -> u64 {
        time::uptime_ns() / 1000
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        critical_section::with(|section: CriticalSection| {
            self.queue.borrow(section).borrow_mut().schedule_wake(at, waker);
            self.next.fetch_min(at, Ordering::Relaxed);
        });
    }
}

/// Handles the timer tick: wakes the tasks whose time has come. Interrupts are off.
pub fn tick() {
    let now = CLOCK.now();
    if CLOCK.next.load(Ordering::Relaxed) <= now {
        critical_section::with(|section| {
            let next = CLOCK.queue.borrow(section).borrow_mut().next_expiration(now);
            CLOCK.next.store(next, Ordering::Relaxed);
        });
    }
}

/// Starts a task that never ends.
pub fn spawn<F: Future<Output = ()> + 'static>(spawner: Spawner, future: impl FnOnce() -> F) {
    let storage: &'static TaskStorage<F> = Box::leak(Box::new(TaskStorage::new()));
    match storage.spawn(future) {
        Ok(token) => spawner.spawn(token),
        Err(_) => unreachable!("the storage is fresh"),
    }
}

/// Runs tasks for ever; `init` starts them. After each turn of all tasks that could go on,
/// `between` is told whether one can go on at once, and returns whether to look for one. If not,
/// the CPU halts until a task can go on, or a device's line has fired.
pub fn run(init: impl FnOnce(Spawner), between: fn(bool) -> bool) -> ! {
    let executor: &'static Executor = Box::leak(Box::new(Executor::new(core::ptr::null_mut())));
    init(executor.spawner());
    interrupts::enable();
    loop {
        PENDING.store(false, Ordering::Release);
        // SAFETY: this is the only place that polls the executor.
        unsafe { executor.poll() };
        if between(PENDING.load(Ordering::Acquire)) {
            continue;
        }
        halt_unless(|| PENDING.load(Ordering::Acquire) || fired() != 0);
    }
}
