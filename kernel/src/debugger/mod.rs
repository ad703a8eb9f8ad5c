//! A debugger on the link: gdb's remote protocol, by the `gdbstub` crate, in the requests of
//! `cargo run -- gdb` and on a channel of its own ([`ringfence_link::DEBUGGER`]).
//!
//! * [`target`]: the drivers, as gdb sees them: each is a thread
//!
//! gdb believes that all threads stand when one does. In truth only drivers stand that have met a
//! breakpoint, have done a step, have faulted, or that a person has interrupted; everything else
//! runs on. A driver that stands while gdb looks at another one is told when gdb goes on. **The
//! session ends with gdb**, or when its runner has not been heard for a while.

mod target;

use crate::shell::commands;
use crate::shell::modules::as_paged;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::future::poll_fn;
use core::task::Poll;
use embassy_futures::select::{Either, select};
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::{Duration, Instant, Timer};
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{GdbStubBuilder, MultiThreadStopReason};
use host::debugger;
use host::domain::debug;
use hw::{console, link};
use ringfence_link::DEBUGGER;
use ringfence_link::frame::MAX_PAYLOAD;
use ringfence_link::request::DEBUG_SECONDS;
use spin::Mutex;
use target::Drivers;

/// The most bytes from gdb that wait. gdb sends a packet, and waits for the answer.
const MOST_BYTES: usize = 64 << 10;
/// The longest packet.
const PACKET_BYTES: usize = 4096;
/// Bytes of a session's number, with which each frame begins.
const NUMBER_BYTES: usize = size_of::<u64>();

/// A session with gdb.
struct Session {
    number: u64,
    /// The only driver that it is about, if not all.
    only: Option<String>,
    /// When it ends, if nothing comes.
    until: Instant,
    bytes: VecDeque<u8>,
    is_over: bool,
}

static SESSION: Mutex<Option<Session>> = Mutex::new(None);
static ON_BYTES: AtomicWaker = AtomicWaker::new();

/// Takes bytes from gdb in session `number`. The first ones begin the session, for all drivers or
/// only for one.
pub fn receive(number: u64, only: Option<&str>, bytes: &[u8]) -> Result<(), String> {
    let mut session = SESSION.lock();
    if session.is_none() {
        if let Some(name) = only {
            host::module::find(name).map_err(|error| format!("{error}"))?;
        }
        if !debug::begin(only) {
            return Err("the last session is about to end".into());
        }
        let only = only.map(String::from);
        *session = Some(Session { number, only, until: Instant::now(), bytes: VecDeque::new(), is_over: false });
    }
    let Some(session) = session.as_mut().filter(|session| session.number == number && !session.is_over) else {
        return Err("another debugger is connected".into());
    };
    if session.bytes.len() + bytes.len() > MOST_BYTES {
        return Err(format!("more than {MOST_BYTES} bytes came"));
    }
    session.bytes.extend(bytes);
    session.until = Instant::now() + Duration::from_secs(DEBUG_SECONDS);
    ON_BYTES.wake();
    Ok(())
}

/// Ends session `number`: gdb is gone.
pub fn end(number: u64) {
    if let Some(session) = SESSION.lock().as_mut().filter(|session| session.number == number) {
        session.is_over = true;
        ON_BYTES.wake();
    }
}

/// The task that serves gdb, one session after the other.
pub async fn run() {
    loop {
        let number = poll_fn(|context| {
            ON_BYTES.register(context.waker());
            SESSION.lock().as_ref().map_or(Poll::Pending, |session| Poll::Ready(session.number))
        });
        serve(number.await).await;
        debugger::end();
        *SESSION.lock() = None;
    }
}

