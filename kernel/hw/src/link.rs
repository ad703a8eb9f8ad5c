//! The link to the runner on the second serial port: it reports events to programs
//! ([`ringfence_link::event`]), and takes their requests ([`ringfence_link::request`]).
//!
//! Events go into a queue, which is sent when there is nothing else to do ([`pump`]): so a driver
//! that was ended is back before its fault has been sent. A sender that finds much in the queue
//! sends some of it first. A sender that finds the queue full waits, as the receiver may be slow.
//! If it has waited in vain, no sender waits again until the port takes a byte, and events that do
//! not fit are lost. Frames are numbered, so that the receiver notices. Without a second port no
//! event is reported; everything else is the same.

use crate::arch::interrupts;
use crate::arch::uart::{FIFO_BYTES, Listens, Uart};
use crate::lock::Lock;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;
use embassy_sync::waitqueue::AtomicWaker;
use heapless::Deque;
use ringfence_link::EVENTS;
use ringfence_link::event::Event;
use ringfence_link::frame::{Encoder, MAX_ENCODED};
use x86_64::instructions::interrupts::without_interrupts;

const PORT: Uart = Uart::SECOND;
/// The most bytes that can wait: enough for several of the largest frames.
const QUEUE_BYTES: usize = 64 << 10;
const _: () = assert!(QUEUE_BYTES > 2 * MAX_ENCODED);
/// If more bytes than this wait, a sender sends some first. The rest of the queue is for times when
/// the port takes nothing.
const MOST_WAITING: usize = QUEUE_BYTES / 4;
/// Bytes that go into the queue at once, with interrupts off.
const PIECE_BYTES: usize = 64;
/// The number of times in a row that the port is asked to take a byte: two seconds or so under
/// QEMU.
const TRIES: u32 = 200_000;
/// Steps of the pause between two of these. A guest that asks without a pause keeps QEMU's global
/// lock so busy that QEMU itself, which passes the bytes on, gets it too rarely.
const PAUSE: u32 = 2_000;

/// The bytes of input that can wait. More stay in the port, which then takes no more.
const INPUT_BYTES: usize = 16 << 10;

/// The bytes that have come. Locked with interrupts off.
static INPUT: Lock<Deque<u8, INPUT_BYTES>> = Lock::new(Deque::new());
static ON_INPUT: AtomicWaker = AtomicWaker::new();

static IS_THERE: AtomicBool = AtomicBool::new(false);
/// Encodes frames. Only tasks and the kernel's panic use it.
static ENCODER: Lock<Encoder> = Lock::new(Encoder::new());
/// The bytes that wait. Locked with interrupts off, because the timer's handler sends some of them.
static QUEUE: Lock<Deque<u8, QUEUE_BYTES>> = Lock::new(Deque::new());
/// Whether bytes wait.
static WAITS: AtomicBool = AtomicBool::new(false);
/// Whether a sender has waited for the port in vain, and the port has taken no byte since.
static IS_DEAF: AtomicBool = AtomicBool::new(false);

/// Opens the port, if there is one.
pub fn init() {
    let is_there = PORT.set_up(Listens::ForMany).is_some();
    IS_THERE.store(is_there, Ordering::Relaxed);
    if is_there {
        // Ends a frame that firmware's output may have begun.
        put(&[0]);
    }
}

/// Lets programs send requests: from now on input interrupts. The interrupt controllers must be
/// ready.
pub fn listen() {
    if is_there() {
        interrupts::use_link();
        // The controllers may have forgotten an interrupt that came before.
        without_interrupts(receive);
    }
}

/// Handles the port's interrupt: moves input into the queue.
pub fn receive() {
    fill(&mut INPUT.lock());
    ON_INPUT.wake();
}

/// Moves as much input into the queue as there is room for. The bytes that stay in the port are
/// fetched when there is room again, because the port interrupts only for bytes that come.
fn fill(input: &mut Deque<u8, INPUT_BYTES>) {
    while !input.is_full()
        && let Some(byte) = PORT.receive()
    {
        // The loop has checked that there is room.
        let _ = input.push_back(byte);
    }
}

/// Waits for input, and moves it into `room`. Returns the number of bytes. For one task only.
pub async fn read(room: &mut [u8]) -> usize {
    poll_fn(|context| {
        ON_INPUT.register(context.waker());
        let count = without_interrupts(|| {
            let mut input = INPUT.lock();
            let count =
                room.iter_mut().zip(core::iter::from_fn(|| input.pop_front())).map(|(to, byte)| *to = byte).count();
            if count > 0 {
                fill(&mut input);
            }
            count
        });
        if count > 0 { Poll::Ready(count) } else { Poll::Pending }
    })
    .await
}

/// Returns whether a program may listen. If not, events that are costly to make can be left out.
pub fn is_there() -> bool {
    IS_THERE.load(Ordering::Relaxed)
}

/// Reports `event`.
pub fn tell(event: &Event) {
    send(EVENTS, |room| event.write(room));
}

/// Returns whether a frame would find room in the queue without a wait. If not, some of the queue
/// is sent first.
pub fn has_room() -> bool {
    while waiting() > MOST_WAITING && pump() {}
    is_there() && room() >= MAX_ENCODED
}

/// Sends a frame on `channel`. `fill` writes its payload and returns the length.
pub fn send(channel: u8, fill: impl FnOnce(&mut [u8]) -> Option<usize>) {
    if !is_there() {
        return;
    }
    let mut encoder = ENCODER.lock();
    let Some(frame) = encoder.frame(channel, fill) else { return };
    while waiting() > MOST_WAITING && pump() {}
    if room() < frame.len() {
        wait_until(|| room() >= frame.len());
    }
    if room() >= frame.len() {
        frame.chunks(PIECE_BYTES).for_each(put);
    }
}

/// Reports `event` as the last one. The events before it are sent first, so that it is not lost for
/// lack of room. A 0 ends a frame that was under way when the kernel panicked.
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
        // There is room: only tasks and the panic fill the queue.
        bytes.iter().for_each(|byte| queue.push_back(*byte).unwrap_or(()));
        WAITS.store(true, Ordering::Relaxed);
    });
}

/// Sends as many of the waiting bytes as the port takes at once. Must be called now and then.
/// Returns whether there are more bytes, and the port may take them.
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
            // PAUSE would take the lock as well.
            (0..PAUSE).for_each(|step| _ = core::hint::black_box(step));
        } else {
            return IS_DEAF.store(true, Ordering::Relaxed);
        }
    }
}

/// Waits until all events are sent, before the machine ends. Gives up if the port takes nothing.
pub fn drain() {
    // There is no next time.
    IS_DEAF.store(false, Ordering::Relaxed);
    wait_until(|| !WAITS.load(Ordering::Relaxed));
    if is_there() {
        PORT.drain();
    }
}
