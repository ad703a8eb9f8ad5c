//! Virtio devices on PCI (*Virtual I/O Device (VIRTIO) Version 1.0*). [`Transport`] finds a
//! device's structures through its vendor capabilities (4.1); [`queue`] has the virtqueues. The
//! format of the requests in the queues is up to each driver.
//!
//! A driver's manifest names the ids of its device and the recipe for a reset,
//! `.reset(Reset::virtio().within_us(100_000))`. The driver then calls [`Transport::find`],
//! [`Transport::begin`], [`Transport::queue`] for each queue, [`device::enable_dma`],
//! [`Transport::finish`].

use crate::device::{self, Mmio};
use crate::{Events, Refusal, Result};
use core::time::Duration;
use queue::Virtqueue;

pub mod queue;

/// PCI capability id of vendor capabilities.
const VENDOR_CAPABILITY: u8 = 0x09;
/// Values of `cfg_type` (4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// Offsets into the common configuration (4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: usize = 0;
    pub const DEVICE_FEATURE: usize = 4;
    pub const DRIVER_FEATURE_SELECT: usize = 8;
    pub const DRIVER_FEATURE: usize = 12;
    pub const DEVICE_STATUS: usize = 20;
    pub const CONFIG_VECTOR: usize = 16;
    pub const QUEUE_SELECT: usize = 22;
    pub const QUEUE_SIZE: usize = 24;
    pub const QUEUE_VECTOR: usize = 26;
    pub const QUEUE_ENABLE: usize = 28;
    pub const QUEUE_NOTIFY_OFF: usize = 30;
    pub const QUEUE_DESC: usize = 32;
}

/// Bits of the device status (2.1).
mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
}

/// VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM, in the upper half of the features.
/// VIRTIO_F_ACCESS_PLATFORM means that the device accesses memory as the platform permits, through
/// an IOMMU.
const VERSION_1: u32 = 1;
const ACCESS_PLATFORM: u32 = 2;
/// The vector number that means "no interrupt" (4.1.4.3).
const NO_VECTOR: u16 = 0xffff;
/// The longest time that a reset may take.
const RESET: Duration = Duration::from_millis(100);

/// A virtio device on PCI.
pub struct Transport {
    common: Mmio,
    notify: Mmio,
    notify_multiplier: u32,
    isr: Mmio,
    config: Option<Mmio>,
    /// The number of the device's own interrupts; with 0 the device uses its line.
    vectors: u64,
}

impl Transport {
    /// Finds the device's structures and maps the BARs that hold them.
    pub fn find() -> Result<Transport> {
        let (mut common, mut notify, mut isr, mut config) = (None, None, None, None);
        let mut notify_multiplier = 0;
        for (at, id) in device::capabilities() {
            if id != VENDOR_CAPABILITY {
                continue;
            }
            let kind = device::pci_read(at + 3, 1)? as u8;
            let bar = device::pci_read(at + 4, 1)?;
            let (offset, len_bytes) = (device::pci_read(at + 8, 4)?, device::pci_read(at + 12, 4)?);
            let place = match kind {
                COMMON => &mut common,
                NOTIFY => {
                    notify_multiplier = device::pci_read(at + 16, 4)?;
                    &mut notify
                }
                ISR => &mut isr,
                DEVICE => &mut config,
                _ => continue,
            };
            // The first structure of each kind is the preferred one.
            if place.is_none() {
                *place = Some(Mmio::map(bar.into())?.part(offset as usize, len_bytes as usize)?);
            }
        }
        if common.is_none() {
            log::error!(
                "the device is of before virtio 1.0 (legacy), which this driver does not speak: it is not used"
            );
        }
        Ok(Transport {
            common: common.ok_or(Refusal::NotFound)?,
            notify: notify.ok_or(Refusal::NotFound)?,
            notify_multiplier,
            isr: isr.ok_or(Refusal::NotFound)?,
            config,
            vectors: 0,
        })
    }

    /// Resets the device and negotiates version 1 and those features of `wanted`, which are
    /// specific to the kind of device, that the device has. Returns those features.
    pub fn begin(&mut self, wanted: u32) -> Result<u32> {
        self.reset();
        device::wait_until(RESET, || self.common.read8(common::DEVICE_STATUS) == 0)
            .inspect_err(|_| log::error!("the device does not come out of reset"))?;
        self.common.write8(common::DEVICE_STATUS, status::ACKNOWLEDGE | status::DRIVER);
        self.common.write32(common::DEVICE_FEATURE_SELECT, 1);
        let upper = self.common.read32(common::DEVICE_FEATURE);
        if upper & VERSION_1 == 0 {
            log::error!("the device does not speak virtio 1.0");
            return Err(Refusal::NotFound);
        }
        self.common.write32(common::DEVICE_FEATURE_SELECT, 0);
        let own = self.common.read32(common::DEVICE_FEATURE) & wanted;
        for (half, features) in [(0, own), (1, upper & (VERSION_1 | ACCESS_PLATFORM))] {
            self.common.write32(common::DRIVER_FEATURE_SELECT, half);
            self.common.write32(common::DRIVER_FEATURE, features);
        }
        let wanted = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.common.write8(common::DEVICE_STATUS, wanted);
        if self.common.read8(common::DEVICE_STATUS) & status::FEATURES_OK == 0 {
            log::error!("the device refuses the features");
            return Err(Refusal::NotFound);
        }
        Ok(own)
    }

