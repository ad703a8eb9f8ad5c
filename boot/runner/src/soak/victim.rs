//! The drivers that a soak ends, and the ways to end them.

use crate::build::System;
use crate::campaign::{coverage, mutate};
use crate::drivers::{self, Driver};
use crate::machine::Machine;
use crate::output;
use anyhow::{Context, Result, bail};
use object::{Object, ObjectSymbol};
use ringfence_abi::layout::IMAGE;
use ringfence_abi::manifest::{DomainKind, Kind};
use ringfence_core::disassembly::bits;

/// Code that stops at once and fits anywhere: it is never longer than the instruction that it
/// replaces, so that no jump leads into its middle.
const SHORT: [&[u8]; 4] = [
    &[0x0f, 0x0b], // ud2
    &[0xf4],       // hlt
    &[0xcc],       // int3
    &[0xeb, 0xfe], // jmp to itself
];
/// 64-bit code for the entry point. It may be long, because no jump leads into the middle of it.
const LONG: [&[u8]; 4] = [
    &[0x31, 0xc0, 0x48, 0x89, 0x00],                      // xor eax, eax; mov [rax], rax
    &[0x48, 0xc7, 0xc0, 0, 0, 0, 0x80, 0x48, 0x89, 0x00], // mov rax, 0xffffffff80000000; mov [rax], rax
    &[0x50, 0xeb, 0xfd],                                  // push rax, for ever
    &[0x31, 0xd2, 0x31, 0xc9, 0xf7, 0xf1],                // xor edx, edx; xor ecx, ecx; div ecx
];
/// 32-bit code for the entry point.
const LONG_32: [&[u8]; 4] = [
    &[0x31, 0xc0, 0x89, 0x00],             // xor eax, eax; mov [eax], eax
    &[0xb8, 0, 0, 0, 0x80, 0x89, 0x00],    // mov eax, 0x80000000; mov [eax], eax
    &[0x50, 0xeb, 0xfd],                   // push eax, for ever
    &[0x31, 0xd2, 0x31, 0xc9, 0xf7, 0xf1], // xor edx, edx; xor ecx, ecx; div ecx
];

/// A driver, and the ways to end it.
pub struct Victim {
    /// The driver's name.
    pub name: String,
    /// The kind of its domain.
    pub kind: DomainKind,
    /// Offset of its entry point.
    entry: u64,
    /// Offsets and lengths of the executed instructions.
    sites: Vec<(u64, usize)>,
}

impl Victim {
    fn new(driver: &Driver, executed: &[u64]) -> Result<Victim> {
        let file = std::fs::read(&driver.file)?;
        let elf = object::File::parse(&*file)?;
        let entry = elf.symbols().find(|symbol| symbol.name() == Ok("rf_upcall"));
        let entry = entry.with_context(|| format!("{} has no rf_upcall", driver.name))?.address();
        let kind = driver.domain;
        // A segmented module is linked at its place.
        let entry = if kind == DomainKind::Segmented { entry.wrapping_sub(IMAGE) } else { entry };
        // The text of a module has the same offsets in the file as in memory.
        let bytes =
            |offset: u64| file.get(offset as usize..).map_or(Vec::new(), |rest| rest[..rest.len().min(15)].to_vec());
        let sites = mutate::sites(bits(kind), bytes, executed);
        let sites = sites.into_iter().map(|site| (site.offset, site.bytes.len())).collect();
        Ok(Victim { name: driver.module.clone(), kind, entry, sites })
    }

    /// Returns a command that ends the driver, at once or when the changed place is next executed.
    pub fn command(&self, random: &mut fastrand::Rng) -> String {
        let (offset, code) = match random.u32(..8) {
            0 => return format!("kill {}", self.name),
            1..4 => {
                let long = if self.kind == DomainKind::Segmented { LONG_32 } else { LONG };
                (self.entry, long[random.usize(..long.len())])
            }
            _ => {
                let (offset, len) = self.sites[random.usize(..self.sites.len())];
                let fitting: Vec<&[u8]> = SHORT.into_iter().filter(|code| code.len() <= len).collect();
                (offset, fitting[random.usize(..fitting.len())])
            }
        };
        let hex: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("poke {} {offset:x}:{hex}", self.name)
    }
}

/// Returns the drivers that execute `work` on a machine whose drivers are of its usual kind, except
/// drivers that offer nothing. It is an error if that kind is segmented, and no driver is.
pub fn of(system: &System, machine: &Machine, work: &str) -> Result<Vec<Victim>> {
    let (mut victims, mut paged) = (Vec::new(), Vec::new());
    for (name, executed) in coverage::executed(system, machine, work)? {
        let driver = drivers::find(system, machine, &name)?;
        if driver.kind == Kind::Other {
            continue;
        }
        victims.push(Victim::new(&driver, &executed.into_iter().collect::<Vec<_>>())?);
        if driver.domain == DomainKind::Paged {
            paged.push(name);
        }
    }
    if victims.is_empty() || victims.iter().any(|victim| victim.sites.is_empty()) {
        bail!("QEMU does not say what code of the drivers it translated: is it built without a disassembler?");
    }
    if machine.contents.kind == Some(DomainKind::Segmented) && !paged.is_empty() {
        let names = paged.join(", ");
        if paged.len() == victims.len() {
            bail!("no driver of the work has a build for segmented domains: {names}");
        }
        output::complain(&format!("soak: without a build for segmented domains, so paged: {names}"));
    }
    Ok(victims)
}
