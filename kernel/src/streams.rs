//! Sends the traces that programs have asked for, or that a person wants saved, over the link.
//!
//! A trace is sent in pieces, whenever the link has room for one. If it has none for long, the
//! trace drops its oldest events, and says how many. **A program that is gone asks no more, and its
//! traces end.**

use crate::traced::{in_words, is_whole};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use embassy_futures::yield_now;
use embassy_time::{Duration, Instant, Timer};
use host::domain::trace::{self, Trace, Wish};
use host::module;
use hw::arch::time;
use hw::link;
use ringfence_link::event::Event;
use ringfence_link::request::{BEGUN, GOES_ON, TRACE_SECONDS};
use ringfence_link::trace::{Content, Piece, Traced, What};
use ringfence_link::{FILES, TRACES, file};

/// Number of events, and of bytes of their texts and contents, that a trace keeps until it is sent.
const EVENTS: usize = 4096;
const CONTENT_BYTES: usize = 256 << 10;
/// The most bytes of a frame that can be asked for: a frame that is sent must fit into one of the
/// link's.
const FRAME_BYTES: u32 = 2048;
/// A piece with so many bytes is sent: one more event fits into a frame of the link for sure.
const PIECE_BYTES: usize = 4096;
/// More bytes than the parts of an event besides its texts and its frame.
const EVENT_BYTES: usize = 64;
/// How long the link may take nothing before no one waits for it any more.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most programs that have one driver traced.
const MOST_PROGRAMS: usize = 8;

/// A program that has asked for a trace.
struct Program {
    number: u64,
    /// The most bytes of a frame that it wants.
    frame_bytes: usize,
    until: Instant,
}

/// A trace that is sent.
struct Stream {
    trace: Arc<Trace>,
    /// How many of its events are sent or lost.
    sent: u64,
    /// The programs that it is sent for.
    programs: Vec<Program>,
    /// Whether it is sent for a person who wants it saved.
    is_saved: bool,
}

/// The traces that are sent.
#[derive(Default)]
pub struct Streams(Vec<Stream>);

impl Streams {
    /// Returns whether there are any.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Begins to trace the driver called `name` for a program, or goes on with that. Returns the
    /// answer.
    pub async fn begin(&mut self, program: u64, name: &str, frame_bytes: u32) -> Result<String, String> {
        let until = Instant::now() + Duration::from_secs(TRACE_SECONDS);
        let frame_bytes = frame_bytes.min(FRAME_BYTES) as usize;
        let program = Program { number: program, frame_bytes, until };
        if let Some(stream) = self.0.iter_mut().find(|stream| stream.trace.name == name && stream.trace.is_on()) {
            return stream.join(program).await.map(String::from);
        }
        module::find(name).map_err(|error| error.to_string())?;
        let wish = Wish { events: EVENTS, content_bytes: CONTENT_BYTES, frame_bytes, ..Wish::default() };
        let trace = trace::begin(name, &wish).map_err(|error| format!("{name}: {error}"))?;
        self.0.retain(|stream| stream.trace.name != name);
        self.0.push(Stream { trace, sent: 0, programs: [program].into(), is_saved: false });
        Ok(BEGUN.to_string())
    }

    /// Sends the remaining events of the driver called `name`, and ends its trace for a program.
    /// Returns how many events there were.
    pub async fn end(&mut self, program: u64, name: &str) -> Result<String, String> {
        let is_it =
            |stream: &Stream| stream.trace.name == name && stream.programs.iter().any(|other| other.number == program);
        let place = self.0.iter().position(is_it).ok_or_else(|| format!("{name} is not traced for this program"))?;
        let stream = self.0.get_mut(place).ok_or("the trace is gone")?;
        stream.programs.retain(|other| other.number != program);
        let is_last = stream.programs.is_empty();
        if is_last {
            trace::forget(&stream.trace);
        }
        let sent = stream.send_all().await;
        stream.keep_frames();
        let count = stream.trace.kept().record.count();
        if is_last {
            self.0.remove(place);
        }
        sent.map(|_| format!("{count} events"))
    }

    /// Sends a piece of each trace, if there is something and it fits. Returns whether there may be
    /// more to send.
    pub fn send(&mut self) -> bool {
        let mut has_more = false;
        for stream in &mut self.0 {
            has_more |= stream.send_piece() == Sent::Piece;
        }
        has_more
    }

    /// Ends the traces that nobody asks for any more. Requests that have come must have been read
    /// before: one of them may ask.
    pub fn expire(&mut self) {
        let now = Instant::now();
        self.0.retain_mut(|stream| {
            stream.programs.retain(|program| program.until > now);
            stream.keep_frames();
            let goes_on = !stream.programs.is_empty() && stream.trace.is_on();
            if !goes_on && stream.trace.is_on() {
                trace::forget(&stream.trace);
            }
            goes_on
        });
    }
}

