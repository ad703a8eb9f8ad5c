//! The PCI function that a domain drives: it has this one and no other.
//!
//! **Memory of a driver whose device may still write to it is never used for anything else.** When a driver ends, its
//! device's interrupts and bus mastering go off, then the kernel resets the device ([`super::reset`]); only then is the
//! memory freed. A device that does not come to rest is set aside for good, and the memory with it.

use super::cause::Cause;
use super::messages::{self, Messages};
use super::reset::{NotReset, ResetRegister};
use super::{DmaRegion, Domain};
use alloc::vec::Vec;
use hw::arch::{interrupts, time};
use hw::console;
use hw::iommu::{self, Fence, Unfenced};
use hw::memory::frames::OutOfMemory;
use hw::pci::{Function, memory_extent};
use hw::space::Space;
use hw::space::device::{BarPages, ports_of};
use log::Level;
use pci_types::{Bar, CommandRegister, PciAddress};
use ringfence_abi::layout::{MMIO, MMIO_MAX, PAGE_SIZE};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Events;
use ringfence_core::limits::UNFENCED;
use ringfence_core::port_bitmap::Ports;
use spin::Mutex;

/// Functions that a domain has, or that are set aside.
static TAKEN: Mutex<Vec<(PciAddress, State)>> = Mutex::new(Vec::new());

/// Who has a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody.
    Free,
    /// A domain.
    Driven,
    /// Nobody, and nobody will: it could not be stopped.
    SetAside,
}

/// A device that does not come to rest.
pub struct NotStopped {
    why: NotReset,
    /// Whether it reaches no memory all the same.
    is_detached: bool,
}

/// A PCI function that a domain has. [`Device::stop`] gives it back.
pub struct Device {
    function: &'static Function,
    /// Whether its interrupts reach the driver.
    pub interrupts: bool,
    /// Its BARs that are mapped: where the driver sees them, or the first port.
    pub mapped: [Option<u64>; pci_types::MAX_BARS],
    /// Where the next BAR goes, from the start of the slot's MMIO region.
    next: u64,
    /// Whether it has been a bus master.
    used_dma: bool,
    /// How it is reset, found before it became a bus master.
    reset: Option<ResetRegister>,
    /// What keeps it within its driver's memory, or why nothing does.
    fence: Result<Fence, Unfenced>,
    /// The interrupts that it sends by itself, in place of its line.
    messages: Option<Messages>,
}

impl Device {
    /// Takes `function`, if no domain has it, and a driver can have it at all: what is behind a bridge would go with that. One that
    /// `needs_fence` gets none that is not fenced.
    pub fn take(function: &'static Function, needs_fence: bool) -> Option<Device> {
        if !function.is_device {
            return None;
        }
        let mut taken = TAKEN.lock();
        if taken.iter().any(|(address, _)| *address == function.address) {
            return None;
        }
        // Memory and I/O decoding on; no DMA and no interrupts until the driver asks.
        function.change_command(
            CommandRegister::MEMORY_ENABLE | CommandRegister::IO_ENABLE | CommandRegister::INTERRUPT_DISABLE,
            CommandRegister::BUS_MASTER_ENABLE,
        );
        let fence = Fence::new(function);
        if let Err(why @ (Unfenced::Shared | Unfenced::Bypasses | Unfenced::Reserved | Unfenced::Failed)) = fence {
            // It reaches nothing, so that no driver would be of use, or too much.
            log::warn!("{}: no driver can have it: {why}", function.address);
            return None;
        }
        let who = match UNFENCED.get() {
            0 => Some("no driver has it, as it is not fenced ('limits unfenced')"),
            _ => needs_fence.then_some("the driver wants it fenced, which it is not"),
        };
        let why = match &fence {
            Ok(_) if iommu::reaches_ports(function) => Some("it can access ports by itself"),
            Ok(_) => None,
            Err(why) => Some(why.name()),
        };
        if let (Some(who), Some(why)) = (who, why) {
            log::warn!("{}: {who}: {why}", function.address);
            if let Ok(fence) = fence {
                // If the unit does not do as it is told, the device reaches nothing all the same: nothing is mapped for it.
                let _ = fence.remove();
            }
            return None;
        }
        taken.push((function.address, State::Driven));
        let mapped = [None; pci_types::MAX_BARS];
        Some(Device {
            function,
            interrupts: false,
            mapped,
            next: 0,
            used_dma: false,
            reset: None,
            fence,
            messages: None,
        })
    }

    /// What keeps it within its driver's memory, or why nothing does.
    pub fn fence(&self) -> &Result<Fence, Unfenced> {
        &self.fence
    }

