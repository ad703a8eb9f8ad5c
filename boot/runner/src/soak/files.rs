//! The work is files: they are copied from an ext4 filesystem to a FAT, moved, cut off, removed and
//! summed up, while the drivers of both filesystems and of their disks are ended. Now and then the
//! filesystems are unmounted, and the host's own tools look at them.
//!
//! **The control is the power cut**: the same work on the same images, and QEMU is killed in the
//! middle. The faults that `fsck.fat` finds after crashes must be of the kinds that a power cut
//! leaves.

use super::attacked::{Attacked, Ends, Work};
use super::victim::{self, Victim};
use super::{Options, PATIENCE};
use crate::build::System;
use crate::images::{self, Fat, ext_faults};
use crate::machine::{Disk, Machine, Running};
use crate::output;
use anyhow::{Result, bail};
use ringfence_link::event::{Event, Sha256};
use serde_json::json;
use sha2::Digest;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Lengths of the filesystems in KiB, of the file that is copied, and of the copy after it is cut
/// off, in bytes.
const FAT_KIB: u64 = 40 << 10;
const EXT_KIB: u64 = 16 << 10;
const FILE_BYTES: usize = 700_001;
const CUT_BYTES: usize = 123_457;
/// How many drivers are ended before the host's tools look at the filesystems.
const ROUND: u64 = 25;
/// How long the work goes on before the power is cut, in milliseconds.
const POWER_MS: std::ops::Range<u64> = 20..1200;

/// The kinds of faults that the host's tools have found, with their numbers.
type Kinds = BTreeMap<&'static str, u64>;

/// The result of a soak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The ends of drivers.
    pub ends: Ends,
    /// Commands that were carried out.
    pub commands: u64,
    /// Bytes of copies that were read again, here or by the host's tools.
    pub compared_bytes: u64,
    /// Bytes of files that differed from the written data.
    pub wrong_bytes: u64,
    /// How often the host's tools looked at the filesystems.
    pub looks: u64,
    /// Faults that they found, of the kinds that a power cut leaves.
    pub found: Kinds,
    /// Other faults that they found.
    pub unexpected: Vec<String>,
    /// Number of power cuts.
    pub power_cuts: u64,
    /// Faults that the host's tools found after power cuts, of the same kinds.
    pub found_after_cuts: Kinds,
    /// Frames of memory that were not freed.
    pub leaked_frames: i64,
    /// The reason for an early end, if there was one, with the console's last lines.
    pub failure: Option<String>,
}

impl Summary {
    /// Returns whether nothing was lost.
    pub fn is_good(&self) -> bool {
        self.failure.is_none()
            && self.wrong_bytes == 0
            && self.unexpected.is_empty()
            && self.leaked_frames == 0
            && self.ends.all_are_back()
    }

    fn text(&self) -> String {
        let rows = [
            ("commands about files", self.commands.to_string()),
            ("read again", format!("{} bytes", self.compared_bytes)),
            ("bytes wrong", self.wrong_bytes.to_string()),
            ("memory leaked", format!("{} frames", self.leaked_frames)),
            ("checks by the host's tools", self.looks.to_string()),
            ("  found, as after power cuts", kinds_text(&self.found)),
            ("  found besides", self.unexpected.len().to_string()),
            ("power cuts", self.power_cuts.to_string()),
            ("  found", kinds_text(&self.found_after_cuts)),
        ];
        let besides = self.unexpected.iter().map(|fault| format!("found: {fault}\n"));
        let failure = self.failure.iter().map(|failure| format!("failed: {failure}\n"));
        // A list begins in the next line.
        let row = |(name, value): (&str, String)| match value.starts_with('\n') {
            true => format!("{name}{value}\n"),
            false => format!("{name:<30} {value}\n"),
        };
        self.ends.rows().into_iter().chain(rows).map(row).chain(besides).chain(failure).collect()
    }
}

