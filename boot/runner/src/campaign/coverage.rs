//! Finds the instructions of the modules that a workload executes. QEMU logs the code that it
//! translates, and it translates only code that is about to run.

use crate::build::System;
use crate::drivers::{self, Driver};
use crate::machine::{End, Machine};
use anyhow::{Context, Result, bail};
use ringfence_abi::layout::{IMAGE, IMAGE_MAX, MAX_DOMAINS, slot_base, slot_of};
use ringfence_abi::manifest::DomainKind;
use ringfence_core::module::kind_of_name;
use std::collections::{BTreeMap, BTreeSet};

/// The offsets in the images of modules of the instructions that were executed.
pub type Executed = BTreeMap<String, BTreeSet<u64>>;

/// Returns what these drivers execute of `work`; the commands `first` come before. The addresses of
/// segmented drivers say nothing of the slot, so each has a boot of its own, in which the others are
/// paged.
pub fn of_drivers<'a>(
    system: &System,
    machine: &Machine,
    first: &str,
    work: &str,
    drivers: impl IntoIterator<Item = &'a Driver>,
) -> Result<Executed> {
    let (segmented, paged): (Vec<_>, Vec<_>) =
        drivers.into_iter().partition(|driver| driver.domain == DomainKind::Segmented);
    let mut found = Executed::new();
    if !paged.is_empty() {
        found.extend(executed(system, machine, &format!("{first}; {work}"))?);
    }
    for Driver { module, domain, .. } in segmented {
        found.extend(executed(system, machine, &format!("{first}; reload {module} --kind {domain}; {work}"))?);
    }
    Ok(found)
}

/// Runs `commands` with paged drivers, of which the commands reload one as segmented at most.
/// Returns what the modules execute that `lsmod` lists afterwards.
pub fn executed(system: &System, machine: &Machine, commands: &str) -> Result<Executed> {
    let directory = tempfile::TempDir::new()?;
    let log = directory.path().join("in_asm.log");
    let mut machine = machine.clone();
    machine.contents.exec = Some(format!("{commands}; lsmod"));
    machine.contents.kind = Some(DomainKind::Paged);
    // A segmented driver runs at the addresses of its slot without the slot's.
    let slots = format!("{:#x}..{:#x}", slot_base(0), slot_base(MAX_DOMAINS) - 1);
    let slots = format!("{slots},{IMAGE:#x}..{:#x}", IMAGE + IMAGE_MAX - 1);
    machine.extra.extend(["-d", "in_asm", "-dfilter", &slots, "-D"].map(Into::into));
    machine.extra.push(log.clone().into());
    let run = machine.run(system, |_| ())?;
    if run.end != End::Done {
        bail!("the workload fails even with good modules ({}):\n{}", run.end.description(), run.text());
    }
    let names: BTreeMap<usize, String> =
        drivers::listed(&run.events).into_iter().map(|(name, slot)| (slot, name)).collect();
    let log = std::fs::read_to_string(&log).context("QEMU left no list of what it translated")?;
    let mut found = Executed::new();
    // Before the first driver, the loader and the self-test run at low addresses.
    let mut has_drivers = false;
    for address in log.lines().filter_map(instruction_address) {
        has_drivers |= slot_of(address).is_some();
        let kind = |name: &&String| kind_of_name(name);
        let name = match slot_of(address) {
            // A paged driver may have been there before.
            Some(slot) => names.get(&slot).filter(|name| kind(name) == DomainKind::Paged),
            None if !has_drivers => None,
            None => names.values().find(|name| kind(name) == DomainKind::Segmented),
        };
        let Some(name) = name else { continue };
        let offset = address % (slot_base(1) - slot_base(0));
        if let Some(offset) = offset.checked_sub(IMAGE) {
            found.entry(name.clone()).or_default().insert(offset);
        }
    }
    Ok(found)
}

/// Returns the address of a line like `0x8000402220: 55 pushq %rbp`. Lines with nothing but bytes
/// continue the line before, and have no address of their own.
fn instruction_address(line: &str) -> Option<u64> {
    let (address, rest) = line.strip_prefix("0x")?.split_once(':')?;
    let is_byte = |word: &str| word.len() == 2 && u8::from_str_radix(word, 16).is_ok();
    rest.split_whitespace().find(|word| !is_byte(word))?;
    u64::from_str_radix(address, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_qemu_writes_them() {
        assert_eq!(instruction_address("0x8000402220:  55                       pushq    %rbp"), Some(0x8000402220));
        assert_eq!(instruction_address("0x8000402262:  00"), None);
        assert_eq!(instruction_address("----------------"), None);
    }
}
