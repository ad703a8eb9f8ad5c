//! `rf_bar_*`: the registers of the domain's own device.

use super::{Answer, No};
use crate::domain::Domain;
use crate::domain::device::{Device, shares_pages};
use crate::pci::memory_extent;
use pci_types::Bar;
use ringfence_abi::layout::{MMIO, MMIO_MAX, PAGE_SIZE};
use ringfence_abi::service::Refusal;
use ringfence_core::extent::{Extent, align_up};
use ringfence_core::port_bitmap::Ports;

/// Most ports that an I/O BAR can have (PCI 3.0, 6.2.5.1).
const MAX_PORTS: u32 = 256;

/// First port that an I/O BAR can begin with.
const FIRST_PORT: u16 = 0x400;

/// Maps memory BAR `bar` and returns where, or opens the ports of I/O BAR `bar` and returns the first.
///
/// A BAR whose pages hold another device's registers as well is refused.
pub fn rf_bar_map(domain: &mut Domain, bar: u64) -> Answer {
    let (index, found) = find(domain.device.as_ref(), bar)?;
    let base = domain.base() + MMIO;
    let device = domain.device.as_mut().ok_or(Refusal::NotFound)?;
    if let Some(mapped) = device.mapped.get(index).copied().flatten() {
        return Ok(mapped);
    }
    let mapped = match memory_extent(&found) {
        Some((pa, len_bytes)) => {
            let first = pa & !(PAGE_SIZE - 1);
            let len = align_up(pa - first + len_bytes, PAGE_SIZE).ok_or(Refusal::Invalid)?;
            let pages = Extent::new(first, len);
            if crate::memory::is_ram(pages) || shares_pages(device.function(), pages) {
                return Err(Refusal::Denied.into());
            }
            let start = device.next;
            let next = start.checked_add(len + PAGE_SIZE).filter(|next| *next <= MMIO_MAX).ok_or(Refusal::NoMemory)?;
            domain.space.map_device(base + start, first, len)?;
            device.next = next;
            base + start + (pa - first)
        }
        None => {
            let Bar::Io { port } = found else { return Err(Refusal::NotFound.into()) };
            let first = u16::try_from(port).map_err(|_| Refusal::Invalid)?;
            let count = port_count(device, index).min(MAX_PORTS) as u16;
            // Below are the ports of the mainboard's own devices; no firmware puts a BAR there.
            if first < FIRST_PORT {
                return Err(Refusal::Denied.into());
            }
            domain.space.allow_ports(Ports { first, count })?;
            port.into()
        }
    };
    if let Some(slot) = device.mapped.get_mut(index) {
        *slot = Some(mapped);
    }
    Ok(mapped)
}

/// Length of BAR `bar` in bytes.
pub fn rf_bar_len(domain: &mut Domain, bar: u64) -> Answer {
    let (index, found) = find(domain.device.as_ref(), bar)?;
    let device = domain.device.as_ref().ok_or(Refusal::NotFound)?;
    Ok(match memory_extent(&found) {
        Some((_, len_bytes)) => len_bytes,
        None => port_count(device, index).into(),
    })
}

fn find(device: Option<&Device>, bar: u64) -> Result<(usize, Bar), No> {
    let index = usize::try_from(bar).map_err(|_| Refusal::NotFound)?;
    let bar = device.and_then(|device| *device.function().bars.get(index)?).ok_or(Refusal::NotFound)?;
    Ok((index, bar))
}

fn port_count(device: &Device, index: usize) -> u32 {
    device.function().port_counts.get(index).copied().unwrap_or(0)
}
