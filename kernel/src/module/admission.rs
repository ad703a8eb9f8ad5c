//! What is not even loaded, though it is a module: what would be taken for another one, and what QEMU would let out.

use super::File;
use super::error::LoadError;
use crate::arch::cpu;
use crate::domain::{Domain, report};
use crate::limits::SS_LOADS;
use alloc::string::ToString;
use alloc::vec;
use ringfence_abi::layout::IMAGE;
use ringfence_core::arguments::Patch;
use ringfence_core::module::Module;
use ringfence_core::stack_segment;
use x86_64::structures::paging::PageTableFlags;

/// Refuses a file whose module has another name: two files could pass for one module, and one of them for trusted. And one that
/// could load SS at more places than a person allows, if the CPU is QEMU's TCG ([`ringfence_core::stack_segment`]). Every file is
/// asked for once, before it is loaded for the first time.
pub fn admit(file: &File) -> Result<(), LoadError> {
    let module = Module::parse(&file.bytes).map_err(LoadError::Refused)?;
    if module.manifest.name() != file.name {
        return Err(LoadError::Misnamed(module.manifest.name().to_string()));
    }
    if !cpu::is_tcg() {
        return Ok(());
    }
    match module.loads_of_ss().nth(allowed_loads()) {
        Some(offset) => Err(LoadError::LoadsSs(report::place_in(file, offset))),
        None => Ok(()),
    }
}

/// Refuses a change of a running driver's image which makes it load SS, as [`admit`] does a file that could.
pub fn admit_change(domain: &Domain, patch: &Patch) -> Result<(), LoadError> {
    if !cpu::is_tcg() || allowed_loads() > 0 {
        return Ok(());
    }
    // One may begin right before the change, or end right behind it, but none begins there that did not before.
    let start = patch.at.saturating_sub(1);
    let address = |index: usize| domain.base() + IMAGE + (start + index) as u64;
    let mut bytes = vec![0; patch.at - start + patch.bytes.len() + 1];
    for (index, byte) in bytes.iter_mut().enumerate() {
        domain.space.read(address(index), core::slice::from_mut(byte));
    }
    if let Some(changed) = bytes.get_mut(patch.at - start..patch.at - start + patch.bytes.len()) {
        changed.copy_from_slice(&patch.bytes);
    }
    let is_code = |index: &usize| {
        domain.space.translate(address(*index)).is_some_and(|(_, flags)| !flags.contains(PageTableFlags::NO_EXECUTE))
    };
    let is_new = |index: &usize| index + 1 < bytes.len() && is_code(index);
    match stack_segment::loads(&bytes).find(is_new) {
        Some(index) => Err(LoadError::LoadsSs(report::place_in(&domain.file, (start + index) as u64))),
        None => Ok(()),
    }
}

/// At how many places a module may load SS.
fn allowed_loads() -> usize {
    usize::try_from(SS_LOADS.get()).unwrap_or(usize::MAX)
}
