//! The report of a fault for a person: the fault, its place, and the resources that the driver
//! held.
//!
//! A [`Scene`] has all the data for the report. It is taken when the driver is ended, and is put
//! into words ([`Words`]) when the driver is back: finding the words takes longer than bringing a
//! driver back.

use super::cause::{Cause, Site};
use super::hardware::Which;
use super::memory::describe;
use super::virtio::{self, QueuePart};
use super::{Domain, Ring};
use crate::file::File;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::fmt::Write;
use hw::arch::Caller;
use hw::arch::frame::{Narrow, TrapFrame};
use hw::arch::{entry_area, line, time, vector};
use hw::link;
use hw::memory;
use hw::space::lifted;
use hw::symbols;
use ringfence_abi::layout::{IMAGE, PAGE_SIZE, SLOT_SIZE, STUBS, slot_base};
use ringfence_abi::manifest::DomainKind;
use ringfence_abi::manifest::Manifest;
use ringfence_abi::upcall::{self, Events};
use ringfence_core::disassembly::{self, MAX_INSTRUCTION};
use ringfence_core::extent::Extent;
use ringfence_core::fault::Happened;
use ringfence_core::module::symbol_at;
use ringfence_core::port_bitmap::Ports;
use ringfence_link::event;
use x86_64::VirtAddr;

/// The number of stack words that are shown, and the number that are searched for return addresses.
const STACK_SHOWN: usize = 8;
const STACK_COLUMNS: usize = 3;
const STACK_SEARCHED: u64 = 64;
/// The number of return addresses that are shown.
const CALLERS: usize = 4;

/// An address, and a description of the memory there at the time.
#[derive(Debug, Clone, Copy)]
struct Spot {
    address: u64,
    what: &'static str,
}

impl Spot {
    fn new(domain: &Domain, address: u64) -> Spot {
        Spot { address, what: describe(domain, address) }
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ({})", self.address, self.what)
    }
}

/// The state of a driver when it was ended: its action, its place, and its resources.
#[derive(Debug)]
pub struct Scene {
    name: String,
    file: File,
    manifest: Manifest,
    /// The address of its image.
    image: u64,
    image_bytes: u64,
    slot: usize,
    ring: u64,
    upcall: u64,
    events: Events,
    /// Whether that upcall was under way, or had returned.
    was_running: bool,
    upcalls: u64,
    at_us: u64,
    cause: Cause,
    /// The driver's message when it gave up, if it did.
    last_words: String,
    /// After a DMA fault: a description of the memory at the address, words in the driver's DMA
    /// memory that name it, and the part of a queue that is there.
    lies_there: String,
    names: Vec<(Spot, u64)>,
    queue_part: Option<QueuePart>,
    /// The address that the cause names, if it names one.
    accused: Option<Spot>,
    frame: Option<TrapFrame>,
    /// The arguments of the service call, and the caller's other registers.
    call: Option<([u64; 3], Caller)>,
    /// The address at which the driver ran, or from which it called.
    rip: Option<Spot>,
    /// The call sites of the functions that the driver was in when it gave up, innermost first.
    callers: Vec<Spot>,
    code: Vec<u8>,
    kind: DomainKind,
    rsp: Option<Spot>,
    stack: Vec<u64>,
    last_service: Option<usize>,
    held: Held,
}

/// The resources that a driver has, and gives back when it is ended.
#[derive(Debug)]
struct Held {
    device: Option<HeldDevice>,
    gates: usize,
    /// The items of its offer that are in hand: how many, and their name.
    offered: Option<(usize, &'static str)>,
    heap_bytes: u64,
    dma_bytes: u64,
}

#[derive(Debug)]
struct HeldDevice {
    which: Which,
    /// The number of register regions that are mapped.
    regions: usize,
    ports: Vec<Ports>,
    /// The lines on which the device's interrupts reach the driver, as a set of bits.
    lines: u64,
}

impl fmt::Display for HeldDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions = if self.which.function().is_some() { "BARs" } else { "runs of ports" };
        write!(f, "device {}, {} {regions}", self.which, self.regions)?;
        for Ports { first, count } in &self.ports {
            write!(f, ", ports {first:#x} to {:#x}", first.saturating_add(count.saturating_sub(1)))?;
        }
        match (self.lines, u8::try_from(self.lines.trailing_zeros())) {
            (0, _) | (_, Err(_)) => Ok(()),
            (_, Ok(line)) if line < line::WIRES => write!(f, ", line {line}"),
            (lines, _) => write!(f, ", {} interrupts of its own", lines.count_ones()),
        }
    }
}

