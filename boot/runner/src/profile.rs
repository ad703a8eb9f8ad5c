//! `cargo run -- profile NAME`: where the instructions of an operation go.
//!
//! QEMU logs each block of instructions that it executes while the kernel measures a row of `bench`
//! with `-icount`. The kernel marks the samples by two functions, between which the instructions
//! are counted. An instruction counts for the function that its source line is in, even if that
//! function was inlined. The kernel has no debug information, so there it is the symbol that
//! counts.

use crate::build::System;
use crate::drivers;
use crate::machine::{Machine, Monitor};
use crate::output;
use addr2line::Loader;
use anyhow::{Context, Result, bail};
use object::{Object, ObjectSymbol};
use ringfence_abi::layout::{IMAGE, slot_base, slot_of};
use ringfence_link::event::Event;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// The settings of a profile.
pub struct Options {
    /// The row of `bench`.
    pub name: String,
    /// The driver's ring.
    pub ring: u8,
    /// The number of operations that one crossing hands over, if the row has several.
    pub batch: Option<u16>,
    /// Whether to print each function as a JSON object.
    pub json: bool,
    /// The machine.
    pub machine: Machine,
}

/// Longest time for the boot.
const TIME_LIMIT: Duration = Duration::from_secs(300);
/// The functions of the kernel that mark a sample.
const BEGINS: &str = "ringfence_kernel::bench::sample_begins";
const ENDS: &str = "ringfence_kernel::bench::sample_ends";
/// Functions with a smaller share are summed up.
const LEAST_SHARE: f64 = 0.005;

/// Where the instructions of an operation go.
pub struct Profile {
    /// The row's name.
    pub name: String,
    /// The number of operations that one crossing hands over.
    pub batch: u64,
    /// The instructions of an operation, the median of the samples.
    pub total: f64,
    /// The share of each function, by the program and the function, the largest first.
    pub shares: Vec<(String, String, f64)>,
}

/// Measures a row, and prints where its instructions go.
pub fn run(system: &System, options: &Options) -> Result<()> {
    let Profile { name, batch, total, shares } = measure(system, options)?;
    let ring = options.ring;
    if options.json {
        for (program, function, share) in &shares {
            let instructions = share * total;
            let object = json!({ "name": name, "ring": ring, "batch": batch, "program": program,
                "function": function, "instructions": instructions, "share": share });
            output::line(format_args!("{object}"));
        }
        return Ok(());
    }
    let line = |share: f64, what: &str| {
        output::line(format_args!("{:>9.1} {:>5.1} %  {what}", share * total, share * 100.0));
    };
    output::line(format_args!("{name}, ring {ring}, batch {batch}: {total:.1} instructions for each operation"));
    let mut programs: BTreeMap<&str, f64> = BTreeMap::new();
    shares.iter().for_each(|(program, _, share)| *programs.entry(program).or_default() += share);
    programs.iter().for_each(|(program, share)| line(*share, program));
    output::line(format_args!(""));
    let (large, small): (Vec<_>, Vec<_>) = shares.iter().partition(|(.., share)| *share >= LEAST_SHARE);
    large.iter().for_each(|(program, function, share)| line(*share, &format!("{program}: {function}")));
    line(small.iter().map(|(.., share)| share).sum(), &format!("{} other functions", small.len()));
    Ok(())
}

/// Measures a row.
pub fn measure(system: &System, options: &Options) -> Result<Profile> {
    if !["nic/", "icmp/", "scsi/"].iter().any(|family| options.name.starts_with(family)) {
        bail!("'{}' is no whole operation: rows that begin with nic/, icmp/ or scsi/ have profiles", options.name);
    }
    let folder = TempDir::new()?;
    let (socket, log) = (folder.path().join("qmp"), folder.path().join("log"));
    let mut machine = Machine { scratch: true, icount: true, timeout: Some(TIME_LIMIT), ..options.machine.clone() };
    machine.contents.exec = None;
    machine.extra.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display()).into()]);
    machine.extra.extend(["-D".into(), log.clone().into()]);
    let mut running = machine.start(system)?;
    let mut monitor = Monitor::new(&socket)?;
    // The shell runs when the drivers are loaded.
    running.type_line("lsmod")?;
    let loaded = running.wait_for_event("the drivers", |event| match event {
        Event::Drivers(_) => Some(drivers::listed(&[event])),
        _ => None,
    })?;
    let mut log_what = |what: &str| {
        let command = json!({ "execute": "human-monitor-command", "arguments": { "command-line": what } });
        monitor.execute(&command.to_string())
    };
    log_what("log exec,nochain,in_asm")?;
    let batch = options.batch.map(|batch| format!(" --batch {batch}")).unwrap_or_default();
    let line = format!("bench {} --instructions --ring {}{batch}", options.name, options.ring);
    running.type_line(&line)?;
    let mut rows = Vec::new();
    let failure = running.wait_for_event(&format!("the end of '{line}'"), |event| match event {
        Event::Bench(row) => {
            rows.push((row.name.to_string(), row.batch.unwrap_or(1), row.median));
            None
        }
        Event::Command { line: ended, error } if ended == line => Some(error.map(|error| error.to_string())),
        _ => None,
    })?;
    log_what("log none")?;
    running.type_line("shutdown")?;
    running.finish(|_| ())?;
    if let Some(failure) = failure {
        bail!("{failure}");
    }
    let [(name, batch, total)] = &rows[..] else {
        let found: Vec<String> = rows.iter().map(|(name, batch, _)| format!("{name} --batch {batch}")).collect();
        bail!("'{}' is more than one row: {}", options.name, found.join(", "));
    };
    let places = Places::new(system, &loaded)?;
    let counts = counts(BufReader::new(File::open(&log)?), places.address_of(BEGINS)?, places.address_of(ENDS)?)?;
    Ok(Profile { name: name.clone(), batch: *batch, total: *total, shares: places.shares(&counts) })
}

