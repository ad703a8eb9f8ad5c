//! The remains of a driver that was ended: its registers and a copy of its memory, for a core file.
//!
//! The memory itself is its successor's soon. Only the last few drivers' copies are kept, and none
//! that takes too much of the kernel's heap.

use super::Domain;
use super::cause::{Cause, Site};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use hw::arch::Caller;
use hw::arch::frame::TrapFrame;
use hw::memory;
use ringfence_abi::layout::{HEAP, IMAGE, MAILBOX, PAGE_SIZE, STACK_TOP};
use ringfence_abi::manifest::DomainKind;
use ringfence_core::elf_core::Core;
use ringfence_core::extent::Extent;
use ringfence_core::vector::{DEBUG, DIVIDE_ERROR, INVALID_OPCODE};

/// The signal of a program that gives up.
const ABORT: u8 = 6;
/// The part of an address in the slot that 32-bit code knows.
const OWN: u64 = u32::MAX as u64;
/// How many drivers' remains are kept.
pub const KEPT: usize = 4;
/// The most bytes of one driver's memory that are copied.
const MOST_BYTES: u64 = 512 << 10;

/// The remains of a driver.
#[derive(Debug)]
pub struct Remains {
    kind: DomainKind,
    frame: TrapFrame,
    signal: u8,
    /// The build, and the address of its image.
    note: String,
    memory: Vec<(u64, Vec<u8>)>,
}

impl Remains {
    /// Copies the remains of `domain`. Returns `None` if there are no registers, as the driver was
    /// not in the middle of an upcall, or no room. 32-bit code has addresses of its own.
    pub fn of(domain: &Domain, cause: Cause, site: Site) -> Option<Remains> {
        let kind = domain.space.kind();
        let (frame, signal) = match site {
            Site::Trap(frame) => (*frame, signal(cause, frame.vector)),
            // The registers that a gate keeps of 32-bit code.
            Site::Gate(Caller { r12: rdi, rbp, rip, rsp, .. }) if kind == DomainKind::Segmented => {
                (TrapFrame { rdi, rbp, rip, rsp, ..TrapFrame::default() }, ABORT)
            }
            Site::Gate(Caller { r15, r14, r13, r12, rbp, rbx, rip, rsp }) => {
                (TrapFrame { r15, r14, r13, r12, rbp, rbx, rip, rsp, ..TrapFrame::default() }, ABORT)
            }
            Site::Nowhere => return None,
        };
        let base = domain.base();
        let stack =
            Extent::new(base + STACK_TOP - u64::from(domain.manifest.stack_bytes), domain.manifest.stack_bytes.into());
        // A driver that has moved its stack elsewhere has none here.
        let top = base + STACK_TOP;
        let used = Some(frame.rsp & !(PAGE_SIZE - 1)).filter(|start| stack.encloses(Extent::new(*start, PAGE_SIZE)));
        let parts = [
            Some(Extent::new(base + IMAGE, domain.image_bytes)),
            used.map(|start| Extent::new(start, top - start)),
            Some(Extent::new(base + MAILBOX, PAGE_SIZE)),
            Some(Extent::new(base + HEAP, domain.heap_bytes)),
        ];
        let len_bytes = parts.iter().flatten().map(|part| part.len_bytes).sum::<u64>().min(MOST_BYTES);
        // A core file is a second copy.
        if !memory::has_room(3 * len_bytes as usize) {
            return None;
        }
        let mut pages: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut left = MOST_BYTES / PAGE_SIZE;
        for page in parts.iter().flatten().flat_map(|part| pages_of(*part)) {
            let mut bytes = [0; PAGE_SIZE as usize];
            if left == 0 {
                break;
            }
            if !domain.space.read(page, &mut bytes) {
                continue;
            }
            left -= 1;
            match pages.last_mut() {
                Some((start, before)) if *start + before.len() as u64 == page => {
                    // There may be room, but in pieces.
                    before.try_reserve(bytes.len()).ok()?;
                    before.extend_from_slice(&bytes);
                }
                _ => pages.push((page, bytes.to_vec())),
            }
        }
        pages.sort_by_key(|(start, _)| *start);
        let mut image = base + IMAGE;
        let mut frame = frame;
        if kind == DomainKind::Segmented {
            pages.iter_mut().for_each(|(start, _)| *start -= base);
            (frame.rip, frame.rsp) = (frame.rip & OWN, frame.rsp & OWN);
            frame = frame.narrowed();
            // Its symbols are at the image's address already.
            image = 0;
        }
        let note = format!("{}#{} {image:#x}", domain.file.name, domain.file.build);
        Some(Remains { kind, frame, signal, note, memory: pages })
    }

    /// Returns the core file; `None` if there is no room for it.
    pub fn core(&self) -> Option<Vec<u8>> {
        if !memory::has_room(2 * self.memory.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()) {
            return None;
        }
        let TrapFrame { rip, rflags, .. } = self.frame;
        let (general, signal) = (self.frame.general(), self.signal);
        Core { kind: self.kind, general, rip, rflags, signal, note: &self.note, memory: &self.memory }.file()
    }
}

fn pages_of(part: Extent) -> impl Iterator<Item = u64> {
    let first = part.start & !(PAGE_SIZE - 1);
    (first..part.start.saturating_add(part.len_bytes)).step_by(PAGE_SIZE as usize)
}

/// Returns the number of the signal that a program would get under Linux.
fn signal(cause: Cause, vector: u64) -> u8 {
    match (cause, vector) {
        (Cause::Overrun, _) => 24,
        (_, DIVIDE_ERROR) => 8,
        (_, DEBUG) => 5,
        (_, INVALID_OPCODE) => 4,
        _ => 11,
    }
}
