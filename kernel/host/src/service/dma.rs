//! `rf_dma_*`: memory that the driver and its device share, up to the budget in the manifest.

use super::Answer;
use crate::domain::device::Device;
use crate::domain::{DmaRegion, Domain};
use hw::arch::time;
use hw::space::rights;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::service::Refusal;
use ringfence_core::extent::{Extent, align_up};

/// Most regions that one domain can have.
const MAX_REGIONS: usize = 256;

/// Maps `len_bytes` bytes, rounded up to pages, of physically contiguous zeroed memory; returns
/// where.
pub fn rf_dma_alloc(domain: &mut Domain, len_bytes: u64) -> Answer {
    let len_bytes = align_up(len_bytes, PAGE_SIZE).filter(|len| *len > 0).ok_or(Refusal::Invalid)?;
    if len_bytes > u64::from(domain.manifest.dma_bytes) {
        return Err(Refusal::NoMemory.into());
    }
    let region = time::charged(len_bytes, || allocate(domain, len_bytes))?;
    let start = region.extent.start;
    domain.dma.push(region);
    Ok(start)
}

/// A region of `len_bytes` bytes: one that was given back, or a fresh one.
fn allocate(domain: &mut Domain, len_bytes: u64) -> Result<DmaRegion, Refusal> {
    let region = match domain.dma_kept.iter().position(|region| region.extent.len_bytes == len_bytes) {
        Some(index) => {
            let region = domain.dma_kept.swap_remove(index);
            region.memory.zero();
            if domain.let_device_reach(&region, true).is_err() {
                // It stays the driver's own, whatever of it the device may reach.
                domain.keep_device_from(&region);
                domain.dma_kept.push(region);
                return Err(Refusal::NoMemory);
            }
            domain.space.protect(region.extent.start, len_bytes, rights::WRITE);
            region
        }
        None => {
            let total = domain.dma_bytes().checked_add(len_bytes).ok_or(Refusal::NoMemory)?;
            let regions = domain.dma.len() + domain.dma_kept.len();
            if total > u64::from(domain.manifest.dma_bytes) || regions >= MAX_REGIONS {
                return Err(Refusal::NoMemory);
            }
            domain.map_dma(len_bytes, true).map_err(|_| Refusal::NoMemory)?
        }
    };
    Ok(region)
}

/// Gives back the region that begins at `address`: it faults from then on. It stays the domain's,
/// for its next region of that length, until the device is stopped: that may have been told of it,
/// and may be made a bus master later.
pub fn rf_dma_free(domain: &mut Domain, address: u64) -> Answer {
    let index = domain.dma.iter().position(|region| region.extent.start == address).ok_or(Refusal::NotFound)?;
    let region = domain.dma.swap_remove(index);
    let Extent { start, len_bytes } = region.extent;
    // As above.
    domain.keep_device_from(&region);
    time::charged(len_bytes, || domain.space.protect(start, len_bytes, rights::KEPT));
    domain.dma_kept.push(region);
    Ok(0)
}

/// Where the domain's device sees `address`, which lies in one of the domain's regions. One that
/// reaches no memory sees none.
pub fn rf_dma_address(domain: &mut Domain, address: u64) -> Answer {
    domain.device.as_ref().and_then(Device::fence).ok_or(Refusal::NotFound)?;
    let region = domain.dma.iter().find(|region| region.extent.contains(address)).ok_or(Refusal::NotFound)?;
    Ok(domain.device_address(region) + (address - region.extent.start))
}
