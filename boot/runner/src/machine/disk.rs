//! Disk images: what they are, and how QEMU is told.
//!
//! **An image is opened as what it is, or not at all.** QEMU would take a qcow2 file for the blocks of a disk if it were told that it
//! is one, and the guest's first write would destroy it.

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
    /// Its file.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

impl From<PathBuf> for Disk {
    fn from(path: PathBuf) -> Disk {
        Disk { path, read_only: false }
    }
}

impl Disk {
    /// What a person says: `FILE` or `FILE,ro`. A file that has just that name is meant first.
    pub fn parse(text: &OsStr) -> Disk {
        let path = PathBuf::from(text);
        let bare = text.to_str().and_then(|text| text.strip_suffix(",ro"));
        match bare {
            Some(bare) if !path.exists() => Disk { path: bare.into(), read_only: true },
            _ => path.into(),
        }
    }

    /// Says at once what QEMU would say late and badly; `Ok` if it can be opened as it is to be.
    pub fn check(&self) -> Result<()> {
        self.format().map(|_| ())
    }

    /// What QEMU's `-drive` takes, to open it under the name `id`. Its name is not taken for a protocol's, whatever is in it.
    pub fn drive(&self, id: &str, more: &str) -> Result<OsString> {
        let driver = if self.metadata()?.file_type().is_block_device() { "host_device" } else { "file" };
        let read_only = if self.read_only { ",read-only=on" } else { "" };
        let format = self.format()?;
        let mut drive = OsString::from(format!(
            "if=none,id={id},format={format},file.driver={driver}{read_only}{more},file.filename="
        ));
        drive.push(in_option(&self.path));
        Ok(drive)
    }

    fn metadata(&self) -> Result<std::fs::Metadata> {
        std::fs::metadata(&self.path).with_context(|| format!("cannot open the disk image {}", self.path.display()))
    }

    /// QEMU's name of its format.
    fn format(&self) -> Result<&'static str> {
        let name = self.path.display();
        let kind = self.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            bail!("{name} is neither a disk image nor a block device");
        }
        let open = OpenOptions::new().read(true).write(!self.read_only).open(&self.path);
        let hint = if self.read_only { "" } else { " ('FILE,ro' attaches one that may only be read)" };
        let mut file = open.with_context(|| format!("cannot open the disk image {name}{hint}"))?;
        match format_of(&mut file).with_context(|| format!("cannot read the disk image {name}"))? {
            Format::Known(format) => Ok(format),
            Format::Foreign(format) => {
                bail!(
                    "{name} is a {format} image, which cannot be written as it is: 'qemu-img convert -O qcow2' makes one that can"
                )
            }
        }
    }
}

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// QEMU opens it under this name.
    Known(&'static str),
    /// QEMU only reads it, or needs a key.
    Foreign(&'static str),
}

/// Where in a file the formats that QEMU knows have their magic, and which it is (QEMU's `block/*.c` and `docs/interop`).
const MAGICS: &[(u64, &[u8], Format)] = &[
    (0, b"QFI\xfb\0\0\0\x01", Format::Known("qcow")),
    (0, b"QFI\xfb", Format::Known("qcow2")),
    (0, b"QED\0", Format::Known("qed")),
    (0, b"KDMV", Format::Known("vmdk")),
    (0, b"COWD", Format::Known("vmdk")),
    (0, b"# Disk DescriptorFile", Format::Known("vmdk")),
    (0, b"vhdxfile", Format::Known("vhdx")),
    (0, b"conectix", Format::Known("vpc")),
    (0, b"WithoutFreeSpace", Format::Known("parallels")),
    (0, b"WithouFreSpacExt", Format::Known("parallels")),
    (64, &[0x7f, 0x10, 0xda, 0xbe], Format::Known("vdi")),
    (0, b"Bochs Virtual HD Image", Format::Foreign("Bochs")),
    (0, b"#!/bin/sh\n#V2.0 Format", Format::Foreign("cloop")),
    (0, b"LUKS\xba\xbe", Format::Foreign("LUKS")),
];
/// The same for those that end with a block of their own.
const LAST_BLOCK: &[(&[u8], Format)] = &[(b"conectix", Format::Known("vpc")), (b"koly", Format::Foreign("DMG"))];
const BLOCK_BYTES: u64 = 512;

fn format_of(file: &mut File) -> std::io::Result<Format> {
    let mut head = Vec::new();
    file.by_ref().take(BLOCK_BYTES).read_to_end(&mut head)?;
    let at = |at: u64| head.get(at as usize..).unwrap_or(&[]);
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

/// The name of a file as part of one of QEMU's options, which it splits at commas: one in a name is doubled.
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
            Disk::from(image.path().to_path_buf()).format().map_err(|error| error.to_string())
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

    #[test]
    fn a_disk_may_be_for_reading_only() {
        let image = image(&[], 512);
        let mut text = image.path().as_os_str().to_os_string();
        text.push(",ro");
        assert_eq!(Disk::parse(&text), Disk { path: image.path().into(), read_only: true });
        // A file of that very name.
        std::fs::write(&text, []).unwrap();
        assert_eq!(Disk::parse(&text), Disk { path: text.clone().into(), read_only: false });
        std::fs::remove_file(&text).unwrap();
    }

    #[test]
    fn names_are_told_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a,b:c.img");
        std::fs::write(&path, [0; 512]).unwrap();
        let text = Disk { path, read_only: true }.drive("d", ",cache=unsafe").unwrap().into_string().unwrap();
        assert!(
            text.starts_with("if=none,id=d,format=raw,file.driver=file,read-only=on,cache=unsafe,file.filename=/"),
            "{text}"
        );
        assert!(text.ends_with("/a,,b:c.img"), "{text}");
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let said = |path: &str| format!("{:#}", Disk::from(PathBuf::from(path)).check().unwrap_err());
        assert_eq!(said("/dev/null"), "/dev/null is neither a disk image nor a block device");
        assert_eq!(said("/"), "/ is neither a disk image nor a block device");
        assert!(said("/nowhere/disk.img").starts_with("cannot open the disk image /nowhere/disk.img: No such file"));
    }
}
