//! Scripts: the accesses to a device and its answers, from a person or from a recording.

use super::{Asks, Device, Kernel, REGIONS, Register, Requests};
use crate::{Driver, Events};
use ringfence_abi::net::{Entry, Hearing};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;
use zerocopy::{Immutable, IntoBytes};

/// A device that expects exactly these accesses, in this order. A person, a [`Recorder`], or a real
/// run (`cargo run -- record NAME`) writes the script. Numbers are hexadecimal. Empty lines, and
/// lines that begin with `#`, are ignored. The lines that describe the device can be anywhere:
///
/// * `bar BAR ports|memory LENGTH`: a BAR
/// * `c OFFSET WIDTH VALUE`: a value in configuration space
/// * `vectors WANTED GIVEN`: interrupts of the device's own
///
/// The lines for accesses are in their order:
///
/// * `r BAR OFFSET WIDTH VALUE...`: reads of one register, one after the other, with their values
/// * `w BAR OFFSET WIDTH VALUE...`: writes of one register
/// * `m ADDRESS BYTES`: the driver reads its memory at the device's address ADDRESS; the device has
///   written BYTES there
/// * `f OFFSET BYTES`: the driver writes BYTES into a frame
///
/// A recording also has a line for each upcall (`init` or `poll EVENTS`), and lines for the data
/// that went through the queues of a network interface in it: `transmit ENTRY BYTES`, `transmitted
/// NUMBER`, `empty NUMBER`, `received ENTRY`, `hearing BITS` and `group ADDRESS`; or through the
/// channel of a SCSI adapter or a block device: `request NUMBER BYTES`, `out NUMBER OFFSET BYTES`
/// (the driver reads the request's data), `in NUMBER OFFSET BYTES` (the driver writes it) and
/// `completed NUMBER BYTES`.
#[derive(Default, Clone)]
pub struct Script {
    bars: BTreeMap<u64, (bool, u64)>,
    configuration: BTreeMap<(u64, u64), u64>,
    vectors: BTreeMap<u64, u64>,
    lines: VecDeque<Line>,
    /// Whether the script has the accesses to memory and to frames too.
    is_recording: bool,
}

/// An access of the driver. A script has its accesses in order.
#[derive(Debug, Clone, PartialEq)]
enum Line {
    Read(Register, u64),
    Write(Register, u64),
    Memory(u64, Vec<u8>),
    Frame(usize, Vec<u8>),
}

/// An upcall of a recording.
#[derive(Default, Clone)]
struct Upcall {
    /// The events of a poll; `None` is `init`.
    events: Option<Events>,
    lines: VecDeque<Line>,
    transmit: Vec<(Entry, Vec<u8>)>,
    empty: Vec<u64>,
    hearing: Option<Hearing>,
    groups: Vec<[u8; 6]>,
    transmitted: Vec<u64>,
    received: Vec<u64>,
    requests: Vec<(usize, Vec<u8>)>,
    /// Data of requests (number, offset, bytes) that the driver reads, and that it writes.
    out: Vec<(usize, usize, Vec<u8>)>,
    written: Vec<(usize, usize, Vec<u8>)>,
    completed: Vec<(usize, Vec<u8>)>,
}

/// Parses a hexadecimal number. Panics if `word` is none.
fn number(word: &str, line: &str) -> u64 {
    u64::from_str_radix(word, 16).unwrap_or_else(|_| panic!("no number: {line}"))
}

/// Parses bytes: one word, or none for no bytes. Panics if `words` are something else.
fn bytes(words: &[&str], line: &str) -> Vec<u8> {
    let word = words.first().copied().unwrap_or("");
    assert!(words.len() < 2 && word.is_ascii() && word.len().is_multiple_of(2), "no bytes: {line}");
    (0..word.len()).step_by(2).map(|at| number(&word[at..at + 2], line) as u8).collect()
}

impl Script {
    /// Reads a script. Panics if the text is not a script.
    pub fn new(text: &str) -> Script {
        let (mut script, upcalls) = Script::with_upcalls(text);
        script.is_recording = upcalls.len() > 1;
        script.lines = upcalls.into_iter().flat_map(|upcall| upcall.lines).collect();
        script
    }

