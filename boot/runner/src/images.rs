//! Images of filesystems, made, read and checked by the host's own tools (mtools, dosfstools,
//! e2fsprogs, fdisk): they know nothing of Ringfence, and so their word counts.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a tool and returns its status and output. Tools for filesystems may be outside of the PATH
/// of a user without root's rights.
pub fn tool(name: &str, arguments: &[&str]) -> Result<Output> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let run = Command::new(name).args(arguments).env("PATH", path).env("MTOOLS_SKIP_CHECK", "1").output();
    run.with_context(|| format!("cannot run {name}, which boot/setup.sh installs"))
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// Runs a tool that must succeed, and returns its output.
pub fn tool_well(name: &str, arguments: &[&str]) -> Result<String> {
    let output = tool(name, arguments)?;
    let text = text(&output);
    if !output.status.success() {
        bail!("{name} {}: {text}", arguments.join(" "));
    }
    Ok(text)
}

fn as_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))
}

/// Makes an empty image of `kib` KiB.
pub fn empty(path: &Path, kib: u64) -> Result<()> {
    let made = std::fs::File::create(path).and_then(|file| file.set_len(kib << 10));
    made.with_context(|| format!("cannot make {}", path.display()))
}

/// Makes an image of `kib` KiB with the tables and partitions that `script` describes to `sfdisk`.
pub fn partitioned(directory: &Path, kib: u64, script: &str) -> Result<PathBuf> {
    let (path, lines) = (directory.join("disk.img"), directory.join("disk.sfdisk"));
    empty(&path, kib)?;
    std::fs::write(&lines, script)?;
    tool_well("sh", &["-c", "sfdisk -q \"$1\" < \"$2\"", "sh", as_text(&path)?, as_text(&lines)?])?;
    Ok(path)
}

/// Makes an image of `kib` KiB with a filesystem of this kind (`ext2`, `ext3` or `ext4`) that has
/// everything in `content`.
pub fn ext(directory: &Path, kib: u64, kind: &str, content: &Path) -> Result<PathBuf> {
    let path = directory.join(format!("{kind}.img"));
    empty(&path, kib)?;
    tool_well("mke2fs", &["-q", "-t", kind, "-L", "TESTS", "-d", as_text(content)?, as_text(&path)?])?;
    Ok(path)
}

/// Returns the faults that `e2fsck` finds; none if it finds the filesystem clean.
pub fn ext_faults(path: &Path) -> Result<Vec<String>> {
    let output = tool("e2fsck", &["-fn", as_text(path)?])?;
    match output.status.code() {
        Some(0) => Ok(Vec::new()),
        _ => Ok(text(&output).lines().map(str::to_string).collect()),
    }
}

/// Makes an image of `kib` KiB with a FAT of `bits` bits called `label`, and with so many sectors
/// in a cluster.
pub fn fat(path: &Path, kib: u64, bits: u32, sectors: u32, label: &str) -> Result<()> {
    empty(path, kib)?;
    let [bits, sectors] = [bits, sectors].map(|number| number.to_string());
    tool_well("mkfs.fat", &["-F", &bits, "-s", &sectors, "-n", label, as_text(path)?])?;
    Ok(())
}

/// An image with a FAT filesystem.
pub struct Fat(pub PathBuf);

impl Fat {
    /// Makes an image of `kib` KiB in `directory`, with a filesystem of `bits` bits whose clusters
    /// have one sector: there is more to go wrong.
    pub fn new(directory: &Path, kib: u64, bits: u32) -> Result<Fat> {
        Fat::with_clusters(directory, kib, bits, 1)
    }

    /// Makes an image as [`Fat::new`] does, with so many sectors in a cluster.
    pub fn with_clusters(directory: &Path, kib: u64, bits: u32, sectors: u32) -> Result<Fat> {
        let path = directory.join(format!("fat{bits}.img"));
        fat(&path, kib, bits, sectors, "TESTS")?;
        Ok(Fat(path))
    }

    /// Returns its path as text.
    pub fn path(&self) -> Result<&str> {
        as_text(&self.0)
    }

    /// Writes a file into the image.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), content)?;
        tool_well("mcopy", &["-o", "-i", self.path()?, as_text(file.path())?, &format!("::{name}")])?;
        Ok(())
    }

    /// Reads a file of the image.
    pub fn get(&self, name: &str) -> Result<Vec<u8>> {
        let output = tool("mtype", &["-i", self.path()?, &format!("::{name}")])?;
        if !output.status.success() {
            bail!("{name}: {}", text(&output));
        }
        Ok(output.stdout)
    }

    /// Returns the faults that `fsck.fat` finds; none if it finds the filesystem clean.
    pub fn faults(&self) -> Result<Vec<String>> {
        let output = tool("fsck.fat", &["-n", self.path()?])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_fault = |line: &&str| {
            let is_head = line.starts_with("fsck.fat ") || line.contains(" files, ");
            !is_head && !line.is_empty() && !line.starts_with("Leaving filesystem unchanged")
        };
        let mut faults = Vec::new();
        let mut of = Vec::new();
        for line in text.lines().filter(is_fault).map(str::trim) {
            // A line of its own says which file the next ones are about.
            match line.strip_prefix('/') {
                Some(_) => of.push(line),
                None if of.is_empty() => faults.push(line.to_string()),
                None => faults.push(format!("{line} ({})", std::mem::take(&mut of).join(" "))),
            }
        }
        // fsck.fat reports a filesystem that it cannot read on standard error.
        if !output.status.success() && faults.is_empty() {
            faults.push(String::from_utf8_lossy(&output.stderr).trim().to_string());
        }
        Ok(faults)
    }

    /// Has `fsck.fat` mend the faults that it finds. No fault may be left.
    pub fn mend(&self) -> Result<()> {
        let output = tool("fsck.fat", &["-a", self.path()?])?;
        match self.faults()?.is_empty() {
            true => Ok(()),
            false => bail!("fsck.fat -a leaves faults: {}", text(&output)),
        }
    }
}

