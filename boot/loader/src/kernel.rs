//! Loads the kernel's ELF file, builds the kernel's address space, and jumps into the kernel.

use crate::BootError;
use crate::firmware::{Firmware, Region};
use crate::frames::{FRAME, Frames};
use bootloader_api::BootInfo;
use bootloader_api::config::{BootloaderConfig, Mapping};
use bootloader_api::info::{FrameBuffer, MemoryRegion, MemoryRegions, Optional};
use core::convert::Infallible;
use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use elf::segment::ProgramHeader;
use x86_64::VirtAddr;
use x86_64::structures::paging::PageTable;
use x86_64::structures::paging::PageTableFlags as Flags;

const LARGE_PAGE: u64 = 2 << 20;
const PML4_ENTRY: u64 = 1 << 39;
const DATA: Flags = Flags::PRESENT.union(Flags::WRITABLE).union(Flags::NO_EXECUTE);

unsafe extern "C" {
    static boot_pml4: PageTable;
    fn enter_kernel(entry: u64, stack: u64, page_tables: u64, boot_info: u64) -> !;
}

/// Loads the ELF file `file` and starts it.
pub fn start(firmware: &Firmware, frames: &mut Frames, file: &[u8]) -> Result<Infallible, BootError> {
    let bad = |what| move |_| BootError::Kernel(what);
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(bad("it is not an ELF file"))?;
    if elf.ehdr.e_machine != abi::EM_X86_64 || elf.ehdr.e_type != abi::ET_EXEC {
        return Err(BootError::Kernel("it is not an x86-64 executable with fixed addresses"));
    }
    let section = elf
        .section_header_by_name(".bootloader-config")
        .map_err(bad("its sections are damaged"))?
        .ok_or(BootError::Kernel("it has no .bootloader-config section"))?;
    let (config, _) = elf.section_data(&section).map_err(bad("its configuration is damaged"))?;
    let config = BootloaderConfig::deserialize(config).map_err(BootError::Kernel)?;

    let mut space = AddressSpace::new(frames)?;
    let segments = elf.segments().ok_or(BootError::Kernel("it has no segments"))?;
    for segment in segments.iter().filter(|segment| segment.p_type == abi::PT_LOAD) {
        let bytes = elf.segment_data(&segment).map_err(bad("a segment lies outside the file"))?;
        space.map_segment(frames, &segment, bytes)?;
    }

    // Map all regions that the kernel's configuration asks for. Fixed addresses are reserved first,
    // so that dynamic addresses avoid them.
    let mappings = &config.mappings;
    for mapping in [Some(mappings.kernel_stack), Some(mappings.boot_info), mappings.physical_memory] {
        if let Some(Mapping::FixedAddress(address)) = mapping {
            space.reserve(address);
        }
    }
    if let (Mapping::FixedAddress(address), false) = (mappings.ramdisk_memory, firmware.ramdisk.is_empty()) {
        space.reserve(address);
    }
    space.range = (mappings.dynamic_range_start.unwrap_or(0), mappings.dynamic_range_end.unwrap_or(u64::MAX));

    let top = firmware.regions().iter().filter(|region| region.usable).map(|region| region.end).max().unwrap_or(0);
    let physical_memory_offset = match mappings.physical_memory {
        None => None,
        Some(mapping) => {
            let base = space.choose(mapping)?;
            space.map_physical_memory(frames, base, top.max(4 << 30))?;
            Some(base)
        }
    };
    let recursive_index = match mappings.page_table_recursive {
        None => None,
        Some(mapping) => Some(space.map_recursive(mapping)?),
    };

    // The lowest page of the stack's range stays unmapped, so that a stack overflow faults.
    let stack_bottom = space.choose(mappings.kernel_stack)? + FRAME;
    let stack_len = config.kernel_stack_size.next_multiple_of(FRAME);
    let stack = frames.allocate(stack_len / FRAME)?;
    space.map(frames, stack_bottom, stack, stack_len, DATA)?;

    let ramdisk = firmware.ramdisk.as_ptr() as u64;
    let ramdisk_va = if firmware.ramdisk.is_empty() {
        None
    } else {
        let page = ramdisk & !(FRAME - 1);
        let base = space.choose(mappings.ramdisk_memory)?;
        let len = (ramdisk - page + firmware.ramdisk.len() as u64).next_multiple_of(FRAME);
        space.map(frames, base, page, len, DATA & !Flags::WRITABLE)?;
        Some(base + (ramdisk - page))
    };

    // The boot information, followed by the memory map. Write the map last: allocations after it
    // would be missing from it.
    let info_va = space.choose(mappings.boot_info)?;
    let map_offset = (size_of::<BootInfo>() as u64).next_multiple_of(align_of::<MemoryRegion>() as u64);
    let info_len = (map_offset + (frames.map_len() * size_of::<MemoryRegion>()) as u64).next_multiple_of(FRAME);
    let info_pa = frames.allocate(info_len / FRAME)?;
    space.map(frames, info_va, info_pa, info_len, DATA)?;
    let map_len = frames.write_map((info_pa + map_offset) as *mut MemoryRegion);
    // SAFETY: `map_len` regions were written to these frames, and the kernel finds them at this
    // address.
    let regions: &'static mut [MemoryRegion] =
        unsafe { core::slice::from_raw_parts_mut((info_va + map_offset) as *mut MemoryRegion, map_len) };

    let mut info = BootInfo::new(MemoryRegions::from(regions));
    info.physical_memory_offset = physical_memory_offset.map_or(Optional::None, Optional::Some);
    info.framebuffer =
        frame_buffer(firmware, physical_memory_offset, top.max(4 << 30)).map_or(Optional::None, Optional::Some);
    info.recursive_index = recursive_index.map_or(Optional::None, Optional::Some);
    info.rsdp_addr = firmware.rsdp.map_or(Optional::None, Optional::Some);
    info.ramdisk_addr = ramdisk_va.map_or(Optional::None, Optional::Some);
    info.ramdisk_len = firmware.ramdisk.len() as u64;
    info.kernel_addr = file.as_ptr() as u64;
    info.kernel_len = file.len() as u64;
    info.kernel_stack_bottom = stack_bottom;
    info.kernel_stack_len = stack_len;
    // SAFETY: the frames have room for the boot information, and are identity-mapped here.
    unsafe { (info_pa as *mut BootInfo).write(info) };

    // SAFETY: the new tables map the kernel, its stack and the boot information. They also map this
    // code at the same address.
    unsafe { enter_kernel(elf.ehdr.e_entry, stack_bottom + stack_len, space.root, info_va) }
}