/// Returns the address that a device reached for beyond its fence, if that is the cause.
fn dma_address(cause: Cause) -> Option<u64> {
    match cause {
        Cause::Dma { address, .. } => Some(address),
        _ => None,
    }
}

/// Finds words in the driver's DMA memory that are addresses in the page at `address`: a descriptor
/// of its device may be there. Returns the place and the value of each word.
fn places_that_name(domain: &Domain, address: u64) -> Vec<(Spot, u64)> {
    const MOST_PAGES: usize = 256;
    const MOST_PLACES: usize = 3;
    let mut found = Vec::new();
    let pages = domain.dma.iter().flat_map(|region| {
        let start = region.extent.start;
        memory::pages(region.extent.len_bytes).map(move |offset| start + offset)
    });
    for page in pages.take(MOST_PAGES) {
        let mut bytes = [0; PAGE_SIZE as usize];
        if !domain.space.read(page, &mut bytes) {
            continue;
        }
        let is_there = |word: u64| word & !(PAGE_SIZE - 1) == address;
        let (words, _) = bytes.as_chunks::<8>();
        for (index, word) in words.iter().enumerate() {
            let [a, b, c, d, e, f, g, h] = *word;
            let at = page + 8 * index as u64;
            let halves = [(at, u32::from_le_bytes([a, b, c, d])), (at + 4, u32::from_le_bytes([e, f, g, h]))];
            let whole = u64::from_le_bytes(*word);
            match halves.into_iter().find(|(_, half)| address != 0 && is_there((*half).into())) {
                _ if address != 0 && is_there(whole) => found.push((Spot::new(domain, at), whole)),
                Some((at, half)) => found.push((Spot::new(domain, at), half.into())),
                None => {}
            }
            if found.len() == MOST_PLACES {
                return found;
            }
        }
    }
    found
}