    /// Reads a script; returns its upcalls. The lines in front of the first upcall count as an
    /// upcall.
    fn with_upcalls(text: &str) -> (Script, Vec<Upcall>) {
        let mut script = Script::default();
        let mut upcalls = Vec::new();
        let mut now = Upcall::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |word: &str| number(word, line);
            match words[..] {
                ["bar", bar, kind, len] => {
                    script.bars.insert(number(bar), (kind == "ports", number(len)));
                }
                ["c", offset, width, value] => {
                    script.configuration.insert((number(offset), number(width)), number(value));
                }
                ["vectors", wanted, given] => {
                    script.vectors.insert(number(wanted), number(given));
                }
                ["init"] => upcalls.push(std::mem::take(&mut now)),
                ["command"] => panic!("the driver was given a command, which a replay does not repeat"),
                ["poll", events] => {
                    let events = Some(Events::from_bits_retain(number(events)));
                    upcalls.push(std::mem::replace(&mut now, Upcall { events, ..Upcall::default() }));
                }
                [way @ ("r" | "w"), bar, offset, width, ref values @ ..] if !values.is_empty() => {
                    let (bar, offset, width_bytes) = (number(bar), number(offset), number(width) as usize);
                    let register = Register { bar, offset, width_bytes };
                    let access = if way == "r" { Line::Read } else { Line::Write };
                    now.lines.extend(values.iter().map(|value| access(register, number(value))));
                }
                ["m", address, ref read @ ..] => now.lines.push_back(Line::Memory(number(address), bytes(read, line))),
                ["f", offset, ref written @ ..] => {
                    now.lines.push_back(Line::Frame(number(offset) as usize, bytes(written, line)));
                }
                ["transmit", entry, ref frame @ ..] => now.transmit.push((Entry(number(entry)), bytes(frame, line))),
                ["empty", frame] => now.empty.push(number(frame)),
                ["hearing", bits] => now.hearing = Some(Hearing::from_bits_retain(number(bits) as u16)),
                ["group", ref group @ ..] => {
                    now.groups.push(bytes(group, line).try_into().unwrap_or_else(|_| panic!("no address: {line}")));
                }
                ["transmitted", frame] => now.transmitted.push(number(frame)),
                ["received", entry] => now.received.push(number(entry)),
                ["request", request, ref rest @ ..] => {
                    now.requests.push((number(request) as usize, bytes(rest, line)));
                }
                ["completed", request, ref rest @ ..] => {
                    now.completed.push((number(request) as usize, bytes(rest, line)));
                }
                [way @ ("in" | "out"), request, offset, ref rest @ ..] => {
                    let data = (number(request) as usize, number(offset) as usize, bytes(rest, line));
                    if way == "in" { now.written.push(data) } else { now.out.push(data) }
                }
                _ => panic!("no line of a script: {line}"),
            }
        }
        upcalls.push(now);
        (script, upcalls)
    }

    /// Returns the number of lines that have not happened yet.
    pub fn left(&self) -> usize {
        self.lines.len()
    }

    /// Takes the next line. Panics unless `is` tells that `what` is in it.
    fn next(&mut self, what: &str, is: impl FnOnce(&Line) -> bool) -> Line {
        let next = self.lines.pop_front().unwrap_or_else(|| panic!("{what} behind the script's end"));
        assert!(is(&next), "{what}; the script has {next:x?}");
        next
    }
}

impl Device for Script {
    fn read(&mut self, register: Register) -> u64 {
        let is = |line: &Line| matches!(line, Line::Read(wanted, _) if *wanted == register);
        match self.next(&format!("{register:x?} is read"), is) {
            Line::Read(_, value) => value,
            _ => 0,
        }
    }

    fn write(&mut self, register: Register, value: u64) {
        self.next(&format!("{register:x?} is set to {value:#x}"), |line| *line == Line::Write(register, value));
    }

    fn bar(&self, bar: u64) -> (bool, u64) {
        self.bars.get(&bar).copied().unwrap_or((false, 0))
    }

    fn configuration(&self, offset: u64, width_bytes: u64) -> u64 {
        self.configuration.get(&(offset, width_bytes)).copied().unwrap_or(0)
    }

    fn vectors(&self, wanted: u64) -> u64 {
        self.vectors.get(&wanted).copied().unwrap_or(0)
    }

    fn memory(&mut self, address: u64, len: usize) -> Option<Vec<u8>> {
        if !self.is_recording {
            return None;
        }
        let is = |line: &Line| matches!(line, Line::Memory(at, bytes) if (*at, bytes.len()) == (address, len));
        match self.next(&format!("{len:#x} bytes at {address:#x} are read"), is) {
            Line::Memory(_, bytes) => Some(bytes),
            _ => None,
        }
    }

    fn frame_written(&mut self, offset: usize, from: &[u8]) {
        if self.is_recording {
            let written = Line::Frame(offset, from.to_vec());
            self.next(&format!("{from:02x?} are written into a frame at {offset:#x}"), |line| *line == written);
        }
    }
}