    /// Asks for `wanted` interrupts of the device's own, which [`Transport::queue`] assigns to
    /// queues by their number. If the device gets none, all queues share the line.
    pub fn ask_for_vectors(&mut self, wanted: u64) -> Result<()> {
        self.vectors = device::vectors(wanted)?;
        if self.vectors > 0 {
            // The driver does not watch for changes of the configuration, unless it asks to.
            self.common.write16(common::CONFIG_VECTOR, NO_VECTOR);
        }
        Ok(())
    }

    /// Has the device interrupt when its configuration changes, with `vector`, or with the last one
    /// if there are fewer.
    pub fn watch_configuration(&mut self, vector: u16) {
        if self.vectors > 0 {
            self.common.write16(common::CONFIG_VECTOR, vector.min(self.vectors as u16 - 1));
        }
    }

    /// Returns whether the configuration has changed. A device that uses its line is asked through
    /// its ISR status; reading that lowers the line (4.1.4.5).
    pub fn configuration_changed(&self, events: Events) -> bool {
        const CHANGED: u8 = 1 << 1;
        match self.vectors {
            0 => self.isr.read8(0) & CHANGED != 0,
            vectors => events.has_vector(vectors as u32 - 1),
        }
    }

    /// Returns whether the driver is polled because of interrupt `vector`, or of the line that all
    /// queues share.
    pub fn has_fired(&self, events: Events, vector: u16) -> bool {
        match self.vectors {
            0 => events.contains(Events::INTERRUPT),
            vectors => events.has_vector(u32::from(vector).min(vectors as u32 - 1)),
        }
    }

    /// Returns the registers of the device-specific configuration.
    pub fn config(&self) -> Result<Mmio> {
        self.config.ok_or(Refusal::NotFound)
    }

    /// Sets up queue `number` with at most `size` descriptors, a power of two. The queue interrupts
    /// with `vector`, or with the last one if there are fewer.
    pub fn queue(&mut self, number: u16, size: u16, vector: u16) -> Result<Virtqueue> {
        self.common.write16(common::QUEUE_SELECT, number);
        let most = self.common.read16(common::QUEUE_SIZE);
        if most == 0 {
            log::error!("the device has no queue {number}");
            return Err(Refusal::NotFound);
        }
        // The size must be a power of two; the device's own size is one already (2.4).
        let offset = u32::from(self.common.read16(common::QUEUE_NOTIFY_OFF));
        let notification = offset.checked_mul(self.notify_multiplier).ok_or(Refusal::Invalid)?;
        let queue = Virtqueue::new(number, size.min(1 << most.ilog2()), notification)?;
        self.common.write16(common::QUEUE_SIZE, queue.size());
        for (index, address) in queue.addresses().into_iter().enumerate() {
            // Each address is written with two 32-bit accesses (4.1.3.1).
            let at = common::QUEUE_DESC + 8 * index;
            self.common.write32(at, address as u32);
            self.common.write32(at + 4, (address >> 32) as u32);
        }
        if self.vectors > 0 {
            self.common.write16(common::QUEUE_VECTOR, vector.min(self.vectors as u16 - 1));
        }
        self.common.write16(common::QUEUE_ENABLE, 1);
        Ok(queue)
    }

    /// Tells the device that the driver is ready; the device begins to work.
    pub fn finish(&mut self) {
        let before = self.common.read8(common::DEVICE_STATUS);
        self.common.write8(common::DEVICE_STATUS, before | status::DRIVER_OK);
    }

    /// Tells the device that a queue has new entries.
    pub fn notify(&self, queue: &Virtqueue) {
        let (number, place) = queue.notification();
        self.notify.write16(place as usize, number);
    }

    /// Returns whether the device met an error after which it does nothing until it is reset.
    pub fn needs_reset(&self) -> bool {
        self.common.read8(common::DEVICE_STATUS) & status::NEEDS_RESET != 0
    }

    /// Lowers the interrupt line, if the device uses its line.
    pub fn acknowledge(&self) {
        if self.vectors == 0 {
            self.isr.read8(0);
        }
    }

    /// Stops the device.
    pub fn reset(&mut self) {
        self.common.write8(common::DEVICE_STATUS, 0);
    }
}
