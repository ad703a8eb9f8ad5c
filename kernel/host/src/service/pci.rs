//! `rf_pci_*`: the configuration space of the domain's own device, as far as access is harmless.

use super::Answer;
use crate::domain::Domain;
use crate::domain::device::Device;
use pci_types::CommandRegister;
use ringfence_abi::service::Refusal;

/// Length of configuration space in bytes.
const CONFIG_BYTES: u64 = 256;
/// Offset of the command register.
const COMMAND: u64 = 4;

/// Reads `width_bytes` (1, 2 or 4) bytes at `offset`, a multiple of the width.
pub fn rf_pci_read(domain: &mut Domain, offset: u64, width_bytes: u64) -> Answer {
    let function = domain.device.as_ref().and_then(Device::function).ok_or(Refusal::NotFound)?;
    check_place(offset, width_bytes)?;
    let word = function.read(offset as u16 & !3) >> (8 * (offset & 3));
    let mask = u32::MAX >> (32 - 8 * width_bytes);
    Ok(u64::from(word & mask))
}

/// Writes `width_bytes` bytes at `offset`. The driver may only change bus mastering, in the command
/// register; everything else is denied. Decoding and interrupts are the kernel's, and a moved BAR
/// would let the device answer for addresses that are not its own. Refused as invalid if the
/// manifest's reset recipe does not fit the device.
pub fn rf_pci_write(domain: &mut Domain, offset: u64, width_bytes: u64, value: u64) -> Answer {
    domain.device.as_ref().and_then(Device::function).ok_or(Refusal::NotFound)?;
    check_place(offset, width_bytes)?;
    if offset != COMMAND || width_bytes != 2 {
        return Err(Refusal::Denied.into());
    }
    // Ignore all bits except bus mastering, and the bits beyond the register.
    let wanted = CommandRegister::from_bits_truncate(value as u16);
    domain.set_bus_master(wanted.contains(CommandRegister::BUS_MASTER_ENABLE))?;
    Ok(0)
}

fn check_place(offset: u64, width_bytes: u64) -> Result<(), Refusal> {
    if matches!(width_bytes, 1 | 2 | 4) && offset < CONFIG_BYTES && offset.is_multiple_of(width_bytes) {
        Ok(())
    } else {
        Err(Refusal::Invalid)
    }
}
