//! `rf_offer`: a driver makes the offer of its class.

use super::Answer;
use crate::domain::Domain;
use crate::domain::memory::Allegation;
use ringfence_abi::layout::QUEUE;
use ringfence_abi::service::Refusal;

/// Maps the queues and returns their address. `info` describes the offer, in the format of the
/// class of the module's kind: a [`ringfence_abi::net::NetInfo`], a
/// [`ringfence_abi::scsi::ScsiInfo`] or a [`ringfence_abi::block::BlockInfo`].
pub fn rf_offer(domain: &mut Domain, info: Allegation) -> Answer {
    let class = domain.class().ok_or(Refusal::Denied)?;
    if info.len_bytes() != class.info_bytes() as u64 {
        return Err(Refusal::Invalid.into());
    }
    let info = info.copy_in(domain)?;
    class.check(&info)?;
    if domain.offer.is_some() {
        return Err(Refusal::Busy.into());
    }
    domain.offer = Some(class.offer(domain, &info)?);
    Ok(domain.base() + QUEUE)
}
