//! The device that a domain drives. A domain has at most one device.
//!
//! **Memory of a driver whose device may still write to it is never used for anything else.** When
//! a driver ends, its device's interrupts and bus mastering are turned off, then the kernel resets
//! the device ([`super::reset`]). Only then is the memory freed. A device that does not come to
//! rest is set aside for good. If it may still reach memory, the driver's memory is set aside too.

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
use ringfence_abi::reset::Reset;
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Events;
use ringfence_core::port_bitmap::Ports;

/// The error for a device that does not come to rest.
pub struct NotStopped {
    why: NotReset,
    /// Whether the device can reach no memory although it does not come to rest.
    is_detached: bool,
}

/// A device that a domain has. [`Device::stop`] gives it back.
pub struct Device {
    hardware: Box<dyn Hardware>,
    /// Whether its interrupts reach the driver.
    pub interrupts: bool,
    /// The mapped regions: for each its address in the driver's slot, or its first port.
    pub mapped: [Option<u64>; MOST_REGIONS],
    /// Where the next region is mapped, as an offset into the slot's MMIO region.
    next: u64,
    /// Whether the device has ever been a bus master.
    used_dma: bool,
    /// How the device is reset. This is looked up before the device becomes a bus master.
    reset: Option<ResetRegister>,
}

impl Device {
    pub(super) fn new(hardware: Box<dyn Hardware>) -> Device {
        Device { hardware, interrupts: false, mapped: [None; MOST_REGIONS], next: 0, used_dma: false, reset: None }
    }

    /// Returns which device this is.
    pub fn which(&self) -> Which {
        self.hardware.which()
    }

    /// Returns the fence that confines the device to its driver's memory, or the reason why there
    /// is no fence. Returns `None` if the device cannot reach memory at all.
    pub fn fence(&self) -> Option<&Result<Fence, Unfenced>> {
        self.hardware.fence()
    }

    /// Returns the PCI function, if the device is one.
    pub fn function(&self) -> Option<&'static Function> {
        self.hardware.function()
    }

    /// Returns the lines on which the device's interrupts are to reach the driver, as a set of
    /// bits.
    pub fn active_lines(&self) -> u64 {
        if self.interrupts { self.hardware.lines() } else { 0 }
    }

    /// Returns whether a PCI function holds its line up (*PCI Local Bus 3.0*, 6.2.3, Interrupt
    /// Status). Of a device that sends messages, or is at fixed ports, this is not known.
    pub fn raises_its_line(&self) -> bool {
        const COMMAND_AND_STATUS: u16 = 0x04;
        const INTERRUPT_STATUS: u32 = 1 << (16 + 3);
        let function = self.function().filter(|_| !self.has_messages());
        function.is_some_and(|function| function.read(COMMAND_AND_STATUS) & INTERRUPT_STATUS != 0)
    }

    /// Returns the events that the driver is polled for when the lines in `fired` have fired.
    pub fn events(&self, fired: u64) -> Events {
        self.hardware.events(fired)
    }

    /// Enables the device's interrupts. Returns `false` if the device can have none.
    pub fn enable_interrupts(&mut self) -> bool {
        self.hardware.prepare_interrupts();
        self.interrupts = self.hardware.lines() != 0;
        if self.interrupts {
            self.unmask();
        }
        self.interrupts
    }

    /// Returns whether the device has interrupts of its own (messages).
    pub fn has_messages(&self) -> bool {
        self.hardware.has_messages()
    }

    /// Gives the device up to `wanted` interrupts of its own, in place of its line. Returns how
    /// many it has now.
    pub fn give_messages(&mut self, wanted: u8) -> u8 {
        self.hardware.give_messages(wanted)
    }

    /// Lets the device's interrupts through.
    pub fn unmask(&self) {
        self.hardware.let_through();
    }

    /// Holds the device's interrupts back.
    pub fn mask(&self) {
        self.hardware.hold_back();
    }

    /// Stops the device's interrupts and DMA, resets it if it ever used DMA, and gives it back.
    /// From then on the device writes to no memory. If it does not come to rest, it is set aside
    /// and no domain gets it any more. `space` maps the device's registers; it is needed only for a
    /// device that has used DMA.
    pub fn stop(mut self, space: Option<&Space>) -> Result<(), NotStopped> {
        self.hardware.quiet();
        let stopped = match (&self.reset, self.used_dma) {
            (_, false) => Ok(()),
            (Some(reset), true) => space.map_or(Err(NotReset::NoRecipe), |space| reset.run(space)),
            (None, true) => Err(NotReset::NoRecipe),
        };
        // Detach after the reset: until then, the device's accesses are its driver's. From here on
        // the device reaches no memory.
        let is_detached = self.hardware.detach();
        self.which().give_back(stopped.is_ok());
        stopped.map_err(|why| NotStopped { why, is_detached })
    }

    /// Returns region `index` of the device's registers.
    pub fn region(&self, index: u64) -> Result<Region, Refusal> {
        self.hardware.region(usize::try_from(index).map_err(|_| Refusal::NotFound)?)
    }

    /// Returns the I/O ports that the driver may use.
    pub fn ports(&self) -> impl Iterator<Item = Ports> {
        let mapped = self.mapped.iter().enumerate().filter(|(_, mapped)| mapped.is_some());
        mapped.filter_map(|(index, _)| match self.hardware.region(index) {
            Ok(Region::Ports(ports)) => Some(ports.ports()),
            _ => None,
        })
    }
}

impl Domain {
    /// Returns the fence that confines the device to the domain's memory.
    pub fn fence(&self) -> Option<&Fence> {
        self.device.as_ref()?.fence()?.as_ref().ok()
    }

