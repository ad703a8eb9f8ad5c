//! `rf_net_register`, `rf_scsi_register`: a driver offers what its class is about.

use super::Answer;
use crate::domain::Domain;
use crate::domain::memory::Allegation;
use crate::domain::offer;
use ringfence_abi::layout::QUEUE;
use ringfence_abi::manifest::Kind;
use ringfence_abi::service::Refusal;

/// Maps the queues and returns where they are. `info` points to a [`ringfence_abi::net::NetInfo`].
pub fn rf_net_register(domain: &mut Domain, info: u64) -> Answer {
    offer(domain, Kind::Nic, info)
}

/// Maps the queues and returns where they are. `info` points to a [`ringfence_abi::scsi::ScsiInfo`].
pub fn rf_scsi_register(domain: &mut Domain, info: u64) -> Answer {
    offer(domain, Kind::Scsi, info)
}

fn offer(domain: &mut Domain, kind: Kind, info: u64) -> Answer {
    let class = offer::class(kind).ok_or(Refusal::Denied)?;
    let info = Allegation::new(info, class.info_bytes() as u64).copy_in(domain)?;
    domain.offer = Some(class.offer(domain, &info)?);
    Ok(domain.base() + QUEUE)
}
