//! The description of the machine, as the PVH or multiboot2 loader passes it. All values are copied
//! out at once: GRUB may put its information into memory that is handed out later.

use crate::BootError;
use bootloader_api::info::{FrameBufferInfo, PixelFormat};
use multiboot2::{BootInformation, FramebufferTag, FramebufferType, MemoryAreaType};
use pvh::start_info::{MemmapType, reader::StartInfoReader};

/// The maximum number of memory regions; further regions are ignored.
const MAX_REGIONS: usize = 64;

/// A region of physical memory.
#[derive(Clone, Copy, Default)]
pub struct Region {
    pub start: u64,
    pub end: u64,
    /// Whether it is plain memory.
    pub usable: bool,
    /// The firmware's type, for the kernel to show.
    pub kind: u32,
}

/// A frame buffer.
pub struct Screen {
    /// Its physical address.
    pub start: u64,
    pub info: FrameBufferInfo,
}

/// The description of the machine.
pub struct Firmware {
    regions: [Region; MAX_REGIONS],
    count: usize,
    /// The ramdisk, identity-mapped; empty if there is none.
    pub ramdisk: &'static [u8],
    /// Physical address of the RSDP.
    pub rsdp: Option<u64>,
    /// A frame buffer with pixels, if the loader has set one up.
    pub screen: Option<Screen>,
    /// The memory of the multiboot2 information, which contains a copy of the RSDP and must stay.
    /// Empty for PVH.
    pub information: (u64, u64),
}

impl Firmware {
    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.count]
    }

    fn new() -> Firmware {
        let regions = [Region::default(); MAX_REGIONS];
        Firmware { regions, count: 0, ramdisk: &[], rsdp: None, screen: None, information: (0, 0) }
    }

    fn add(&mut self, start: u64, len_bytes: u64, usable: bool, kind: u32) {
        if self.count < MAX_REGIONS && len_bytes > 0 {
            self.regions[self.count] = Region { start, end: start.saturating_add(len_bytes), usable, kind };
            self.count += 1;
        }
    }

    fn finish(mut self) -> Result<Firmware, BootError> {
        if self.count == 0 {
            return Err(BootError::Firmware("no memory map"));
        }
        let count = self.count;
        self.regions[..count].sort_unstable_by_key(|region| region.start);
        Ok(self)
    }
}

/// Reads the start information of a PVH loader at physical address `information`
/// (xen/include/public/arch-x86/hvm/start_info.h).
pub fn pvh(information: u32) -> Result<Firmware, BootError> {
    let mut firmware = Firmware::new();
    // SAFETY: the first 4 GiB are identity-mapped, and none of this memory has been handed out yet.
    let reader = unsafe { StartInfoReader::from_paddr_identity(information) }
        .ok_or(BootError::Firmware("no PVH start information"))?;
    for entry in reader.memmap() {
        firmware.add(entry.addr, entry.size, entry.ty() == MemmapType::Ram, entry.ty);
    }
    firmware.rsdp = Some(reader.raw().rsdp_paddr).filter(|address| *address != 0);
    let (list, count) = (reader.raw().modlist_paddr, reader.raw().nr_modules);
    if count > 0 && list != 0 {
        // Read the first two words of the entry: address and length. Not every firmware aligns
        // them: qboot's are at a multiple of 4. SAFETY: as above.
        let [start, len_bytes] = unsafe { (list as *const [u64; 2]).read_unaligned() };
        let is_mapped = start != 0 && start.checked_add(len_bytes).is_some_and(|end| end <= 1 << 32);
        if !is_mapped {
            return Err(BootError::Firmware("the ramdisk lies beyond 4 GiB, or at 0"));
        }
        // SAFETY: the ramdisk stays where it is, and its memory is never handed out.
        firmware.ramdisk = unsafe { core::slice::from_raw_parts(start as *const u8, len_bytes as usize) };
    }
    firmware.finish()
}

/// Reads the boot information of a multiboot2 loader at physical address `information` (Multiboot2
/// specification 3.6).
pub fn multiboot2(information: u32) -> Result<Firmware, BootError> {
    let mut firmware = Firmware::new();
    // SAFETY: the first 4 GiB are identity-mapped, and none of this memory has been handed out yet.
    let info = unsafe { BootInformation::load(information as usize as *const _) }
        .map_err(|_| BootError::Firmware("no multiboot2 information"))?;
    let map = info.memory_map_tag().ok_or(BootError::Firmware("no memory map"))?;
    for area in map.memory_areas() {
        let kind = area.typ();
        firmware.add(area.start_address(), area.size(), kind == MemoryAreaType::Available, u32::from(kind));
    }
    firmware.information = (info.start_address() as u64, info.end_address() as u64);
    // The tag contains a copy of the RSDP, after an 8-byte header.
    let after_header = |tag: *const u8| tag as u64 + 8;
    firmware.rsdp = info
        .rsdp_v2_tag()
        .map(|tag| after_header(core::ptr::from_ref(tag).cast()))
        .or_else(|| info.rsdp_v1_tag().map(|tag| after_header(core::ptr::from_ref(tag).cast())));
    firmware.screen = info.framebuffer_tag().and_then(Result::ok).and_then(screen);
    if let Some(module) = info.module_tags().next() {
        let (start, end) = (module.start_address() as usize, module.end_address() as usize);
        if end < start {
            return Err(BootError::Firmware("the ramdisk ends before it begins"));
        }
        // SAFETY: GRUB put the ramdisk there; its memory is never handed out.
        firmware.ramdisk = unsafe { core::slice::from_raw_parts(start as *const u8, end - start) };
    }
    firmware.finish()
}

/// Returns the frame buffer, if it has RGB pixels of whole bytes and plausible dimensions.
fn screen(tag: &FramebufferTag) -> Option<Screen> {
    let bytes_per_pixel = match tag.buffer_type() {
        Ok(FramebufferType::RGB { .. }) => usize::from(tag.bpp() / 8),
        _ => 0,
    };
    let (width, height, pitch) = (tag.width() as usize, tag.height() as usize, tag.pitch() as usize);
    let is_plausible =
        bytes_per_pixel > 0 && width.max(height) <= 1 << 15 && (width * bytes_per_pixel..=1 << 20).contains(&pitch);
    let info = FrameBufferInfo {
        byte_len: pitch.checked_mul(height)?,
        width,
        height,
        pixel_format: PixelFormat::Bgr,
        bytes_per_pixel,
        stride: pitch.checked_div(bytes_per_pixel)?,
    };
    is_plausible.then_some(Screen { start: tag.address(), info })
}