/// Reads QEMU's log. Returns how often the instruction at each address was executed in the samples.
///
/// The log has the instructions of a block when QEMU has translated it, and a line for each block
/// that is executed.
fn counts(mut log: impl BufRead, begins: u64, ends: u64) -> Result<HashMap<u64, u64>> {
    let mut blocks: HashMap<u64, Vec<u64>> = HashMap::new();
    let mut executed: HashMap<u64, u64> = HashMap::new();
    let (mut block, mut counting) = (Vec::new(), false);
    let mut line = Vec::new();
    let number = |digits: &str| u64::from_str_radix(digits, 16).context("an address in QEMU's log");
    while log.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        if let Some((address, _)) = text.strip_prefix("0x").and_then(|rest| rest.split_once(':')) {
            block.push(number(address)?);
        } else if let Some(first) = block.first() {
            blocks.insert(*first, std::mem::take(&mut block));
        }
        // Trace 0: HOST [CS_BASE/PC/FLAGS/CFLAGS] SYMBOL
        if let Some(place) = text.strip_prefix("Trace ").and_then(|rest| rest.split('/').nth(1)) {
            let address = number(place)?;
            if counting && address != ends {
                *executed.entry(address).or_default() += 1;
            }
            counting = address == begins || counting && address != ends;
        }
        line.clear();
    }
    let mut counts = HashMap::new();
    for (block, times) in executed {
        for instruction in blocks.get(&block).map(Vec::as_slice).unwrap_or(&[block]) {
            *counts.entry(*instruction).or_default() += times;
        }
    }
    if counts.is_empty() {
        bail!("QEMU's log has no block of a sample");
    }
    Ok(counts)
}

/// The functions of the kernel and of the loaded modules.
struct Places {
    kernel: Loader,
    symbols: HashMap<String, u64>,
    modules: HashMap<usize, (String, Loader)>,
}

impl Places {
    fn new(system: &System, loaded: &[(String, usize)]) -> Result<Places> {
        let open = |path: &Path| Loader::new(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()));
        let mut modules = HashMap::new();
        for (name, slot) in loaded {
            if let Some(module) = system.modules.iter().find(|module| module.name == *name) {
                modules.insert(*slot, (name.clone(), open(&module.debug)?));
            }
        }
        Ok(Places { kernel: open(&system.kernel)?, symbols: symbols(&system.kernel)?, modules })
    }

    fn address_of(&self, function: &str) -> Result<u64> {
        let found = self.symbols.get(function).copied();
        found.with_context(|| format!("the kernel has no function {function}: it was built without 'bench'"))
    }

    /// Returns the program and the function that an instruction belongs to.
    fn place(&self, address: u64) -> (String, String) {
        let Some(slot) = slot_of(address) else {
            let function = self.kernel.find_symbol(address).map(demangled);
            return ("kernel".into(), function.unwrap_or_else(|| "code without a name".into()));
        };
        let Some((name, module)) = self.modules.get(&slot) else { return (format!("slot {slot}"), "?".into()) };
        let offset = address.wrapping_sub(slot_base(slot) + IMAGE);
        let innermost = module.find_frames(offset).ok().and_then(|mut frames| frames.next().ok().flatten());
        let inlined = innermost.and_then(|frame| Some(demangled(&frame.function?.raw_name().ok()?)));
        let function = inlined.or_else(|| module.find_symbol(offset).map(demangled));
        (name.clone(), function.unwrap_or_else(|| "stubs for services".into()))
    }

    /// Returns the share of each function, the largest first.
    fn shares(&self, counts: &HashMap<u64, u64>) -> Vec<(String, String, f64)> {
        let total: u64 = counts.values().sum();
        let mut by_place: BTreeMap<(String, String), u64> = BTreeMap::new();
        for (address, count) in counts {
            *by_place.entry(self.place(*address)).or_default() += count;
        }
        let share = |count: u64| count as f64 / total.max(1) as f64;
        let mut shares: Vec<_> =
            by_place.into_iter().map(|((program, function), count)| (program, function, share(count))).collect();
        shares.sort_by(|one, other| other.2.total_cmp(&one.2));
        shares
    }
}

/// Returns the addresses of an ELF file's symbols.
fn symbols(path: &Path) -> Result<HashMap<String, u64>> {
    let bytes = std::fs::read(path)?;
    let file = object::File::parse(&*bytes)?;
    Ok(file.symbols().filter_map(|symbol| Some((demangled(symbol.name().ok()?), symbol.address()))).collect())
}

fn demangled(name: &str) -> String {
    output::printable(&format!("{:#}", rustc_demangle::demangle(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_between_the_marks() {
        const LOG: &str = "----------------\nIN: sample_begins\n0x00000010:  c3  retq\n\n\
            Trace 0: 0x7f00 [0000/0000000000000010/00c0/ff00] sample_begins\n\
            ----------------\nIN:\n0x00000020:  90  nop\n0x00000021:  eb fd  jmp 0x20\n\n\
            Trace 0: 0x7f10 [0000/0000000000000020/00c0/ff00]\n\
            Trace 0: 0x7f10 [0000/0000000000000020/00c0/ff00]\n\
            Trace 0: 0x7f20 [0000/0000000000000030/00c0/ff00] sample_ends\n\
            Trace 0: 0x7f10 [0000/0000000000000020/00c0/ff00]\n";
        let counts = counts(LOG.as_bytes(), 0x10, 0x30).unwrap();
        assert_eq!(counts, HashMap::from([(0x20, 2), (0x21, 2)]));
        assert!(super::counts(LOG.as_bytes(), 0x11, 0x30).is_err());
    }
}
