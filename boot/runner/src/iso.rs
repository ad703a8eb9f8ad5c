//! A hybrid ISO image with GRUB, made by `grub-mkrescue`. It boots the same system on machines with
//! BIOS or UEFI firmware.

use crate::build::{System, run};
use crate::ramdisk::{self, Contents};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// GRUB's menu: one entry, booted at once. The `echo` is for machines with a screen that Ringfence
/// cannot use: its text stays there.
const MENU: &str = "\
set timeout=0
set default=0
insmod all_video
terminal_input console
terminal_output console
menuentry 'Ringfence' {
    multiboot2 /boot/loader
    module2 /boot/ramdisk.tar
    echo 'Ringfence runs. Its console is the first serial port (COM1, 115200 baud, 8N1).'
}
";

/// Writes an ISO image with `contents` to `image`.
pub fn make(system: &System, contents: &Contents, image: &Path) -> Result<()> {
    let tree = TempDir::new()?;
    let boot = tree.path().join("boot");
    fs::create_dir_all(boot.join("grub"))?;
    fs::write(boot.join("grub/grub.cfg"), MENU)?;
    fs::copy(&system.loader, boot.join("loader")).context("copying the loader")?;
    fs::write(boot.join("ramdisk.tar"), ramdisk::pack(system, contents)?)?;
    let mut mkrescue = Command::new("grub-mkrescue");
    mkrescue.arg("-o").arg(image).arg(tree.path());
    run(&mut mkrescue, true)
}
