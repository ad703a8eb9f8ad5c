//! A QEMU machine: its parts, and QEMU's command line for them.
//!
//! * [`qemu`]: the installed QEMU and its abilities
//! * [`disk`]: disk images
//! * [`files`]: the files of one run
//! * [`running`]: a machine whose console is connected to a pipe
//! * [`terminal`]: a machine whose console is the terminal
//! * [`end`]: how a run ended; [`errors`]: QEMU's standard error

pub mod disk;
pub mod end;
mod errors;
mod files;
mod link;
pub mod monitor;
pub mod qemu;
pub mod running;
mod terminal;

pub use disk::{Disk, Opened};
pub use end::{End, FINAL_LINE};
pub use files::DISK_BYTES;
pub use link::{SESSION, Told, connect};
pub use monitor::{Bus, Monitor};
pub use running::{Run, Running, Said};

use crate::build::System;
use crate::ramdisk::{self, Contents};
use crate::source::Sources;
use anyhow::{Context, Result, bail};
use disk::in_option;
use files::RunFiles;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// QEMU's name of the default mainboard.
pub const BOARD: &str = "q35";

/// Returns whether QEMU's mainboard `board` (with options after a comma) can have an Intel IOMMU.
pub fn can_have_iommu(board: &str) -> bool {
    board.split(',').next() == Some(BOARD)
}

/// QEMU's name of a channel for ATA disks at fixed ports.
const IDE: &str = "isa-ide";

/// The port on which QEMU waits for gdb.
pub const GDB_PORT: u16 = 1234;

/// How the machine boots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Boot {
    /// QEMU starts the loader itself (PVH).
    #[default]
    Direct,
    /// Firmware and GRUB, from this ISO image.
    Iso(PathBuf),
}

/// Finds a TCP port of this host that is free at the moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Another system than Ringfence, to compare with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// The kernel.
    pub kernel: PathBuf,
    /// Its first filesystem.
    pub initrd: PathBuf,
    /// Its options.
    pub command_line: String,
}

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The contents of the ramdisk.
    pub contents: Contents,
    /// How the machine boots.
    pub boot: Boot,
    /// The system that QEMU starts in place of Ringfence.
    pub other: Option<Other>,
    /// QEMU's name of the mainboard.
    pub board: String,
    /// Whether an IOMMU (Intel VT-d) fences devices. Only the mainboard `q35` can have one.
    pub iommu: bool,
    /// QEMU's name of the CPU; QEMU's best CPU if `None`.
    pub cpu: Option<String>,
    /// Number of CPUs.
    pub smp: u32,
    /// Disks.
    pub disks: Vec<Disk>,
    /// How some of the disks are opened; the others are opened with [`Opened::Careful`].
    pub opened: Vec<(PathBuf, Opened)>,
    /// A file with rules by which all disks report errors, for QEMU's `blkdebug`, if they do.
    pub disk_errors: Option<PathBuf>,
    /// Whether the run gets an empty disk if it has no other.
    pub scratch: bool,
    /// A disk behind all others, which is mounted at `/etc` at boot.
    pub etc: Option<Disk>,
    /// Whether data that the guest flushes may stay in the host's memory.
    pub volatile_disks: bool,
    /// QEMU's name of the network card, or `none`.
    pub nic: String,
    /// QEMU's name of the SCSI adapter, or of a block device (one for each disk), or `none`.
    pub hba: String,
    /// Memory in MiB.
    pub memory: u32,
    /// Forwarded ports: protocol, port of the host, port of the guest.
    pub forwards: Vec<(Protocol, u16, u16)>,
    /// Where the host serves the guest's page.
    pub http: Option<Http>,
    /// The network that the card is connected to, as QEMU's `-netdev` takes it; QEMU's user network
    /// if `None`.
    pub network: Option<String>,
    /// The file for the frames that the network card sends and receives (libpcap's format).
    pub pcap: Option<PathBuf>,
    /// QEMU's accelerator.
    pub accel: String,
    /// Whether one instruction takes one nanosecond, so that time counts instructions.
    pub icount: bool,
    /// Whether QEMU waits for gdb.
    pub gdb: bool,
    /// Longest time for a run.
    pub timeout: Option<Duration>,
    /// More arguments for QEMU.
    pub extra: Vec<OsString>,
}

/// The protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where the host serves the guest's page.
#[derive(Debug, Clone)]
pub struct Http {
    /// The host's address.
    pub address: Ipv4Addr,
    /// The host's port.
    pub port: u16,
    /// The token that a request must have to do something.
    pub token: String,
}

