//! Commands about memory: its amount, its layout, and its integrity.

use super::machine::fence_in_words;
use super::{Outcome, said};
use alloc::vec::Vec;
use block::cache;
use host::domain::memory::describe;
use host::domain::{Domain, registry};
use host::module;
use hw::memory::{frames, heap_use, kernel_page, stray};
use hw::symbols::map;
use hw::{link, println};
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::service::SERVICES;
use ringfence_core::arguments::Arguments;
use ringfence_core::block_cache::Counts;
use ringfence_core::extent::Extent;
use ringfence_core::port_bitmap::Ports;
use ringfence_link::event::Event;
use x86_64::structures::paging::PageTableFlags as Flags;

pub async fn mem(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let (free, total) = frames::count();
    let (used, size) = heap_use();
    println!("frames    {free} free of {total}");
    println!("heap      {used} bytes used of {size}");
    for (disk, bytes, counts) in cache::state() {
        let Counts { hits, misses, ahead_bytes, writes, disk_writes, dirty_bytes } = counts;
        let [kib, ahead_kib, dirty_kib] = [bytes / 1024, ahead_bytes as usize / 1024, dirty_bytes.div_ceil(1024)];
        println!("cache     {kib} KiB of {disk}: {hits} reads found it there, {misses} did not");
        println!("          {ahead_kib} KiB read ahead, {writes} writes behind in {disk_writes}, {dirty_kib} KiB wait");
    }
    link::tell(&Event::Memory { free, frames: total, heap_used: used as u64 });
    for handle in registry::all() {
        let domain = handle.lock();
        println!(
            "{:<16} heap {} KiB, DMA {} KiB, image {} KiB",
            domain.name,
            domain.heap_bytes / 1024,
            domain.dma_bytes() / 1024,
            domain.image_bytes / 1024
        );
    }
    Ok(())
}

/// A row of `vmmap`.
struct Row {
    extent: Extent,
    rights: &'static str,
    what: &'static str,
}

fn rights(flags: Flags) -> &'static str {
    if !flags.contains(Flags::PRESENT) {
        return "---";
    }
    match (flags.contains(Flags::WRITABLE), flags.contains(Flags::NO_EXECUTE)) {
        (false, true) => "r--",
        (false, false) => "r-x",
        (true, true) => "rw-",
        (true, false) => "rwx",
    }
}

pub async fn vmmap(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.optional();
    arguments.end()?;
    let mut rows: Vec<Row> = Vec::new();
    match name {
        None => {
            // Physical memory is mapped with large pages. Their rights are of no interest here.
            let of_first = |start| kernel_page(start).map_or("rw-", |(_, flags)| rights(flags));
            let mapped = map::parts().chain([map::physical_memory()]).filter(|part| part.extent.len_bytes > 0);
            rows.extend(mapped.map(|part| Row {
                extent: part.extent,
                rights: of_first(part.extent.start),
                what: part.what,
            }));
            rows.sort_by_key(|row| row.extent.start);
        }
        Some(name) => {
            let handle = module::find(name).map_err(said)?;
            let domain = handle.lock();
            domain.space.for_each_page(&mut |page, flags| {
                let (rights, what) = (rights(flags), describe(&domain, page));
                match rows.last_mut() {
                    Some(row) if row.extent.end() == Some(page) && (row.rights, row.what) == (rights, what) => {
                        row.extent.len_bytes += PAGE_SIZE;
                    }
                    _ => rows.push(Row { extent: Extent::new(page, PAGE_SIZE), rights, what }),
                }
            });
        }
    }
    println!("{:<16}  {:<16} {:>7}  RIGHTS  WHAT", "START", "END", "KIB");
    for Row { extent, rights, what } in rows {
        let (start, kib) = (extent.start, extent.len_bytes / 1024);
        println!("{start:016x}  {:016x} {kib:>7}  {rights}     {what}", start.saturating_add(extent.len_bytes));
    }
    if let Some(name) = name {
        print_ports_and_gates(&module::find(name).map_err(said)?.lock());
    }
    Ok(())
}

/// Prints the things besides memory that a driver can reach.
fn print_ports_and_gates(domain: &Domain) {
    if let Some(device) = &domain.device {
        println!("device {}, {}", device.which(), fence_in_words(device));
    }
    for Ports { first, count } in domain.device.iter().flat_map(|device| device.ports()) {
        println!("ports  {first:#x} to {:#x}", first.saturating_add(count.saturating_sub(1)));
    }
    let granted: Vec<&str> = domain.imports.iter().filter_map(|number| Some(SERVICES.get(number)?.symbol)).collect();
    granted.chunks(4).for_each(|services| println!("gates  {}", services.join(" ")));
}

pub async fn integrity(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let (checksum, stray) = (hw::symbols::checksum(), stray::count());
    println!("{checksum:016x}  text, read-only data, descriptor tables, page tables");
    println!("{stray:16}  frames written to that nobody has, since this was asked last");
    link::tell(&Event::Integrity { checksum, stray });
    Ok(())
}
