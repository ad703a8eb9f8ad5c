//! The console, which is the first serial port.
//!
//! Output is polled; input arrives by interrupt and waits in a ring for the shell. What is printed
//! while a line is being typed appears above that line.
//!
//! * [`kernel_log`]: what the kernel and drivers say by themselves
//! * [`flood`]: how much of that is shown
//! * [`screen`]: the last of it on a screen, for who looks there

use crate::arch::uart::Uart;
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
/// Bytes of input that can wait here, so that Ctrl-C behind them is seen.
const INPUT_BYTES: usize = 1 << 16;

static MUTED: AtomicUsize = AtomicUsize::new(0);
/// Whether there is a port. Where there is none, each register reads as ones, and input would have
/// no end.
static HAS_PORT: AtomicBool = AtomicBool::new(false);
static INPUT: Mutex<Queue<u8, INPUT_BYTES>> = Mutex::new(Queue::new());
static ON_INPUT: AtomicWaker = AtomicWaker::new();

/// The line editor, from the first line that is typed on.
static TYPED: Lock<Option<Typed>> = Lock::new(None);
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
    let early = PORT.set_up(true);
    HAS_PORT.store(early.is_some(), Ordering::Relaxed);
    {
        let mut input = INPUT.lock();
        for byte in early.into_iter().flatten() {
            // There is room.
            let _ = input.enqueue(byte);
        }
    }
    kernel_log::init();
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
    if has_port() {
        without_interrupts(|| bytes.iter().for_each(|byte| PORT.send(*byte)));
    }
}

/// Waits until all that was written is out. A port that never says so is not waited for.
pub fn drain() {
    PORT.drain();
}

/// The kernel has panicked: all that is printed is shown from here on, whatever was under way.
pub(crate) fn take_over() {
    MUTED.store(0, Ordering::Relaxed);
    // Not dropped: that takes the heap's lock. Nor is the line that was typed shown again, which
    // may allocate.
    core::mem::forget(CAPTURED.lock().take());
    core::mem::forget(TYPED.lock().take());
    screen::take_over();
}

/// Whether commands come from a file or a pipe, and nobody is there to press a key.
static IS_PIPED: AtomicBool = AtomicBool::new(false);

/// Whether there is a port.
pub fn has_port() -> bool {
    HAS_PORT.load(Ordering::Relaxed)
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

/// A line is going to be typed behind `prompt`, which is printed. A terminal that can say how wide
/// it is, is asked.
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

/// Takes a byte for the line that is being typed; what comes of it. How wide the terminal is, is
/// taken in here.
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
static CAPTURED: Lock<Option<Captured>> = Lock::new(None);
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

/// The serial interrupt: moves input into the ring. What does not fit stays in the port, which then
/// takes no more, and who sends waits.
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
        // There is room.
        let _ = input.enqueue(byte);
    }
}

/// Whether Ctrl-C waits in the input: it is taken out, with all that was typed before it. `waker`
/// is woken at the next input.
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
            fill(&mut input);
        }
        byte.or_else(|| input.dequeue())
    })
}
