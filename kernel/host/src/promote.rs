//! Moves drivers between rings while they run, by the word of a person or by themselves once their
//! files have earned it.

use crate::domain::{Handle, Ring, registry, sleep, trust};
use alloc::format;
use alloc::string::String;
use core::future::pending;
use core::sync::atomic::{AtomicBool, Ordering};
use embassy_futures::select::select;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::signal::Signal;
use embassy_time::Timer;
use hw::console::{self, Source};
use hw::link;
use log::Level;
use ringfence_core::evidence::policy::Admitted;
use ringfence_link::event::Event;

/// How often the records are looked at, in milliseconds.
const LOOK_MS: u64 = 1000;

static IS_AUTOMATIC: AtomicBool = AtomicBool::new(false);
static ON_CHANGE: Signal<CriticalSectionRawMutex, ()> = Signal::new();

/// Has drivers promoted as soon as their files have earned it, or no more.
pub fn set_automatic(on: bool) {
    IS_AUTOMATIC.store(on, Ordering::Relaxed);
    ON_CHANGE.signal(());
}

/// Returns whether drivers are promoted by themselves.
pub fn is_automatic() -> bool {
    IS_AUTOMATIC.load(Ordering::Relaxed)
}

fn tell(name: &str, ring: Ring) {
    link::tell(&Event::RingChanged { name: name.into(), ring: ring as u8 });
}

/// Moves a driver into ring 0, between two upcalls. Returns why it was admitted, or why not.
pub async fn promote(handle: &Handle, force: bool) -> Result<Admitted, String> {
    // A sleeping driver is not moved at once, so wait until it is awake.
    sleep::awake(handle).await;
    let mut domain = handle.lock();
    if !domain.is_alive() {
        return Err("it was ended; 'faults' says why".into());
    }
    let admitted = trust::promote(&mut domain, force).map_err(|why| format!("stays in ring 1: {why}"))?;
    domain.witnessed.is_held = false;
    tell(&domain.name, Ring::Trusted);
    Ok(admitted)
}

/// Moves a driver into ring 1, between two upcalls.
pub async fn demote(handle: &Handle) -> Result<(), String> {
    sleep::awake(handle).await;
    let mut domain = handle.lock();
    if !domain.is_alive() {
        return Err("it was ended; 'faults' says why".into());
    }
    domain.witnessed.is_held = true;
    domain.set_ring(Ring::Sandboxed);
    tell(&domain.name, Ring::Sandboxed);
    Ok(())
}

/// Moves the drivers out of ring 0 that the policy does not admit any more.
pub fn review() {
    for handle in registry::all() {
        let mut domain = handle.lock();
        let is_forced = domain.witnessed.forced_after.is_some();
        if domain.next_ring() == Ring::Trusted
            && domain.is_alive()
            && let Err(why) = trust::decide(&mut domain, is_forced)
        {
            domain.set_ring(Ring::Sandboxed);
            console::say_about(&Source::by_itself(&domain.name), Level::Warn, format_args!("moved to ring 1: {why}"));
            tell(&domain.name, Ring::Sandboxed);
        }
    }
}

/// The task that promotes drivers by themselves.
pub async fn run() {
    loop {
        let next = async {
            match is_automatic() {
                true => Timer::after_millis(LOOK_MS).await,
                false => pending().await,
            }
        };
        select(next, ON_CHANGE.wait()).await;
        if !is_automatic() {
            continue;
        }
        for handle in registry::all() {
            let mut domain = handle.lock();
            let is_ready = domain.ring() == Ring::Sandboxed && domain.next_ring() == Ring::Sandboxed;
            if !is_ready || !domain.life.is_running() || domain.witnessed.is_held {
                continue;
            }
            if let Ok(admitted) = trust::promote(&mut domain, false) {
                let text = format_args!("now in ring 0: {admitted}");
                console::say_about(&Source::by_itself(&domain.name), Level::Info, text);
                tell(&domain.name, Ring::Trusted);
            }
        }
    }
}
