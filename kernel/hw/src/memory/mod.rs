//! Physical memory, the kernel's own address space, and the kernel's heap.
//!
//! * [`frames`]: the free frames
//! * [`tables`]: page tables, the kernel's and the domains'
//! * [`stray`]: writes of devices to free memory
//! * [`registers`]: registers of devices
//! * [`shared`]: memory that a driver or a device may write while the kernel reads it
//!
//! The kernel's root maps all of physical memory at one offset ([`at_physical`]), its own image,
//! its stacks, and every domain's slot. A slot is executable only if its domain is trusted.

use crate::latency::breathe;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use bootloader_api::BootInfo;
use bootloader_api::info::{MemoryRegion, MemoryRegionKind, Optional};
use core::sync::atomic::{AtomicU64, Ordering};
use linked_list_allocator::LockedHeap;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_core::extent::Extent;
use spin::Once;
use tables::Root;

pub mod frames;
pub mod queues;
pub mod registers;
pub mod shared;
pub mod stray;
pub(crate) mod tables;
pub(crate) use tables::write_constant;
pub use tables::{for_each_kernel_entry, for_each_kernel_word, read_kernel};

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Least and most heap in bytes; in between it is an eighth of memory.
const HEAP_LEAST: u64 = 8 << 20;
const HEAP_MOST: u64 = 64 << 20;
/// Memory below this address has no owner.
const LOW_BYTES: u64 = 1 << 20;

static PHYSICAL_OFFSET: AtomicU64 = AtomicU64::new(0);
static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);
static RAM: Once<Vec<Extent>> = Once::new();
/// First physical address that is not mapped.
static MAPPED_END: AtomicU64 = AtomicU64::new(0);

/// Returns the address at which the kernel sees physical address `pa`.
pub fn at_physical(pa: u64) -> *mut u8 {
    (physical_start() + pa) as *mut u8
}

/// Returns the address at which the kernel sees physical address 0.
pub fn physical_start() -> u64 {
    PHYSICAL_OFFSET.load(Ordering::Relaxed)
}

/// Returns the physical address of the kernel's top-level page table.
pub fn kernel_root() -> u64 {
    KERNEL_ROOT.load(Ordering::Relaxed)
}

/// Takes over memory from the loader. Returns the place of the kernel's heap. Called once, before
/// any allocation.
pub(crate) fn init(info: &BootInfo) -> Result<Extent, &'static str> {
    let Optional::Some(offset) = info.physical_memory_offset else {
        return Err("the loader did not map physical memory");
    };
    PHYSICAL_OFFSET.store(offset, Ordering::Relaxed);
    let (root, _) = x86_64::registers::control::Cr3::read();
    KERNEL_ROOT.store(root.start_address().as_u64(), Ordering::Relaxed);

    MAPPED_END.store(mapped_end(info), Ordering::Relaxed);

    // Conventional memory is left alone: firmware keeps data there, and address 0 stands for no
    // frame. The heap is one piece of the largest region. The frame allocator, which needs the
    // heap, gets the rest.
    let usable = || info.memory_regions.iter().filter(|region| region.kind == MemoryRegionKind::Usable);
    let total: u64 = usable().map(|region| region.end - region.start).sum();
    let largest = usable().max_by_key(|region| region.end - region.start).ok_or("there is no usable memory")?;
    let heap_start = largest.start.next_multiple_of(PAGE_SIZE);
    let heap_len = (total / 8).clamp(HEAP_LEAST, HEAP_MOST) & !(PAGE_SIZE - 1);
    if heap_start + heap_len + HEAP_LEAST > largest.end {
        return Err("too little memory for the kernel's heap");
    }
    // SAFETY: this is usable memory without any other owner.
    unsafe { HEAP.lock().init(at_physical(heap_start), heap_len as usize) };
    for region in usable() {
        let start = if region.start == largest.start { heap_start + heap_len } else { region.start };
        frames::add(start.max(LOW_BYTES), region.end);
    }
    let is_ram = |kind| matches!(kind, MemoryRegionKind::Usable | MemoryRegionKind::Bootloader);
    let ram = info.memory_regions.iter().filter(|region| is_ram(region.kind));
    RAM.call_once(|| ram.map(|region| Extent::new(region.start, region.end - region.start)).collect());
    Root::kernel().drop_lower_half();
    Ok(Extent::new(at_physical(heap_start) as u64, heap_len))
}

/// Returns whether some of `extent` is memory, by the firmware's map. Device registers must not be.
pub fn is_ram(extent: Extent) -> bool {
    const LOW: Extent = Extent::new(0, LOW_BYTES);
    extent.overlaps(LOW) || RAM.get().is_none_or(|ram| ram.iter().any(|ram| ram.overlaps(extent)))
}

/// Returns the mapping of the 4 KiB page at `address` in the kernel's own address space: the
/// physical address of `address`, and the rights.
pub fn kernel_page(address: u64) -> Option<(u64, x86_64::structures::paging::PageTableFlags)> {
    Root::kernel().translate(address)
}

