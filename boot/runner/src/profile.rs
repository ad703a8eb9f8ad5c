//! `cargo run -- profile NAME`: where the instructions of an operation go.
//!
//! QEMU logs each block of instructions that it executes while the kernel measures a row of `bench`
//! with `-icount`. The kernel marks the samples by two functions, between which the instructions
//! are counted. An instruction counts for the function that its source line is in, even if that
//! function was inlined, or for the function whose code it is in.

use crate::bench::files;
use crate::build::{Module, System};
use crate::drivers;
use crate::machine::{Machine, Monitor};
use crate::output;
use addr2line::Loader;
use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};
use ringfence_abi::layout::{IMAGE, SLOT_SIZE, slot_base, slot_of};
use ringfence_abi::manifest::{DomainKind, Kind};
use ringfence_core::module::file_name;
use ringfence_link::event::Event;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::iter;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// The settings of a profile.
pub struct Options {
    /// The row of `bench`.
    pub name: String,
    /// The driver's ring.
    pub ring: u8,
    /// The kind of domain that the driver has in ring 1.
    pub kind: DomainKind,
    /// The number of operations that one crossing hands over, if the row has several.
    pub batch: Option<u16>,
    /// Whether an instruction of an inlined function counts for the function that it was inlined
    /// into.
    pub outermost: bool,
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
/// Where the kernel's handling of an interrupt or exception begins (`kernel/hw/src/arch/entry.S`).
const TRAP: &str = "trap_enter";
/// The bits of a block's flags with its number of instructions, if that was asked for
/// (CF_COUNT_MASK).
const LENGTH: u64 = 0x1ff;
/// The beginning of QEMU's trace events for accesses to registers.
const ACCESS: &str = "memory_region_ops_";
/// The beginning of its trace events for invalidations of the IOMMU's cache of translations.
const INVALIDATION: &str = "vtd_inv_desc_iotlb";
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
            let object = json!({ "name": name, "ring": ring, "kind": options.kind.name(), "batch": batch, "program": program,
                "function": function, "instructions": instructions, "share": share });
            output::line(format_args!("{object}"));
        }
        return Ok(());
    }
    let line = |share: f64, what: &str| {
        output::line(format_args!("{:>9.1} {:>5.1} %  {what}", share * total, share * 100.0));
    };
    let ring = if options.kind == DomainKind::Segmented { format!("{ring}, segmented") } else { ring.to_string() };
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
    let executed = execute(system, options)?;
    let Executed { name, batch, total, .. } = &executed;
    let places = Places::new(system, &executed)?;
    Ok(Profile {
        name: name.clone(),
        batch: *batch,
        total: *total,
        shares: places.shares(&executed.instructions, options.outermost),
    })
}

/// The instructions and events in the samples of a row.
pub struct Executed {
    /// The row's name.
    pub name: String,
    /// The number of operations that one crossing hands over.
    pub batch: u64,
    /// The instructions of an operation, the median of the samples.
    pub total: f64,
    /// The instructions by their addresses. Those of segmented drivers are in the drivers' slots.
    pub instructions: HashMap<u64, Instruction>,
    /// How often registers of devices were accessed, in memory or by ports.
    pub accesses: u64,
    /// Invalidations of the IOMMU's cache of translations.
    pub invalidations: u64,
    /// Interrupts and exceptions.
    pub interrupts: u64,
    /// The modules and their slots.
    loaded: Vec<(String, usize)>,
    /// The slots of the drivers that were segmented while they were measured.
    segmented: Vec<usize>,
}

/// An instruction, and how often it was executed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instruction {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// How often it was executed.
    pub times: u64,
}

