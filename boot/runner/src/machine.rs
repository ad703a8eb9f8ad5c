//! A QEMU machine, and how a run of it ended.
//!
//! **A run is good only if QEMU ended with the one agreed status and the console's last line says so.** A triple fault
//! ends QEMU with status 0, so that status never means success.

use crate::build::System;
use crate::ramdisk::{self, Contents};
use crate::source::Sources;
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::{NamedTempFile, TempDir};

/// QEMU's name, unless `RINGFENCE_QEMU` names another one.
pub const QEMU: &str = "qemu-system-x86_64";

/// The QEMU that is started.
pub fn qemu() -> OsString {
    std::env::var_os("RINGFENCE_QEMU").unwrap_or_else(|| QEMU.into())
}

/// What the kernel writes to take the line that is being typed off the screen.
const ERASED: &str = "\x1b[J";

/// Where gdb connects.
pub const GDB_PORT: u16 = 1234;

/// How the machine boots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Boot {
    /// QEMU starts the loader itself (PVH).
    #[default]
    Direct,
    /// BIOS firmware and GRUB, from this ISO image.
    Iso(PathBuf),
}

/// A TCP port of this host that nobody uses right now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What goes into the ramdisk.
    pub contents: Contents,
    /// How it boots.
    pub boot: Boot,
    /// Disk images.
    pub disks: Vec<PathBuf>,
    /// Whether what the guest flushes may stay in the host's memory.
    pub volatile_disks: bool,
    /// QEMU's name of the network card, or `none`.
    pub nic: String,
    /// QEMU's name of the SCSI adapter, or `none`.
    pub hba: String,
    /// Memory in MiB.
    pub memory: u32,
    /// Ports of the host that lead to ports of the guest: protocol, host, guest.
    pub forwards: Vec<(Protocol, u16, u16)>,
    /// QEMU's accelerator.
    pub accel: String,
    /// One instruction a nanosecond, so that time is a count of instructions.
    pub icount: bool,
    /// Waits for gdb.
    pub gdb: bool,
    /// Longest run.
    pub timeout: Option<Duration>,
    /// More arguments for QEMU.
    pub extra: Vec<OsString>,
}

/// What a forwarded port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine {
            contents: Contents { autoload: true, ..Contents::default() },
            boot: Boot::Direct,
            disks: Vec::new(),
            volatile_disks: false,
            nic: "e1000".to_string(),
            hba: "virtio-scsi-pci".to_string(),
            memory: 64,
            forwards: Vec::new(),
            accel: "tcg".to_string(),
            icount: false,
            gdb: false,
            timeout: None,
            extra: Vec::new(),
        }
    }
}

/// Length of a disk that is there when a person brings none, in bytes.
pub const DISK_BYTES: u64 = 64 << 20;

/// A disk without content, which is gone when what is returned is dropped.
pub fn empty_disk() -> Result<NamedTempFile> {
    let disk = NamedTempFile::new().context("cannot make a disk")?;
    disk.as_file().set_len(DISK_BYTES)?;
    Ok(disk)
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order, and every command succeeded.
    Done,
    /// In order, but a command failed.
    CommandFailed,
    /// The kernel panicked, or the loader could not start it.
    Panic,
    /// Triple fault, or QEMU itself was ended.
    Crash,
    /// QEMU refused to start; it has said why.
    NotStarted,
    /// The time limit passed.
    TimeLimit,
    /// A person left.
    Left,
}

impl End {
    /// The runner's exit status.
    pub fn status(self) -> u8 {
        match self {
            End::Done | End::Left => 0,
            End::CommandFailed => 1,
            End::Panic | End::Crash => 2,
            End::TimeLimit => 3,
            End::NotStarted => 4,
        }
    }

    /// In words for a person.
    pub fn description(self) -> &'static str {
        match self {
            End::Done => "done",
            End::CommandFailed => "a command failed",
            End::Panic => "the kernel panicked",
            End::Crash => "the machine crashed (triple fault?)",
            End::TimeLimit => "the time limit passed",
            End::NotStarted => "QEMU did not start the machine",
            End::Left => "left",
        }
    }
}

/// The last line of a run in which all went well.
pub const FINAL_LINE: &str = "ringfence: done";

/// What a run said.
#[derive(Debug)]
pub struct Run {
    /// How it ended.
    pub end: End,
    /// The console's lines.
    pub lines: Vec<String>,
}

impl Run {
    /// The console as one text.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// A machine that was started, with files that must live as long as it does.
pub struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
    sources: Sources,
    deadline: Option<Instant>,
    _files: TempDir,
}