impl Scene {
    /// Records the fault of `domain` and its place.
    pub fn new(domain: &Domain, cause: Cause, site: Site) -> Scene {
        let word = |address: u64| {
            let mut bytes = [0; 8];
            domain.space.read(address, &mut bytes).then(|| u64::from_le_bytes(bytes))
        };
        let (frame, rip, rsp) = match site {
            Site::Trap(frame) => (Some(*frame), Some(frame.rip), Some(frame.rsp)),
            Site::Gate(Caller { rip, rsp, .. }) => {
                // If the driver called the stub, the stub's return address is on top of the stack.
                // RSP may point anywhere, as the driver pleases; the RIP that the CPU pushed cannot
                // be forged.
                let stubs = Extent::new(domain.base() + STUBS, PAGE_SIZE);
                let is_stub = stubs.contains(rip);
                let returns_to = match (is_stub, domain.space.lift()) {
                    (false, _) => Some(rip),
                    (true, 0) => word(rsp),
                    // Such a stub has pushed two words of 32 bits.
                    (true, lift) => word(rsp.wrapping_add(8)).map(|word| lifted(word & u64::from(u32::MAX), lift)),
                };
                (None, returns_to.map(|returns_to| call_site(domain, returns_to)), Some(rsp))
            }
            Site::Nowhere => (None, None, None),
        };
        let call = match site {
            Site::Gate(caller) => domain.calls.last().map(|call| (call.arguments, caller)),
            _ => None,
        };
        let accused = match cause {
            Cause::Exception { address } => {
                address.or_else(|| frame.as_ref().and_then(|frame| not_canonical(domain, frame)))
            }
            Cause::BadPointer { address, .. } => Some(address),
            // The device's addresses are the driver's, counted from the start of the slot.
            Cause::Dma { address, .. } if address < SLOT_SIZE => Some(domain.base() + address),
            _ => None,
        };
        let stack = |rsp: u64| {
            let words = (0..STACK_SEARCHED).map_while(|index| word(rsp.checked_add(index * 8)?));
            match domain.space.kind() {
                DomainKind::Paged => words.collect(),
                DomainKind::Segmented => words.flat_map(|word| [word & u64::from(u32::MAX), word >> 32]).collect(),
            }
        };
        let spot = |address: u64| Spot::new(domain, address);
        let callers = match site {
            Site::Gate(Caller { rbp, .. }) if cause == Cause::Panic => callers(domain, rbp, word),
            _ => Vec::new(),
        };
        Scene {
            name: domain.name.clone(),
            file: domain.file.clone(),
            manifest: domain.manifest,
            image: domain.base() + IMAGE,
            image_bytes: domain.image_bytes,
            slot: domain.space.slot(),
            ring: if domain.ring() == Ring::Sandboxed { 1 } else { 0 },
            upcall: domain.upcall,
            events: domain.events,
            was_running: domain.is_in_upcall(),
            upcalls: domain.upcalls,
            at_us: time::uptime_ns() / 1000,
            cause,
            last_words: domain.last_words.clone(),
            lies_there: domain.lies_there.clone(),
            names: dma_address(cause).map_or(Vec::new(), |address| places_that_name(domain, address)),
            queue_part: dma_address(cause).and_then(|address| virtio::queue_part(domain, address)),
            accused: accused.map(spot),
            code: rip.map_or(Vec::new(), |rip| code(domain, rip)),
            kind: domain.space.kind(),
            frame: frame.map(|frame| if domain.is_segmented() { frame.narrowed() } else { frame }),
            call,
            rip: rip.map(spot),
            callers,
            rsp: rsp.map(spot),
            stack: rsp.map_or(Vec::new(), stack),
            last_service: domain.calls.last().map(|call| call.service),
            held: Held {
                device: domain.device.as_ref().map(|device| HeldDevice {
                    which: device.which(),
                    regions: device.mapped.iter().flatten().count(),
                    ports: device.ports().collect(),
                    lines: device.active_lines(),
                }),
                gates: domain.imports.iter().count(),
                offered: domain.offer.as_ref().map(|offer| offer.in_hand()),
                heap_bytes: domain.heap_bytes,
                dma_bytes: domain.dma_bytes(),
            },
        }
    }

    /// Returns the description of the fault, without its place. `reason` is the fence's reason.
    fn happened<'a>(&'a self, reason: &'a str) -> Happened<'a> {
        Happened {
            cause: self.cause,
            exception: self.frame.as_ref().map(TrapFrame::exception),
            accused: self.accused.map(|Spot { address, what }| (address, what)),
            code: &self.code,
            upcall_ms: self.manifest.upcall_ms,
            service: self.last_service,
            reason,
        }
    }

