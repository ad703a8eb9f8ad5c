//! The Ringfence kernel: loads driver modules into ring 1, where they cannot hurt it, and into ring
//! 0 once they have earned it.
//!
//! This crate is the top: it has the start of the kernel, the shell, the benchmark, and the panic
//! handler. Where to read on: [`host::domain`] has the loaded driver; `hw/src/arch/entry.S` and
//! [`hw::upcall`] enter and leave it; [`host::service`] has the services that it calls;
//! [`host::module`] loads it. `docs/architecture.md` has the map.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

#[cfg(feature = "bench")]
mod bench;
mod debugger;
mod page;
mod panic;
mod remote;
mod shell;
mod streams;
mod traced;
#[cfg(feature = "campaign")]
mod trial;

use block::disk::Search;
use bootloader_api::config::Mapping;
use bootloader_api::{BootInfo, BootloaderConfig, entry_point};
use host::domain::offer::Class;
use host::{domain, evidence, poll, ramdisk, service, supervise};
use hw::arch::handlers::Handlers;
use hw::boot::Boot;
use hw::{arch, console, iommu, link, memory, pci, println, symbols, task};
use ringfence_abi::ABI_VERSION;
use ringfence_link::event::Event;

const CONFIG: BootloaderConfig = {
    let mut config = BootloaderConfig::new_default();
    config.kernel_stack_size = 256 << 10;
    // See kernel.ld.
    config.mappings.kernel_stack = Mapping::FixedAddress(0xffff_ffff_810a_f000);
    config.mappings.physical_memory = Some(Mapping::FixedAddress(0xffff_8000_0000_0000));
    // The lower half belongs to the domains.
    config.mappings.dynamic_range_start = Some(0xffff_b000_0000_0000);
    config.mappings.dynamic_range_end = Some(0xffff_feff_ffff_ffff);
    config
};
entry_point!(kernel_main, config = &CONFIG);

/// The functions that the CPU's part calls in the layers above it.
static HANDLERS: Handlers = Handlers {
    services: &service::ENTRIES,
    timer_tick: tick,
    serial_input: console::receive,
    link_input: link::receive,
    watchpoint_hit: domain::trace::note_access,
    driver_trapped: domain::upcall::judge,
    trusted_is_to_blame: domain::upcall::is_trusted_to_blame,
    driver_ends: domain::upcall::end_by_trap,
    driver_stands: domain::upcall::stand,
    kernel_trapped: panic::exception,
    before_power_off: drain,
};

fn tick() {
    task::tick();
    link::pump();
}

/// Runs after each turn of the tasks, of which some can go on at once if the CPU `is_busy`. Returns
/// whether to look for a task.
fn between(is_busy: bool) -> bool {
    let has_interrupts = poll::turn_ended(is_busy);
    is_busy || has_interrupts || poll::idle() || link::pump()
}

fn drain() {
    link::drain();
    console::drain();
}

/// The classes of devices. The layers below them learn of them from this table only.
static CLASSES: [&dyn Class; 4] = [&net::CLASS, &scsi::CLASS, &block::CLASS, &fs::CLASS];

/// The searches for disks.
static SEARCHES: [&dyn Search; 1] = [&scsi::scan::SEARCH];

/// Brings the machine up, one step per line.
fn kernel_main(info: &'static mut BootInfo) -> ! {
    arch::handlers::install(&HANDLERS);
    console::init();
    link::init();
    let boot = Boot::take(info).unwrap_or_else(|reason| give_up(reason));
    boot.set_memory_up().unwrap_or_else(|reason| give_up(reason));
    let protections = arch::cpu::init();
    arch::syscall::init();
    arch::tcg::init();
    arch::interrupts::init().unwrap_or_else(|reason| give_up(reason));
    let firmware = boot.firmware();
    arch::time::init(&firmware.clocks).unwrap_or_else(|reason| give_up(reason));
    arch::rtc::init();
    pci::init(&firmware.buses);
    let (kernel, files) = boot.files();
    symbols::init(kernel);
    if let Some(files) = files {
        ramdisk::init(files);
        ramdisk::files().for_each(|(_, bytes)| memory::stray::watch(bytes));
        evidence::init();
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
    link::tell(&Event::Started { version: env!("CARGO_PKG_VERSION").into(), abi_version: ABI_VERSION, frames });
    domain::offer::install(&CLASSES);
    block::disk::install(&SEARCHES);
    let start = |spawner| {
        task::spawn(spawner, poll::serve_interrupts);
        task::spawn(spawner, poll::serve_rested);
        task::spawn(spawner, poll::serve_timers);
        task::spawn(spawner, poll::serve_sleepers);
        task::spawn(spawner, poll::serve_dma_faults);
        task::spawn(spawner, supervise::run);
        task::spawn(spawner, scsi::scan::run);
        task::spawn(spawner, block::client::run);
        task::spawn(spawner, block::cache::run);
        task::spawn(spawner, net::run);
        task::spawn(spawner, host::promote::run);
        task::spawn(spawner, shell::earned::keep_record);
        task::spawn(spawner, page::run);
        task::spawn(spawner, shell::run);
        task::spawn(spawner, remote::run);
        task::spawn(spawner, remote::load);
        task::spawn(spawner, debugger::run);
        task::spawn(spawner, console::screen::run);
    };
    task::run(start, between)
}

/// Prints why the machine cannot be used, and ends it.
fn give_up(reason: &str) -> ! {
    console::screen::take_over();
    println!("boot failed: {reason}");
    arch::power::end(arch::power::Ending::Panic)
}
