//! `cargo run -- campaign`: changes the machine code of drivers, one instruction at a time, puts each changed driver to
//! work, and looks what became of the driver, of the work, and of the kernel.
//!
//! The host makes the changes, from a seed, at places that the work really executes; the kernel's `trial` command carries
//! one out. A thousand run in one boot, unless the kernel dies: then the next boot goes on with the change after that.
//!
//! * [`capture`]: whether the host's network still takes frames
//! * [`coverage`]: which instructions the work executes
//! * [`mutate`]: changes of one instruction
//! * [`qmp`]: what QEMU itself is asked: where a machine is that says no more
//! * [`report`]: the table, for the terminal and as a page

mod capture;
pub(crate) mod coverage;
pub(crate) mod mutate;
mod qmp;
pub mod report;

use crate::build::System;
use crate::echo;
use crate::machine::{End, Machine, Running, empty_disk};
use anyhow::{Context, Result, bail};
use mutate::{Kind, Site};
use object::{Object, ObjectSegment};
use ringfence_core::stack_segment;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What to do.
pub struct Options {
    /// Modules to change.
    pub modules: Vec<String>,
    /// How many changes in all.
    pub mutants: usize,
    /// Where the random numbers begin.
    pub seed: u64,
    /// How many of the first changes to leave out: to come back to one of them.
    pub skip: usize,
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
    /// One word: see [`report::OUTCOMES`].
    pub outcome: String,
    /// The first line of the fault's report, or what failed.
    pub why: String,
    /// Whether the good module did the work afterwards.
    pub restored: bool,
    /// From the end of the changed module until the good one was in its place, in microseconds.
    pub restore_us: u64,
    /// Whether it sent a frame of no length, after which QEMU's network takes no more until QEMU was paused: no driver can mend
    /// that, so the runner did.
    pub host_stopped: bool,
    /// Frames that were written to though nobody had them: by the device, if the module was in ring 1.
    pub stray: u64,
    /// Whether the kernel lived, and nothing of it that must not change had changed.
    pub kernel_intact: bool,
}

impl Outcome {
    /// Whether it hurt nothing but its driver, and that was made good.
    pub fn is_good(&self) -> bool {
        self.kernel_intact && self.restored
    }
}

/// What the kernel's `trial` prints.
#[derive(Deserialize)]
struct Trial {
    activated: bool,
    kind: String,
    why: String,
    restored: bool,
    restored_why: String,
    restore_us: u64,
    checksum: String,
    free: u64,
    stray: u64,
}

/// One changed instruction.
struct Mutant {
    module: String,
    kind: Kind,
    site: Site,
    bytes: Vec<u8>,
    file_offset: u64,
}

/// Longest time between two lines of the console: a trial has its own limits, all of them shorter.
const SILENCE: Duration = Duration::from_secs(20);
/// Changes that one boot tries at most: its commands are in its ramdisk.
const PER_BOOT: usize = 1000;
/// Longest time that a SCSI command of a changed driver may take, in milliseconds. The good one has more.
const COMMAND_MS: u64 = 500;
/// The blocks that are written and read back.
const BLOCKS: u64 = 48;

/// Tries all changes and prints the table. Whether no kernel was hurt and every service restored.
pub fn run(system: &System, options: &Options) -> Result<bool> {
    let start = Instant::now();
    let outcomes = outcomes(system, options)?;
    eprintln!("campaign: {} changes in {} s", outcomes.len(), start.elapsed().as_secs());
    let all = report::keep(&outcomes, options)?;
    if !options.json {
        print!("{}", report::text(&all));
    }
    Ok(outcomes.iter().all(Outcome::is_good))
}

/// Tries all changes.
pub fn outcomes(system: &System, options: &Options) -> Result<Vec<Outcome>> {
    let server = echo::Server::start()?;
    // What is flushed need not reach the host's disk, which may take as long as it likes.
    let disk = empty_disk()?;
    let machine = Machine { disks: vec![disk.path().to_path_buf()], volatile_disks: true, ..Machine::default() };
    eprintln!("campaign: finding out what the work executes");
    let mutants = mutants(system, &machine, server.port(), options)?;
    let mutants = mutants.get(options.skip..).context("all changes are left out")?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    let start = Instant::now();
    while outcomes.len() < mutants.len() {
        let rest = &mutants[outcomes.len()..];
        let rest = &rest[..rest.len().min(PER_BOOT)];
        let mut boot = Boot::start(system, &machine, server.port(), options.ring, rest)?;
        for mutant in rest {
            let outcome = boot.next(mutant, options.ring)?;
            // What is not restored would spoil what comes after.
            let goes_on = outcome.restored;
            if options.json {
                println!("{}", serde_json::to_string(&outcome)?);
            }
            outcomes.push(outcome);
            progress(&outcomes, mutants.len(), start);
            if !goes_on {
                break;
            }
        }
    }
    Ok(outcomes)
}