/// Returns whether the frame at `pa` holds a page table of the kernel's root. The tables that a
/// domain shares with it count as well.
pub fn is_table(pa: u64) -> bool {
    Root::kernel().has_table(pa)
}

/// Returns the end of memory, by the firmware's map.
pub fn ram_end() -> u64 {
    RAM.get().into_iter().flatten().filter_map(|ram| ram.end()).max().unwrap_or(0)
}

/// Yields the offsets of the pages of `len_bytes` bytes. After every few pages it lets interrupts
/// in, if a service has turned them off.
pub fn pages(len_bytes: u64) -> impl Iterator<Item = u64> {
    const AT_ONCE: u64 = 16;
    (0..len_bytes).step_by(PAGE_SIZE as usize).inspect(|offset| {
        if offset % (AT_ONCE * PAGE_SIZE) == (AT_ONCE - 1) * PAGE_SIZE {
            breathe();
        }
    })
}

/// Returns whether `len_bytes` bytes at physical address `start` are mapped, and none of them is
/// memory.
pub fn is_device(start: u64, len_bytes: u64) -> bool {
    let end = start.checked_add(len_bytes).filter(|end| *end <= MAPPED_END.load(Ordering::Relaxed));
    end.is_some() && !is_ram(Extent::new(start, len_bytes))
}

/// Returns the end of the loader's mapping of physical memory: it covers the first 4 GiB, and all
/// memory.
fn mapped_end(info: &BootInfo) -> u64 {
    let ends =
        info.memory_regions.iter().filter(|region| region.kind == MemoryRegionKind::Usable).map(|region| region.end);
    ends.fold(4 << 30, u64::max)
}

/// Returns `len_bytes` bytes at physical address `start`, if firmware or the loader left them, and
/// they are not in the allocator.
pub(crate) fn firmware(info: &BootInfo, start: u64, len_bytes: usize) -> Option<&'static [u8]> {
    let end = start.checked_add(len_bytes as u64).filter(|end| *end <= mapped_end(info))?;
    let is_handed_out = |region: &MemoryRegion| region.kind == MemoryRegionKind::Usable && region.end > LOW_BYTES;
    if start == 0
        || info.memory_regions.iter().any(|region| is_handed_out(region) && region.start < end && start < region.end)
    {
        return None;
    }
    Some(left(at_physical(start), len_bytes))
}

/// Returns the kernel's own file, and the ramdisk, as the loader has left them in memory that is
/// never handed out.
pub(crate) fn files(info: &BootInfo) -> (&'static [u8], Option<&'static [u8]>) {
    let ramdisk = info.ramdisk_addr.into_option().map(|start| left(start as *const u8, info.ramdisk_len as usize));
    (left(at_physical(info.kernel_addr), info.kernel_len as usize), ramdisk)
}

fn left(start: *const u8, len_bytes: usize) -> &'static [u8] {
    // SAFETY: the loader or firmware says that it is there. It is mapped, in no allocator, and is
    // never written.
    unsafe { core::slice::from_raw_parts(start, len_bytes) }
}

/// Bytes of the kernel's heap that are reserved for allocations that cannot fail: names, lists of
/// waiting tasks, lines of the log.
const HEAP_RESERVE: usize = 1 << 20;

/// Gives up memory of the heap that is of use, but not needed.
static RECLAIM: Once<fn()> = Once::new();

/// Installs the function that gives up unneeded memory when there is no room for other memory. It
/// must not wait for a lock.
pub fn install_reclaim(reclaim: fn()) {
    RECLAIM.call_once(|| reclaim);
}

/// Has memory given up that is not needed.
pub fn reclaim() {
    if let Some(reclaim) = RECLAIM.get() {
        reclaim();
    }
}

/// Returns whether the kernel's heap has room for `len_bytes` bytes besides the reserve.
/// **Allocations that a person, a driver or a peer can cause again and again must be checked
/// here**, or use memory that can be refused.
pub fn has_room(len_bytes: usize) -> bool {
    let is_there = || {
        let (used, size) = heap_use();
        size.saturating_sub(used).saturating_sub(HEAP_RESERVE) >= len_bytes
    };
    is_there() || {
        reclaim();
        is_there()
    }
}

/// Returns `len_bytes` zeros in the kernel's heap; the error says that there is no room for them
/// now.
pub fn buffer(len_bytes: usize) -> Result<Vec<u8>, String> {
    let mut buffer = Vec::new();
    // There may be room, but in pieces.
    let mut is_reserved = || {
        buffer.try_reserve_exact(len_bytes).is_ok() || {
            reclaim();
            buffer.try_reserve_exact(len_bytes).is_ok()
        }
    };
    if !has_room(len_bytes) || !is_reserved() {
        let room = if len_bytes < 1024 { format!("{len_bytes} bytes") } else { format!("{} KiB", len_bytes / 1024) };
        return Err(format!("out of memory: there is no room for a buffer of {room} right now"));
    }
    buffer.resize(len_bytes, 0);
    Ok(buffer)
}

/// Returns the bytes of the kernel's heap: in use, and in all.
pub fn heap_use() -> (usize, usize) {
    let heap = HEAP.lock();
    (heap.used(), heap.size())
}
