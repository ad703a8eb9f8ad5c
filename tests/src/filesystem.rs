//! Images of filesystems, made and read by the host's own tools.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a tool and returns what it did. Tools for filesystems may be outside of the PATH of one who
/// is not root.
pub fn tool(name: &str, arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let run = Command::new(name).args(arguments).env("PATH", path).env("MTOOLS_SKIP_CHECK", "1").output();
    run.unwrap_or_else(|error| panic!("{name}: {error}; boot/setup.sh installs it"))
}

/// Runs a tool that must succeed, and returns what it has printed.
pub fn tool_well(name: &str, arguments: &[&str]) -> String {
    let output = tool(name, arguments);
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{name} {arguments:?}: {text}");
    text
}

/// Makes an image of `kib` KiB with the tables and partitions that `script` describes to `sfdisk`.
pub fn partitioned(directory: &Path, kib: u64, script: &str) -> PathBuf {
    let (path, lines) = (directory.join("disk.img"), directory.join("disk.sfdisk"));
    std::fs::File::create(&path).and_then(|file| file.set_len(kib << 10)).unwrap();
    std::fs::write(&lines, script).unwrap();
    let [path_text, lines] = [&path, &lines].map(|path| path.to_str().unwrap());
    tool_well("sh", &["-c", &format!("sfdisk -q {path_text} < {lines}")]);
    path
}

/// Makes an image of `kib` KiB with a filesystem of this kind (`ext2`, `ext3` or `ext4`) that has
/// everything in `content`.
pub fn ext(directory: &Path, kib: u64, kind: &str, content: &Path) -> PathBuf {
    let path = directory.join(format!("{kind}.img"));
    std::fs::File::create(&path).and_then(|file| file.set_len(kib << 10)).unwrap();
    let (path_text, content) = (path.to_str().unwrap(), content.to_str().unwrap());
    tool_well("mke2fs", &["-q", "-t", kind, "-L", "TESTS", "-d", content, path_text]);
    path
}

/// An image with a FAT filesystem.
pub struct Fat(pub PathBuf);

impl Fat {
    /// Makes an image of `kib` KiB in `directory`, with a filesystem of `bits` bits.
    pub fn new(directory: &Path, kib: u64, bits: u32) -> Fat {
        let path = directory.join(format!("fat{bits}.img"));
        std::fs::File::create(&path).and_then(|file| file.set_len(kib << 10)).unwrap();
        let image = Fat(path);
        tool_well("mkfs.fat", &["-F", &bits.to_string(), "-s", "1", "-n", "TESTS", image.path()]);
        image
    }

    /// Returns its path as text.
    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Writes a file into the image.
    pub fn put(&self, name: &str, content: &[u8]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        tool_well("mcopy", &["-o", "-i", self.path(), file.path().to_str().unwrap(), &format!("::{name}")]);
    }

    /// Reads a file of the image.
    pub fn get(&self, name: &str) -> Vec<u8> {
        let output = tool("mtype", &["-i", self.path(), &format!("::{name}")]);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Returns the faults that `fsck.fat` finds; none if it finds the filesystem clean.
    pub fn faults(&self) -> Vec<String> {
        let output = tool("fsck.fat", &["-n", self.path()]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let is_fault = |line: &&str| {
            let is_head = line.starts_with("fsck.fat ") || line.contains(" files, ");
            !is_head && !line.is_empty() && !line.starts_with("Leaving filesystem unchanged")
        };
        text.lines().filter(is_fault).map(|line| line.trim().to_string()).collect()
    }

    /// Checks that the filesystem is clean.
    pub fn assert_clean(&self) {
        assert_eq!(self.faults(), Vec::<String>::new());
    }

    /// Checks that there is nothing wrong that a power cut does not leave as well: the mark that
    /// the filesystem is in use, its count of free clusters, a second FAT that lags behind, and
    /// clusters that belong to no file.
    pub fn assert_as_after_a_power_cut(&self) {
        let harmless = |line: &String| {
            let known = [
                "Dirty bit is set",
                "Automatically removing dirty bit",
                "Free cluster summary",
                "Auto-correcting.",
                "FATs differ but appear to be intact",
                "Using first FAT",
                "Reclaimed ",
            ];
            known.iter().any(|known| line.starts_with(known))
        };
        let other: Vec<String> = self.faults().into_iter().filter(|line| !harmless(line)).collect();
        assert_eq!(other, Vec::<String>::new());
    }
}
