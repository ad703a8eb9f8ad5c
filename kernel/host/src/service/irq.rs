//! `rf_irq_*`: the interrupts of the domain's own device.

use super::Answer;
use crate::domain::Domain;
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::MAX_VECTORS;

/// Lets the device's interrupts through: from now on, one polls the driver.
pub fn rf_irq_enable(domain: &mut Domain) -> Answer {
    let device = domain.device.as_mut().ok_or(Refusal::NotFound)?;
    if !device.enable_interrupts() {
        return Err(Refusal::NotFound.into());
    }
    Ok(0)
}

/// Lets them through again, for a driver that did not acknowledge when it was polled.
pub fn rf_irq_ack(domain: &mut Domain) -> Answer {
    let device = domain.device.as_ref().ok_or(Refusal::NotFound)?;
    if device.active_lines() == 0 {
        return Err(Refusal::Invalid.into());
    }
    device.unmask();
    Ok(0)
}

/// Gives the device interrupts of its own in place of its line, up to `wanted`; how many, 0 if it
/// or the machine can have none. Only before they are let through, and once.
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