    /// Writes the place, the registers, the stack, and the driver's resources.
    fn write_details(&self, out: &mut String) -> fmt::Result {
        // Blame the caller of a library for the library's actions.
        let blamed = self.callers.iter().find(|caller| !self.is_library(caller.address));
        if let Some(rip) = blamed.copied().or(self.rip) {
            let place = match entry_area::is_text(rip.address) {
                true => Some(format!("{} ({})", symbols::Location(rip.address), rip.what)),
                false => self.place(rip.address),
            };
            writeln!(out, "    at {}", place.unwrap_or_else(|| format!("{rip}")))?;
            if blamed.is_none()
                && let Some(instruction) = disassembly::instruction(self.kind, &self.code, rip.address)
            {
                writeln!(out, "    {instruction}")?;
            }
        }
        if let Cause::Dma { address, .. } = self.cause {
            let lies = &self.lies_there;
            writeln!(out, "    its addresses begin with the slot; physical address {address:#x} is {lies}")?;
            for (place, word) in &self.names {
                writeln!(out, "    named at {place}: {word:#x}")?;
            }
            if let Some(QueuePart { queue, part }) = self.queue_part {
                writeln!(out, "    it is told that the {part} of queue {queue} is there")?;
            }
        }
        writeln!(
            out,
            "    version {}{}, ring {}{}, slot {}, upcall {}, up {} us",
            self.manifest.version(),
            if self.file.build > 0 { format!(", build {}", self.file.build) } else { String::new() },
            self.ring,
            if self.kind == DomainKind::Segmented { ", segmented" } else { "" },
            self.slot,
            self.upcalls,
            self.at_us
        )?;
        let is_narrow = self.kind == DomainKind::Segmented;
        match &self.frame {
            Some(frame) if is_narrow => writeln!(out, "{}", Narrow(frame))?,
            Some(frame) => writeln!(out, "{frame}")?,
            None => {}
        }
        // The call's arguments, and the registers that a call preserves (System V). Of 32-bit code,
        // the others hold arguments, which the call itself shows.
        if let Some((_, Caller { r12: edi, rbp, rip, rsp, .. })) = self.call.as_ref().filter(|_| is_narrow) {
            let [edi, ebp, esp, eip] = [edi, rbp, rsp, rip].map(|register| *register as u32);
            writeln!(out, "    edi={edi:08x} ebp={ebp:08x} esp={esp:08x} eip={eip:08x}")?;
        } else if let Some(([rdi, rsi, rdx], Caller { r15, r14, r13, r12, rbp, rbx, rip, rsp })) = &self.call {
            writeln!(out, "    rdi={rdi:016x} rsi={rsi:016x} rdx={rdx:016x}")?;
            writeln!(out, "    rbx={rbx:016x} rbp={rbp:016x} rsp={rsp:016x}")?;
            writeln!(out, "    r12={r12:016x} r13={r13:016x} r14={r14:016x}")?;
            writeln!(out, "    r15={r15:016x} rip={rip:016x}")?;
        }
        self.write_stack(out)?;
        self.write_held(out)
    }

    /// Writes the words on the stack, and the words further up that look like return addresses.
    fn write_stack(&self, out: &mut String) -> fmt::Result {
        let Some(rsp) = self.rsp else { return Ok(()) };
        if self.stack.is_empty() {
            return writeln!(out, "    stack: none, rsp is in {}", rsp.what);
        }
        // A segmented driver's words have half as many bytes, and its addresses no slot.
        let (columns, digits, lift) = match self.kind {
            DomainKind::Paged => (STACK_COLUMNS, 16, 0),
            DomainKind::Segmented => (2 * STACK_COLUMNS, 8, slot_base(self.slot)),
        };
        for (index, word) in self.stack.iter().take(STACK_SHOWN).enumerate() {
            let lead = match index {
                0 => "    stack:",
                _ if index.is_multiple_of(columns) => "\n          ",
                _ => "",
            };
            write!(out, "{lead} {word:0digits$x}")?;
        }
        writeln!(out)?;
        // Look up the byte before the address, which belongs to the call: no call returns to a
        // function's first byte.
        let call = |word: &u64| lifted(*word, lift).checked_sub(1).filter(|call| self.symbol(*call).is_some());
        let mut calls = self.stack.iter().filter_map(call).take(CALLERS).peekable();
        if calls.peek().is_some() {
            writeln!(out, "    words that may be return addresses:")?;
        }
        for address in calls {
            // The call may be the last instruction of a function, so print its place and not the
            // return address.
            if let Some(place) = self.place(address) {
                writeln!(out, "        {place}")?;
            }
        }
        Ok(())
    }

    fn write_held(&self, out: &mut String) -> fmt::Result {
        write!(out, "    held: ")?;
        let Held { device, gates, offered, heap_bytes, dma_bytes } = &self.held;
        if let Some(device) = device {
            write!(out, "{device},\n          ")?;
        }
        let others = [Some(format!("{gates} gates")), offered.map(|(count, what)| format!("{count} {what}"))];
        let others: Vec<String> = others.into_iter().flatten().collect();
        let kib = |bytes: u64| bytes / 1024;
        let (image, heap, dma) = (kib(self.image_bytes), kib(*heap_bytes), kib(*dma_bytes));
        writeln!(out, "{}, image {image} KiB, heap {heap} KiB, DMA {dma} KiB", others.join(", "))
    }

