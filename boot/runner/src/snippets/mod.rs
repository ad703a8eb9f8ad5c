//! `cargo run -- snippets`: generates machine code and runs it in ring 1. Compares the kernel's
//! report of each snippet's end with QEMU's log: vector, error code, RIP, RSP, CS, SS, and the
//! flags that a driver must not change.
//!
//! The code follows from a seed. Half of it goes through opcodes, prefixes and operands one by one;
//! a quarter is frames and far pointers with made-up contents; a quarter is random bytes. Code to
//! which QEMU is known to give more power than the CPU does is left out: the kernel does not load
//! it ([`ringfence_core::tcg`]).
//!
//! * [`generate`]: the snippets
//! * [`log`]: QEMU's log of interrupts

mod generate;
mod log;

use crate::build::System;
use crate::machine::{End, Machine, Said};
use crate::output;
use anyhow::{Context, Result, bail};
use generate::{Snippet, Snippets};
use log::Interrupt;
use object::{Object, ObjectSection};
use ringfence_abi::layout::{SLOT_SIZE, slot_of};
use ringfence_abi::manifest::{DomainKind, SECTION};
use ringfence_link::event::{self, Event, Trap};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The settings of a run.
pub struct Options {
    /// The number of snippets.
    pub count: usize,
    /// The seed of the random numbers.
    pub seed: u64,
    /// The kind of domain that runs them.
    pub kind: DomainKind,
}

/// The module that holds snippets, how many it holds, and their length in bytes
/// (`drivers/snippets`).
const MODULE: &str = "snippets";
const PER_MODULE: usize = 512;
const BYTES: usize = generate::BYTES;
const MARK: &[u8] = b"RF-SNIPPETS-HERE";
/// Number of modules in one boot.
const MODULES: usize = 20;
/// Longest time between two lines of the console.
const SILENCE: Duration = Duration::from_secs(60);

/// Number of console lines that are shown after a failed command.
const LINES_SHOWN: usize = 24;

/// A difference between the kernel's report and QEMU's log, or another failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The snippet's number and code.
    pub snippet: String,
    /// A description of the failure.
    pub what: String,
}

/// The result of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of snippets that were run.
    pub run: usize,
    /// Number of exceptions that were compared.
    pub compared: usize,
    /// Number of snippets that ended in another way than by an exception.
    pub others: usize,
    /// The differences and failures.
    pub findings: Vec<Finding>,
}

/// Runs all snippets and prints the findings. Returns whether there were none.
pub fn run(system: &System, options: &Options) -> Result<bool> {
    let start = Instant::now();
    let summary = summary(system, options, &mut |finding| {
        output::line(format_args!("{}: {}", finding.snippet, finding.what));
    })?;
    output::line(format_args!(
        "{} snippets: {} exceptions as QEMU logged them, {} other ends, {} findings, {} s",
        summary.run,
        summary.compared,
        summary.others,
        summary.findings.len(),
        start.elapsed().as_secs()
    ));
    Ok(summary.findings.is_empty())
}

/// Runs all snippets without printing the summary; passes each finding to `note`.
pub fn summary(system: &System, options: &Options, note: &mut dyn FnMut(&Finding)) -> Result<Summary> {
    let snippets = Snippets::new(options.seed, options.kind);
    let mut summary = Summary::default();
    let mut from = 0;
    let start = Instant::now();
    while from < options.count {
        let to = options.count.min(from + MODULES * PER_MODULE);
        let batch: Vec<(usize, Snippet)> = (from..to).map(|number| (number, snippets.get(number))).collect();
        let known = summary.findings.len();
        let done = boot(system, options.kind, &batch, &mut summary)?;
        summary.findings[known..].iter().for_each(&mut *note);
        from += done;
        progress(from, options.count, start);
    }
    Ok(summary)
}

fn progress(count: usize, of: usize, start: Instant) {
    let end = if std::io::stderr().is_terminal() && count < of { "\r" } else { "\n" };
    let left = start.elapsed().as_secs_f64() / count as f64 * (of - count) as f64;
    output::progress(format_args!("snippets: {count} of {of}, {left:.0} s to go    {end}"));
}

