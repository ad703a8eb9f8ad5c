//! Core files of drivers that were ended (`faults NUMBER --core FILE`): the runner keeps the files
//! that the kernel sends, each with the symbols of its driver, and starts gdb with them.

use super::drivers::sources;
use crate::{output, target};
use anyhow::{Context, Result, bail};
use ringfence_core::elf_core::NOTE;
use ringfence_link::file::Piece;
use ringfence_link::frame::Frame;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The longest file that is kept: the kernel copies half a mebibyte of a driver.
const MOST_BYTES: u32 = 16 << 20;

/// The file that comes in pieces.
#[derive(Default)]
pub struct Incoming {
    name: String,
    bytes: Vec<u8>,
}

impl Incoming {
    /// Takes the piece in `frame`. A complete file is written; `run` is the folder of the system's
    /// run, where the symbols of its modules are.
    pub fn take(&mut self, frame: &Frame, run: &Path) {
        let Some(piece) = Piece::read(&frame.payload).filter(|piece| piece.len_bytes <= MOST_BYTES) else { return };
        if piece.offset == 0 {
            *self = Incoming { name: piece.name.to_string(), bytes: Vec::new() };
        }
        // A file of which a piece is missing never gets complete.
        if piece.name != self.name || piece.offset as usize != self.bytes.len() {
            return;
        }
        self.bytes.extend_from_slice(&piece.bytes);
        if self.bytes.len() == piece.len_bytes as usize {
            let Incoming { name, bytes } = std::mem::take(self);
            if let Err(error) = keep(&name, &bytes, run) {
                output::complain(&format!("the core file is not kept: {error:#}"));
            }
        }
    }
}

/// Returns the folder of core files.
pub fn folder() -> PathBuf {
    target().join("cores")
}

/// Returns the file with the symbols for a core file.
fn symbols(core: &Path) -> PathBuf {
    let mut name = core.as_os_str().to_owned();
    name.push(".debug");
    name.into()
}

fn keep(name: &str, bytes: &[u8], run: &Path) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '#');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        bail!("its name is no plain one");
    }
    let (build, _) = origin(bytes)?;
    std::fs::create_dir_all(folder()).with_context(|| format!("cannot make {}", folder().display()))?;
    let path = folder().join(name);
    std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    // A module that was pushed without its symbols has none.
    let from = run.join(build);
    if from.is_file() {
        let to = symbols(&path);
        std::fs::copy(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

/// Returns the build that a core file is of (`NAME#BUILD`), and the address of its image.
fn origin(core: &[u8]) -> Result<(String, u64)> {
    // A note: lengths of name and content, type, name, content; both are padded to words.
    let name = [NOTE.as_bytes(), &[0]].concat();
    let find = || {
        let at = core.windows(name.len()).position(|bytes| bytes == name)?;
        let len = u32::from_le_bytes(core.get(at.checked_sub(8)?..at - 4)?.try_into().ok()?);
        let start = at + name.len().next_multiple_of(4);
        let text = std::str::from_utf8(core.get(start..start.checked_add(len as usize)?)?).ok()?;
        let (build, address) = text.split_once(' ')?;
        let is_name = !build.contains('/') && !build.starts_with('.');
        is_name.then_some((build.to_string(), u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?))
    };
    find().context("it is no core file of a driver")
}

/// Starts gdb with a core file: a path, or a name in the folder of core files. Returns gdb's exit
/// status.
pub fn run(file: &Path, arguments: &[OsString]) -> Result<u8> {
    let kept = folder().join(file);
    let path = if file.is_file() { file } else { &kept };
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (build, image) = origin(&bytes).with_context(|| path.display().to_string())?;
    output::line(format_args!("{build} at {image:#x}"));
    let mut gdb = Command::new("gdb");
    gdb.args(["-q", "-ex", &sources(), "-ex", &format!("core-file {}", path.display())]);
    let symbols = symbols(path);
    if symbols.is_file() {
        gdb.args(["-ex", &format!("add-symbol-file {} -o {image:#x}", symbols.display())]);
    } else {
        output::complain(&format!("ringfence: there are no symbols: {} is missing", symbols.display()));
    }
    gdb.args(["-ex", "frame"]).args(arguments);
    let _ = ctrlc::set_handler(|| ());
    let status = gdb.status().context("cannot start gdb: is it installed?")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_abi::manifest::DomainKind;
    use ringfence_core::elf_core::Core;

    #[test]
    fn a_core_file_says_what_it_is_of() {
        let kind = DomainKind::Paged;
        let core = |note| Core { kind, general: [0; 16], rip: 0, rflags: 0, signal: 11, note, memory: &[] }.file();
        let of = |note| origin(&core(note).unwrap()).ok();
        assert_eq!(of("e1000#3 0x8000430000"), Some(("e1000#3".to_string(), 0x80_0043_0000)));
        assert_eq!([of("e1000#3"), of("e1000#3 8000"), of("../x 0x1"), of("")], [None, None, None, None]);
        assert!(origin(b"").is_err() && origin(b"RINGFENCE\0").is_err());
    }
}
