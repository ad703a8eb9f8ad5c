//! Whether this machine keeps segmented domains where they belong: a domain of that kind tries it
//! at boot ([`hw::arch::confinement`]), before any module is loaded.

use super::{LoadError, map};
use crate::file::{Content, File};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use hw::arch::confinement::{CHECKS, code};
use ringfence_abi::ABI_VERSION;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::manifest::{self, BY_HAND, DomainKind, Kind, MAGIC, MIN_STACK, Manifest, Policy};
use ringfence_abi::reset::Reset;
use ringfence_abi::upcall::NULL;
use ringfence_core::extent::Extent;
use ringfence_core::module::{Imports, Module, Segment};
use spin::Mutex;

/// The result of the self-test: nothing, or the reason why the kind is refused.
static FOUND: Mutex<Option<Result<(), String>>> = Mutex::new(None);

/// Returns nothing if segmented domains hold on this machine, or the reason why they are refused.
/// It is tried at the first call, and again only if there was no room for the domain that tries it.
pub fn check() -> Result<(), String> {
    if let Some(found) = FOUND.lock().clone() {
        return found;
    }
    let found = run().map_err(|error| error.to_string())?;
    *FOUND.lock() = Some(found.clone());
    found
}

/// Has a domain try it. The error says why there is no such domain.
fn run() -> Result<Result<(), String>, LoadError> {
    let code = code();
    let file = File { name: "self-test".into(), build: 0, bytes: Content::Ramdisk(code) };
    let pages = Extent::new(0, (code.len() as u64).next_multiple_of(PAGE_SIZE));
    let module = Module {
        domain: DomainKind::Segmented,
        manifest: describe(),
        segments: [Segment { pages, start: 0, bytes: code, writable: false, executable: true }].into(),
        relocations: Vec::new(),
        zeros: Vec::new(),
        relro: None,
        len_bytes: pages.len_bytes,
        entry: 0,
        imports: Imports::default(),
        parameters: Vec::new(),
        registers: Vec::new(),
    };
    let mut domain = map::map(&file, module, &[], None, None)?;
    Ok(domain.upcall(NULL, [0; 3]).map_err(|error| format!("the self-test: {error}")).and_then(judge))
}

/// Returns the meaning of the bits of the code's result.
fn judge(failed: u64) -> Result<(), String> {
    match CHECKS.iter().enumerate().find(|(bit, _)| failed & 1 << bit != 0) {
        Some((_, what)) => Err((*what).to_string()),
        None if failed == 0 => Ok(()),
        None => Err(format!("the self-test returned {failed:#x}")),
    }
}

fn describe() -> Manifest {
    Manifest {
        magic: MAGIC,
        abi_version: ABI_VERSION,
        kind: Kind::Other as u32,
        name: manifest::field("self-test"),
        version: manifest::field(env!("CARGO_PKG_VERSION")),
        pci_ids: manifest::pci_ids(&[]),
        fixed_ports: [0; manifest::MAX_FIXED],
        heap_bytes: 0,
        dma_bytes: 0,
        stack_bytes: MIN_STACK as u32,
        upcall_ms: 200,
        policy: Policy::Stop as u32,
        flags: BY_HAND,
        reset: Reset::UNKNOWN,
        uses: Kind::Other as u32,
        reserved: 0,
    }
}