/// Runs `batch` in one boot. Returns the number of finished snippets: all, or the snippets up to
/// and including the snippet that ended the machine.
fn boot(system: &System, kind: DomainKind, batch: &[(usize, Snippet)], summary: &mut Summary) -> Result<usize> {
    let directory = TempDir::new()?;
    let log = directory.path().join("int.log");
    let mut machine = Machine { nic: "none".to_string(), hba: "none".to_string(), ..Machine::default() };
    let mut script = "integrity".to_string();
    for (index, part) in batch.chunks(PER_MODULE).enumerate() {
        let name = format!("sn{index}");
        machine.contents.modules.push(module(system, kind, &name, part, &directory)?);
        script += &format!("; insmod {name} --kind {kind}; snippets {name} 0 {}; rmmod {name}", part.len());
    }
    machine.contents.exec = Some(script);
    machine.extra.extend(["-d", "int", "-D"].map(Into::into));
    machine.extra.push(log.clone().into());
    let mut running = machine.start(system)?;
    let mut reports = Vec::new();
    let mut checksums = Vec::new();
    let mut module = 0;
    let mut last = String::new();
    while let Some(said) = running.next_within(SILENCE) {
        match said {
            Said::Event(Event::Snippet(event::Snippet { number, trap, .. })) => {
                reports.push(Report { index: module * PER_MODULE + number as usize, trap });
            }
            Said::Event(Event::Integrity { checksum, .. }) => checksums.push(checksum),
            Said::Event(Event::Unloaded { .. }) => module += 1,
            Said::Event(Event::Command { line, error: Some(error) }) => {
                let rest: Vec<String> =
                    std::iter::from_fn(|| running.next_within(SILENCE)).take(LINES_SHOWN).filter_map(in_line).collect();
                let around = batch.get(reports.len().saturating_sub(1)..).unwrap_or_default().iter().take(2);
                let around: Vec<String> = around.map(|(number, snippet)| snippet.text(*number)).collect();
                bail!("the run went wrong at {}: '{line}': {error}\n{}", around.join(" or "), rest.join("\n"));
            }
            Said::Event(_) => {}
            Said::Line(line) if line.is_empty() => {}
            Said::Line(line) => last = line,
        }
    }
    let end = running.finish_within(Duration::from_secs(1))?;
    let name =
        |index: usize| batch.get(index).map_or_else(|| "?".to_string(), |(number, snippet)| snippet.text(*number));
    let mut find = |index: usize, what: String| summary.findings.push(Finding { snippet: name(index), what });
    let mut done = batch.len();
    if reports.len() < batch.len() {
        // The machine ended at the snippet after the last that was reported.
        find(reports.len(), format!("the machine did not survive it: {}; {last}", end.description()));
        done = reports.len() + 1;
    } else if end != End::Done {
        bail!("the run ended badly ({}): {last}", end.description());
    }
    if checksums.iter().any(|sum| *sum != checksums[0]) {
        find(reports.len() - 1, format!("the kernel's checksum changed, here or before: {checksums:x?}"));
    }
    let interrupts = std::io::BufReader::new(std::fs::File::open(&log).context("QEMU left no log")?);
    compare(&reports, kind, log::interrupts(interrupts), &mut find);
    summary.run += done;
    summary.compared += reports.iter().filter(|report| report.trap.is_some()).count();
    summary.others += reports.iter().filter(|report| report.trap.is_none()).count();
    Ok(done)
}

/// The kernel's report of a snippet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Report {
    index: usize,
    trap: Option<Trap>,
}

/// Returns the text of a line of the console.
fn in_line(said: Said) -> Option<String> {
    match said {
        Said::Line(line) => Some(line),
        Said::Event(_) => None,
    }
}

/// First vector that belongs to no exception.
const FIRST_INTERRUPT: u64 = 32;
const DEBUG: u64 = 1;
/// Flags: interrupt flag, I/O privilege level, resume flag, virtual-8086 mode.
const IF: u64 = 1 << 9;
const IOPL: u64 = 3 << 12;
const RF: u64 = 1 << 16;
const VM: u64 = 1 << 17;

/// Compares the exceptions one by one, in order. Every report must have an entry in QEMU's log, and
/// every entry of a driver must have a report.
fn compare(
    reports: &[Report],
    kind: DomainKind,
    interrupts: impl Iterator<Item = Interrupt>,
    find: &mut dyn FnMut(usize, String),
) {
    // A segmented driver's slot begins at 0 for the CPU, and the kernel names it by its address.
    let linear = |address: u64| match slot_of(address) {
        Some(_) if kind == DomainKind::Segmented => address % SLOT_SIZE,
        _ => address,
    };
    let mut expected = reports.iter().filter_map(|report| Some((report.index, report.trap?)));
    let (mut last, mut driver_ran) = (0, false);
    for logged in interrupts {
        driver_ran |= logged.is_of_driver();
        if !logged.is_of_driver() {
            // Before any driver runs, the kernel tries an instruction that may be undefined.
            if driver_ran && logged.vector < FIRST_INTERRUPT && logged.is_of_kernel() {
                find(last, format!("an exception in the kernel, here or behind it: {logged:x?}"));
            }
            continue;
        }
        if logged.rflags & VM == 0 {
            // The driver was interrupted in ring 1, or on a gate's first instruction. A call gate
            // leaves the flags as the driver had them.
            let flags = logged.rflags & (IF | IOPL);
            if flags != IF && logged.ring == 1 {
                find(last, format!("IF and IOPL are not a driver's, here or behind it: {logged:x?}"));
            }
            if logged.ring == 2 {
                find(last, format!("it ran in another ring, here or behind it: {logged:x?}"));
            }
        }
        if logged.vector >= FIRST_INTERRUPT {
            continue;
        }
        let Some((index, trap)) = expected.next() else {
            find(last, format!("an exception that was not reported, here or behind it: {logged:x?}"));
            return;
        };
        last = index;
        let said =
            (trap.vector, trap.error_code, linear(trap.rip), linear(trap.rsp), trap.cs, trap.ss, trap.rflags & !RF);
        // For an exception without an error code, QEMU logs an arbitrary value.
        let error_code = if has_error_code(logged.vector) { logged.error_code } else { 0 };
        let was = (logged.vector, error_code, logged.rip, logged.rsp, logged.cs, logged.ss, logged.rflags & !RF);
        if said != was && !(logged.vector == DEBUG && said.2 == was.2) {
            find(index, format!("reported as {said:x?}, and QEMU logged {was:x?}"));
            return;
        }
    }
    if let Some((index, trap)) = expected.next() {
        find(index, format!("reported, and not in QEMU's log: {trap:x?}"));
    }
}

