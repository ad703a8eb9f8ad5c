//! A connection to a running system: any program on this host can send its kernel requests, and
//! gets all events.
//!
//! A runner that has booted a system offers a socket for that in the folder of its run
//! ([`crate::machine`]). The name of the folder names the system.

use crate::machine::connect;
use crate::target;
use anyhow::{Context, Result, anyhow, bail};
use ringfence_link::event::Event;
use ringfence_link::frame::{Decoder, Encoder, Frame};
use ringfence_link::request::{MAX_PIECE, Request, What};
use ringfence_link::trace::Piece;
use ringfence_link::{DEBUGGER, EVENTS, REQUESTS, TRACES};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// After this time without an answer, a request is sent again: it may have been lost.
const AGAIN: Duration = Duration::from_secs(2);
/// After this time without an answer, nobody waits any more.
const LIMIT: Duration = Duration::from_secs(60);

/// The same while a person decides when a driver goes on.
const FOR_A_PERSON: Duration = Duration::from_secs(24 * 3600);

/// The longest time from the end of a system's connections to that of its socket.
const ENDING: Duration = Duration::from_secs(2);

/// A connection to a running system.
pub struct Session {
    /// The folder of the system's run.
    folder: PathBuf,
    /// A number for this program, chosen at random.
    number: u64,
    stream: UnixStream,
    encoder: Box<Encoder>,
    heard: mpsc::Receiver<Heard>,
}

/// A message of a running system.
pub enum Heard {
    /// An event.
    Event(Event<'static>),
    /// A piece of a trace.
    Piece(Piece<'static>),
    /// Bytes for a debugger, with the number of its session.
    Debugger(u64, Vec<u8>),
}

impl Heard {
    /// Returns the message in a frame.
    fn of(frame: &Frame) -> Option<Heard> {
        match frame.channel {
            EVENTS => Event::read(&frame.payload).map(Heard::Event),
            TRACES => Piece::read(&frame.payload).map(Heard::Piece),
            DEBUGGER => {
                let (number, bytes) = frame.payload.split_first_chunk()?;
                Some(Heard::Debugger(u64::from_le_bytes(*number), bytes.to_vec()))
            }
            _ => None,
        }
    }

    /// Returns the event, if it is one.
    pub fn event(self) -> Option<Event<'static>> {
        if let Heard::Event(event) = self { Some(event) } else { None }
    }

    /// Returns the piece of a trace, if it is one.
    pub fn piece(self) -> Option<Piece<'static>> {
        if let Heard::Piece(piece) = self { Some(piece) } else { None }
    }
}

/// Returns the systems that run, by name, with their sockets.
fn running() -> Vec<(String, PathBuf)> {
    let runs = std::fs::read_dir(target().join("runs")).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = runs
        .map(|run| (run.file_name().to_string_lossy().into_owned(), run.path().join(crate::machine::SESSION)))
        // The socket of a runner that was killed is still there, and nobody listens.
        .filter(|(_, path)| connect(path).is_ok())
        .collect();
    found.sort();
    found
}

impl Session {
    /// Connects to the system called `name`, or to the only system that runs.
    pub fn find(name: Option<&str>) -> Result<Session> {
        let found = running();
        let names = || found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let (_, path) = match (name, found.as_slice()) {
            (_, []) => bail!("no system runs: start one with 'cargo run' in another terminal"),
            (Some(name), _) => found
                .iter()
                .find(|(other, _)| other == name)
                .ok_or_else(|| anyhow!("no system '{name}' runs, but {}", names()))?,
            (None, [only]) => only,
            (None, _) => bail!("several systems run: name one with --system: {}", names()),
        };
        Session::connect(path)
    }

