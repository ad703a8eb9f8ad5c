//! The queues of a virtio device, for reports. All virtio devices have the same registers,
//! whichever driver they have (VIRTIO 1.0, 4.1.4.3).

use super::Domain;
use hw::memory::registers::Window;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::reset::ResetMethod;
use ringfence_core::extent::Extent;
use ringfence_core::pci::virtio_common;

/// Offsets into the common configuration.
const NUM_QUEUES: u64 = 18;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_DESC: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;
const COMMON_BYTES: u64 = 56;
/// The maximum number of queues that are examined.
const MOST_QUEUES: u16 = 64;

/// A part of a queue.
#[derive(Debug, Clone, Copy)]
pub struct QueuePart {
    /// The queue's number.
    pub queue: u16,
    /// The name of the part.
    pub part: &'static str,
}

/// Returns the part of a queue that the device of `domain` was told to find in the page at
/// `address`. The driver must not run any more, because this changes which queue is selected.
pub fn queue_part(domain: &Domain, address: u64) -> Option<QueuePart> {
    let device = domain.device.as_ref()?;
    if domain.manifest.reset.method() != Some(ResetMethod::Virtio) {
        return None;
    }
    let function = device.function()?;
    let (bar, offset) = virtio_common(|offset| function.read(offset))?;
    let end = u64::from(offset) + COMMON_BYTES;
    if end > domain.region_len(bar.into()).ok()? || !offset.is_multiple_of(4) {
        return None;
    }
    let common = device.mapped.get(bar as usize).copied().flatten()? + u64::from(offset);
    // Pages of a BAR may be left unmapped.
    domain.space.with_registers(common, COMMON_BYTES, |window, first| find(window, first, address)).flatten()
}

/// Finds the part of a queue in the page at `address`, according to the common configuration at
/// `first` of `window`.
fn find(window: &Window, first: u64, address: u64) -> Option<QueuePart> {
    let read16 = |at: u64| window.read(first + at, 2) as u16;
    let read32 = |at: u64| window.read(first + at, 4);
    let read64 = |at: u64| u64::from(read32(at)) | u64::from(read32(at + 4)) << 32;
    let page = Extent::new(address, PAGE_SIZE);
    for queue in 0..read16(NUM_QUEUES).min(MOST_QUEUES) {
        window.write(first + QUEUE_SELECT, 2, queue.into());
        let size = u64::from(read16(QUEUE_SIZE));
        // Lengths of the parts: VIRTIO 1.0, 2.4.
        let parts = [
            ("descriptor table", QUEUE_DESC, 16 * size),
            ("available ring", QUEUE_DRIVER, 6 + 2 * size),
            ("used ring", QUEUE_DEVICE, 6 + 8 * size),
        ];
        let is_there = |(_, at, len_bytes): &(_, u64, u64)| {
            let part = Extent::new(read64(*at), *len_bytes);
            part.end().is_some() && page.overlaps(part)
        };
        if let Some((part, ..)) = parts.into_iter().find(is_there) {
            return Some(QueuePart { queue, part });
        }
    }
    None
}