fn has_error_code(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// Writes a copy of the module's file under another name, with other snippets; returns its path.
fn module(
    system: &System,
    kind: DomainKind,
    name: &str,
    snippets: &[(usize, Snippet)],
    directory: &TempDir,
) -> Result<PathBuf> {
    const NAME: usize = 16;
    const NAME_BYTES: usize = 32;
    let file = format!("{MODULE}{}", kind.suffix());
    let built = system.modules.iter().find(|module| module.name == file);
    let built = built.with_context(|| format!("there is no module '{file}': 'make setup' adds what builds it"))?;
    let mut file = std::fs::read(&built.packed)?;
    let code =
        file.windows(MARK.len()).position(|window| window == MARK).context("the module has no place for snippets")?;
    let manifest = {
        let elf = object::File::parse(&*file)?;
        let section = elf.section_by_name(SECTION).context("the module has no manifest")?;
        section.file_range().context("its manifest is not in the file")?.0 as usize
    };
    let room = file.get_mut(manifest + NAME..manifest + NAME + NAME_BYTES).context("its manifest is cut short")?;
    room.fill(0);
    room[..name.len()].copy_from_slice(name.as_bytes());
    for (index, (_, snippet)) in snippets.iter().enumerate() {
        let at = code + index * BYTES;
        file.get_mut(at..at + BYTES).context("the module has too little room")?.copy_from_slice(&snippet.bytes());
    }
    let path = directory.path().join(format!("{name}{}.rfm", kind.suffix()));
    std::fs::write(&path, &file)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trap() -> Trap {
        Trap { vector: 13, error_code: 8, rip: 0x8000402d10, rsp: 0x80017fffa0, cs: 0xd, ss: 1, rflags: 0x246 }
    }

    fn findings(reports: &[Report], interrupts: &[Interrupt]) -> Vec<String> {
        let mut found = Vec::new();
        compare(reports, DomainKind::Paged, interrupts.iter().copied(), &mut |_, what| found.push(what));
        found
    }

    /// Each way in which a report can differ is found.
    #[test]
    fn what_differs_is_found() {
        let reports = [Report { index: 0, trap: Some(trap()) }, Report { index: 1, trap: None }];
        assert_eq!(findings(&reports, &[log::EXAMPLE]), Vec::<String>::new());
        let timer = Interrupt { vector: 32, error_code: 0, ..log::EXAMPLE };
        assert_eq!(findings(&reports, &[timer, log::EXAMPLE, timer]), Vec::<String>::new());
        assert_eq!(findings(&reports, &[]).len(), 1);
        assert_eq!(findings(&reports, &[log::EXAMPLE, log::EXAMPLE]).len(), 1);
        let others: [fn(&mut Interrupt); 8] = [
            |logged| logged.vector = 6,
            |logged| logged.error_code = 0,
            |logged| logged.rip += 1,
            |logged| logged.rsp += 8,
            |logged| logged.cs = 0x15,
            |logged| logged.ss = 0,
            |logged| logged.rflags |= 1,
            |logged| logged.rflags |= IOPL,
        ];
        for change in others {
            let mut other = log::EXAMPLE;
            change(&mut other);
            assert!(!findings(&reports, &[other]).is_empty(), "{other:x?}");
        }
        for rflags in [0x46, 0x1246, 0x3246] {
            assert_eq!(findings(&reports, &[log::EXAMPLE, Interrupt { rflags, ..timer }]).len(), 1, "{rflags:#x}");
        }
        let in_kernel = Interrupt { ring: 0, cs: 8, rip: 0xffffffff80001000, ..log::EXAMPLE };
        assert_eq!(findings(&reports, &[log::EXAMPLE, in_kernel]).len(), 1);
    }
}