fn kinds_text(kinds: &Kinds) -> String {
    let each: Vec<String> = kinds.iter().map(|(kind, count)| format!("\n{:<32}{count:>4} {kind}", "")).collect();
    if each.is_empty() { "nothing".into() } else { each.concat() }
}

/// The images of the two filesystems, which the host's tools check.
struct Images {
    fat: Fat,
    ext: PathBuf,
    content: Vec<u8>,
    directory: TempDir,
}

impl Images {
    fn new(random: &mut fastrand::Rng) -> Result<Images> {
        let directory = TempDir::new()?;
        let content: Vec<u8> = (0..FILE_BYTES).map(|_| random.u8(..)).collect();
        let folder = directory.path().join("content");
        std::fs::create_dir(&folder)?;
        std::fs::write(folder.join("big"), &content)?;
        let ext = images::ext(directory.path(), EXT_KIB, "ext4", &folder)?;
        let fat = Fat::new(directory.path(), FAT_KIB, 32)?;
        Ok(Images { fat, ext, content, directory })
    }

    fn machine(&self, options: &Options) -> Machine {
        Machine {
            nic: "none".into(),
            disks: [&self.fat.0, &self.ext].map(|path| Disk::from(path.clone())).into(),
            // Flushed data need not reach the host's disk, which may be slow. The host itself is
            // not cut off.
            volatile_disks: true,
            timeout: Some(options.time + 4 * PATIENCE),
            ..options.machine.clone()
        }
    }

    /// Makes the FAT anew: it is empty then.
    fn clear(&mut self) -> Result<()> {
        self.fat = Fat::new(self.directory.path(), FAT_KIB, 32)?;
        Ok(())
    }

    /// Looks at both filesystems, which must not be mounted. Mends the FAT.
    fn look(&self, found: &mut Kinds, unexpected: &mut Vec<String>) -> Result<()> {
        let (kinds, others) = images::sorted(self.fat.faults()?);
        kinds.into_iter().for_each(|kind| *found.entry(kind).or_default() += 1);
        unexpected.extend(others.into_iter().map(|fault| format!("fsck.fat: {fault}")));
        unexpected.extend(ext_faults(&self.ext)?.into_iter().map(|fault| format!("e2fsck: {fault}")));
        self.fat.mend()
    }
}

/// One command of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    MakeDirectory,
    Copy,
    SumOfCopy,
    Move,
    CutOff,
    SumOfCut,
    SumOfSource,
    Remove,
}

impl Step {
    const ALL: [Step; 8] = [
        Step::MakeDirectory,
        Step::Copy,
        Step::SumOfCopy,
        Step::Move,
        Step::CutOff,
        Step::SumOfCut,
        Step::SumOfSource,
        Step::Remove,
    ];

    fn command(self, number: u64) -> String {
        let directory = format!("/fat/d{number}");
        match self {
            Step::MakeDirectory => format!("mkdir {directory}"),
            Step::Copy => format!("cp /ext/big {directory}/new"),
            Step::SumOfCopy => format!("sha256sum {directory}/new"),
            Step::Move => format!("mv {directory}/new \"{directory}/A File\""),
            Step::CutOff => format!("truncate \"{directory}/A File\" {CUT_BYTES}"),
            Step::SumOfCut => format!("sha256sum \"{directory}/A File\""),
            Step::SumOfSource => "sha256sum /ext/big".to_string(),
            // The directory before this one stays a while, for the host to look at.
            Step::Remove if number == 0 => "ls /fat".to_string(),
            Step::Remove => format!("rm -r /fat/d{}", number - 1),
        }
    }

    /// Returns the part of the file that a sum is about.
    fn summed(self) -> Option<usize> {
        match self {
            Step::SumOfCopy | Step::SumOfSource => Some(FILE_BYTES),
            Step::SumOfCut => Some(CUT_BYTES),
            _ => None,
        }
    }
}

