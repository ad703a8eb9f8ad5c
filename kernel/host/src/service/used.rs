//! `rf_use`, `rf_wait`: a driver uses another driver's offer, and waits for it.

use super::log::read_text;
use super::{Answer, No};
use crate::domain::memory::Allegation;
use crate::domain::{Domain, offer};
use ringfence_abi::layout::USED;
use ringfence_abi::service::Refusal;

/// The maximum length of a name in bytes.
const MAX_NAME: u64 = 32;

/// Opens the offer called `name`, of the kind that the manifest uses, and maps its queues. Returns
/// their address.
pub fn rf_use(domain: &mut Domain, name: Allegation) -> Answer {
    if name.len_bytes() > MAX_NAME {
        return Err(Refusal::Invalid.into());
    }
    let name = read_text(domain, name)?;
    let class = domain.manifest.uses().ok().and_then(offer::class).ok_or(Refusal::Denied)?;
    if domain.used.is_some() {
        return Err(Refusal::Busy.into());
    }
    domain.used = Some(class.open(domain, &name)?);
    Ok(domain.base() + USED)
}

/// Leaves the driver's upcall until the device that it uses has answered one of its requests. If
/// all are answered at once, the upcall goes on.
pub fn rf_wait(domain: &mut Domain) -> Answer {
    let used = domain.used.as_mut().ok_or(Refusal::Invalid)?;
    // Takes the requests that the driver has made since it was entered: it waits for these too.
    used.take()?;
    if used.in_hand().0 == 0 {
        return Err(Refusal::Invalid.into());
    }
    used.answer_at_once(domain.offer.as_deref())?;
    if used.in_hand().0 == 0 {
        return Ok(0);
    }
    used.begin();
    domain.begin_wait()?;
    Err(No::Sleeps)
}
