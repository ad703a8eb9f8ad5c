//! `cargo run -- new NAME --kind KIND`: makes the sources of a driver that builds, loads, and has a
//! test on the host.

use crate::output;
use crate::project;
use anyhow::{Context, Result, bail};
use ringfence_abi::manifest::NAME_BYTES;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The device or service that the driver offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A network interface.
    Nic,
    /// A SCSI adapter.
    Scsi,
    /// A block device.
    Block,
    /// A filesystem, on the disk of another driver.
    Fs,
    /// Nothing: commands of its own.
    Other,
}

/// The smallest driver.
const SMALLEST: &str = include_str!("../../../drivers/template/src/lib.rs");

/// The settings of a new driver.
pub struct Options {
    /// Its name, for a driver of the project; or the path of its folder, with a `/`.
    pub name: String,
    /// The device or service that it offers.
    pub kind: Kind,
    /// Vendor and device ID of the PCI function that it drives.
    pub pci: Option<(u16, u16)>,
}

/// Parses `VVVV:DDDD`, hexadecimal.
pub fn parse_pci(text: &str) -> Result<(u16, u16), String> {
    let id =
        |id: &str| u16::from_str_radix(id, 16).ok().filter(|_| (1..=4).contains(&id.len()) && !id.starts_with('+'));
    let ids = text.split_once(':').map(|(vendor, device)| [vendor, device].map(id));
    match ids {
        Some([Some(vendor), Some(device)]) => Ok((vendor, device)),
        _ => Err(format!("'{text}' is not VENDOR:DEVICE in hexadecimal, as lspci shows it: 10ec:8029")),
    }
}

/// Makes the driver's folder.
pub fn run(options: &Options) -> Result<()> {
    let is_own = !options.name.contains('/');
    let folder = if is_own { project().join("drivers").join(&options.name) } else { PathBuf::from(&options.name) };
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    check_name(&name)?;
    if folder.exists() {
        bail!("{} is there already", folder.display());
    }
    let (library, tests) = match options.kind {
        Kind::Nic => (include_str!("../templates/nic.rs"), include_str!("../templates/nic_tests.rs")),
        Kind::Scsi => (include_str!("../templates/scsi.rs"), include_str!("../templates/scsi_tests.rs")),
        Kind::Block => (include_str!("../templates/block.rs"), include_str!("../templates/block_tests.rs")),
        Kind::Fs => (include_str!("../templates/fs.rs"), include_str!("../templates/fs_tests.rs")),
        Kind::Other => (SMALLEST, include_str!("../../../drivers/template/src/tests.rs")),
    };
    let pci = options.pci.map(|(vendor, device)| format!(".pci(&[({vendor:#06x}, {device:#06x})])"));
    let version = r#"env!("CARGO_PKG_VERSION"))"#;
    // The smallest driver has real names, as it is built, too.
    let fill = |template: &str| {
        let named = template.replace("NAME", &name).replace("TYPE", &type_name(&name));
        let named = named.replace("template", &name).replace("Template", &type_name(&name));
        named.replace(version, &format!("{version}{}", pci.as_deref().unwrap_or("")))
    };
    let manifest = if is_own { manifest_inside(&name) } else { manifest_outside(&name) };
    let files = [("Cargo.toml", manifest), ("src/lib.rs", fill(library)), ("src/tests.rs", fill(tests))];
    let made = files.iter().try_for_each(|(file, content)| write(&folder.join(file), content));
    if made.is_err() {
        // A folder that is half made would stand in the way of the next attempt.
        let _ = fs::remove_dir_all(&folder);
    }
    made?;
    // Names differ in length. Without a formatter the sources are only less pretty.
    let sources = ["lib.rs", "tests.rs"].map(|file| folder.join("src").join(file));
    let config = project().join("rustfmt.toml");
    let _ = Command::new("rustfmt").args(["--edition", "2024", "--config-path"]).arg(config).args(sources).output();
    let (path, argument) = (folder.display(), if is_own { name.clone() } else { options.name.clone() });
    output::line(format_args!("{path}: a driver with a test on the host"));
    output::line(format_args!("  cargo run -- push {argument:<24} load it into the system that runs"));
    output::line(format_args!("  cargo run -- dev {argument:<25} push it at each save"));
    let test =
        if is_own { format!("cargo test -p rf-{name} --lib") } else { format!("cd {argument}; cargo test --lib") };
    output::line(format_args!("  {test:<42} run its test"));
    Ok(())
}

fn write(path: &Path, content: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Checks a module's name: it is the name of a crate and of a file, too.
fn check_name(name: &str) -> Result<()> {
    let is_fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let begins = name.starts_with(|first: char| first.is_ascii_lowercase());
    if !begins || !name.chars().all(is_fine) || name.ends_with('-') || name.len() >= NAME_BYTES {
        let most = NAME_BYTES - 1;
        bail!("'{name}' cannot be a driver's name: that has up to {most} lower-case letters, digits and hyphens");
    }
    if name == "sdk" {
        bail!("'sdk' is the name of the SDK's folder");
    }
    Ok(())
}

/// Returns the name of the driver's type: `my-nic` becomes `MyNic`.
fn type_name(name: &str) -> String {
    let capital =
        |word: &str| word.chars().take(1).map(|c| c.to_ascii_uppercase()).chain(word.chars().skip(1)).collect();
    name.split('-').map(capital).collect::<Vec<String>>().concat()
}

fn manifest_inside(name: &str) -> String {
    let template = include_str!("../../../drivers/template/Cargo.toml");
    template.replace("rf-template", &format!("rf-{name}")).replace("The smallest driver: copy it", "A new driver")
}

/// Returns the Cargo.toml of a driver outside of the project.
pub fn manifest_outside(name: &str) -> String {
    let sdk = project().join("drivers/sdk");
    let sdk = toml_string(&sdk.to_string_lossy());
    format!(
        r#"[package]
name = "rf-{name}"
version = "0.1.0"
edition = "2024"

[lib]
crate-type = ["staticlib"]
bench = false
doctest = false

[dependencies]
ringfence-sdk = {{ path = {sdk} }}
log = "0.4"

[dev-dependencies]
ringfence-sdk = {{ path = {sdk}, features = ["fake"] }}

[profile.dev]
panic = "abort"

[profile.release]
panic = "abort"

[workspace]
"#
    )
}

/// Quotes a string for TOML.
fn toml_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_become_types() {
        for good in ["e1000", "my-nic", "a", "ne2k-pci"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "1nic", "Nic", "my nic", "../x", "my_nic", "nic-", "sdk", "\u{e4}", &"a".repeat(32)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!((type_name("my-nic"), type_name("e1000")), ("MyNic".to_string(), "E1000".to_string()));
        assert_eq!(toml_string(r#"a\b"c"#), r#""a\\b\"c""#);
    }

    #[test]
    fn ids_are_as_lspci_shows_them() {
        assert_eq!(parse_pci("10ec:8029"), Ok((0x10ec, 0x8029)));
        for bad in ["", "10ec", "10ec:", "10ec:80291", "x:1", "10ec:8029:0", "+0ec:8029"] {
            assert!(parse_pci(bad).is_err(), "{bad}");
        }
    }
}