/// The work on the files, and its results.
struct Files {
    sums: [(usize, Sha256); 2],
    /// The number of the directory, and the step that is under way or comes next.
    number: u64,
    step: usize,
    /// Whether no command is to be begun, and whether none is under way.
    stops: bool,
    is_idle: bool,
    commands: u64,
    compared_bytes: u64,
    wrong_bytes: u64,
}

impl Files {
    fn new(content: &[u8]) -> Files {
        let sum = |len: usize| (len, Sha256(sha2::Sha256::digest(&content[..len]).into()));
        Files {
            sums: [sum(FILE_BYTES), sum(CUT_BYTES)],
            number: 0,
            step: 0,
            stops: false,
            is_idle: true,
            commands: 0,
            compared_bytes: 0,
            wrong_bytes: 0,
        }
    }

    fn step(&self) -> Step {
        Step::ALL[self.step]
    }

    fn begin(&mut self, running: &mut Running) -> Result<()> {
        self.is_idle = false;
        running.type_line(&format!("{} &", self.step().command(self.number)))
    }

    /// Returns the files that must be on the FAT now, with their lengths.
    fn present(&self) -> Vec<(String, usize)> {
        let mut present = Vec::new();
        if self.number > 0 {
            present.push((format!("d{}/A File", self.number - 1), CUT_BYTES));
        }
        let own = |name: &str| format!("d{}/{name}", self.number);
        match self.step() {
            Step::MakeDirectory | Step::Copy => {}
            Step::SumOfCopy | Step::Move => present.push((own("new"), FILE_BYTES)),
            Step::CutOff => present.push((own("A File"), FILE_BYTES)),
            Step::SumOfCut | Step::SumOfSource | Step::Remove => present.push((own("A File"), CUT_BYTES)),
        }
        present
    }

    /// Compares the files on the FAT, which must not be mounted, with the data that was written.
    fn compare(&mut self, images: &Images) -> Result<()> {
        for (path, len) in self.present() {
            let (is, should) = (images.fat.get(&path)?, &images.content[..len]);
            self.compared_bytes += len as u64;
            self.wrong_bytes += is.iter().zip(should).filter(|(is, should)| is != should).count() as u64;
            self.wrong_bytes += is.len().abs_diff(len) as u64;
        }
        Ok(())
    }
}

