//! The two 8259 interrupt controllers, and what happens on each line.
//!
//! **Interrupts never run driver code.** A device's line is masked when it fires, which is only noted here, until its driver
//! was polled; a device whose driver did not acknowledge is held back by itself then (`domain/device.rs`).

use core::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use embassy_sync::waitqueue::AtomicWaker;
use pic8259::ChainedPics;
use spin::Mutex;

/// Vector of line 0; line n has the n-th after it.
pub const FIRST_VECTOR: u8 = super::vector::FIRST_INTERRUPT as u8;
/// Lines of the two controllers.
pub const LINES: u8 = 16;

/// Line of the timer.
pub const TIMER: u8 = 0;
const CASCADE: u8 = 2;
/// Line of the serial port.
pub const SERIAL: u8 = 4;

// SAFETY: the controllers are mapped where no exception lies.
static PICS: Mutex<ChainedPics> = Mutex::new(unsafe { ChainedPics::new(FIRST_VECTOR, FIRST_VECTOR + 8) });

/// How often each line fired.
static COUNTS: [AtomicU64; LINES as usize] = [const { AtomicU64::new(0) }; LINES as usize];

/// How often each line fired, those that never did left out.
pub fn line_counts() -> impl Iterator<Item = (u8, u64)> {
    (0..LINES).zip(&COUNTS).map(|(line, count)| (line, count.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0)
}

/// Lines of devices that fired and have not been taken by [`take_fired`].
static FIRED: AtomicU16 = AtomicU16::new(0);
static ON_FIRED: AtomicWaker = AtomicWaker::new();

/// Initializes the controllers with every line masked but the timer's and the console's. The error says what is missing.
pub fn init() -> Result<(), &'static str> {
    super::local_apic::let_external_through();
    let mut pics = PICS.lock();
    // SAFETY: once, with interrupts off.
    unsafe {
        pics.initialize();
        let open = 1u16 << TIMER | 1 << CASCADE | 1 << SERIAL;
        let [first, second] = (!open).to_le_bytes();
        pics.write_masks(first, second);
        // A port where nothing is reads as ones.
        if pics.read_masks() != [first, second] {
            return Err("there are no 8259 interrupt controllers (PIC), and without them no device is heard");
        }
    }
    Ok(())
}

/// Masks or unmasks `line`.
pub fn set_masked(line: u8, masked: bool) {
    if line >= LINES {
        return;
    }
    x86_64::instructions::interrupts::without_interrupts(|| {
        let mut pics = PICS.lock();
        // SAFETY: masking a line is always allowed, and so is letting one through: its handler is below.
        unsafe {
            let masks = u16::from_le_bytes(pics.read_masks());
            let masks = if masked { masks | 1 << line } else { masks & !(1 << line) };
            let [first, second] = masks.to_le_bytes();
            pics.write_masks(first, second);
        }
    });
}

/// Lines of devices that fired since the last call, as a set of bits. `waker` is woken at the next one.
pub fn take_fired(waker: Option<&core::task::Waker>) -> u16 {
    if let Some(waker) = waker {
        ON_FIRED.register(waker);
    }
    FIRED.swap(0, Ordering::AcqRel)
}

/// Halts until the next interrupt, unless a device's line has fired already.
pub fn halt_unless_fired() {
    halt_unless(|| FIRED.load(Ordering::Acquire) != 0);
}

/// Halts until the next interrupt, unless `something` is to be done, which an interrupt may say.
pub fn halt_unless(something: impl FnOnce() -> bool) {
    x86_64::instructions::interrupts::disable();
    if something() {
        x86_64::instructions::interrupts::enable();
    } else {
        HALTED_AT.store(super::time::tsc(), Ordering::Relaxed);
        x86_64::instructions::interrupts::enable_and_hlt();
    }
}

