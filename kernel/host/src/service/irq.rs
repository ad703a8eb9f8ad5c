//! `rf_irq_*`: the interrupts of the domain's own device.

use super::Answer;
use crate::domain::Domain;
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::MAX_VECTORS;

/// Enables the device's interrupts: from now on an interrupt polls the driver.
pub fn rf_irq_enable(domain: &mut Domain) -> Answer {
    let device = domain.device.as_mut().ok_or(Refusal::NotFound)?;
    if !device.enable_interrupts() {
        return Err(Refusal::NotFound.into());
    }
    Ok(0)
}

/// Lets the device's interrupts through again, for a driver that did not acknowledge in its poll.
pub fn rf_irq_ack(domain: &mut Domain) -> Answer {
    let device = domain.device.as_ref().ok_or(Refusal::NotFound)?;
    if device.active_lines() == 0 {
        return Err(Refusal::Invalid.into());
    }
    device.unmask();
    Ok(0)
}

/// Gives the device up to `wanted` interrupts of its own, in place of its line. Returns how many,
/// or 0 if the device or the machine supports none. Allowed once, and only before interrupts are
/// enabled.
pub fn rf_irq_vectors(domain: &mut Domain, wanted: u64) -> Answer {
    let device = domain.device.as_mut().ok_or(Refusal::NotFound)?;
    if !(1..=MAX_VECTORS).contains(&wanted) {
        return Err(Refusal::Invalid.into());
    }
    if device.interrupts || device.has_messages() {
        return Err(Refusal::Busy.into());
    }
    Ok(device.give_messages(wanted as u8).into())
}
