//! The console, which is the first serial port.
//!
//! Output is polled; input arrives by interrupt and waits in a ring for the shell. What is printed while a line is being
//! typed appears above that line.
//!
//! * [`kernel_log`]: what the kernel and drivers say by themselves
//! * [`flood`]: how much of that is shown
//! * [`screen`]: the last of it on a screen, for who looks there

use crate::arch::port::IoPort;
use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::Waker;
use embassy_sync::waitqueue::AtomicWaker;
use heapless::spsc::Queue;
use ringfence_core::line_editor::{ASK_COLUMNS, Event, LineEditor};
use spin::Mutex;
use uart_16550::Uart16550;
use uart_16550::backend::PioBackend;
use x86_64::instructions::interrupts::without_interrupts;

mod flood;
mod kernel_log;
pub mod screen;

pub use kernel_log::{Source, Wanted, print_log, printable, quote, report, say_about, say_because_of, watch};

/// COM1.
const BASE_PORT: u16 = 0x3f8;
/// Bytes of input that can wait here, so that Ctrl-C behind them is seen.
const INPUT_BYTES: usize = 1 << 16;

static MUTED: AtomicUsize = AtomicUsize::new(0);
static UART: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);
/// The same port, for the interrupt handler, which only receives: it must never wait for who is sending.
static RECEIVER: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);
static INPUT: Mutex<Queue<u8, INPUT_BYTES>> = Mutex::new(Queue::new());
static ON_INPUT: AtomicWaker = AtomicWaker::new();

/// The line editor, from the first line that is typed on.
static TYPED: Mutex<Option<Typed>> = Mutex::new(None);
/// Columns of the terminal, if they are known.
static COLUMNS: AtomicUsize = AtomicUsize::new(UNKNOWN);
const UNKNOWN: usize = 0;
/// Whether the terminal is asked for its width before each line: it may have been changed.
static ASKS_COLUMNS: AtomicBool = AtomicBool::new(false);

struct Typed {
    editor: LineEditor,
    state: Shown,
}

/// Whether the line that is being typed is on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// No line is being typed.
    Not,
    /// It is.
    Yes,
    /// Not while something else is being printed.
    Hidden,
}

/// Opens the port and the log. Without a port all output is dropped.
pub fn init() {
    // SAFETY: the port is the kernel's; the two handles use different registers (see `RECEIVER`).
    let open = || unsafe { Uart16550::new_port(BASE_PORT) }.ok();
    let early = set_port_up();
    // Where there is no port, each register reads as ones, and input would have no end.
    *UART.lock() = early.as_ref().and_then(|_| open());
    *RECEIVER.lock() = early.as_ref().and_then(|_| open());
    {
        let mut input = INPUT.lock();
        for byte in early.into_iter().flatten() {
            // There is room.
            let _ = input.enqueue(byte);
        }
    }
    kernel_log::init();
}

/// Sets the port up (PC16550D data sheet, 8): 115,200 baud, 8 bits, no parity, an interrupt for input. **What was typed before stays**:
/// it is returned, and where some is, more may be on its way, so that the FIFOs are left off; turning them on empties them. `None` if
/// there is no port.
fn set_port_up() -> Option<heapless::Vec<u8, 64>> {
    const DATA: u16 = 0;
    const INTERRUPTS: u16 = 1;
    const FIFO: u16 = 2;
    const LINE: u16 = 3;
    const MODEM: u16 = 4;
    const LINE_STATUS: u16 = 5;
    const SCRATCH: u16 = 7;
    const DATA_READY: u8 = 1;
    const EIGHT_BITS: u8 = 3;
    const DIVISOR_LATCH: u8 = 1 << 7;
    const FIFO_ON: u8 = 1;
    const RECEIVE_INTERRUPT: u8 = 1;
    /// DTR, RTS, and OUT2, which lets the interrupt out.
    const READY: u8 = 0b1011;
    let read = |register| IoPort::<u8>::new(BASE_PORT + register).read();
    let write = |register, value| IoPort::<u8>::new(BASE_PORT + register).write(value);
    // Where nothing is, nothing is kept, whatever reads come back with.
    let keeps = |value| {
        write(SCRATCH, value);
        read(SCRATCH) == value
    };
    if !keeps(0x5a) || !keeps(0xa5) {
        return None;
    }
    write(INTERRUPTS, 0);
    write(LINE, EIGHT_BITS);
    let mut early = heapless::Vec::new();
    while !early.is_full() && read(LINE_STATUS) & DATA_READY != 0 {
        // There is room.
        let _ = early.push(read(DATA));
    }
    if early.is_empty() {
        write(FIFO, FIFO_ON);
    }
    write(LINE, EIGHT_BITS | DIVISOR_LATCH);
    write(DATA, 1);
    write(INTERRUPTS, 0);
    write(LINE, EIGHT_BITS);
    write(MODEM, READY);
    write(INTERRUPTS, RECEIVE_INTERRUPT);
    Some(early)
}

