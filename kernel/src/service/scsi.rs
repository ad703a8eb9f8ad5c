//! `rf_scsi_register`: a driver offers a SCSI host.

use super::Answer;
use crate::domain::Domain;
use crate::domain::memory::Allegation;
use crate::scsi::queues::Queues;
use ringfence_abi::layout::QUEUE;
use ringfence_abi::scsi::{REQUESTS, ScsiInfo};
use ringfence_abi::service::Refusal;
use zerocopy::FromBytes;

/// Most targets, and logical units a target.
const MAX_UNITS: u32 = 256;

/// Maps the queues and returns where they are. `info` points to a [`ScsiInfo`].
pub fn rf_scsi_register(domain: &mut Domain, info: u64) -> Answer {
    let bytes = Allegation::new(info, size_of::<ScsiInfo>() as u64).copy_in(domain)?;
    let info = ScsiInfo::read_from_bytes(&bytes).map_err(|_| Refusal::Invalid)?;
    let within = |value: u32, most: u32| (1..=most).contains(&value);
    if !within(info.max_targets, MAX_UNITS)
        || !within(info.max_luns, MAX_UNITS)
        || !within(info.queue_depth, REQUESTS as u32)
        || info.reserved != 0
    {
        return Err(Refusal::Invalid.into());
    }
    if domain.scsi.is_some() {
        return Err(Refusal::Busy.into());
    }
    domain.scsi = Some(Queues::new(domain, info)?);
    Ok(domain.base() + QUEUE)
}
