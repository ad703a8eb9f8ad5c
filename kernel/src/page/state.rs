//! The state of the system, and its history of the last minutes.

use crate::shell::machine::fence_in_words;
use crate::shell::top::Snapshot;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use host::domain::{fault, offer, registry, trust};
use host::{evidence, module, promote, ramdisk};
use hw::arch::time;
use hw::memory::{self, frames};
use ringfence_core::lines;
use ringfence_link::event;
use serde::Serialize;
use spin::Mutex;

/// The time between two looks at the drivers.
pub const SAMPLE_MS: u64 = 1000;
/// The looks, and the events between them, that are kept.
const KEPT: usize = 180;
/// The most drivers of a look that are kept.
const MOST_DRIVERS: usize = 16;
/// The most memory of the kernel's heap that this takes: the history, twice.
const ROOM_BYTES: usize = 1 << 20;
/// The faults that are shown.
const FAULTS: usize = 8;

/// The state that the page shows.
#[derive(Serialize)]
struct State {
    version: &'static str,
    uptime_ms: u64,
    policy: Vec<String>,
    automatic: bool,
    idle_percent: f64,
    free_kib: u64,
    memory_kib: u64,
    domains: Vec<Domain>,
    faults: Vec<Fault>,
    history: Vec<Look>,
    marks: Vec<Mark>,
}

#[derive(Serialize)]
struct Domain {
    name: String,
    module: String,
    kind: String,
    domain_kind: &'static str,
    ring: u8,
    slot: usize,
    state: String,
    device: Option<String>,
    fence: Option<String>,
    cpu_percent: f64,
    crossings: f64,
    operations: f64,
    noun: String,
    bytes: f64,
    interrupts: f64,
    faults: u32,
    restarts: u64,
    memory_kib: u64,
    /// The record of its file: operations and seconds in ring 1 since the last fault, and faults.
    record: (u64, u64, u64),
    /// Whether it may run in ring 0, and why or why not.
    admitted: bool,
    why: String,
}

#[derive(Serialize)]
struct Fault {
    number: usize,
    at_ms: u64,
    driver: String,
    kind: &'static str,
    headline: String,
    report: String,
}

/// The drivers at some time.
#[derive(Clone, Serialize)]
struct Look {
    at_ms: u64,
    drivers: Vec<Rates>,
}

#[derive(Clone, Serialize)]
struct Rates {
    name: String,
    ring: u8,
    operations: f64,
    bytes: f64,
}

/// An event of a driver.
#[derive(Clone, Serialize)]
struct Mark {
    at_ms: u64,
    driver: String,
    what: &'static str,
}

/// The looks and the marks so far.
struct Seen {
    last: Option<Snapshot>,
    rates: Option<event::Event<'static>>,
    rings: Vec<(String, u8, u64)>,
    history: VecDeque<Look>,
    marks: VecDeque<Mark>,
}

static SEEN: Mutex<Seen> =
    Mutex::new(Seen { last: None, rates: None, rings: Vec::new(), history: VecDeque::new(), marks: VecDeque::new() });

fn now_ms() -> u64 {
    time::uptime_ns() / 1_000_000
}

fn keep<T>(all: &mut VecDeque<T>, one: T) {
    if all.len() == KEPT {
        all.pop_front();
    }
    all.push_back(one);
}

/// Looks at all drivers.
pub fn sample() {
    let mut seen = SEEN.lock();
    let at_ms = now_ms();
    let rates = seen.last.replace(Snapshot::take()).map(|before| before.rates());
    if let Some(event::Event::Activity { drivers, .. }) = &rates {
        let of = |driver: &event::Activity| Rates {
            name: driver.name.to_string(),
            ring: driver.ring,
            operations: driver.operations,
            bytes: driver.bytes,
        };
        let drivers = drivers.iter().take(MOST_DRIVERS).map(of).collect();
        keep(&mut seen.history, Look { at_ms, drivers });
    }
    seen.rates = rates;
    let rings: Vec<(String, u8, u64)> = registry::all()
        .iter()
        .map(|handle| handle.lock())
        .map(|domain| (domain.name.clone(), domain.ring() as u8, domain.restarts))
        .collect();
    let before = core::mem::replace(&mut seen.rings, rings.clone());
    for (name, ring, restarts) in rings {
        let what = match before.iter().find(|(other, ..)| *other == name) {
            Some((_, _, old)) if *old < restarts => "restarted",
            Some((_, 1, _)) if ring == 0 => "promoted",
            Some((_, 0, _)) if ring == 1 => "demoted",
            _ => continue,
        };
        keep(&mut seen.marks, Mark { at_ms, driver: name, what });
    }
}

