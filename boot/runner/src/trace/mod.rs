//! `cargo run -- trace NAME`: collects the traces of drivers of a running system, and shows them or
//! writes them to files for other tools.
//!
//! * [`perfetto`]: a file for ui.perfetto.dev; [`pcapng`]: a file for Wireshark
//!
//! Ctrl-C ends this in order. If it is killed, the files end with a whole event, and may lack those
//! of the last moment.

use crate::output::{self, printable};
use crate::session::{Heard, Session};
use crate::target;
use anyhow::{Context, Result, anyhow};
use pcapng::Pcapng;
use perfetto::Perfetto;
use ringfence_link::frame::Frame;
use ringfence_link::request::{BEGUN, TRACE_SECONDS, What as Request};
use ringfence_link::trace::{Piece, Traced, What};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

mod pcapng;
mod perfetto;

/// The settings.
pub struct Options {
    /// The drivers.
    pub names: Vec<String>,
    /// Where to write a trace for Perfetto.
    pub out: Option<PathBuf>,
    /// Where to write a capture for Wireshark.
    pub pcap: Option<PathBuf>,
    /// How long to trace; without it, until the system ends or this is interrupted.
    pub seconds: Option<u64>,
    /// The system, if several run.
    pub system: Option<String>,
    /// Whether to print JSON.
    pub json: bool,
}

/// The most bytes of a frame that are asked for: all, if they are written to a file.
const WHOLE_FRAME: u32 = 2048;
const FRAME_START: u32 = 64;

/// The driver that an event is about.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub driver: String,
    /// Name of its class: `nic`, `scsi`, `block` or `fs`; `other` if it offers nothing.
    pub kind: String,
}

/// A place for events.
trait Sink {
    /// Adds an event. Returns whether it has a place there.
    fn add(&mut self, source: &Source, event: &Traced<'static>) -> std::io::Result<bool>;

    /// Notes that events of a driver are missing here.
    fn lost(&mut self, source: &Source, at_ns: u64, count: u64) -> std::io::Result<()>;

    /// Writes the added events.
    fn flush(&mut self) -> std::io::Result<()>;
}

/// The terminal.
struct Terminal {
    json: bool,
}

impl Sink for Terminal {
    fn add(&mut self, source: &Source, event: &Traced<'static>) -> std::io::Result<bool> {
        show(source, event, self.json);
        Ok(true)
    }

    fn lost(&mut self, _: &Source, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file that grows by whole pieces: if this is interrupted, the file ends with the last one.
struct Whole {
    file: File,
    added: Vec<u8>,
}

impl Write for Whole {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.added.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.write_all(&std::mem::take(&mut self.added))
    }
}

impl Whole {
    fn create(path: &Path) -> Result<Whole> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Whole { file, added: Vec::new() })
    }
}

/// A file, or the output, and how many events it has.
struct Place {
    path: PathBuf,
    sink: Box<dyn Sink>,
    count: u64,
}

/// How long an event waits for earlier ones: the kernel sends the drivers' events one driver after
/// the other.
const WAIT: Duration = Duration::from_millis(300);

/// An event that waits for earlier ones.
struct Waiting {
    source: Arc<Source>,
    event: Traced<'static>,
    /// How many events are missing before it.
    lost: u64,
    since: Instant,
}

/// The events that have come, in the order of their times.
#[derive(Default)]
struct Collected {
    /// The drivers whose traces the kernel sends for this program.
    drivers: BTreeSet<String>,
    /// By time, and by the order in which they came.
    waiting: BTreeMap<(u64, u64), Waiting>,
    count: u64,
    lost: u64,
    /// How many events have come without their text or the bytes of their frame.
    cut: u64,
    /// How often a trace or the connection had ended, so that an unknown number of events is
    /// missing.
    gaps: u64,
}

impl Collected {
    fn add(&mut self, piece: Piece<'static>) {
        self.lost += piece.lost;
        self.cut += piece.cut;
        if piece.lost > 0 {
            output::complain(&format!("{}: {} events are missing", printable(&piece.driver), piece.lost));
        }
        let source = Source { driver: piece.driver.into_owned(), kind: piece.kind.into_owned() };
        let (source, now) = (Arc::new(source), Instant::now());
        let mut lost = piece.lost;
        for event in piece.events {
            let lost = std::mem::take(&mut lost);
            let key = (event.at_ns, self.count);
            self.waiting.insert(key, Waiting { source: source.clone(), event, lost, since: now });
            self.count += 1;
        }
    }

    /// Notes that the kernel had ended the trace of a driver before it was asked to: for a person,
    /// or because this program had not asked for it in time.
    fn had_ended(&mut self, driver: &str) {
        self.gaps += 1;
        output::complain(&format!("{}: events are missing: the kernel had ended its trace", printable(driver)));
    }