/// Nothing is written as long as this is there. The log is kept all the same.
pub struct Mute;

/// Holds back what is written until what is returned is dropped.
pub fn mute() -> Mute {
    MUTED.fetch_add(1, Ordering::Relaxed);
    Mute
}

impl Drop for Mute {
    fn drop(&mut self) {
        MUTED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Writes bytes as they are.
pub fn write_bytes(bytes: &[u8]) {
    if MUTED.load(Ordering::Relaxed) > 0 {
        return;
    }
    without_interrupts(|| {
        if let Some(uart) = UART.lock().as_mut() {
            uart.send_bytes_exact(bytes);
        }
    });
}

/// Waits until all that was written is out. A port that never says so is not waited for.
pub fn drain() {
    const LINE_STATUS: u16 = BASE_PORT + 5;
    const TRANSMITTER_EMPTY: u8 = 1 << 6;
    for _ in 0..1_000_000 {
        if IoPort::<u8>::new(LINE_STATUS).read() & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
}

/// Breaks whatever lock a panic may have hit, so that it can still speak.
///
/// # Safety
/// Who holds one must never go on.
pub(crate) unsafe fn break_locks() {
    MUTED.store(0, Ordering::Relaxed);
    // SAFETY: as the caller says.
    unsafe {
        UART.force_unlock();
        CAPTURED.force_unlock();
        core::mem::forget(CAPTURED.lock().take());
        TYPED.force_unlock();
        // Not dropped: that takes the heap's lock. Nor is it shown again, which may allocate.
        core::mem::forget(TYPED.lock().take());
        kernel_log::LOG.force_unlock();
        screen::SCREEN.force_unlock();
    }
}

/// Whether commands come from a file or a pipe, and nobody is there to press a key.
static IS_PIPED: AtomicBool = AtomicBool::new(false);

/// Whether there is a port.
pub fn has_port() -> bool {
    UART.lock().is_some()
}

/// Nobody is there to press a key.
pub fn set_piped() {
    IS_PIPED.store(true, Ordering::Relaxed);
}

/// Whether nobody is there to press a key.
pub fn is_piped() -> bool {
    IS_PIPED.load(Ordering::Relaxed)
}

/// Waits until all that is piped in has come; for ever where a person types.
pub async fn end_of_pipe() {
    const CTRL_D: u8 = 4;
    core::future::poll_fn(|context| {
        ON_INPUT.register(context.waker());
        let is_there = without_interrupts(|| INPUT.lock().iter().last() == Some(&CTRL_D));
        if is_piped() && is_there { core::task::Poll::Ready(()) } else { core::task::Poll::Pending }
    })
    .await;
}

/// The terminal has so many columns.
pub fn set_columns(columns: usize) {
    COLUMNS.store(columns, Ordering::Relaxed);
}

/// A terminal is there that says how wide it is.
pub fn ask_columns() {
    ASKS_COLUMNS.store(true, Ordering::Relaxed);
}

fn columns() -> usize {
    const USUAL: usize = 80;
    known_columns().unwrap_or(USUAL)
}

fn known_columns() -> Option<usize> {
    Some(COLUMNS.load(Ordering::Relaxed)).filter(|columns| *columns != UNKNOWN)
}

/// A line is going to be typed behind `prompt`, which is printed. A terminal that can say how wide it is, is asked.
pub fn begin_line(prompt: &str) {
    if ASKS_COLUMNS.load(Ordering::Relaxed) {
        write_bytes(ASK_COLUMNS);
    }
    let mut typed = TYPED.lock();
    let typed = typed.get_or_insert_with(|| Typed { editor: LineEditor::new(columns()), state: Shown::Not });
    typed.editor.set_columns(columns());
    typed.editor.begin(prompt);
    write_bytes(&typed.editor.show());
    typed.state = Shown::Yes;
}

/// Takes a byte for the line that is being typed; what comes of it. How wide the terminal is, is taken in here.
pub fn press(byte: u8) -> Option<Event> {
    let mut typed = TYPED.lock();
    let typed = typed.as_mut()?;
    let (sent, event) = typed.editor.press(byte);
    if typed.state == Shown::Yes {
        write_bytes(&sent);
    }
    if let Some(Event::Columns(columns)) = event {
        if columns >= LEAST_COLUMNS && columns != self::columns() {
            set_columns(columns);
            typed.editor.set_columns(columns);
        }
        return None;
    }
    event
}

/// Narrower no terminal is.
const LEAST_COLUMNS: usize = 10;

/// What is typed so far, up to the cursor.
pub fn typed() -> String {
    TYPED.lock().as_ref().map_or(String::new(), |typed| typed.editor.typed())
}

/// Puts text into the line that is being typed.
pub fn insert(text: &str) {
    if let Some(typed) = TYPED.lock().as_mut() {
        let sent = typed.editor.insert(text);
        write_bytes(&sent);
    }
}

/// The line has been typed; it stays where it is.
pub fn end_line() {
    if let Some(typed) = TYPED.lock().as_mut() {
        write_bytes(&typed.editor.leave());
        typed.state = Shown::Not;
    }
}

/// Empties the screen; the line that is being typed stays.
pub fn clear() {
    const CLEAR: &[u8] = b"\x1b[H\x1b[2J\x1b[3J";
    write_bytes(CLEAR);
    if let Some(typed) = TYPED.lock().as_ref().filter(|typed| typed.state == Shown::Yes) {
        write_bytes(&typed.editor.show());
    }
}

/// Takes the line that is being typed off the screen.
pub fn hide_line() {
    // Whoever has the lock is busy with the line.
    if let Some(mut typed) = TYPED.try_lock()
        && let Some(typed) = typed.as_mut().filter(|typed| typed.state == Shown::Yes)
    {
        write_bytes(&typed.editor.hide());
        typed.state = Shown::Hidden;
    }
}

/// Shows it again, from the first column of a row.
pub fn show_line() {
    if let Some(mut typed) = TYPED.try_lock()
        && let Some(typed) = typed.as_mut().filter(|typed| typed.state == Shown::Hidden)
    {
        write_bytes(&typed.editor.show());
        typed.state = Shown::Yes;
    }
}

struct Console;

/// What a command prints, while that is kept to be shown a page at a time.
static CAPTURED: Mutex<Option<Captured>> = Mutex::new(None);
/// Most of it that is kept, in bytes.
const MOST_CAPTURED: usize = 256 << 10;

/// See [`Capture::take`].
#[derive(Default)]
pub struct Captured {
    /// What was printed, up to [`MOST_CAPTURED`] bytes, or what there is memory for.
    pub text: String,
    /// How many bytes more there were.
    pub lost_bytes: usize,
}

/// What is printed is kept as long as this is there.
pub struct Capture;

/// Keeps what is printed from now on.
pub fn capture() -> Capture {
    *CAPTURED.lock() = Some(Captured::default());
    Capture
}

impl Capture {
    /// What was printed.
    pub fn take(self) -> Captured {
        CAPTURED.lock().take().unwrap_or_default()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        *CAPTURED.lock() = None;
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.is_empty() {
            return Ok(());
        }
        if let Some(captured) = CAPTURED.try_lock().as_mut().and_then(|captured| captured.as_mut()) {
            let Captured { text: kept, lost_bytes } = captured;
            // What follows something that is lost is lost as well.
            if *lost_bytes == 0 && kept.len() + text.len() <= MOST_CAPTURED && kept.try_reserve(text.len()).is_ok() {
                kept.push_str(text);
            } else {
                *lost_bytes += text.len();
            }
            return Ok(());
        }
        hide_line();
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                write_bytes(b"\r\n");
            }
            write_bytes(line.as_bytes());
        }
        screen::mirror(text);
        if text.ends_with('\n') {
            show_line();
        }
        Ok(())
    }
}

/// Writes formatted text to the console.
pub fn print(arguments: fmt::Arguments) {
    // The console itself does not fail; a Display that does has printed what it could.
    let _ = Console.write_fmt(arguments);
}

/// Writes formatted text to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
}

