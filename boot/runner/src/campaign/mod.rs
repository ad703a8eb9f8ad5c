//! `cargo run -- campaign`: changes the machine code of drivers, one instruction at a time, and
//! puts each changed driver to work. Reports the effects on the driver, on the work, and on the
//! kernel.
//!
//! The host derives the changes from a seed, at places that the work really executes. The kernel's
//! `trial` command tries one change. A boot tries up to a thousand changes. If the kernel dies, a
//! new boot continues with the next change.
//!
//! * [`pool`]: the changes
//! * [`mutate`]: changes of one instruction
//! * [`coverage`]: finds the instructions that the work executes
//! * [`trials`]: a boot that tries changes; [`files`]: the work of filesystems' drivers
//! * [`capture`]: finds the frames after which the host's network takes no more
//! * [`qmp`]: questions to QEMU itself, for example where a silent machine is
//! * [`report`]: the table, for the terminal and as a page

mod capture;
pub(crate) mod coverage;
mod files;
pub(crate) mod mutate;
mod pool;
mod qmp;
pub mod report;
mod trials;

use crate::build::System;
use crate::drivers::{self, Driver};
use crate::machine::Machine;
use crate::{echo, output};
use anyhow::{Result, bail};
use files::Files;
use pool::Pool;
use ringfence_abi::manifest::{DomainKind, Kind};
use ringfence_core::module::{file_name, kind_of_name};
use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;
use trials::{Boot, Setting};

/// The settings of a campaign.
pub struct Options {
    /// The machine.
    pub machine: Machine,
    /// The modules to change. If empty, the modules that drive the machine's network card and
    /// disks. `fat` and `ext` come with disks of their own.
    pub modules: Vec<String>,
    /// The number of changes.
    pub mutants: usize,
    /// The seed of the random numbers.
    pub seed: u64,
    /// The number of the only change to try, if not all.
    pub only: Option<usize>,
    /// Ring of the changed modules.
    pub ring: u8,
    /// The kind of domain of all drivers that have a build for it.
    pub kind: DomainKind,
    /// Folder for the results and the page.
    pub out: Option<PathBuf>,
    /// Whether to print each result as a JSON object.
    pub json: bool,
}

/// The outcome of one changed module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// The change's number, with which `--only` repeats it.
    pub number: usize,
    /// The name of the module.
    pub module: String,
    /// The ring of the module.
    pub ring: u8,
    /// The kind of change.
    pub change: String,
    /// Offset of the instruction in the image.
    pub offset: u64,
    /// The instruction before the change.
    pub before: String,
    /// The instruction after the change.
    pub after: String,
    /// The command that tries the change.
    pub command: String,
    /// The outcome in one word: see [`report::OUTCOMES`].
    pub outcome: String,
    /// The first line of the fault's report, or a description of the failure.
    pub why: String,
    /// Whether the good module did the work afterwards.
    pub restored: bool,
    /// The time in microseconds from the fault of the changed module, if it had one, until the good
    /// module had completed its work.
    pub restore_us: Option<u64>,
    /// Whether the changed module sent a frame of length 0, after which QEMU's network takes no
    /// more frames until QEMU is paused. No driver can repair that, so the runner did.
    pub host_stopped: bool,
    /// Faults that the host's tools found on the filesystem after the work of a filesystem's
    /// module, without the faults that a power cut leaves as well.
    #[serde(default)]
    pub damage: Vec<String>,
    /// Frames that were written to although they had no owner. If the module was in ring 1, the
    /// device wrote them.
    pub stray: u64,
    /// Whether the kernel survived, and its checksum and its number of free frames were unchanged.
    pub kernel_intact: bool,
    /// Whether the machine fell silent. A slow host may be the reason, so the change is tried again
    /// alone, and the second outcome counts.
    pub fell_silent: bool,
}

impl Outcome {
    /// Notes the faults that the host's tools found on the filesystem. If there are any, work that
    /// seemed right was wrong.
    fn note_damage(&mut self, damage: Vec<String>) {
        if let Some(first) = damage.first()
            && [report::MASKED, report::NOT_ACTIVATED].contains(&self.outcome.as_str())
        {
            self.outcome = report::WRONG_RESULT.to_string();
            self.why = first.clone();
        }
        self.damage = damage;
    }