impl Work for Files {
    fn note(&mut self, running: &mut Running, event: &Event) -> Result<bool> {
        match event {
            Event::Data { bytes, sha256 } => {
                let expected = self.sums.iter().find(|(len, _)| Some(*len) == self.step().summed());
                self.compared_bytes += bytes;
                if expected.is_none_or(|(len, sum)| *len as u64 != *bytes || sum != sha256) {
                    self.wrong_bytes += bytes;
                }
            }
            Event::Command { line, error: None } if !self.is_idle && *line == self.step().command(self.number) => {
                self.commands += 1;
                self.is_idle = true;
                self.step = (self.step + 1) % Step::ALL.len();
                self.number += u64::from(self.step == 0);
                if !self.stops {
                    self.begin(running)?;
                }
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }
}

/// Types a command and waits for its end.
fn command(attacked: &mut Attacked, line: &str) -> Result<()> {
    attacked.running.type_line(line)?;
    let limit = Instant::now() + PATIENCE;
    loop {
        match attacked.next(limit, &format!("the end of '{line}'"))? {
            Some(Event::Command { line: ended, .. }) if ended == line => return Ok(()),
            _ => {}
        }
    }
}

fn mount(attacked: &mut Attacked) -> Result<()> {
    command(attacked, "mount disk0 /fat")?;
    command(attacked, "mount disk1 /ext -o ro")
}

/// Ends drivers until `end`. After each round the host's tools look at the filesystems.
fn rounds(
    attacked: &mut Attacked,
    victims: &[Victim],
    (images, files): (&Images, &mut Files),
    (end, random): (Instant, &mut fastrand::Rng),
    summary: &mut Summary,
) -> Result<()> {
    let before = attacked.free_frames()?;
    while Instant::now() < end {
        mount(attacked)?;
        files.stops = false;
        files.begin(&mut attacked.running)?;
        attacked.attack(victims, (end, ROUND), random, files)?;
        attacked.check_kinds(victims, files)?;
        files.stops = true;
        attacked.wait(files, "the last command to end", |files| files.is_idle)?;
        // Both drivers must be there to be unloaded.
        command(attacked, "ls /fat")?;
        command(attacked, "umount /fat")?;
        command(attacked, "umount /ext")?;
        summary.looks += 1;
        files.compare(images)?;
        images.look(&mut summary.found, &mut summary.unexpected)?;
        if !summary.unexpected.is_empty() {
            bail!("a filesystem is damaged");
        }
    }
    summary.leaked_frames = before - attacked.free_frames()?;
    Ok(())
}

/// Does the work, and cuts the power in the middle.
fn cut_power(
    system: &System,
    options: &Options,
    images: &mut Images,
    random: &mut fastrand::Rng,
    summary: &mut Summary,
) -> Result<()> {
    images.clear()?;
    let mut attacked = Attacked::new(images.machine(options).start(system)?)?;
    mount(&mut attacked)?;
    let mut files = Files::new(&images.content);
    files.begin(&mut attacked.running)?;
    let end = Instant::now() + Duration::from_millis(random.u64(POWER_MS));
    attacked.go_on_until(end, &mut files)?;
    drop(attacked);
    summary.power_cuts += 1;
    images.look(&mut summary.found_after_cuts, &mut summary.unexpected)
}

/// Runs the work for the given time while drivers are ended, then cuts the power `power_cuts`
/// times, and prints the result.
pub fn run(system: &System, options: &Options, power_cuts: u64) -> Result<Summary> {
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut images = Images::new(&mut random)?;
    let mut machine = images.machine(options);
    if machine.hba == "none" {
        bail!("the work of a soak with files is on disks: --hba must not be none");
    }
    output::complain("soak: finding out what the work executes");
    let all: Vec<String> = Step::ALL.iter().map(|step| step.command(0)).collect();
    let work = format!("mount disk0 /fat; mount disk1 /ext -o ro; {}; rm -r /fat/d0; sync", all.join("; "));
    // A reload would put the drivers on probation, and the first fault would take it back.
    machine.contents.kind = Some(options.kind);
    let victims = victim::of(system, &machine, &work)?;
    images.fat.mend()?;

    let mut attacked = Attacked::new(machine.start(system)?)?;
    let mut files = Files::new(&images.content);
    let mut summary = Summary::default();
    let end = Instant::now() + options.time;
    let done = rounds(&mut attacked, &victims, (&images, &mut files), (end, &mut random), &mut summary);
    if let Err(error) = done {
        summary.failure = Some(attacked.with_recent(&error));
    }
    summary.ends = attacked.ends();
    (summary.commands, summary.compared_bytes, summary.wrong_bytes) =
        (files.commands, files.compared_bytes, files.wrong_bytes);
    drop(attacked);
    while summary.failure.is_none() && summary.power_cuts < power_cuts {
        if let Err(error) = cut_power(system, options, &mut images, &mut random, &mut summary) {
            summary.failure = Some(format!("after a power cut: {error:#}"));
        }
    }
    let ends = &summary.ends;
    if options.json {
        let json = json!({
            "crashes": ends.crashes, "restarts": ends.restarts, "restart_us_median": ends.restart_us.0,
            "restart_us_longest": ends.restart_us.1, "commands": summary.commands,
            "compared_bytes": summary.compared_bytes, "wrong_bytes": summary.wrong_bytes, "looks": summary.looks,
            "found": summary.found, "unexpected": summary.unexpected, "power_cuts": summary.power_cuts,
            "found_after_cuts": summary.found_after_cuts, "leaked_frames": summary.leaked_frames,
            "failure": summary.failure,
        });
        output::line(format_args!("{json}"));
    } else {
        output::text(format_args!("{}", summary.text()));
    }
    Ok(summary)
}
