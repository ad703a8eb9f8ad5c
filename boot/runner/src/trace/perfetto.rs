//! A trace in Perfetto's own format, a protocol buffer (perfetto.dev, "Trace packet reference"): a
//! track for each driver with its upcalls, one for the kernel with the services that it carries out
//! for them (more while drivers sleep in services), arrows from an upcall through the services that
//! it calls, and a counter of the frames and requests that each driver has in hand.

use super::{Sink, Source, Traced, What};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Result, Write};

/// Fields of `Trace`, `TracePacket`, `TrackDescriptor`, `ProcessDescriptor`, `ThreadDescriptor`,
/// `TrackEvent` and `DebugAnnotation`, by number.
mod field {
    pub const PACKET: u64 = 1;
    pub const TIMESTAMP: u64 = 8;
    pub const SEQUENCE: u64 = 10;
    pub const EVENT: u64 = 11;
    pub const SEQUENCE_FLAGS: u64 = 13;
    pub const DESCRIPTOR: u64 = 60;

    pub const UUID: u64 = 1;
    pub const NAME: u64 = 2;
    pub const PROCESS: u64 = 3;
    pub const THREAD: u64 = 4;
    pub const PARENT: u64 = 5;
    pub const COUNTER: u64 = 8;

    pub const PID: u64 = 1;
    pub const PROCESS_NAME: u64 = 6;
    pub const TID: u64 = 2;
    pub const THREAD_NAME: u64 = 5;

    pub const ANNOTATION: u64 = 4;
    pub const TYPE: u64 = 9;
    pub const TRACK: u64 = 11;
    pub const EVENT_NAME: u64 = 23;
    pub const COUNTER_VALUE: u64 = 30;
    pub const FLOW: u64 = 47;

    pub const ANNOTATION_NAME: u64 = 10;
    pub const ANNOTATION_TEXT: u64 = 6;
}

/// The values of `TrackEvent.type`.
const SLICE_BEGIN: u64 = 1;
const SLICE_END: u64 = 2;
const INSTANT: u64 = 3;
const COUNT: u64 = 4;

/// The process that all tracks belong to.
const PROCESS: u64 = 1;
/// The only sequence of packets, and the flag of its first one.
const SEQUENCE: u64 = 1;
const CLEARED: u64 = 1;

/// A message under way.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Message {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn fixed(mut self, field: u64, value: u64) -> Message {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Message {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn text(self, field: u64, text: &str) -> Message {
        self.bytes(field, text.as_bytes())
    }

    fn message(self, field: u64, message: Message) -> Message {
        self.bytes(field, &message.0)
    }
}

/// State of a driver in the trace.
struct Driver {
    /// Its track. The one of its counter is the next one.
    track: u64,
    /// The flow from the upcall that is under way, if one is.
    upcall: Option<u64>,
    /// The numbers of the frames and requests that it has in hand.
    in_hand: BTreeSet<u64>,
}

/// A trace that is written.
pub struct Perfetto<W> {
    to: W,
    /// The number of the last track.
    last_track: u64,
    /// The kernel's tracks, each with the end of its last service. There is more than one if a
    /// driver sleeps in a service and others call services meanwhile: services on a track do not
    /// overlap.
    kernel: Vec<(u64, u64)>,
    drivers: BTreeMap<String, Driver>,
    next_flow: u64,
    is_first: bool,
}

impl<W: Write> Perfetto<W> {
    /// Begins a trace.
    pub fn new(to: W) -> Result<Perfetto<W>> {
        let (kernel, drivers) = (Vec::new(), BTreeMap::new());
        let mut trace = Perfetto { to, last_track: PROCESS, kernel, drivers, next_flow: 1, is_first: true };
        let process = Message::default().number(field::PID, PROCESS).text(field::PROCESS_NAME, "Ringfence");
        let descriptor = Message::default().number(field::UUID, PROCESS).message(field::PROCESS, process);
        trace.packet(Message::default().message(field::DESCRIPTOR, descriptor))?;
        Ok(trace)
    }

    fn packet(&mut self, packet: Message) -> Result<()> {
        let flags = if std::mem::take(&mut self.is_first) { CLEARED } else { 0 };
        let packet = packet.number(field::SEQUENCE, SEQUENCE).number(field::SEQUENCE_FLAGS, flags);
        self.to.write_all(&Message::default().message(field::PACKET, packet).0)
    }

    /// Declares a track, and returns its number.
    fn thread(&mut self, name: &str) -> Result<u64> {
        self.last_track += 1;
        let track = self.last_track;
        let thread =
            Message::default().number(field::PID, PROCESS).number(field::TID, track).text(field::THREAD_NAME, name);
        let descriptor = Message::default().number(field::UUID, track).number(field::PARENT, PROCESS);
        let descriptor = descriptor.text(field::NAME, name).message(field::THREAD, thread);
        self.packet(Message::default().message(field::DESCRIPTOR, descriptor))?;
        Ok(track)
    }

    /// Returns the kernel's track for a service.
    fn kernel_track(&mut self, began: u64, ended: u64) -> Result<u64> {
        if let Some((track, end)) = self.kernel.iter_mut().find(|(_, end)| *end <= began) {
            *end = ended;
            return Ok(*track);
        }
        let number = self.kernel.len() + 1;
        let number = if number == 1 { String::new() } else { format!(" {number}") };
        let track = self.thread(&format!("kernel: services{number}"))?;
        self.kernel.push((track, ended));
        Ok(track)
    }

