//! Interrupts, by line: first the lines of the two 8259 controllers, then the messages that devices
//! send (MSI-X), each of which is a line of its own.
//!
//! **Interrupts never run driver code.** When a device's line fires, it is only noted here, and
//! masked until the device's driver was polled and the line was taken ([`take_fired`]). If the
//! driver did not acknowledge the interrupt, the device itself is held back (`domain/device.rs`).

use super::handlers::{self, Handlers};
use super::io_apic::{self, Pin};
use super::line::{CASCADE, FIRST_OF_IO_APIC, FIRST_VECTOR, LINES, LINK, OWN_TIMER, SERIAL, SPURIOUS, TIMER, WIRES};
use super::pic;
use crate::memory::registers::Registers;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

/// How often each line fired.
static COUNTS: [AtomicU64; LINES as usize] = [const { AtomicU64::new(0) }; LINES as usize];

/// Returns how often each line fired, without the lines that never did.
pub fn line_counts() -> impl Iterator<Item = (u8, u64)> {
    (0..LINES).zip(&COUNTS).map(|(line, count)| (line, count.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0)
}

/// Lines of devices that fired and have not been taken by [`take_fired`].
static FIRED: AtomicU64 = AtomicU64::new(0);
/// Those of them of which no driver has heard yet.
static UNHEARD: AtomicU64 = AtomicU64::new(0);

/// Initializes the controllers with every line masked except those of the timer and the console.
/// The error names the missing part.
pub fn init() -> Result<(), &'static str> {
    super::local_apic::let_external_through();
    match pic::init(!(1 << TIMER | 1 << CASCADE | 1 << SERIAL)) {
        true => Ok(()),
        false => Err("there are no 8259 interrupt controllers (PIC), and without them no device is heard"),
    }
}

/// Whether the line of the second serial port is that port's, and no device's.
static HAS_LINK: AtomicBool = AtomicBool::new(false);

/// Lets the second serial port interrupt.
pub fn use_link() {
    HAS_LINK.store(true, Ordering::Relaxed);
    set_masked(LINK, false);
}

/// For each message line that is in use: the entry of a device's MSI-X table that sends it.
static MESSAGES: Mutex<[Option<Registers>; (LINES - WIRES) as usize]> = Mutex::new([None; (LINES - WIRES) as usize]);
/// Lines whose devices are held back until they are released.
static HELD: AtomicU64 = AtomicU64::new(0);

/// Returns the vector of `line`, if the line does not come from the 8259s.
pub const fn vector_of(line: u8) -> u8 {
    if line < WIRES { FIRST_OF_IO_APIC + line } else { FIRST_VECTOR + line }
}

/// Uses an I/O APIC in place of the 8259s, with its registers at this physical address. `pin`
/// describes how a line is wired. It is told whether the line is level-triggered, by the 8259s'
/// registers or by the set of bits `levels`. Returns `false` if the I/O APIC is not there.
///
/// The I/O APIC forgets an edge that comes while a line is masked (82093AA, 3.2.4); the 8259s
/// remember it. So a line whose device keeps it raised until the device is served is better set to
/// level.
pub(crate) fn use_io_apic(registers: u64, levels: u16, mut pin: impl FnMut(u8, bool) -> Option<Pin>) -> bool {
    let levels = pic::levels() | levels;
    let is_level = |line: u8| levels & 1 << line != 0;
    let pins = core::array::from_fn(|line| match line as u8 {
        CASCADE => None,
        line => pin(line, is_level(line)),
    });
    without_interrupts(|| {
        let is_used = io_apic::init(registers, pins);
        if is_used {
            pic::write_masks(u16::MAX);
            super::local_apic::keep_external_out();
            [TIMER, SERIAL].into_iter().for_each(|line| set_masked(line, false));
            if HAS_LINK.load(Ordering::Relaxed) {
                set_masked(LINK, false);
            }
        }
        is_used
    })
}

/// Takes `count` lines in a row for messages. Returns the first of them.
pub fn take_lines(count: u8) -> Option<u8> {
    without_interrupts(|| {
        let taken = TAKEN.load(Ordering::Relaxed);
        let bits = |first: u8| ((1u64 << count) - 1) << first;
        let first = (WIRES..=LINES.checked_sub(count)?).find(|first| taken & bits(*first) == 0)?;
        TAKEN.store(taken | bits(first), Ordering::Relaxed);
        Some(first)
    })
}

