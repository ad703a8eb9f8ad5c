//! Disk images: their formats, and QEMU's options for them.
//!
//! **An image is opened in its own format, or not at all.** If QEMU were told that a qcow2 file is
//! raw, it would take the file for the blocks of a disk, and the guest's first write would destroy
//! it. **An image that names other files is opened only if the user asks for it**: a guest may have
//! written the beginning of its disk so that it names the host's files, and would then read them.

use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// A disk of a machine: an image or a block device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The file or block device.
    pub path: PathBuf,
    /// Whether the guest may only read the disk.
    pub read_only: bool,
}

impl From<PathBuf> for Disk {
    fn from(path: PathBuf) -> Disk {
        Disk { path, read_only: false }
    }
}

/// The way in which a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Opened {
    /// In its own format, unless it names other files.
    #[default]
    Careful,
    /// In its own format.
    Image,
    /// As raw blocks, for any content.
    Raw,
}

impl Disk {
    /// Parses a user's `FILE`, with `,ro`, `,raw` or `,image` behind it. If a file has that whole
    /// name, it is meant.
    pub fn parse(text: &OsStr) -> (Disk, Opened) {
        let (mut read_only, mut opened) = (false, Opened::Careful);
        let mut rest = text.to_str().unwrap_or_default();
        while !Path::new(rest).exists()
            && let Some((bare, option)) = rest.rsplit_once(',')
        {
            match option {
                "ro" => read_only = true,
                "raw" => opened = Opened::Raw,
                "image" => opened = Opened::Image,
                _ => break,
            }
            rest = bare;
        }
        let path = if rest.is_empty() { PathBuf::from(text) } else { PathBuf::from(rest) };
        (Disk { path, read_only }, opened)
    }

    /// Checks that the disk can be opened. QEMU would report the error late and less clearly.
    pub fn check(&self, opened: Opened) -> Result<()> {
        self.format(opened).map(|_| ())
    }

    /// Returns the value of QEMU's `-drive` that opens the disk under the name `id`. QEMU never
    /// takes the beginning of the file's name for a protocol. The disk reports errors by the rules
    /// in the file `errors`, if there is one (QEMU's `docs/devel/blkdebug.txt`).
    pub fn drive(&self, id: &str, more: &str, opened: Opened, errors: Option<&Path>) -> Result<OsString> {
        let driver = if self.metadata()?.file_type().is_block_device() { "host_device" } else { "file" };
        let read_only = if self.read_only { ",read-only=on" } else { "" };
        let format = self.format(opened)?;
        let mut drive = OsString::from(format!("if=none,id={id},format={format}{read_only}{more}"));
        let file = match errors {
            None => "file",
            Some(rules) => {
                drive.push(",file.driver=blkdebug,file.config=");
                drive.push(in_option(rules));
                "file.image"
            }
        };
        drive.push(format!(",{file}.driver={driver},{file}.filename="));
        drive.push(in_option(&self.path));
        Ok(drive)
    }

    fn metadata(&self) -> Result<std::fs::Metadata> {
        std::fs::metadata(&self.path).with_context(|| format!("cannot open the disk image {}", self.path.display()))
    }

