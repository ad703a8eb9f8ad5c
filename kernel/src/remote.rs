//! Carries out the requests that programs send over the link: `cargo run -- push` sends a module's
//! file in pieces, and has it loaded or put in the place of its running drivers; `cargo run --
//! trace` asks for traces ([`crate::streams`]); `cargo run -- gdb` speaks gdb's protocol
//! ([`crate::debugger`]).
//!
//! A request that comes again, because its answer was lost, has no second effect. **A program that
//! reaches the second serial port has the powers of a person at the console.**

use crate::debugger;
use crate::shell::modules::load_or_reload;
use crate::streams::Streams;
use alloc::borrow::Cow;
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{pending, poll_fn};
use core::task::Poll;
use embassy_futures::select::{Either, select};
use embassy_futures::yield_now;
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::Timer;
use host::file::{Content, File};
use host::pushed;
use hw::{link, memory};
use ringfence_abi::manifest::NAME_BYTES;
use ringfence_link::REQUESTS;
use ringfence_link::event::{Event, Text};
use ringfence_link::frame::Decoder;
use ringfence_link::request::{Request, What};
use spin::Mutex;

/// The most files that come at the same time. Beyond that, the oldest is dropped.
const MAX_INCOMING: usize = 4;
/// The most memory of the kernel's heap that reading a request takes: a frame may hold a list of
/// thousands of empty texts.
const REQUEST_BYTES: usize = 512 << 10;
/// The answers that are kept for requests that come again.
const KEPT_ANSWERS: usize = 16;

/// How often the traces that are sent are looked at, in milliseconds.
const LOOK_MS: u64 = 10;

/// A file that comes in pieces.
struct Incoming {
    number: u64,
    name: String,
    build: u32,
    len_bytes: usize,
    bytes: Vec<u8>,
}

/// The answer to a request, or the reason why it failed.
type Result = core::result::Result<String, String>;

/// The task that carries out requests.
pub async fn run() {
    let mut remote = Remote::default();
    let (mut decoder, mut room) = (Decoder::default(), [0; 512]);
    link::listen();
    loop {
        // While traces are sent, look for their events now and then.
        let has_more = remote.streams.send();
        let looks_again = async {
            match (remote.streams.is_empty(), has_more) {
                (true, _) => pending().await,
                (_, true) => yield_now().await,
                (_, false) => Timer::after_millis(LOOK_MS).await,
            }
        };
        let count = match select(link::read(&mut room), looks_again).await {
            Either::First(count) => count,
            Either::Second(()) => {
                remote.streams.expire();
                0
            }
        };
        for byte in room.iter().take(count) {
            // A damaged frame is not answered, so that it is sent again. So is a frame that comes
            // when there is no memory to read it.
            if let Some(Ok(frame)) = decoder.push(*byte)
                && frame.channel == REQUESTS
                && memory::has_room(REQUEST_BYTES)
                && let Some(request) = Request::read(&frame.payload)
            {
                remote.answer(request).await;
            }
        }
    }
}

/// A module that is to be loaded, and the request that asks for it.
struct Load {
    id: u64,
    file: File,
    parameters: Vec<String>,
    stops: bool,
}

/// The most modules that wait to be loaded.
const MOST_LOADS: usize = 4;

/// The modules that are to be loaded; the first one is being loaded. A task of its own does that: a
/// driver may stand in its `init` for a debugger, whose requests come meanwhile.
static LOADS: Mutex<VecDeque<Load>> = Mutex::new(VecDeque::new());
static ON_LOAD: AtomicWaker = AtomicWaker::new();

/// The last answers, by their requests.
static ANSWERED: Mutex<VecDeque<(u64, Result)>> = Mutex::new(VecDeque::new());

fn answered(id: u64) -> Option<Result> {
    ANSWERED.lock().iter().find(|(other, _)| *other == id).map(|(_, result)| result.clone())
}

fn keep_answer(id: u64, result: &Result) {
    let mut answered = ANSWERED.lock();
    answered.truncate(KEPT_ANSWERS - 1);
    answered.push_front((id, result.clone()));
}

fn tell(id: u64, result: &Result) {
    let result = result.as_ref().map(|text| text.as_str().into()).map_err(|text| text.as_str().into());
    link::tell(&Event::Answered { id, result });
}