/// Lines for messages that are taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Gives lines back that [`take_lines`] gave: no device may send them any more.
pub fn give_back_lines(lines: u64) {
    without_interrupts(|| {
        for (line, place) in (WIRES..).zip(MESSAGES.lock().iter_mut()) {
            if lines & 1 << line != 0 {
                *place = None;
            }
        }
        TAKEN.fetch_and(!lines, Ordering::Relaxed);
        HELD.fetch_and(!lines, Ordering::Relaxed);
        FIRED.fetch_and(!lines, Ordering::AcqRel);
        UNHEARD.fetch_and(!lines, Ordering::AcqRel);
    });
}

/// Notes the entry of a device's MSI-X table that sends `line`.
pub fn set_message(line: u8, entry: Registers) {
    without_interrupts(|| {
        let mut messages = MESSAGES.lock();
        if let Some(place) = messages.get_mut(usize::from(line.saturating_sub(WIRES))) {
            *place = Some(entry);
        }
    });
}

/// Holds back the devices that send these lines, until [`release`].
pub fn hold(lines: u64) {
    HELD.fetch_or(lines, Ordering::Relaxed);
    each(lines).for_each(|line| set_masked(line, true));
}

/// Releases the devices that [`hold`] has held back.
pub fn release(lines: u64) {
    HELD.fetch_and(!lines, Ordering::Relaxed);
    each(lines).for_each(|line| set_masked(line, false));
}

/// Unmasks lines, except the lines that are held back.
pub fn unmask(lines: u64) {
    each(lines & !HELD.load(Ordering::Relaxed)).for_each(|line| set_masked(line, false));
}

/// Returns the lines in a set, in ascending order.
fn each(lines: u64) -> impl Iterator<Item = u8> {
    let set = |lines: u64| (lines != 0).then_some(lines);
    core::iter::successors(set(lines), move |lines| set(lines & (lines - 1))).map(|lines| lines.trailing_zeros() as u8)
}

/// Masks or unmasks `line`.
pub fn set_masked(line: u8, masked: bool) {
    if line >= WIRES {
        set_message_masked(line, masked);
        return;
    }
    without_interrupts(|| {
        if io_apic::set_masked(line, masked) {
            return;
        }
        let masks = pic::read_masks();
        pic::write_masks(if masked { masks | 1 << line } else { masks & !(1 << line) });
    });
}

/// Word of an entry of an MSI-X table whose lowest bit masks the entry (PCI 3.0, 6.8.2.9).
const VECTOR_CONTROL: u64 = 12;

fn set_message_masked(line: u8, masked: bool) {
    without_interrupts(|| {
        let messages = MESSAGES.lock();
        let index = usize::from(line.saturating_sub(WIRES));
        if let Some(entry) = messages.get(index).copied().flatten() {
            entry.write32(VECTOR_CONTROL, masked.into());
        }
    });
}

/// Lines of devices, as sets of bits.
#[derive(Debug, Clone, Copy)]
pub struct Fired {
    /// The lines that fired.
    pub lines: u64,
    /// Those among them that fired after [`hear`] was called with them, or without that. A line
    /// that is heard stays masked, unless its driver has acknowledged an earlier interrupt late.
    pub unheard: u64,
}

/// Returns the lines of devices that fired since the last call.
pub fn take_fired() -> Fired {
    let lines = FIRED.swap(0, Ordering::AcqRel);
    Fired { lines, unheard: UNHEARD.fetch_and(!lines, Ordering::AcqRel) & lines }
}

/// Returns the lines that [`take_fired`] would return, and leaves them.
#[inline(always)]
pub fn fired() -> u64 {
    FIRED.load(Ordering::Acquire)
}

/// Returns the lines among [`fired`] that fired after [`hear`] was called with them, or without
/// that.
#[inline(always)]
pub fn unheard() -> u64 {
    UNHEARD.load(Ordering::Relaxed)
}

/// Notes that a driver is about to be polled for these lines.
pub fn hear(lines: u64) {
    UNHEARD.fetch_and(!lines, Ordering::Relaxed);
}

