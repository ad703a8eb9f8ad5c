//! The ramdisk: a tar archive with the kernel, the modules, and the kernel's options and commands.

use crate::build::System;
use crate::output::printable;
use anyhow::{Context, Result, bail};
use ringfence_abi::manifest::{DomainKind, SEGMENTED_SUFFIX};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest name of a module's file without its ending.
const LONGEST_NAME: usize = 64;

/// The contents of a ramdisk besides the kernel and the project's modules.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// More module files. A file with the name of one of the project's modules replaces that
    /// module.
    pub modules: Vec<PathBuf>,
    /// Shell commands to run, separated by `;`.
    pub exec: Option<String>,
    /// Configuration of the machine, by names within the ramdisk's folder `etc`: settings that are
    /// carried out at boot, and the files that decide about ring 0.
    pub etc_files: Vec<(String, PathBuf)>,
    /// The kernel's name of the disk that is mounted at `/etc` at boot.
    pub etc: Option<String>,
    /// Tables of the source lines of modules, by their names.
    pub lines: Vec<(String, Vec<u8>)>,
    /// The port that the kernel serves its page at, the address and port that a browser connects
    /// to, and a token.
    pub http: Option<String>,
    /// Whether devices get their drivers at boot.
    pub autoload: bool,
    /// The kind of domain of modules that prefer none, in the place of the policy's.
    pub kind: Option<DomainKind>,
    /// Columns of the terminal, if known.
    pub columns: Option<u16>,
    /// Whether the kernel should ask the terminal for its width, because a person uses it.
    pub ask_columns: bool,
    /// Whether commands come from a file or a pipe, so that nobody can press a key.
    pub piped: bool,
}

/// Packs the archive.
pub fn pack(system: &System, contents: &Contents) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        Ok(archive.append_data(&mut header, name, bytes)?)
    };
    add("kernel", &read(&system.packed_kernel)?)?;
    let modules = modules(system, &contents.modules)?;
    let wants_32 = contents.kind == Some(DomainKind::Segmented);
    if wants_32 && !modules.keys().any(|name| name.ends_with(SEGMENTED_SUFFIX)) {
        bail!("no module is built for segmented domains: 'make setup' says why");
    }
    for (name, path) in modules {
        add(&format!("{name}.rfm"), &read(&path)?)?;
    }
    let mut options = String::new();
    if let Some(disk) = &contents.etc {
        options += &format!("etc {disk}\n");
    }
    if let Some(http) = &contents.http {
        options += &format!("http {http}\n");
    }
    if !contents.autoload {
        options += "no-autoload\n";
    }
    if let Some(kind) = contents.kind {
        options += &format!("kind {kind}\n");
    }
    for path in &contents.modules {
        // These modules choose their devices before the others.
        options += &format!("first {}\n", file_name(path));
    }
    if let Some(columns) = contents.columns {
        options += &format!("columns {columns}\n");
    }
    if contents.ask_columns {
        options += "ask-columns\n";
    }
    if contents.piped {
        options += "piped\n";
    }
    if !options.is_empty() {
        add("options", options.as_bytes())?;
    }
    let mut seen = HashSet::new();
    for (name, path) in &contents.etc_files {
        if !seen.insert(name) {
            bail!("{}: there is another {name}", path.display());
        }
        add(&format!("etc/{name}"), &read(path)?)?;
    }
    for (name, table) in &contents.lines {
        add(&format!("lines/{name}"), table)?;
    }
    if let Some(exec) = &contents.exec {
        add("exec", exec.as_bytes())?;
    }
    Ok(archive.into_inner()?)
}

/// Returns the name of a module's file in the ramdisk, without its ending.
pub fn file_name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns the names and files of all modules, in the order of their names, in which the kernel
/// searches for drivers. The modules are the project's and the `given` ones; the `given` ones
/// choose their devices first. A given module replaces the project's module of the same name, in
/// both kinds.
pub fn modules(system: &System, given: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let own = system.modules.iter().map(|module| (module.name.clone(), module.packed.clone()));
    let mut modules: BTreeMap<String, PathBuf> = own.collect();
    let mut seen = HashSet::new();
    for path in given {
        let name = file_name(path);
        if name.is_empty() || name.len() > LONGEST_NAME {
            bail!("{}: a module file needs a name of 1 to {LONGEST_NAME} characters", path.display());
        }
        if name != printable(&name) {
            bail!(
                "{}: a module file's name must be of characters that can be seen",
                printable(&path.to_string_lossy())
            );
        }
        let other = match name.strip_suffix(SEGMENTED_SUFFIX) {
            Some(paged) => paged.to_string(),
            None => format!("{name}{SEGMENTED_SUFFIX}"),
        };
        if !seen.contains(&other) {
            modules.remove(&other);
        }
        if !seen.insert(name.clone()) {
            bail!("{}: another module file is called '{name}', too", path.display());
        }
        modules.insert(name, path.clone());
    }
    Ok(modules)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
