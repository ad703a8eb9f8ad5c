//! Finds the instructions of the modules that a workload executes. QEMU logs the code that it
//! translates, and it translates only code that is about to run.

use crate::build::System;
use crate::drivers;
use crate::machine::{End, Machine};
use anyhow::{Context, Result, bail};
use object::{Object, ObjectSegment};
use ringfence_abi::layout::{IMAGE, IMAGE_MAX, MAX_DOMAINS, slot_base, slot_of};
use ringfence_abi::manifest::DomainKind;
use ringfence_core::module::kind_of_name;
use std::collections::{BTreeMap, BTreeSet};

/// The offsets in the images of modules of the instructions that were executed.
pub type Executed = BTreeMap<String, BTreeSet<u64>>;

/// Runs `commands`. Returns what the modules executed that `lsmod` lists afterwards.
///
/// All segmented drivers run at the same addresses, so their instructions are told by their bytes.
/// Where two have the same instruction at the same address, both are said to execute it.
pub fn executed(system: &System, machine: &Machine, commands: &str) -> Result<Executed> {
    let directory = tempfile::TempDir::new()?;
    let log = directory.path().join("in_asm.log");
    let mut machine = machine.clone();
    machine.contents.exec = Some(format!("{commands}; lsmod"));
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
    let (segmented, paged): (BTreeMap<_, _>, BTreeMap<_, _>) =
        names.into_iter().partition(|(_, name)| kind_of_name(name) == DomainKind::Segmented);
    let images = segmented.into_values().map(|name| Ok((image(system, &machine, &name)?, name)));
    let images = images.collect::<Result<Vec<_>>>()?;
    let log = std::fs::read_to_string(&log).context("QEMU left no list of what it translated")?;
    let mut found = Executed::new();
    for (address, bytes) in log.lines().filter_map(instruction) {
        // Before the image are the stubs.
        let Some(offset) = (address % (slot_base(1) - slot_base(0))).checked_sub(IMAGE) else { continue };
        let is_of = |image: &[u8]| image.get(offset as usize..).is_some_and(|image| image.starts_with(&bytes));
        let names: Vec<&String> = match slot_of(address) {
            // A segmented driver may have been there before, or be there now.
            Some(slot) => paged.get(&slot).into_iter().collect(),
            None => images.iter().filter(|(image, _)| is_of(image)).map(|(_, name)| name).collect(),
        };
        for name in names {
            found.entry(name.clone()).or_default().insert(offset);
        }
    }
    Ok(found)
}

/// Returns the image of a segmented module, from [`IMAGE`] on.
fn image(system: &System, machine: &Machine, name: &str) -> Result<Vec<u8>> {
    let driver = drivers::find(system, machine, name)?;
    let file = std::fs::read(&driver.file)?;
    let elf = object::File::parse(&*file).with_context(|| format!("in {}", driver.file.display()))?;
    let mut image = Vec::new();
    for segment in elf.segments() {
        let start = segment.address().checked_sub(IMAGE).filter(|start| *start < IMAGE_MAX);
        let (start, data) = (start.context("a part of the module is not in its image")? as usize, segment.data()?);
        image.resize(image.len().max(start + data.len()), 0);
        image[start..start + data.len()].copy_from_slice(data);
    }
    Ok(image)
}

/// Returns the address and the bytes of a line like `0x8000402220: 55 pushq %rbp`. Lines with
/// nothing but bytes continue the line before, and have no address of their own.
fn instruction(line: &str) -> Option<(u64, Vec<u8>)> {
    let (address, rest) = line.strip_prefix("0x")?.split_once(':')?;
    let byte = |word: &str| u8::from_str_radix(word, 16).ok().filter(|_| word.len() == 2);
    rest.split_whitespace().find(|word| byte(word).is_none())?;
    Some((u64::from_str_radix(address, 16).ok()?, rest.split_whitespace().map_while(byte).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_qemu_writes_them() {
        let line = "0x8000402220:  48 55                    pushq    %rbp";
        assert_eq!(instruction(line), Some((0x8000402220, vec![0x48, 0x55])));
        assert_eq!(instruction("0x8000402262:  00"), None);
        assert_eq!(instruction("----------------"), None);
    }
}
