//! The ramdisk: a tar archive with the kernel, the modules and what the kernel is to do.

use crate::build::System;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// What goes into a ramdisk besides the kernel and the modules of the project.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// More module files. One that has the name of one of the project's takes its place.
    pub modules: Vec<PathBuf>,
    /// Shell commands to run, separated by `;`.
    pub exec: Option<String>,
    /// Whether devices get their drivers at boot.
    pub autoload: bool,
    /// Columns of the terminal, if they are known.
    pub columns: Option<u16>,
}

/// The archive.
pub fn pack(system: &System, contents: &Contents) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        Ok(archive.append_data(&mut header, name, bytes)?)
    };
    add("kernel", &read(&system.packed_kernel)?)?;
    // A file that is given takes the place of the project's of that name.
    let given = |name: &str| contents.modules.iter().any(|path| path.file_stem().is_some_and(|stem| stem == name));
    for module in system.modules.iter().filter(|module| !given(&module.name)) {
        add(&format!("{}.rfm", module.name), &read(&module.packed)?)?;
    }
    for path in &contents.modules {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if name.is_empty() || name.len() > 64 {
            bail!("{}: a module file needs a name of 1 to 64 characters", path.display());
        }
        add(&format!("{name}.rfm"), &read(path)?)?;
    }
    let mut options = String::new();
    if !contents.autoload {
        options += "no-autoload\n";
    }
    if let Some(columns) = contents.columns {
        options += &format!("columns {columns}\n");
    }
    if !options.is_empty() {
        add("options", options.as_bytes())?;
    }
    if let Some(exec) = &contents.exec {
        add("exec", exec.as_bytes())?;
    }
    Ok(archive.into_inner()?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
