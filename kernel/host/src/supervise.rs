//! Restarts drivers that were ended by a fault, if their policy says so, and moves drivers that
//! have lost their trust out of ring 0.
//!
//! The same file is loaded anew, in the same slot and under the same name, and always into ring 1.
//! The layers above keep their state: an interface keeps its address and its sockets, a SCSI host
//! its disks and the commands that wait for it. The first restart comes at once, and each further
//! restart waits twice as long. After too many restarts in a minute, the driver is given up
//! ([`ringfence_core::limits`]). A module that faulted is not trusted until a person
//! forgives it with `policy`.
//!
//! Not taken:
//! * *Checkpoints of a driver's state* (as Membrane has). That state led to the fault: a successor
//!   that starts from it faults again. Here a driver has no state that its successor needs, because
//!   requests are with the kernel ([`crate::requests`]).
//! * *A shadow driver that answers meanwhile* (Swift et al.). It has to know each class's
//!   semantics; a restart takes milliseconds, and clients can wait so long.
//! * *A supervisor outside of the kernel* (MINIX' reincarnation server). It would be one more
//!   component that can end, and the kernel has to hold the requests under way in any case.

use crate::domain::fault;
use crate::domain::hardware::State;
use crate::domain::{Domain, Handle, Ring, end, life, offer, registry, trust};
use crate::file::File;
use crate::{module, poll, pushed, reload};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::Poll;
use embassy_futures::select::select;
use embassy_futures::{poll_once, yield_now};
use embassy_time::{Instant, Timer};
use hw::arch::time;
use hw::console::Source;
use hw::{console, link};
use log::Level;
use ringfence_abi::manifest::DomainKind;
use ringfence_core::life::{Patience, TooOften};
use ringfence_core::limits::{RESTART_WAIT_MS, RESTART_WINDOW_S, RESTARTS};
use ringfence_core::module::file_name;
use ringfence_link::event::Event;
use spin::{Mutex, MutexGuard};

/// The time in TSC ticks that the last restarted driver was away, and the part of it that stopping
/// its device took.
static LAST: Mutex<[u64; 2]> = Mutex::new([0; 2]);

/// Returns the two times of [`LAST`].
pub fn last_restart() -> [u64; 2] {
    *LAST.lock()
}

/// The task that restarts drivers: each at its own time, independent of the others.
pub async fn run() {
    let mut under_way: Vec<Restart> = Vec::new();
    loop {
        demote();
        let is_under_way = |dead: &Handle| under_way.iter().any(|restart| Arc::ptr_eq(&restart.dead, dead));
        for order in reload::take(|handle| !is_under_way(handle)) {
            let dead = order.handle.clone();
            begin(&mut under_way, dead, Box::pin(reload::carry_out(order)));
        }
        let is_under_way = |dead: &Handle| under_way.iter().any(|restart| Arc::ptr_eq(&restart.dead, dead));
        let mut dead: Vec<Handle> = registry::all().into_iter().filter(life::will_be_back).collect();
        dead.retain(|dead| !is_under_way(dead));
        let due = dead.iter().filter_map(|dead| Some((plan(dead)?, dead.clone()))).min_by_key(|(at, _)| *at);
        drop(dead);
        match due {
            Some((at, dead)) if at <= time::uptime_ns() => {
                begin(&mut under_way, dead.clone(), Box::pin(revive(dead)));
                yield_now().await;
            }
            due => {
                fault::print_pending();
                let work = select(end::next(), first_done(&mut under_way));
                match due.map(|(at, _)| at) {
                    Some(at) => {
                        select(work, Timer::at(Instant::from_micros(at / 1000 + 1))).await;
                    }
                    None => {
                        work.await;
                    }
                }
            }
        }
    }
}

/// A restart or a reload whose driver sleeps in its `init`. Other drivers are restarted meanwhile.
struct Restart {
    dead: Handle,
    done: Work,
}

/// The future of a restart or of a reload.
type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Begins a restart or a reload of `dead`, and notes it if it is not done at once.
fn begin(under_way: &mut Vec<Restart>, dead: Handle, mut done: Work) {
    if poll_once(&mut done).is_pending() {
        under_way.push(Restart { dead, done });
    } else {
        // Free its memory before another task runs.
        drop(done);
        fault::print_pending();
    }
}

/// Waits until a restart is done, and takes it off the list.
async fn first_done(under_way: &mut Vec<Restart>) {
    poll_fn(|context| {
        let done = under_way.iter_mut().position(|restart| restart.done.as_mut().poll(context).is_ready());
        match done {
            Some(number) => {
                under_way.remove(number);
                Poll::Ready(())
            }
            None => Poll::Pending,
        }
    })
    .await;
}