/// Has the kernel measure a row, and QEMU log the execution meanwhile.
pub fn execute(system: &System, options: &Options) -> Result<Executed> {
    if !["nic/", "icmp/", "scsi/", "fs/"].iter().any(|family| options.name.starts_with(family)) {
        let name = &options.name;
        bail!("'{name}' is no whole operation: rows that begin with nic/, icmp/, scsi/ or fs/ have profiles");
    }
    let folder = TempDir::new()?;
    let (socket, log) = (folder.path().join("qmp"), folder.path().join("log"));
    let mut machine = Machine { scratch: true, icount: true, timeout: Some(TIME_LIMIT), ..options.machine.clone() };
    machine.contents.exec = None;
    let has_files = options.name.starts_with("fs/");
    if has_files {
        machine = files::add(&machine, folder.path())?;
    }
    machine.extra.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display()).into()]);
    machine.extra.extend(["-D".into(), log.clone().into()]);
    let mut running = machine.start(system)?;
    let mut monitor = Monitor::new(&socket)?;
    if has_files {
        running.type_line(&files::mount(&machine))?;
    }
    // The shell runs when the drivers are loaded.
    running.type_line("lsmod")?;
    let loaded = running.wait_for_event("the drivers", |event| match event {
        Event::Drivers(_) => Some(drivers::listed(&[event])),
        _ => None,
    })?;
    let mut command = |what: &str| {
        let command = json!({ "execute": "human-monitor-command", "arguments": { "command-line": what } });
        monitor.execute(&command.to_string())
    };
    command(&format!("log exec,nochain,in_asm,trace:{ACCESS}*,trace:{INVALIDATION}*"))?;
    let batch = options.batch.map(|batch| format!(" --batch {batch}")).unwrap_or_default();
    // QEMU logs ten million instructions in half a minute, and a file has more than that.
    let samples = if has_files { " --samples 2" } else { "" };
    let (name, ring, kind) = (&options.name, options.ring, options.kind);
    let line = format!("bench {name} --instructions --ring {ring} --kind {kind}{batch}{samples}");
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
    command("log none")?;
    running.type_line("shutdown")?;
    running.finish(|_| ())?;
    if let Some(failure) = failure {
        bail!("{failure}");
    }
    let [(name, batch, total)] = &rows[..] else {
        let found: Vec<String> = rows.iter().map(|(name, batch, _)| format!("{name} --batch {batch}")).collect();
        bail!("'{}' is more than one row: {}", options.name, found.join(", "));
    };
    let marks = symbols(&system.kernel)?;
    let mark = |function: &str| {
        let found = marks.get(function).copied();
        found.with_context(|| format!("the kernel has no function {function}: it was built without 'bench'"))
    };
    let log = BufReader::new(File::open(&log)?);
    let mut codes = Vec::new();
    for (name, slot) in segmented_drivers(system, options, &loaded) {
        let module = module_in(system, name, true);
        codes.extend(module.map(|module| Code::new(*slot, &module.debug)).transpose()?);
    }
    let logged = read(log, mark(BEGINS)?, mark(ENDS)?, &codes)?;
    let Logged { instructions, accesses, invalidations, segmented } = logged;
    let interrupts = instructions.get(&mark(TRAP)?).map_or(0, |first| first.times);
    Ok(Executed {
        name: name.clone(),
        batch: *batch,
        total: *total,
        instructions,
        accesses,
        invalidations,
        interrupts,
        segmented,
        loaded,
    })
}

/// Returns the drivers that a row may move to segmented domains.
fn segmented_drivers<'a>(
    system: &System,
    options: &Options,
    loaded: &'a [(String, usize)],
) -> Vec<&'a (String, usize)> {
    if options.kind != DomainKind::Segmented {
        return Vec::new();
    }
    let parts: Vec<&str> = options.name.split('/').collect();
    let is_moved = |name: &str| {
        let kind = drivers::find(system, &options.machine, name).map(|driver| driver.kind);
        match (&parts[..], kind) {
            (["fs", format, ..], Ok(Kind::Fs)) => *format == name,
            (["fs" | "scsi", ..], Ok(kind)) => matches!(kind, Kind::Scsi | Kind::Block),
            (_, kind) => matches!(kind, Ok(Kind::Nic)),
        }
    };
    loaded.iter().filter(|(name, _)| is_moved(name)).collect()
}

/// Returns the file of a module, for one kind of domain.
fn module_in<'a>(system: &'a System, name: &str, is_segmented: bool) -> Option<&'a Module> {
    let kind = if is_segmented { DomainKind::Segmented } else { DomainKind::Paged };
    let name = file_name(name, kind);
    system.modules.iter().find(|module| module.name == name)
}

/// The code of a module for segmented domains, where every driver has the same addresses.
struct Code {
    slot: usize,
    /// The addresses of the code, and the code.
    sections: Vec<(u64, Vec<u8>)>,
}

