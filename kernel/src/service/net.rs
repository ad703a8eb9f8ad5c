//! `rf_net_register`: a driver offers a network interface.

use super::Answer;
use crate::domain::Domain;
use crate::domain::memory::Allegation;
use crate::net::NoRoom;
use crate::net::queues::Queues;
use ringfence_abi::layout::QUEUE;
use ringfence_abi::net::NetInfo;
use ringfence_abi::service::Refusal;
use zerocopy::FromBytes;

/// Maps the queues and returns where they are. `info` points to a [`NetInfo`].
pub fn rf_net_register(domain: &mut Domain, info: u64) -> Answer {
    let bytes = Allegation::new(info, size_of::<NetInfo>() as u64).copy_in(domain)?;
    let info = NetInfo::read_from_bytes(&bytes).map_err(|_| Refusal::Invalid)?;
    // A group address is nobody's (IEEE 802.3, 3.2.3).
    if info.mac[0] & 1 != 0 || info.mac == [0; 6] || info.reserved != [0; 2] {
        return Err(Refusal::Invalid.into());
    }
    if domain.net.is_some() {
        return Err(Refusal::Busy.into());
    }
    match crate::net::has_room(&domain.name) {
        Ok(()) => {}
        Err(NoRoom::TooMany) => return Err(Refusal::Full.into()),
        Err(NoRoom::NoMemory) => return Err(Refusal::NoMemory.into()),
    }
    domain.net = Some(Queues::new(domain, info.mac)?);
    Ok(domain.base() + QUEUE)
}
