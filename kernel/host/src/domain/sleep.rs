//! Drivers that sleep in a service: the upcall is left in the middle of the service, and continued
//! when the time has come. [`crate::poll`] wakes the drivers.
//!
//! A driver that sleeps is alive and cannot be entered. Polls for it are noted, as for a driver
//! that rests, and all other upcalls wait ([`awake`]). The time that a driver may sleep in one
//! upcall is limited, because a person or a task may wait for the upcall's end. A driver may also
//! wait for the device that it uses: [`crate::poll::answered`] wakes it, and the time is limited as
//! well.
//!
//! Not taken:
//! * *A kernel stack for each driver.* It would keep the service in the middle of which the driver
//!   sleeps. But that service has nothing left to do, so the driver's registers are enough. They
//!   are kept where the next gate call does not overwrite them.
//! * *A sleep that holds the CPU.* A driver can do that by itself, within its budget.

use super::cause::{Cause, UpcallError};
use super::upcall::{put_current_to_sleep, with_current};
use super::{Domain, Handle, Ring, end};
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;
use embassy_sync::waitqueue::AtomicWaker;
use hw::arch::time;
use ringfence_core::limits::{COMMAND_MS, SLEEP_MS};
use spin::Mutex;

/// The drivers that sleep, and the end of each sleep in nanoseconds since boot. A driver that was
/// ended meanwhile is still here.
static ASLEEP: Mutex<Vec<(u64, Weak<Mutex<Domain>>)>> = Mutex::new(Vec::new());
/// Wakes the task that waits for the first sleep to end.
static ON_SLEEP: AtomicWaker = AtomicWaker::new();

/// For how many times the time for a request a driver may wait for its device in one upcall, and
/// the most that one wait counts.
const WAITS: u64 = 8;
const MOST_OF_A_WAIT_NS: u64 = 1_000_000_000;

/// A driver's sleep.
#[derive(Debug, Default)]
pub struct Sleep {
    /// The domain itself, once it has a [`Handle`].
    pub this: Weak<Mutex<Domain>>,
    /// The time that the driver has slept in the upcall under way, in nanoseconds.
    slept_ns: u64,
    /// The time that it has waited for the device that it uses, as far as that counts, and since
    /// when it waits now.
    waited_ns: u64,
    since_ns: u64,
    /// Whether the driver waits for the device that it uses.
    waits: bool,
    /// How often such a wait has ended.
    pub answers: u64,
    /// The timer ticks left of the budget of the upcall that the driver sleeps in.
    pub ticks_left: u32,
    /// The ring to which the driver moves at the end of that upcall.
    pub ring: Option<Ring>,
    /// The outcome of an upcall in which the driver slept, for the task that waits for it.
    done: Option<Done>,
}

/// The outcome of an upcall in which a driver slept.
#[derive(Debug)]
struct Done {
    /// The number of the upcall: the task that waited for it may have given up.
    upcall: u64,
    result: Result<u64, UpcallError>,
    /// The driver's answer to a command.
    answer: String,
}

impl Domain {
    /// Puts the driver to sleep from now on, in the upcall under way.
    pub fn begin_sleep(&mut self, delay_ns: u64) -> Result<(), Cause> {
        let slept_ns = self.sleep.slept_ns.saturating_add(delay_ns);
        if slept_ns > SLEEP_MS.get().saturating_mul(1_000_000) {
            return Err(Cause::Overslept { limit_ms: SLEEP_MS.get() });
        }
        self.sleep.slept_ns = slept_ns;
        self.life.sleep(time::uptime_ns().saturating_add(delay_ns));
        Ok(())
    }

    /// Puts the driver to sleep until the device that it uses has answered, in the upcall under
    /// way.
    pub fn begin_wait(&mut self) -> Result<(), Cause> {
        let limit_ms = COMMAND_MS.get().saturating_mul(WAITS);
        if self.sleep.waited_ns > limit_ms.saturating_mul(1_000_000) {
            return Err(Cause::Overslept { limit_ms });
        }
        self.sleep.waits = true;
        self.sleep.since_ns = time::uptime_ns();
        self.life.sleep(u64::MAX);
        Ok(())
    }

    /// Ends a wait that [`Domain::begin_wait`] has begun. Returns `false` if there is none.
    pub fn end_wait(&mut self) -> bool {
        let waits = core::mem::take(&mut self.sleep.waits);
        if waits {
            self.sleep.answers += 1;
            // The driver is not to blame for one answer that comes late.
            let waited_ns = time::uptime_ns().saturating_sub(self.sleep.since_ns).min(MOST_OF_A_WAIT_NS);
            self.sleep.waited_ns = self.sleep.waited_ns.saturating_add(waited_ns);
        }
        waits
    }