impl Code {
    fn new(slot: usize, path: &Path) -> Result<Code> {
        let bytes = std::fs::read(path)?;
        let file = object::File::parse(&*bytes)?;
        let code = file.sections().filter(|section| section.kind() == SectionKind::Text);
        let sections = code.map(|section| Ok((section.address(), section.data()?.to_vec()))).collect::<Result<_>>()?;
        Ok(Code { slot, sections })
    }

    /// Returns whether the module has this block of instructions.
    fn has(&self, block: &Block) -> bool {
        let has = |(address, bytes): &(u64, Vec<u8>)| {
            self.sections.iter().any(|(start, code)| {
                let at = address.checked_sub(*start).and_then(|at| usize::try_from(at).ok());
                at.and_then(|at| code.get(at..)).is_some_and(|code| !bytes.is_empty() && code.starts_with(bytes))
            })
        };
        block.iter().all(has)
    }
}

/// The slot of a block in the address space where all segmented drivers have the same addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Not there: in the kernel, or in a paged driver.
    Nobody,
    /// No driver's code: a part of a crossing. It belongs to the driver that runs before it, or if
    /// that was the kernel, behind it.
    Unknown,
    /// In the driver's code.
    Slot(usize),
}

/// Tells to which segmented driver a block belongs.
struct Owners<'a> {
    codes: &'a [Code],
    /// The driver whose block was executed last, unless the kernel's was.
    last: Owner,
    /// The parts of crossings that were executed since the kernel's last block.
    unknown: Vec<usize>,
    /// The owners of all blocks.
    of: Vec<Owner>,
}

impl Owners<'_> {
    /// Notes a block that is executed for the first time.
    fn add(&mut self, block: &Block) {
        let is_segmented = !self.codes.is_empty() && block.first().is_some_and(|(address, _)| *address < SLOT_SIZE);
        let code = || {
            let mut codes = self.codes.iter().filter(|code| code.has(block));
            let first = codes.next().map_or(Owner::Unknown, |code| Owner::Slot(code.slot));
            // Two drivers may have the same code at the same address.
            if codes.any(|code| Owner::Slot(code.slot) == self.last) { self.last } else { first }
        };
        self.of.push(if is_segmented { code() } else { Owner::Nobody });
    }

    /// Notes that a block is executed.
    fn executed(&mut self, block: usize) {
        match (self.of[block], self.last) {
            (Owner::Nobody, _) => {
                self.last = Owner::Nobody;
                self.unknown.clear();
            }
            (Owner::Unknown, Owner::Slot(slot)) => self.of[block] = Owner::Slot(slot),
            (Owner::Unknown, _) => self.unknown.push(block),
            (owner, _) => {
                self.last = owner;
                self.unknown.drain(..).for_each(|unknown| self.of[unknown] = owner);
            }
        }
    }

    /// Returns the offset of a block's slot.
    fn offset(&self, block: usize) -> u64 {
        if let Owner::Slot(slot) = self.of[block] { slot_base(slot) } else { 0 }
    }

    /// Returns the slots of the drivers that ran.
    fn slots(&self) -> Vec<usize> {
        let slots = self.codes.iter().map(|code| code.slot);
        slots.filter(|slot| self.of.contains(&Owner::Slot(*slot))).collect()
    }
}

impl Executed {
    /// Returns whether the instruction at this address is 32-bit code of a segmented driver.
    pub fn is_in_segment(&self, address: u64) -> bool {
        slot_of(address).is_some_and(|slot| self.segmented.contains(&slot))
    }
}

#[cfg(test)]
impl Executed {
    /// An operation of `total` instructions, as which these were executed so often, in the slot of
    /// a segmented driver or in the kernel.
    pub fn made_up(total: f64, slot: Option<usize>, executed: &[(&[u8], u64)]) -> Executed {
        let start = slot.map_or(0, slot_base);
        let instruction = |(address, (bytes, times)): (u64, &(&[u8], u64))| {
            (address, Instruction { bytes: bytes.to_vec(), times: *times })
        };
        let instructions = (start..).zip(executed).map(instruction).collect();
        let segmented = slot.into_iter().collect();
        let (accesses, invalidations, interrupts, loaded) = (0, 0, 0, Vec::new());
        Executed {
            name: "nic/tx".to_string(),
            batch: 1,
            total,
            instructions,
            accesses,
            invalidations,
            interrupts,
            loaded,
            segmented,
        }
    }
}

/// The instructions of a block: their addresses and bytes.
type Block = Vec<(u64, Vec<u8>)>;

