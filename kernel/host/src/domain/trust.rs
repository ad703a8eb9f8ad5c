//! Whether a driver may run in ring 0: its file must have the evidence that this machine's policy
//! demands ([`crate::evidence`]), and must not have a fault that no person has forgiven with
//! `policy`.

use super::cause::Cause;
use super::{Domain, Handle, Ring, offer, registry};
use crate::evidence;
use crate::file::File;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use ringfence_abi::manifest::{DomainKind, Manifest, RING1_ONLY};
use ringfence_core::evidence::policy::{Admitted, Force};
use ringfence_core::module::file_name;
use spin::Mutex;

/// The faults of a module.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    count: u32,
    /// The ring of the last fault.
    ring: u8,
}

/// The faults of each module, in domains of either kind, since boot or since a person forgave it.
static FAULTED: Mutex<BTreeMap<String, Faults>> = Mutex::new(BTreeMap::new());

/// Modules that a person has banned from ring 0.
static NEVER: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Returns the name of the module of `domain`, which its builds for both kinds have in common.
fn module_of(domain: &Domain) -> String {
    file_name(&domain.file.name, DomainKind::Paged)
}

/// Counts a fault of the module of `domain`, for which it is ended. Being killed by a person does
/// not count.
pub fn record_fault(domain: &Domain, cause: Cause, kind: &'static str) {
    if cause == Cause::Killed {
        return;
    }
    let ring = domain.ring() as u8;
    let mut faulted = FAULTED.lock();
    let faults = faulted.entry(module_of(domain)).or_default();
    *faults = Faults { count: faults.count.saturating_add(1), ring };
    if !domain.witnessed.is_changed {
        evidence::note_fault(&domain.file, kind, ring);
    }
}

/// Returns how often the module of `domain` faulted since a person forgave it.
pub fn fault_count(domain: &Domain) -> u32 {
    FAULTED.lock().get(&module_of(domain)).map_or(0, |faults| faults.count)
}

/// Forgets the faults of the module of `domain`, whose other build is `other`, if it has one. Their
/// records keep them.
pub fn forgive(domain: &Domain, other: Option<&File>) {
    FAULTED.lock().remove(&module_of(domain));
    evidence::forgive(&domain.file);
    other.into_iter().for_each(evidence::forgive);
}

/// Bans the module of `domain` from ring 0 until the machine ends. Its domains in ring 0 are moved
/// to ring 1.
pub fn never_trust(module: &Handle) {
    let banned = module_of(&module.lock());
    NEVER.lock().insert(banned.clone());
    for handle in registry::all() {
        let mut domain = handle.lock();
        if module_of(&domain) == banned {
            domain.set_ring(Ring::Sandboxed);
        }
    }
}

/// Returns whether a person has banned the module of `domain` from ring 0.
pub fn is_banned(domain: &Domain) -> bool {
    NEVER.lock().contains(&module_of(domain))
}

/// Returns the reason why a build of the module of `domain`, with this manifest, is for ring 1
/// only, if there is one.
pub fn banned(domain: &Domain, manifest: &Manifest) -> Option<String> {
    (manifest.flags & RING1_ONLY != 0 || is_banned(domain)).then(|| "it is for ring 1 only".into())
}

/// Returns the reason why the faults of the module of `domain` keep it in ring 1, if they do.
pub fn unforgiven(domain: &Domain) -> Option<String> {
    let Faults { count, ring } = FAULTED.lock().get(&module_of(domain)).copied()?;
    let times = if count == 1 { "once,".into() } else { format!("{count} times, last") };
    domain
        .witnessed
        .forced_after
        .is_none_or(|by_then| by_then < count)
        .then(|| format!("it faulted {times} in ring {ring}; 'policy {} restart' or 'stop' forgives that", domain.name))
}

/// Returns the reason why `domain` may not run in ring 0 regardless of its evidence, if there is
/// one.
fn barred(domain: &Domain) -> Option<String> {
    banned(domain, &domain.manifest)
        .or_else(|| domain.is_segmented().then(|| "it is segmented, and ring 0 is for 64-bit code".into()))
        .or_else(|| domain.is_debugged().then(|| "a debugger has breakpoints in it, or has stopped it".into()))
}

/// Returns the reason why `domain` must leave ring 0, if there is one.
pub fn lost(domain: &Domain) -> Option<String> {
    barred(domain).or_else(|| unforgiven(domain))
}

/// Returns what the word of a person is worth in this kernel.
pub fn force(is_given: bool) -> Force {
    match (is_given, cfg!(feature = "force")) {
        (false, _) => Force::NotGiven,
        (true, true) => Force::Given,
        (true, false) => Force::NotTaken,
    }
}

/// Decides whether `domain` may run in ring 0. The error is the reason why not.
pub fn decide(domain: &mut Domain, force: bool) -> Result<Admitted, String> {
    let force = self::force(force);
    domain.witness();
    if let Some(why) = if force == Force::Given { barred(domain) } else { lost(domain) } {
        return Err(why);
    }
    if domain.witnessed.is_changed && force != Force::Given && !evidence::is_for_development() {
        return Err("its code or data were changed in memory, so it is not what its file says".into());
    }
    evidence::decide(&domain.file, &offer::operations_noun(&domain.manifest), force)
}

/// Moves a driver into ring 0, if it may run there; `force` is the word of a person that it may.
/// Returns why it was admitted, or the reason why not.
pub fn promote(domain: &mut Domain, force: bool) -> Result<Admitted, String> {
    let (admitted, is_forced) = match decide(domain, false) {
        Err(_) if force => (decide(domain, true)?, true),
        earned => (earned?, false),
    };
    domain.witnessed.forced_after = is_forced.then(|| fault_count(domain));
    domain.set_ring(Ring::Trusted);
    Ok(admitted)
}

/// Returns the reason why `domain` may not run in ring 0, if there is one.
pub fn distrust(domain: &mut Domain) -> Option<String> {
    decide(domain, false).err()
}