    /// Returns the report for programs. The kind, the calls and the kernel's reaction are not part
    /// of a scene.
    fn facts(&self, headline: &str) -> event::Fault<'static> {
        let symbol = self.rip.and_then(|rip| self.symbol(rip.address));
        let offset = |address: u64| address.checked_sub(self.image).filter(|offset| *offset < self.image_bytes);
        event::Fault {
            driver: self.name.clone().into(),
            module: self.file.name.clone().into(),
            build: self.file.build,
            version: self.manifest.version().to_string().into(),
            domain_kind: self.kind.name().into(),
            ring: self.ring as u8,
            slot: self.slot as u64,
            kind: "".into(),
            headline: headline.to_string().into(),
            upcall: upcall::name(self.upcall).into(),
            was_running: self.was_running,
            upcalls: self.upcalls,
            at_us: self.at_us,
            address: self.accused.map(|accused| accused.address).or(dma_address(self.cause)),
            rip: self.rip.map(|rip| rip.address),
            offset: self.rip.and_then(|rip| offset(rip.address)),
            function: symbol.map(|(name, ..)| symbols::Demangled(name).to_string().into()),
            callers: self.callers.iter().filter_map(|caller| offset(caller.address)).collect(),
            code: self.code.clone(),
            stack: self.stack.iter().copied().take(STACK_SHOWN).collect(),
            exception: self.frame.as_ref().map(|frame| event::Exception {
                vector: frame.vector,
                error_code: frame.error_code,
                registers: frame.general(),
                rflags: frame.rflags,
            }),
            calls: Vec::new(),
            then: "".into(),
        }
    }

    fn place(&self, address: u64) -> Option<String> {
        place_name(&self.file, self.symbol(address))
    }

    /// Returns whether the function at `address` belongs to Rust's libraries or to the SDK. An
    /// address without a symbol counts as such.
    fn is_library(&self, address: u64) -> bool {
        const LIBRARIES: [&str; 6] = ["core::", "alloc::", "ringfence_sdk::", "__rust", "rust_", "compiler_builtins::"];
        let name = self.symbol(address).map(|(name, ..)| format!("{}", symbols::Demangled(name)));
        name.is_none_or(|name| LIBRARIES.iter().any(|library| name.trim_start_matches('<').starts_with(library)))
    }

    fn symbol(&self, address: u64) -> Option<(&[u8], u64, u64)> {
        symbol(&self.file, self.image, self.image_bytes, address)
    }
}

/// Returns the address that the instruction at a #GP or #SS tried to access, if that address is not
/// canonical: the CPU does not report it.
fn not_canonical(domain: &Domain, frame: &TrapFrame) -> Option<u64> {
    // 32-bit code has no such addresses.
    let can_be = !domain.is_segmented() && frame.error_code == 0;
    if !can_be || ![vector::STACK_FAULT, vector::GENERAL_PROTECTION].contains(&frame.vector) {
        return None;
    }
    let address = disassembly::operand_address(&code(domain, frame.rip), frame.rip, frame.general())?;
    VirtAddr::try_new(address).is_err().then_some(address)
}

/// Returns the name of the function at `address`, the offset in the function, and the offset in the
/// image.
fn symbol(file: &File, image: u64, image_bytes: u64, address: u64) -> Option<(&[u8], u64, u64)> {
    let offset = address.checked_sub(image).filter(|offset| *offset < image_bytes)?;
    let (name, into) = symbol_at(&file.bytes, offset)?;
    Some((name, into, offset))
}

/// Describes the place of the instruction after which a trap came at `rip`. If the instruction was
/// a jump, only its target is known.
pub fn before(domain: &Domain, rip: u64) -> String {
    let address = rip.wrapping_sub(1);
    let found = symbol(&domain.file, domain.base() + IMAGE, domain.image_bytes, address);
    match place_name(&domain.file, found) {
        Some(place) => format!("at {place}"),
        // The trap was held back until the driver had entered a gate.
        None if symbols::is_kernel_text(rip) => format!("before {}", symbols::Location(rip)),
        None => format!("before {}", Spot::new(domain, rip)),
    }
}

