//! `rf_dma_*`: memory that the driver and its device share, up to the budget in the manifest.

use super::Answer;
use crate::domain::device::Device;
use crate::domain::{DmaRegion, Domain};
use hw::arch::time;
use hw::console;
use hw::space::rights;
use log::Level;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::service::Refusal;
use ringfence_core::extent::{Extent, align_up};

/// The maximum number of regions of one domain.
const MAX_REGIONS: usize = 256;

/// Maps `len_bytes` bytes, rounded up to pages, of physically contiguous zeroed memory. Returns
/// their address.
pub fn rf_dma_alloc(domain: &mut Domain, len_bytes: u64) -> Answer {
    let len_bytes = align_up(len_bytes, PAGE_SIZE).filter(|len| *len > 0).ok_or(Refusal::Invalid)?;
    if len_bytes > u64::from(domain.manifest.dma_bytes) {
        say_budget(domain, len_bytes);
        return Err(Refusal::NoMemory.into());
    }
    let region = time::charged(len_bytes, || allocate(domain, len_bytes))?;
    let start = region.extent.start;
    domain.dma.push(region);
    Ok(start)
}

/// Says, once for each instance of a driver, that the manifest's budget is too small for `total`
/// bytes.
fn say_budget(domain: &mut Domain, total: u64) {
    if core::mem::replace(&mut domain.budget_blamed, true) {
        return;
    }
    let budget = u64::from(domain.manifest.dma_bytes) >> 10;
    let text = format_args!(
        "{} KiB of DMA memory are more than the manifest's budget of {budget} KiB (dma_kib)",
        total.div_ceil(1024)
    );
    console::say_about(&domain.source(), Level::Warn, text);
}

/// Returns a region of `len_bytes` bytes: a region that was given back, or a fresh one.
fn allocate(domain: &mut Domain, len_bytes: u64) -> Result<DmaRegion, Refusal> {
    let region = match domain.dma_kept.iter().position(|region| region.extent.len_bytes == len_bytes) {
        Some(index) => {
            let region = domain.dma_kept.swap_remove(index);
            region.memory.zero();
            if domain.let_device_reach(&region, true).is_err() {
                // The region stays the driver's own, even if the device can reach parts of it.
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
            if total > u64::from(domain.manifest.dma_bytes) {
                say_budget(domain, total);
                return Err(Refusal::NoMemory);
            }
            if regions >= MAX_REGIONS {
                return Err(Refusal::NoMemory);
            }
            domain.map_dma(len_bytes, true).map_err(|_| Refusal::NoMemory)?
        }
    };
    Ok(region)
}

/// Gives back the region that begins at `address`; accesses to it fault from then on. It stays the
/// domain's until the device is stopped, and serves as its next region of that length. The device
/// may have been given its address, and may be made a bus master later.
pub fn rf_dma_free(domain: &mut Domain, address: u64) -> Answer {
    let index = domain.dma.iter().position(|region| region.extent.start == address).ok_or(Refusal::NotFound)?;
    let region = domain.dma.swap_remove(index);
    let Extent { start, len_bytes } = region.extent;
    // If the device can still reach the region, that is harmless: the region stays the domain's.
    domain.keep_device_from(&region);
    time::charged(len_bytes, || domain.space.protect(start, len_bytes, rights::KEPT));
    domain.dma_kept.push(region);
    Ok(0)
}

/// Returns the address at which the domain's device sees `address`, which lies in one of the
/// domain's regions. Refused if the device reaches no memory.
pub fn rf_dma_address(domain: &mut Domain, address: u64) -> Answer {
    domain.device.as_ref().and_then(Device::fence).ok_or(Refusal::NotFound)?;
    let region = domain.dma.iter().find(|region| region.extent.contains(address)).ok_or(Refusal::NotFound)?;
    Ok(domain.device_address(region) + (address - region.extent.start))
}
