//! The link to the runner, which is the second serial port: what happens, for programs
//! ([`ringfence_link::event`]).
//!
//! What is told goes into a queue, which is emptied when there is nothing else to do ([`pump`]), as
//! a driver that was ended is back sooner than its fault is sent. Who finds much in the queue sends
//! some of it. Who finds it full waits, as who listens may be slow; once that was in vain, nobody
//! waits again until the port takes something, and what does not fit is lost. Frames are numbered,
//! so that who listens knows. Where there is no second port, nothing is told, and all else is the
//! same.

use crate::arch::uart::{FIFO_BYTES, Uart};
use crate::lock::Lock;
use core::sync::atomic::{AtomicBool, Ordering};
use heapless::Deque;
use ringfence_link::EVENTS;
use ringfence_link::event::Event;
use ringfence_link::frame::{Encoder, MAX_ENCODED};
use x86_64::instructions::interrupts::without_interrupts;

const PORT: Uart = Uart::SECOND;
/// Bytes that can wait: some of the largest frames.
const QUEUE_BYTES: usize = 64 << 10;
const _: () = assert!(QUEUE_BYTES > 2 * MAX_ENCODED);
/// Above this, who tells sends some first. The rest is for when the port takes nothing for a while.
const MOST_WAITING: usize = QUEUE_BYTES / 4;
/// Bytes that go into the queue with interrupts off.
const PIECE_BYTES: usize = 64;
/// How often the port is asked in a row until it takes something: a second or so under QEMU.
const TRIES: u32 = 1_000_000;

static IS_THERE: AtomicBool = AtomicBool::new(false);
/// Makes frames. Only tasks do, and the kernel's end.
static ENCODER: Lock<Encoder> = Lock::new(Encoder::new());
/// What waits. With interrupts off: the timer's sends some.
static QUEUE: Lock<Deque<u8, QUEUE_BYTES>> = Lock::new(Deque::new());
/// Whether something waits.
static WAITS: AtomicBool = AtomicBool::new(false);
/// Whether the port was waited for in vain, and has taken nothing since.
static IS_DEAF: AtomicBool = AtomicBool::new(false);

/// Opens the port, if there is one.
pub fn init() {
    let is_there = PORT.set_up(false).is_some();
    IS_THERE.store(is_there, Ordering::Relaxed);
    if is_there {
        // Whatever firmware has said there ends here.
        put(&[0]);
    }
}

/// Whether somebody may listen: what is costly to tell need not be made up otherwise.
pub fn is_there() -> bool {
    IS_THERE.load(Ordering::Relaxed)
}

/// Tells of `event`.
pub fn tell(event: &Event) {
    if !is_there() {
        return;
    }
    let mut encoder = ENCODER.lock();
    let Some(frame) = encoder.frame(EVENTS, |room| event.write(room)) else { return };
    while waiting() > MOST_WAITING && pump() {}
    if room() < frame.len() {
        wait_until(|| room() >= frame.len());
    }
    if room() >= frame.len() {
        frame.chunks(PIECE_BYTES).for_each(put);
    }
}

/// Tells of `event`, after which there is nothing to tell: it is not lost for what came before.
/// Whatever was under way when the kernel panicked ends before it.
pub fn tell_last(event: &Event) {
    if is_there() {
        drain();
        if room() > 0 {
            put(&[0]);
        }
        tell(event);
        drain();
    }
}

fn waiting() -> usize {
    without_interrupts(|| QUEUE.lock().len())
}

fn room() -> usize {
    QUEUE_BYTES - waiting()
}

fn put(bytes: &[u8]) {
    without_interrupts(|| {
        let mut queue = QUEUE.lock();
        // There is room: nobody else fills it.
        bytes.iter().for_each(|byte| queue.push_back(*byte).unwrap_or(()));
        WAITS.store(true, Ordering::Relaxed);
    });
}

/// Sends as much as the port takes at once of what waits, if something does: to be called now and
/// then. Whether there is more, and the port may take it.
pub fn pump() -> bool {
    WAITS.load(Ordering::Relaxed)
        && without_interrupts(|| {
            if !PORT.can_send() {
                return false;
            }
            let mut queue = QUEUE.lock();
            (0..FIFO_BYTES).map_while(|_| queue.pop_front()).for_each(|byte| PORT.put(byte));
            WAITS.store(!queue.is_empty(), Ordering::Relaxed);
            IS_DEAF.store(false, Ordering::Relaxed);
            !queue.is_empty()
        })
}

/// Sends until `is_enough`, or until the port has taken nothing for [`TRIES`].
fn wait_until(is_enough: impl Fn() -> bool) {
    let mut tries = if IS_DEAF.load(Ordering::Relaxed) { TRIES } else { 0 };
    while !is_enough() {
        if pump() {
            tries = 0;
        } else if tries < TRIES {
            tries += 1;
        } else {
            return IS_DEAF.store(true, Ordering::Relaxed);
        }
    }
}

/// Waits until all is sent that was told, before the machine ends. A port that takes nothing is not
/// waited for.
pub fn drain() {
    // There is no next time.
    IS_DEAF.store(false, Ordering::Relaxed);
    wait_until(|| !WAITS.load(Ordering::Relaxed));
    if is_there() {
        PORT.drain();
    }
}