/// Lets interrupts in that have come meanwhile, if they are off: what takes long for a driver in ring 1 does it in pieces, with this
/// in between. No lock may be held that an interrupt's handler takes.
pub fn breathe() {
    if x86_64::instructions::interrupts::are_enabled() {
        return;
    }
    note_off();
    x86_64::instructions::interrupts::enable();
    // They are let in behind the instruction that follows.
    x86_64::instructions::nop();
    x86_64::instructions::interrupts::disable();
    OFF_SINCE.store(super::time::tsc(), Ordering::Relaxed);
}

/// TSC when interrupts were turned off, or let in last; and the longest time between two such moments, in TSC ticks.
static OFF_SINCE: AtomicU64 = AtomicU64::new(0);
static LONGEST_OFF: AtomicU64 = AtomicU64::new(0);

fn note_off() {
    let ticks = super::time::tsc().saturating_sub(OFF_SINCE.load(Ordering::Relaxed));
    LONGEST_OFF.fetch_max(ticks, Ordering::Relaxed);
}

/// Does `work` with interrupts off, as they are in a gate, and returns the longest time in TSC ticks in which none was let in.
pub fn longest_off(work: impl FnOnce()) -> u64 {
    x86_64::instructions::interrupts::without_interrupts(|| {
        LONGEST_OFF.store(0, Ordering::Relaxed);
        OFF_SINCE.store(super::time::tsc(), Ordering::Relaxed);
        work();
        note_off();
    });
    LONGEST_OFF.load(Ordering::Relaxed)
}

/// The lines that are in service.
fn in_service() -> u16 {
    use x86_64::instructions::port::Port;
    const READ_IN_SERVICE: u8 = 0x0b;
    let read = |port| {
        let mut command = Port::<u8>::new(port);
        // SAFETY: OCW3 chooses what the next read returns, nothing else.
        unsafe {
            command.write(READ_IN_SERVICE);
            command.read()
        }
    };
    u16::from_le_bytes([read(0x20), read(0xa0)])
}

/// TSC at the last halt, until an interrupt ends it; and TSC ticks halted in all.
static HALTED_AT: AtomicU64 = AtomicU64::new(0);
static IDLE: AtomicU64 = AtomicU64::new(0);

/// TSC ticks that the CPU spent halted.
pub fn idle_ticks() -> u64 {
    IDLE.load(Ordering::Relaxed)
}

/// Counts an interrupt of `line`.
fn note(line: u8) {
    if let Some(count) = COUNTS.get(usize::from(line)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Handles one interrupt, with interrupts off.
pub fn handle(vector: u8) {
    match HALTED_AT.swap(0, Ordering::Relaxed) {
        0 => {}
        halted_at => {
            IDLE.fetch_add(super::time::tsc().saturating_sub(halted_at), Ordering::Relaxed);
        }
    }
    if super::local_apic::end(vector) {
        if vector == FIRST_VECTOR + TIMER {
            note(TIMER);
            super::time::tick();
        }
        return;
    }
    let Some(line) = vector.checked_sub(FIRST_VECTOR).filter(|line| *line < LINES) else {
        return;
    };
    // A line that fell again before it was asked for is reported as the controller's last, and is not in service.
    let spurious = (line == 7 || line == 15) && in_service() & 1 << line == 0;
    if spurious {
        if line == 15 {
            // The first controller did take the second one's word for it (8259A data sheet, "Default IR7").
            // SAFETY: the cascade line is in service.
            unsafe { PICS.lock().notify_end_of_interrupt(FIRST_VECTOR + CASCADE) };
        }
        return;
    }
    note(line);
    match line {
        TIMER => super::time::tick(),
        SERIAL => crate::console::receive(),
        _ => {
            set_masked(line, true);
            FIRED.fetch_or(1 << line, Ordering::AcqRel);
            ON_FIRED.wake();
        }
    }
    // SAFETY: `line` is in service.
    unsafe { PICS.lock().notify_end_of_interrupt(vector) };
}
