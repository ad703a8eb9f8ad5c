//! A boot in which the kernel tries changed modules, one after the other.

use super::files::{self, Files};
use super::pool::Mutant;
use super::{COMMAND_MS, Outcome, capture, qmp, report, work};
use crate::build::System;
use crate::drivers::Driver;
use crate::machine::{End, Machine, Running, Said};
use anyhow::{Context, Result};
use ringfence_abi::manifest::Kind;
use ringfence_link::event::Event;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest time without output. A trial has time limits of its own, all of them shorter.
const SILENCE: Duration = Duration::from_secs(20);

/// Name of the capture of the guest's frames.
const CAPTURE: &str = "sent.pcap";
/// Name of the socket on which QEMU answers questions.
const SOCKET: &str = "qmp";

/// A boot that tries changes one after the other, until all are tried or the kernel is dead.
pub struct Boot {
    running: Option<Running>,
    checksum: Option<u64>,
    free: Option<u64>,
    /// The message of the kernel's panic.
    panic: Option<String>,
    /// The lines that the console printed since the last trial.
    seen: Vec<String>,
    directory: TempDir,
    /// Number of frames of length 0 that were sent so far.
    empty_frames: usize,
}

/// The settings that all boots of a campaign share.
pub struct Setting<'a> {
    /// The system.
    pub system: &'a System,
    /// The machine.
    pub machine: &'a Machine,
    /// The disks of filesystems, if drivers of such are changed.
    pub files: Option<&'a Files>,
    /// Port of a TCP echo server on the host.
    pub port: u16,
    /// Ring of the changed modules.
    pub ring: u8,
    /// The drivers that the machine loads.
    pub drivers: &'a [Driver],
}

/// Returns the command that tries a change.
fn command(setting: &Setting, mutant: &Mutant) -> Result<String> {
    let ring = setting.ring;
    let work = work(mutant.offers, &mutant.driver, setting.port, mutant.number)?.join(" | ");
    Ok(format!("trial {} {} {:#x} {ring} {work}", mutant.driver, mutant.patch(), mutant.site.offset))
}

impl Boot {
    /// Boots a machine to try `mutants`.
    pub fn start(setting: &Setting, mutants: &[Mutant]) -> Result<Boot> {
        let mut script = format!("limits command-ms {COMMAND_MS}; limits transmit-ms 250");
        let has_network = setting.drivers.iter().any(|driver| driver.kind == Kind::Nic);
        script += if has_network { "; ip" } else { "" };
        let mut stopped: Vec<&str> = setting.drivers.iter().map(|driver| &*driver.module).collect();
        if let Some(files) = setting.files {
            files.renew()?;
            script += &format!("; {}", files::MOUNT);
            stopped.extend(["fat", "ext"]);
        }
        for driver in stopped {
            script += &format!("; policy {driver} stop");
        }
        script += "; integrity";
        for mutant in mutants {
            script += &format!("; {}", command(setting, mutant)?);
        }
        let mut machine = setting.machine.clone();
        machine.contents.exec = Some(script);
        let directory = TempDir::new()?;
        if has_network {
            machine.extra.extend(capture::arguments(&directory.path().join(CAPTURE)));
        }
        machine.extra.extend(qmp::arguments(&directory.path().join(SOCKET)));
        Ok(Boot {
            directory,
            running: Some(machine.start(setting.system)?),
            checksum: None,
            free: None,
            panic: None,
            seen: Vec::new(),
            empty_frames: 0,
        })
    }

