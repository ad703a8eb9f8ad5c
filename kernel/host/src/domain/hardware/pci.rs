//! A PCI function, and the fence that confines it to its driver's memory.

use super::messages::{self, Messages};
use super::{Hardware, Region, Which};
use hw::arch::interrupts;
use hw::iommu::{self, Fence, Unfenced};
use hw::pci::{Function, memory_extent};
use hw::space::device::{BarPages, DriverPorts};
use pci_types::{Bar, CommandRegister};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Events;
use ringfence_core::limits::UNFENCED;

/// A function that a domain has.
pub struct Pci {
    function: &'static Function,
    /// The fence that confines the function to its driver's memory, or the reason why there is
    /// none.
    fence: Result<Fence, Unfenced>,
    /// The interrupts that the function sends as messages, in place of its line.
    messages: Option<Messages>,
}

impl Pci {
    /// Takes `function`, which no domain has, if a driver can have it. A bridge cannot be taken:
    /// the devices behind it would go with it. With `needs_fence`, the function is taken only if it
    /// is fenced.
    pub fn take(function: &'static Function, needs_fence: bool) -> Option<Pci> {
        if !function.is_device || hw::fixed::is_one(function) {
            return None;
        }
        // Turn memory and I/O decoding on; no DMA and no interrupts until the driver asks for them.
        function.change_command(
            CommandRegister::MEMORY_ENABLE | CommandRegister::IO_ENABLE | CommandRegister::INTERRUPT_DISABLE,
            CommandRegister::BUS_MASTER_ENABLE,
        );
        let fence = Fence::new(function);
        if let Err(why @ (Unfenced::Shared | Unfenced::Bypasses | Unfenced::Reserved | Unfenced::Failed)) = fence {
            // The function reaches either nothing, so that no driver could use it, or too much.
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
                // If the IOMMU does not obey, the device still reaches nothing: nothing is mapped
                // for it.
                let _ = fence.remove();
            }
            return None;
        }
        Some(Pci { function, fence, messages: None })
    }

    fn bar(&self, index: usize) -> Result<Bar, Refusal> {
        self.function.bars.get(index).copied().flatten().ok_or(Refusal::NotFound)
    }
}

impl Hardware for Pci {
    fn which(&self) -> Which {
        Which::Pci(self.function)
    }

    fn region(&self, index: usize) -> Result<Region, Refusal> {
        self.bar(index)?;
        match BarPages::of(self.function, index) {
            Some(pages) => pages.map(Region::Memory),
            None => DriverPorts::of_bar(self.function, index).ok_or(Refusal::NotFound)?.map(Region::Ports),
        }
    }

    fn region_len(&self, index: usize) -> Result<u64, Refusal> {
        let ports = || self.function.port_counts.get(index).copied().unwrap_or(0).into();
        Ok(memory_extent(&self.bar(index)?).map_or_else(ports, |(_, len_bytes)| len_bytes))
    }

    fn lines(&self) -> u64 {
        match (&self.messages, self.function.line) {
            (Some(messages), _) => messages.lines(),
            (None, Some(line)) => 1 << line,
            (None, None) => 0,
        }
    }

    fn events(&self, fired: u64) -> Events {
        let vectors = self.messages.as_ref().map_or(0, |messages| messages.in_lines(fired));
        Events::INTERRUPT | Events::from_bits_truncate(vectors * Events::VECTOR_0.bits())
    }

    fn prepare_interrupts(&mut self) {
        if self.messages.is_none() {
            messages::turn_off(self.function);
        }
    }

    /// Lets the interrupts through. A device whose driver has not acknowledged is held back by its
    /// own interrupt-disable bit, not by the line's mask: other devices may share the line.
    fn let_through(&self) {
        if let Some(messages) = &self.messages {
            interrupts::release(messages.lines());
            return;
        }
        self.function.change_command(CommandRegister::empty(), CommandRegister::INTERRUPT_DISABLE);
        if let Some(line) = self.function.line {
            interrupts::set_masked(line, false);
        }
    }

    fn hold_back(&self) {
        if let Some(messages) = &self.messages {
            interrupts::hold(messages.lines());
            return;
        }
        self.function.change_command(CommandRegister::INTERRUPT_DISABLE, CommandRegister::empty());
    }

    fn is_bus_master(&self) -> bool {
        const COMMAND: u16 = 4;
        self.function.read(COMMAND) & CommandRegister::BUS_MASTER_ENABLE.bits() as u32 != 0
    }

    fn set_bus_master(&self, on: bool) -> Result<(), Refusal> {
        let (set, cleared) = match on {
            true => (CommandRegister::BUS_MASTER_ENABLE, CommandRegister::empty()),
            false => (CommandRegister::empty(), CommandRegister::BUS_MASTER_ENABLE),
        };
        self.function.change_command(set, cleared);
        Ok(())
    }

    fn quiet(&self) {
        self.hold_back();
        self.function.change_command(CommandRegister::INTERRUPT_DISABLE, CommandRegister::BUS_MASTER_ENABLE);
    }

    fn detach(&mut self) -> bool {
        // From here on the function has no fence.
        let fence = core::mem::replace(&mut self.fence, Err(Unfenced::Failed));
        if let (Some(messages), Ok(fence)) = (self.messages.take(), &fence) {
            messages.remove(self.function, fence);
        }
        fence.is_ok_and(Fence::remove)
    }

    fn function(&self) -> Option<&'static Function> {
        Some(self.function)
    }

    fn fence(&self) -> Option<&Result<Fence, Unfenced>> {
        Some(&self.fence)
    }

    fn fence_mut(&mut self) -> Option<&mut Fence> {
        self.fence.as_mut().ok()
    }

    fn give_messages(&mut self, wanted: u8) -> u8 {
        if let Ok(fence) = &self.fence {
            self.messages = Messages::new(self.function, fence, wanted);
        }
        self.messages.as_ref().map_or(0, Messages::count)
    }

    fn has_messages(&self) -> bool {
        self.messages.is_some()
    }
}