    /// Returns whether the change harmed only its driver, and the good module restored the service.
    pub fn is_good(&self) -> bool {
        self.kernel_intact && self.restored
    }
}

/// Largest number of changes that one boot tries. Their commands are part of the boot's ramdisk.
const PER_BOOT: usize = 1000;
/// Longest time for a SCSI command of a changed driver, in milliseconds. The good driver has more
/// time.
const COMMAND_MS: u64 = 500;
/// Number of blocks that the work writes and reads back.
const BLOCKS: u64 = 48;

/// Tries all changes and prints the table. Returns whether every kernel stayed intact and every
/// service was restored. In ring 0, where damage is expected, returns `true` once all changes were
/// tried.
pub fn run(system: &System, options: &Options) -> Result<bool> {
    let start = Instant::now();
    let mut results = report::Results::open(options)?;
    try_all(system, options, &mut |outcome| {
        if options.json {
            output::line(format_args!("{}", serde_json::to_string(outcome)?));
        }
        results.add(outcome)
    })?;
    output::complain(&format!("campaign: {} changes in {} s", results.own().len(), start.elapsed().as_secs()));
    results.write_page(options)?;
    if !options.json {
        output::text(format_args!("{}", report::text(results.all(), options)));
    }
    Ok(options.ring == 0 || results.own().iter().all(Outcome::is_good))
}

/// Tries all changes and returns their outcomes.
pub fn outcomes(system: &System, options: &Options) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    try_all(system, options, &mut |outcome| {
        outcomes.push(outcome.clone());
        Ok(())
    })?;
    Ok(outcomes)
}

/// Tries all changes; passes the outcome of each to `note`.
fn try_all(system: &System, options: &Options, note: &mut dyn FnMut(&Outcome) -> Result<()>) -> Result<()> {
    let server = echo::Server::start()?;
    let port = server.port();
    // Flushed data need not reach the host's disk, which may be slow.
    let mut machine = Machine { scratch: true, volatile_disks: true, ..options.machine.clone() };
    output::complain("campaign: finding out what the work executes");
    let is_segmented = |name: &String| kind_of_name(name) == DomainKind::Segmented;
    let kind = if options.modules.iter().any(is_segmented) { DomainKind::Segmented } else { options.kind };
    machine.contents.kind = Some(kind);
    let drivers = drivers::loaded(system, &machine)?;
    let changed = changed(system, &machine, &options.modules, kind, &drivers)?;
    if options.ring == 0 && changed.iter().any(|driver| driver.domain == DomainKind::Segmented) {
        bail!("ring 0 is for 64-bit code: a segmented module is changed in ring 1");
    }
    let files = changed.iter().any(|driver| driver.kind == Kind::Fs).then(Files::new).transpose()?;
    if let Some(files) = &files {
        machine = files.machine(machine)?;
    }
    let pools = pools(system, &machine, port, &changed)?;
    let setting =
        Setting { system, machine: &machine, files: files.as_ref(), port, ring: options.ring, drivers: &drivers };
    let mutants = pool::mutants(&pools, options.seed, options.only.map_or(options.mutants, |only| only + 1))?;
    let mutants = mutants.get(options.only.unwrap_or(0)..).unwrap_or_default();
    let (mut done, mut dead) = (0, 0);
    let start = Instant::now();
    while done < mutants.len() {
        let rest = &mutants[done..];
        let rest = &rest[..rest.len().min(PER_BOOT)];
        let mut boot = Boot::start(&setting, rest)?;
        for mutant in rest {
            let mut outcome = boot.next(&setting, mutant)?;
            // A damaged kernel or service would spoil the following trials.
            let goes_on = outcome.is_good();
            // In ring 0 a driver can turn interrupts off, and then nothing ends it.
            if outcome.fell_silent && options.ring == 1 {
                let alone = std::slice::from_ref(mutant);
                let again = Boot::start(&setting, alone)?.next(&setting, mutant)?;
                let why = format!("{} [before: {}]", again.why, outcome.why);
                outcome = Outcome { why, fell_silent: true, ..again };
            }
            note(&outcome)?;
            done += 1;
            dead += usize::from(outcome.outcome == report::KERNEL_DEATH);
            progress(done, mutants.len(), dead, start);
            if !goes_on {
                break;
            }
        }
    }
    Ok(())
}