/// Has a driver repeat a run that `cargo run -- record NAME` has recorded, from its `init` to the
/// last upcall that is complete in the recording. Returns the number of polls. The driver is given
/// the same events, frames, and values of registers and of memory. It must do the same: write the
/// same values to the same registers, in the same order, and give back the same frames.
///
/// The time is not the recorded one, and a register of configuration space has its last value: a
/// driver that decides by them may do something else. A recording with commands is not repeated.
///
/// # Panics
/// At the first difference, which it names.
pub fn replay<D: Driver>(recording: &str) -> usize {
    let (mut device, mut upcalls) = Script::with_upcalls(recording);
    device.is_recording = true;
    // The first part is in front of `init`; the recording may have ended within the last one.
    upcalls.pop();
    assert!(upcalls.len() > 1, "the recording has no complete upcall");
    // The addresses of memory are those of the recording.
    REGIONS.with(|regions| regions.borrow_mut().clear());
    let mut kernel = Kernel::default();
    let mut driver = None;
    for (number, upcall) in upcalls.iter().skip(1).enumerate() {
        let script = Rc::new(RefCell::new(Script { lines: upcall.lines.clone(), ..device.clone() }));
        kernel.device = Some(Box::new(script.clone()));
        match &mut kernel.net {
            None => kernel.at_start = (upcall.empty.clone(), upcall.hearing.unwrap_or_default(), upcall.groups.clone()),
            Some(net) => {
                upcall.transmit.iter().for_each(|(entry, frame)| net.put(*entry, frame));
                net.lend_each(&upcall.empty);
                if let Some(hearing) = upcall.hearing {
                    net.hear(hearing, &upcall.groups);
                }
            }
        }
        ask_again(kernel.scsi.as_mut(), upcall);
        ask_again(kernel.block.as_mut(), upcall);
        match (upcall.events, &mut driver) {
            (None, driver) => *driver = Some(kernel.run(D::init).expect("init succeeds, as it did in the recording")),
            (Some(events), Some(driver)) => _ = kernel.run(|| driver.poll(events)),
            (Some(_), None) => panic!("the recording begins without init"),
        }
        let next = script.borrow().lines.front().cloned();
        assert!(next.is_none(), "upcall {number}: the driver returns; the script has {next:x?}");
        if let Some(net) = &mut kernel.net {
            let received: Vec<u64> = net.take_entries().iter().map(|(entry, _)| entry.0).collect();
            assert_eq!(received, upcall.received, "the received frames of upcall {number}");
            assert_eq!(net.take_sent(), upcall.transmitted, "the sent frames of upcall {number}");
        }
        compare(kernel.scsi.as_mut(), upcall, number);
        compare(kernel.block.as_mut(), upcall, number);
    }
    upcalls.len() - 2
}

/// Gives the driver the requests of a recorded upcall.
fn ask_again<P: Asks>(channel: Option<&mut Requests<P>>, upcall: &Upcall) {
    let Some(channel) = channel else { return };
    upcall.requests.iter().for_each(|(number, request)| channel.ask_again(*number, request));
    upcall.out.iter().for_each(|(number, offset, data)| channel.set_data(*number, *offset, data));
}

/// Compares the requests that the driver has completed, and the data that it has written, with the
/// recording.
fn compare<P: Asks>(channel: Option<&mut Requests<P>>, upcall: &Upcall, number: usize)
where
    P::Outcome: IntoBytes + Immutable,
{
    let Some(channel) = channel else { return };
    let completed = channel.take_completed().into_iter();
    let completed: Vec<_> = completed.map(|(number, outcome)| (number, outcome.as_bytes().to_vec())).collect();
    assert_eq!(completed, upcall.completed, "the completed requests of upcall {number}");
    for (request, offset, data) in &upcall.written {
        assert_eq!(
            channel.data(*request, *offset, data.len()),
            *data,
            "the data of request {request}, upcall {number}"
        );
    }
}

/// A device that records the accesses to another device as a [`Script`].
pub struct Recorder<D> {
    /// The device whose accesses are recorded.
    pub device: D,
    /// The script so far.
    pub script: String,
}

impl<D: Device> Recorder<D> {
    /// Creates a recorder with an empty script.
    pub fn new(device: D) -> Recorder<D> {
        Recorder { device, script: String::new() }
    }

    fn note(&mut self, way: char, Register { bar, offset, width_bytes }: Register, value: u64) {
        self.script += &format!("{way} {bar:x} {offset:x} {width_bytes:x} {value:x}\n");
    }
}

impl<D: Device> Device for Recorder<D> {
    fn read(&mut self, register: Register) -> u64 {
        let value = self.device.read(register);
        self.note('r', register, value);
        value
    }

    fn write(&mut self, register: Register, value: u64) {
        self.device.write(register, value);
        self.note('w', register, value);
    }

    fn bar(&self, bar: u64) -> (bool, u64) {
        self.device.bar(bar)
    }

    fn configuration(&self, offset: u64, width_bytes: u64) -> u64 {
        self.device.configuration(offset, width_bytes)
    }

    fn vectors(&self, wanted: u64) -> u64 {
        self.device.vectors(wanted)
    }

    fn memory(&mut self, address: u64, len: usize) -> Option<Vec<u8>> {
        self.device.memory(address, len)
    }

    fn frame_written(&mut self, offset: usize, from: &[u8]) {
        self.device.frame_written(offset, from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "is read; the script has")]
    fn a_script_is_followed_to_the_letter() {
        let mut script = Script::new("bar 0 memory 100\nr 0 10 4 1\nr 0 14 4 2");
        assert_eq!(script.read(Register { bar: 0, offset: 0x10, width_bytes: 4 }), 1);
        script.read(Register { bar: 0, offset: 0x14, width_bytes: 2 });
    }
}
