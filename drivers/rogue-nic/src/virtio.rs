//! Drives a virtio device, with a changed manifest, and gives it false addresses for its queue
//! (VIRTIO 1.0, 3.1.1 and 4.1.4.3). The device's structures are expected where QEMU's devices have
//! them.

use ringfence_sdk::abi::layout::{DMA, SLOT_SIZE};
use ringfence_sdk::device::{self, Mmio};
use ringfence_sdk::service::raw;
use ringfence_sdk::{Refusal, Result};

const BAR: u64 = 4;
const NOTIFY: usize = 0x3000;
const NOTIFY_EACH: usize = 4;

const FEATURE_SELECT: usize = 8;
const FEATURE: usize = 12;
const STATUS: usize = 20;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_ENABLE: usize = 28;
const QUEUE_ADDRESSES: usize = 32;

const FEATURES_OK: u8 = 8;
const ALL: u8 = 15;
/// VERSION_1 and ACCESS_PLATFORM, in the upper half of the features.
const FEATURES: u32 = 3;
/// The request queue of a SCSI host.
const QUEUE: u16 = 2;
/// The driver's memory for received frames, which the device can write.
const MEMORY: u64 = DMA + 0x21000;

/// Gives the device the address `address` for one of the three parts of its request queue. The
/// other parts are in the driver's own memory.
pub fn queue_at(part: usize, address: u64, queues: *mut u64) -> Result<u64> {
    let common = Mmio::map(BAR)?;
    common.write8(STATUS, 0);
    common.write8(STATUS, 3);
    common.write32(FEATURE_SELECT, 0);
    common.write32(FEATURE, 0);
    common.write32(FEATURE_SELECT, 1);
    common.write32(FEATURE, FEATURES);
    common.write8(STATUS, 3 | FEATURES_OK);
    if common.read8(STATUS) & FEATURES_OK == 0 {
        return Err(Refusal::Denied);
    }
    // One request is offered. Its descriptor is empty, so the device can read nothing from it.
    let own = (queues as u64 & !(SLOT_SIZE - 1)) + MEMORY;
    unsafe { ((own + 0x1000) as *mut u32).write_volatile(1 << 16) };
    common.write16(QUEUE_SELECT, QUEUE);
    common.write16(QUEUE_SIZE, 8);
    for (index, own) in [MEMORY, MEMORY + 0x1000, MEMORY + 0x2000].into_iter().enumerate() {
        let address = if index == part { address } else { own };
        common.write32(QUEUE_ADDRESSES + 8 * index, address as u32);
        common.write32(QUEUE_ADDRESSES + 8 * index + 4, (address >> 32) as u32);
    }
    common.write16(QUEUE_ENABLE, 1);
    device::enable_dma()?;
    common.write8(STATUS, ALL);
    common.write16(NOTIFY + NOTIFY_EACH * usize::from(QUEUE), QUEUE);
    Ok(unsafe { raw::rf_null() } as u64)
}
