//! `rf_use`: a driver uses another driver's offer.

use super::Answer;
use super::log::read_text;
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
