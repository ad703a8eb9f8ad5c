//! The console, which is the first serial port.
//!
//! Output is polled. Input arrives by interrupt and waits in a ring for the shell. Text that is
//! printed while a person types a line appears above that line.
//!
//! * [`kernel_log`]: the lines that the kernel and drivers write by themselves
//! * [`flood`]: limits how many of a driver's lines are shown
//! * [`screen`]: the last rows of the log on a screen

use crate::arch::uart::{Listens, Uart};
use crate::lock::Lock;
use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::task::Waker;
use embassy_sync::waitqueue::AtomicWaker;
use heapless::spsc::Queue;
use ringfence_core::line_editor::{ASK_COLUMNS, Event, LineEditor};
use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

mod flood;
mod kernel_log;
pub mod screen;

pub use kernel_log::{Source, Wanted, print_log, printable, quote, report, say_about, say_because_of, watch};

const PORT: Uart = Uart::FIRST;
/// Bytes of input that can wait here, so that a Ctrl-C behind them is noticed.
const INPUT_BYTES: usize = 1 << 16;

static MUTED: AtomicUsize = AtomicUsize::new(0);
/// Whether there is a port. Without one, each register reads as ones, and input would never end.
static HAS_PORT: AtomicBool = AtomicBool::new(false);
static INPUT: Mutex<Queue<u8, INPUT_BYTES>> = Mutex::new(Queue::new());
static ON_INPUT: AtomicWaker = AtomicWaker::new();

/// The line editor, from the first line that is typed on.
static TYPED: Lock<Option<Typed>> = Lock::new(None);
/// Columns of the terminal, if they are known.
static COLUMNS: AtomicUsize = AtomicUsize::new(UNKNOWN);
const UNKNOWN: usize = 0;
/// Whether the terminal is asked for its width before each line: the width may have changed.
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
    /// The line is on the screen.
    Yes,
    /// The line is hidden while other text is being printed.
    Hidden,
}

/// Opens the port and the log. Without a port all output is dropped.
pub fn init() {
    let early = PORT.set_up(Listens::ForKeys);
    HAS_PORT.store(early.is_some(), Ordering::Relaxed);
    {
        let mut input = INPUT.lock();
        for byte in early.into_iter().flatten() {
            // The ring has room for all of them.
            let _ = input.enqueue(byte);
        }
    }
    kernel_log::init();
}

/// While this exists, nothing is written. The log is kept all the same.
pub struct Mute;

/// Holds back all output until the returned value is dropped.
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
    if has_port() {
        without_interrupts(|| bytes.iter().for_each(|byte| PORT.send(*byte)));
    }
}

/// Waits until all output is sent. Gives up if the port never reports it.
pub fn drain() {
    PORT.drain();
}

/// Prepares for a panic's output: from here on all output is shown, even if it was muted or
/// captured.
pub(crate) fn take_over() {
    MUTED.store(0, Ordering::Relaxed);
    // The values are not dropped, as that takes the heap's lock. The typed line is not shown again,
    // as that may allocate.
    core::mem::forget(CAPTURED.lock().take());
    core::mem::forget(TYPED.lock().take());
    screen::take_over();
}

/// Whether commands come from a file or a pipe, and no person is there to press a key.
static IS_PIPED: AtomicBool = AtomicBool::new(false);

/// Returns whether there is a port.
pub fn has_port() -> bool {
    HAS_PORT.load(Ordering::Relaxed)
}

/// Notes that no person is there to press a key.
pub fn set_piped() {
    IS_PIPED.store(true, Ordering::Relaxed);
}

/// Returns whether no person is there to press a key.
pub fn is_piped() -> bool {
    IS_PIPED.load(Ordering::Relaxed)
}

/// Waits until all piped input has come; for ever if a person types.
pub async fn end_of_pipe() {
    const CTRL_D: u8 = 4;
    core::future::poll_fn(|context| {
        ON_INPUT.register(context.waker());
        let is_there = without_interrupts(|| INPUT.lock().iter().last() == Some(&CTRL_D));
        if is_piped() && is_there { core::task::Poll::Ready(()) } else { core::task::Poll::Pending }
    })
    .await;
}

