//! The reset of a device, by the recipe in its driver's manifest ([`ringfence_abi::reset`]).
//!
//! The register is looked up while the driver is well, before its device may use DMA. Once the
//! driver has ended, only one thing can still go wrong: the device does not obey.

use super::Domain;
use super::hardware::Region;
use core::fmt;
use hw::arch::port::DevicePort;
use hw::arch::time;
use hw::space::Space;
use ringfence_abi::reset::{NO_REGISTER, Reset, ResetMethod};
use ringfence_abi::service::Refusal;
use ringfence_core::pci::virtio_common;

/// The reason why a device is not reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotReset {
    /// The manifest has no recipe.
    NoRecipe,
    /// The register does not signal the end of the reset within this number of microseconds.
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
    /// The address at which the driver sees the register.
    Memory(u64),
    Port(DevicePort),
}

impl ResetRegister {
    /// Finds the register that the recipe of `domain`'s manifest names, and maps its BAR. Returns
    /// `None` if there is no recipe. A recipe that does not fit the device is refused.
    pub fn find(domain: &mut Domain) -> Result<Option<ResetRegister>, Refusal> {
        /// Offset of the device status in the common configuration, and its width (VIRTIO 1.0,
        /// 4.1.4.3).
        const STATUS: u32 = 20;
        const STATUS_BYTES: u32 = 1;
        let recipe: Reset = domain.manifest.reset;
        let device = domain.device.as_ref().ok_or(Refusal::NotFound)?;
        let (bar, offset, register) = match recipe.method().ok_or(Refusal::Invalid)? {
            ResetMethod::Unknown => return Ok(None),
            ResetMethod::Register => (recipe.bar, recipe.offset, recipe),
            ResetMethod::Virtio => {
                let function = device.function().ok_or(Refusal::Invalid)?;
                let (bar, offset) = virtio_common(|offset| function.read(offset)).ok_or(Refusal::Invalid)?;
                let wait = Reset { width_bytes: STATUS_BYTES, wait_mask: 0xff, wait_value: 0, set: 0, ..recipe };
                (bar, offset.checked_add(STATUS).ok_or(Refusal::Invalid)?, wait)
            }
        };
        let end = u64::from(offset) + u64::from(register.width_bytes);
        if end > domain.region_len(bar.into())? {
            return Err(Refusal::Invalid);
        }
        let mapped = domain.map_region(bar.into())?;
        let region = domain.device.as_ref().ok_or(Refusal::NotFound)?.region(bar.into())?;
        // A BAR's pages with the MSI-X table are not mapped: no driver may write to them.
        let at = |offset: u32, width_bytes: u32| -> Result<Place, Refusal> {
            if let Region::Ports(ports) = &region {
                let offset = u16::try_from(offset).map_err(|_| Refusal::Invalid)?;
                return ports.port(offset).map(Place::Port).ok_or(Refusal::Invalid);
            }
            let address = mapped + u64::from(offset);
            let is_there = domain.space.with_registers(address, width_bytes.into(), |_, _| ()).is_some();
            if is_there { Ok(Place::Memory(address)) } else { Err(Refusal::Invalid) }
        };
        let mut zero = [None; 2];
        for (place, offset) in zero.iter_mut().zip(register.zero).filter(|(_, offset)| *offset != NO_REGISTER) {
            if u64::from(offset) + 4 > domain.region_len(bar.into())? {
                return Err(Refusal::Invalid);
            }
            *place = Some(at(offset, 4)?);
        }
        Ok(Some(ResetRegister {
            place: at(offset, register.width_bytes)?,
            zero,
            width_bytes: register.width_bytes,
            // The status register of virtio is written as a whole.
            clear: if recipe.method() == Some(ResetMethod::Virtio) { u32::MAX } else { 0 },
            set: register.set,
            wait_mask: register.wait_mask,
            wait_value: register.wait_value,
            limit_us: register.limit_us,
        }))
    }

    /// Resets the device, whose registers are in `space`, and waits until the reset is done, at
    /// most for the time that the recipe allows.
    pub fn run(&self, space: &Space) -> Result<(), NotReset> {
        let start = time::tsc();
        for place in self.zero.into_iter().flatten() {
            write(space, place, 4, 0);
        }
        let width_bytes = self.width_bytes;
        let value = || read(space, self.place, width_bytes);
        write(space, self.place, width_bytes, value() & !self.clear | self.set);
        while value() & self.wait_mask != self.wait_value {
            if time::nanoseconds(time::tsc() - start) > u64::from(self.limit_us) * 1000 {
                return Err(NotReset::TimedOut(self.limit_us));
            }
            core::hint::spin_loop();
        }
        Ok(())
    }
}

/// Reads a register. Returns all ones if the register is gone, as a read from a removed device
/// does.
fn read(space: &Space, place: Place, width_bytes: u32) -> u32 {
    match place {
        Place::Memory(address) => space
            .with_registers(address, width_bytes.into(), |window, offset| window.read(offset, width_bytes))
            .unwrap_or(u32::MAX),
        Place::Port(port) => port.read(width_bytes),
    }
}

/// Writes a register. Its driver's manifest has asked for the effect on the device.
fn write(space: &Space, place: Place, width_bytes: u32, value: u32) {
    match place {
        Place::Memory(address) => {
            // A register that is gone reads as all ones, so the reset then counts as not done.
            let _ = space.with_registers(address, width_bytes.into(), |window, offset| {
                window.write(offset, width_bytes, value);
            });
        }
        Place::Port(port) => port.write(width_bytes, value),
    }
}
