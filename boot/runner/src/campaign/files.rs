//! The work of a filesystem's driver: files are written, read and compared with those of another
//! filesystem, whose driver is a good one. After each trial, the filesystem is kept for the host's
//! own tools, and the next one begins with a fresh copy.

use super::COMMAND_MS;
use crate::images::{self, Fat};
use crate::machine::{Disk, Machine};
use anyhow::{Result, bail};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::TempDir;

/// Lengths of the FAT and of the ext filesystem in KiB.
const FAT_KIB: u64 = 2400;
const EXT_KIB: u64 = 2 << 10;
/// Length of the FAT in blocks.
const BLOCKS: u64 = FAT_KIB * 2;
/// How many filesystems are kept for the host: it looks at each before as many more are tried.
const KEPT: u64 = 50;
/// Lengths of the file that is copied, and of the copy after it is cut off, in bytes.
const FILE_BYTES: usize = 60_001;
const CUT_BYTES: usize = 30_000;

/// Commands that mount the filesystems.
pub const MOUNT: &str = "mount disk0 /fat; mount disk1 /ext -o ro";

/// Returns the three lists of commands for a filesystem's module ([`super::work`]).
pub fn work(module: &str, number: usize) -> Result<[String; 3]> {
    let place = number as u64 % KEPT * BLOCKS;
    let limits = |after: String| format!("limits command-ms 30000, {after}, limits command-ms {COMMAND_MS}");
    Ok(match module {
        "fat" => [
            format!(
                "cp /ext/big /fat/t, cmp /ext/big /fat/t, mkdir /fat/d, mv /fat/t \"/fat/d/A File\", truncate \"/fat/d/A File\" \
                 {CUT_BYTES}, ls /fat/d"
            ),
            "cmp /ext/cut \"/fat/d/A File\", cmp /ext/big /fat/big".to_string(),
            limits(format!(
                "rmmod fat, blkcopy disk0 0 disk3 {place} {BLOCKS}, blkcopy disk2 0 disk0 0 {BLOCKS}, mount disk0 /fat, cp \
                 /ext/big /fat/u, cmp /ext/big /fat/u, rm /fat/u"
            )),
        ],
        "ext" => [
            "cmp /ext/big /fat/big, ls /ext/d, cmp /ext/d/cut /fat/cut, du /ext".to_string(),
            "cmp /ext/big /fat/big".to_string(),
            limits("rmmod ext, mount disk1 /ext -o ro, cmp /ext/big /fat/big".to_string()),
        ],
        other => bail!("there is no work for '{other}': of filesystems, there is for fat and ext"),
    })
}

/// The disks that this work needs.
pub struct Files {
    directory: TempDir,
    ext: PathBuf,
    ext_content: Vec<u8>,
}

impl Files {
    /// Makes the disks.
    pub fn new() -> Result<Files> {
        let directory = TempDir::new()?;
        let content: Vec<u8> = (0..FILE_BYTES as u32).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
        let folder = directory.path().join("content");
        std::fs::create_dir_all(folder.join("d"))?;
        std::fs::write(folder.join("big"), &content)?;
        for cut in ["cut", "d/cut"] {
            std::fs::write(folder.join(cut), &content[..CUT_BYTES])?;
        }
        let ext = images::ext(directory.path(), EXT_KIB, "ext4", &folder)?;
        let fat = Fat::new(directory.path(), FAT_KIB, 16)?;
        fat.put("big", &content)?;
        fat.put("cut", &content[..CUT_BYTES])?;
        let kept = File::create(directory.path().join("kept.img"))?;
        kept.set_len(KEPT * FAT_KIB * 1024)?;
        let ext_content = std::fs::read(&ext)?;
        let files = Files { directory, ext, ext_content };
        files.renew()?;
        Ok(files)
    }

    /// Makes the disk afresh that changed drivers write to: the last boot may have ended in
    /// between.
    pub fn renew(&self) -> Result<()> {
        let [template, work] = ["fat16.img", "work.img"].map(|name| self.directory.path().join(name));
        std::fs::copy(template, work)?;
        Ok(())
    }

    /// Returns the machine with these disks.
    pub fn machine(&self, machine: Machine) -> Result<Machine> {
        if machine.hba == "none" {
            bail!("filesystems are on disks: --hba must not be none");
        }
        let own = ["work.img", "ext4.img", "fat16.img", "kept.img"].map(|name| self.directory.path().join(name));
        Ok(Machine { disks: own.map(Disk::from).into(), ..machine })
    }

    /// Returns the faults that the host's tools find on a filesystem after the trial with this
    /// number, without the faults that a power cut leaves as well. A read-only one must be as it
    /// was, to the last byte.
    pub fn damage(&self, module: &str, number: usize) -> Result<Vec<String>> {
        if module == "ext" {
            let is_same = std::fs::read(&self.ext)? == self.ext_content;
            return Ok(if is_same { Vec::new() } else { vec!["it was written to".to_string()] });
        }
        let mut bytes = vec![0; (BLOCKS * 512) as usize];
        File::open(self.directory.path().join("kept.img"))?
            .read_exact_at(&mut bytes, number as u64 % KEPT * BLOCKS * 512)?;
        let image = Fat(self.directory.path().join("look.img"));
        std::fs::write(&image.0, bytes)?;
        Ok(images::sorted(image.faults()?).1)
    }
}
