//! Commands about the machine as a whole: its PCI functions, its interrupts, the log, measurements.

use super::Outcome;
#[cfg(feature = "bench")]
use crate::bench::{Mode, Plan};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use host::domain::device::Device;
use host::domain::hardware::{State, Which};
use host::domain::{Handle, registry};
use host::module;
use hw::arch::{interrupts, line, traps};
use hw::console::{self, Wanted};
use hw::pci::Function;
use hw::symbols::Location;
use hw::{iommu, pci, println};
use log::Level;
use pci_ids::FromId;
use pci_types::Bar;
use ringfence_core::arguments::Arguments;
use ringfence_core::pci::capabilities;

pub fn device_name(vendor: u16, device: u16) -> String {
    let vendor_name = pci_ids::Vendor::from_id(vendor).map_or("unknown vendor", pci_ids::Vendor::name);
    let device_name = pci_ids::Device::from_vid_pid(vendor, device).map_or("unknown device", pci_ids::Device::name);
    format!("{vendor_name} {device_name}")
}

/// Prints the details of a function: its command register, line, BARs, capabilities, and driver.
fn show_function(function: &'static Function) {
    const COMMAND: u16 = 4;
    const BUS_MASTER: u32 = 4;
    let is_its = |handle: &Handle| {
        let domain = handle.lock();
        let device = domain.device.as_ref().filter(|device| device.which() == Which::Pci(function));
        device.map(|device| (domain.name.clone(), fence_in_words(device)))
    };
    let (driver, fence) = registry::all().iter().find_map(is_its).unzip();
    let line = function.line.map_or("none".to_string(), |line| line.to_string());
    let master = if function.read(COMMAND) & BUS_MASTER != 0 { "on" } else { "off" };
    println!("             driver {}, line {line}, bus master {master}", driver.as_deref().unwrap_or("none"));
    for (index, bar) in function.bars.iter().enumerate().filter_map(|(index, bar)| Some((index, bar.as_ref()?))) {
        match (pci::memory_extent(bar), bar) {
            (Some((start, len_bytes)), _) => println!("             BAR {index}: {start:#x}, {len_bytes:#x} bytes"),
            (None, Bar::Io { port }) => {
                let count = function.port_counts.get(index).copied().unwrap_or(0);
                println!("             BAR {index}: ports from {port:#x}, {count}");
            }
            (None, _) => {}
        }
    }
    let capabilities: Vec<String> = capabilities(|offset| function.read(offset))
        .iter()
        .map(|(at, head)| {
            let name = capability_name(*head as u8);
            format!("{name} at {at:#x}")
        })
        .collect();
    for few in capabilities.chunks(4) {
        println!("             capabilities: {}", few.join(", "));
    }
    match fence {
        Some(fence) => println!("             {fence}"),
        None if iommu::is_on() => println!("             fenced: it reaches nothing"),
        None => {}
    }
}

/// Returns whether a device is confined to its driver's memory and, if not, the reason.
pub fn fence_in_words(device: &Device) -> String {
    match device.fence() {
        None => "it reaches no memory by itself".to_string(),
        Some(Ok(_)) if device.function().is_some_and(iommu::reaches_ports) => {
            "fenced, but for ports, which it can access by itself".to_string()
        }
        Some(Ok(_)) => "fenced: it reaches what its driver was given for it".to_string(),
        Some(Err(why)) => format!("not fenced: {why}"),
    }
}

/// Returns a capability's name by its id (PCI Code and ID Assignment 1.11, 2).
fn capability_name(id: u8) -> String {
    match id {
        0x01 => "power".to_string(),
        0x05 => "MSI".to_string(),
        0x09 => "vendor".to_string(),
        0x10 => "PCIe".to_string(),
        0x11 => "MSI-X".to_string(),
        other => format!("{other:#x}"),
    }
}

pub async fn lspci(mut arguments: Arguments<'_>) -> Outcome {
    let in_full = match arguments.optional() {
        None => false,
        Some("-v") => true,
        Some(other) => return arguments.wrong(&format!("'{other}' is not known")),
    };
    arguments.end()?;
    for function in pci::functions() {
        let (base, sub, _) = function.class;
        let class = pci_ids::Subclass::from_cid_sid(base, sub).map(pci_ids::Subclass::name);
        let class =
            class.or_else(|| pci_ids::Class::from_id(base).map(pci_ids::Class::name)).unwrap_or("unknown class");
        println!(
            "{} {:04x}:{:04x} {class}{}",
            function.address,
            function.id.vendor,
            function.id.device,
            match Which::Pci(function).state() {
                State::Free => "",
                State::Driven => "  [driven]",
                State::SetAside => "  [set aside]",
            },
        );
        const COLUMNS: usize = 67;
        let name = device_name(function.id.vendor, function.id.device);
        println!("             {}", name.chars().take(COLUMNS).collect::<String>());
        if in_full {
            show_function(function);
        }
    }
    Ok(())
}