/// Prints the progress: after each change on a terminal, after every 100 changes in a log.
fn progress(count: usize, of: usize, dead: usize, start: Instant) {
    let (end, due) = if std::io::stderr().is_terminal() { ("\r", true) } else { ("\n", count.is_multiple_of(100)) };
    if due || count == of {
        let left = start.elapsed().as_secs_f64() / count as f64 * (of - count) as f64;
        output::progress(format_args!(
            "campaign: {count} of {of}, {dead} dead kernels, {left:.0} s to go    {}",
            if count == of { "\n" } else { end }
        ));
    }
}

/// Returns three lists of commands. The first puts the changed module to work. The second checks
/// with the good module that the work was right. The third must succeed with the good module in the
/// end.
///
/// QEMU's e1000 receives nothing for a second after some mistakes, and QEMU's network drops the
/// frames that it was sent while stopped. So the commands of the third list wait long, and TCP,
/// which retransmits, comes first.
fn work(kind: Kind, module: &str, port: u16, number: usize) -> Result<[String; 3]> {
    let place = 64 + number as u64 % 1000 * BLOCKS;
    Ok(match kind {
        Kind::Nic => [
            format!("ping 10.0.2.2 -c 1 -W 300, tcpecho 10.0.2.2 {port} 8192 -W 600"),
            "help help".to_string(),
            format!("tcpecho 10.0.2.2 {port} 1024 -W 8000, ping 10.0.2.2 -c 1 -W 5000"),
        ],
        Kind::Scsi | Kind::Block => [
            format!("blkcheck disk0 {place} {BLOCKS} {number}"),
            format!("blkverify disk0 {place} {BLOCKS} {number}"),
            format!("limits command-ms 30000, blkcheck disk0 {place} 8 {number}, limits command-ms {COMMAND_MS}"),
        ],
        Kind::Fs => files::work(module, number)?,
        Kind::Other => bail!("there is no work for '{module}', which drives no network card, disk or filesystem"),
    })
}

/// Returns the drivers whose modules are changed: those with these names, or else all that have
/// work. All are for this kind of domain that are built for it.
fn changed(
    system: &System,
    machine: &Machine,
    names: &[String],
    kind: DomainKind,
    drivers: &[Driver],
) -> Result<Vec<Driver>> {
    let has_work = |driver: &&Driver| !matches!(driver.kind, Kind::Fs | Kind::Other);
    let find = |name: &String| {
        let of_kind = drivers::find(system, machine, &file_name(name, kind));
        of_kind.or_else(|_| drivers::find(system, machine, name))
    };
    let changed: Vec<Driver> = match names.is_empty() {
        true => drivers.iter().filter(has_work).cloned().collect(),
        false => names.iter().map(find).collect::<Result<_>>()?,
    };
    if let Some(twice) = (1..changed.len()).find(|at| changed[..*at].iter().any(|one| one.name == changed[*at].name)) {
        bail!("{} is named twice", changed[twice].name);
    }
    // The work mounts the filesystems by itself.
    let is_there =
        |wanted: &Driver| wanted.kind == Kind::Fs || drivers.iter().any(|driver| driver.module == wanted.module);
    if let Some(idle) = changed.iter().find(|wanted| !is_there(wanted)) {
        bail!("no device of this machine is driven by '{}'", idle.name);
    }
    if changed.is_empty() {
        bail!("this machine has no driver to change");
    }
    Ok(changed)
}

/// Returns a pool for each module, made of the instructions that the work executes.
fn pools(system: &System, machine: &Machine, port: u16, changed: &[Driver]) -> Result<Vec<Pool>> {
    let mut first = format!("limits command-ms {COMMAND_MS}");
    if changed.iter().any(|driver| driver.kind == Kind::Fs) {
        first += &format!("; {}", files::MOUNT);
    }
    let works = changed.iter().map(|driver| work(driver.kind, &driver.module, port, 0));
    let works = works.map(|work| Ok(format!("repeat 2 {}", work?.join(", ")))).collect::<Result<Vec<_>>>()?;
    let executed = coverage::executed(system, machine, &format!("{first}; {}", works.join("; ")))?;
    let pool = |driver: &Driver| {
        let executed: Vec<u64> = executed.get(&driver.name).into_iter().flatten().copied().collect();
        Pool::new(driver, std::fs::read(&driver.file)?, &executed)
    };
    changed.iter().map(pool).collect()
}