/// Waits for a byte from gdb. Returns `None` when the session is over.
async fn next_byte() -> Option<u8> {
    loop {
        let until = SESSION.lock().as_ref()?.until;
        let byte = poll_fn(|context| {
            ON_BYTES.register(context.waker());
            match SESSION.lock().as_mut() {
                Some(session) if !session.is_over => match session.bytes.pop_front() {
                    Some(byte) => Poll::Ready(Some(byte)),
                    None => Poll::Pending,
                },
                _ => Poll::Ready(None),
            }
        });
        match select(byte, Timer::at(until)).await {
            Either::First(byte) => return byte,
            Either::Second(()) if SESSION.lock().as_ref()?.until <= Instant::now() => return None,
            Either::Second(()) => {}
        }
    }
}

/// Waits until a person interrupts gdb, or the session is over.
async fn interrupted() {
    const CTRL_C: u8 = 0x03;
    loop {
        let Some(until) = SESSION.lock().as_ref().map(|session| session.until) else { return };
        let stopped = poll_fn(|context| {
            ON_BYTES.register(context.waker());
            match SESSION.lock().as_mut() {
                Some(session) if !session.is_over => {
                    let place = session.bytes.iter().position(|byte| *byte == CTRL_C);
                    place.and_then(|place| session.bytes.remove(place)).map_or(Poll::Pending, |_| Poll::Ready(()))
                }
                _ => Poll::Ready(()),
            }
        });
        match select(stopped, Timer::at(until)).await {
            Either::First(()) => return,
            Either::Second(()) if SESSION.lock().as_ref().is_none_or(|session| session.until <= Instant::now()) => {
                return;
            }
            Either::Second(()) => {}
        }
    }
}

/// Bytes for gdb, which are sent when a packet is complete, or there are as many as fit a frame.
struct Output {
    number: u64,
    bytes: Vec<u8>,
}

impl Connection for Output {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.bytes.push(byte);
        if self.bytes.len() < MAX_PAYLOAD - NUMBER_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        for piece in core::mem::take(&mut self.bytes).chunks(MAX_PAYLOAD - NUMBER_BYTES) {
            link::send(DEBUGGER, |room| {
                let (number, rest) = room.split_first_chunk_mut()?;
                *number = self.number.to_le_bytes();
                rest.get_mut(..piece.len())?.copy_from_slice(piece);
                Some(NUMBER_BYTES + piece.len())
            });
        }
        Ok(())
    }
}

/// The bytes from gdb. Commands for the shell (`monitor`) are taken out: they take their time, and
/// gdbstub cannot wait.
struct Input {
    /// The packet that comes, and the bytes of it that are still to be handed on.
    packet: Vec<u8>,
    ready: VecDeque<u8>,
    /// Whether each packet is to be acknowledged.
    acknowledges: bool,
    output: Output,
}

impl Input {
    /// Returns the next byte for gdbstub; `None` when the session is over.
    async fn next(&mut self) -> Option<u8> {
        loop {
            if let Some(byte) = self.ready.pop_front() {
                return Some(byte);
            }
            let byte = next_byte().await?;
            if self.packet.is_empty() && byte != b'$' {
                return Some(byte);
            }
            self.packet.push(byte);
            let end = self.packet.iter().position(|byte| *byte == b'#');
            let is_whole = end.is_some_and(|end| self.packet.len() == end + 3);
            if !is_whole && self.packet.len() <= 2 * PACKET_BYTES {
                continue;
            }
            let packet = core::mem::take(&mut self.packet);
            if packet.starts_with(b"$QStartNoAckMode#") {
                self.acknowledges = false;
            }
            match command(&packet) {
                Some(text) => self.monitor(&text).await,
                None => self.ready = packet.into(),
            }
        }
    }

    /// Runs a command of the shell, and sends its output.
    async fn monitor(&mut self, text: &str) {
        let capture = console::capture();
        let outcome = match select(Box::pin(commands::run(text.trim())), interrupted()).await {
            Either::First(outcome) => outcome,
            Either::Second(()) => Err("interrupted".into()),
        };
        let mut said = capture.take().text;
        if let Err(error) = outcome {
            said += &format!("error: {error}\n");
        }
        if self.acknowledges {
            let _ = self.output.write(b'+');
        }
        self.say(&said);
        self.send("OK");
    }