    /// Waits for the outcome of the next change, which is `mutant`.
    pub fn next(&mut self, setting: &Setting, mutant: &Mutant) -> Result<Outcome> {
        let mut outcome = Outcome {
            number: mutant.number,
            module: mutant.module.clone(),
            ring: setting.ring,
            change: mutant.kind.name().to_string(),
            offset: mutant.site.offset,
            before: mutant.site.text(&mutant.site.bytes),
            after: mutant.site.text(&mutant.bytes),
            command: command(setting, mutant)?,
            outcome: report::KERNEL_DEATH.to_string(),
            why: String::new(),
            restored: false,
            restore_us: None,
            host_stopped: false,
            damage: Vec::new(),
            stray: 0,
            kernel_intact: false,
            fell_silent: false,
        };
        loop {
            let Some(said) = self.said(&mut outcome)? else {
                self.note_end(&mut outcome)?;
                return Ok(outcome);
            };
            let trial = match said {
                Said::Event(Event::Integrity { checksum, .. }) => {
                    self.checksum = Some(checksum);
                    continue;
                }
                Said::Event(Event::Panic { message }) => {
                    self.panic.get_or_insert(message.into_owned());
                    continue;
                }
                Said::Event(Event::Trial(trial)) => trial,
                Said::Event(Event::Command { error: Some(error), .. }) => {
                    self.seen.push(format!("error: {error}"));
                    continue;
                }
                Said::Event(_) => continue,
                Said::Line(line) => {
                    self.seen.push(line);
                    continue;
                }
            };
            outcome.outcome = report::outcome(trial.activated, &trial.kind).to_string();
            outcome.why = trial.why.into_owned();
            outcome.restored = trial.not_restored.is_none();
            outcome.restore_us = trial.restore_us;
            outcome.stray = trial.stray;
            if let Some(why) = trial.not_restored {
                outcome.why += &format!(" [not restored: {why}]");
            }
            let free = *self.free.get_or_insert(trial.free);
            outcome.kernel_intact = self.checksum == Some(trial.checksum) && free == trial.free;
            if !outcome.kernel_intact {
                outcome.why += &format!(" [checksum {:016x}, {} frames free, not {free}]", trial.checksum, trial.free);
            }
            if let Some(files) = setting.files.filter(|_| mutant.offers == Kind::Fs && outcome.restored) {
                outcome.note_damage(files.damage(&mutant.driver, mutant.number)?);
            }
            self.seen.clear();
            return Ok(outcome);
        }
    }

    /// Returns the next line or event; `None` if the machine has ended or stays silent. Meanwhile,
    /// if an empty frame has stopped QEMU's network, sets it going again.
    fn said(&mut self, outcome: &mut Outcome) -> Result<Option<Said>> {
        const LOOK_AGAIN: Duration = Duration::from_secs(1);
        let start = Instant::now();
        while start.elapsed() < SILENCE {
            let asked = Instant::now();
            let running = self.running.as_mut().context("the kernel is dead")?;
            match running.next_within(LOOK_AGAIN) {
                // The machine has ended.
                None if asked.elapsed() < LOOK_AGAIN => return Ok(None),
                None => {
                    let sent = std::fs::read(self.directory.path().join(CAPTURE)).unwrap_or_default();
                    let empty = capture::empty_frames(&sent);
                    if empty > self.empty_frames && qmp::pause_twice(&self.directory.path().join(SOCKET)) {
                        self.empty_frames = empty;
                        outcome.host_stopped = true;
                    }
                }
                said => return Ok(said),
            }
        }
        Ok(None)
    }

    /// Records how a machine ended that gave no outcome: the kernel's panic or the last line of the
    /// console, and the place of the CPU if the machine fell silent.
    fn note_end(&mut self, outcome: &mut Outcome) -> Result<()> {
        let panic = self.panic.take().map(|message| format!("kernel panic: {message}"));
        let said = panic.or(self.seen.last().cloned()).unwrap_or_default();
        let place = qmp::place(&self.directory.path().join(SOCKET));
        let end = self.running.take().context("the kernel is dead")?.finish_within(Duration::from_secs(1))?;
        outcome.fell_silent = end == End::TimeLimit;
        outcome.why = match end {
            End::TimeLimit => format!("silent for {} s, {place}; {said}", SILENCE.as_secs()),
            end => format!("{}; {said}", end.description()),
        };
        Ok(())
    }
}