/// Sets the number of the terminal's columns.
pub fn set_columns(columns: usize) {
    COLUMNS.store(columns, Ordering::Relaxed);
}

/// Notes that there is a terminal which can tell its width.
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

/// Begins a line: prints `prompt`, behind which a person types. A terminal that can tell its width
/// is asked for it.
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

/// Takes a byte for the line that is being typed, and returns the event that it causes. A
/// terminal's answer about its width is handled here.
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

/// Least columns of a terminal: smaller answers are ignored.
const LEAST_COLUMNS: usize = 10;

/// Returns the text that was typed so far, up to the cursor.
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

/// Ends the line that was typed; it stays on the screen.
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
    // If the lock is taken, its owner is busy with the line.
    if let Some(mut typed) = TYPED.try_lock()
        && let Some(typed) = typed.as_mut().filter(|typed| typed.state == Shown::Yes)
    {
        write_bytes(&typed.editor.hide());
        typed.state = Shown::Hidden;
    }
}

/// Shows the typed line again, from the first column of a row.
pub fn show_line() {
    if let Some(mut typed) = TYPED.try_lock()
        && let Some(typed) = typed.as_mut().filter(|typed| typed.state == Shown::Hidden)
    {
        write_bytes(&typed.editor.show());
        typed.state = Shown::Yes;
    }
}

struct Console;

/// The output of a command, while it is kept to be shown a page at a time.
static CAPTURED: Lock<Option<Captured>> = Lock::new(None);
/// Most bytes of output that are kept.
const MOST_CAPTURED: usize = 256 << 10;

/// The kept output ([`Capture::take`]).
#[derive(Default)]
pub struct Captured {
    /// The output, up to [`MOST_CAPTURED`] bytes, or as much as there is memory for.
    pub text: String,
    /// Number of bytes that were printed after it and are lost.
    pub lost_bytes: usize,
}

/// While this exists, output is kept instead of shown.
pub struct Capture;

/// Keeps all output from now on.
pub fn capture() -> Capture {
    *CAPTURED.lock() = Some(Captured::default());
    Capture
}

impl Capture {
    /// Ends the capture and returns the output.
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
            // Once bytes are lost, all later ones are lost as well.
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
    // The console itself does not fail; a failing `Display` has printed a part of its text.
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

/// Handles the serial interrupt: moves input into the ring. Bytes that do not fit stay in the port,
/// which then takes no more, so that the sender waits.
pub fn receive() {
    if let Some(mut input) = INPUT.try_lock() {
        fill(&mut input);
    }
    ON_INPUT.wake();
}

/// Moves as much input into the ring as there is room for.
fn fill(input: &mut Queue<u8, INPUT_BYTES>) {
    while !input.is_full()
        && has_port()
        && let Some(byte) = PORT.receive()
    {
        // The loop has checked that there is room.
        let _ = input.enqueue(byte);
    }
}

/// Returns whether Ctrl-C waits in the input. It is taken out, with all the bytes before it.
/// `waker` is woken at the next input.
pub fn take_interrupt(waker: &Waker) -> bool {
    const CTRL_C: u8 = 3;
    ON_INPUT.register(waker);
    without_interrupts(|| {
        let mut input = INPUT.lock();
        let Some(place) = input.iter().position(|byte| *byte == CTRL_C) else { return false };
        (0..=place).for_each(|_| {
            input.dequeue();
        });
        fill(&mut input);
        true
    })
}

/// Wakes `waker` when there is input.
pub fn wake_on_input(waker: &Waker) {
    ON_INPUT.register(waker);
}

/// Returns the next byte of input.
pub fn read_byte() -> Option<u8> {
    without_interrupts(|| {
        let mut input = INPUT.lock();
        let byte = input.dequeue();
        // Bytes that were left in the port raise no interrupt any more.
        if input.is_empty() || byte.is_none() {
            fill(&mut input);
        }
        byte.or_else(|| input.dequeue())
    })
}