    /// Returns the ring in which the driver is entered next.
    pub fn next_ring(&self) -> Ring {
        self.sleep.ring.unwrap_or(self.ring())
    }

    /// Notes that an upcall in which the driver slept has ended.
    pub fn end_sleep(&mut self) {
        (self.sleep.slept_ns, self.sleep.waited_ns) = (0, 0);
        if let Some(ring) = self.sleep.ring.take() {
            self.set_ring(ring);
        }
    }
}

/// Puts the driver whose upcall is under way to sleep ([`Domain::begin_sleep`]). A trusted driver
/// continues after this call when it is woken.
#[cold]
#[inline(never)]
pub fn sleep_current() {
    with_current(|domain| {
        // A driver that waits for a device is woken by the device's answer.
        if !domain.sleep.waits {
            note(domain.life.asleep_until().unwrap_or(0), domain.sleep.this.clone());
        }
    });
    put_current_to_sleep();
}

/// Notes when a driver must wake. Entries of drivers that are gone are dropped.
fn note(until_ns: u64, domain: Weak<Mutex<Domain>>) {
    let mut asleep = ASLEEP.lock();
    asleep.retain(|(_, domain)| domain.strong_count() > 0);
    asleep.push((until_ns, domain));
    ON_SLEEP.wake();
}

/// Returns when the first sleeping driver must wake.
pub fn first_due_ns() -> Option<u64> {
    ASLEEP.lock().iter().map(|(until, _)| *until).min()
}

/// Takes out the drivers that must wake by `now_ns`.
pub fn take_due(now_ns: u64) -> Vec<Handle> {
    let mut due = Vec::new();
    ASLEEP.lock().retain(|(until, domain)| {
        let is_due = *until <= now_ns;
        due.extend(domain.upgrade().filter(|_| is_due));
        !is_due
    });
    due
}

/// Puts a driver back that was taken out: it wakes at `until_ns`.
pub fn put_off(handle: &Handle, until_ns: u64) {
    note(until_ns, Arc::downgrade(handle));
}

/// Waits until the first wake-up time is no longer `first`. For one task only.
pub async fn changed(first: Option<u64>) {
    poll_fn(|context| {
        ON_SLEEP.register(context.waker());
        if first_due_ns() == first { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// Keeps the outcome of an upcall in which `domain` slept, and wakes the tasks that wait for the
/// outcome, or for the driver to be awake.
pub fn woke(domain: &mut Domain, result: Result<u64, UpcallError>) {
    domain.sleep.done = Some(Done { upcall: domain.upcalls, result, answer: core::mem::take(&mut domain.answer) });
    end::note();
}

/// Waits until a driver does not sleep: then it runs, or was ended.
pub async fn awake(handle: &Handle) {
    end::changed(|| handle.lock().life.asleep_until().is_none().then_some(())).await;
}

/// Runs an upcall other than a poll to its end, however often the driver sleeps in it. Returns the
/// outcome, and the driver's answer. `begin` enters the driver.
pub async fn finish(
    handle: &Handle,
    begin: impl FnOnce(&mut Domain) -> Result<u64, UpcallError>,
) -> (Result<u64, UpcallError>, String) {
    awake(handle).await;
    let upcall = {
        let mut domain = handle.lock();
        let result = begin(&mut domain);
        if result != Err(UpcallError::Asleep) {
            return (result, core::mem::take(&mut domain.answer));
        }
        domain.upcalls
    };
    end::changed(|| {
        let mut domain = handle.lock();
        if let Some(done) = domain.sleep.done.take_if(|done| done.upcall == upcall) {
            return Some((done.result, done.answer));
        }
        (!domain.is_alive()).then(|| (Err(UpcallError::Ended), core::mem::take(&mut domain.answer)))
    })
    .await
}

/// Runs an upcall other than a poll to its end, and returns its result.
pub async fn upcall(handle: &Handle, operation: u64) -> Result<u64, UpcallError> {
    finish(handle, |domain| domain.upcall(operation, [0; 3])).await.0
}

/// Hands `text` to the driver's command entry, as [`Domain::command`] does, and waits for its end:
/// returns the outcome, and the driver's answer, also if the driver was ended.
pub async fn command(handle: &Handle, text: &str) -> (Result<u64, UpcallError>, String) {
    finish(handle, |domain| domain.command(text)).await
}