impl Http {
    /// The guest's port.
    const GUEST: u16 = 80;

    /// Returns the kernel's option: the guest's port, the address and port that a browser connects
    /// to, and the token.
    fn option(&self) -> String {
        format!("{} {}:{} {}", Http::GUEST, self.address, self.port, self.token)
    }
}

impl Default for Machine {
    fn default() -> Machine {
        Machine {
            contents: Contents { autoload: true, ..Contents::default() },
            boot: Boot::Direct,
            other: None,
            board: BOARD.to_string(),
            iommu: true,
            cpu: None,
            smp: 1,
            disks: Vec::new(),
            disk_errors: None,
            opened: Vec::new(),
            scratch: false,
            etc: None,
            volatile_disks: false,
            nic: "e1000".to_string(),
            hba: "virtio-scsi-pci".to_string(),
            memory: 64,
            forwards: Vec::new(),
            http: None,
            network: None,
            pcap: None,
            accel: "tcg".to_string(),
            icount: false,
            gdb: false,
            timeout: None,
            extra: Vec::new(),
        }
    }
}

/// Makes an empty disk, which is removed when the returned file is dropped.
pub fn empty_disk() -> Result<NamedTempFile> {
    let disk = NamedTempFile::new().context("cannot make a disk")?;
    disk.as_file().set_len(DISK_BYTES)?;
    Ok(disk)
}

impl Machine {
    /// Returns the source lines of all modules that the machine can load.
    fn sources(&self, system: &System, files: &RunFiles) -> Sources {
        let own = system.modules.iter().map(|module| (module.name.clone(), module.debug.clone()));
        // The runner puts the debug information of the modules that it builds beside them.
        let with_debug = |path: &PathBuf| Some(path.with_extension("debug")).filter(|debug| debug.is_file());
        let file = |path: &PathBuf| with_debug(path).unwrap_or_else(|| path.clone());
        let others = self.contents.modules.iter().map(|path| (ramdisk::file_name(path), file(path)));
        let all: Vec<(String, PathBuf)> = own.chain(others).collect();
        for (name, debug) in &all {
            // gdb looks for symbols there. Without the link, it has none for the module.
            let _ = std::os::unix::fs::symlink(debug, files.path().join(format!("{name}#0")));
        }
        Sources::new(all, files.path().to_path_buf())
    }

    /// Changes the mainboard, and adds an IOMMU if the mainboard can have one.
    pub fn use_board(&mut self, board: &str) {
        self.board = board.to_string();
        self.iommu = can_have_iommu(board);
    }