/// Messages of `fsck.fat` about a FAT filesystem after a power cut (`cargo run -- soak --files`
/// cuts the power of some): the mark that the filesystem is in use, its count of free clusters, a
/// second FAT that lags behind, clusters that belong to no file, a file that has more clusters than
/// its length says yet, a long name whose file has its short one not yet or no more, and a file
/// that was given another name and has both.
const AFTER_A_POWER_CUT: [&str; 13] = [
    "Dirty bit is set",
    "Automatically removing dirty bit",
    "Free cluster summary",
    "Auto-correcting.",
    "FATs differ but appear to be intact",
    "Using first FAT",
    "Reclaimed ",
    "File size is ",
    "Truncating file to ",
    "Orphaned long file name part",
    "Auto-deleting.",
    "share clusters.",
    "Truncating second to 0 bytes.",
];

/// Returns whether a fault is that a file has two names in one directory, as while it is renamed.
fn has_two_names(fault: &str) -> bool {
    let folder = |path: &str| path.trim().rsplit_once('/').map(|(folder, _)| folder.to_string());
    let names = fault.strip_prefix("share clusters. (").and_then(|rest| rest.strip_suffix(')'));
    let both = names.and_then(|names| names.split_once(" and "));
    both.is_some_and(|(one, other)| folder(one).is_some() && folder(one) == folder(other))
}

/// Sorts the faults of a FAT: the kinds of the faults that a power cut leaves as well, and the
/// other faults.
pub fn sorted(faults: Vec<String>) -> (Vec<&'static str>, Vec<String>) {
    let mut second_names = faults.iter().filter(|fault| has_two_names(fault)).count();
    let (mut kinds, mut others) = (Vec::new(), Vec::new());
    for fault in faults {
        let is_harmless = if fault.starts_with("share clusters.") {
            has_two_names(&fault)
        } else if fault.starts_with("File size is ") && !fault.contains("cluster chain length is > ") {
            // A chain that is too short is a loss, but for the second name of a file, which
            // fsck.fat takes the clusters from.
            let is_second = fault.contains("cluster chain length is 0 bytes") && second_names > 0;
            second_names -= usize::from(is_second);
            is_second
        } else {
            true
        };
        let kind = AFTER_A_POWER_CUT.into_iter().find(|known| fault.starts_with(known));
        match kind.filter(|_| is_harmless) {
            Some(kind) => kinds.push(kind.trim_end()),
            None => others.push(fault),
        }
    }
    (kinds, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destroyed_filesystem_is_not_clean() {
        let directory = tempfile::tempdir().unwrap();
        let image = Fat::new(directory.path(), 1440, 12).unwrap();
        assert_eq!(image.faults().unwrap(), Vec::<String>::new());
        let mut bytes = std::fs::read(&image.0).unwrap();
        bytes[..512].fill(0);
        std::fs::write(&image.0, bytes).unwrap();
        assert!(!sorted(image.faults().unwrap()).1.is_empty() && image.mend().is_err());
    }

    #[test]
    fn what_a_power_cut_does_not_leave_is_told_apart() {
        let lines = |lines: &[&str]| lines.iter().map(|line| line.to_string()).collect::<Vec<_>>();
        let longer = "File size is 512 bytes, cluster chain length is > 512 bytes. (/A)";
        let shorter = "File size is 40000 bytes, cluster chain length is 0 bytes. (/B)";
        let shared = "share clusters. (/A  and /B)";
        assert_eq!(sorted(lines(&["Reclaimed 7 unused clusters (3584 bytes).", longer])).1, lines(&[]));
        assert_eq!(sorted(lines(&[shorter])).1, lines(&[shorter]));
        assert_eq!(sorted(lines(&[shared, shorter])).0, ["share clusters.", "File size is"]);
        let others = "share clusters. (/A  and /D/B)";
        assert_eq!(sorted(lines(&[others, shorter])).1, lines(&[others, shorter]));
        assert_eq!(sorted(lines(&[shared, shorter, shorter])).1, lines(&[shorter]));
        assert_eq!(sorted(lines(&["Contains a free cluster (0). (/A)"])).1.len(), 1);
    }
}
