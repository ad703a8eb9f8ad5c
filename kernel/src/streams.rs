//! Sends the traces that programs have asked for, or that a person wants saved, over the link.
//!
//! A trace is sent in pieces, whenever the link has room for one. If it has none for long, the
//! trace drops its oldest events, and says how many. **A program that is gone asks no more, and its
//! traces end.**

use crate::traced::in_words;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use embassy_time::{Duration, Instant};
use host::domain::trace::{self, Trace, Wish};
use host::module;
use hw::arch::time;
use hw::link;
use ringfence_link::TRACES;
use ringfence_link::event::Event;
use ringfence_link::request::TRACE_SECONDS;
use ringfence_link::trace::{Content, Piece, Traced, What};

/// What a trace keeps until it is sent.
const EVENTS: usize = 4096;
const CONTENT_BYTES: usize = 256 << 10;
/// The most bytes of a frame that can be asked for: a frame that is sent must fit into one of the
/// link's.
const FRAME_BYTES: u32 = 2048;
/// A piece with so many bytes is sent: one more event fits into a frame of the link for sure.
const PIECE_BYTES: usize = 4096;
/// More bytes than the parts of an event besides its texts and its frame.
const EVENT_BYTES: usize = 48;
/// The pieces that are sent before other tasks have their turn.
const PIECES: usize = 4;

/// A trace that is sent.
struct Stream {
    trace: Arc<Trace>,
    /// How many of its events are sent or lost.
    sent: u64,
    until: Instant,
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

    /// Begins to trace the driver called `name`, or goes on with that.
    pub fn begin(&mut self, name: &str, frame_bytes: u32) -> Result<String, String> {
        let until = Instant::now() + Duration::from_secs(TRACE_SECONDS);
        if let Some(stream) = self.0.iter_mut().find(|stream| stream.trace.name == name && stream.trace.is_on()) {
            stream.until = until;
            return Ok(format!("{name} is traced"));
        }
        module::find(name).map_err(|error| error.to_string())?;
        let frame_bytes = frame_bytes.min(FRAME_BYTES) as usize;
        let wish = Wish { events: EVENTS, content_bytes: CONTENT_BYTES, frame_bytes, ..Wish::default() };
        trace::begin(name, &wish).map_err(|error| format!("{name}: {error}"))?;
        let trace = trace::of(name).ok_or("the trace is gone")?;
        self.0.retain(|stream| stream.trace.name != name);
        self.0.push(Stream { trace, sent: 0, until, is_saved: false });
        Ok(format!("{name} is traced"))
    }

    /// Ends the trace of the driver called `name`. Returns how many events there were.
    pub fn end(&mut self, name: &str) -> Result<String, String> {
        let place = self.0.iter().position(|stream| stream.trace.name == name);
        let mut stream = self.0.remove(place.ok_or_else(|| format!("{name} is not traced for a program"))?);
        trace::forget(name);
        // As long as there is something to send, and the link takes it.
        while stream.send_piece() {}
        Ok(format!("{} events", stream.trace.kept().record.count()))
    }

    /// Sends what there is and fits, and ends the traces that nobody asks for any more.
    pub fn send(&mut self) {
        for stream in &mut self.0 {
            let _ = (0..PIECES).all(|_| stream.send_piece());
        }
        let now = Instant::now();
        self.0.retain(|stream| {
            let goes_on = stream.until > now && stream.trace.is_on();
            if !goes_on {
                trace::forget(&stream.trace.name);
            }
            goes_on
        });
    }
}

/// Sends all that a trace has kept, for the runner to save. Returns how many events that are;
/// `None` if nobody listens.
pub fn save(trace: &Arc<Trace>) -> Option<u64> {
    let sent = trace.kept().record.lost();
    let mut stream = Stream { trace: trace.clone(), sent, until: Instant::now(), is_saved: true };
    while stream.send_piece() {}
    let is_all_sent = stream.sent >= trace.kept().record.count();
    if is_all_sent && link::is_there() {
        link::tell(&Event::TraceSaved { name: trace.name.as_str().into() });
        return Some(stream.sent - sent);
    }
    None
}

impl Stream {
    /// Sends a piece of the trace. Returns `false` if there is nothing to send, or no room.
    fn send_piece(&mut self) -> bool {
        if !link::has_room() {
            return false;
        }
        let kept = self.trace.kept();
        let lost = kept.record.lost().saturating_sub(self.sent);
        let (driver, kind) = (self.trace.name.as_str().into(), kept.kind_name().into());
        let mut piece = Piece { driver, kind, is_saved: self.is_saved, lost, events: Vec::new() };
        let mut len_bytes = 0;
        for event in kept.record.after(self.sent) {
            let what = in_words(&kept, &event.what);
            len_bytes += EVENT_BYTES + content_bytes(&what);
            piece.events.push(Traced { at_ns: time::uptime_ns_at(kept.record.began.saturating_add(event.at)), what });
            if len_bytes >= PIECE_BYTES {
                break;
            }
        }
        self.sent += lost + piece.events.len() as u64;
        if piece.events.is_empty() {
            return false;
        }
        link::send(TRACES, |room| piece.write(room));
        true
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
        What::Leave { words, .. } | What::Given { words, .. } | What::Done { words, .. } | What::Note { words } => {
            words.len()
        }
        What::Ended { kind } => kind.len(),
        What::Woken | What::Replaced => 0,
    }
}
