//! `cargo run -- campaign`: changes the machine code of drivers, one instruction at a time, puts
//! each changed driver to work, and looks what became of the driver, of the work, and of the
//! kernel.
//!
//! The host makes the changes, from a seed, at places that the work really executes; the kernel's
//! `trial` command carries one out. A thousand run in one boot, unless the kernel dies: then the
//! next boot goes on with the change after that.
//!
//! * [`pool`]: the changes
//! * [`mutate`]: changes of one instruction
//! * [`coverage`]: which instructions the work executes
//! * [`trials`]: a boot that tries changes
//! * [`capture`]: whether the host's network still takes frames
//! * [`qmp`]: what QEMU itself is asked: where a machine is that says no more
//! * [`report`]: the table, for the terminal and as a page

mod capture;
pub(crate) mod coverage;
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
use pool::Pool;
use ringfence_abi::manifest::Kind;
use serde::{Deserialize, Serialize};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;
use trials::{Boot, Setting};

/// What to do.
pub struct Options {
    /// The machine.
    pub machine: Machine,
    /// Modules to change; those that drive the machine's network card and SCSI adapter, if there
    /// are none.
    pub modules: Vec<String>,
    /// How many changes in all.
    pub mutants: usize,
    /// Where the random numbers begin.
    pub seed: u64,
    /// The number of the only one to try, if it is one.
    pub only: Option<usize>,
    /// Ring of the changed modules.
    pub ring: u8,
    /// Folder for the results and the page.
    pub out: Option<PathBuf>,
    /// Print each result as a JSON object.
    pub json: bool,
}

/// What became of one changed module.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// The change's number: `--only` comes back to it.
    pub number: usize,
    /// Which module.
    pub module: String,
    /// Its ring.
    pub ring: u8,
    /// What kind of change.
    pub change: String,
    /// Offset of the instruction in the image.
    pub offset: u64,
    /// The instruction as it was, and as it is.
    pub before: String,
    /// See `before`.
    pub after: String,
    /// The command that tries it.
    pub command: String,
    /// One word: see [`report::OUTCOMES`].
    pub outcome: String,
    /// The first line of the fault's report, or what failed.
    pub why: String,
    /// Whether the good module did the work afterwards.
    pub restored: bool,
    /// From the fault of the changed module, if it had one, until the good one had done all that it
    /// must do, in microseconds.
    pub restore_us: Option<u64>,
    /// Whether it sent a frame of no length, after which QEMU's network takes no more until QEMU
    /// was paused: no driver can mend that, so the runner did.
    pub host_stopped: bool,
    /// Frames that were written to though nobody had them: by the device, if the module was in ring
    /// 1.
    pub stray: u64,
    /// Whether the kernel lived, and nothing of it that must not change had changed.
    pub kernel_intact: bool,
    /// Whether the machine said nothing more. A host may be that slow: the change is tried again by
    /// itself, and that counts.
    pub fell_silent: bool,
}

impl Outcome {
    /// Whether it hurt nothing but its driver, and that was made good.
    pub fn is_good(&self) -> bool {
        self.kernel_intact && self.restored
    }
}

/// Changes that one boot tries at most: its commands are in its ramdisk.
const PER_BOOT: usize = 1000;
/// Longest time that a SCSI command of a changed driver may take, in milliseconds. The good one has
/// more.
const COMMAND_MS: u64 = 500;
/// The blocks that are written and read back.
const BLOCKS: u64 = 48;

/// Tries all changes and prints the table. Whether no kernel was hurt and every service restored;
/// in ring 0, where that is to be expected, whether all were tried.
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

/// Tries all changes and returns what became of them.
pub fn outcomes(system: &System, options: &Options) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    try_all(system, options, &mut |outcome| {
        outcomes.push(outcome.clone());
        Ok(())
    })?;
    Ok(outcomes)
}

/// Tries all changes; `note` is told what became of each.
fn try_all(system: &System, options: &Options, note: &mut dyn FnMut(&Outcome) -> Result<()>) -> Result<()> {
    let server = echo::Server::start()?;
    let port = server.port();
    // What is flushed need not reach the host's disk, which may take as long as it likes.
    let machine = Machine { scratch: true, volatile_disks: true, ..options.machine.clone() };
    output::complain("campaign: finding out what the work executes");
    let drivers = drivers::loaded(system, &machine)?;
    let changed = changed(system, &machine, options, &drivers)?;
    let pools = pools(system, &machine, port, &changed)?;
    let setting = Setting { system, machine: &machine, port, ring: options.ring, drivers: &drivers };
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
            // What is hurt, or not restored, would spoil what comes after.
            let goes_on = outcome.is_good();
            // In ring 0 nobody cuts an endless loop short.
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

/// A line that says how far it is: over and over on a terminal, now and then in a log.
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

/// The commands that put a module to work, those that check with the good one that the work was
/// right, and those that the good one must do in the end. QEMU's e1000 receives nothing for a
/// second after some mistakes, and its network drops what it was sent when it was stopped: the last
/// are patient, and TCP, which sends again, comes first.
fn work(kind: Kind, port: u16, number: usize) -> Result<[String; 3]> {
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
        Kind::Other => bail!("there is no work for a module that drives neither a network card nor disks"),
    })
}

/// The modules to change.
fn changed(system: &System, machine: &Machine, options: &Options, drivers: &[Driver]) -> Result<Vec<Driver>> {
    let has_work = |driver: &&Driver| driver.kind != Kind::Other;
    let changed: Vec<Driver> = match options.modules.is_empty() {
        true => drivers.iter().filter(has_work).cloned().collect(),
        false => options.modules.iter().map(|name| drivers::find(system, machine, name)).collect::<Result<_>>()?,
    };
    if let Some(idle) = changed.iter().find(|wanted| drivers.iter().all(|driver| driver.name != wanted.name)) {
        bail!("no device of this machine is driven by '{}'", idle.name);
    }
    if changed.is_empty() {
        bail!("this machine has no driver to change");
    }
    Ok(changed)
}

/// What can be changed of each module: what the work executes.
fn pools(system: &System, machine: &Machine, port: u16, changed: &[Driver]) -> Result<Vec<Pool>> {
    let mut commands = format!("limits command-ms {COMMAND_MS}");
    for driver in changed {
        commands += &format!("; repeat 2 {}", work(driver.kind, port, 0)?.join(", "));
    }
    let executed = coverage::executed(system, machine, &commands)?;
    let pool = |driver: &Driver| {
        let executed: Vec<u64> = executed.get(&driver.name).into_iter().flatten().copied().collect();
        Pool::new(driver, std::fs::read(&driver.file)?, &executed)
    };
    changed.iter().map(pool).collect()
}
