//! `cargo run`: builds Ringfence and boots it in QEMU.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use ringfence::machine::{DISK_BYTES, Machine, Protocol};
use ringfence::ramdisk::Contents;
use ringfence::{bench, build, campaign, gdb, iso, ramdisk, soak, target};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Builds Ringfence and boots it in QEMU with its console on the terminal.
///
/// Leave with 'shutdown' or Ctrl-A X.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Verb {
    /// Write a hybrid ISO image that boots from BIOS firmware.
    Iso {
        /// Where to write it.
        #[arg(default_value = "ringfence.iso")]
        image: PathBuf,
        /// Shell commands to run and end, separated by ';'.
        #[arg(long, value_name = "CMD; CMD")]
        exec: Option<String>,
    },
    /// Measure what protection costs, in both rings.
    Bench {
        /// Only rows whose names begin so, and what is derived from them.
        #[arg(default_value = "")]
        name: String,
        /// Folder for a page with tables and charts.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Change the machine code of drivers, one instruction at a time, and see what becomes of them and of the kernel.
    /// Exit status 0 only if no kernel was hurt and every service restored.
    Campaign {
        /// Modules to change.
        #[arg(long, value_delimiter = ',', default_value = "e1000,virtio-scsi")]
        modules: Vec<String>,
        /// How many changes.
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
        mutants: u32,
        /// Where the random numbers begin.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Try only this one: to come back to it.
        #[arg(long, value_name = "NUMBER")]
        only: Option<usize>,
        /// Ring of the changed modules; 0 is the control group, in which kernels die, and which succeeds when all were tried.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
        ring: u8,
        /// Folder for the results, and a page with a chart of both rings' results there.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Let a TCP stream and disk copies go on while their drivers are ended at random moments in random ways. Exit status
    /// 0 only if nothing was lost.
    Soak {
        /// How long.
        #[arg(long, value_name = "M", default_value_t = 5.0, allow_negative_numbers = true)]
        minutes: f64,
        /// Where the random numbers begin.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Print the summary as a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Only build.
    Build {
        /// Folder for the kernel, the ramdisk and the loader, for other bootloaders.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Run clippy over kernel, loader and modules, with warnings denied.
    Lint,
}

#[derive(Args)]
struct RunArguments {
    /// Run shell commands, print their output, and power off. Exit status: 0 if all succeeded, 1 if one failed, 2 after
    /// a kernel panic or triple fault, 3 after the time limit, 4 if it did not come to a run.
    #[arg(long, value_name = "CMD; CMD")]
    exec: Option<String>,
    /// Do not load drivers at boot.
    #[arg(long)]
    no_autoload: bool,
    /// Put a module file into the ramdisk (repeatable).
    #[arg(long, value_name = "FILE")]
    module: Vec<PathBuf>,
    /// Attach a disk image (repeatable). Without one there is a scratch disk of 64 MiB.
    #[arg(long, value_name = "FILE")]
    disk: Vec<PathBuf>,
    /// QEMU's name of the network card, or 'none'.
    #[arg(long, value_name = "MODEL", default_value = "e1000")]
    nic: String,
    /// QEMU's name of the SCSI adapter, or 'none'.
    #[arg(long, value_name = "MODEL", default_value = "virtio-scsi-pci")]
    hba: String,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    memory: u32,
    /// Forward a TCP port of this host to one of the guest (repeatable): 7 echoes, 9 discards, 19 sends characters.
    #[arg(long, value_name = "HOST:GUEST", value_parser = parse_forward)]
    forward: Vec<(u16, u16)>,
    /// QEMU's accelerator.
    #[arg(long, default_value = "tcg", value_parser = ["tcg", "kvm"])]
    accel: String,
    /// Count instructions: one a nanosecond.
    #[arg(long)]
    icount: bool,
    /// Wait for gdb on port 1234.
    #[arg(long)]
    gdb: bool,
    /// Longest run in seconds.
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Machine-readable output: one JSON object a line. Needs --exec.
    #[arg(long, requires = "exec")]
    json: bool,
}

fn parse_forward(text: &str) -> Result<(u16, u16), String> {
    let (host, guest) = text.split_once(':').ok_or("it must be HOST:GUEST")?;
    let port = |text: &str| text.parse().map_err(|_| format!("'{text}' is not a port"));
    Ok((port(host)?, port(guest)?))
}

/// Exit status when it did not come to a run.
const MISTAKE: u8 = 4;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are no mistakes. Nothing can be done where it cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(MISTAKE) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("ringfence: {error:#}");
            ExitCode::from(MISTAKE)
        }
    }
}