/// Adds source lines to the places in a report, as far as the ramdisk has them.
fn with_lines(report: &str) -> String {
    let with_line = |line: &str| {
        let place = lines::address_in(line).and_then(|(name, offset)| {
            // A pushed build has other lines than the ramdisk's.
            let (_, table) = ramdisk::files().find(|(file, _)| file.strip_prefix("lines/") == Some(name))?;
            lines::find(table, offset)
        });
        place.map_or_else(|| line.to_string(), |(file, number)| format!("{line}, {file}:{number}"))
    };
    report.lines().map(with_line).collect::<Vec<_>>().join("\n")
}

/// Returns the state as JSON, with the looks and marks after `since_ms`; `None` if there is no
/// memory for it.
pub fn json(since_ms: u64) -> Option<String> {
    if !memory::has_room(ROOM_BYTES) {
        return None;
    }
    let seen = SEEN.lock();
    let (rates, idle_percent) = match &seen.rates {
        Some(event::Event::Activity { drivers, idle_percent, .. }) => (drivers.as_slice(), *idle_percent),
        _ => (&[][..], 0.0),
    };
    let domain = |handle: &host::domain::Handle| {
        let mut domain = handle.lock();
        let decision = module::decide(&mut domain, false);
        let record = evidence::record_of(&domain.file);
        let rates = rates.iter().find(|rates| rates.name == domain.name);
        let rate = |of: fn(&event::Activity) -> f64| rates.map_or(0.0, of);
        Domain {
            name: domain.name.clone(),
            module: domain.file.label().to_string(),
            kind: domain.manifest.kind().map(offer::kind_name).unwrap_or_default(),
            domain_kind: domain.space.kind().name(),
            ring: domain.ring() as u8,
            slot: domain.space.slot(),
            state: domain.state(),
            device: domain.drives.map(|which| which.to_string()),
            fence: domain.device.as_ref().map(fence_in_words),
            cpu_percent: rate(|rates| rates.cpu_percent),
            crossings: rate(|rates| rates.upcalls + rates.calls),
            operations: rate(|rates| rates.operations),
            noun: offer::operations_noun(&domain.manifest),
            bytes: rate(|rates| rates.bytes),
            interrupts: rate(|rates| rates.interrupts),
            faults: trust::fault_count(&domain),
            restarts: domain.restarts,
            memory_kib: domain.memory_bytes() / 1024,
            record: (record.operations, record.ms / 1000, record.faults),
            admitted: decision.is_ok(),
            why: decision.map_or_else(|why| why, |admitted| admitted.to_string()),
        }
    };
    let faults = fault::history().into_iter().rev().take(FAULTS).map(|(number, fault)| Fault {
        number,
        at_ms: fault.at_ns / 1_000_000,
        driver: fault.driver.clone(),
        kind: fault.kind,
        headline: fault.headline().to_string(),
        report: with_lines(&fault.in_full()),
    });
    let (free, all) = frames::count();
    let state = State {
        version: env!("CARGO_PKG_VERSION"),
        uptime_ms: now_ms(),
        policy: evidence::policy_in_words(),
        automatic: promote::is_automatic(),
        idle_percent,
        free_kib: free * 4,
        memory_kib: all * 4,
        domains: registry::all().iter().map(domain).collect(),
        faults: faults.collect(),
        history: seen.history.iter().filter(|look| look.at_ms > since_ms).cloned().collect(),
        marks: seen.marks.iter().filter(|mark| mark.at_ms > since_ms).cloned().collect(),
    };
    Some(serde_json::to_string(&state).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}")))
}
