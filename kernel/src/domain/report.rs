//! How a fault is said to a person: what, where, with what in hand.

use super::calls::service_name;
use super::fault::{Cause, Site};
use super::memory::describe;
use super::{Domain, Ring};
use crate::arch::time;
use crate::arch::traps::exception_name;
use crate::symbols;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::fmt::Write;
use ringfence_abi::layout::IMAGE;
use ringfence_core::descriptor::{SelectorName, describe_selector};
use ringfence_core::disassembly::{self, MAX_INSTRUCTION};
use ringfence_core::module::symbol_at;

/// Words of the stack that are shown, and that are searched for return addresses.
const STACK_SHOWN: u64 = 8;
const STACK_COLUMNS: usize = 3;
const STACK_SEARCHED: u64 = 64;
/// Return addresses that are shown.
const CALLERS: usize = 4;

/// Where it happened, the registers, the stack, and what the driver had.
pub fn write_details(out: &mut String, domain: &Domain, site: Site) -> fmt::Result {
    let sandboxed = domain.ring() == Ring::Sandboxed;
    let mut ring = if sandboxed { 1 } else { 0 };
    match site {
        Site::Trap(frame) => {
            ring = frame.cs & 3;
            writeln!(out, "    at {}", Place { domain, rip: frame.rip })?;
            if let Some(instruction) = instruction(domain, frame.rip) {
                writeln!(out, "    {instruction}")?;
            }
        }
        // The stub was called: its return address is right there.
        Site::Gate { rsp } => {
            if let Some(caller) = word(domain, rsp) {
                writeln!(out, "    at {}", Place { domain, rip: caller.wrapping_sub(1) })?;
            }
        }
        Site::Nowhere => {}
    }
    writeln!(
        out,
        "    version {}, ring {ring}, slot {}, upcall {}, up {} us",
        domain.manifest.version(),
        domain.space.slot(),
        domain.upcalls,
        time::uptime_ns() / 1000
    )?;
    match site {
        Site::Trap(frame) => {
            writeln!(out, "{frame}")?;
            write_stack(out, domain, frame.rsp)?;
        }
        Site::Gate { rsp } => write_stack(out, domain, rsp)?,
        Site::Nowhere => {}
    }
    write_held(out, domain)
}

/// The word at `address`, if that is the driver's own memory.
fn word(domain: &Domain, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    domain.space.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
}

/// The instruction at `rip`, if that is the driver's own memory.
fn instruction(domain: &Domain, rip: u64) -> Option<String> {
    let mut code = [0; MAX_INSTRUCTION];
    // It may be the last one of its page.
    let readable = |&len: &usize| code.get_mut(..len).is_some_and(|code| domain.space.read(rip, code));
    let len = (1..=MAX_INSTRUCTION).rev().find(readable)?;
    disassembly::instruction(code.get(..len)?, rip)
}

/// The words at `rsp`, and those further up that look like return addresses.
fn write_stack(out: &mut String, domain: &Domain, rsp: u64) -> fmt::Result {
    let word = |index: u64| word(domain, rsp.checked_add(index * 8)?);
    if word(0).is_none() {
        return writeln!(out, "    stack: none, rsp is in {}", describe(domain, rsp));
    }
    for (index, word) in (0..STACK_SHOWN).map_while(word).enumerate() {
        let lead = match index {
            0 => "    stack:",
            _ if index.is_multiple_of(STACK_COLUMNS) => "\n          ",
            _ => "",
        };
        write!(out, "{lead} {word:016x}")?;
    }
    writeln!(out)?;
    // Behind a call inside a function: where a function begins nothing returns to.
    let is_return = |address: &u64| symbol(domain, address.wrapping_sub(1)).is_some();
    let mut callers = (0..STACK_SEARCHED).map_while(word).filter(is_return).take(CALLERS).peekable();
    if callers.peek().is_some() {
        writeln!(out, "    words that may be return addresses:")?;
    }
    for caller in callers {
        // A call at a function's very end returns behind it.
        writeln!(out, "        {}", Place { domain, rip: caller - 1 })?;
    }
    Ok(())
}

