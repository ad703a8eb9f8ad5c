//! The Ringfence kernel: loads driver modules into ring 1, where they cannot hurt it, and into ring 0 once they have
//! earned it.
//!
//! Where to read on: [`domain`] is what a loaded driver is; [`arch::gates`] with `arch/entry.S` is how it is entered
//! and left; [`service`] is what it may ask for; [`module`] is how it gets in. `docs/architecture.md` has the map.
#![no_std]
#![no_main]
#![warn(missing_docs)]

extern crate alloc;

mod arch;
#[forbid(unsafe_code)]
mod bench;
mod console;
mod domain;
#[forbid(unsafe_code)]
mod file;
#[forbid(unsafe_code)]
mod firmware;
#[forbid(unsafe_code)]
mod iommu;
mod latency;
#[forbid(unsafe_code)]
mod limits;
mod memory;
#[forbid(unsafe_code)]
mod module;
#[forbid(unsafe_code)]
mod net;
mod panic;
mod pci;
#[forbid(unsafe_code)]
mod poll;
#[forbid(unsafe_code)]
mod ramdisk;
#[forbid(unsafe_code)]
mod scsi;
mod service;
#[forbid(unsafe_code)]
mod shell;
#[forbid(unsafe_code)]
mod supervise;
mod symbols;
mod task;
#[forbid(unsafe_code)]
mod trial;

use arch::handlers::Handlers;
use bootloader_api::config::Mapping;
use bootloader_api::info::Optional;
use bootloader_api::{BootInfo, BootloaderConfig, entry_point};
use domain::offer::Class;
use ringfence_core::extent::Extent;

const CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = 256 << 10;
    config.mappings.physical_memory = Some(Mapping::FixedAddress(0xffff_8000_0000_0000));
    // The lower half is the domains'.
    config.mappings.dynamic_range_start = Some(0xffff_b000_0000_0000);
    config.mappings.dynamic_range_end = Some(0xffff_feff_ffff_ffff);
    config
};
entry_point!(kernel_main, config = &CONFIG);

/// What the CPU's part asks of those above it.
static HANDLERS: Handlers = Handlers {
    timer_tick: task::tick,
    serial_input: console::receive,
    watchpoint_hit: domain::trace::note_access,
    driver_trapped: domain::upcall::end_by_trap,
    kernel_trapped: panic::exception,
    before_power_off: console::drain,
};

/// The classes of devices, which nothing else names to those below them.
static CLASSES: [&dyn Class; 2] = [&net::CLASS, &scsi::CLASS];

/// Brings the machine up, one step a line.
fn kernel_main(info: &'static mut BootInfo) -> ! {
    arch::handlers::install(&HANDLERS);
    console::init();
    set_screen_up(info);
    set_memory_up(info).unwrap_or_else(|reason| give_up(reason));
    let protections = arch::cpu::init();
    arch::tcg::init();
    arch::interrupts::init().unwrap_or_else(|reason| give_up(reason));
    let firmware = firmware::Firmware::read(info);
    arch::time::init(&firmware.clocks).unwrap_or_else(|reason| give_up(reason));
    pci::init(&firmware.buses);
    let (kernel, files) = memory::files(info);
    symbols::init(kernel);
    if let Some(files) = files {
        ramdisk::init(files);
        ramdisk::files().for_each(|(_, bytes)| memory::stray::watch(bytes));
    }
    let (_, frames) = memory::frames::count();
    log::info!("Ringfence {}: {} MiB free, {protections}", env!("CARGO_PKG_VERSION"), frames / 256);
    log::info!("pci: {} functions", pci::functions().len());
    match &firmware.dmar {
        Some(table) => iommu::init(table, &firmware.wiring),
        None => log::info!("iommu: none: a device reaches what its driver tells it to"),
    }
    if !iommu::remaps_interrupts() {
        arch::local_apic::turn_off();
    }
    domain::offer::install(&CLASSES);
    let start = |spawner| {
        task::spawn(spawner, poll::serve_interrupts);
        task::spawn(spawner, poll::serve_rested);
        task::spawn(spawner, poll::serve_dma_faults);
        task::spawn(spawner, supervise::run);
        task::spawn(spawner, scsi::scan::run);
        task::spawn(spawner, net::run);
        task::spawn(spawner, shell::run);
        task::spawn(spawner, console::screen::run);
    };
    task::run(start, poll::idle)
}

/// The machine will not do.
fn give_up(reason: &str) -> ! {
    console::screen::take_over();
    println!("boot failed: {reason}");
    arch::power::end(arch::power::Ending::Panic)
}

/// The screen, if there is one: it shows what else goes wrong.
fn set_screen_up(info: &mut BootInfo) {
    let frame_buffer = core::mem::replace(&mut info.framebuffer, Optional::None).into_option();
    if let Optional::Some(offset) = info.physical_memory_offset {
        console::screen::init(offset, frame_buffer);
    }
}

/// Memory, and the entry area, which is in every address space. The error says what there was too little of.
fn set_memory_up(info: &BootInfo) -> Result<(), &'static str> {
    let heap = memory::init(info)?;
    let boot_stack = Extent::new(info.kernel_stack_bottom, info.kernel_stack_len);
    let ramdisk = Extent::new(info.ramdisk_addr.into_option().unwrap_or(0), info.ramdisk_len);
    symbols::map::init(heap, boot_stack, ramdisk);
    arch::entry_area::init(memory::kernel_root());
    arch::trap_stacks::init().map_err(|_| "too little memory for the trap stacks")?;
    arch::entry_area::protect();
    Ok(())
}
