//! The device that a domain drives: it has this one and no other.
//!
//! **Memory of a driver whose device may still write to it is never used for anything else.** When
//! a driver ends, its device's interrupts and bus mastering go off, then the kernel resets the
//! device ([`super::reset`]); only then is the memory freed. A device that does not come to rest is
//! set aside for good, and the memory with it.

use super::cause::Cause;
use super::hardware::{Hardware, MOST_REGIONS, Region, Which};
use super::reset::{NotReset, ResetRegister};
use super::{DmaRegion, Domain};
use alloc::boxed::Box;
use hw::arch::time;
use hw::console;
use hw::iommu::{self, Fence, Unfenced};
use hw::memory::frames::OutOfMemory;
use hw::pci::Function;
use hw::space::Space;
use log::Level;
use ringfence_abi::layout::{MMIO, MMIO_MAX, PAGE_SIZE};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Events;
use ringfence_core::port_bitmap::Ports;

/// A device that does not come to rest.
pub struct NotStopped {
    why: NotReset,
    /// Whether it reaches no memory all the same.
    is_detached: bool,
}

/// A device that a domain has. [`Device::stop`] gives it back.
pub struct Device {
    hardware: Box<dyn Hardware>,
    /// Whether its interrupts reach the driver.
    pub interrupts: bool,
    /// Its regions that are mapped: where the driver sees them, or the first port.
    pub mapped: [Option<u64>; MOST_REGIONS],
    /// Where the next region goes, from the start of the slot's MMIO region.
    next: u64,
    /// Whether it has been a bus master.
    used_dma: bool,
    /// How it is reset, found before it became a bus master.
    reset: Option<ResetRegister>,
}

impl Device {
    pub(super) fn new(hardware: Box<dyn Hardware>) -> Device {
        Device { hardware, interrupts: false, mapped: [None; MOST_REGIONS], next: 0, used_dma: false, reset: None }
    }

    /// Which one it is.
    pub fn which(&self) -> Which {
        self.hardware.which()
    }

    /// What keeps it within its driver's memory, or why nothing does, if it can reach memory at
    /// all.
    pub fn fence(&self) -> Option<&Result<Fence, Unfenced>> {
        self.hardware.fence()
    }

    /// The PCI function that it is, if it is one.
    pub fn function(&self) -> Option<&'static Function> {
        self.hardware.function()
    }

    /// The lines on which its interrupts are to reach the driver, as a set of bits.
    pub fn active_lines(&self) -> u64 {
        if self.interrupts { self.hardware.lines() } else { 0 }
    }

    /// Why its driver is polled when these lines have fired.
    pub fn events(&self, fired: u64) -> Events {
        self.hardware.events(fired)
    }

    /// Has its interrupts reach the driver; `false` if it can have none.
    pub fn enable_interrupts(&mut self) -> bool {
        self.hardware.prepare_interrupts();
        self.interrupts = self.hardware.lines() != 0;
        if self.interrupts {
            self.unmask();
        }
        self.interrupts
    }

    /// Whether it has interrupts of its own.
    pub fn has_messages(&self) -> bool {
        self.hardware.has_messages()
    }

    /// Gives it up to `wanted` interrupts of its own, in place of its line; how many.
    pub fn give_messages(&mut self, wanted: u8) -> u8 {
        self.hardware.give_messages(wanted)
    }

    /// Lets its interrupts through.
    pub fn unmask(&self) {
        self.hardware.let_through();
    }

    /// Holds its interrupts back.
    pub fn mask(&self) {
        self.hardware.hold_back();
    }

    /// Stops its interrupts and its DMA, resets it if it ever used DMA, and gives it back: from
    /// here on it writes to no memory. If it does not come to rest nobody gets it any more. Its
    /// registers are in `space`, which one needs that has used DMA.
    pub fn stop(mut self, space: Option<&Space>) -> Result<(), NotStopped> {
        self.hardware.quiet();
        let stopped = match (&self.reset, self.used_dma) {
            (_, false) => Ok(()),
            (Some(reset), true) => space.map_or(Err(NotReset::NoRecipe), |space| reset.run(space)),
            (None, true) => Err(NotReset::NoRecipe),
        };
        // Behind its reset: what it did until then was its driver's. From here on it reaches
        // nothing.
        let is_detached = self.hardware.detach();
        self.which().give_back(stopped.is_ok());
        stopped.map_err(|why| NotStopped { why, is_detached })
    }

    /// Region `index` of its registers.
    pub fn region(&self, index: u64) -> Result<Region, Refusal> {
        self.hardware.region(usize::try_from(index).map_err(|_| Refusal::NotFound)?)
    }

    /// The I/O ports that its driver may use.
    pub fn ports(&self) -> impl Iterator<Item = Ports> {
        let mapped = self.mapped.iter().enumerate().filter(|(_, mapped)| mapped.is_some());
        mapped.filter_map(|(index, _)| match self.hardware.region(index) {
            Ok(Region::Ports(ports)) => Some(ports.ports()),
            _ => None,
        })
    }
}

impl Domain {
    /// What keeps its device within its memory.
    pub fn fence(&self) -> Option<&Fence> {
        self.device.as_ref()?.fence()?.as_ref().ok()
    }

    fn fence_mut(&mut self) -> Option<&mut Fence> {
        self.device.as_mut()?.hardware.fence_mut()
    }

    /// Lets its device reach `region`, and write there if `is_written`.
    pub fn let_device_reach(&mut self, region: &DmaRegion, is_written: bool) -> Result<(), OutOfMemory> {
        let start = self.device_address(region);
        match self.fence_mut() {
            Some(fence) => fence.map(start, &region.memory, is_written),
            None => Ok(()),
        }
    }