/// The task that loads the modules that were pushed, one after the other.
pub async fn load() {
    loop {
        let (id, file, parameters, stops) = poll_fn(|context| {
            ON_LOAD.register(context.waker());
            let loads = LOADS.lock();
            let first = loads.front().map(|load| (load.id, load.file.clone(), load.parameters.clone(), load.stops));
            first.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        let result = load_or_reload(file, &parameters, stops).await.inspect(|done| log::info!("push: {done}"));
        keep_answer(id, &result);
        LOADS.lock().pop_front();
        tell(id, &result);
    }
}

/// The state between requests.
#[derive(Default)]
struct Remote {
    incoming: VecDeque<Incoming>,
    streams: Streams,
    /// The answer to the last bytes of a debugger.
    debugged: Option<(u64, Result)>,
}

impl Remote {
    async fn answer(&mut self, Request { id, what }: Request<'static>) {
        let debugged = self.debugged.as_ref().filter(|(other, _)| *other == id).map(|(_, result)| result.clone());
        if let Some(result) = answered(id).or(debugged) {
            return tell(id, &result);
        }
        // The task that loads modules answers.
        if LOADS.lock().iter().any(|load| load.id == id) {
            return;
        }
        let is_debug = matches!(what, What::Debug { .. });
        let Some(result) = self.carry_out(id, what).await else { return };
        // They come all the time, one by one, and would push out all other answers.
        match is_debug {
            true => self.debugged = Some((id, result.clone())),
            false => keep_answer(id, &result),
        }
        tell(id, &result);
    }

    /// Carries out a request; `None` if another task does, and answers.
    async fn carry_out(&mut self, id: u64, what: What<'static>) -> Option<Result> {
        Some(match what {
            What::File { file, name, len_bytes } => self.begin(file, &name, len_bytes as usize),
            What::Piece { file, offset, bytes } => self.add(file, offset as usize, &bytes),
            What::Trace { program, driver, frame_bytes } => self.streams.begin(program, &driver, frame_bytes).await,
            What::EndTrace { program, driver } => self.streams.end(program, &driver).await,
            What::Debug { session, driver, bytes } => {
                debugger::receive(session, driver.as_deref(), &bytes).map(|()| String::new())
            }
            What::EndDebug { session } => {
                debugger::end(session);
                Ok(String::new())
            }
            What::Load { file, parameters, stops } => return self.load(id, file, parameters, stops).err().map(Err),
        })
    }

    /// Has a module loaded whose file is complete.
    fn load(
        &mut self,
        id: u64,
        file: u64,
        parameters: Vec<Text<'static>>,
        stops: bool,
    ) -> core::result::Result<(), String> {
        if LOADS.lock().len() >= MOST_LOADS {
            return Err(alloc::format!("{MOST_LOADS} modules wait to be loaded already"));
        }
        let place = self.place(file)?;
        let incoming = self.incoming.remove(place).ok_or("the file is gone")?;
        if incoming.bytes.len() < incoming.len_bytes {
            return Err(alloc::format!("{} of {} bytes came", incoming.bytes.len(), incoming.len_bytes));
        }
        let Incoming { name, build, bytes, .. } = incoming;
        // Other files may have come meanwhile.
        pushed::check(&name, bytes.len()).map_err(|refused| refused.to_string())?;
        let file = File { name, build, bytes: Content::Made(Arc::new(bytes)) };
        let parameters: Vec<String> = parameters.into_iter().map(Cow::into_owned).collect();
        LOADS.lock().push_back(Load { id, file, parameters, stops });
        ON_LOAD.wake();
        Ok(())
    }

    /// Returns the index of a file among the incoming files.
    fn place(&self, number: u64) -> core::result::Result<usize, String> {
        let place = self.incoming.iter().position(|incoming| incoming.number == number);
        place.ok_or_else(|| "the file is not known: others have come since".to_string())
    }

    fn begin(&mut self, number: u64, name: &str, len_bytes: usize) -> Result {
        if name.is_empty() || name.len() >= NAME_BYTES {
            return Err(alloc::format!("a module's name has 1 to {} bytes", NAME_BYTES - 1));
        }
        pushed::check(name, len_bytes).map_err(|refused| refused.to_string())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len_bytes).map_err(|_| pushed::Refused::NoMemory.to_string())?;
        self.incoming.retain(|incoming| incoming.number != number);
        if self.incoming.len() >= MAX_INCOMING {
            self.incoming.pop_front();
        }
        let build = pushed::next_build();
        self.incoming.push_back(Incoming { number, name: name.to_string(), build, len_bytes, bytes });
        Ok(build.to_string())
    }

    /// Adds a piece. A piece that came before is left out.
    fn add(&mut self, number: u64, offset: usize, bytes: &[u8]) -> Result {
        let place = self.place(number)?;
        let incoming = self.incoming.get_mut(place).ok_or("the file is gone")?;
        let has = incoming.bytes.len();
        if offset > has {
            return Err(alloc::format!("a piece is missing between bytes {has} and {offset}"));
        }
        let fresh = bytes.get(has - offset..).unwrap_or_default();
        if fresh.len() > incoming.len_bytes - has {
            return Err(alloc::format!("more than {} bytes came", incoming.len_bytes));
        }
        incoming.bytes.extend_from_slice(fresh);
        Ok(String::new())
    }
}