    /// Connects to the system with this socket.
    pub fn connect(path: &Path) -> Result<Session> {
        let stream = connect(path).with_context(|| format!("cannot connect to {}", path.display()))?;
        let mut from = stream.try_clone()?;
        let (sender, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let (mut decoder, mut bytes) = (Decoder::default(), [0; 4096]);
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                for frame in bytes[..count].iter().filter_map(|byte| decoder.push(*byte)).flatten() {
                    if Heard::of(&frame).is_some_and(|heard| sender.send(heard).is_err()) {
                        return;
                    }
                }
            }
        });
        let folder = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        Ok(Session { folder, number: fastrand::u64(..), stream, encoder: Box::default(), heard })
    }

    /// Returns the folder of the system's run.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns whether the system still runs after the connection has ended. A system that ends
    /// takes connections for a moment longer.
    pub fn is_left_behind(&self) -> bool {
        let end = Instant::now() + ENDING;
        while connect(&self.folder.join(crate::machine::SESSION)).is_ok() {
            if Instant::now() > end {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Returns the number by which the kernel knows this program.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the system's next message; `None` if none comes within `limit`.
    ///
    /// # Errors
    /// When the system has ended.
    pub fn hear(&self, limit: Duration) -> Result<Option<Heard>> {
        match self.heard.recv_timeout(limit) {
            Ok(heard) => Ok(Some(heard)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the system has ended"),
        }
    }

    /// Sends a request, and waits for the answer. `seen` is called with the messages that come
    /// before it. Returns the kernel's result, or the reason for the failure.
    pub fn request(&mut self, what: What, seen: impl FnMut(Heard)) -> Result<Result<String, String>> {
        self.request_within(LIMIT, what, seen)
    }

    fn request_within(
        &mut self,
        limit: Duration,
        what: What,
        mut seen: impl FnMut(Heard),
    ) -> Result<Result<String, String>> {
        let request = Request { id: fastrand::u64(..), what };
        let end = Instant::now() + limit;
        while Instant::now() < end {
            let frame = self.encoder.frame(REQUESTS, |room| request.write(room)).context("the request is too long")?;
            self.stream.write_all(frame).context("the system has ended")?;
            let again = Instant::now() + AGAIN;
            while let Some(heard) = self.hear(again.saturating_duration_since(Instant::now()))? {
                match heard {
                    Heard::Event(Event::Answered { id, result }) if id == request.id => {
                        return Ok(result.map(|text| text.into_owned()).map_err(|text| text.into_owned()));
                    }
                    heard => seen(heard),
                }
            }
        }
        bail!("the kernel has not answered for {} s", limit.as_secs())
    }

    /// Sends a module's file. The runner that has booted the system finds source lines for the
    /// module in `debug`. `parameters` are for a module that is loaded. If `stops`, the driver
    /// stands for the debugger at its first instruction. `seen` is called with the messages that
    /// come meanwhile. Returns the kernel's result, or the reason for the failure.
    pub fn push(
        &mut self,
        name: &str,
        bytes: &[u8],
        debug: Option<&Path>,
        parameters: &[String],
        stops: bool,
        mut seen: impl FnMut(Heard),
    ) -> Result<Result<String, String>> {
        let file = fastrand::u64(..);
        let len_bytes = u32::try_from(bytes.len()).context("the file is too long")?;
        let begin = What::File { file, name: name.into(), len_bytes };
        let build = match self.request(begin, &mut seen)? {
            Ok(build) => build,
            Err(why) => return Ok(Err(why)),
        };
        if let Some(debug) = debug {
            let kept = self.folder.join(format!("{name}#{build}"));
            std::fs::copy(debug, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
        }
        let pieces = (0..).step_by(MAX_PIECE).zip(bytes.chunks(MAX_PIECE));
        let pieces = pieces.map(|(offset, bytes)| What::Piece { file, offset, bytes: bytes.into() });
        for what in pieces {
            if let Err(why) = self.request(what, &mut seen)? {
                return Ok(Err(why));
            }
        }
        let parameters = parameters.iter().map(|parameter| parameter.as_str().into()).collect();
        // A person lets the driver go on that stands.
        let limit = if stops { FOR_A_PERSON } else { LIMIT };
        self.request_within(limit, What::Load { file, parameters, stops }, seen)
    }
}