    /// Notes that the connection has ended. If the system goes on, it has taken this program for
    /// one that is gone, as it took nothing for too long.
    fn disconnected(&mut self, session: &Session) -> Result<()> {
        if session.is_left_behind() {
            self.gaps += 1;
            output::complain("events are missing: this program has not taken them in time, and is connected no more");
        }
        Ok(())
    }

    /// Passes the events on that have waited for `wait`.
    fn pass_on(&mut self, wait: Duration, places: &mut [Place]) -> Result<()> {
        let mut due = Vec::new();
        while let Some(first) = self.waiting.first_entry().filter(|first| first.get().since.elapsed() >= wait) {
            due.push(first.remove());
        }
        for Place { path, sink, count } in places {
            let mut add = || -> std::io::Result<()> {
                for Waiting { source, event, lost, .. } in &due {
                    if *lost > 0 {
                        sink.lost(source, event.at_ns, *lost)?;
                    }
                    *count += u64::from(sink.add(source, event)?);
                }
                sink.flush()
            };
            add().with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Set by Ctrl-C.
static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Collects traces until the time is over, the system ends, or this is interrupted. Returns whether
/// all events are there.
pub fn run(options: &Options) -> Result<bool> {
    let mut session = Session::find(options.system.as_deref())?;
    let mut collected = Collected::default();
    // A name that is wrong must not cost an earlier file.
    ask(&mut session, options, &mut collected)??;
    let mut places = places(options)?;
    // Without the handler, Ctrl-C ends this all the same, but for the last events.
    let _ = ctrlc::set_handler(|| IS_INTERRUPTED.store(true, Ordering::Relaxed));
    let began = Instant::now();
    if !options.json {
        let until = options.seconds.map_or("Ctrl-C ends".to_string(), |seconds| format!("{seconds} s"));
        output::complain(&format!("tracing {}: {until}", options.names.join(", ")));
    }
    let collecting = collect(&mut session, options, &mut collected, &mut places, began);
    // The events that have come are kept even if the collection failed.
    collected.pass_on(Duration::ZERO, &mut places)?;
    collecting?;
    for Place { path, count, .. } in places.iter().filter(|_| options.out.is_some() || options.pcap.is_some()) {
        output::line(format_args!("{}: {count} events", path.display()));
    }
    if collected.lost > 0 {
        let lost = collected.lost;
        output::complain(&format!("{lost} events are missing: they came faster than the link took them"));
    }
    if collected.cut > 0 {
        let cut = collected.cut;
        output::complain(&format!("{cut} events lack their content: they came faster than the link took them"));
    }
    Ok(collected.lost == 0 && collected.cut == 0 && collected.gaps == 0)
}

/// Collects until the end, and has the kernel end the traces.
fn collect(
    session: &mut Session,
    options: &Options,
    collected: &mut Collected,
    places: &mut [Place],
    began: Instant,
) -> Result<()> {
    let is_over = || {
        let is_late = options.seconds.is_some_and(|seconds| began.elapsed().as_secs() >= seconds);
        is_late || IS_INTERRUPTED.load(Ordering::Relaxed)
    };
    let mut asked = began;
    while !is_over() {
        if asked.elapsed() > Duration::from_secs(TRACE_SECONDS / 3) {
            match ask(session, options, collected) {
                Ok(refused) => refused?,
                Err(_) => return collected.disconnected(session),
            }
            asked = Instant::now();
        }
        match session.hear(LOOK) {
            Ok(heard) => heard.into_iter().for_each(|heard| take(collected, heard)),
            Err(_) => return collected.disconnected(session),
        }
        collected.pass_on(WAIT, places)?;
    }
    for name in collected.drivers.clone() {
        let request = Request::EndTrace { program: session.number(), driver: name.as_str().into() };
        match session.request(request, |heard| take(collected, heard)) {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => collected.had_ended(&name),
            Err(_) => return collected.disconnected(session),
        }
    }
    Ok(())
}

/// Takes a message of the system, if it is a piece of a trace that is sent for this program.
fn take(collected: &mut Collected, heard: Heard) {
    let piece = heard.piece().filter(|piece| !piece.is_saved && collected.drivers.contains(&*piece.driver));
    piece.into_iter().for_each(|piece| collected.add(piece));
}

/// The pieces of traces that a person wants saved (`trace NAME save`).
#[derive(Default)]
pub struct Saved(Vec<Piece<'static>>);

impl Saved {
    /// Keeps the piece in `frame`, if it is to be saved.
    pub fn take(&mut self, frame: &Frame) {
        self.0.extend(Piece::read(&frame.payload).filter(|piece| piece.is_saved));
    }

    /// Writes the trace of the driver called `name` to a file, and says so if that fails. A trace
    /// whose end has not come, because nobody waited for it, is dropped.
    pub fn save(&mut self, name: &str) {
        let pieces = std::mem::take(&mut self.0).into_iter().filter(|piece| piece.driver == name).collect();
        if let Err(error) = write(name, pieces) {
            output::complain(&printable(&format!("the trace of {name} is not saved: {error:#}")));
        }
    }
}

/// Writes a trace for Perfetto to the folder of saved traces.
fn write(name: &str, pieces: Vec<Piece<'static>>) -> Result<()> {
    let folder = saved_folder();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{}.pftrace", name.replace('/', "_")));
    let sink = Box::new(Perfetto::new(Whole::create(&path)?)?);
    let mut collected = Collected::default();
    pieces.into_iter().for_each(|piece| collected.add(piece));
    collected.pass_on(Duration::ZERO, &mut [Place { path, sink, count: 0 }])
}

/// Returns the folder of saved traces.
pub fn saved_folder() -> PathBuf {
    target().join("traces")
}

/// How long to wait for a piece before looking at the time again.
const LOOK: Duration = Duration::from_millis(50);

/// Returns the places that events go to.
fn places(options: &Options) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    if let Some(path) = &options.out {
        let sink = Box::new(Perfetto::new(Whole::create(path)?)?);
        places.push(Place { path: path.clone(), sink, count: 0 });
    }
    if let Some(path) = &options.pcap {
        let sink = Box::new(Pcapng::new(Whole::create(path)?)?);
        places.push(Place { path: path.clone(), sink, count: 0 });
    }
    if places.is_empty() {
        let sink = Box::new(Terminal { json: options.json });
        places.push(Place { path: PathBuf::from("the output"), sink, count: 0 });
    }
    Ok(places)
}

/// Asks for the traces, or for more of them. The inner error is the kernel's refusal; the outer one
/// says that the system has ended.
fn ask(session: &mut Session, options: &Options, collected: &mut Collected) -> Result<Result<()>> {
    let frame_bytes = if options.pcap.is_some() { WHOLE_FRAME } else { FRAME_START };
    for name in &options.names {
        let request = Request::Trace { program: session.number(), driver: name.as_str().into(), frame_bytes };
        let answer = match session.request(request, |heard| take(collected, heard))? {
            Ok(answer) => answer,
            Err(why) => return Ok(Err(anyhow!("{}", printable(&why)))),
        };
        let is_new = collected.drivers.insert(name.clone());
        if !is_new && answer == BEGUN {
            collected.had_ended(name);
        }
    }
    Ok(Ok(()))
}

/// Prints an event.
pub fn show(source: &Source, event: &Traced, json: bool) {
    if json {
        return output::line(format_args!(
            "{}",
            json!({ "driver": source.driver, "at_ns": event.at_ns, "what": event.what })
        ));
    }
    let at_ms = event.at_ns as f64 / 1e6;
    let driver = printable(&source.driver);
    output::line(format_args!("{at_ms:>12.3} ms  {driver:<12} {}", printable(&in_words(source, &event.what))));
}

/// Returns an event in words.
fn in_words(source: &Source, what: &What) -> String {
    let noun = match source.kind.as_str() {
        "nic" => "frame",
        "scsi" => "SCSI command",
        _ => "request",
    };
    let after_colon = |words: &str| if words.is_empty() { String::new() } else { format!(": {words}") };
    match what {
        What::Enter { upcall, words } => format!("> {upcall}({words})"),
        What::Leave { words, took_ns } => format!("< {words}  after {:.1} us", *took_ns as f64 / 1e3),
        What::Woken => "> goes on after its sleep".to_string(),
        What::Call { words, took_ns, .. } => format!("    {words}  in {:.1} us", *took_ns as f64 / 1e3),
        What::Given { number, len_bytes, words, .. } => {
            format!("  gets {noun} {number}, {len_bytes} bytes{}", after_colon(words))
        }
        What::Done { number, words, .. } => format!("  has done {noun} {number}{}", after_colon(words)),
        What::Received { number, len_bytes, words, .. } => {
            format!("  receives {noun} {number}, {len_bytes} bytes{}", after_colon(words))
        }
        What::Access { words, place, .. } => format!("    * {words}  at {place}"),
        What::Ended { kind, words } => format!("! ended: {kind}{}", after_colon(words)),
        What::Replaced => "! replaced".to_string(),
        What::Note { words } => format!("  {words}"),
    }
}
