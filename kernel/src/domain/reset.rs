//! Carries out the recipe by which a manifest says how a device is reset ([`ringfence_abi::reset`]).
//!
//! The register is looked up while the driver is well: before its device may use DMA. Nothing can go wrong any more when
//! the driver has ended, but that the device does not do as it is told.

use super::Domain;
use crate::arch::time;
use core::fmt;
use ringfence_abi::reset::{NO_REGISTER, Reset, ResetMethod};
use ringfence_abi::service::Refusal;
use ringfence_core::pci::virtio_common;
use x86_64::instructions::port::Port;

/// Why a device is not reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReset {
    /// The manifest has no recipe.
    NoRecipe,
    /// The register does not say that it is done within so many microseconds.
    TimedOut(u32),
}

impl fmt::Display for NotReset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotReset::NoRecipe => write!(f, "it used DMA, and its manifest does not say how to reset it"),
            NotReset::TimedOut(limit) => write!(f, "its reset was not done within {limit} us"),
        }
    }
}

/// A register that resets its device.
#[derive(Debug, Clone, Copy)]
pub struct ResetRegister {
    place: Place,
    /// Registers that are set to 0 first.
    zero: [Option<Place>; 2],
    width_bytes: u32,
    clear: u32,
    set: u32,
    wait_mask: u32,
    wait_value: u32,
    limit_us: u32,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// In the slot of the domain, which the kernel's root maps too.
    Memory(u64),
    Port(u16),
}

impl ResetRegister {
    /// The register that the recipe of `domain`'s manifest names; its BAR is mapped for that. `None` if there is no recipe.
    /// A recipe that does not fit the device is refused.
    pub fn find(domain: &mut Domain) -> Result<Option<ResetRegister>, Refusal> {
        /// Offset of the device status in the common configuration, and its width (VIRTIO 1.0, 4.1.4.3).
        const STATUS: u32 = 20;
        const STATUS_BYTES: u32 = 1;
        let recipe: Reset = domain.manifest.reset;
        let device = domain.device.as_ref().ok_or(Refusal::NotFound)?;
        let (bar, offset, register) = match recipe.method().ok_or(Refusal::Invalid)? {
            ResetMethod::Unknown => return Ok(None),
            ResetMethod::Register => (recipe.bar, recipe.offset, recipe),
            ResetMethod::Virtio => {
                let (bar, offset) = virtio_common(|offset| device.function().read(offset)).ok_or(Refusal::Invalid)?;
                let wait = Reset { width_bytes: STATUS_BYTES, wait_mask: 0xff, wait_value: 0, set: 0, ..recipe };
                (bar, offset.checked_add(STATUS).ok_or(Refusal::Invalid)?, wait)
            }
        };
        let end = u64::from(offset) + u64::from(register.width_bytes);
        if end > domain.bar_len(bar.into())? {
            return Err(Refusal::Invalid);
        }
        let is_port =
            domain.device.as_ref().and_then(|device| device.function().port_counts.get(bar as usize).copied());
        let mapped = domain.map_bar(bar.into())?;
        let is_port = matches!(is_port, Some(1..));
        // Pages of a BAR that say where messages go are not mapped, and no driver's to write.
        let at = |offset: u32| {
            let address = mapped + u64::from(offset);
            match is_port {
                true => Ok(Place::Port(address as u16)),
                false => domain.space.translate(address).map(|_| Place::Memory(address)).ok_or(Refusal::Invalid),
            }
        };
        let mut zero = [None; 2];
        for (place, offset) in zero.iter_mut().zip(register.zero).filter(|(_, offset)| *offset != NO_REGISTER) {
            if u64::from(offset) + 4 > domain.bar_len(bar.into())? {
                return Err(Refusal::Invalid);
            }
            *place = Some(at(offset)?);
        }
        Ok(Some(ResetRegister {
            place: at(offset)?,
            zero,
            width_bytes: register.width_bytes,
            // virtio's is written as a whole.
            clear: if recipe.method() == Some(ResetMethod::Virtio) { u32::MAX } else { 0 },
            set: register.set,
            wait_mask: register.wait_mask,
            wait_value: register.wait_value,
            limit_us: register.limit_us,
        }))
    }

    /// Resets the device and waits for that, which takes no longer than the recipe says.
    pub fn run(&self) -> Result<(), NotReset> {
        let start = time::tsc();
        for place in self.zero.into_iter().flatten() {
            write(place, 4, 0);
        }
        write(self.place, self.width_bytes, self.read() & !self.clear | self.set);
        while self.read() & self.wait_mask != self.wait_value {
            if time::nanoseconds(time::tsc() - start) > u64::from(self.limit_us) * 1000 {
                return Err(NotReset::TimedOut(self.limit_us));
            }
            core::hint::spin_loop();
        }
        Ok(())
    }

    fn read(&self) -> u32 {
        // SAFETY: a register of the domain's own device, mapped as long as the domain is there, aligned to its width.
        unsafe {
            match (self.place, self.width_bytes) {
                (Place::Memory(address), 1) => u32::from((address as *const u8).read_volatile()),
                (Place::Memory(address), 2) => u32::from((address as *const u16).read_volatile()),
                (Place::Memory(address), _) => (address as *const u32).read_volatile(),
                (Place::Port(port), 1) => u32::from(Port::<u8>::new(port).read()),
                (Place::Port(port), 2) => u32::from(Port::<u16>::new(port).read()),
                (Place::Port(port), _) => Port::<u32>::new(port).read(),
            }
        }
    }
}

fn write(place: Place, width_bytes: u32, value: u32) {
    // SAFETY: as for `read`; what it does to the device is what its driver's manifest asked for.
    unsafe {
        match (place, width_bytes) {
            (Place::Memory(address), 1) => (address as *mut u8).write_volatile(value as u8),
            (Place::Memory(address), 2) => (address as *mut u16).write_volatile(value as u16),
            (Place::Memory(address), _) => (address as *mut u32).write_volatile(value),
            (Place::Port(port), 1) => Port::new(port).write(value as u8),
            (Place::Port(port), 2) => Port::new(port).write(value as u16),
            (Place::Port(port), _) => Port::new(port).write(value),
        }
    }
}