    /// Declares the tracks of a driver that was not seen before.
    fn know(&mut self, name: &str) -> Result<()> {
        if self.drivers.contains_key(name) {
            return Ok(());
        }
        let track = self.thread(name)?;
        self.last_track += 1;
        let counter = Message::default().number(field::UUID, self.last_track).number(field::PARENT, PROCESS);
        let counter = counter.text(field::NAME, &format!("{name}: in hand"));
        let counter = counter.message(field::COUNTER, Message::default());
        self.packet(Message::default().message(field::DESCRIPTOR, counter))?;
        let driver = Driver { track, upcall: None, in_hand: BTreeSet::new() };
        self.drivers.insert(name.to_string(), driver);
        Ok(())
    }

    fn event(&mut self, at_ns: u64, track: u64, kind: u64, rest: Message) -> Result<()> {
        let mut event = Message::default().number(field::TYPE, kind).number(field::TRACK, track);
        event.0.extend(rest.0);
        self.packet(Message::default().number(field::TIMESTAMP, at_ns).message(field::EVENT, event))
    }
}

/// Returns an event's name, and its words as a note on it.
fn named(name: &str, words: &str) -> Message {
    // The end of a slice has no name.
    let named = if name.is_empty() { Message::default() } else { Message::default().text(field::EVENT_NAME, name) };
    if words.is_empty() {
        return named;
    }
    let note = Message::default().text(field::ANNOTATION_NAME, "what").text(field::ANNOTATION_TEXT, words);
    named.message(field::ANNOTATION, note)
}

impl<W: Write> Sink for Perfetto<W> {
    fn add(&mut self, source: &Source, event: &Traced<'static>) -> Result<bool> {
        self.add_any(source, event).map(|()| true)
    }

    fn lost(&mut self, source: &Source, at_ns: u64, count: u64) -> Result<()> {
        self.know(&source.driver)?;
        self.begin_anew(source, at_ns)?;
        let Some(driver) = self.drivers.get(&source.driver) else { return Ok(()) };
        let track = driver.track;
        self.event(at_ns, track, INSTANT, named(&format!("{count} events are missing"), ""))
    }

    fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }
}

impl<W: Write> Perfetto<W> {
    /// Ends the driver's upcall, if one is under way, and forgets the frames and requests that it
    /// has in hand: it was ended, or events of it are missing.
    fn begin_anew(&mut self, source: &Source, at_ns: u64) -> Result<()> {
        let Some(driver) = self.drivers.get_mut(&source.driver) else { return Ok(()) };
        let (track, was_running) = (driver.track, driver.upcall.take().is_some());
        let had_some = !std::mem::take(&mut driver.in_hand).is_empty();
        if was_running {
            self.event(at_ns, track, SLICE_END, Message::default())?;
        }
        if had_some {
            self.event(at_ns, track + 1, COUNT, Message::default().number(field::COUNTER_VALUE, 0))?;
        }
        Ok(())
    }

    fn add_any(&mut self, source: &Source, event: &Traced<'static>) -> Result<()> {
        self.know(&source.driver)?;
        let Some(driver) = self.drivers.get_mut(&source.driver) else { return Ok(()) };
        let (at_ns, track) = (event.at_ns, driver.track);
        match &event.what {
            What::Enter { upcall, words } => {
                let flow = self.next_flow;
                self.next_flow += 1;
                driver.upcall = Some(flow);
                let rest = named(upcall, words).fixed(field::FLOW, flow);
                self.event(at_ns, track, SLICE_BEGIN, rest)
            }
            What::Woken => {
                let flow = self.next_flow;
                self.next_flow += 1;
                driver.upcall = Some(flow);
                self.event(at_ns, track, SLICE_BEGIN, named("goes on", "").fixed(field::FLOW, flow))
            }
            // If the beginning was not seen, there is no slice to end.
            What::Leave { words, .. } if driver.upcall.take().is_some() => {
                let rest = named("", words);
                self.event(at_ns, track, SLICE_END, rest)
            }
            What::Leave { .. } => Ok(()),
            // A service in which the driver has slept takes longer than the upcall has run since.
            What::Call { service, words, took_ns } => {
                let mut rest = named(service, words);
                if let Some(flow) = driver.upcall {
                    rest = rest.fixed(field::FLOW, flow);
                }
                let began = at_ns.saturating_sub(*took_ns);
                let track = self.kernel_track(began, at_ns)?;
                self.event(began, track, SLICE_BEGIN, rest)?;
                self.event(at_ns, track, SLICE_END, Message::default())
            }
            What::Given { number, words, .. } => {
                driver.in_hand.insert(*number);
                let count = driver.in_hand.len() as u64;
                self.event(at_ns, track, INSTANT, named(&format!("gets {number}"), words))?;
                self.event(at_ns, track + 1, COUNT, Message::default().number(field::COUNTER_VALUE, count))
            }
            What::Done { number, words, .. } => {
                driver.in_hand.remove(number);
                let count = driver.in_hand.len() as u64;
                self.event(at_ns, track, INSTANT, named(&format!("has done {number}"), words))?;
                self.event(at_ns, track + 1, COUNT, Message::default().number(field::COUNTER_VALUE, count))
            }
            What::Received { number, words, .. } => {
                self.event(at_ns, track, INSTANT, named(&format!("receives {number}"), words))
            }
            What::Access { words, place, .. } => self.event(at_ns, track, INSTANT, named(words, place)),
            What::Ended { kind, words } => {
                let what = if words.is_empty() { kind.to_string() } else { format!("{kind}: {words}") };
                self.event(at_ns, track, INSTANT, named("ended", &what))?;
                self.begin_anew(source, at_ns)
            }
            What::Replaced => self.event(at_ns, track, INSTANT, named("replaced", "")),
            What::Note { words } => self.event(at_ns, track, INSTANT, named("note", words)),
        }
    }
}
