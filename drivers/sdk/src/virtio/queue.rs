//! A split virtqueue (VIRTIO 1.0, 2.4).

use crate::dma::{self, Dma, Place};
use crate::{Refusal, Result};

/// Descriptor flags (2.4.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Flag of the available ring: the driver need not be interrupted (2.4.6).
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: the device need not be notified (2.4.8).
const NO_NOTIFY: u16 = 1;
/// Bytes of a descriptor (2.4.5).
const DESCRIPTOR: usize = 16;
/// Bytes of the rings before their first entries: flags and index. There are two more behind the
/// last (2.4.6, 2.4.8).
const AVAILABLE: usize = 4;
const USED: usize = 4;

/// The driver's side of a split virtqueue. The caller decides which descriptor serves which
/// purpose.
pub struct Virtqueue {
    memory: Dma,
    /// The queue's number, and the place of its notification in the structure for those.
    number: u16,
    notification: u32,
    /// The number of descriptors, a power of two.
    size: u16,
    /// The descriptor table, the available ring and the used ring. Each has room for `size`
    /// entries.
    descriptors: Place,
    available: Place,
    used: Place,
    /// Number of entries offered, and number of entries that the device has finished and the driver
    /// has taken.
    offered: u16,
    taken: u16,
}

impl Virtqueue {
    /// Creates queue `number` of `size` descriptors, a power of two. Its notifications are
    /// `notification` bytes into the structure for those.
    pub(super) fn new(number: u16, size: u16, notification: u32) -> Result<Virtqueue> {
        if !size.is_power_of_two() {
            return Err(Refusal::Invalid);
        }
        let at = usize::from(size) * DESCRIPTOR;
        let used_at = (at + AVAILABLE + 2 * usize::from(size) + 2).next_multiple_of(4);
        let memory = Dma::new(used_at + USED + 8 * usize::from(size) + 2)?;
        // SAFETY: the memory is longer.
        let [descriptors, available, used] = [0, at, used_at].map(|at| unsafe { memory.at(at) });
        Ok(Virtqueue { memory, number, notification, size, descriptors, available, used, offered: 0, taken: 0 })
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
        [self.descriptors, self.available, self.used].map(|place| self.memory.address_of(place))
    }

    /// Returns where a descriptor begins. Panics if there is none with this number.
    #[inline(always)]
    #[track_caller]
    fn at(&self, descriptor: u16) -> usize {
        if descriptor >= self.size {
            no_descriptor(descriptor);
        }
        usize::from(descriptor) * DESCRIPTOR
    }

    /// Sets the address and the length of a descriptor's buffer.
    #[inline]
    #[track_caller]
    pub fn describe(&mut self, descriptor: u16, address: u64, len_bytes: u32) {
        let at = self.at(descriptor);
        // SAFETY: the descriptor is in the table, and aligned.
        unsafe {
            self.descriptors.write(at, address, true);
            self.descriptors.write(at + 8, len_bytes, true);
        }
    }

    /// Chains descriptors. The second value of each pair says whether the device writes the
    /// descriptor's buffer.
    #[inline(always)]
    #[track_caller]
    pub fn chain<const LEN: usize>(&mut self, chain: [(u16, bool); LEN]) {
        for index in 0..LEN {
            let (descriptor, device_writes) = chain[index];
            let at = self.at(descriptor);
            let (more, next) = if index + 1 < LEN { (NEXT, chain[index + 1].0) } else { (0, 0) };
            let flags = if device_writes { WRITE } else { 0 } | more;
            // Flags and the next descriptor's number, side by side.
            // SAFETY: as in `describe`.
            unsafe { self.descriptors.write(at + 12, u32::from(flags) | u32::from(next) << 16, true) };
        }
    }

    /// Puts a chain into the available ring. The device sees the chain after
    /// [`Virtqueue::publish`].
    #[inline]
    pub fn offer(&mut self, head: u16) {
        let entry = AVAILABLE + 2 * usize::from(self.offered & (self.size - 1));
        // SAFETY: the entry is in the ring, and aligned.
        unsafe { self.available.write(entry, head, true) };
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows the device the offered chains.
    #[inline]
    pub fn publish(&mut self) {
        dma::write_barrier();
        // SAFETY: the ring has an index.
        unsafe { self.available.write(2, self.offered, true) };
    }

    /// Returns whether the device wants to be notified.
    #[inline]
    pub fn wants_notification(&self) -> bool {
        // 2.4.8.1: the index must be visible before the flag is read.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        // SAFETY: the ring has flags.
        unsafe { self.used.read::<u16>(0, true) & NO_NOTIFY == 0 }
    }

    /// Says whether the device is to interrupt when it has finished a chain. The device may have
    /// finished its last chain meanwhile, so look at the used ring afterwards.
    pub fn want_interrupts(&mut self, wanted: bool) {
        // SAFETY: the ring has flags.
        unsafe { self.available.write(0, if wanted { 0 } else { NO_INTERRUPT }, true) };
        // 2.4.7.1: the flag must be visible before the used ring is read.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }

    /// Takes the next chain that the device has finished. Returns its head, and the number of bytes
    /// that the device has written into its buffers.
    #[inline]
    pub fn take_used(&mut self) -> Option<(u16, usize)> {
        // SAFETY: the ring has an index.
        let index: u16 = unsafe { self.used.read(2, true) };
        if index == self.taken {
            return None;
        }
        dma::read_barrier();
        let entry = USED + 8 * usize::from(self.taken & (self.size - 1));
        self.taken = self.taken.wrapping_add(1);
        // SAFETY: the entry is in the ring, and aligned.
        let [head, written]: [u32; 2] = unsafe { self.used.read(entry, true) };
        Some((head as u16, written as usize))
    }
}

/// Panics. It is apart, so that no access prepares for the text.
#[cold]
#[inline(never)]
#[track_caller]
fn no_descriptor(descriptor: u16) -> ! {
    panic!("the virtqueue has no descriptor {descriptor}")
}
