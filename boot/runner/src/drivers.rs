//! The drivers of a machine: which modules it loads when it boots, and what each is.

use crate::build::System;
use crate::machine::{End, Machine};
use crate::ramdisk;
use anyhow::{Context, Result, anyhow, bail};
use ringfence_abi::manifest::Kind;
use ringfence_core::module::Module;
use std::path::PathBuf;

/// A module of a machine.
#[derive(Debug, Clone)]
pub struct Driver {
    /// Its name.
    pub name: String,
    /// What it offers.
    pub kind: Kind,
    /// Its file, as the ramdisk has it.
    pub file: PathBuf,
}

/// The module called `name` that `machine` has in its ramdisk.
pub fn find(system: &System, machine: &Machine, name: &str) -> Result<Driver> {
    let modules = ramdisk::modules(system, &machine.contents.modules)?;
    let file = modules.get(name).with_context(|| format!("there is no module '{name}'"))?;
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let module = Module::parse(&bytes).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let kind = module.manifest.kind().map_err(|error| anyhow!("{}: {error}", file.display()))?;
    Ok(Driver { name: name.to_string(), kind, file: file.clone() })
}

/// The modules that `machine` loads by itself, in order.
pub fn loaded(system: &System, machine: &Machine) -> Result<Vec<Driver>> {
    let mut machine = machine.clone();
    machine.contents.exec = Some("lsmod".to_string());
    let run = machine.run(system, |_| ())?;
    if run.end != End::Done {
        bail!("the machine does not boot ({}):\n{}", run.end.description(), run.text());
    }
    listed(&run.lines).map(|(name, _)| find(system, &machine, &name)).collect()
}

/// Names of modules, without the numbers of second instances, and slots, from the table that `lsmod` prints.
pub fn listed(lines: &[String]) -> impl Iterator<Item = (String, usize)> {
    let rows = lines.iter().skip_while(|line| !line.starts_with("MODULE ")).skip(1);
    rows.map_while(|line| {
        let mut words = line.split_whitespace();
        let (name, slot) = (words.next()?, words.nth(1)?);
        let name = name.split('.').next().unwrap_or(name);
        Some((name.to_string(), slot.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_as_the_kernel_prints_it() {
        let lines =
            ["MODULE RING SLOT", "e1000   1    3        11 0000:00:02.0 running", "null.2 0 7", "ringfence: done"];
        let listed: Vec<_> = listed(&lines.map(String::from)).collect();
        assert_eq!(listed, [("e1000".to_string(), 3), ("null".to_string(), 7)]);
    }
}