/// A line that says how far it is: over and over on a terminal, now and then in a log.
fn progress(outcomes: &[Outcome], of: usize, start: Instant) {
    let count = outcomes.len();
    let (end, due) = if std::io::stderr().is_terminal() { ("\r", true) } else { ("\n", count.is_multiple_of(100)) };
    if due || count == of {
        let dead = outcomes.iter().filter(|outcome| outcome.outcome == report::KERNEL_DEATH).count();
        let left = start.elapsed().as_secs_f64() / count as f64 * (of - count) as f64;
        eprint!(
            "campaign: {count} of {of}, {dead} dead kernels, {left:.0} s to go    {}",
            if count == of { "\n" } else { end }
        );
    }
}

/// The commands that put a module to work, those that check with the good one that the work was right, and those that the
/// good one must do in the end. QEMU's e1000 receives nothing for a second after some mistakes, and its network drops what it was
/// sent when it was stopped: the last are patient, and TCP, which sends again, comes first.
fn work(module: &str, port: u16, number: usize) -> Result<[String; 3]> {
    let place = 64 + number as u64 % 1000 * BLOCKS;
    Ok(match module {
        "e1000" => [
            format!("ping 10.0.2.2 -c 1 -W 300, tcpecho 10.0.2.2 {port} 8192 -W 600"),
            "help help".to_string(),
            format!("tcpecho 10.0.2.2 {port} 1024 -W 8000, ping 10.0.2.2 -c 1 -W 5000"),
        ],
        "virtio-scsi" => [
            format!("blkcheck disk0 {place} {BLOCKS} {number}"),
            format!("blkverify disk0 {place} {BLOCKS} {number}"),
            format!("limits command-ms 30000, blkcheck disk0 {place} 8 {number}, limits command-ms {COMMAND_MS}"),
        ],
        other => bail!("there is no work for the module '{other}': only for e1000 and virtio-scsi"),
    })
}

/// Makes the changes.
fn mutants(system: &System, machine: &Machine, port: u16, options: &Options) -> Result<Vec<Mutant>> {
    let mut commands = format!("ip; limits command-ms {COMMAND_MS}");
    for module in &options.modules {
        commands += &format!("; repeat 2 {}", work(module, port, 0)?.join(", "));
    }
    let executed = coverage::executed(system, machine, &commands)?;
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut pools = Vec::new();
    for name in &options.modules {
        let module = system.modules.iter().find(|module| module.name == *name);
        let module = module.with_context(|| format!("there is no module '{name}'"))?;
        let file = std::fs::read(&module.packed)?;
        let elf = object::File::parse(&*file)?;
        let segments: Vec<(u64, u64, u64)> =
            elf.segments().map(|segment| (segment.address(), segment.file_range().1, segment.file_range().0)).collect();
        let in_file = |offset: u64| {
            let (address, _, at) =
                segments.iter().find(|(address, len, _)| (*address..address + len).contains(&offset))?;
            Some(at + (offset - address))
        };
        const LONGEST: usize = 15;
        let bytes = |offset: u64| {
            let at = in_file(offset).unwrap_or(0) as usize;
            file[at..(at + LONGEST).min(file.len())].to_vec()
        };
        let offsets: Vec<u64> =
            executed.get(name).into_iter().flatten().copied().filter(|offset| in_file(*offset).is_some()).collect();
        if offsets.is_empty() {
            bail!("QEMU does not say what code of {name} it translated: is it built without a disassembler?");
        }
        eprintln!("campaign: {name}: {} instructions executed", offsets.len());
        let sites = mutate::sites(bytes, &offsets);
        let sites: Vec<(Site, u64)> = sites
            .into_iter()
            .filter_map(|site| Some((in_file(site.offset)?, site)))
            .map(|(at, site)| (site, at))
            .collect();
        pools.push((name.clone(), file, sites));
    }
    let mut mutants = Vec::new();
    let mut known = HashSet::new();
    let mut in_vain = 0;
    while mutants.len() < options.mutants {
        let (name, file, sites) = &pools[mutants.len() % pools.len()];
        // First the kind, then a place: most kinds fit few instructions, and have fewer changes than are wanted.
        let kind = Kind::ALL[random.usize(..Kind::ALL.len())];
        let found = (0..1000).find_map(|_| {
            let (site, file_offset) = &sites[random.usize(..sites.len())];
            let bytes = mutate::mutate(site, kind, &mut random)?;
            let is_new = !known.contains(&(name, *file_offset, bytes.clone()));
            // The kernel does not load what loads SS.
            (is_new && !loads_ss(file, *file_offset as usize, &bytes)).then_some((site, *file_offset, bytes))
        });
        let Some((site, file_offset, bytes)) = found else {
            in_vain += 1;
            if in_vain > 100 * Kind::ALL.len() {
                bail!("there are no more than some {} different changes", mutants.len());
            }
            continue;
        };
        in_vain = 0;
        known.insert((name, file_offset, bytes.clone()));
        mutants.push(Mutant { module: name.clone(), kind, site: site.clone(), bytes, file_offset });
    }
    Ok(mutants)
}

/// Whether `bytes` at `at` of a file make a load of SS of what is there, which QEMU takes for more than it is.
fn loads_ss(file: &[u8], at: usize, bytes: &[u8]) -> bool {
    let before = file[..at].last();
    let after = file.get(at + bytes.len());
    let around: Vec<u8> = before.into_iter().chain(bytes).chain(after).copied().collect();
    stack_segment::loads(&around).any(|at| at + 1 < around.len())
}

