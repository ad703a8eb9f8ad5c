//! The filesystems that are measured: a FAT32 as they are made today, and an ext4.

use crate::images::{self, Fat};
use crate::machine::{Disk, Machine};
use anyhow::Result;
use std::path::Path;

/// Lengths of the disks in KiB: one without a filesystem, if the machine has none, the FAT and the
/// ext4. `mke2fs` makes blocks of 4 KiB from 512 MiB on, and of 1 KiB on smaller disks.
const SCRATCH_KIB: u64 = 64 << 10;
const FAT_KIB: u64 = 300 << 10;
const EXT_KIB: u64 = 512 << 10;
/// Sectors in a cluster of the FAT.
const SECTORS: u32 = 8;
/// Name and length of the file on the ext4 that is read (`kernel/src/bench/files.rs`).
const FILE: &str = "bench";
const LEN_BYTES: usize = 4 << 20;

/// Adds two disks with filesystems to a machine, behind at least one without. The images are made
/// in `directory`.
pub fn add(machine: &Machine, directory: &Path) -> Result<Machine> {
    let content = directory.join("content");
    std::fs::create_dir(&content)?;
    std::fs::write(content.join(FILE), vec![0x52; LEN_BYTES])?;
    let fat = Fat::with_clusters(directory, FAT_KIB, 32, SECTORS)?;
    let ext = images::ext(directory, EXT_KIB, "ext4", &content)?;
    let mut machine = machine.clone();
    if machine.disks.is_empty() {
        let scratch = directory.join("scratch.img");
        images::empty(&scratch, SCRATCH_KIB)?;
        machine.disks.push(Disk::from(scratch));
    }
    machine.disks.extend([fat.0, ext].map(Disk::from));
    Ok(machine)
}

/// Returns the commands that mount them.
pub fn mount(machine: &Machine) -> String {
    let first = machine.disks.len().saturating_sub(2);
    format!("mount disk{first} /fat; mount disk{} /ext -o ro", first + 1)
}