/// What the driver has, and gives back when it is ended.
fn write_held(out: &mut String, domain: &Domain) -> fmt::Result {
    write!(out, "    held: ")?;
    let mut others = Vec::new();
    if let Some(device) = &domain.device {
        let bars = device.mapped.iter().flatten().count();
        others.push(format!("device {}, {bars} BARs", device.function().address));
    }
    if let Some(scsi) = &domain.scsi {
        others.push(format!("{} SCSI requests", scsi.under_way()));
    }
    if let Some(net) = &domain.net {
        others.push(format!("{} frames to send", net.handed_over()));
    }
    if !others.is_empty() {
        write!(out, "{},\n          ", others.join(", "))?;
    }
    let dma = domain.dma.iter().map(|region| region.extent.len_bytes).sum::<u64>();
    let kib = |bytes: u64| bytes / 1024;
    let (heap, image) = (domain.heap_bytes, domain.image_bytes);
    writeln!(out, "image {} KiB, heap {} KiB, DMA {} KiB", kib(image), kib(heap), kib(dma))
}

/// What happened, without where.
pub fn write_cause(out: &mut String, domain: &Domain, cause: Cause, site: Site) -> fmt::Result {
    match (cause, site) {
        (Cause::Exception { address: Some(address) }, Site::Trap(frame)) => {
            // Page-fault error code (SDM vol. 3A, 4.7): bit 1 write, bit 4 instruction fetch.
            let verb = match (frame.error_code & 1 << 1 != 0, frame.error_code & 1 << 4 != 0) {
                (_, true) => "executing",
                (true, _) => "writing",
                _ => "reading",
            };
            write!(out, "#PF {verb} {address:#x} ({})", describe(domain, address))
        }
        (Cause::Exception { .. }, Site::Trap(frame)) => {
            write!(out, "{}", exception_name(frame.vector))?;
            const WITH_SELECTOR: [u64; 4] = [10, 11, 12, 13];
            if !WITH_SELECTOR.contains(&frame.vector) || frame.error_code == 0 {
                return Ok(());
            }
            match describe_selector(frame.error_code) {
                SelectorName::Gate(number) => write!(out, " on the gate of {}", service_name(number)),
                SelectorName::ReturnGate => write!(out, " on the return gate"),
                SelectorName::Interrupt(vector) => {
                    // The instruction itself is the better witness: QEMU shifts the vector by 4 in place of 3.
                    let mut code = [0; 2];
                    let vector = match (domain.space.read(frame.rip, &mut code), code) {
                        (true, [0xcd, vector]) => vector,
                        (true, [0xcc, _]) => 3,
                        _ => vector,
                    };
                    write!(out, " on int {vector:#x}")
                }
                SelectorName::Global(entry) => write!(out, " on entry {entry} of the GDT"),
                SelectorName::Local(entry) => write!(out, " on entry {entry} of the LDT"),
            }
        }
        (Cause::Exception { .. }, _) => write!(out, "an exception"),
        (Cause::Overrun, _) => write!(out, "took longer than {} ms", domain.manifest.upcall_ms),
        (Cause::Stuck { what, limit_ms }, _) => write!(out, "left a {what} undone for {limit_ms} ms"),
        (Cause::Killed, _) => write!(out, "killed"),
        (Cause::Panic, _) => write!(out, "gave up"),
        (Cause::BadPointer { address, len_bytes }, _) => {
            let last = domain.calls.last().map_or("?", |call| service_name(call.service));
            write!(out, "bad pointer to {last}: {len_bytes:#x} bytes at {address:#x} ({})", describe(domain, address))
        }
        (Cause::QueueLie { queue, claimed, counted }, _) => {
            write!(out, "lied about the {queue} queue: position {claimed:#x}, but {counted:#x} is counted")
        }
        (Cause::QueueEntry { queue, entry }, _) => write!(out, "bad entry {entry:#x} in the {queue} queue"),
    }
}

/// Where in the driver an address lies: `function+0x12`, or what else it is.
struct Place<'a> {
    domain: &'a Domain,
    rip: u64,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match symbol(self.domain, self.rip) {
            Some((name, into, offset)) => {
                write!(f, "{}+{into:#x} ({}+{offset:#x})", symbols::Demangled(name), self.domain.file.name)
            }
            None => write!(f, "{:#x} ({})", self.rip, describe(self.domain, self.rip)),
        }
    }
}

/// The function that `address` lies in, how far into it, and how far into the image.
fn symbol(domain: &Domain, address: u64) -> Option<(&[u8], u64, u64)> {
    let offset = address.wrapping_sub(domain.base() + IMAGE);
    let (name, into) = symbol_at(&domain.file.bytes, offset).filter(|_| offset < domain.image_bytes)?;
    Some((name, into, offset))
}