/// The content of QEMU's log of the samples.
struct Logged {
    /// The instructions by their addresses.
    instructions: HashMap<u64, Instruction>,
    /// Accesses to registers of devices.
    accesses: u64,
    /// Invalidations by the IOMMU.
    invalidations: u64,
    /// The slots of the segmented drivers that ran.
    segmented: Vec<usize>,
}

/// Reads QEMU's log.
///
/// The log has the instructions of a block when QEMU has translated it, and a line for each block
/// that is executed, and for each access. A block is told from others by where its translation is
/// on the host: near an interrupt, QEMU translates a part of a block again, which begins at the
/// same address and is shorter.
///
/// A block is left before an instruction that accesses a register of a device, and that instruction
/// follows as a block of its own. Such a block has its number of instructions in its flags, so the
/// instructions that the block before it did not reach are not counted.
///
/// `codes` are the drivers that are segmented: they have the same addresses, and are told apart by
/// their code.
fn read(mut log: impl BufRead, begins: u64, ends: u64, codes: &[Code]) -> Result<Logged> {
    let mut owners = Owners { codes, last: Owner::Nobody, unknown: Vec::new(), of: Vec::new() };
    // The blocks whose translations have not been executed yet, by their addresses in the guest.
    let mut translated: HashMap<u64, Block> = HashMap::new();
    // The others and how often they were executed, and which one is at an address on the host.
    let mut blocks: Vec<(Block, u64)> = Vec::new();
    let mut at: HashMap<(u64, u64), usize> = HashMap::new();
    // How often an instruction was logged and not executed.
    let mut left_out: HashMap<(usize, u64), u64> = HashMap::new();
    let mut before: Option<usize> = None;
    let mut block = Block::new();
    let (mut counting, mut traced) = (false, [0, 0]);
    let mut line = Vec::new();
    let number = |digits: &str| u64::from_str_radix(digits, 16).context("an address in QEMU's log");
    while log.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        if let Some((address, rest)) = text.strip_prefix("0x").and_then(|rest| rest.split_once(':')) {
            let words: Vec<&str> = rest.split_whitespace().collect();
            let is_byte = |word: &&&str| word.len() == 2 && word.bytes().all(|digit| digit.is_ascii_hexdigit());
            let bytes: Vec<u8> =
                words.iter().take_while(is_byte).filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
            match block.last_mut() {
                // The rest of a long instruction has a line of its own.
                Some((_, before)) if bytes.len() == words.len() => before.extend(bytes),
                _ => block.push((number(address)?, bytes)),
            }
        } else if let Some((first, _)) = block.first() {
            translated.insert(*first, std::mem::take(&mut block));
        }
        for (count, event) in traced.iter_mut().zip([ACCESS, INVALIDATION]) {
            *count += u64::from(counting && text.contains(event));
        }
        // Trace 0: HOST [CS_BASE/PC/FLAGS/CFLAGS] SYMBOL
        if let Some((host, rest)) = text.strip_prefix("Trace 0: 0x").and_then(|rest| rest.split_once(' ')) {
            let mut fields = rest.split(['/', ']']);
            let address = number(fields.nth(1).unwrap_or_default())?;
            let flags = number(fields.nth(1).unwrap_or_default())?;
            if let Some(block) = before.filter(|_| counting && flags & LENGTH != 0) {
                let instructions = blocks[block].0.iter().map(|(address, _)| *address);
                for rest in instructions.skip_while(|before| *before != address) {
                    *left_out.entry((block, rest)).or_default() += 1;
                }
            }
            let place = (number(host)?, address);
            let unknown = || vec![(address, Vec::new())];
            let translated = translated.remove(&address);
            let known = at.get(&place).copied().filter(|_| translated.is_none());
            let index = known.unwrap_or_else(|| {
                let block = translated.unwrap_or_else(unknown);
                owners.add(&block);
                blocks.push((block, 0));
                at.insert(place, blocks.len() - 1);
                blocks.len() - 1
            });
            owners.executed(index);
            before = (counting && address != ends).then_some(index);
            if before.is_some() {
                blocks[index].1 += 1;
            }
            counting = address == begins || counting && address != ends;
        }
        line.clear();
    }
    let mut instructions: HashMap<u64, Instruction> = HashMap::new();
    for (index, (block, times)) in blocks.into_iter().enumerate().filter(|(_, (_, times))| *times > 0) {
        for (address, bytes) in block {
            let instruction = instructions.entry(owners.offset(index) + address).or_default();
            instruction.bytes = bytes;
            instruction.times += times;
        }
    }
    for ((index, address), times) in left_out {
        instructions
            .entry(owners.offset(index) + address)
            .and_modify(|instruction| instruction.times -= times.min(instruction.times));
    }
    if instructions.is_empty() {
        bail!("QEMU's log has no block of a sample");
    }
    let [accesses, invalidations] = traced;
    Ok(Logged { instructions, accesses, invalidations, segmented: owners.slots() })
}