    /// The function.
    pub fn function(&self) -> &'static Function {
        self.function
    }

    /// The lines on which its interrupts are to reach the driver, as a set of bits.
    pub fn active_lines(&self) -> u64 {
        match (&self.messages, self.function.line) {
            _ if !self.interrupts => 0,
            (Some(messages), _) => messages.lines(),
            (None, Some(line)) => 1 << line,
            (None, None) => 0,
        }
    }

    /// Why its driver is polled when these lines have fired.
    pub fn events(&self, fired: u64) -> Events {
        let vectors = self.messages.as_ref().map_or(0, |messages| messages.in_lines(fired));
        Events::INTERRUPT | Events::from_bits_truncate(vectors * Events::VECTOR_0.bits())
    }

    /// Has its interrupts reach the driver; `false` if it can have none.
    pub fn enable_interrupts(&mut self) -> bool {
        if self.messages.is_none() {
            messages::turn_off(self.function);
        }
        self.interrupts = true;
        self.interrupts = self.active_lines() != 0;
        if self.interrupts {
            self.unmask();
        }
        self.interrupts
    }

    /// Whether it has interrupts of its own.
    pub fn has_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// Gives it up to `wanted` interrupts of its own, in place of its line; how many.
    pub fn give_messages(&mut self, wanted: u8) -> u8 {
        if let Ok(fence) = &self.fence {
            self.messages = Messages::new(self.function, fence, wanted);
        }
        self.messages.as_ref().map_or(0, Messages::count)
    }

    /// Lets its interrupts through.
    ///
    /// What holds back a device whose driver has not acknowledged is the device's own interrupt-disable bit, not the
    /// line's mask: other devices may share the line.
    pub fn unmask(&self) {
        if let Some(messages) = &self.messages {
            interrupts::release(messages.lines());
            return;
        }
        self.function.change_command(CommandRegister::empty(), CommandRegister::INTERRUPT_DISABLE);
        if let Some(line) = self.function.line {
            interrupts::set_masked(line, false);
        }
    }

    /// Holds its interrupts back.
    pub fn mask(&self) {
        if let Some(messages) = &self.messages {
            interrupts::hold(messages.lines());
            return;
        }
        self.function.change_command(CommandRegister::INTERRUPT_DISABLE, CommandRegister::empty());
    }

    /// Whether it is a bus master right now.
    fn is_bus_master(&self) -> bool {
        const COMMAND: u16 = 4;
        self.function.read(COMMAND) & CommandRegister::BUS_MASTER_ENABLE.bits() as u32 != 0
    }

    /// Stops its interrupts and its DMA, resets it if it ever used DMA, and gives it back: from here on it writes to no
    /// memory. If it does not come to rest nobody gets it any more. Its registers are in `space`,
    /// which one needs that has used DMA.
    pub fn stop(mut self, space: Option<&Space>) -> Result<(), NotStopped> {
        self.mask();
        self.function.change_command(CommandRegister::INTERRUPT_DISABLE, CommandRegister::BUS_MASTER_ENABLE);
        let stopped = match (&self.reset, self.used_dma) {
            (_, false) => Ok(()),
            (Some(reset), true) => space.map_or(Err(NotReset::NoRecipe), |space| reset.run(space)),
            (None, true) => Err(NotReset::NoRecipe),
        };
        if let (Some(messages), Ok(fence)) = (self.messages.take(), &self.fence) {
            messages.remove(self.function, fence);
        }
        // Behind its reset: what it did until then was its driver's. From here on it reaches nothing.
        let is_detached = self.fence.is_ok_and(Fence::remove);
        let mut taken = TAKEN.lock();
        match stopped {
            Ok(()) => taken.retain(|(address, _)| *address != self.function.address),
            Err(_) => taken
                .iter_mut()
                .filter(|(address, _)| *address == self.function.address)
                .for_each(|(_, state)| *state = State::SetAside),
        }
        stopped.map_err(|why| NotStopped { why, is_detached })
    }

    fn bar(&self, bar: u64) -> Result<(usize, Bar), Refusal> {
        let index = usize::try_from(bar).map_err(|_| Refusal::NotFound)?;
        let found = self.function.bars.get(index).copied().flatten().ok_or(Refusal::NotFound)?;
        Ok((index, found))
    }

    /// The I/O ports that its driver may use.
    pub fn ports(&self) -> impl Iterator<Item = Ports> {
        let mapped = self.mapped.iter().enumerate().filter(|(_, mapped)| mapped.is_some());
        mapped.filter_map(|(index, _)| ports_of(self.function, index)?.ok())
    }
}

impl Domain {
    /// What keeps its device within its memory.
    pub fn fence(&self) -> Option<&Fence> {
        self.device.as_ref()?.fence.as_ref().ok()
    }

    fn fence_mut(&mut self) -> Option<&mut Fence> {
        self.device.as_mut()?.fence.as_mut().ok()
    }

    /// Lets its device reach `region`, and write there if `is_written`.
    pub fn let_device_reach(&mut self, region: &DmaRegion, is_written: bool) -> Result<(), OutOfMemory> {
        let start = self.device_address(region);
        match self.fence_mut() {
            Some(fence) => fence.map(start, &region.memory, is_written),
            None => Ok(()),
        }
    }

