//! The layout of the kernel's half of the address space, in words for a person: for reports, and
//! for `vmmap`.

use super::image_parts;
use crate::arch::{entry_area, trap_stacks};
use crate::memory::tables::Root;
use crate::memory::{at_physical, is_ram, is_table, kernel_root, ram_end};
use ringfence_abi::layout::{PAGE_SIZE, slot_of};
use ringfence_core::extent::Extent;
use spin::Once;

/// A part of the kernel's half.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The part's address range.
    pub extent: Extent,
    /// The part's name.
    pub what: &'static str,
}

const fn part(start: u64, len_bytes: u64, what: &'static str) -> Part {
    Part { extent: Extent::new(start, len_bytes), what }
}

/// The parts that the loader, or [`crate::memory::init`], has placed.
static PLACED: Once<[Part; PLACED_PARTS]> = Once::new();
const PLACED_PARTS: usize = 4;

/// Notes where the heap, the boot stack and the ramdisk are.
pub(crate) fn init(heap: Extent, boot_stack: Extent, ramdisk: Extent) {
    let root = part(at_physical(kernel_root()) as u64, PAGE_SIZE, "page tables");
    let named = |extent, what| Part { extent, what };
    PLACED
        .call_once(|| [named(heap, "kernel heap"), root, named(ramdisk, "ramdisk"), named(boot_stack, "kernel stack")]);
}

/// Returns the mapping of physical memory, in which some of the other parts lie.
pub fn physical_memory() -> Part {
    part(at_physical(0) as u64, ram_end(), "physical memory")
}

/// Finds the part that is called `name`: the text of [`Part::what`] in lower case, with hyphens for
/// spaces and without slashes.
pub fn find(name: &str) -> Option<Part> {
    let is_called = |part: &Part| {
        let what = part.what.chars().filter(|c| *c != '/').map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() });
        what.eq(name.chars())
    };
    parts().chain([physical_memory()]).find(is_called)
}

/// Returns all parts that have one place. The rest of physical memory is frames, page tables and
/// registers of devices.
pub fn parts() -> impl Iterator<Item = Part> {
    let pages = |offset: u64, count: u64, what| part(entry_area::BASE + offset, count * PAGE_SIZE, what);
    let entry = [
        pages(0, entry_area::TEXT_PAGES, "entry text"),
        pages(0x2000, 1, "GDT"),
        pages(0x3000, 1, "IDT"),
        pages(0x4000, 1, "TSS"),
        pages(0x5000, 2, "I/O bitmap"),
        pages(0x7000, 1, "LDT"),
        pages(0x8000, 1, "entry stacks"),
    ];
    let trap_stacks = trap_stacks::extents().into_iter().zip(trap_stacks::NAMES);
    let trap_stacks = trap_stacks.map(|(extent, what)| Part { extent, what });
    let placed = PLACED.get().into_iter().flatten().copied();
    let image = image_parts().into_iter().map(|(start, end, what)| part(start, end - start, what));
    placed.chain(trap_stacks).chain(image).chain(entry)
}

/// Describes the memory at an address of the kernel's half. It takes no locks, as a panic calls it
/// as well.
pub fn describe(address: u64) -> &'static str {
    if address >> 47 == 0 {
        return if slot_of(address).is_some() { "a driver's slot" } else { "unmapped" };
    }
    if let Some(part) = parts().find(|part| part.extent.contains(address)) {
        return part.what;
    }
    let boot_stack = PLACED.get().map(|[.., stack]| stack.extent.start);
    if trap_stacks::all().contains(address)
        || boot_stack.is_some_and(|start| (start - PAGE_SIZE..start).contains(&address))
    {
        return "guard below a kernel stack";
    }
    let pa = address.wrapping_sub(at_physical(0) as u64);
    match Root::kernel().is_mapped(address) {
        false => "unmapped",
        true if is_table(pa & !(PAGE_SIZE - 1)) => "page tables",
        true if is_ram(Extent::new(pa, 1)) => "physical memory",
        true => "device registers",
    }
}