impl Machine {
    /// QEMU's command line, without the console.
    fn command(&self, system: &System, files: &TempDir) -> Result<Command> {
        let mut qemu = Command::new(qemu());
        qemu.args(["-machine", "pc", "-accel", &self.accel, "-no-reboot", "-display", "none", "-vga", "none"]);
        // So that the guest's CPU is told from other threads.
        qemu.args(["-name", "ringfence,debug-threads=on"]);
        qemu.args(["-cpu", if self.accel == "kvm" { "host" } else { "max" }]);
        qemu.args(["-m", &format!("{}M", self.memory), "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        match &self.boot {
            Boot::Direct => {
                let path = files.path().join("ramdisk.tar");
                std::fs::write(&path, ramdisk::pack(system, &self.contents)?)?;
                qemu.arg("-kernel").arg(&system.loader).arg("-initrd").arg(&path);
            }
            Boot::Iso(image) => {
                qemu.arg("-drive").arg(drive_argument("cd0", image, ",media=cdrom,readonly=on")).args(["-boot", "d"]);
                qemu.args(["-device", "ide-cd,drive=cd0"]);
            }
        }
        if self.nic == "none" {
            if !self.forwards.is_empty() {
                bail!("--forward needs a network card, but --nic is none");
            }
            qemu.args(["-nic", "none"]);
        } else {
            let mut user = "user,id=net0".to_string();
            for (protocol, host, guest) in &self.forwards {
                let protocol = match protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                };
                user += &format!(",hostfwd={protocol}:127.0.0.1:{host}-:{guest}");
            }
            // QEMU's e1000 would hold interrupts back for 130 microseconds.
            let options = if self.nic.starts_with("e1000") && self.nic != "e1000e" { ",mitigation=off" } else { "" };
            qemu.args(["-netdev", &user, "-device", &format!("{},netdev=net0{options}", self.nic)]);
        }
        if self.hba != "none" {
            qemu.args(["-device", &format!("{},id=hba0", self.hba)]);
            for (index, disk) in self.disks.iter().enumerate() {
                let cache = if self.volatile_disks { ",cache=unsafe" } else { "" };
                qemu.arg("-drive").arg(drive_argument(&format!("disk{index}"), disk, cache));
                qemu.args(["-device", &format!("scsi-hd,drive=disk{index},bus=hba0.0,scsi-id={index}")]);
            }
        } else if !self.disks.is_empty() {
            bail!("--disk needs a SCSI adapter, but --hba is none");
        }
        if self.icount {
            qemu.args(["-icount", "shift=0,sleep=off"]);
        }
        if self.gdb {
            qemu.args(["-S", "-gdb", &format!("tcp:127.0.0.1:{GDB_PORT}")]);
        }
        qemu.args(&self.extra);
        Ok(qemu)
    }

    /// Says at once what QEMU would say late and badly.
    fn check(&self) -> Result<()> {
        for disk in &self.disks {
            std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(disk)
                .with_context(|| format!("cannot open the disk image {}", disk.display()))?;
        }
        for (protocol, host, _) in &self.forwards {
            if *protocol == Protocol::Tcp {
                TcpListener::bind(("127.0.0.1", *host)).with_context(|| format!("port {host} cannot be used"))?;
            }
        }
        if self.gdb {
            TcpListener::bind(("127.0.0.1", GDB_PORT))
                .with_context(|| format!("gdb's port {GDB_PORT} cannot be used"))?;
        }
        Ok(())
    }

