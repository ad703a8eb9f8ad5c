//! `cargo run -- record NAME`: records a driver's run, to repeat it in a test on the host
//! (`ringfence_sdk::fake::replay`).

use crate::build::{self, System};
use crate::drivers;
use crate::machine::{End, Machine};
use crate::output;
use anyhow::{Context, Result, bail};
use ringfence_abi::manifest::Kind;
use ringfence_link::event::Event;
use std::path::{Path, PathBuf};

/// The settings of a recording.
pub struct Options {
    /// The module: a driver of this project in Rust, or a folder with one.
    pub name: String,
    /// Where to write the recording.
    pub file: Option<PathBuf>,
    /// The shell commands that the driver is recorded under, if not those for its kind.
    pub exec: Option<String>,
    /// QEMU's name of the device, if not the module's first ID in the list of known devices.
    pub device: Option<String>,
    /// The machine.
    pub machine: Machine,
}

/// How often the driver is asked for a part of its recording: more often than there are parts.
const PARTS: usize = 60;

/// Records the driver, and writes the file.
pub fn run(system: &System, options: &Options) -> Result<()> {
    let (text, name) = record(system, options)?;
    let upcalls = text.lines().filter(|line| *line == "init" || line.starts_with("poll ")).count();
    let file = options.file.clone().unwrap_or_else(|| Path::new(&name).with_extension("recording"));
    std::fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    let end = if text.ends_with("# full\n") { "; the driver's memory was full, and the rest is missing" } else { "" };
    output::line(format_args!("{}: {upcalls} upcalls, {} KiB{end}", file.display(), text.len().div_ceil(1024)));
    Ok(())
}

/// Records the driver. Returns the recording, and the driver's name.
pub fn record(system: &System, options: &Options) -> Result<(String, String)> {
    if !options.machine.iommu {
        bail!("without an IOMMU the device's addresses differ from run to run, and no test can repeat the run");
    }
    let module = build::recording(&options.name)?;
    let name = module.name;
    let mut machine = options.machine.clone();
    machine.contents.modules.push(module.packed);
    let driver = drivers::find(system, &machine, &name)?;
    let exec = match driver.kind {
        Kind::Nic => {
            machine.nic = driver.device(options.device.as_deref())?.to_string();
            "ping 10.0.2.2 -c 3"
        }
        Kind::Scsi | Kind::Block => {
            machine.hba = driver.device(options.device.as_deref())?.to_string();
            machine.scratch = true;
            // A disk of the user's may be read-only.
            if machine.disks.is_empty() { "blkcheck disk0 0 8 1" } else { "blkread disk0 0 8" }
        }
        Kind::Fs | Kind::Other => {
            bail!("{name} drives neither a network card nor a disk, and a recording has their queues")
        }
    };
    let exec = options.exec.as_deref().unwrap_or(exec);
    machine.contents.exec = Some(format!("{exec}; repeat {PARTS} tell {name} recording"));
    let run = machine.run(system, |_| ())?;
    if run.end != End::Done {
        bail!("the run to record failed ({}):\n{}", run.end.description(), run.text());
    }
    let parts = run.events.iter().filter_map(|event| match event {
        Event::Answer { name: of, text, .. } if *of == name => Some(&**text),
        _ => None,
    });
    let text: String = parts.collect();
    if text.is_empty() {
        bail!("{name} has recorded nothing:\n{}", run.text());
    }
    Ok((format!("{}\n", text.trim()), name))
}