/// Sends a file, for the runner to keep as `name`.
pub async fn send_file(name: &str, bytes: &[u8]) -> Result<(), String> {
    if !link::is_there() {
        return Err("there is no second serial port".to_string());
    }
    let mut patient_until = Instant::now() + PATIENCE;
    for (number, piece) in bytes.chunks(file::PIECE_BYTES).enumerate() {
        while !link::has_room() {
            if Instant::now() > patient_until {
                return Err("nobody takes what the second serial port sends".to_string());
            }
            Timer::after_millis(1).await;
        }
        patient_until = Instant::now() + PATIENCE;
        let offset = (number * file::PIECE_BYTES) as u32;
        let piece = file::Piece { name: name.into(), len_bytes: bytes.len() as u32, offset, bytes: piece.into() };
        link::send(FILES, |room| piece.write(room));
        yield_now().await;
    }
    Ok(())
}

/// Sends all events that a trace has kept, for the runner to save. Returns how many those are.
pub async fn save(trace: &Arc<Trace>) -> Result<u64, String> {
    if !link::is_there() {
        return Err("there is no second serial port".to_string());
    }
    let mut stream = Stream { trace: trace.clone(), sent: 0, programs: Vec::new(), is_saved: true };
    let count = stream.send_all().await?;
    link::tell(&Event::TraceSaved { name: trace.name.as_str().into() });
    Ok(count)
}

/// The outcome of an attempt to send a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Piece,
    /// There is nothing to send.
    Nothing,
    /// The link has no room.
    NoRoom,
}

impl Stream {
    /// Sends the trace for one more program, from now on, or for one that asks again. Returns the
    /// answer.
    async fn join(&mut self, program: Program) -> Result<&'static str, String> {
        let place = self.programs.iter().position(|other| other.number == program.number);
        if place.is_none() && self.programs.len() >= MOST_PROGRAMS {
            return Err(format!("{MOST_PROGRAMS} programs trace {} already", self.trace.name));
        }
        let before = self.frame_bytes();
        if place.is_none() || program.frame_bytes > before {
            // The events of before are not for the program. Its frames may be longer, from now on.
            self.trace.keep_frames(before.max(program.frame_bytes));
            let sent = self.send_all().await;
            self.keep_frames();
            sent?;
        }
        let answer = match place {
            Some(place) => {
                self.programs.remove(place);
                GOES_ON
            }
            None => BEGUN,
        };
        self.programs.push(program);
        self.keep_frames();
        Ok(answer)
    }

    /// Returns the bytes of a frame that programs want.
    fn frame_bytes(&self) -> usize {
        self.programs.iter().map(|program| program.frame_bytes).max().unwrap_or(0)
    }

    /// Has the trace keep as much of a frame as programs want.
    fn keep_frames(&self) {
        self.trace.keep_frames(self.frame_bytes());
    }

    /// Sends all events that there are at the moment. Other tasks have their turn meanwhile.
    /// Returns how many events were sent.
    async fn send_all(&mut self) -> Result<u64, String> {
        let end = self.trace.kept().record.count();
        let lost = self.trace.kept().record.lost().max(self.sent);
        let mut patient_until = Instant::now() + PATIENCE;
        while self.sent < end {
            match self.send_piece() {
                Sent::Piece => patient_until = Instant::now() + PATIENCE,
                Sent::Nothing => break,
                Sent::NoRoom if Instant::now() > patient_until => {
                    return Err("nobody takes what the second serial port sends".to_string());
                }
                Sent::NoRoom => Timer::after_millis(1).await,
            }
            yield_now().await;
        }
        Ok(end - lost)
    }

    /// Sends a piece of the trace.
    fn send_piece(&mut self) -> Sent {
        if !link::has_room() {
            return Sent::NoRoom;
        }
        let kept = self.trace.kept();
        let lost = kept.record.lost().saturating_sub(self.sent);
        let (driver, kind) = (self.trace.name.as_str().into(), kept.kind_name().into());
        let mut piece = Piece { driver, kind, is_saved: self.is_saved, lost, cut: 0, events: Vec::new() };
        let mut len_bytes = 0;
        for event in kept.record.after(self.sent) {
            piece.cut += u64::from(!is_whole(&kept, &event.what));
            let what = in_words(&kept, &event.what);
            len_bytes += EVENT_BYTES + content_bytes(&what);
            piece.events.push(Traced { at_ns: time::uptime_ns_at(kept.record.began.saturating_add(event.at)), what });
            if len_bytes >= PIECE_BYTES {
                break;
            }
        }
        self.sent += lost + piece.events.len() as u64;
        if piece.events.is_empty() {
            return Sent::Nothing;
        }
        link::send(TRACES, |room| piece.write(room));
        Sent::Piece
    }
}

/// Returns the bytes of the texts and frames in an event.
fn content_bytes(what: &What) -> usize {
    match what {
        What::Enter { upcall, words } => upcall.len() + words.len(),
        What::Call { service, words, .. } => service.len() + words.len(),
        What::Given { content: Content::Frame(frame), words, .. } | What::Received { frame, words, .. } => {
            frame.len() + words.len()
        }
        What::Done { detail, words, .. } => detail.len() + words.len(),
        What::Leave { words, .. } | What::Given { words, .. } | What::Note { words } => words.len(),
        What::Access { register, words, place, .. } => register.len() + words.len() + place.len(),
        What::Ended { kind, words } => kind.len() + words.len(),
        What::Woken | What::Replaced => 0,
    }
}
