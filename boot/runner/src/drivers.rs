//! The drivers of a machine: the modules that it loads at boot, and the kind of device that each of
//! them offers.

use crate::build::System;
use crate::machine::{End, Machine};
use crate::ramdisk;
use anyhow::{Context, Result, anyhow, bail};
use ringfence_abi::manifest::{DomainKind, Kind, Manifest, RING1_ONLY};
use ringfence_core::module::Module;
use ringfence_link::event::Event;
use std::path::PathBuf;

/// QEMU's devices by their PCI IDs. A driver is tested on the first of its devices that is listed
/// here.
const DEVICES: [(u16, u16, &str); 13] = [
    (0x8086, 0x100e, "e1000"),
    (0x8086, 0x10d3, "e1000e"),
    (0x1022, 0x2000, "pcnet"),
    (0x10ec, 0x8139, "rtl8139"),
    (0x10ec, 0x8029, "ne2k_pci"),
    (0x1af4, 0x1041, "virtio-net-pci"),
    (0x1af4, 0x1000, "virtio-net-pci"),
    (0x1011, 0x0019, "tulip"),
    (0x8086, 0x1229, "i82557b"),
    (0x1af4, 0x1048, "virtio-scsi-pci"),
    (0x1000, 0x0012, "lsi53c895a"),
    (0x1022, 0x2020, "am53c974"),
    (0x1af4, 0x1042, "virtio-blk-pci"),
];

/// A module that a machine has in its ramdisk.
#[derive(Debug, Clone)]
pub struct Driver {
    /// The name of the module's file, without its ending: `e1000.32` for segmented domains.
    pub name: String,
    /// The module's own name, which its driver has.
    pub module: String,
    /// The kind of domain that the file is for.
    pub domain: DomainKind,
    /// The kind of device that the module offers.
    pub kind: Kind,
    /// The module's file, as it is in the ramdisk.
    pub file: PathBuf,
    /// Whether the module runs in ring 1 only.
    pub is_ring1_only: bool,
    /// QEMU's name of a device that the module drives, if it is known.
    device: Option<&'static str>,
}

impl Driver {
    /// Returns QEMU's name of the driver's device: the `wanted` one, or else the known one.
    pub fn device<'a>(&self, wanted: Option<&'a str>) -> Result<&'a str> {
        wanted
            .or(self.device)
            .with_context(|| format!("which of QEMU's devices {} drives is not known: --device names one", self.name))
    }
}

/// Returns QEMU's name of a device that a module drives.
fn device_of(manifest: &Manifest) -> Option<&'static str> {
    let of_pci = manifest.pci_ids().find_map(|id| {
        DEVICES.iter().find(|(vendor, device, _)| (*vendor, *device) == (id.vendor, id.device)).map(|(.., name)| *name)
    });
    of_pci.or_else(|| manifest.fixed_ports().any(|port| port == 0x1f0).then_some("isa-ide"))
}

/// Finds the module called `name` in the ramdisk of `machine`.
pub fn find(system: &System, machine: &Machine, name: &str) -> Result<Driver> {
    let modules = ramdisk::modules(system, &machine.contents.modules)?;
    let file = modules.get(name).with_context(|| format!("there is no module '{name}'"))?;
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let module = Module::parse(&bytes).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let kind = module.manifest.kind().map_err(|error| anyhow!("{}: {error}", file.display()))?;
    Ok(Driver {
        name: name.to_string(),
        module: module.manifest.name().to_string(),
        domain: module.domain,
        kind,
        file: file.clone(),
        is_ring1_only: module.manifest.flags & RING1_ONLY != 0 || module.domain == DomainKind::Segmented,
        device: device_of(&module.manifest),
    })
}

/// Boots `machine` and returns the modules that it loads by itself, in order.
pub fn loaded(system: &System, machine: &Machine) -> Result<Vec<Driver>> {
    let mut machine = machine.clone();
    machine.contents.exec = Some("lsmod".to_string());
    let run = machine.run(system, |_| ())?;
    if run.end != End::Done {
        bail!("the machine does not boot ({}):\n{}", run.end.description(), run.text());
    }
    listed(&run.events).iter().map(|(name, _)| find(system, &machine, name)).collect()
}

/// Returns the modules and the slots of the drivers that the last `lsmod` showed.
pub fn listed(events: &[Event]) -> Vec<(String, usize)> {
    let shown = events.iter().rev().find_map(|event| match event {
        Event::Drivers(drivers) => Some(drivers),
        _ => None,
    });
    shown.into_iter().flatten().map(|driver| (driver.module.to_string(), driver.slot as usize)).collect()
}
