//! Drivers that sleep in a service: the upcall is left there, and gone on with when the time has
//! come. [`crate::poll`] wakes them.
//!
//! A driver that sleeps is alive and cannot be entered: polls for it are noted, as for one that
//! rests, and everything else waits ([`awake`]). What it may sleep in one upcall is limited, since
//! somebody may be waiting for the upcall's end.
//!
//! Not taken:
//! * *A stack of the kernel's for each driver.* It would be there for a service in the middle of
//!   which a driver sleeps; but nothing of that service is left to do, so the driver's own
//!   registers are enough, and those are kept where the next gate call does not overwrite them.
//! * *A sleep that holds the CPU.* It is what a driver can do by itself, by its budget.

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
use ringfence_core::limits::SLEEP_MS;
use spin::Mutex;

/// Who sleeps, and until when in nanoseconds since boot. One that was ended meanwhile is here
/// still.
static ASLEEP: Mutex<Vec<(u64, Weak<Mutex<Domain>>)>> = Mutex::new(Vec::new());
/// Wakes the task that waits for the first of them.
static ON_SLEEP: AtomicWaker = AtomicWaker::new();

/// A driver's sleep.
#[derive(Debug, Default)]
pub struct Sleep {
    /// The domain itself, once it is one that several know.
    pub this: Weak<Mutex<Domain>>,
    /// How long it has slept in the upcall under way, in nanoseconds.
    slept_ns: u64,
    /// Timer ticks that it may yet see in the upcall that it sleeps in.
    pub ticks_left: u32,
    /// To which ring it moves when that has ended.
    pub ring: Option<Ring>,
    /// What came of an upcall in which it slept, for whoever waits for that.
    done: Option<Done>,
}

/// What came of an upcall in which a driver slept.
#[derive(Debug)]
struct Done {
    /// Which upcall it was: who has waited for it may have given that up.
    upcall: u64,
    result: Result<u64, UpcallError>,
    /// What it has said in answer to a command.
    answer: String,
}

impl Domain {
    /// Has it sleep from now on, in the upcall that is under way.
    pub fn begin_sleep(&mut self, delay_ns: u64) -> Result<(), Cause> {
        let slept_ns = self.sleep.slept_ns.saturating_add(delay_ns);
        if slept_ns > SLEEP_MS.get().saturating_mul(1_000_000) {
            return Err(Cause::Overslept { limit_ms: SLEEP_MS.get() });
        }
        self.sleep.slept_ns = slept_ns;
        self.life.sleep(time::uptime_ns().saturating_add(delay_ns));
        Ok(())
    }

    /// The ring in which it is entered next.
    pub fn next_ring(&self) -> Ring {
        self.sleep.ring.unwrap_or(self.ring())
    }

    /// An upcall in which it slept has ended.
    pub fn end_sleep(&mut self) {
        self.sleep.slept_ns = 0;
        if let Some(ring) = self.sleep.ring.take() {
            self.set_ring(ring);
        }
    }
}

/// Has the driver whose upcall is under way sleep, as [`Domain::begin_sleep`] says. A trusted one
/// goes on behind this.
#[cold]
#[inline(never)]
pub fn sleep_current() {
    with_current(|domain| {
        note(domain.life.asleep_until().unwrap_or(0), domain.sleep.this.clone());
        ON_SLEEP.wake();
    });
    put_current_to_sleep();
}

/// Notes when one is to wake; of those that are gone nothing is kept.
fn note(until_ns: u64, domain: Weak<Mutex<Domain>>) {
    let mut asleep = ASLEEP.lock();
    asleep.retain(|(_, domain)| domain.strong_count() > 0);
    asleep.push((until_ns, domain));
}

/// When the first of those that sleep is to wake.
pub fn first_due_ns() -> Option<u64> {
    ASLEEP.lock().iter().map(|(until, _)| *until).min()
}

/// Takes out who is to wake by `now_ns`.
pub fn take_due(now_ns: u64) -> Vec<Handle> {
    let mut due = Vec::new();
    ASLEEP.lock().retain(|(until, domain)| {
        let is_due = *until <= now_ns;
        due.extend(domain.upgrade().filter(|_| is_due));
        !is_due
    });
    due
}

/// Has one that was taken out wake at `until_ns`.
pub fn put_off(handle: &Handle, until_ns: u64) {
    note(until_ns, Arc::downgrade(handle));
}

/// Waits until somebody falls asleep, if `first` is when the first is to wake still. For one task.
pub async fn changed(first: Option<u64>) {
    poll_fn(|context| {
        ON_SLEEP.register(context.waker());
        if first_due_ns() == first { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// Keeps what came of an upcall in which `domain` slept, and tells who waits for that, or for it to
/// be awake.
pub fn woke(domain: &mut Domain, result: Result<u64, UpcallError>) {
    domain.sleep.done = Some(Done { upcall: domain.upcalls, result, answer: core::mem::take(&mut domain.answer) });
    end::note();
}

/// Waits until a driver does not sleep: it is ended, if it does not run.
pub async fn awake(handle: &Handle) {
    end::changed(|| handle.lock().life.asleep_until().is_none().then_some(())).await;
}

/// Runs an upcall other than a poll to its end, however often the driver sleeps in it: what came of
/// it, and what the driver has said in answer. `begin` enters the driver.
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

/// Runs an upcall other than a poll to its end.
pub async fn upcall(handle: &Handle, operation: u64) -> Result<u64, UpcallError> {
    finish(handle, |domain| domain.upcall(operation, [0; 3])).await.0
}

/// Hands `text` to the driver's command entry, as [`Domain::command`] does, and waits for its end:
/// what came of it, and what the driver has said, also if it was ended.
pub async fn command(handle: &Handle, text: &str) -> (Result<u64, UpcallError>, String) {
    finish(handle, |domain| domain.command(text)).await
}
