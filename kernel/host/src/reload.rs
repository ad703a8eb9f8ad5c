//! Puts another build, or another module, in the place of a running driver, whose users go on with
//! it: an interface keeps its addresses and sockets, a disk the commands under way. The old build
//! is ended as a fault ends it, and its device is stopped by the kernel: its `exit` is not called,
//! and its work in hand is repeated by the new build, as after a restart.
//!
//! The task of [`crate::supervise`] carries reloads out, because it alone replaces drivers. A build
//! that does not start is not left in place: the build before it serves again at once. A build that
//! starts is on probation for a while (`limits reload-s`): a fault in that time brings the build
//! before it back, under any policy.

use crate::domain::cause::Cause;
use crate::domain::saved::SavedState;
use crate::domain::{Handle, Probation, Ring, end, registry, sleep};
use crate::file::File;
use crate::module::{self, LoadError};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use embassy_time::{Duration, with_timeout};
use hw::arch::time;
use hw::{link, memory};
use ringfence_abi::manifest::Policy;
use ringfence_core::limits::{RELOAD_S, SLEEP_MS};
use ringfence_link::event::Event;
use spin::Mutex;

/// Reloads that were asked for and have not begun.
static ORDERS: Mutex<Vec<Order>> = Mutex::new(Vec::new());
/// The most reloads that wait.
const MOST_ORDERS: usize = 16;

/// A reload that was asked for.
pub struct Order {
    /// The driver to replace.
    pub handle: Handle,
    file: File,
    outcome: Outcome,
}

/// The outcome of a reload, for the task that waits for it.
pub type Outcome = Arc<Mutex<Option<Result<Reloaded, ReloadError>>>>;

/// A driver that was reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloaded {
    /// The time in TSC ticks from the end of the old build until the new one was in its place.
    pub away_ticks: u64,
}

/// The reason why a driver was not reloaded.
#[derive(Debug)]
pub enum ReloadError {
    /// The file is refused, and the driver was not touched.
    Refused(LoadError),
    /// The new build did not start. The build before it is in its place again.
    Undone(LoadError),
    /// Neither the new build nor the one before it starts; the errors are in this order.
    Lost(LoadError, LoadError),
    /// Too many reloads wait.
    Busy,
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReloadError::Refused(error) => write!(f, "{error}"),
            ReloadError::Undone(error) => {
                write!(f, "the new build does not start, and the one before it serves again: {error}")
            }
            ReloadError::Lost(error, before) => {
                write!(f, "the new build does not start: {error}\n    and the one before it does not either: {before}")
            }
            ReloadError::Busy => write!(f, "{MOST_ORDERS} reloads wait already"),
        }
    }
}

/// Replaces the driver `handle` by a build from `file`, and waits until that is done. The reload
/// goes on if nobody waits for it any more.
///
/// # Errors
/// See [`ReloadError`].
pub async fn reload(handle: &Handle, file: File) -> Result<Reloaded, ReloadError> {
    let outcome = order(handle, file).ok_or(ReloadError::Busy)?;
    end::changed(|| outcome.lock().take()).await
}

/// Asks for a reload, and does not wait for it. Returns `None` if too many wait already.
pub fn order(handle: &Handle, file: File) -> Option<Outcome> {
    let outcome = Outcome::default();
    {
        let mut orders = ORDERS.lock();
        if orders.len() >= MOST_ORDERS {
            return None;
        }
        orders.push(Order { handle: handle.clone(), file, outcome: outcome.clone() });
    }
    end::note();
    Some(outcome)
}

/// Takes the reloads out that can begin: those of drivers that `is_free` says nobody replaces now.
pub fn take(is_free: impl Fn(&Handle) -> bool) -> Vec<Order> {
    let mut taken: Vec<Order> = Vec::new();
    let mut orders = ORDERS.lock();
    // Of several reloads of a driver, one begins.
    while let Some(place) = orders.iter().position(|order| {
        is_free(&order.handle) && taken.iter().all(|other| !Arc::ptr_eq(&other.handle, &order.handle))
    }) {
        taken.push(orders.remove(place));
    }
    taken
}

/// Carries a reload out.
pub async fn carry_out(order: Order) {
    let outcome = replace(&order.handle, &order.file).await;
    *order.outcome.lock() = Some(outcome);
    end::note();
}

async fn replace(handle: &Handle, file: &File) -> Result<Reloaded, ReloadError> {
    // An earlier reload or a restart may have replaced the driver.
    let name = handle.lock().name.clone();
    let handle = &registry::find(&name).ok_or(ReloadError::Refused(LoadError::NotLoaded(name)))?;
    if !memory::has_room(module::HEAP_BYTES) {
        return Err(ReloadError::Refused(LoadError::NoMemory));
    }
    module::admit(file).and_then(|()| module::admit_for(handle, file)).map_err(ReloadError::Refused)?;
    // Let a sleeping driver finish its upcall first, unless it falls asleep again and again.
    let _ = with_timeout(Duration::from_millis(SLEEP_MS.get()), sleep::awake(handle)).await;
    let began = time::tsc();
    // A driver that stands still for a debugger saves nothing.
    let stands = handle.lock().stands();
    let state = if stands { None } else { SavedState::of(handle).await };
    let (before, probation, ring, policy, is_changed) = {
        let mut domain = handle.lock();
        domain.end(Cause::Killed);
        // Meanwhile its users wait, as they do for a restart.
        let policy = domain.life.set_policy(Policy::Restart);
        let is_changed = domain.manifest.policy().ok() != Some(policy);
        (domain.file.clone(), domain.probation.take(), domain.next_ring(), policy, is_changed)
    };
    let error = match module::replace_with(handle, file, Ring::Sandboxed, None, state.as_ref()).await {
        Ok(fresh) => {
            let away_ticks = time::tsc().saturating_sub(began);
            let mut domain = fresh.lock();
            // A policy that a person has chosen stays.
            let own = domain.manifest.policy().unwrap_or(policy);
            domain.life.set_policy(if is_changed { policy } else { own });
            domain.life.forgive();
            let until_ns = time::uptime_ns().saturating_add(RELOAD_S.get() * 1_000_000_000);
            // A build that takes its own place has the probation that it had.
            domain.probation = if before.is_same(file) { probation } else { Some(Probation { before, until_ns }) };
            let away_us = time::nanoseconds(away_ticks) / 1000;
            link::tell(&Event::Reloaded { driver: domain.event(), version: domain.manifest.version().into(), away_us });
            return Ok(Reloaded { away_ticks });
        }
        Err(error) => error,
    };
    match module::replace_with(handle, &before, ring, None, state.as_ref()).await {
        Ok(fresh) => {
            let mut domain = fresh.lock();
            domain.life.set_policy(policy);
            domain.probation = probation;
            link::tell(&Event::ReloadUndone { name: domain.name.as_str().into(), why: error.to_string().into() });
            Err(ReloadError::Undone(error))
        }
        Err(second) => {
            // The driver's policy decides what happens next.
            handle.lock().life.set_policy(policy);
            Err(ReloadError::Lost(error, second))
        }
    }
}