/// The functions of the kernel and of the loaded modules.
struct Places {
    kernel: Loader,
    /// The modules by their slots, and the address in the slot at which each file begins.
    modules: HashMap<usize, (String, u64, Loader)>,
}

impl Places {
    fn new(system: &System, executed: &Executed) -> Result<Places> {
        let open = |path: &Path| Loader::new(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()));
        let mut modules = HashMap::new();
        for (name, slot) in &executed.loaded {
            let is_segmented = executed.segmented.contains(slot);
            let Some(module) = module_in(system, name, is_segmented) else { continue };
            // Segmented code is linked for the addresses at which it runs.
            let start = if is_segmented { 0 } else { IMAGE };
            modules.insert(*slot, (module.name.clone(), start, open(&module.debug)?));
        }
        Ok(Places { kernel: open(&system.kernel)?, modules })
    }

    /// Returns the program and the function that an instruction belongs to.
    fn place(&self, address: u64, outermost: bool) -> (String, String) {
        let Some(slot) = slot_of(address) else {
            let function = function_at(&self.kernel, address, outermost);
            return ("kernel".into(), function.unwrap_or_else(|| "code without a name".into()));
        };
        let Some((name, start, module)) = self.modules.get(&slot) else { return (format!("slot {slot}"), "?".into()) };
        (name.clone(), of_module(module, address.wrapping_sub(slot_base(slot) + start), outermost))
    }

    /// Returns the share of each function, the largest first.
    fn shares(&self, instructions: &HashMap<u64, Instruction>, outermost: bool) -> Vec<(String, String, f64)> {
        let total: u64 = instructions.values().map(|instruction| instruction.times).sum();
        let mut by_place: BTreeMap<(String, String), u64> = BTreeMap::new();
        for (address, instruction) in instructions {
            *by_place.entry(self.place(*address, outermost)).or_default() += instruction.times;
        }
        let share = |count: u64| count as f64 / total.max(1) as f64;
        let mut shares: Vec<_> =
            by_place.into_iter().map(|((program, function), count)| (program, function, share(count))).collect();
        shares.sort_by(|one, other| other.2.total_cmp(&one.2));
        shares
    }
}

/// Returns the function of a module at `address`.
fn of_module(module: &Loader, address: u64, outermost: bool) -> String {
    function_at(module, address, outermost).unwrap_or_else(|| "stubs for services".into())
}

