//! The command line, and the machine that it describes.

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use ringfence::machine::{BOARD, Disk, Http, Machine, Opened, Protocol, can_have_iommu};
use ringfence::ramdisk::Contents;
use ringfence::{build, images, keys, new, output};
use ringfence_abi::manifest::DomainKind;
use ringfence_core::evidence::hex;
use ringfence_core::module::Module;
use std::ffi::{OsStr, OsString};
use std::io::{ErrorKind, IsTerminal};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Builds Ringfence and boots it in QEMU with its console on the terminal.
///
/// Leave with 'shutdown', Ctrl-D, or Ctrl-] X.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Verb>,
    #[command(flatten)]
    pub run: RunArguments,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Write a hybrid ISO image that boots from BIOS and UEFI firmware.
    Iso {
        /// Where to write the image.
        #[arg(default_value = "ringfence.iso")]
        image: PathBuf,
        /// Shell commands to run and end, separated by ';'.
        #[arg(long, value_name = "CMD; CMD")]
        exec: Option<String>,
    },
    /// Measure the cost of protection, in both rings.
    Bench {
        /// Measure only rows whose names begin like this, and rows derived from them.
        #[arg(default_value = "")]
        name: String,
        /// Folder for a page with tables and charts.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Measure the same work by Debian's stock kernel beside Ringfence, in alternating boots.
        /// The kernel's package is downloaded with apt-get.
        #[arg(long, value_name = "SYSTEM", value_parser = ["linux"])]
        peer: Option<String>,
        /// Count the instructions that operations execute, and model their cost on hardware, as
        /// ranges from published measurements.
        #[arg(long, conflicts_with = "peer")]
        model: bool,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Change the machine code of drivers, one instruction at a time, and report the effect on the
    /// drivers and on the kernel. Exit status 0 only if no kernel was harmed and every service was
    /// restored.
    Campaign {
        /// Modules to change. Without any, the drivers of the network card and of the SCSI adapter.
        #[arg(long, value_delimiter = ',')]
        modules: Vec<String>,
        /// Number of changes.
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
        mutants: u32,
        /// Seed of the random numbers.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Try only the change with this number, for example to repeat it.
        #[arg(long, value_name = "NUMBER")]
        only: Option<u32>,
        /// Ring of the changed modules. Ring 0 is the control group, in which kernels may
        /// die; it succeeds once all changes were tried.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
        ring: u8,
        /// Kind of domain of the drivers that have a build for it; others stay paged. A name like
        /// e1000.32 in --modules stands for --kind segmented.
        #[arg(long, value_name = "KIND", default_value = "paged", value_parser = parse_kind)]
        kind: DomainKind,
        /// Folder for the results, and for a page with a chart of both rings' results.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Run a TCP stream and disk copies while their drivers are ended at random moments in random
    /// ways. Exit status 0 only if nothing was lost.
    Soak {
        /// Duration in minutes.
        #[arg(long, value_name = "M", default_value_t = 5.0, allow_negative_numbers = true)]
        minutes: f64,
        /// Seed of the random numbers.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Kind of domain of the drivers that have a build for it; others stay paged.
        #[arg(long, value_name = "KIND", default_value = "paged", value_parser = parse_kind)]
        kind: DomainKind,
        /// Work on files of an ext4 and a FAT filesystem, instead of a stream and disks.
        #[arg(long)]
        files: bool,
        /// How often to cut the power afterwards, to compare.
        #[arg(long, value_name = "N", default_value_t = 20, requires = "files")]
        power_cuts: u64,
        /// Print the summary as a JSON object.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Generate machine code, run it in ring 1, and compare the kernel's report of its end with
    /// QEMU's log. Exit status 0 only if they agree.
    Snippets {
        /// Number of pieces of code.
        #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        /// Seed of the random numbers.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// The kind of domain that runs them: paged or segmented.
        #[arg(long, default_value_t = DomainKind::Paged, value_parser = parse_kind)]
        kind: DomainKind,
    },
    /// Only build.
    Build {
        /// Folder for the kernel, the ramdisk and the loader, for other bootloaders.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Test a driver against the rules for all drivers of its class, in each ring. Exit status 0 if
    /// it passes all tests.
    Conform {
        /// The module, or a folder with its sources, which is built.
        name: String,
        /// QEMU's name of the driver's device, if Ringfence does not know it.
        #[arg(long, value_name = "DEVICE")]
        device: Option<String>,
        /// Run only this test.
        #[arg(long, value_name = "TEST")]
        only: Option<String>,
        /// Test only in this ring.
        #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
        ring: Option<u8>,
        /// Print one JSON object per test.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Print where the instructions of an operation go, by function, kernel and drivers apart.
    Profile {
        /// The row of `bench`, such as nic/tx or scsi/read4k/depth32.
        name: String,
        /// The driver's ring.
        #[arg(long, value_name = "0|1", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
        ring: u8,
        /// The kind of domain that the driver has in ring 1.
        #[arg(long, value_name = "KIND", default_value = "paged", value_parser = parse_kind)]
        kind: DomainKind,
        /// The number of operations that one crossing hands over, if the row has several.
        #[arg(long, value_name = "COUNT")]
        batch: Option<u16>,
        /// Count an inlined function as a part of the function that it was inlined into.
        #[arg(long)]
        outermost: bool,
        /// Print one JSON object per function.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Record the run of a driver of a network card or of disks while it serves a machine: the
    /// requests to the driver, its reads from its device, and its writes to its device. A test on
    /// the host repeats the recording (ringfence_sdk::fake::replay).
    Record {
        /// The module: a driver of this project in Rust, or a folder with one.
        name: String,
        /// Where to write the recording [default: NAME.recording].
        file: Option<PathBuf>,
        /// Shell commands that the driver is to be recorded under, separated by ';' [default: a
        /// ping, or blocks that are written and read].
        #[arg(long, value_name = "CMD; CMD")]
        exec: Option<String>,
        /// QEMU's name of the driver's device, if Ringfence does not know it.
        #[arg(long, value_name = "DEVICE")]
        device: Option<String>,
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Make the sources of a driver that builds and loads, with a test on the host.
    New {
        /// The name of a driver in the project's drivers/, or the path of a folder outside, with a
        /// '/'.
        name: String,
        /// The device or service that the driver offers.
        #[arg(long, value_enum, default_value = "other")]
        kind: new::Kind,
        /// The PCI function that it drives, as lspci shows it.
        #[arg(long, value_name = "VENDOR:DEVICE", value_parser = new::parse_pci)]
        pci: Option<(u16, u16)>,
    },
    /// Build one module and bring it into a system that runs: it is loaded, or takes the place of
    /// its running driver, whose users go on. If it does not start or soon faults, the build before
    /// it comes back. Exit status 0 if the module serves.
    Push {
        /// The module, or a folder with its sources.
        name: String,
        /// Parameters for a module that is not loaded yet.
        #[arg(value_name = "KEY=VALUE")]
        parameters: Vec<String>,
        /// Build the driver's own code without optimization, and have it stand for gdb, which must
        /// be there, at its first instruction.
        #[arg(long)]
        debug: bool,
        /// The system, if several run.
        #[arg(long, value_name = "SYSTEM")]
        system: Option<String>,
        /// Print the outcome as a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Push a module into a system that runs at each save of its sources, and show the compiler's
    /// errors, the driver's log, its faults and restarts.
    Dev {
        /// The module, or a folder with its sources.
        name: String,
        /// Trace the module's drivers too: a build that takes another's place from its first upcall
        /// on.
        #[arg(long)]
        trace: bool,
        /// The system, if several run.
        #[arg(long, value_name = "SYSTEM")]
        system: Option<String>,
    },
    /// Collect the traces of drivers of a system that runs, and show them, or write them to files
    /// for other tools. Exit status 1 if events were lost because they came too fast.
    Trace {
        /// The drivers.
        #[arg(required = true)]
        names: Vec<String>,
        /// Write a trace for ui.perfetto.dev.
        #[arg(long, value_name = "FILE.pftrace")]
        out: Option<PathBuf>,
        /// Write the frames and the SCSI commands to a capture for Wireshark.
        #[arg(long, value_name = "FILE.pcapng")]
        pcap: Option<PathBuf>,
        /// How long to trace [default: until this is interrupted, or the system ends].
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
        seconds: Option<u64>,
        /// The system, if several run.
        #[arg(long, value_name = "SYSTEM")]
        system: Option<String>,
        /// Print one JSON object per event.
        #[arg(long, conflicts_with_all = ["out", "pcap"])]
        json: bool,
    },
    /// Debug drivers of a system that runs with gdb. Only the driver stands that meets a
    /// breakpoint; everything else runs on. A driver that faults stands at the faulting
    /// instruction, until it is told to go on.
    Gdb {
        /// The driver to look at first. Of all drivers, only this driver stands when it faults.
        name: Option<String>,
        /// The system, if several run.
        #[arg(long, value_name = "SYSTEM")]
        system: Option<String>,
        /// Pass the bytes of a gdb that runs on, for its command 'target remote | ...'.
        #[arg(long)]
        pipe: bool,
        /// Print the commands that connect gdb, and do not start it.
        #[arg(long, conflicts_with = "pipe")]
        print: bool,
        /// Look at a driver that was ended: a file that 'faults NUMBER --core FILE' has written.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "pipe", "print"])]
        core: Option<PathBuf>,
        /// Further arguments for gdb.
        #[arg(last = true, value_name = "ARGUMENTS")]
        arguments: Vec<OsString>,
    },
    /// Exercises for a course (docs/labs.md). Without a number, list them. Exit status 0 if the
    /// folder passes, 1 if not.
    Lab {
        /// The exercise.
        number: Option<u8>,
        /// The folder with your work [default: ../lab-NUMBER].
        folder: Option<PathBuf>,
        /// Make the folder to begin with.
        #[arg(long, requires = "number")]
        start: bool,
        /// Run one of the tests for drivers of a class, in labs that have them ('conform').
        #[arg(long, value_name = "TEST")]
        only: Option<String>,
    },
    /// Make a key that signs modules, reports and policies, and the public key that checks its
    /// signatures.
    Keygen {
        /// Where to write the secret key; the public one is beside it, and ends in .pub.
        #[arg(default_value = keys::KEY)]
        file: PathBuf,
    },
    /// Sign a module, a report, a policy or a record. The signature is a line behind the content.
    Sign {
        /// The file.
        file: PathBuf,
        /// The secret key.
        #[arg(long, value_name = "FILE", default_value = keys::KEY)]
        key: PathBuf,
    },
    /// Gather evidence about a module that another machine can check: its code, random damage and
    /// input, the tests of its class, a campaign of changes; and write it to a signed report. Exit
    /// status 0 if it withstood all.
    ///
    /// For a file: check its signatures and print its statements. Exit status 0 if a key that is
    /// named has signed it; without one, if all signatures fit.
    Verify {
        /// The module, or a folder with its sources; or a file: a module, a report, a policy, a
        /// record.
        #[arg(value_name = "NAME|FILE")]
        what: String,
        /// A public key that is to have signed the file (repeatable).
        #[arg(long, value_name = "FILE.pub")]
        key: Vec<PathBuf>,
        /// The secret key that signs the report.
        #[arg(long, value_name = "FILE", default_value = keys::KEY)]
        sign: PathBuf,
        /// Number of changes of the campaign.
        #[arg(long, default_value_t = 300)]
        changes: u32,
        /// Number of random inputs.
        #[arg(long, default_value_t = 500)]
        inputs: u32,
        /// Seed of the random numbers.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// QEMU's name of the driver's device, if Ringfence does not know it.
        #[arg(long, value_name = "DEVICE")]
        device: Option<String>,
        /// Where to write the report [default: NAME.report].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        machine: MachineArguments,
    },
    /// Check modules as the kernel will. Exit status 0 if it takes all of them, 1 if not.
    Check {
        /// Module files, or folders with the sources of modules, which are built.
        #[arg(required = true, value_name = "FILE|FOLDER")]
        files: Vec<PathBuf>,
        /// Print one JSON object per file.
        #[arg(long)]
        json: bool,
    },
    /// Run clippy over kernel, loader and modules, with warnings denied.
    Lint {
        /// Folders with the sources of modules, which are checked instead.
        #[arg(value_name = "FOLDER")]
        folders: Vec<PathBuf>,
    },
}

/// The machine that is booted, the same options for all subcommands.
#[derive(Args)]
pub struct MachineArguments {
    /// Put a module into the ramdisk (repeatable): a file, or a folder with its sources, which is
    /// built. It replaces the project's module of the same name, and chooses its devices first.
    #[arg(long, value_name = "FILE|FOLDER")]
    module: Vec<PathBuf>,
    /// QEMU's name of the network card, or 'none'.
    #[arg(long, value_name = "MODEL", default_value = "e1000")]
    nic: String,
    /// QEMU's name of the SCSI adapter, or virtio-blk-pci or isa-ide for block devices, or 'none'.
    #[arg(long, value_name = "MODEL", default_value = "virtio-scsi-pci")]
    hba: String,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    memory: u32,
    /// QEMU's name of the mainboard: 'pc' or 'q35', followed by a comma and options if needed.
    #[arg(long, value_name = "BOARD", default_value = BOARD)]
    machine: String,
    /// Whether an IOMMU (Intel VT-d) fences devices: each device reaches only the memory that its
    /// driver was given for it [default: on with q35, the only board that can have one].
    #[arg(long, value_name = "ON", value_parser = ["on", "off"])]
    iommu: Option<String>,
    /// QEMU's name of the CPU [default: its best one].
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// Number of CPUs. Ringfence uses one.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    smp: u32,
    /// QEMU's accelerator.
    #[arg(long, default_value = "tcg", value_parser = ["tcg", "kvm"])]
    accel: String,
    /// The network behind the card, as QEMU's -netdev takes it, such as
    /// tap,ifname=tap0,script=no,downscript=no.
    #[arg(long, value_name = "NETDEV", default_value = "user")]
    network: String,
    /// Write the frames that the network card sends and receives to a file, as tcpdump does.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// One more argument for QEMU (repeatable): --qemu-arg=-d --qemu-arg=int.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<OsString>,
}

#[derive(Args)]
pub struct RunArguments {
    /// Run shell commands, print their output, and power off. Exit status: 0 if all succeeded, 1 if
    /// one failed, 2 after a kernel panic or triple fault, 3 after the time limit, 4 if the run
    /// could not start or QEMU itself failed.
    #[arg(long, value_name = "CMD; CMD")]
    pub exec: Option<String>,
    /// Do not load drivers at boot.
    #[arg(long)]
    no_autoload: bool,
    /// Kind of domain of modules that prefer none: paged or segmented. Without this option the
    /// policy decides, and without a policy they are paged.
    #[arg(long, value_name = "KIND", value_parser = parse_kind)]
    kind: Option<DomainKind>,
    /// Attach a disk image or a block device (repeatable); ',ro' makes it read-only. An image is
    /// opened in its own format, and refused if it names other files: ',image' opens it
    /// nevertheless, ',raw' opens it as raw blocks. Without this option there is an empty disk of
    /// 64 MiB, which is removed when the run ends.
    #[arg(long, value_name = "FILE[,ro][,raw|,image]")]
    disk: Vec<OsString>,
    /// Configuration of this machine (repeatable). A text file with shell commands: settings that
    /// are carried out at boot. A disk image with a filesystem: it is mounted at /etc, and 'save'
    /// and the record of modules are written to it; it is made if there is none. A folder: its
    /// settings, policy.toml, keys/*.pub, machines/*.pub, reports/*.report, records/*.record and
    /// machine.key go into the ramdisk.
    #[arg(long, value_name = "FILE|FOLDER")]
    etc: Vec<PathBuf>,
    /// Serve a page that shows the system at work, at this port of the host's loopback, or at the
    /// address before it. The console shows its URL, with a token for its buttons.
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = parse_http)]
    http: Option<(Ipv4Addr, u16)>,
    /// Forward a TCP port of this host to a port of the guest (repeatable): 7 echoes, 9 discards,
    /// 19 sends characters.
    #[arg(long, value_name = "HOST:GUEST", value_parser = parse_forward)]
    forward: Vec<(u16, u16)>,
    /// Let time count instructions: one instruction takes one nanosecond.
    #[arg(long)]
    icount: bool,
    /// Wait for gdb on port 1234.
    #[arg(long)]
    gdb: bool,
    /// Longest run in seconds.
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Machine-readable output: one JSON object per line. Needs --exec.
    #[arg(long, requires = "exec")]
    pub json: bool,
    #[command(flatten)]
    machine: MachineArguments,
}

fn parse_kind(text: &str) -> Result<DomainKind, String> {
    DomainKind::named(text).ok_or_else(|| "there are paged and segmented".to_string())
}

fn parse_forward(text: &str) -> Result<(u16, u16), String> {
    let (host, guest) = text.split_once(':').ok_or("it must be HOST:GUEST")?;
    let port = |text: &str| match text.parse() {
        Ok(port @ 1..=u16::MAX) => Ok(port),
        _ => Err(format!("'{text}' is not a port")),
    };
    Ok((port(host)?, port(guest)?))
}

fn parse_http(text: &str) -> Result<(Ipv4Addr, u16), String> {
    let (address, port) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
    let address = address.parse().map_err(|_| format!("'{address}' is no IPv4 address"))?;
    match port.parse() {
        Ok(port @ 1..=u16::MAX) => Ok((address, port)),
        _ => Err(format!("'{port}' is not a port")),
    }
}

/// Fails if the file's name is not the module's, because the kernel would refuse the file. A file
/// that is no module is left to the kernel, which reports the reason.
fn ask_name(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let module = Module::parse(&bytes).ok();
    match module.as_ref().map(|module| module.manifest.name()) {
        Some(name) if path.file_stem() != Some(OsStr::new(name)) => {
            bail!("{}: the module in this file is called '{name}': call the file {name}.rfm", path.display())
        }
        _ => Ok(()),
    }
}

impl MachineArguments {
    /// Returns the machine, with an empty disk of its own.
    pub fn machine(self) -> Result<Machine> {
        let mut modules = Vec::new();
        for path in self.module {
            if build::is_folder(&path) {
                modules.push(build::module(&path)?.packed);
                continue;
            }
            if !path.is_file() {
                bail!("there is no file {}", path.display());
            }
            ask_name(&path)?;
            modules.push(path);
        }
        let board = self.machine;
        let iommu = self.iommu.map_or_else(|| can_have_iommu(&board), |word| word == "on");
        let names = [("--nic", &self.nic), ("--hba", &self.hba), ("--network", &self.network), ("--machine", &board)];
        for (option, value) in names.into_iter().chain(self.cpu.iter().map(|cpu| ("--cpu", cpu))) {
            if value.is_empty() {
                bail!("{option} needs a name");
            }
            if value.split(',').any(|word| word == "help" || word == "?") {
                let question = if matches!(option, "--nic" | "--hba") { "-device" } else { &option[1..] };
                bail!("QEMU itself lists what {option} can be: 'qemu-system-x86_64 {question} {value}'");
            }
        }
        if iommu && !can_have_iommu(&board) {
            bail!("--iommu on needs --machine q35: QEMU's {board} cannot have an Intel IOMMU");
        }
        Ok(Machine {
            contents: Contents { modules, autoload: true, ..Contents::default() },
            scratch: true,
            nic: self.nic,
            network: Some(self.network),
            hba: self.hba,
            memory: self.memory,
            board,
            iommu,
            cpu: self.cpu,
            smp: self.smp,
            accel: self.accel,
            pcap: self.pcap,
            extra: self.qemu_arg,
            ..Machine::default()
        })
    }
}

/// Adds the text file with settings, the disk for `/etc`, or the folder that the user has named.
fn add_etc(path: PathBuf, files: &mut Vec<(String, PathBuf)>, disk: &mut Option<Disk>) -> Result<()> {
    const KIB: u64 = 1440;
    if path.is_dir() {
        return add_folder(&path, files);
    }
    if !path.exists() {
        images::fat(&path, KIB, 12, 1, "ETC")?;
        output::complain(&format!("{} is made, with an empty filesystem", path.display()));
    }
    // No filesystem begins with text: the first bytes of one are code, or zeros.
    let is_text = path.is_file()
        && std::fs::read(&path).is_ok_and(|bytes| std::str::from_utf8(&bytes).is_ok_and(|text| !text.contains('\0')));
    if is_text {
        files.push(("settings".into(), path));
    } else if disk.replace(Disk::from(path)).is_some() {
        bail!("--etc names two disk images");
    }
    Ok(())
}

/// Adds the files of a folder that the kernel looks for in the ramdisk.
fn add_folder(folder: &Path, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let mut unknown = Vec::new();
    for (within, names, ending) in [
        ("", &["settings", "policy.toml", "machine.key"][..], ""),
        ("keys/", &[], ".pub"),
        ("machines/", &[], ".pub"),
        ("reports/", &[], ".report"),
        ("records/", &[], ".record"),
    ] {
        let place = folder.join(within);
        let entries = match std::fs::read_dir(&place) {
            Err(error) if error.kind() == ErrorKind::NotFound && !within.is_empty() => continue,
            entries => entries.with_context(|| format!("cannot read {}", place.display()))?,
        };
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
        for path in paths.into_iter().filter(|path| path.is_file()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_known = names.contains(&name.as_str()) || !ending.is_empty() && name.ends_with(ending);
            match is_known {
                true => files.push((format!("{within}{name}"), path)),
                false => unknown.push(format!("{within}{name}")),
            }
        }
    }
    files.sort();
    if !unknown.is_empty() {
        output::complain(&format!("{}: not used: {}", folder.display(), unknown.join(", ")));
    }
    Ok(())
}

impl RunArguments {
    /// Returns the machine. `columns` is the width of the terminal, if the runner is on one.
    pub fn machine(self, columns: Option<u16>) -> Result<Machine> {
        let parsed: Vec<(Disk, Opened)> = self.disk.iter().map(|disk| Disk::parse(disk)).collect();
        let opened = parsed.iter().map(|(disk, opened)| (disk.path.clone(), *opened)).collect();
        let disks: Vec<Disk> = parsed.into_iter().map(|(disk, _)| disk).collect();
        for Disk { path, .. } in &disks {
            if !path.exists() {
                bail!("there is no file {}", path.display());
            }
        }
        let machine = self.machine.machine()?;
        let (mut files, mut etc) = (Vec::new(), None);
        for path in self.etc {
            add_etc(path, &mut files, &mut etc)?;
        }
        // The record on the disk is signed by the machine.
        if etc.is_some() && files.iter().all(|(name, _)| name != "machine.key") {
            files.push(("machine.key".into(), keys::of_machine()?));
        }
        let http = match self.http {
            Some((address, port)) => Some(Http { address, port, token: hex(&keys::random::<16>()?) }),
            None => None,
        };
        let ask_columns = columns.is_some() && self.exec.is_none() && std::io::stdin().is_terminal();
        Ok(Machine {
            contents: Contents {
                exec: self.exec,
                etc_files: files,
                autoload: !self.no_autoload,
                kind: self.kind,
                columns,
                ask_columns,
                ..machine.contents
            },
            etc,
            disks,
            opened,
            http,
            forwards: self.forward.into_iter().map(|(host, guest)| (Protocol::Tcp, host, guest)).collect(),
            icount: self.icount,
            gdb: self.gdb,
            timeout: self.timeout.map(Duration::from_secs),
            ..machine
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_makes_sense() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ports_are_numbers_that_can_be_ports() {
        assert_eq!(parse_forward("7777:7"), Ok((7777, 7)));
        for text in ["", "7", ":", "0:7", "7:0", "65536:7", "-1:7", "7:7:7", "a:b"] {
            assert!(parse_forward(text).is_err(), "{text}");
        }
    }
}