    /// Lets its device reach `region` no more; `false` if it may all the same, as the IOMMU does not do as it is told.
    pub fn keep_device_from(&mut self, region: &DmaRegion) -> bool {
        let start = self.device_address(region);
        self.fence_mut().is_none_or(|fence| fence.unmap(start, region.extent.len_bytes))
    }

    /// Lets its device reach nothing any more of the memory that the driver has asked for, where its descriptors are, so that it faults: to
    /// measure what comes of that.
    pub fn cut_device_off(&mut self) {
        let regions = core::mem::take(&mut self.dma);
        for region in &regions {
            // If the IOMMU does not do as it is told, there will be no fault.
            let _ = self.keep_device_from(region);
        }
        self.dma = regions;
    }

    /// Where its device sees `region`: at the same place in its slot as the driver does, counted from the start of that; a device
    /// without a fence sees physical memory.
    pub fn device_address(&self, region: &DmaRegion) -> u64 {
        match self.device.as_ref().map(Device::fence) {
            Some(Ok(_)) => region.extent.start - self.base(),
            _ => region.memory.physical(),
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

    /// Maps memory BAR `bar` of its device and returns where, or opens the ports of I/O BAR `bar` and returns the first.
    ///
    /// A BAR whose pages hold another device's registers as well is refused.
    pub fn map_bar(&mut self, bar: u64) -> Result<u64, Refusal> {
        let base = self.base() + MMIO;
        let device = self.device.as_mut().ok_or(Refusal::NotFound)?;
        let (index, _) = device.bar(bar)?;
        if let Some(mapped) = device.mapped.get(index).copied().flatten() {
            return Ok(mapped);
        }
        let function = device.function;
        let mapped = match BarPages::of(function, index) {
            Some(pages) => {
                let pages = pages?;
                let start = device.next;
                let next = start
                    .checked_add(pages.len_bytes() + PAGE_SIZE)
                    .filter(|next| *next <= MMIO_MAX)
                    .ok_or(Refusal::NoMemory)?;
                self.space.map_bar(base + start, &pages).map_err(|_| Refusal::NoMemory)?;
                device.next = next;
                base + start + pages.offset()
            }
            None => self.space.allow_ports(function, index).ok_or(Refusal::NotFound)??.first.into(),
        };
        if let Some(slot) = device.mapped.get_mut(index) {
            *slot = Some(mapped);
        }
        Ok(mapped)
    }

    /// Length of BAR `bar` of its device in bytes, or in ports.
    pub fn bar_len(&self, bar: u64) -> Result<u64, Refusal> {
        let device = self.device.as_ref().ok_or(Refusal::NotFound)?;
        let (index, found) = device.bar(bar)?;
        let ports = || device.function.port_counts.get(index).copied().unwrap_or(0).into();
        Ok(memory_extent(&found).map_or_else(ports, |(_, len_bytes)| len_bytes))
    }

    /// Lets its device be a bus master, or not any more. How to reset it must be known by then.
    pub fn set_bus_master(&mut self, on: bool) -> Result<(), Refusal> {
        if on && self.device.as_ref().is_some_and(|device| !device.used_dma) {
            let reset = ResetRegister::find(self)?;
            if let Some(device) = &mut self.device {
                (device.reset, device.used_dma) = (reset, true);
            }
        }
        self.notice_bus_master();
        let device = self.device.as_ref().ok_or(Refusal::NotFound)?;
        let (set, cleared) = match on {
            true => (CommandRegister::BUS_MASTER_ENABLE, CommandRegister::empty()),
            false => (CommandRegister::empty(), CommandRegister::BUS_MASTER_ENABLE),
        };
        device.function.change_command(set, cleared);
        Ok(())
    }

    /// Looks whether its device has made itself a bus master, as QEMU's virtio does for drivers of before 1.0, which forget
    /// to; it is reset like any other then. To be called before bus mastering is turned off.
    fn notice_bus_master(&mut self) {
        if self.device.as_ref().is_some_and(|device| !device.used_dma && device.is_bus_master()) {
            // A recipe that does not fit the device is none.
            let reset = ResetRegister::find(self).ok().flatten();
            if let Some(device) = &mut self.device {
                (device.reset, device.used_dma) = (reset, true);
            }
        }
    }

    /// Stops its device and gives it back. If it does not stop, all memory of the domain is set aside with it.
    pub fn stop_device(&mut self) {
        self.notice_bus_master();
        let Some(device) = self.device.take() else { return };
        let address = device.function.address;
        let start = time::tsc();
        let stopped = device.stop(Some(&self.space));
        self.stop_ticks = time::tsc() - start;
        if let Err(NotStopped { why, is_detached }) = stopped {
            let with = if is_detached { "" } else { ", and the driver's memory with it" };
            console::say_about(
                &self.source(),
                Level::Error,
                format_args!("{address} is set aside for good{with}: {why}"),
            );
            if !is_detached {
                self.space.set_aside();
            }
        }
    }
}

/// Who has the function at `address`.
pub fn state(address: PciAddress) -> State {
    TAKEN.lock().iter().find(|(taken, _)| *taken == address).map_or(State::Free, |(_, state)| *state)
}