/// Returns the screen as the kernel sees it, if the screen lies below `top`, the end of the mapped
/// physical memory.
fn frame_buffer(firmware: &Firmware, physical_memory_offset: Option<u64>, top: u64) -> Option<FrameBuffer> {
    let screen = firmware.screen.as_ref()?;
    let end = screen.start.checked_add(screen.info.byte_len as u64)?;
    let is_memory = |region: &&Region| region.usable && region.start < end && screen.start < region.end;
    if end > top || firmware.regions().iter().any(|region| is_memory(&region)) {
        return None;
    }
    // SAFETY: the frame buffer is mapped there, and overlaps no usable memory.
    Some(unsafe { FrameBuffer::new(physical_memory_offset? + screen.start, screen.info) })
}

/// The page tables that the kernel starts with.
struct AddressSpace {
    /// Physical address of the top-level table.
    root: u64,
    /// Which top-level entries are in use or reserved.
    used: [bool; 512],
    /// The range that dynamic addresses must lie in.
    range: (u64, u64),
}

impl AddressSpace {
    fn new(frames: &mut Frames) -> Result<AddressSpace, BootError> {
        let root = frames.allocate(1)?;
        let mut space = AddressSpace { root, used: [false; 512], range: (0, u64::MAX) };
        // This code must stay mapped until it has jumped into the kernel, which drops the entry.
        // SAFETY: this only reads the table, which `entry.S` filled in before any Rust code ran.
        let identity = unsafe { boot_pml4[0].clone() };
        table(root)[0] = identity;
        space.used[0] = true;
        Ok(space)
    }

    fn reserve(&mut self, address: u64) {
        self.used[index(address, 4)] = true;
    }

