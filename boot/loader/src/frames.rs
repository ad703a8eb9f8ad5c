//! The allocator of physical memory. It hands out frames from the bottom up, and afterwards tells
//! the kernel which memory is still free.

use crate::BootError;
use crate::firmware::{Firmware, Region};
use bootloader_api::info::{MemoryRegion, MemoryRegionKind};

/// Bytes in a frame.
pub const FRAME: u64 = 4096;
/// The lowest address that is handed out. Below it, the firmware and real-mode code keep data that
/// no memory map mentions.
const LOWEST: u64 = 1 << 20;
/// The end of the memory that the loader has mapped, and so can hand out.
const HIGHEST: u64 = 4 << 30;

unsafe extern "C" {
    static __loader_start: u8;
    static __loader_end: u8;
}

/// The allocator of frames in identity-mapped memory.
pub struct Frames<'a> {
    firmware: &'a Firmware,
    /// Ranges that must not be handed out: this loader, the ramdisk, the loader's information.
    kept: [(u64, u64); 3],
    /// The address at which allocation continues. No frame below it is handed out any more.
    next: u64,
}

impl<'a> Frames<'a> {
    pub fn new(firmware: &'a Firmware) -> Frames<'a> {
        let loader = (&raw const __loader_start as u64, &raw const __loader_end as u64);
        let ramdisk = firmware.ramdisk.as_ptr_range();
        let outward = |(start, end): (u64, u64)| (start & !(FRAME - 1), end.next_multiple_of(FRAME));
        let mut kept = [loader, (ramdisk.start as u64, ramdisk.end as u64), firmware.information].map(outward);
        kept.sort_unstable();
        Frames { firmware, kept, next: LOWEST }
    }

    fn usable(&self) -> impl Iterator<Item = &Region> {
        self.firmware.regions().iter().filter(|region| region.usable)
    }

    /// Returns the physical address of `count` contiguous zeroed frames.
    pub fn allocate(&mut self, count: u64) -> Result<u64, BootError> {
        let len_bytes = count * FRAME;
        let mut start = self.next;
        for region in self.firmware.regions().iter().filter(|region| region.usable) {
            start = start.max(region.start.next_multiple_of(FRAME));
            // The kept ranges are sorted, so skipping one range never leads back into an earlier
            // range.
            for (kept_start, kept_end) in self.kept {
                if start < kept_end && kept_start < start + len_bytes {
                    start = kept_end;
                }
            }
            if start + len_bytes <= region.end.min(HIGHEST) {
                self.next = start + len_bytes;
                // SAFETY: the memory is usable, identity-mapped, and was not handed out before.
                unsafe { core::ptr::write_bytes(start as *mut u8, 0, len_bytes as usize) };
                return Ok(start);
            }
        }
        Err(BootError::TooLittleMemory { usable_bytes: self.usable().map(|region| region.end - region.start).sum() })
    }

    /// Returns the maximum number of memory regions that [`Frames::write_map`] writes.
    pub fn map_len(&self) -> usize {
        self.firmware.regions().len() * (2 * self.kept.len() + 3)
    }

    /// Writes the memory map for the kernel into `map`, which has room for [`Frames::map_len`]
    /// regions. Returns the number of regions written. No frame may be allocated afterwards.
    pub fn write_map(&self, map: *mut MemoryRegion) -> usize {
        let mut written = 0;
        let mut push = |start: u64, end: u64, kind: MemoryRegionKind| {
            if start < end {
                assert!(written < self.map_len());
                // SAFETY: `map` has room for `map_len` regions.
                unsafe { map.add(written).write(MemoryRegion { start, end, kind }) };
                written += 1;
            }
        };
        for region in self.firmware.regions() {
            if !region.usable {
                push(region.start, region.end, MemoryRegionKind::UnknownBios(region.kind));
                continue;
            }
            // Memory below `LOWEST` is reported as the firmware's. Memory up to `next` counts as
            // taken. The rest is free, except for the kept ranges.
            let low = region.end.min(LOWEST);
            push(region.start, low, MemoryRegionKind::UnknownBios(region.kind));
            let mut at = region.start.max(LOWEST);
            let taken = region.end.min(self.next);
            push(at, taken, MemoryRegionKind::Bootloader);
            at = at.max(taken);
            for (kept_start, kept_end) in self.kept {
                if kept_end > at && kept_start < region.end && kept_start < kept_end {
                    push(at, kept_start, MemoryRegionKind::Usable);
                    push(kept_start.max(at), kept_end.min(region.end), MemoryRegionKind::Bootloader);
                    at = at.max(kept_end);
                }
            }
            push(at, region.end, MemoryRegionKind::Usable);
        }
        written
    }
}