/// Halts until the next interrupt, unless a device's line has fired already.
pub fn halt_unless_fired() {
    halt_unless(|| fired() != 0);
}

/// Halts until the next interrupt, unless `something` returns true, which an interrupt may cause.
pub fn halt_unless(something: impl FnOnce() -> bool) {
    x86_64::instructions::interrupts::disable();
    if something() {
        x86_64::instructions::interrupts::enable();
    } else {
        HALTED_AT.store(super::time::tsc(), Ordering::Relaxed);
        x86_64::instructions::interrupts::enable_and_hlt();
    }
}

/// TSC at the last halt, until an interrupt ends it; and TSC ticks halted in all.
static HALTED_AT: AtomicU64 = AtomicU64::new(0);
static IDLE: AtomicU64 = AtomicU64::new(0);

/// Returns the TSC ticks that the CPU spent halted.
pub fn idle_ticks() -> u64 {
    IDLE.load(Ordering::Relaxed)
}

/// Counts an interrupt of `line`.
fn note(line: u8) {
    if let Some(count) = COUNTS.get(usize::from(line)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Serves a line: calls the handler of the timer or the serial port, or notes a device's line.
fn serve(line: u8) {
    match line {
        TIMER => super::time::tick(),
        SERIAL => call(|handlers| handlers.serial_input),
        LINK if HAS_LINK.load(Ordering::Relaxed) => call(|handlers| handlers.link_input),
        _ => fire(line),
    }
}

fn call(handler: fn(&Handlers) -> fn()) {
    if let Some(handlers) = handlers::installed() {
        handler(handlers)();
    }
}

/// Notes that a device has raised `line`, which is masked from now on.
fn fire(line: u8) {
    set_masked(line, true);
    UNHEARD.fetch_or(1 << line, Ordering::Relaxed);
    FIRED.fetch_or(1 << line, Ordering::AcqRel);
}

/// Handles an interrupt of the local APIC: from its timer, from a device's message, or from a
/// message that no device was told to send.
fn take_message(vector: u8) {
    // A device can send this vector as well; its interrupt must then be ended.
    if vector == SPURIOUS && !super::local_apic::is_in_service(vector) {
        return;
    }
    let line = vector.checked_sub(FIRST_VECTOR).filter(|line| *line < LINES);
    let wire = vector.checked_sub(FIRST_OF_IO_APIC).filter(|line| *line < WIRES);
    let is_timer = if super::local_apic::ticks() { vector == OWN_TIMER } else { wire == Some(TIMER) };
    match (wire, line) {
        // A device may forge the timer's vector, and would make time pass for the driver that runs.
        _ if is_timer => {
            if super::time::is_tick_due() {
                note(TIMER);
                super::time::tick();
            }
        }
        (Some(line), _) if line != TIMER => {
            note(line);
            serve(line);
        }
        (_, Some(line)) if TAKEN.load(Ordering::Relaxed) & 1 << line != 0 => {
            note(line);
            fire(line);
        }
        _ => {
            STRAY.fetch_add(1, Ordering::Relaxed);
        }
    }
    super::local_apic::end();
}

/// How many messages came that no device was told to send.
static STRAY: AtomicU64 = AtomicU64::new(0);

/// Returns how many messages came that no device was told to send.
pub fn strays() -> u64 {
    STRAY.load(Ordering::Relaxed)
}

/// Handles one interrupt, with interrupts off.
pub fn handle(vector: u8) {
    match HALTED_AT.swap(0, Ordering::Relaxed) {
        0 => {}
        halted_at => {
            IDLE.fetch_add(super::time::tsc().saturating_sub(halted_at), Ordering::Relaxed);
        }
    }
    let Some(line) = vector.checked_sub(FIRST_VECTOR).filter(|line| *line < WIRES) else {
        take_message(vector);
        return;
    };
    // A line that fell again before the CPU asked for its vector is reported as the controller's
    // last line, and is not in service.
    let spurious = (line == 7 || line == 15) && pic::in_service() & 1 << line == 0;
    if spurious {
        if line == 15 {
            // The first controller did see an interrupt of the second one (8259A data sheet,
            // "Default IR7").
            pic::end(CASCADE);
        }
        return;
    }
    note(line);
    serve(line);
    pic::end(line);
}