/// Returns the function that a program's debug information, or else its symbols, has at `address`:
/// the function that was inlined there, or the function whose code it is.
fn function_at(program: &Loader, address: u64, outermost: bool) -> Option<String> {
    let mut frames = program
        .find_frames(address)
        .ok()
        .into_iter()
        .flat_map(|mut frames| iter::from_fn(move || frames.next().ok().flatten()));
    let frame = if outermost { frames.last() } else { frames.next() };
    let of_frame = frame.and_then(|frame| Some(demangled(&frame.function?.raw_name().ok()?)));
    of_frame.or_else(|| program.find_symbol(address).map(demangled))
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
            Trace 0: 0x7f00 [0000/0000000000000010/00c0/ff000] sample_begins\n\
            ----------------\nIN:\n0x00000020:  48 b8 01 02 03 04 05 06  movabsq $0x807060504030201, %rax\n0x00000028:  07 08\n\
            0x0000002a:  eb f4  jmp 0x20\n\n\
            Trace 0: 0x7f10 [0000/0000000000000020/00c0/ff000]\n\
            memory_region_ops_write cpu 0 mr 0x55 addr 0xfebc0000 value 0x1 size 4 name 'e1000-mmio'\n\
            Trace 0: 0x7f10 [0000/0000000000000020/00c0/ff000]\n\
            Trace 0: 0x7f20 [0000/0000000000000030/00c0/ff000] sample_ends\n\
            memory_region_ops_write cpu 0 mr 0x55 addr 0xfebc0000 value 0x1 size 4 name 'e1000-mmio'\n\
            Trace 0: 0x7f10 [0000/0000000000000020/00c0/ff000]\n";
        let Logged { instructions, accesses, .. } = read(LOG.as_bytes(), 0x10, 0x30, &[]).unwrap();
        let twice = |bytes: &[u8]| Instruction { bytes: bytes.to_vec(), times: 2 };
        // A long instruction takes two lines.
        let long = [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(instructions, HashMap::from([(0x20, twice(&long)), (0x2a, twice(&[0xeb, 0xf4]))]));
        assert_eq!(accesses, 1);
        assert!(read(LOG.as_bytes(), 0x11, 0x30, &[]).is_err());
    }

    /// The code in which an upcall begins, and a stub for a service, are no driver's.
    #[test]
    fn segmented_drivers_with_the_same_addresses_are_told_apart_by_their_code() {
        const LOG: &str = "IN: sample_begins\n0x00000010:  c3  retq\n\n\
            Trace 0: 0x7f00 [0000/0000000000000010/00c0/ff000] sample_begins\n\
            IN:\n0x00430000:  90  nop\n0x00430001:  c3  retl\n\n\
            Trace 0: 0x7f10 [0000/0000000000430000/00c0/ff000]\n\
            Trace 0: 0x7f70 [0000/ffffffff80200000/00c0/ff000]\n\
            IN:\n0x00220020:  51  push\n\n\
            Trace 0: 0x7f80 [0000/0000000000220020/00c0/ff000]\n\
            IN:\n0x00430000:  90  nop\n0x00430001:  cb  lretl\n\n\
            Trace 0: 0x7f20 [0000/0000000000430000/00c0/ff000]\n\
            IN:\n0x00220000:  c3  retl\n\n\
            Trace 0: 0x7f30 [0000/0000000000220000/00c0/ff000]\n\
            Trace 0: 0x7f10 [0000/0000000000430000/00c0/ff000]\n\
            Trace 0: 0x7f40 [0000/0000000000000030/00c0/ff000] sample_ends\n";
        let code = |slot, code: &[u8]| Code {
            slot,
            sections: vec![(0x40_0000, vec![0; 0x3_0000]), (0x43_0000, code.to_vec())],
        };
        let codes = [code(0, &[0x90, 0xc3]), code(2, &[0x90, 0xcb])];
        let Logged { instructions, segmented, .. } = read(LOG.as_bytes(), 0x10, 0x30, &codes).unwrap();
        let times = |slot, address| instructions[&(slot_base(slot) + address)].times;
        assert_eq!([times(0, 0x43_0000), times(0, 0x43_0001), times(2, 0x43_0000), times(2, 0x43_0001)], [2, 2, 1, 1]);
        assert_eq!([times(2, 0x22_0000), times(2, 0x22_0020)], [1, 1]);
        assert_eq!((instructions.len(), segmented), (7, vec![0, 2]));
    }

    #[test]
    fn a_block_of_which_a_part_is_translated_again_is_counted_as_it_was_executed() {
        const LOG: &str = "IN: sample_begins\n0x00000010:  c3  retq\n\n\
            Trace 0: 0x7f00 [0000/0000000000000010/00c0/ff000] sample_begins\n\
            IN:\n0x00000020:  90  nop\n0x00000021:  c3  retq\n\n\
            Trace 0: 0x7f10 [0000/0000000000000020/00c0/ff000]\n\
            IN:\n0x00000020:  90  nop\n\n\
            Trace 0: 0x7f20 [0000/0000000000000020/00c0/ff001]\n\
            Trace 0: 0x7f10 [0000/0000000000000020/00c0/ff000]\n\
            IN:\n0x00000021:  c3  retq\n\n\
            Trace 0: 0x7f28 [0000/0000000000000021/00c0/ff001]\n\
            Trace 0: 0x7f30 [0000/0000000000000030/00c0/ff000] sample_ends\n";
        let Logged { instructions, .. } = read(LOG.as_bytes(), 0x10, 0x30, &[]).unwrap();
        assert_eq!([0x20, 0x21].map(|address| instructions[&address].times), [2, 1]);
    }
}