    fn fence_mut(&mut self) -> Option<&mut Fence> {
        self.device.as_mut()?.hardware.fence_mut()
    }

    /// Lets the domain's device reach `region`, and write to it if `is_written`.
    pub fn let_device_reach(&mut self, region: &DmaRegion, is_written: bool) -> Result<(), OutOfMemory> {
        let start = self.device_address(region);
        match self.fence_mut() {
            Some(fence) => fence.map(start, &region.memory, is_written),
            None => Ok(()),
        }
    }

    /// Takes `region` out of the device's reach. Returns `false` if the device may still reach it
    /// because the IOMMU does not obey.
    pub fn keep_device_from(&mut self, region: &DmaRegion) -> bool {
        let start = self.device_address(region);
        self.fence_mut().is_none_or(|fence| fence.unmap(start, region.extent.len_bytes))
    }

    /// Takes all DMA memory that the driver has asked for out of its device's reach. The device's
    /// descriptors are in this memory, so the device faults. This serves to measure the handling of
    /// a DMA fault.
    pub fn cut_device_off(&mut self) {
        let regions = core::mem::take(&mut self.dma);
        for region in &regions {
            // If the IOMMU does not obey, there will be no fault.
            let _ = self.keep_device_from(region);
        }
        self.dma = regions;
    }

    /// Returns the address at which the domain's device sees `region`. A fenced device sees the
    /// region at its offset in the slot. A device without a fence sees physical memory. For a
    /// device that reaches no memory the address is 0.
    pub fn device_address(&self, region: &DmaRegion) -> u64 {
        match self.device.as_ref().and_then(Device::fence) {
            Some(Ok(_)) => region.extent.start - self.base(),
            Some(Err(_)) => region.memory.physical(),
            None => 0,
        }
    }

    /// Takes the fault that the fence has recorded for the domain's device, if there is one.
    pub fn take_dma_fault(&self) -> Option<Cause> {
        let fence = self.fence()?;
        let iommu::Fault { address, writes, reason, .. } = fence.take_fault()?;
        // The device goes on until it is stopped; its further faults are not recorded.
        fence.silence();
        Some(Cause::Dma { address, writes, reason })
    }

    /// Maps region `index` of the device's registers and returns its address, or opens the region's
    /// ports and returns the first port.
    ///
    /// A region whose pages also hold another device's registers is refused.
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
        self.watch_region(place);
        Ok(mapped)
    }

    /// Returns the address of region `index` of the device's registers, if the driver has had it
    /// mapped.
    pub fn region_start(&self, index: usize) -> Option<u64> {
        self.device.as_ref()?.mapped.get(index).copied().flatten()
    }

    /// Returns the length of region `index` of the device's registers, in bytes or in ports.
    pub fn region_len(&self, index: u64) -> Result<u64, Refusal> {
        let device = self.device.as_ref().ok_or(Refusal::NotFound)?;
        device.hardware.region_len(usize::try_from(index).map_err(|_| Refusal::NotFound)?)
    }

    /// Turns the device's bus mastering on or off. Before it is first turned on, the way to reset
    /// the device is looked up.
    pub fn set_bus_master(&mut self, on: bool) -> Result<(), Refusal> {
        if self.device.as_ref().and_then(Device::fence).is_none() {
            return Err(Refusal::NotFound);
        }
        if on && self.device.as_ref().is_some_and(|device| !device.used_dma) {
            let reset = match ResetRegister::find(self) {
                Ok(reset) => reset,
                Err(refusal) => {
                    let Reset { bar, offset, .. } = self.manifest.reset;
                    let text = format_args!(
                        "the manifest's recipe for a reset does not fit the device: it names BAR {bar}, offset {offset:#x}"
                    );
                    // Once, as a driver can ask again and again.
                    if !core::mem::replace(&mut self.recipe_blamed, true) {
                        console::say_about(&self.source(), Level::Error, text);
                    }
                    return Err(refusal);
                }
            };
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

    /// Warns of services that the `init` of a driver with an offer seems to have forgotten to call.
    pub fn warn_of_omissions(&self) {
        let Some(device) = self.device.as_ref() else { return };
        let warn = |text: &str| console::say_about(&self.source(), Level::Warn, format_args!("{text}"));
        let is_polled = self.timer.due_ns().is_some() || device.hardware.lines() == 0;
        if !device.interrupts && !is_polled {
            warn("its init has not enabled the device's interrupts (enable_interrupts): only its queues poll it");
        }
        let has_dma = !self.dma.is_empty() && device.fence().is_some();
        if has_dma && !device.used_dma && !device.hardware.is_bus_master() {
            warn("its init has not enabled the device's DMA (enable_dma): the device does not reach the DMA memory");
        }
    }

    /// Notices a device that has made itself a bus master, and looks up how to reset it. QEMU's
    /// virtio devices do this for drivers written before virtio 1.0, which forget to enable bus
    /// mastering. Must be called before bus mastering is turned off.
    fn notice_bus_master(&mut self) {
        if self.device.as_ref().is_some_and(|device| !device.used_dma && device.hardware.is_bus_master()) {
            // A recipe that does not fit the device counts as no recipe.
            let reset = ResetRegister::find(self).ok().flatten();
            if let Some(device) = &mut self.device {
                (device.reset, device.used_dma) = (reset, true);
            }
        }
    }

    /// Stops the domain's device and gives it back. If the device does not stop and can still reach
    /// memory, all memory of the domain is set aside.
    pub fn stop_device(&mut self) {
        self.notice_bus_master();
        self.space.end_watch();
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
