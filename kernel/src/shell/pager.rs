//! Shows the output of a command a page at a time (`COMMAND | more`).

use super::{Outcome, commands};
use core::future::poll_fn;
use core::task::Poll;
use hw::console::{self, Captured};
use hw::println;

/// Rows of a page: the rows of the smallest terminal (VT100), less one for the question.
const ROWS: usize = 23;

/// The part of the output that a person wants to see next.
enum Next {
    Page,
    Row,
    Nothing,
}

/// Runs a command and shows its output.
pub async fn run(line: &str) -> Outcome {
    if console::is_piped() {
        return commands::run(line).await;
    }
    let captured = console::capture();
    let outcome = commands::run(line).await;
    let Captured { text, lost_bytes } = captured.take();
    let mut room = ROWS;
    let mut rows = text.lines().peekable();
    while let Some(row) = rows.next() {
        println!("{row}");
        room -= 1;
        if room == 0 && rows.peek().is_some() {
            match ask().await {
                Next::Page => room = ROWS,
                Next::Row => room = 1,
                Next::Nothing => break,
            }
        }
    }
    if lost_bytes > 0 {
        println!("{lost_bytes} bytes more were not kept");
    }
    outcome
}

/// Asks for a key, waits for it, and erases the question.
async fn ask() -> Next {
    const QUESTION: &[u8] = b"-- more: Space a page, Enter a line, q enough --";
    const TAKE_BACK: &[u8] = b"\r\x1b[K";
    console::write_bytes(QUESTION);
    let next = poll_fn(|context| {
        console::wake_on_input(context.waker());
        while let Some(byte) = console::read_byte() {
            match byte {
                b' ' | b'f' => return Poll::Ready(Next::Page),
                b'\r' | b'\n' | b'j' => return Poll::Ready(Next::Row),
                // Ctrl-C, Ctrl-D and Esc also end the output.
                b'q' | b'Q' | 3 | 4 | 0x1b => return Poll::Ready(Next::Nothing),
                _ => {}
            }
        }
        Poll::Pending
    })
    .await;
    console::write_bytes(TAKE_BACK);
    next
}