    /// Returns QEMU's name of the disk's format.
    fn format(&self, opened: Opened) -> Result<&'static str> {
        let name = self.path.display();
        let kind = self.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            bail!("{name} is neither a disk image nor a block device");
        }
        let open = OpenOptions::new().read(true).write(!self.read_only).open(&self.path);
        let hint = if self.read_only { "" } else { " ('FILE,ro' attaches one that may only be read)" };
        let mut file = open.with_context(|| format!("cannot open the disk image {name}{hint}"))?;
        if opened == Opened::Raw {
            return Ok("raw");
        }
        let unreadable = || format!("cannot read the disk image {name}");
        match format_of(&mut file, self.read_only).with_context(unreadable)? {
            Format::Known(format) => {
                if opened == Opened::Careful && names_others(&mut file, format).with_context(unreadable)? {
                    bail!(
                        "{name} is a {format} image that names other files, which a guest may have written there: 'FILE,image' opens it \
                         all the same, 'FILE,raw' as blocks"
                    )
                }
                Ok(format)
            }
            Format::Foreign(format) => {
                bail!(
                    "{name} is a {format} image, which cannot be written as it is: 'qemu-img convert -O qcow2' makes one that can"
                )
            }
        }
    }
}

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// A format that QEMU opens under this name.
    Known(&'static str),
    /// A format that QEMU can only read, or for which it needs a key.
    Foreign(&'static str),
}

/// The magic numbers of the formats that QEMU knows: offset in the file, magic and format (QEMU's
/// `block/*.c` and `docs/interop`).
const MAGICS: &[(u64, &[u8], Format)] = &[
    (0, b"QFI\xfb\0\0\0\x01", Format::Known("qcow")),
    (0, b"QFI\xfb", Format::Known("qcow2")),
    (0, b"QED\0", Format::Known("qed")),
    (0, b"KDMV", Format::Known("vmdk")),
    (0, b"COWD", Format::Known("vmdk")),
    (0, b"vhdxfile", Format::Known("vhdx")),
    (0, b"conectix", Format::Known("vpc")),
    (0, b"WithoutFreeSpace", Format::Known("parallels")),
    (0, b"WithouFreSpacExt", Format::Known("parallels")),
    (64, &[0x7f, 0x10, 0xda, 0xbe], Format::Known("vdi")),
    (0, b"Bochs Virtual HD Image", Format::Foreign("Bochs")),
    (0, b"#!/bin/sh\n#V2.0 Format", Format::Foreign("cloop")),
    (0, b"LUKS\xba\xbe", Format::Foreign("LUKS")),
];
/// The magic numbers of formats that have a block of their own at the end of the file.
const LAST_BLOCK: &[(&[u8], Format)] = &[(b"conectix", Format::Known("vpc")), (b"koly", Format::Foreign("DMG"))];
const BLOCK_BYTES: u64 = 512;

/// Number of bytes in which QEMU looks for the format.
const HEAD_BYTES: u64 = 2048;

fn format_of(file: &mut File, read_only: bool) -> std::io::Result<Format> {
    let head = read_at(file, 0, HEAD_BYTES)?;
    let at = |at: u64| head.get(at as usize..).unwrap_or(&[]);
    // A VMDK with compressed clusters is written only once, by the program that makes it.
    const COMPRESSED: u64 = 1 << 16;
    if head.starts_with(b"KDMV") && number(&head, 8, 4) & COMPRESSED != 0 && !read_only {
        return Ok(Format::Foreign("compressed VMDK"));
    }
    if is_descriptor(&head) {
        return Ok(Format::Known("vmdk"));
    }
    if let Some((.., format)) = MAGICS.iter().find(|(place, magic, _)| at(*place).starts_with(magic)) {
        return Ok(*format);
    }
    let end = file.seek(SeekFrom::End(0))?;
    if let Some(last) = end.checked_sub(BLOCK_BYTES) {
        let mut block = Vec::new();
        file.seek(SeekFrom::Start(last))?;
        file.by_ref().take(BLOCK_BYTES).read_to_end(&mut block)?;
        if let Some((_, format)) = LAST_BLOCK.iter().find(|(magic, _)| block.starts_with(magic)) {
            return Ok(*format);
        }
    }
    Ok(Format::Known("raw"))
}

fn read_at(file: &mut File, at: u64, len_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.by_ref().take(len_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a little-endian number in a header; 0 beyond the header's end.
fn number(bytes: &[u8], at: usize, len_bytes: usize) -> u64 {
    let bytes = bytes.get(at..at + len_bytes).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Returns whether a file is a VMDK's descriptor, a text that names the files of the VMDK: comments
/// and blank lines, then a version.
fn is_descriptor(head: &[u8]) -> bool {
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with(b"#"));
    first.is_some_and(|line| [b"version=1", b"version=2", b"version=3"].iter().any(|version| line == *version))
}

/// Returns whether an image says that some of its content is in other files (QEMU's
/// `docs/interop/qcow2.txt` and `qed_spec.txt`; VMware's Virtual Disk Format 1.1).
fn names_others(file: &mut File, format: &str) -> std::io::Result<bool> {
    let head = read_at(file, 0, HEAD_BYTES)?;
    let swapped = |at: usize| number(&head, at, 8).swap_bytes();
    Ok(match format {
        "qcow" => swapped(8) != 0,
        // A backing file, or, from version 3 on, a data file.
        "qcow2" => swapped(8) != 0 || number(&head, 4, 4).swap_bytes() >> 32 >= 3 && swapped(72) & 1 << 2 != 0,
        "qed" => number(&head, 16, 8) & 1 != 0,
        "vmdk" if head.starts_with(b"KDMV") => {
            // The image has no capacity of its own, or its description names a parent.
            const MOST: u64 = 1 << 16;
            let description =
                read_at(file, number(&head, 28, 8).saturating_mul(BLOCK_BYTES).min(i64::MAX as u64), MOST)?;
            let parent = b"parentFileNameHint";
            number(&head, 12, 8) == 0 || description.windows(parent.len()).any(|window| window == parent)
        }
        "vmdk" => true,
        _ => false,
    })
}

/// Returns a file's name as part of a QEMU option. QEMU splits options at commas, so a comma in the
/// name is doubled.
pub fn in_option(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    let doubled: Vec<u8> =
        bytes.iter().flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 })).collect();
    OsString::from_vec(doubled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn image(parts: &[(u64, &[u8])], len_bytes: u64) -> tempfile::NamedTempFile {
        let mut image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(len_bytes).unwrap();
        for (at, bytes) in parts {
            image.seek(SeekFrom::Start(*at)).unwrap();
            image.write_all(bytes).unwrap();
        }
        image
    }

    #[test]
    fn images_are_opened_as_what_they_are() {
        let format = |parts: &[(u64, &[u8])], len_bytes| {
            let image = image(parts, len_bytes);
            Disk::from(image.path().to_path_buf()).format(Opened::Image).map_err(|error| error.to_string())
        };
        for (at, magic, expected) in MAGICS {
            match expected {
                Format::Known(name) => assert_eq!(format(&[(*at, magic)], 4096), Ok(*name)),
                Format::Foreign(name) => {
                    assert!(
                        format(&[(*at, magic)], 4096).unwrap_err().contains(&format!(" is a {name} image")),
                        "{name}"
                    );
                }
            }
        }
        assert_eq!(format(&[(0, b"QFI\xfb\0\0\0\x03")], 4096), Ok("qcow2"));
        assert_eq!(format(&[(4096 - 512, b"conectix")], 4096), Ok("vpc"));
        assert!(format(&[(4096 - 512, b"koly")], 4096).unwrap_err().contains(" is a DMG image"));
        assert_eq!(format(&[(1, b"QFI\xfb")], 4096), Ok("raw"));
        assert_eq!(format(&[(0, b"QFI")], 3), Ok("raw"));
        assert_eq!(format(&[], 0), Ok("raw"));
        assert_eq!(format(&[], 65), Ok("raw"));
    }

    /// A guest that writes the beginning of its disk must not get the host's files opened.
    #[test]
    fn what_names_other_files_is_asked_about() {
        let qcow2 =
            |version: u8, at: u64, byte: u8| image(&[(0, b"QFI\xfb\0\0\0"), (7, &[version]), (at, &[byte])], 4096);
        let vmdk = |parts: &[(u64, &[u8])]| image(&[&[(0, &b"KDMV"[..])], parts].concat(), 4096);
        let named = [
            qcow2(2, 15, 9),
            qcow2(3, 15, 9),
            qcow2(3, 79, 4),
            image(&[(0, b"QED\0"), (16, &[1])], 4096),
            image(&[(0, b"# anything\n\nversion=1\nRW 63 FLAT \"/etc/passwd\" 0\n")], 4096),
            vmdk(&[(12, &[0])]),
            vmdk(&[(12, &[1]), (28, &[1]), (512, b"parentFileNameHint=\"/etc/passwd\"")]),
        ];
        for image in &named {
            let disk = Disk::from(image.path().to_path_buf());
            let said = disk.check(Opened::Careful).unwrap_err().to_string();
            assert!(said.contains("names other files"), "{said}");
            assert_eq!(disk.format(Opened::Raw).unwrap(), "raw");
            assert_ne!(disk.format(Opened::Image).unwrap(), "raw");
        }
        for image in [qcow2(3, 79, 3), qcow2(2, 79, 4), vmdk(&[(12, &[1])])] {
            Disk::from(image.path().to_path_buf()).check(Opened::Careful).unwrap();
        }
        // A compressed VMDK can only be read.
        let image = vmdk(&[(10, &[1]), (12, &[1])]);
        assert!(Disk::from(image.path().to_path_buf()).check(Opened::Careful).is_err());
        Disk { path: image.path().into(), read_only: true }.check(Opened::Careful).unwrap();
    }

    #[test]
    fn a_disk_may_be_for_reading_only() {
        let image = image(&[], 512);
        let mut text = image.path().as_os_str().to_os_string();
        text.push(",ro");
        assert_eq!(Disk::parse(&text), (Disk { path: image.path().into(), read_only: true }, Opened::Careful));
        let with = |options: &str| {
            let mut text = image.path().as_os_str().to_os_string();
            text.push(options);
            Disk::parse(&text)
        };
        assert_eq!(with(",raw,ro"), (Disk { path: image.path().into(), read_only: true }, Opened::Raw));
        assert_eq!(with(",image").1, Opened::Image);
        assert!(with(",nonsense").0.path.to_str().unwrap().ends_with(",nonsense"));
        // The file that has the whole text as its name is meant.
        std::fs::write(&text, []).unwrap();
        assert_eq!(Disk::parse(&text).0, Disk { path: text.clone().into(), read_only: false });
        std::fs::remove_file(&text).unwrap();
    }

    #[test]
    fn names_are_told_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a,b:c.img");
        std::fs::write(&path, [0; 512]).unwrap();
        let text = Disk { path, read_only: true }
            .drive("d", ",cache=unsafe", Opened::Careful, None)
            .unwrap()
            .into_string()
            .unwrap();
        assert!(
            text.starts_with("if=none,id=d,format=raw,read-only=on,cache=unsafe,file.driver=file,file.filename=/"),
            "{text}"
        );
        assert!(text.ends_with("/a,,b:c.img"), "{text}");
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let said = |path: &str| format!("{:#}", Disk::from(PathBuf::from(path)).check(Opened::Careful).unwrap_err());
        assert_eq!(said("/dev/null"), "/dev/null is neither a disk image nor a block device");
        assert_eq!(said("/"), "/ is neither a disk image nor a block device");
        assert!(said("/nowhere/disk.img").starts_with("cannot open the disk image /nowhere/disk.img: No such file"));
    }
}