    /// Boots it with its console on this terminal, until the person or the kernel ends it.
    pub fn run_interactively(&self, system: &System) -> Result<End> {
        self.check()?;
        let files = TempDir::new()?;
        let mut qemu = self.command(system, &files)?;
        // Ctrl-A X leaves; Ctrl-C goes to the guest.
        qemu.args(["-serial", "mon:stdio"]).stdout(Stdio::piped());
        let mut child = start(&mut qemu)?;
        let output = child.stdout.take().context("QEMU has no output")?;
        let sources = Sources::new(system, &self.contents.modules);
        let shown = std::thread::spawn(move || show(output, sources));
        let deadline = self.timeout.map(|limit| Instant::now() + limit);
        loop {
            if let Some(status) = child.try_wait()? {
                // The last of what it said; nothing, if it could not be shown.
                let last = shown.join().unwrap_or_default();
                // A triple fault has that status, too; then nobody has typed Ctrl-A X, or 'quit' at QEMU's monitor.
                let left = status.code() == Some(0) && (last.contains("QEMU: Terminated") || last.contains("(qemu)"));
                return Ok(if left { End::Left } else { end_of(status, true) });
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                child.kill()?;
                child.wait()?;
                return Ok(End::TimeLimit);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Boots it with its console in a pipe.
    pub fn start(&self, system: &System) -> Result<Running> {
        self.check()?;
        let files = TempDir::new()?;
        let mut qemu = self.command(system, &files)?;
        qemu.args(["-serial", "stdio", "-monitor", "none"]);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = start(&mut qemu)?;
        let output = child.stdout.take().context("QEMU has no output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                let line = String::from_utf8_lossy(&bytes);
                // What came before was taken off the screen again.
                let line = line.rsplit(ERASED).next().unwrap_or_default().trim_end_matches(['\r', '\n']).to_string();
                bytes.clear();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let deadline = self.timeout.map(|limit| Instant::now() + limit);
        let sources = Sources::new(system, &self.contents.modules);
        Ok(Running { child, lines, seen: Vec::new(), sources, deadline, _files: files })
    }

    /// Boots it and waits for its end; `show` is called for each line as it comes.
    pub fn run(&self, system: &System, show: impl FnMut(&str)) -> Result<Run> {
        self.start(system)?.finish(show)
    }
}

impl Running {
    /// The next line; `None` when there are no more, or the time limit has passed.
    fn next_line(&mut self) -> Option<String> {
        self.line_until(self.deadline)
    }

    fn line_until(&mut self, deadline: Option<Instant>) -> Option<String> {
        let line = match deadline {
            None => self.lines.recv().ok(),
            Some(deadline) => self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok(),
        }?;
        let line = match self.sources.annotation(&line) {
            Some(annotation) => line + &annotation,
            None => line,
        };
        self.seen.push(line.clone());
        Some(line)
    }

    /// The next line, if it comes within `limit`; `None` otherwise, and when there are no more.
    pub fn line_within(&mut self, limit: Duration) -> Option<String> {
        let limit = Instant::now() + limit;
        let line = self.line_until(Some(self.deadline.map_or(limit, |deadline| deadline.min(limit))));
        // Who reads line by line keeps what it needs.
        self.seen.clear();
        line
    }

    /// Waits for the end, at most for `limit`.
    pub fn finish_within(mut self, limit: Duration) -> Result<End> {
        self.deadline = Some(Instant::now() + limit);
        Ok(self.finish(|_| ())?.end)
    }

    /// Waits for a line that contains `text`.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        while let Some(line) = self.next_line() {
            if line.contains(text) {
                return Ok(line);
            }
        }
        let said = self.seen.join("\n");
        bail!("the console did not say '{text}'; it said:\n{said}")
    }

    /// Types `text` and the return key.
    pub fn type_line(&mut self, text: &str) -> Result<()> {
        self.type_text(&format!("{text}\r"))
    }

    /// Types `text`.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("the console is closed")?;
        input.write_all(text.as_bytes())?;
        Ok(input.flush()?)
    }

    /// QEMU's process number.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end; `show` is called for each line as it comes.
    pub fn finish(mut self, mut show: impl FnMut(&str)) -> Result<Run> {
        while let Some(line) = self.next_line() {
            show(&line);
        }
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break Some(status);
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let good = self.seen.iter().rev().find(|line| !line.is_empty()).is_some_and(|line| line == FINAL_LINE);
        let end = match status {
            Some(status) => end_of(status, good),
            None => End::TimeLimit,
        };
        Ok(Run { end, lines: std::mem::take(&mut self.seen) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(qemu: &mut Command) -> Result<Child> {
    let name = qemu.get_program().to_string_lossy().into_owned();
    qemu.spawn().with_context(|| format!("cannot start {name}: is it installed? 'make setup' installs it"))
}

/// Passes on what comes, as it comes, with source lines at the ends of the lines that have some. Returns the last line that is
/// not empty.
fn show(mut from: impl Read, mut sources: Sources) -> String {
    let (mut line, mut last) = (Vec::new(), Vec::new());
    let mut bytes = [0; 4096];
    let mut out = std::io::stdout().lock();
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        for byte in &bytes[..count] {
            if matches!(byte, b'\r' | b'\n') {
                if let Some(annotation) = sources.annotation(&String::from_utf8_lossy(&line)) {
                    // Nobody is there to be told if it fails.
                    let _ = out.write_all(annotation.as_bytes());
                }
                if !line.is_empty() {
                    last = std::mem::take(&mut line);
                }
            } else if line.len() < 1024 {
                line.push(*byte);
            }
            let _ = out.write_all(&[*byte]);
        }
        let _ = out.flush();
    }
    String::from_utf8_lossy(if line.is_empty() { &last } else { &line }).into_owned()
}

/// QEMU splits its options at commas; one in a name is doubled.
fn drive_argument(id: &str, path: &std::path::Path, more: &str) -> OsString {
    let path = path.to_string_lossy().replace(',', ",,");
    format!("if=none,id={id},format=raw,file={path}{more}").into()
}

/// Statuses are twice the kernel's value plus one (`kernel/src/arch/power.rs`); QEMU's own are 0 and 1.
fn end_of(status: ExitStatus, said_done: bool) -> End {
    const REFUSED: i32 = 1;
    const DONE: i32 = 0x10 << 1 | 1;
    const COMMAND_FAILED: i32 = 0x11 << 1 | 1;
    const PANIC: i32 = 0x12 << 1 | 1;
    match status.code() {
        Some(REFUSED) => End::NotStarted,
        Some(DONE) if said_done => End::Done,
        Some(COMMAND_FAILED) => End::CommandFailed,
        Some(PANIC) => End::Panic,
        _ => End::Crash,
    }
}
