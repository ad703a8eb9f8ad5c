//! Debian's stock kernel with the drivers of a machine's devices, and `boot/peer/measure.c` as its
//! only program. The kernel's package is fetched once, unpacked below `target`, and not installed.

use crate::build;
use crate::machine::{Machine, Other};
use crate::{output, project, target};
use anyhow::{Context, Result};
use object::{Object, ObjectSection};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that depends on the current kernel.
const META_PACKAGE: &str = "linux-image-amd64";
/// Memory of the machine in MiB. Debian's kernel needs more of it than Ringfence.
const MEMORY_MIB: u32 = 512;

/// QEMU's devices and the modules that drive them.
const MODULES: [(&str, &[&str]); 9] = [
    ("e1000", &["e1000"]),
    ("e1000e", &["e1000e"]),
    // QEMU's chip has revision 0x20, which 8139too refuses.
    ("rtl8139", &["8139cp"]),
    ("ne2k_pci", &["ne2k-pci"]),
    ("pcnet", &["pcnet32"]),
    ("virtio-net-pci", &["virtio_pci", "virtio_net"]),
    ("virtio-scsi-pci", &["virtio_pci", "virtio_scsi", "sd_mod"]),
    ("lsi53c895a", &["sym53c8xx", "sd_mod"]),
    ("am53c974", &["am53c974", "sd_mod"]),
];

/// The modules for the filesystems that are measured.
const FILESYSTEMS: [&str; 5] = ["vfat", "nls_cp437", "nls_ascii", "crc32c_generic", "ext4"];

/// A kernel that was fetched.
pub struct Linux {
    kernel: PathBuf,
    /// The modules' files, by name.
    modules: HashMap<String, PathBuf>,
    /// The package's name and version.
    pub version: String,
}

fn folder() -> PathBuf {
    target().join("linux")
}

impl Linux {
    /// Fetches the kernel, unless it was fetched before.
    pub fn fetch() -> Result<Linux> {
        let folder = folder();
        let stamp = folder.join("version");
        if !stamp.is_file() {
            let package = dependency().or_else(|_| {
                build::run(Command::new("apt-get").args(["update", "-q"]), true)?;
                dependency()
            })?;
            output::complain(&format!("bench: fetching {package}"));
            // The files of an earlier attempt are not trusted.
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder)?;
            let mut download = Command::new("apt-get");
            build::run(download.args(["download", "-q", &package]).current_dir(&folder), true)?;
            let archive = files(&folder)?.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
            let archive = archive.with_context(|| format!("apt-get has downloaded no file of {package}"))?;
            build::run(Command::new("dpkg").arg("-x").arg(&archive).arg(folder.join("root")), true)?;
            let version = text_of(Command::new("dpkg-deb").arg("-f").arg(&archive).arg("Version"))?;
            fs::remove_file(&archive)?;
            fs::write(&stamp, format!("{package} {}\n", version.trim()))?;
        }
        let root = folder.join("root");
        let kernel = files(&root.join("boot"))?.into_iter().find(|path| name_of(path).starts_with("vmlinuz-"));
        let mut modules = HashMap::new();
        for base in ["lib/modules", "usr/lib/modules"] {
            collect(&root.join(base), &mut modules)?;
        }
        Ok(Linux {
            kernel: kernel.context("the kernel's package has no kernel")?,
            modules,
            version: fs::read_to_string(&stamp)?.trim().to_string(),
        })
    }

    /// Returns `machine` with this kernel, and with the modules for its devices, and for the
    /// filesystems on its second and third disk ([`super::super::files`]). On a machine that counts
    /// instructions, the guest reports these.
    pub fn on(&self, machine: &Machine) -> Result<Machine> {
        let mut order = Vec::new();
        for device in [&machine.nic, &machine.hba] {
            let name = device.split(',').next().unwrap_or_default();
            let found = MODULES.iter().find(|(known, _)| *known == name);
            let (_, wanted) = found.with_context(|| format!("no driver of Linux is known for {device}"))?;
            wanted.iter().try_for_each(|module| self.add(module, &mut order))?;
        }
        FILESYSTEMS.iter().try_for_each(|module| self.add(module, &mut order))?;
        let initrd = folder().join("initrd");
        fs::write(&initrd, archive(&compile()?, &order)?)?;
        let other = Other {
            kernel: self.kernel.clone(),
            initrd,
            // The kernel puts options that it does not know into the program's environment.
            command_line: format!(
                "console=ttyS0 panic=-1 ipv6.disable=1 quiet filesystems=1{}",
                if machine.icount { " instructions=1" } else { "" }
            ),
        };
        Ok(Machine { other: Some(other), memory: MEMORY_MIB.max(machine.memory), ..machine.clone() })
    }

    /// Adds a module to `order`, behind the modules that it depends on.
    fn add(&self, name: &str, order: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        let name = name.replace('-', "_");
        if order.iter().any(|(known, _)| *known == name) {
            return Ok(());
        }
        let path = self.modules.get(&name).with_context(|| format!("this kernel has no module {name}"))?;
        let bytes = match path.extension().is_some_and(|end| end == "xz") {
            true => build::output_of(Command::new("xz").arg("-dc").arg(path))?.stdout,
            false => fs::read(path)?,
        };
        for needed in dependencies(&bytes)? {
            self.add(&needed, order)?;
        }
        order.push((name, bytes));
        Ok(())
    }
}

