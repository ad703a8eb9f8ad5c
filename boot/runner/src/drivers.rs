//! The drivers of a machine: the modules that it loads at boot, and what each of them offers.

use crate::build::System;
use crate::machine::{End, Machine};
use crate::ramdisk;
use anyhow::{Context, Result, anyhow, bail};
use ringfence_abi::manifest::Kind;
use ringfence_core::module::Module;
use ringfence_link::event::Event;
use std::path::PathBuf;

/// A module that a machine has in its ramdisk.
#[derive(Debug, Clone)]
pub struct Driver {
    /// The module's name.
    pub name: String,
    /// The kind of device that the module offers.
    pub kind: Kind,
    /// The module's file, as it is in the ramdisk.
    pub file: PathBuf,
}

/// Finds the module called `name` in the ramdisk of `machine`.
pub fn find(system: &System, machine: &Machine, name: &str) -> Result<Driver> {
    let modules = ramdisk::modules(system, &machine.contents.modules)?;
    let file = modules.get(name).with_context(|| format!("there is no module '{name}'"))?;
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let module = Module::parse(&bytes).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let kind = module.manifest.kind().map_err(|error| anyhow!("{}: {error}", file.display()))?;
    Ok(Driver { name: name.to_string(), kind, file: file.clone() })
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