/// Writes formatted text and a line end to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}

/// The serial interrupt: moves input into the ring. What does not fit stays in the port, which then takes no more, and who sends waits.
pub fn receive() {
    if let (Some(mut receiver), Some(mut input)) = (RECEIVER.try_lock(), INPUT.try_lock()) {
        fill(&mut receiver, &mut input);
    }
    ON_INPUT.wake();
}

/// Moves as much input into the ring as there is room for.
fn fill(receiver: &mut Option<Uart16550<PioBackend>>, input: &mut Queue<u8, INPUT_BYTES>) {
    let Some(receiver) = receiver else { return };
    while !input.is_full()
        && let Ok(byte) = receiver.try_receive_byte()
    {
        // There is room.
        let _ = input.enqueue(byte);
    }
}

/// Whether Ctrl-C waits in the input: it is taken out, with all that was typed before it. `waker` is woken at the next
/// input.
pub fn take_interrupt(waker: &Waker) -> bool {
    const CTRL_C: u8 = 3;
    ON_INPUT.register(waker);
    without_interrupts(|| {
        let mut input = INPUT.lock();
        let Some(place) = input.iter().position(|byte| *byte == CTRL_C) else { return false };
        (0..=place).for_each(|_| {
            input.dequeue();
        });
        fill(&mut RECEIVER.lock(), &mut input);
        true
    })
}

/// Has `waker` woken when there is input.
pub fn wake_on_input(waker: &Waker) {
    ON_INPUT.register(waker);
}

/// The next byte of input.
pub fn read_byte() -> Option<u8> {
    without_interrupts(|| {
        let mut input = INPUT.lock();
        let byte = input.dequeue();
        // What was left in the port raises no interrupt any more.
        if input.is_empty() || byte.is_none() {
            fill(&mut RECEIVER.lock(), &mut input);
        }
        byte.or_else(|| input.dequeue())
    })
}