/// Returns the name of the current kernel's package.
fn dependency() -> Result<String> {
    let text = text_of(Command::new("apt-cache").args(["depends", META_PACKAGE]))?;
    let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_string);
    package.with_context(|| format!("apt knows no {META_PACKAGE}: a Debian host has it"))
}

fn text_of(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&build::output_of(command)?.stdout).into_owned())
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Finds the modules below a folder.
fn collect(folder: &Path, modules: &mut HashMap<String, PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for path in files(folder)? {
        let name = name_of(&path);
        if path.is_dir() {
            collect(&path, modules)?;
        } else if let Some((module, "ko" | "ko.xz")) = name.split_once('.') {
            modules.insert(module.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Returns the modules that a module says it depends on (`depends=` in its section `.modinfo`).
fn dependencies(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("a module says nothing about itself")?;
    let entries = section.data()?.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let needed = entries.filter_map(|entry| entry.strip_prefix("depends=").map(str::to_string));
    Ok(needed
        .flat_map(|names| names.split(',').map(str::to_string).collect::<Vec<_>>())
        .filter(|n| !n.is_empty())
        .collect())
}

/// Compiles the guest's program.
fn compile() -> Result<PathBuf> {
    let (source, program) = (project().join("boot/peer/measure.c"), folder().join("measure"));
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or("gcc".into()));
    build::run(compiler.args(["-O2", "-Wall", "-Wextra", "-static", "-o"]).arg(&program).arg(&source), true)
        .context("compiling the guest's program needs gcc and a static libc (libc6-dev)")?;
    Ok(program)
}

/// Returns the archive that the kernel unpacks as its first filesystem (cpio, "newc").
fn archive(program: &Path, modules: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    const FOLDER: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const CONSOLE: u32 = 0o020_600;
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: u32, bytes: &[u8], device: (u32, u32)| {
        let fields = [0, mode, 0, 0, 1, 0, bytes.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08X}").bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    add("mods", FOLDER, &[], (0, 0));
    add("dev", FOLDER, &[], (0, 0));
    // The kernel opens its console before it starts the program.
    add("dev/console", CONSOLE, &[], (5, 1));
    add("init", PROGRAM, &fs::read(program)?, (0, 0));
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    add("mods/order", 0o100_644, order.as_bytes(), (0, 0));
    modules.iter().for_each(|(name, bytes)| add(&format!("mods/{name}"), 0o100_644, bytes, (0, 0)));
    add("TRAILER!!!", 0, &[], (0, 0));
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each entry has a header of 110 bytes with numbers of eight digits, and begins at a multiple
    /// of four bytes.
    #[test]
    fn the_archive_has_programs_and_modules() {
        let program = tempfile::NamedTempFile::new().unwrap();
        fs::write(program.path(), b"ELF!!").unwrap();
        let modules = [("e1000".to_string(), vec![7; 6])];
        let archive = archive(program.path(), &modules).unwrap();
        let (mut at, mut names) = (0, Vec::new());
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |number: usize| {
                let digits = &archive[at + 6 + 8 * number..][..8];
                usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (len, name_len) = (field(6), field(11));
            let name = &archive[at + 110..][..name_len - 1];
            let data = (at + 110 + name_len).next_multiple_of(4);
            names.push((String::from_utf8_lossy(name).into_owned(), archive[data..data + len].to_vec()));
            at = (data + len).next_multiple_of(4);
        }
        let of = |wanted: &str| names.iter().find(|(name, _)| name == wanted).map(|(_, data)| data.clone());
        assert_eq!((of("init"), of("mods/e1000")), (Some(b"ELF!!".to_vec()), Some(vec![7; 6])));
        assert_eq!((of("mods/order"), names.len()), (Some(b"e1000\n".to_vec()), 7));
    }
}
