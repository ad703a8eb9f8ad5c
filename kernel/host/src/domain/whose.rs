//! The owner of a physical address, in words for a person: for reports of accesses that a device's
//! fence blocked.

use super::memory::describe;
use super::upcall::with_current;
use super::{Domain, Handle, registry};
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use hw::memory::{frames, is_ram, is_table, kernel_page, physical_start};
use hw::symbols::map;
use hw::{iommu, pci};
use ringfence_abi::layout::{IMAGE, PAGE_SIZE};
use ringfence_core::extent::Extent;

/// The addresses at which a device's write is an interrupt (SDM vol. 3A, 11.11.1).
const INTERRUPTS: Extent = Extent::new(0xfee0_0000, 0x10_0000);

/// Describes the owner of the byte at physical address `pa`. `own` is a domain that the caller has
/// locked. Other locked domains are left out.
pub fn whose(pa: u64, own: &Domain) -> String {
    let page = pa & !(PAGE_SIZE - 1);
    if INTERRUPTS.contains(pa) {
        return "where interrupts are raised".to_string();
    }
    if iommu::has(page) {
        return "the IOMMU's own registers, queue or tables".to_string();
    }
    if let Some(what) = of_domain(own, page) {
        return what;
    }
    // The handle of `own` is locked, so it is skipped here.
    let others = registry::all();
    let of_other = |handle: &Handle| handle.try_lock().and_then(|domain| of_domain(&domain, page));
    if let Some(what) = others.iter().find_map(of_other) {
        return what;
    }
    if let Some(part) = map::parts().find(|part| has_page(part, page)) {
        return part.what.to_string();
    }
    if is_table(page) {
        return "page tables".to_string();
    }
    let mut is_free = false;
    frames::for_each_free(|free| is_free |= free.physical() == page);
    match pci::functions().iter().find(|function| pci::has_registers(function, pa)) {
        _ if is_free => "memory that nobody has".to_string(),
        _ if is_ram(Extent::new(pa, 1)) => "memory of the kernel".to_string(),
        Some(function) => format!("registers of {}", function.address),
        None => "nothing".to_string(),
    }
}

/// Describes the part of `domain` that lies in the frame at `page`.
fn of_domain(domain: &Domain, page: u64) -> Option<String> {
    let mut found = None;
    domain.space.for_each_page(&mut |address, _| {
        let is_own = found.is_none() && address >> 47 == 0;
        if is_own && domain.space.translate(address).is_some_and(|(pa, _)| pa == page) {
            found = Some(address);
        }
    });
    let what = match found {
        Some(address) => describe(domain, address).trim_start_matches("own "),
        None if domain.space.stacks() == page => "entry stacks",
        None if domain.fence().is_some_and(|fence| fence.has_table(page)) => "IOMMU tables",
        None if domain.space.has_table(page) => "page tables",
        None => return None,
    };
    Some(format!("{what} of {}", domain.name))
}

/// Returns whether a page of `part` lies in the frame at `page`.
fn has_page(part: &map::Part, page: u64) -> bool {
    let Extent { start, len_bytes } = part.extent;
    let is_there = |offset: u64| kernel_page(start + offset).is_some_and(|(pa, _)| pa == page);
    // All of physical memory is mapped in one place, and some parts are ranges of this mapping.
    let direct = start.wrapping_sub(physical_start());
    match is_ram(Extent::new(direct, 1)) {
        true => Extent::new(direct & !(PAGE_SIZE - 1), len_bytes).contains(page),
        false => hw::memory::pages(len_bytes).any(is_there),
    }
}

/// Returns the first physical address of a part of the kernel or, if the name begins with a
/// driver's name and a colon, of a part of that driver. The names are those of `vmmap`, with
/// hyphens for spaces and without `own`.
pub fn physical(name: &str) -> Option<u64> {
    let Some((driver, part)) = name.split_once(':') else {
        let Extent { start, .. } = map::find(name)?.extent;
        let direct = start.wrapping_sub(physical_start());
        return match is_ram(Extent::new(direct, 1)) {
            true => Some(direct),
            false => kernel_page(start).map(|(pa, _)| pa),
        };
    };
    if driver == "iommu" {
        return iommu::part(part);
    }
    let handle = registry::find(driver)?;
    let domain = handle.lock();
    match part {
        "page-tables" => return Some(domain.space.cr3()),
        "entry-stacks" => return Some(domain.space.stacks()),
        "iommu-tables" => return domain.fence().and_then(iommu::Fence::tables),
        "device" => {
            let device = domain.device.as_ref()?;
            return device.function()?.bars.iter().flatten().find_map(pci::memory_extent).map(|(start, _)| start);
        }
        _ => {}
    }
    let mut found = None;
    domain.space.for_each_page(&mut |address, _| {
        let what = || describe(&domain, address).replace("own ", "").replace(' ', "-").to_lowercase();
        if found.is_none() && address >> 47 == 0 && what() == part {
            found = domain.space.translate(address).map(|(pa, _)| pa);
        }
    });
    found
}

/// The domain that an address belongs to, and the offset in its image, for a panic.
pub struct Owner(pub u64);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Allocate nothing: the heap's lock may be held for good.
        let mut write = |domain: &Domain| {
            let is_in = domain.slot_extent().contains(self.0);
            is_in.then(|| write!(f, "{}+{:#x}", domain.file.label(), self.0.wrapping_sub(domain.base() + IMAGE)))
        };
        // The running domain is locked by its caller, so look at it separately.
        let found = registry::find_unlocked(&mut write).or_else(|| with_current(|domain| write(domain)).flatten());
        found.unwrap_or_else(|| f.write_str("nobody's"))
    }
}
