//! `rf_irq_*`: the interrupt line of the domain's own device.

use super::Answer;
use crate::domain::Domain;
use ringfence_abi::service::Refusal;

/// Lets the device's interrupts through: from now on, one polls the driver.
pub fn rf_irq_enable(domain: &mut Domain) -> Answer {
    let device = domain.device.as_mut().ok_or(Refusal::NotFound)?;
    if device.function().line.is_none() {
        return Err(Refusal::NotFound.into());
    }
    device.interrupts = true;
    device.unmask();
    Ok(0)
}

/// Lets them through again, for a driver that did not acknowledge when it was polled.
pub fn rf_irq_ack(domain: &mut Domain) -> Answer {
    let device = domain.device.as_ref().ok_or(Refusal::NotFound)?;
    device.active_line().ok_or(Refusal::Invalid)?;
    device.unmask();
    Ok(0)
}