/// Moves drivers in ring 0 that are no longer trusted to ring 1: other instances of a module that
/// faulted.
fn demote() {
    for handle in registry::all() {
        let mut domain = handle.lock();
        if domain.next_ring() == Ring::Trusted
            && domain.is_alive()
            && let Some(why) = trust::lost(&domain)
        {
            domain.set_ring(Ring::Sandboxed);
            console::say_about(&Source::by_itself(&domain.name), Level::Warn, format_args!("moved to ring 1: {why}"));
            link::tell(&Event::RingChanged { name: domain.name.as_str().into(), ring: 1 });
        }
    }
}

/// Returns when a driver that was ended is to be restarted, in nanoseconds since boot. Counts the
/// attempt when it is planned. Returns `None` if there were too many attempts.
fn plan(dead: &Handle) -> Option<u64> {
    let mut domain = dead.lock();
    // [`Domain::stop_device`] has logged that.
    let memory = domain.space.is_set_aside();
    if memory || domain.drives.is_some_and(|which| which.state() == State::SetAside) {
        let with = if memory { " with its memory" } else { "" };
        give_up(domain, format!("it was given up: its device did not stop, and is set aside{with}"));
        return None;
    }
    let patience = Patience {
        window_ns: RESTART_WINDOW_S.get() * 1_000_000_000,
        restarts: RESTARTS.get(),
        wait_ns: RESTART_WAIT_MS.get() * 1_000_000,
        rest_ns: poll::rest_ns(&domain),
    };
    match domain.life.plan(time::uptime_ns(), patience) {
        Ok(at) => Some(at),
        Err(TooOften) => {
            let limit = patience.restarts;
            let text = format_args!("given up after {limit} restarts in {} s", RESTART_WINDOW_S.get());
            console::say_about(&domain.source(), Level::Error, text);
            give_up(domain, format!("it was given up after {limit} restarts"));
            None
        }
    }
}

/// Reports that the build before a reload is back, because of the fault of `dead`.
fn undone(dead: &Handle) {
    let domain = dead.lock();
    let why = domain.life.fault().map_or("", |fault| fault.headline());
    link::tell(&Event::ReloadUndone { name: domain.name.as_str().into(), why: why.into() });
    console::say_about(&domain.source(), Level::Warn, format_args!("the reload is undone, as the new build faulted"));
}

/// Gives a driver up, and wakes the tasks that wait for it, so that they wait no longer.
fn give_up(mut domain: MutexGuard<'_, Domain>, done: String) {
    link::tell(&Event::GivenUp { name: domain.name.as_str().into(), why: done.as_str().into() });
    if let Some(fault) = domain.life.fault() {
        fault.set_done(done);
    }
    domain.life.give_up();
    drop(domain);
    offer::wake_waiting();
}

async fn revive(dead: Handle) {
    let dead = &dead;
    let (source, count) = {
        let mut domain = dead.lock();
        (domain.source(), domain.life.begin_restart())
    };
    let note = |done: String| {
        if let Some(fault) = dead.lock().life.fault() {
            fault.set_done(done);
        }
    };
    // The driver may have been unloaded, or its policy changed, in the meantime.
    if !life::will_be_back(dead) {
        offer::wake_waiting();
        return;
    }
    let (file, back, since) = {
        let domain = dead.lock();
        let back = domain.goes_back_to().cloned();
        (domain.file.clone(), back, domain.life.fault().map_or(0, |fault| fault.at_tsc))
    };
    match module::replace(dead, back.as_ref().unwrap_or(&file), Ring::Sandboxed, None).await {
        Ok(fresh) => {
            fresh.lock().restarts += 1;
            match back {
                Some(before) => {
                    // Another module's file is as good as before. A build for the other kind of
                    // domain is not, if it was pushed.
                    let module = |file: &File| file_name(&file.name, DomainKind::Paged);
                    if before.name == file.name {
                        pushed::go_back_to(&before);
                    } else if module(&before) == module(&file) {
                        pushed::forget(&file);
                    }
                    undone(dead);
                }
                // The build was not to blame, and is still on probation.
                None => fresh.lock().probation = dead.lock().probation.take(),
            }
            let ticks = [time::tsc().saturating_sub(since), dead.lock().stop_ticks];
            *LAST.lock() = ticks;
            let [total, stop] = ticks.map(|ticks| time::nanoseconds(ticks) / 1000);
            let name = dead.lock().name.clone();
            link::tell(&Event::Restarted { name: name.into(), number: count as u64, after_us: total, reset_us: stop });
            let done = format!("restarted in ring 1 after {total} us (reset {stop}), #{count}");
            console::say_about(&source, Level::Info, format_args!("{done}"));
            note(format!("it was {done}"));
        }
        Err(error) => {
            note(format!("restart {count} failed: {error}"));
            console::say_about(&source, Level::Error, format_args!("restart {count}: {error}"));
        }
    }
}
