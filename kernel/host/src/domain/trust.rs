//! The module files that may run in ring 0. A file that has faulted in ring 1 may not, until a
//! person forgives it with `policy`.

use super::cause::Cause;
use super::{Domain, Ring, registry};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use ringfence_abi::manifest::RING1_ONLY;
use spin::Mutex;

/// The number of faults of each module file in ring 1, since boot or since a person forgave it.
static FAULTED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

/// Module files that a person has banned from ring 0.
static NEVER: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Counts a fault of the module of `domain`. Being killed by a person does not count.
pub fn record_fault(domain: &Domain, cause: Cause) {
    if domain.ring() == Ring::Sandboxed && cause != Cause::Killed {
        *FAULTED.lock().entry(domain.file.name.clone()).or_insert(0) += 1;
    }
}

/// Returns how often the module of `domain` faulted in ring 1 since a person forgave it.
pub fn fault_count(domain: &Domain) -> u32 {
    FAULTED.lock().get(&domain.file.name).copied().unwrap_or(0)
}

/// Forgets the faults of the module of `domain`.
pub fn forgive(domain: &Domain) {
    FAULTED.lock().remove(&domain.file.name);
}

/// Bans the module file `name` from ring 0 until the machine ends. Its domains in ring 0 are moved
/// to ring 1.
pub fn never_trust(name: &str) {
    NEVER.lock().insert(name.into());
    for handle in registry::all() {
        let mut domain = handle.lock();
        if domain.file.name == name {
            domain.set_ring(Ring::Sandboxed);
        }
    }
}

/// Returns whether a person has banned the module file `name` from ring 0.
pub fn is_banned(name: &str) -> bool {
    NEVER.lock().contains(name)
}

/// Returns the reason why `domain` may not run in ring 0, if there is one.
pub fn distrust(domain: &Domain) -> Option<String> {
    if domain.manifest.flags & RING1_ONLY != 0 || is_banned(&domain.file.name) {
        return Some("it is for ring 1 only".into());
    }
    if domain.is_debugged() {
        return Some("a debugger has breakpoints in it, or has stopped it".into());
    }
    let faults = FAULTED.lock().get(&domain.file.name).copied()?;
    let times = if faults == 1 { "once".into() } else { format!("{faults} times") };
    Some(format!("it faulted {times} in ring 1; 'policy {} restart' or 'stop' forgives that", domain.name))
}
