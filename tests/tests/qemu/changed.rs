//! Machines with a changed copy of a module, most of them with changes in the manifest.

use ringfence::machine::Machine;
use ringfence_abi::manifest::Manifest;
use ringfence_tests::{bare, machine, system};
use std::mem::offset_of;
use tempfile::TempDir;

/// Offsets into a manifest.
pub const FLAGS: usize = offset_of!(Manifest, flags);
pub const PCI_ID: usize = offset_of!(Manifest, pci_ids);
pub const METHOD: usize = offset_of!(Manifest, reset.method);
pub const OFFSET: usize = offset_of!(Manifest, reset.offset);
pub const ZERO: usize = offset_of!(Manifest, reset.zero);
pub const WAIT_MASK: usize = offset_of!(Manifest, reset.wait_mask);
pub const WAIT_VALUE: usize = offset_of!(Manifest, reset.wait_value);
pub const LIMIT_US: usize = offset_of!(Manifest, reset.limit_us);
pub const HEAP_BYTES: usize = offset_of!(Manifest, heap_bytes);
pub const DMA_BYTES: usize = offset_of!(Manifest, dma_bytes);

/// Offset of the name in a manifest.
const NAME: usize = offset_of!(Manifest, name);

/// Returns a machine with a copy of `module` under the name `name`. `changes` are words of its
/// manifest: offsets and new values.
pub fn with_other_manifest(module: &str, name: &str, changes: &[(usize, u32)], commands: &str) -> (Machine, TempDir) {
    let module = system().modules.iter().find(|other| other.name == module).expect("the module is built");
    let mut bytes = std::fs::read(&module.packed).unwrap();
    let manifest = bytes.windows(8).position(|window| window == b"RINGFNCE").expect("a manifest");
    bytes[manifest + NAME..][..32].fill(0);
    bytes[manifest + NAME..][..name.len()].copy_from_slice(name.as_bytes());
    for (offset, value) in changes {
        bytes[manifest + offset..][..4].copy_from_slice(&value.to_le_bytes());
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(format!("{name}.rfm"));
    std::fs::write(&path, bytes).unwrap();
    let mut machine = machine(commands);
    machine.contents.autoload = false;
    machine.contents.modules.push(path);
    (machine, directory)
}

/// Returns a machine with `late`, a copy of `rogue` whose `init` fails if it runs more than a
/// second after the start. Also returns the offset of that time in the file.
pub fn with_late(commands: &str) -> (Machine, TempDir, usize) {
    const LATEST_NS: u64 = 1_000_000_000;
    let module = system().modules.iter().find(|module| module.name == "rogue").expect("the module is built");
    let mut bytes = std::fs::read(&module.packed).unwrap();
    let find =
        |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|window| window == part).expect("it is there");
    let latest = find(&bytes, b"init-by:") + 8;
    bytes[latest..][..8].copy_from_slice(&LATEST_NS.to_le_bytes());
    let name = find(&bytes, b"rogue\0\0\0\0\0\0\0\0\0\0\0");
    bytes[name..][..5].copy_from_slice(b"late\0");
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("late.rfm");
    std::fs::write(&path, bytes).unwrap();
    let mut machine = bare(commands);
    machine.contents.modules.push(path);
    (machine, directory, latest)
}