    /// Returns QEMU's command line, without the console.
    fn command(&self, system: &System, files: &RunFiles, farewell: qemu::Farewell) -> Result<Command> {
        let mut qemu = qemu::command(farewell);
        // Messages of KVM's own interrupt controllers cannot be remapped.
        let split = if self.iommu && self.accel == "kvm" { ",kernel-irqchip=split" } else { "" };
        qemu.args([
            "-machine",
            &format!("{}{split}", self.board),
            "-accel",
            &self.accel,
            "-no-reboot",
            "-display",
            "none",
            "-vga",
            "none",
        ]);
        // Names the threads, so that the guest's CPU can be told from the others.
        qemu.args(["-name", "ringfence,debug-threads=on"]);
        let best = if self.accel == "kvm" { "host" } else { "max" };
        qemu.args(["-cpu", self.cpu.as_deref().unwrap_or(best), "-smp", &self.smp.to_string()]);
        qemu.args(["-m", &format!("{}M", self.memory), "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        if self.other.is_some() || self.boot == Boot::Direct {
            // The firmware need not look for what else could be booted: it would search the disks.
            qemu.args(["-boot", "strict=on"]);
        }
        match (&self.boot, &self.other) {
            (_, Some(other)) => {
                qemu.arg("-kernel").arg(&other.kernel).arg("-initrd").arg(&other.initrd);
                qemu.args(["-append", &other.command_line]);
            }
            (Boot::Direct, None) => {
                let others = self.disks.len().max(usize::from(self.scratch));
                let contents = Contents {
                    etc: self.etc.as_ref().map(|_| format!("disk{others}")),
                    http: self.http.as_ref().map(Http::option),
                    lines: if self.http.is_some() { self.lines(system, files) } else { Vec::new() },
                    ..self.contents.clone()
                };
                let ramdisk = files.write("ramdisk.tar", &ramdisk::pack(system, &contents)?)?;
                qemu.arg("-kernel").arg(&system.loader).arg("-initrd").arg(ramdisk);
            }
            (Boot::Iso(image), None) => {
                let image = Disk { path: image.clone(), read_only: true };
                qemu.arg("-drive").arg(image.drive("cd0", ",media=cdrom", Opened::Raw, None)?).args(["-boot", "d"]);
                qemu.args(["-device", "ide-cd,drive=cd0"]);
            }
        }
        if self.iommu {
            qemu.args(["-device", "intel-iommu,intremap=on"]);
        }
        self.attach_network(&mut qemu)?;
        self.attach_disks(&mut qemu, files)?;
        if self.icount {
            qemu.args(["-icount", "shift=0,sleep=off"]);
        }
        if self.gdb {
            qemu.args(["-S", "-gdb", &format!("tcp:127.0.0.1:{GDB_PORT}")]);
        }
        qemu.args(&self.extra);
        Ok(qemu)
    }

    /// Returns a device's name and options, so that its accesses go through the IOMMU if there is
    /// one. By default virtio devices bypass it. Options that the user gave are kept.
    fn behind_fence(&self, device: &str) -> String {
        let is_said =
            ["disable-legacy", "disable-modern", "iommu_platform"].iter().any(|option| device.contains(option));
        match self.iommu && device.starts_with("virtio-") && !is_said {
            true => format!("{device},disable-legacy=on,iommu_platform=on"),
            false => device.to_string(),
        }
    }

    /// Returns the tables of the source lines of all modules.
    fn lines(&self, system: &System, files: &RunFiles) -> Vec<(String, Vec<u8>)> {
        let sources = self.sources(system, files);
        sources.names().into_iter().filter_map(|name| Some((name.clone(), sources.table(&name)?))).collect()
    }

    fn attach_network(&self, qemu: &mut Command) -> Result<()> {
        if self.nic == "none" {
            let wanted = [
                (!self.forwards.is_empty(), "--forward"),
                (self.http.is_some(), "--http"),
                (self.pcap.is_some(), "--pcap"),
            ];
            for (wanted, option) in wanted {
                if wanted {
                    bail!("{option} needs a network card, but --nic is none");
                }
            }
            qemu.args(["-nic", "none"]);
            return Ok(());
        }
        let mut network = self.network.clone().unwrap_or_else(|| "user".to_string()) + ",id=net0";
        let forwards = !self.forwards.is_empty() || self.http.is_some();
        if forwards && !network.starts_with("user") {
            bail!(
                "--forward and --http need QEMU's user network, but --network is {}",
                network.trim_end_matches(",id=net0")
            );
        }
        for (protocol, host, guest) in &self.forwards {
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            network += &format!(",hostfwd={protocol}:127.0.0.1:{host}-:{guest}");
        }
        if let Some(Http { address, port, .. }) = &self.http {
            network += &format!(",hostfwd=tcp:{address}:{port}-:{}", Http::GUEST);
        }
        // Where the device has an option for it, interrupts are not delayed by 130 microseconds
        // (QEMU 7.2 has this option, 10.0 does not).
        let model = self.nic.split(',').next().unwrap_or_default();
        let options = if qemu::has_option(model, "mitigation") { ",mitigation=off" } else { "" };
        let nic = self.behind_fence(&self.nic);
        qemu.args(["-netdev", &network, "-device", &format!("{nic},netdev=net0{options}")]);
        if let Some(pcap) = &self.pcap {
            let mut dump = OsString::from("filter-dump,id=pcap0,netdev=net0,file=");
            dump.push(in_option(pcap));
            qemu.arg("-object").arg(dump);
        }
        Ok(())
    }

    fn attach_disks(&self, qemu: &mut Command, files: &RunFiles) -> Result<()> {
        if self.hba == "none" {
            if !self.disks.is_empty() {
                bail!("--disk needs a SCSI adapter, but --hba is none");
            }
            return Ok(());
        }
        let scratch = if self.disks.is_empty() && self.scratch { Some(files.scratch_disk()?.into()) } else { None };
        if self.hba == IDE {
            return self.attach_ide(qemu, scratch.iter().chain(&self.etc));
        }
        let adapter = self.behind_fence(&self.hba);
        // Each block device has exactly one disk, unlike a SCSI adapter.
        let is_block = self.hba.starts_with("virtio-blk");
        if !is_block {
            qemu.args(["-device", &format!("{adapter},id=hba0")]);
        }
        for (index, disk) in self.disks.iter().chain(&scratch).chain(&self.etc).enumerate() {
            self.add_drive(qemu, index, disk)?;
            let device = match is_block {
                true => format!("{adapter},drive=disk{index}"),
                false => format!("scsi-hd,drive=disk{index},bus=hba0.0,scsi-id={index}"),
            };
            qemu.args(["-device", &device]);
        }
        Ok(())
    }

    /// Adds the drive for disk number `index`, without the disk device.
    fn add_drive(&self, qemu: &mut Command, index: usize, disk: &Disk) -> Result<()> {
        // Errors are reported to the guest, even if the host's disk is full. QEMU would stop the
        // machine without a message.
        let cache = if self.volatile_disks { ",cache=unsafe" } else { "" };
        let options = format!(",werror=report,rerror=report{cache}");
        let errors = self.disk_errors.as_deref();
        qemu.arg("-drive").arg(disk.drive(&format!("disk{index}"), &options, self.opened_as(disk), errors)?);
        Ok(())
    }

    /// Attaches each disk to one of the two channels that every PC has. Modern boards have no such
    /// channels of their own, so they are added.
    fn attach_ide<'a>(&'a self, qemu: &mut Command, more: impl Iterator<Item = &'a Disk>) -> Result<()> {
        const CHANNELS: [(&str, &str, u8); 2] = [("0x1f0", "0x3f6", 14), ("0x170", "0x376", 15)];
        let has_own = self.board.starts_with("pc");
        let disks: Vec<&Disk> = self.disks.iter().chain(more).collect();
        if disks.len() > CHANNELS.len() {
            bail!("--hba {IDE} has two channels, each for one --disk");
        }
        for (index, (ports, control, line)) in CHANNELS.into_iter().enumerate() {
            if !has_own {
                let place = format!("iobase={ports},iobase2={control},irq={line}");
                qemu.args(["-device", &format!("{IDE},id=hba{index},{place}")]);
            }
            if let Some(disk) = disks.get(index) {
                self.add_drive(qemu, index, disk)?;
                let bus = if has_own { format!("ide.{index}") } else { format!("hba{index}.0") };
                qemu.args(["-device", &format!("ide-hd,drive=disk{index},bus={bus}")]);
            }
        }
        Ok(())
    }

