//! A domain's device in its address space: registers and ports, and only its own.
//!
//! **Only registers of that one function are mapped.** Pages with memory, with registers of an
//! IOMMU or of another function are refused. The pages that say where the device's messages go are
//! left out, as the driver must not decide that.

use super::{Space, rights};
use crate::arch::entry_area;
use crate::arch::port::DevicePort;
use crate::fixed::Fixed;
use crate::iommu;
use crate::memory::frames::{Frames, OutOfMemory};
use crate::memory::pages;
use crate::memory::tables::{DevicePage, Leaf};
use crate::pci::{self, Function, memory_extent};
use alloc::vec::Vec;
use pci_types::Bar;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::service::Refusal;
use ringfence_core::extent::{Extent, align_up};
use ringfence_core::pci::MsiX;
use ringfence_core::port_bitmap::{self, Ports};

/// Most ports that an I/O BAR can have (PCI 3.0, 6.2.5.1).
const MAX_PORTS: u32 = 256;
/// Lowest first port of an I/O BAR: the ports of the mainboard's own devices are below, and no
/// firmware puts a BAR there.
const FIRST_PORT: u16 = 0x400;
/// The ports of configuration space, which are above [`FIRST_PORT`].
const CONFIG: u16 = 0xcf8;
const CONFIG_END: u16 = 0xd00;
/// First address that no entry of a page table can hold (SDM vol. 3A, 4.5.4).
const PHYSICAL_END: u64 = 1 << 52;

/// The pages that hold the registers of a function's memory BAR.
#[derive(Debug)]
pub struct BarPages {
    pages: Extent,
    /// Offset and length of each run of pages that a driver may have.
    open: Vec<(u64, u64)>,
    /// Offset of the first register in the first page.
    offset: u64,
}

impl BarPages {
    /// Returns the pages of `function`'s BAR `index`; `None` if it is no memory BAR. The BAR is
    /// refused if its pages hold anything but its registers.
    pub fn of(function: &Function, index: usize) -> Option<Result<BarPages, Refusal>> {
        let (start, len_bytes) = function.bars.get(index)?.as_ref().and_then(memory_extent)?;
        Some(BarPages::new(function, index, start, len_bytes))
    }

    fn new(function: &Function, index: usize, start: u64, len_bytes: u64) -> Result<BarPages, Refusal> {
        let first = start & !(PAGE_SIZE - 1);
        let offset = start - first;
        let len = offset.checked_add(len_bytes).and_then(|len| align_up(len, PAGE_SIZE)).ok_or(Refusal::Invalid)?;
        let pages = Extent::new(first, len);
        if pages.end().is_none_or(|end| end > PHYSICAL_END)
            || crate::memory::is_ram(pages)
            || iommu::has_registers(pages)
            || shares_pages(function, pages)
        {
            return Err(Refusal::Denied);
        }
        let secret = MsiX::find(|offset| function.read(offset));
        let parts = secret.iter().flat_map(|msi_x| msi_x.parts_of(index as u64));
        let open = pages_without(len, parts.map(|(at, len)| Extent::new(offset + at, len)));
        if open.is_empty() { Err(Refusal::Denied) } else { Ok(BarPages { pages, open, offset }) }
    }

    /// Returns the length of the pages in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.pages.len_bytes
    }

    /// Returns the offset of the first register in the first page.
    pub fn offset(&self) -> u64 {
        self.offset
    }
}

/// Ports that the driver of their device may have.
#[derive(Debug, Clone, Copy)]
pub struct DriverPorts(Ports);

