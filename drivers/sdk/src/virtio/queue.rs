//! A split virtqueue (VIRTIO 1.0, 2.4).

use crate::Result;
use crate::dma::{self, Dma};

/// Descriptor flags (2.4.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Flag of the available ring: the driver need not be interrupted (2.4.6).
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: the device need not be notified (2.4.8).
const NO_NOTIFY: u16 = 1;
const DESCRIPTOR: usize = 16;

/// The driver's side of a split virtqueue. The caller decides which descriptor serves which
/// purpose.
pub struct Virtqueue {
    memory: Dma,
    /// The queue's number, and the place of its notification in the structure for those.
    number: u16,
    notification: u32,
    size: u16,
    available: usize,
    used: usize,
    /// Number of entries offered, and number of entries that the device has finished and the driver
    /// has taken.
    offered: u16,
    taken: u16,
}

impl Virtqueue {
    /// Creates queue `number` of `size` descriptors, a power of two. Its notifications are
    /// `notification` bytes into the structure for those.
    pub(super) fn new(number: u16, size: u16, notification: u32) -> Result<Virtqueue> {
        let available = usize::from(size) * DESCRIPTOR;
        let used = (available + 6 + 2 * usize::from(size)).next_multiple_of(4);
        let memory = Dma::new(used + 6 + 8 * usize::from(size))?;
        Ok(Virtqueue { memory, number, notification, size, available, used, offered: 0, taken: 0 })
    }

    /// Returns the queue's number, and the place of its notification.
    pub(super) fn notification(&self) -> (u16, u32) {
        (self.number, self.notification)
    }

    /// Returns the number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Returns the device's addresses of the descriptor table, the available ring and the used
    /// ring.
    pub fn addresses(&self) -> [u64; 3] {
        [0, self.available, self.used].map(|offset| self.memory.address(offset))
    }

    /// Sets the address and the length of a descriptor's buffer.
    pub fn describe(&mut self, descriptor: u16, address: u64, len_bytes: u32) {
        let at = usize::from(descriptor) * DESCRIPTOR;
        self.memory.write(at, address);
        self.memory.write(at + 8, len_bytes);
    }

    /// Chains descriptors. The second value of each pair says whether the device writes the
    /// descriptor's buffer.
    #[inline(always)]
    pub fn chain<const LEN: usize>(&mut self, chain: [(u16, bool); LEN]) {
        for index in 0..LEN {
            let (descriptor, device_writes) = chain[index];
            let at = usize::from(descriptor) * DESCRIPTOR;
            let (more, next) = if index + 1 < LEN { (NEXT, chain[index + 1].0) } else { (0, 0) };
            let flags = if device_writes { WRITE } else { 0 } | more;
            // Flags and the next descriptor's number, side by side.
            self.memory.write(at + 12, u32::from(flags) | u32::from(next) << 16);
        }
    }

    /// Puts a chain into the available ring. The device sees the chain after
    /// [`Virtqueue::publish`].
    pub fn offer(&mut self, head: u16) {
        let entry = self.available + 4 + 2 * usize::from(self.offered % self.size);
        self.memory.write(entry, head);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows the device the offered chains.
    pub fn publish(&mut self) {
        dma::write_barrier();
        self.memory.write(self.available + 2, self.offered);
    }

    /// Returns whether the device wants to be notified.
    pub fn wants_notification(&self) -> bool {
        // 2.4.8.1: the index must be visible before the flag is read.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.memory.read::<u16>(self.used) & NO_NOTIFY == 0
    }

    /// Says whether the device is to interrupt when it has finished a chain. The device may have
    /// finished its last chain meanwhile, so look at the used ring afterwards.
    pub fn want_interrupts(&mut self, wanted: bool) {
        self.memory.write(self.available, if wanted { 0 } else { NO_INTERRUPT });
        // 2.4.7.1: the flag must be visible before the used ring is read.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }

    /// Takes the next chain that the device has finished. Returns its head, and the number of bytes
    /// that the device has written into its buffers.
    pub fn take_used(&mut self) -> Option<(u16, usize)> {
        let index: u16 = self.memory.read(self.used + 2);
        if index == self.taken {
            return None;
        }
        dma::read_barrier();
        let entry = self.used + 4 + 8 * usize::from(self.taken % self.size);
        self.taken = self.taken.wrapping_add(1);
        let [head, written]: [u32; 2] = self.memory.read(entry);
        Some((head as u16, written as usize))
    }
}
