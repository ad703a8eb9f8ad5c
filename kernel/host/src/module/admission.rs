//! Checks that a module must pass before it is loaded. It must not pass for another module, and
//! must not have code that can break out under QEMU.

use super::confinement;
use super::error::LoadError;
use crate::domain::{Domain, Handle, report};
use crate::file::File;
use alloc::vec;
use alloc::vec::Vec;
use hw::arch::tcg;
use ringfence_abi::layout::IMAGE;
use ringfence_abi::manifest::DomainKind;
use ringfence_core::arguments::Patch;
use ringfence_core::limits::{LOCK_BTS, SEG_LOADS, SS_LOADS};
use ringfence_core::module::Module;
use ringfence_core::tcg::{Hole, MAX_INSTRUCTION, holes};
use x86_64::structures::paging::PageTableFlags;

/// The kinds of code that are refused, worst first.
const HOLES: [Hole; 3] = [Hole::LocksBitTest, Hole::LoadsNoSegment, Hole::LoadsSs];

/// Refuses a file whose module has another name. Otherwise two files could pass for one module, and
/// an untrusted file for a trusted one.
///
/// Refuses a segmented module where such domains do not hold ([`confinement`]).
///
/// On QEMU's TCG, also refuses a file with code that TCG mishandles ([`ringfence_core::tcg`]) at
/// more places than a person allows. Every file must be admitted before it is loaded for the first
/// time.
pub fn admit(file: &File) -> Result<(), LoadError> {
    let module = Module::parse(&file.bytes).map_err(LoadError::Refused)?;
    if module.file_name() != file.name {
        return Err(LoadError::Misnamed(module.file_name()));
    }
    if module.domain == DomainKind::Segmented {
        confinement::check().map_err(LoadError::NotConfined)?;
    }
    let mut left = HOLES.map(|hole| (hole, allowed(hole)));
    for (offset, found) in module.holes().filter(|(_, hole)| tcg::has(*hole)) {
        let Some((_, left)) = left.iter_mut().find(|(hole, _)| *hole == found) else { continue };
        *left = left.checked_sub(1).ok_or_else(|| LoadError::Hole(found, report::place_in(file, offset)))?;
    }
    Ok(())
}

/// Refuses a file that cannot take the place of a loaded driver: it must drive the same device.
pub fn admit_for(handle: &Handle, file: &File) -> Result<(), LoadError> {
    let module = Module::parse(&file.bytes).map_err(LoadError::Refused)?;
    match handle.lock().drives {
        Some(which) if !which.is_driven_by(&module.manifest) => Err(LoadError::OtherDevice(which)),
        _ => Ok(()),
    }
}

/// Refuses a change of a running driver's image that adds code which [`admit`] refuses in a file.
pub fn admit_change(domain: &Domain, patch: &Patch) -> Result<(), LoadError> {
    if !HOLES.into_iter().any(tcg::has) {
        return Ok(());
    }
    // An instruction may begin before the change, or end after it.
    let start = patch.at.saturating_sub(MAX_INSTRUCTION);
    let address = |index: usize| domain.base() + IMAGE + (start + index) as u64;
    let changed = patch.at - start..patch.at - start + patch.bytes.len();
    let mut before = vec![0; changed.end + MAX_INSTRUCTION];
    for (index, byte) in before.iter_mut().enumerate() {
        domain.space.read(address(index), core::slice::from_mut(byte));
    }
    let mut after = before.clone();
    if let Some(place) = after.get_mut(changed) {
        place.copy_from_slice(&patch.bytes);
    }
    let is_code = |index: usize| {
        domain.space.translate(address(index)).is_some_and(|(_, flags)| !flags.contains(PageTableFlags::NO_EXECUTE))
    };
    let old: Vec<(usize, Hole)> = holes(&before).collect();
    let is_new = |(index, hole): &(usize, Hole)| {
        !old.contains(&(*index, *hole)) && is_code(*index) && tcg::has(*hole) && allowed(*hole) == 0
    };
    match holes(&after).find(is_new) {
        Some((index, hole)) => Err(LoadError::Hole(hole, report::place_in(&domain.file, (start + index) as u64))),
        None => Ok(()),
    }
}

/// Returns the number of places at which a module may have code of this kind.
fn allowed(hole: Hole) -> usize {
    let limit = match hole {
        Hole::LoadsSs => &SS_LOADS,
        Hole::LoadsNoSegment => &SEG_LOADS,
        Hole::LocksBitTest => &LOCK_BTS,
    };
    usize::try_from(limit.get()).unwrap_or(usize::MAX)
}