impl DriverPorts {
    /// Returns the ports of `function`'s BAR `index`; `None` if it is no I/O BAR. The BAR is
    /// refused if it has ports of the mainboard's own devices.
    pub fn of_bar(function: &Function, index: usize) -> Option<Result<DriverPorts, Refusal>> {
        let Bar::Io { port } = function.bars.get(index)?.as_ref()? else { return None };
        let count = function.port_counts.get(index).copied().unwrap_or(0).min(MAX_PORTS) as u16;
        let Ok(first) = u16::try_from(*port) else { return Some(Err(Refusal::Invalid)) };
        let has_config = first.checked_add(count).is_none_or(|end| first < CONFIG_END && end > CONFIG);
        let is_denied = first < FIRST_PORT || has_config;
        Some(if is_denied { Err(Refusal::Denied) } else { Ok(DriverPorts(Ports { first, count })) })
    }

    /// Returns run `index` of the ports of a device at fixed ports.
    pub fn of_fixed(device: &'static Fixed, index: usize) -> Option<DriverPorts> {
        device.ports.get(index).copied().map(DriverPorts)
    }

    /// Returns the ports as a run.
    pub fn ports(self) -> Ports {
        self.0
    }

    /// Returns the port at `offset`.
    pub fn port(self, offset: u16) -> Option<DevicePort> {
        DevicePort::new(self.0, offset)
    }
}

impl Space {
    /// Maps registers of the domain's device from `start` on.
    pub fn map_bar(&mut self, start: u64, bar: &BarPages) -> Result<(), OutOfMemory> {
        if !self.is_own(start, bar.pages.len_bytes) {
            return Err(OutOfMemory);
        }
        let map = |(offset, len_bytes): (u64, u64)| {
            pages(len_bytes).map(move |page| offset + page).try_for_each(|offset| {
                let page = DevicePage::new(bar.pages.start + offset).ok_or(OutOfMemory)?;
                self.table().map(start + offset, Leaf::Registers(page), rights::DEVICE)
            })
        };
        let mapped = bar.open.iter().copied().try_for_each(map);
        if mapped.is_err() {
            self.unmap(start, bar.pages.len_bytes);
        }
        mapped
    }

    /// Opens ports of the domain's device to the domain.
    pub fn allow_ports(&mut self, ports: DriverPorts) -> Result<(), OutOfMemory> {
        if self.io_bitmap.is_none() {
            let bitmap = Frames::new(port_bitmap::BYTES / PAGE_SIZE as usize)?;
            bitmap.fill(0, port_bitmap::BYTES / size_of::<u64>(), u64::MAX);
            // The domain owns the bitmap from here on: on an error some of it may be mapped.
            self.io_bitmap = Some(bitmap);
            let bitmap = self.io_bitmap.as_ref().ok_or(OutOfMemory)?;
            for offset in (0..port_bitmap::BYTES as u64).step_by(PAGE_SIZE as usize) {
                self.table().map(entry_area::IO_BITMAP + offset, Leaf::Lent(bitmap, offset), rights::READ)?;
            }
        }
        self.open(ports.0);
        Ok(())
    }
}

/// Returns the pages of `len_bytes` bytes (whole pages) in which none of `parts` lies: offset and
/// length of each run of pages.
fn pages_without(len_bytes: u64, parts: impl Iterator<Item = Extent>) -> Vec<(u64, u64)> {
    let parts: Vec<Extent> = parts.collect();
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    for offset in pages(len_bytes) {
        let page = Extent::new(offset, PAGE_SIZE);
        if parts.iter().any(|part| part.overlaps(page)) {
            continue;
        }
        match pieces.last_mut() {
            Some((start, len)) if *start + *len == offset => *len += PAGE_SIZE,
            _ => pieces.push((offset, PAGE_SIZE)),
        }
    }
    pieces
}

/// Returns whether the pages of `bar`, a BAR of `function`, hold registers of another function too.
fn shares_pages(function: &Function, bar: Extent) -> bool {
    pci::functions()
        .iter()
        .filter(|other| other.address != function.address)
        .flat_map(|other| other.bars.iter().flatten())
        .filter_map(pci::memory_extent)
        .any(|(start, len_bytes)| bar.overlaps(Extent::new(start, len_bytes)))
}