/// Describes a place in the image of a file that is not loaded.
pub fn place_in(file: &File, offset: u64) -> String {
    let found = symbol_at(&file.bytes, offset).map(|(name, into)| (name, into, offset));
    place_name(file, found).unwrap_or_else(|| format!("{}+{offset:#x}", file.label()))
}

/// Returns the words for a place that [`symbol`] found.
fn place_name(file: &File, found: Option<(&[u8], u64, u64)>) -> Option<String> {
    let (name, into, offset) = found?;
    Some(format!("{}+{into:#x} ({}+{offset:#x})", symbols::Demangled(name), file.label()))
}

/// Returns the call sites that a panic is in, found by frame pointers. The stack's content is under
/// the driver's control, so frame pointers are followed only as long as they go up, and for a
/// limited number of frames.
fn callers(domain: &Domain, mut rbp: u64, word: impl Fn(u64) -> Option<u64>) -> Vec<Spot> {
    const MOST: usize = 24;
    let mut callers = Vec::new();
    // A segmented driver's words have 32 bits, and no slot.
    let lift = domain.space.lift();
    let (step, bits) = if lift == 0 { (8, u64::MAX) } else { (4, u32::MAX.into()) };
    let word = |address: u64| word(address).map(|word| lifted(word & bits, lift));
    rbp = lifted(rbp, lift);
    while callers.len() < MOST
        && let Some(returns_to) = rbp.checked_add(step).and_then(word)
    {
        callers.push(Spot::new(domain, call_site(domain, returns_to)));
        match word(rbp) {
            Some(next) if next > rbp => rbp = next,
            _ => break,
        }
    }
    callers
}

/// Returns the address of the call that returns to `returns_to`. If no call is recognised there,
/// returns the address of the last byte before it.
fn call_site(domain: &Domain, returns_to: u64) -> u64 {
    let mut code = [0; MAX_INSTRUCTION];
    let start = returns_to.wrapping_sub(code.len() as u64);
    let len = if domain.space.read(start, &mut code) { disassembly::call_before(&code) } else { None };
    returns_to.wrapping_sub(len.unwrap_or(1) as u64)
}

/// Returns the bytes at `rip` that may belong to its instruction, as far as they are in the
/// driver's own memory. Bytes of later instructions may follow.
pub(super) fn code(domain: &Domain, rip: u64) -> Vec<u8> {
    let mut code = [0; MAX_INSTRUCTION];
    // The instruction may be the last one of its page, and the next page may not be readable.
    let readable = |&len: &usize| code.get_mut(..len).is_some_and(|code| domain.space.read(rip, code));
    let len = (1..=MAX_INSTRUCTION).rev().find(readable).unwrap_or(0);
    code.iter().copied().take(len).collect()
}

/// A scene in words for a person.
#[derive(Debug, Default)]
pub struct Words {
    /// The driver, the fault, and the upcall.
    pub headline: String,
    /// The place, the registers, the stack and the driver's resources, in lines.
    pub details: String,
    /// The report for programs, if a program may listen, as far as the scene has its data.
    pub facts: Option<Box<event::Fault<'static>>>,
}

impl Words {
    /// Finds the words.
    pub fn new(scene: &Scene) -> Words {
        // Writing to a String does not fail.
        let mut words = Words::default();
        let reason = match scene.cause {
            Cause::Dma { reason, .. } => hw::iommu::reason(reason),
            _ => String::new(),
        };
        let _ = write!(words.headline, "{}: {}", scene.name, scene.happened(&reason));
        let when = if scene.was_running { "in" } else { "after" };
        let _ = write!(words.headline, ", {when} {}", upcall::name(scene.upcall));
        if scene.was_running && !scene.events.is_empty() {
            let names: Vec<String> = scene.events.iter_names().map(|(name, _)| name.to_lowercase()).collect();
            let _ = write!(words.headline, " ({})", names.join(", "));
        }
        if scene.cause == Cause::Panic && !scene.last_words.is_empty() {
            let _ = write!(words.headline, ": {}", scene.last_words);
        }
        let _ = scene.write_details(&mut words.details);
        words.facts = link::is_there().then(|| Box::new(scene.facts(&words.headline)));
        words
    }
}