pub async fn dmesg(mut arguments: Arguments<'_>) -> Outcome {
    let (mut wanted, mut goes_on) = (Wanted::default(), false);
    while let Some(word) = arguments.optional() {
        match word {
            "-w" => goes_on = true,
            "error" => wanted.level = Some(Level::Error),
            "warning" => wanted.level = Some(Level::Warn),
            "info" => wanted.level = Some(Level::Info),
            name if wanted.driver.is_none() && !name.starts_with('-') => wanted.driver = Some(name.to_string()),
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    let count = console::print_log(&wanted);
    if let (Some(driver), 0, false) = (&wanted.driver, count, goes_on)
        && module::find(driver).is_err()
    {
        return Err(format!("the log has nothing that '{driver}' said or had said"));
    }
    if goes_on {
        // Lines appear as they come, until Ctrl-C ends this command, or a pipe has no more input.
        let _watch = console::watch(wanted);
        console::end_of_pipe().await;
    }
    Ok(())
}

/// Returns the driver's name, if its device's interrupts come on `line`.
fn driver_on(handle: &Handle, line: u8) -> Option<String> {
    let domain = handle.lock();
    let is_on = domain.device.as_ref().is_some_and(|device| device.active_lines() & 1 << line != 0);
    is_on.then(|| domain.name.clone())
}

pub async fn irqs(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let (in_drivers, on_gates) = traps::interrupt_counts();
    let count: u64 = on_gates.values().sum();
    for (line, count) in interrupts::line_counts() {
        let who: Vec<String> = match line {
            line::TIMER => alloc::vec!["timer".to_string()],
            line::SERIAL => alloc::vec!["serial port".to_string()],
            line::LINK if hw::link::is_there() => alloc::vec!["link".to_string()],
            line => registry::all().iter().filter_map(|handle| driver_on(handle, line)).collect(),
        };
        let sent = if line < line::WIRES { "" } else { "  (MSI-X)" };
        println!("line {line:>2} {count:>10}  {}{sent}", who.join(" "));
    }
    match interrupts::strays() {
        0 => {}
        strays => println!("{strays} messages that nobody was told to send"),
    }
    println!("{in_drivers} in drivers, {count} in entry code with a driver's root");
    match traps::in_virtual_8086_mode() {
        0 => {}
        count => println!("{count} in virtual-8086 mode, which QEMU enters and no CPU has here"),
    }
    let mut on_gates: Vec<(u64, u64)> = on_gates.into_iter().collect();
    on_gates.sort_unstable();
    for (at, count) in on_gates {
        println!("{count:>10} at {}", Location(at));
    }
    Ok(())
}

#[cfg(feature = "bench")]
pub async fn bench(mut arguments: Arguments<'_>) -> Outcome {
    let mut plan = Plan {
        prefix: "",
        mode: Mode::Time,
        ring: None,
        kind: None,
        batch: None,
        samples: None,
        rounds: 1,
        warms: false,
    };
    while let Some(word) = arguments.optional() {
        match word {
            "--instructions" => plan.mode = Mode::Instructions,
            "--ring" => {
                let word = arguments.word("the ring")?;
                plan.ring = Some(super::modules::parse_ring(&arguments, word)?);
            }
            "--kind" => plan.kind = Some(super::modules::parse_kind(&mut arguments)?),
            "--batch" => plan.batch = Some(arguments.number::<u16>("the batch")?.into()),
            "--samples" => match arguments.number::<u8>("the number of samples")? {
                0 => return arguments.wrong("a row has one sample at least"),
                samples => plan.samples = Some(samples.into()),
            },
            word => plan.prefix = word,
        }
    }
    crate::bench::run(plan).await
}

#[cfg(feature = "campaign")]
pub async fn panic(mut arguments: Arguments<'_>) -> Outcome {
    let Some(word) = arguments.optional() else { panic!("as asked for") };
    let address = arguments.as_number("the address", word)?;
    arguments.end()?;
    hw::arch::hazard::call(address);
    println!("what is at {address:#x} returned");
    Ok(())
}