    /// Returns the address for `mapping`: the fixed address, or the start of an unused top-level
    /// entry.
    fn choose(&mut self, mapping: Mapping) -> Result<u64, BootError> {
        if let Mapping::FixedAddress(address) = mapping {
            return Ok(address);
        }
        let (lowest, highest) = self.range;
        for entry in 1..512u64 {
            let address = VirtAddr::new_truncate(entry * PML4_ENTRY).as_u64();
            if !self.used[entry as usize] && address >= lowest && address.saturating_add(PML4_ENTRY - 1) <= highest {
                self.used[entry as usize] = true;
                return Ok(address);
            }
        }
        Err(BootError::Kernel("its configuration leaves no room for a dynamic address"))
    }

    fn map_recursive(&mut self, mapping: Mapping) -> Result<u16, BootError> {
        let entry = index(self.choose(mapping)?, 4);
        self.used[entry] = true;
        let root = x86_64::PhysAddr::new(self.root);
        table(self.root)[entry].set_addr(root, DATA);
        Ok(entry as u16)
    }

    /// Maps `len_bytes` bytes (whole pages) at `va` to `pa`.
    fn map(&mut self, frames: &mut Frames, va: u64, pa: u64, len_bytes: u64, flags: Flags) -> Result<(), BootError> {
        for offset in (0..len_bytes).step_by(FRAME as usize) {
            let entries = self.walk(frames, va + offset, 1)?;
            let entry = &mut entries[index(va + offset, 1)];
            if !entry.is_unused() {
                return Err(BootError::Kernel("two of its mappings overlap"));
            }
            entry.set_addr(x86_64::PhysAddr::new(pa + offset), flags);
        }
        Ok(())
    }

    /// Maps physical memory from 0 to `top` at `base`, with large pages.
    fn map_physical_memory(&mut self, frames: &mut Frames, base: u64, top: u64) -> Result<(), BootError> {
        for pa in (0..top).step_by(LARGE_PAGE as usize) {
            let entries = self.walk(frames, base + pa, 2)?;
            entries[index(base + pa, 2)].set_addr(x86_64::PhysAddr::new(pa), DATA | Flags::HUGE_PAGE);
        }
        self.reserve(base);
        Ok(())
    }

    fn map_segment(&mut self, frames: &mut Frames, segment: &ProgramHeader, bytes: &[u8]) -> Result<(), BootError> {
        let (va, memory) = (segment.p_vaddr, segment.p_memsz);
        if memory == 0 {
            return Ok(());
        }
        if bytes.len() as u64 > memory || va.checked_add(memory).is_none() || va >> 47 != 0x1ffff {
            return Err(BootError::Kernel("a segment is not in the higher half"));
        }
        let mut page = Flags::PRESENT;
        page.set(Flags::WRITABLE, segment.p_flags & abi::PF_W != 0);
        page.set(Flags::NO_EXECUTE, segment.p_flags & abi::PF_X == 0);
        if page.contains(Flags::WRITABLE) && !page.contains(Flags::NO_EXECUTE) {
            return Err(BootError::Kernel("a segment is writable and executable"));
        }
        let first = va & !(FRAME - 1);
        let len = (va - first + memory).next_multiple_of(FRAME);
        let pa = frames.allocate(len / FRAME)?;
        // SAFETY: the frames are fresh and long enough, and identity-mapped.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), (pa + va - first) as *mut u8, bytes.len()) };
        self.map(frames, first, pa, len, page)?;
        self.reserve(va);
        Ok(())
    }

    /// Returns the table of `level` that maps `va`. Allocates the missing tables on the way.
    fn walk(&mut self, frames: &mut Frames, va: u64, level: u8) -> Result<&'static mut PageTable, BootError> {
        let mut current = table(self.root);
        for above in (level + 1..=4).rev() {
            let entry = &mut current[index(va, above)];
            if entry.is_unused() {
                let frame = frames.allocate(1)?;
                entry.set_addr(x86_64::PhysAddr::new(frame), Flags::PRESENT | Flags::WRITABLE);
            }
            current = table(entry.addr().as_u64());
        }
        Ok(current)
    }
}

fn index(va: u64, level: u8) -> usize {
    (va >> (12 + 9 * (u64::from(level) - 1)) & 511) as usize
}

fn table(pa: u64) -> &'static mut PageTable {
    // SAFETY: page tables are frames of this loader, identity-mapped, and used through one
    // reference at a time.
    unsafe { &mut *(pa as *mut PageTable) }
}