/// Writes what a bootloader needs to `out`.
fn parts(system: &build::System, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let contents = Contents { autoload: true, ..Contents::default() };
    let parts = [
        ("kernel", std::fs::read(&system.packed_kernel)?),
        ("ramdisk.tar", ramdisk::pack(system, &contents)?),
        ("loader", std::fs::read(&system.loader)?),
    ];
    for (name, bytes) in parts {
        let path = out.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        None => boot(cli.run),
        Some(Verb::Build { out }) => {
            let system = build::system(false)?;
            if let Some(out) = out {
                parts(&system, &out)?;
            }
            Ok(0)
        }
        Some(Verb::Lint) => build::lint().map(|()| 0),
        Some(Verb::Bench { name, out, json }) => {
            let system = build::system(true)?;
            bench::run(&system, &bench::Options { name, json, out })?;
            Ok(0)
        }
        Some(Verb::Campaign { modules, mutants, seed, only, ring, out, json }) => {
            let system = build::system(true)?;
            let options = campaign::Options { modules, mutants: mutants as usize, seed, only, ring, out, json };
            Ok(u8::from(!campaign::run(&system, &options)?))
        }
        Some(Verb::Soak { minutes, seed, json }) => {
            if !(0.0..=10_000.0).contains(&minutes) {
                bail!("--minutes must be 0 to 10000, not {minutes}");
            }
            let system = build::system(true)?;
            let options = soak::Options { time: Duration::from_secs_f64(minutes * 60.0), seed, json };
            Ok(u8::from(!soak::run(&system, &options)?.is_good()))
        }
        Some(Verb::Iso { image, exec }) => {
            let system = build::system(false)?;
            let contents = Contents { exec, autoload: true, ..Contents::default() };
            iso::make(&system, &contents, &image)?;
            println!("{}", image.display());
            Ok(0)
        }
    }
}

fn boot(arguments: RunArguments) -> Result<u8> {
    for path in arguments.module.iter().chain(&arguments.disk) {
        if !path.is_file() {
            bail!("there is no file {}", path.display());
        }
    }
    let system = build::system(arguments.exec.is_some())?;
    let mut disks = arguments.disk;
    if disks.is_empty() && arguments.hba != "none" {
        disks.push(scratch_disk()?);
    }
    let machine = Machine {
        contents: Contents {
            modules: arguments.module,
            exec: arguments.exec.clone(),
            autoload: !arguments.no_autoload,
            columns: terminal_size::terminal_size().map(|(width, _)| width.0),
        },
        disks,
        nic: arguments.nic,
        hba: arguments.hba,
        memory: arguments.memory,
        forwards: arguments.forward.into_iter().map(|(host, guest)| (Protocol::Tcp, host, guest)).collect(),
        accel: arguments.accel,
        icount: arguments.icount,
        gdb: arguments.gdb,
        timeout: arguments.timeout.map(Duration::from_secs),
        ..Machine::default()
    };
    if machine.gdb {
        explain_gdb(&system)?;
    }
    if arguments.exec.is_none() {
        let end = machine.run_interactively(&system)?;
        if end.status() != 0 {
            eprintln!("ringfence: {}", end.description());
        }
        return Ok(end.status());
    }
    let show = |line: &str| match arguments.json {
        true => println!("{}", json!({ "console": line })),
        false => println!("{line}"),
    };
    let run = machine.run(&system, show)?;
    if arguments.json {
        println!("{}", json!({ "end": run.end.description(), "status": run.end.status() }));
    } else if run.end.status() > 1 {
        eprintln!("ringfence: {}", run.end.description());
    }
    Ok(run.end.status())
}

/// A disk that is there when no other is, and whose content nobody relies on.
fn scratch_disk() -> Result<PathBuf> {
    let path = target().join("scratch.img");
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot make the scratch disk {}", path.display()))?;
    if file.metadata()?.len() != DISK_BYTES {
        file.set_len(DISK_BYTES)?;
    }
    Ok(path)
}

/// Prints the command that connects gdb, with the symbols of the kernel and, once they are loaded, of the modules.
fn explain_gdb(system: &build::System) -> Result<()> {
    let path = target().join("gdb.script");
    build::write_if_changed(&path, &gdb::script(system))?;
    println!("gdb -x {}", path.display());
    println!("then, once a module is loaded: rf-symbols {}/NAME.debug SLOT", target().display());
    Ok(())
}