    /// Has gdb print a text. gdb must wait for an answer.
    fn say(&mut self, text: &str) {
        for piece in text.as_bytes().chunks(PACKET_BYTES / 4) {
            let hex: String = piece.iter().map(|byte| format!("{byte:02x}")).collect();
            self.send(&format!("O{hex}"));
        }
    }

    fn send(&mut self, content: &str) {
        let sum = content.bytes().fold(0u8, u8::wrapping_add);
        // Nothing fails there.
        let _ = self.output.write_all(format!("${content}#{sum:02x}").as_bytes());
        let _ = self.output.flush();
    }
}

/// Returns the shell's command in a packet (`qRcmd`).
fn command(packet: &[u8]) -> Option<String> {
    let hex = packet.strip_prefix(b"$qRcmd,")?.split(|byte| *byte == b'#').next()?;
    let byte = |pair: &[u8]| u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = hex.chunks(2).map(byte).collect();
    String::from_utf8(bytes?).ok()
}

/// Serves gdb until the session is over.
async fn serve(number: u64) {
    let output = || Output { number, bytes: Vec::new() };
    let mut input = Input { packet: Vec::new(), ready: VecDeque::new(), acknowledges: true, output: output() };
    let mut drivers = Drivers::default();
    // gdb knows 64-bit code. It has asked nothing yet that the reload would change.
    let only = SESSION.lock().as_ref().and_then(|session| session.only.clone());
    let debugged = match only {
        Some(name) => host::module::find(&name).ok().into_iter().collect(),
        None => host::domain::registry::all(),
    };
    for handle in debugged {
        match as_paged(&handle).await {
            Ok(done) => drivers.warnings.extend(done.map(|done| done + "\n")),
            Err(why) => drivers.warnings.push(why + "\n"),
        }
    }
    // gdb drops an interrupt that comes while it asks for libraries again.
    debug::forget_new();
    let Ok(stub) = GdbStubBuilder::new(output()).packet_buffer_size(PACKET_BYTES).build() else { return };
    let Ok(mut machine) = stub.run_state_machine(&mut drivers) else { return };
    let mut is_running = false;
    loop {
        drivers.begin_packet();
        is_running = match machine {
            GdbStubStateMachine::Idle(_) => false,
            GdbStubStateMachine::Running(_) => true,
            _ => is_running,
        };
        let next = match machine {
            GdbStubStateMachine::Idle(idle) => match input.next().await {
                Some(byte) => idle.incoming_data(&mut drivers, byte),
                None => return,
            },
            GdbStubStateMachine::Running(running) => {
                core::mem::take(&mut drivers.warnings).iter().for_each(|text| input.say(text));
                drivers.let_go();
                match select(input.next(), debug::next_stop()).await {
                    Either::First(Some(byte)) => running.incoming_data(&mut drivers, byte),
                    Either::First(None) => return,
                    Either::Second(stop) => match drivers.report(&stop) {
                        Some(reason) => running.report_stop(&mut drivers, reason),
                        None => Ok(running.into()),
                    },
                }
            }
            // gdb has interrupted just when it was told of a stop.
            GdbStubStateMachine::CtrlCInterrupt(interrupt) if !is_running => {
                interrupt.interrupt_handled(&mut drivers, None::<MultiThreadStopReason<u64>>)
            }
            GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                let reason = drivers.interrupted();
                core::mem::take(&mut drivers.warnings).iter().for_each(|text| input.say(text));
                interrupt.interrupt_handled(&mut drivers, Some(reason))
            }
            GdbStubStateMachine::Disconnected(_) => return,
        };
        match next {
            Ok(next) => machine = next,
            Err(error) => return log::warn!("gdb: {error}"),
        }
    }
}