    fn opened_as(&self, disk: &Disk) -> Opened {
        self.opened.iter().find(|(path, _)| *path == disk.path).map_or(Opened::Careful, |(_, opened)| *opened)
    }

    /// Checks for errors that QEMU would report late and less clearly.
    fn check(&self) -> Result<()> {
        qemu::version()?;
        for argument in &self.extra {
            let words = argument.to_string_lossy();
            let ends = ["-h", "-help", "--help", "-version", "--version"].contains(&words.as_ref());
            if ends || words.split([',', '=']).any(|word| word == "help" || word == "?") {
                bail!("with {words} QEMU says something and ends: run it by itself for that");
            }
        }
        self.disks.iter().try_for_each(|disk| disk.check(self.opened_as(disk)))?;
        for (protocol, host, _) in &self.forwards {
            let address = ("127.0.0.1", *host);
            let tried = match protocol {
                Protocol::Tcp => TcpListener::bind(address).map(|_| ()),
                Protocol::Udp => UdpSocket::bind(address).map(|_| ()),
            };
            tried.with_context(|| format!("port {host} cannot be used"))?;
        }
        if self.gdb {
            TcpListener::bind(("127.0.0.1", GDB_PORT))
                .with_context(|| format!("gdb's port {GDB_PORT} cannot be used"))?;
        }
        if let Some(pcap) = &self.pcap {
            if std::fs::metadata(pcap).is_ok_and(|metadata| !metadata.is_file()) {
                bail!("{} is no file that a capture can be written to", pcap.display());
            }
            // The file keeps its content until QEMU writes to it.
            let open = std::fs::OpenOptions::new().append(true).create(true).open(pcap);
            open.with_context(|| format!("cannot write {}", pcap.display()))?;
        }
        Ok(())
    }

    /// Returns the end of the time limit; `None` if there is no limit or it is beyond the clock's
    /// range.
    fn deadline(&self) -> Option<Instant> {
        self.timeout.and_then(|limit| Instant::now().checked_add(limit))
    }
}

fn start(qemu: &mut Command) -> Result<Child> {
    let name = qemu.get_program().to_string_lossy().into_owned();
    qemu.spawn().with_context(|| format!("cannot start {name}: is it installed? 'make setup' installs it"))
}
