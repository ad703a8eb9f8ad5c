//! Bochs: a second model of the CPU, stricter about rings and segments than QEMU's emulation. It
//! boots the ISO image, without network or disks.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where Debian's packages `bochsbios` and `vgabios` put their files.
const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/bochs/VGABIOS-lgpl-latest";

/// Boots `image` and waits for its end; returns the lines of its console.
pub fn run(image: &Path, limit: Duration) -> Result<Vec<String>> {
    let directory = tempfile::TempDir::new()?;
    let (console, log) = (directory.path().join("console"), directory.path().join("log"));
    // `ips` is the number of instructions in a second of the guest's time. In each such second the
    // serial port sends 11,520 bytes. So a low number means that few instructions are spent on
    // waiting for the port.
    let settings = format!(
        "megs: 64\n\
         cpu: model=tigerlake, count=1, ips=20000000, reset_on_triple_fault=0\n\
         romimage: file={BIOS}\n\
         vgaromimage: file={VGA_BIOS}\n\
         ata0-master: type=cdrom, path={}, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev={}\n\
         display_library: rfb, options=\"timeout=0\"\n\
         log: {}\n\
         panic: action=fatal\n\
         clock: sync=none\n",
        image.display(),
        console.display(),
        log.display()
    );
    let file = directory.path().join("bochsrc");
    std::fs::write(&file, settings)?;
    let mut bochs = Command::new("bochs");
    bochs.arg("-q").arg("-f").arg(&file).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = bochs.spawn().context("cannot start bochs: is it installed? 'make setup' installs it")?;
    // Debian's build of Bochs waits in its debugger; 'c' continues.
    child.stdin.as_mut().context("bochs takes no input")?.write_all(b"c\n")?;
    let deadline = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            let said = std::fs::read_to_string(&console).unwrap_or_default();
            bail!("bochs was not done within {} s; the console said:\n{said}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let said = std::fs::read(&console).context("bochs left no console")?;
    Ok(String::from_utf8_lossy(&said).lines().map(|line| line.trim_end_matches('\r').to_string()).collect())
}
