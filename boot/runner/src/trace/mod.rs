//! `cargo run -- trace NAME`: collects the traces of drivers of a running system, and shows them or
//! writes them to files for other tools.
//!
//! * [`perfetto`]: a file for ui.perfetto.dev; [`pcapng`]: a file for Wireshark
//!
//! Each event is in the files as soon as it has come, so that they are whole whenever this is
//! interrupted.

use crate::output::{self, printable};
use crate::session::{Heard, Session};
use crate::target;
use anyhow::{Context, Result, anyhow, bail};
use pcapng::Pcapng;
use perfetto::Perfetto;
use ringfence_link::frame::Frame;
use ringfence_link::request::{TRACE_SECONDS, What as Request};
use ringfence_link::trace::{Piece, Traced, What};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    /// What it offers: `nic`, `scsi`, `block` or `other`.
    pub kind: String,
}

/// A place for events.
trait Sink {
    /// Adds an event.
    fn add(&mut self, source: &Source, event: &Traced<'static>) -> std::io::Result<()>;

    /// Writes what was added.
    fn flush(&mut self) -> std::io::Result<()>;
}

/// The terminal.
struct Terminal {
    json: bool,
}

impl Sink for Terminal {
    fn add(&mut self, source: &Source, event: &Traced<'static>) -> std::io::Result<()> {
        show(source, event, self.json);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How long an event waits for earlier ones: the kernel sends the drivers' events one driver after
/// the other.
const WAIT: Duration = Duration::from_millis(300);

/// The events that have come, in the order of their times.
#[derive(Default)]
struct Collected {
    /// By time, and by the order in which they came.
    waiting: BTreeMap<(u64, u64), (Arc<Source>, Traced<'static>, Instant)>,
    count: u64,
    lost: u64,
}

impl Collected {
    fn add(&mut self, piece: Piece<'static>) {
        self.lost += piece.lost;
        if piece.lost > 0 {
            output::complain(&format!("{}: {} events are missing", printable(&piece.driver), piece.lost));
        }
        let source = Source { driver: piece.driver.into_owned(), kind: piece.kind.into_owned() };
        let (source, now) = (Arc::new(source), Instant::now());
        for event in piece.events {
            self.waiting.insert((event.at_ns, self.count), (source.clone(), event, now));
            self.count += 1;
        }
    }

    /// Passes the events on that have waited for `wait`.
    fn pass_on(&mut self, wait: Duration, sinks: &mut [(PathBuf, Box<dyn Sink>)]) -> Result<()> {
        let mut due = Vec::new();
        while let Some(first) = self.waiting.first_entry().filter(|first| first.get().2.elapsed() >= wait) {
            due.push(first.remove());
        }
        for (path, sink) in sinks {
            let added = due.iter().try_for_each(|(source, event, _)| sink.add(source, event));
            added.and_then(|()| sink.flush()).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Collects traces until the time is over, the system ends, or this is interrupted.
pub fn run(options: &Options) -> Result<()> {
    let mut session = Session::find(options.system.as_deref())?;
    let mut sinks = sinks(options)?;
    let mut collected = Collected::default();
    ask(&mut session, options, &mut collected)?;
    let mut asked = Instant::now();
    let end = options.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    if !options.json {
        let until = options.seconds.map_or("Ctrl-C ends".to_string(), |seconds| format!("{seconds} s"));
        output::complain(&format!("tracing {}: {until}", options.names.join(", ")));
    }
    let mut has_ended = false;
    while !has_ended && end.is_none_or(|end| Instant::now() < end) {
        if asked.elapsed() > Duration::from_secs(TRACE_SECONDS / 3) {
            ask(&mut session, options, &mut collected)?;
            asked = Instant::now();
        }
        match session.hear(LOOK) {
            Ok(heard) => heard.and_then(Heard::piece).into_iter().for_each(|piece| collected.add(piece)),
            // The system has ended.
            Err(_) => has_ended = true,
        }
        collected.pass_on(WAIT, &mut sinks)?;
    }
    for name in options.names.iter().filter(|_| !has_ended) {
        let request = Request::EndTrace { driver: name.as_str().into() };
        // If the driver is traced no more, what has come is kept all the same.
        let _ = session.request(request, |heard| heard.piece().into_iter().for_each(|piece| collected.add(piece)))?;
    }
    collected.pass_on(Duration::ZERO, &mut sinks)?;
    for path in options.out.iter().chain(&options.pcap) {
        output::line(format_args!("{}: {} events", path.display(), collected.count));
    }
    if collected.lost > 0 {
        bail!("{} events are missing: they came faster than the link took them", collected.lost);
    }
    Ok(())
}

/// The pieces of traces that a person wants saved (`trace NAME save`).
#[derive(Default)]
pub struct Saved(Vec<Piece<'static>>);

impl Saved {
    /// Keeps the piece in `frame`, if it is to be saved.
    pub fn take(&mut self, frame: &Frame) {
        self.0.extend(Piece::read(&frame.payload).filter(|piece| piece.is_saved));
    }

    /// Writes the trace of the driver called `name` to a file, and says so if that fails.
    pub fn save(&mut self, name: &str) {
        let (mine, others) = self.0.drain(..).partition(|piece| piece.driver == name);
        self.0 = others;
        if let Err(error) = write(name, mine) {
            output::complain(&format!("the trace of {} is not saved: {error:#}", printable(name)));
        }
    }
}

/// Writes a trace for Perfetto to the folder of saved traces.
fn write(name: &str, pieces: Vec<Piece<'static>>) -> Result<()> {
    let folder = saved_folder();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{}.pftrace", name.replace('/', "_")));
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut collected = Collected::default();
    pieces.into_iter().for_each(|piece| collected.add(piece));
    collected.pass_on(Duration::ZERO, &mut [(path, Box::new(Perfetto::new(BufWriter::new(file))?))])
}

/// Returns the folder of saved traces.
pub fn saved_folder() -> PathBuf {
    target().join("traces")
}

/// How long to wait for a piece before looking at the time again.
const LOOK: Duration = Duration::from_millis(50);

/// Returns the places that events go to.
fn sinks(options: &Options) -> Result<Vec<(PathBuf, Box<dyn Sink>)>> {
    let create = |path: &Path| -> Result<BufWriter<File>> {
        Ok(BufWriter::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?))
    };
    let mut sinks: Vec<(PathBuf, Box<dyn Sink>)> = Vec::new();
    if let Some(path) = &options.out {
        sinks.push((path.clone(), Box::new(Perfetto::new(create(path)?)?)));
    }
    if let Some(path) = &options.pcap {
        sinks.push((path.clone(), Box::new(Pcapng::new(create(path)?)?)));
    }
    if sinks.is_empty() {
        sinks.push((PathBuf::from("the output"), Box::new(Terminal { json: options.json })));
    }
    Ok(sinks)
}

/// Asks for the traces, or for more of them.
fn ask(session: &mut Session, options: &Options, collected: &mut Collected) -> Result<()> {
    let frame_bytes = if options.pcap.is_some() { WHOLE_FRAME } else { FRAME_START };
    for name in &options.names {
        let request = Request::Trace { driver: name.as_str().into(), frame_bytes };
        let answer = session.request(request, |heard| heard.piece().into_iter().for_each(|piece| collected.add(piece)));
        answer?.map_err(|why| anyhow!("{}", printable(&why)))?;
    }
    Ok(())
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
        What::Ended { kind } => format!("! ended: {kind}"),
        What::Replaced => "! replaced".to_string(),
        What::Note { words } => format!("  {words}"),
    }
}