/// A boot that tries changes until they are all tried, or the kernel is dead.
struct Boot {
    running: Option<Running>,
    checksum: Option<String>,
    free: Option<u64>,
    seen: Vec<String>,
    directory: TempDir,
    /// Frames of no length that were sent so far.
    empty_frames: usize,
}

/// What the guest sent.
const CAPTURE: &str = "sent.pcap";
/// Where QEMU answers questions.
const SOCKET: &str = "qmp";

impl Boot {
    fn start(system: &System, machine: &Machine, port: u16, ring: u8, mutants: &[Mutant]) -> Result<Boot> {
        let mut script = format!(
            "ip; limits command-ms {COMMAND_MS}; limits transmit-ms 250; policy e1000 stop; policy virtio-scsi stop; integrity"
        );
        for (number, mutant) in mutants.iter().enumerate() {
            let work = work(&mutant.module, port, number)?.join(" | ");
            let hex: String = mutant.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            script += &format!(
                "; trial {} {:x}:{hex} {:#x} {ring} {work}",
                mutant.module, mutant.file_offset, mutant.site.offset
            );
        }
        let mut machine = machine.clone();
        machine.contents.exec = Some(script);
        let directory = TempDir::new()?;
        machine.extra.extend(capture::arguments(&directory.path().join(CAPTURE)));
        machine.extra.extend(qmp::arguments(&directory.path().join(SOCKET)));
        Ok(Boot {
            directory,
            running: Some(machine.start(system)?),
            checksum: None,
            free: None,
            seen: Vec::new(),
            empty_frames: 0,
        })
    }

    /// What became of the next change, which is `mutant`.
    fn next(&mut self, mutant: &Mutant, ring: u8) -> Result<Outcome> {
        let mut outcome = Outcome {
            module: mutant.module.clone(),
            ring,
            change: mutant.kind.name().to_string(),
            offset: mutant.site.offset,
            before: mutate::text(&mutant.site.bytes, mutant.site.offset),
            after: mutate::text(&mutant.bytes, mutant.site.offset),
            outcome: report::KERNEL_DEATH.to_string(),
            why: String::new(),
            restored: false,
            restore_us: 0,
            host_stopped: false,
            stray: 0,
            kernel_intact: false,
        };
        loop {
            let Some(line) = self.line(&mut outcome)? else {
                outcome.why = self.last_words();
                return Ok(outcome);
            };
            if let Some((sum, _)) = line.split_once("  text, read-only data") {
                self.checksum = Some(sum.to_string());
            }
            let Ok(trial) = serde_json::from_str::<Trial>(&line) else {
                self.seen.push(line);
                continue;
            };
            outcome.outcome = report::outcome(trial.activated, &trial.kind).to_string();
            outcome.why = trial.why;
            outcome.restored = trial.restored;
            outcome.restore_us = trial.restore_us;
            outcome.stray = trial.stray;
            if !trial.restored {
                outcome.why += &format!(" [not restored: {}]", trial.restored_why);
            }
            let free = *self.free.get_or_insert(trial.free);
            outcome.kernel_intact = self.checksum.as_ref() == Some(&trial.checksum) && free == trial.free;
            if !outcome.kernel_intact {
                outcome.why += &format!(" [checksum {}, {} frames free, not {free}]", trial.checksum, trial.free);
            }
            self.seen.clear();
            return Ok(outcome);
        }
    }

    /// The next line of the console; `None` if none comes. QEMU's network is set going again meanwhile, if it was stopped.
    fn line(&mut self, outcome: &mut Outcome) -> Result<Option<String>> {
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        let start = Instant::now();
        while start.elapsed() < SILENCE {
            let asked = Instant::now();
            let running = self.running.as_mut().context("the kernel is dead")?;
            match running.line_within(LOOK_AGAIN) {
                // It has ended.
                None if asked.elapsed() < LOOK_AGAIN => return Ok(None),
                None => {
                    let sent = std::fs::read(self.directory.path().join(CAPTURE)).unwrap_or_default();
                    let empty = capture::empty_frames(&sent);
                    if empty > self.empty_frames && qmp::pause_twice(&self.directory.path().join(SOCKET)) {
                        self.empty_frames = empty;
                        outcome.host_stopped = true;
                    }
                }
                line => return Ok(line),
            }
        }
        Ok(None)
    }

    /// What a kernel that says no more said last: the line of its panic, if there was one.
    fn last_words(&mut self) -> String {
        let panic = self.seen.iter().find(|line| line.contains("panic: ") || line.contains("boot failed"));
        let said = panic.or(self.seen.last()).cloned().unwrap_or_default();
        let place = qmp::place(&self.directory.path().join(SOCKET));
        let end = self.running.take().map(|running| running.finish_within(Duration::from_secs(1)));
        match end {
            Some(Ok(End::TimeLimit)) => format!("silent for {} s, {place}; {said}", SILENCE.as_secs()),
            _ => said,
        }
    }
}
