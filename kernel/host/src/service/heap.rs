//! `rf_heap_grow`: more heap, up to the budget in the manifest.

use super::Answer;
use crate::domain::Domain;
use hw::arch::time;
use hw::space::rights;
use ringfence_abi::layout::{HEAP, PAGE_SIZE};
use ringfence_abi::service::Refusal;
use ringfence_core::extent::align_up;

/// Maps `len_bytes` bytes, rounded up to pages, at the end of the heap. Returns their address.
pub fn rf_heap_grow(domain: &mut Domain, len_bytes: u64) -> Answer {
    let len_bytes = align_up(len_bytes, PAGE_SIZE).filter(|len| *len > 0).ok_or(Refusal::Invalid)?;
    let total = domain.heap_bytes.checked_add(len_bytes).ok_or(Refusal::NoMemory)?;
    if total > u64::from(domain.manifest.heap_bytes) {
        return Err(Refusal::NoMemory.into());
    }
    let start = domain.base() + HEAP + domain.heap_bytes;
    time::charged(len_bytes, || domain.space.map_fresh(start, len_bytes, rights::WRITE))?;
    domain.heap_bytes = total;
    Ok(start)
}