    /// Lets its device reach `region` no more; `false` if it may all the same, as the IOMMU does
    /// not do as it is told.
    pub fn keep_device_from(&mut self, region: &DmaRegion) -> bool {
        let start = self.device_address(region);
        self.fence_mut().is_none_or(|fence| fence.unmap(start, region.extent.len_bytes))
    }

    /// Lets its device reach nothing any more of the memory that the driver has asked for, where
    /// its descriptors are, so that it faults: to measure what comes of that.
    pub fn cut_device_off(&mut self) {
        let regions = core::mem::take(&mut self.dma);
        for region in &regions {
            // If the IOMMU does not do as it is told, there will be no fault.
            let _ = self.keep_device_from(region);
        }
        self.dma = regions;
    }

    /// Where its device sees `region`: at the same place in its slot as the driver does, counted
    /// from the start of that; a device without a fence sees physical memory, and one that reaches
    /// no memory sees it nowhere: 0.
    pub fn device_address(&self, region: &DmaRegion) -> u64 {
        match self.device.as_ref().and_then(Device::fence) {
            Some(Ok(_)) => region.extent.start - self.base(),
            Some(Err(_)) => region.memory.physical(),
            None => 0,
        }
    }

    /// Why its device was ended by its fence, if something was recorded.
    pub fn take_dma_fault(&self) -> Option<Cause> {
        let fence = self.fence()?;
        let iommu::Fault { address, writes, reason, .. } = fence.take_fault()?;
        // It goes on until it is stopped.
        fence.silence();
        Some(Cause::Dma { address, writes, reason })
    }

    /// Maps region `index` of its device's registers and returns where, or opens its ports and
    /// returns the first.
    ///
    /// A region whose pages hold another device's registers as well is refused.
    pub fn map_region(&mut self, index: u64) -> Result<u64, Refusal> {
        let base = self.base() + MMIO;
        let device = self.device.as_mut().ok_or(Refusal::NotFound)?;
        let place = usize::try_from(index).map_err(|_| Refusal::NotFound)?;
        if let Some(mapped) = device.mapped.get(place).copied().flatten() {
            return Ok(mapped);
        }
        let mapped = match device.region(index)? {
            Region::Memory(pages) => {
                let start = device.next;
                let next = start
                    .checked_add(pages.len_bytes() + PAGE_SIZE)
                    .filter(|next| *next <= MMIO_MAX)
                    .ok_or(Refusal::NoMemory)?;
                self.space.map_bar(base + start, &pages).map_err(|_| Refusal::NoMemory)?;
                device.next = next;
                base + start + pages.offset()
            }
            Region::Ports(ports) => {
                self.space.allow_ports(ports).map_err(|_| Refusal::NoMemory)?;
                ports.ports().first.into()
            }
        };
        if let Some(slot) = device.mapped.get_mut(place) {
            *slot = Some(mapped);
        }
        Ok(mapped)
    }

    /// Where region `index` of its device's registers is mapped, if the driver has asked for that.
    pub fn region_start(&self, index: usize) -> Option<u64> {
        self.device.as_ref()?.mapped.get(index).copied().flatten()
    }

    /// Length of region `index` of its device's registers in bytes, or in ports.
    pub fn region_len(&self, index: u64) -> Result<u64, Refusal> {
        let device = self.device.as_ref().ok_or(Refusal::NotFound)?;
        device.hardware.region_len(usize::try_from(index).map_err(|_| Refusal::NotFound)?)
    }

    /// Lets its device be a bus master, or not any more. How to reset it must be known by then.
    pub fn set_bus_master(&mut self, on: bool) -> Result<(), Refusal> {
        if self.device.as_ref().and_then(Device::fence).is_none() {
            return Err(Refusal::NotFound);
        }
        if on && self.device.as_ref().is_some_and(|device| !device.used_dma) {
            let reset = ResetRegister::find(self)?;
            if reset.is_none() {
                console::say_about(
                    &self.source(),
                    Level::Warn,
                    format_args!(
                        "the device may use DMA, and the manifest does not say how to reset it: \
                         it is set aside when the driver ends"
                    ),
                );
            }
            if let Some(device) = &mut self.device {
                (device.reset, device.used_dma) = (reset, true);
            }
        }
        self.notice_bus_master();
        let device = self.device.as_ref().ok_or(Refusal::NotFound)?;
        device.hardware.set_bus_master(on)
    }

    /// Looks whether its device has made itself a bus master, as QEMU's virtio does for drivers of
    /// before 1.0, which forget to; it is reset like any other then. To be called before bus
    /// mastering is turned off.
    fn notice_bus_master(&mut self) {
        if self.device.as_ref().is_some_and(|device| !device.used_dma && device.hardware.is_bus_master()) {
            // A recipe that does not fit the device is none.
            let reset = ResetRegister::find(self).ok().flatten();
            if let Some(device) = &mut self.device {
                (device.reset, device.used_dma) = (reset, true);
            }
        }
    }

    /// Stops its device and gives it back. If it does not stop, all memory of the domain is set
    /// aside with it.
    pub fn stop_device(&mut self) {
        self.notice_bus_master();
        let Some(device) = self.device.take() else { return };
        let which = device.which();
        let start = time::tsc();
        let stopped = device.stop(Some(&self.space));
        self.stop_ticks = time::tsc() - start;
        if let Err(NotStopped { why, is_detached }) = stopped {
            let with = if is_detached { "" } else { ", and the driver's memory with it" };
            console::say_about(
                &self.source(),
                Level::Error,
                format_args!("{which} is set aside for good{with}: {why}"),
            );
            if !is_detached {
                self.space.set_aside();
            }
        }
    }
}
