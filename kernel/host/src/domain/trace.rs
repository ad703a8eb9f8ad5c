//! Traces: the events at a driver's boundary, and how long upcalls, services, frames and requests
//! take. The shell's `trace` and `stats` show them, and the runner collects them over the link.
//!
//! **A trace keeps a fixed number of events, however many the driver causes**: the oldest are
//! dropped, and counted. Nothing is allocated while the trace runs. A driver that is not traced
//! pays one check of [`Domain::trace`] for each crossing.
//!
//! A trace belongs to a name: a driver that takes the place of another one is traced as well, from
//! its `init` on.

use super::calls::Call;
use super::cause::{Cause, UpcallError};
use super::report::place_in;
use super::{Domain, accesses, offer, registry};
use crate::file::File;
use accesses::Registers;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use hw::arch::{time, watch};
use hw::space::lifted;
use hw::{console, memory};
use log::Level;
use ringfence_abi::layout::MAILBOX;
use ringfence_abi::manifest;
use ringfence_abi::register::RegisterName;
use ringfence_abi::service::{Kind, SERVICE_COUNT, SERVICES};
use ringfence_abi::upcall::{self, COMMAND, Events};
use ringfence_core::access::Access;
use ringfence_core::extent::Extent;
use ringfence_core::histogram::Histogram;
use ringfence_core::module::Module;
use ringfence_core::passed::{Notes, Request, Side};
use ringfence_core::trace::{Bytes, Record, Span};
use spin::{Mutex, MutexGuard};

/// The most traces that are kept at a time.
pub const MOST: usize = 8;
/// The most bytes of a text that are kept.
const TEXT_BYTES: usize = 96;
/// Number of places of the driver's frames or requests, for the times from given to given back.
const PLACES: usize = 128;

/// An event at a driver's boundary.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// The kernel entered the driver: the operation, its arguments, and the command's text.
    Enter(u64, [u64; 3], Span),
    /// The driver returned: the operation, its result, and the TSC ticks that it took.
    Leave(u64, Result<u64, UpcallError>, u64),
    /// The driver slept in a service, and the kernel has entered it again.
    Woken,
    /// The driver called a service: the call, its text if it has one, and the TSC ticks that it
    /// took.
    Call(Call, Span, u64),
    /// The driver was given a frame to send, or a request.
    Given {
        /// How many of its kind came before it.
        number: u64,
        /// Bytes of the frame, or of the request's data.
        len_bytes: u32,
        /// Its content.
        content: KeptContent,
    },
    /// The driver has given back a frame or a request.
    Done {
        /// How many of its kind came before it.
        number: u64,
        /// The driver's result for it.
        result: u32,
        /// What else the driver says about a failure.
        detail: Span,
    },
    /// The driver has received a frame.
    Received {
        /// How many it had received before.
        number: u64,
        /// The frame's length in bytes.
        len_bytes: u32,
        /// Its first bytes.
        frame: Span,
    },
    /// The driver was ended: the kind of the fault, and its cause.
    Ended(&'static str, Cause),
    /// The watched memory was read or written: the address after the instruction, and the value
    /// there now.
    Access(u64, Option<u64>),
    /// The driver is to be polled for these events, but rests ([`crate::poll`]).
    Rests(Events),
    /// The driver is to be polled for these events, but sleeps ([`super::sleep`]).
    Sleeps(Events),
    /// The driver has accessed a register of its device.
    Register {
        /// Where the instruction is in the driver's image.
        at: u64,
        /// The region that the register is in.
        bar: u8,
        /// Its offset there.
        offset: u32,
        /// The access.
        access: Access,
    },
    /// Another instance was put in the driver's place.
    Replaced,
}

/// The content of a frame or request that was passed, as a trace keeps it.
#[derive(Debug, Clone, Copy)]
pub enum KeptContent {
    /// The first bytes of a frame.
    Frame(Span),
    /// A request.
    Request(Request),
}

/// An event, with its time in TSC ticks since the trace began.
pub type Event = ringfence_core::trace::Event<What>;

/// An activity whose time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timed {
    /// An upcall with this operation.
    Upcall(u64),
    /// A call of this service.
    Service(usize),
    /// A frame or a request, from when the driver gets it until it gives it back.
    Passed,
}

/// The operations of upcalls.
const OPERATIONS: usize = upcall::RESTORE as usize + 1;

impl Timed {
    /// Returns all activities whose time is measured.
    fn all() -> impl Iterator<Item = Timed> {
        let upcalls = (0..OPERATIONS as u64).map(Timed::Upcall);
        upcalls.chain((0..SERVICE_COUNT).map(Timed::Service)).chain([Timed::Passed])
    }

    fn index(self) -> usize {
        match self {
            Timed::Upcall(operation) => operation as usize,
            Timed::Service(service) => OPERATIONS + service,
            Timed::Passed => OPERATIONS + SERVICE_COUNT,
        }
    }
}

/// The memory that times take, or somewhat less.
const TIMES_BYTES: usize = 64 << 10;

/// The settings of a trace.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// The number of events.
    pub events: usize,
    /// The bytes of texts, frames and requests in all.
    pub content_bytes: usize,
    /// The most bytes of one frame.
    pub frame_bytes: usize,
    /// Whether times are measured.
    pub times: bool,
    /// Memory to watch: an address in the driver's slot, and a length of 1, 2, 4 or 8 bytes.
    pub watched: Option<Extent>,
    /// Registers of the device whose accesses are noted.
    pub registers: Option<Registers>,
}

impl Default for Wish {
    fn default() -> Wish {
        Wish { events: 1024, content_bytes: 32 << 10, frame_bytes: 64, times: false, watched: None, registers: None }
    }
}

/// The reason why a trace is not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBegun {
    /// The driver is traced.
    Already,
    /// Its times are measured.
    Measured,
    /// The registers of its device are watched.
    Watched,
    /// Another trace watches memory, and the CPU watches one word for traces.
    Watching,
    /// There are as many as there can be.
    TooMany,
    /// There is no memory for it.
    NoMemory,
}

impl fmt::Display for NotBegun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotBegun::Already => write!(f, "a trace of it is under way already"),
            NotBegun::Measured => write!(f, "its times are measured already"),
            NotBegun::Watched => write!(f, "its registers are watched already"),
            NotBegun::Watching => write!(f, "another trace watches memory already"),
            NotBegun::TooMany => write!(f, "{MOST} drivers are traced already"),
            NotBegun::NoMemory => write!(f, "there is no memory for a trace"),
        }
    }
}

/// A trace.
pub struct Trace {
    /// The driver's name. A successor has the same name.
    pub name: String,
    watched: Option<Extent>,
    /// The most bytes of one frame that it keeps.
    frame_bytes: AtomicUsize,
    /// The registers that are watched.
    registers: Mutex<Option<Registers>>,
    is_on: AtomicBool,
    kept: Mutex<Kept>,
}

/// The data that a trace has kept.
pub struct Kept {
    /// The events.
    pub record: Record<What>,
    /// The texts and contents of the events.
    pub bytes: Bytes,
    /// How long things take, if that is measured.
    times: Option<Times>,
    /// The kind of the driver.
    kind: Option<manifest::Kind>,
    /// The module's file, and the names of its registers.
    file: Option<File>,
    registers: Vec<RegisterName>,
    /// The TSC reading at the beginning of the call that is under way, or of the trace.
    call_began: u64,
    /// The TSC ticks of the upcall that is under way, before the driver last slept in it.
    upcall_ticks: u64,
}

/// How long things take.
struct Times {
    /// For each [`Timed`], in TSC ticks.
    of: Vec<Histogram>,
    /// The TSC reading when the driver was given the frame or request at this place; 0 if that was
    /// not seen.
    given: [u64; PLACES],
}

impl Times {
    fn new() -> Option<Times> {
        let mut of = Vec::new();
        of.try_reserve_exact(Timed::all().count()).ok()?;
        for _ in Timed::all() {
            of.push(Histogram::new()?);
        }
        Some(Times { of, given: [0; PLACES] })
    }
}

impl Kept {
    fn new(wish: &Wish) -> Option<Kept> {
        let times = if wish.times { Some(Times::new()?) } else { None };
        let (record, bytes) = (Record::new(wish.events, time::tsc(), What::Replaced)?, Bytes::new(wish.content_bytes)?);
        Some(Kept {
            record,
            bytes,
            times,
            kind: None,
            file: None,
            registers: Vec::new(),
            call_began: time::tsc(),
            upcall_ticks: 0,
        })
    }

    /// Begins to measure times, which are not measured yet.
    pub fn measure(&mut self) -> Result<(), NotBegun> {
        if self.times.is_some() {
            return Err(NotBegun::Measured);
        }
        self.times = Some(()).filter(|()| memory::has_room(TIMES_BYTES)).and_then(|()| Times::new());
        self.times.as_ref().map(|_| ()).ok_or(NotBegun::NoMemory)
    }

    /// Measures no times any more, and drops the times that were measured.
    pub fn end_measure(&mut self) {
        self.times = None;
    }

    /// Returns the times of each activity that was measured.
    pub fn times(&self) -> impl Iterator<Item = (Timed, &Histogram)> {
        let times = self.times.iter().flat_map(|times| Timed::all().zip(&times.of));
        times.filter(|(_, times)| times.count() > 0)
    }

    /// Returns the name of the driver's kind: `nic`, `scsi`, `block`, `fs` or `other`.
    pub fn kind_name(&self) -> String {
        self.kind.map(offer::kind_name).unwrap_or_default()
    }

    /// Returns the class of the device that the driver offers, if it offers one.
    pub fn class(&self) -> Option<&'static dyn offer::Class> {
        offer::class(self.kind?)
    }

    /// Returns a place in the driver's image, in words.
    pub fn place(&self, at: u64) -> String {
        self.file.as_ref().map(|file| place_in(file, at)).unwrap_or_default()
    }

    /// Returns the name of a register, or the region that it is in and its offset there.
    pub fn register(&self, bar: u8, offset: u32) -> String {
        let found = self.registers.iter().find_map(|register| {
            let number = offset.checked_sub(register.offset)? / u32::from(register.width_bytes).max(1);
            let is_it = register.bar == bar && number < register.count.into();
            let into = (offset - register.offset) % u32::from(register.width_bytes).max(1);
            let name = register.name().filter(|_| is_it)?;
            let number = if register.count > 1 { format!(".{number}") } else { String::new() };
            let into = if into > 0 { format!("+{into}") } else { String::new() };
            Some(format!("{name}{number}{into}"))
        });
        found.unwrap_or_else(|| format!("bar{bar}+{offset:#x}"))
    }

    #[inline]
    fn took(&mut self, what: Timed, ticks: u64) {
        if let Some(times) = self.times.as_mut().and_then(|times| times.of.get_mut(what.index())) {
            times.add(ticks);
        }
    }

    /// Notes when the frame or request at `place` was given to the driver, if times are measured.
    #[inline(always)]
    fn begin_time(&mut self, now: u64, place: usize) {
        if let Some(times) = &mut self.times
            && let Some(given) = times.given.get_mut(place)
        {
            *given = now;
        }
    }

    /// Notes how long the frame or request at `place` took, if times are measured.
    #[inline(always)]
    fn end_time(&mut self, now: u64, place: usize) {
        if let Some(times) = &mut self.times
            && let Some(given) = times.given.get_mut(place).filter(|given| **given > 0)
        {
            let ticks = now.saturating_sub(core::mem::take(given));
            self.took(Timed::Passed, ticks);
        }
    }
}

/// Notes at `now` what was passed. Requests come by the hundred thousand: an account knows this
/// type, so that its path calls no other function for them.
pub struct Noting<'a> {
    kept: &'a mut Kept,
    now: u64,
}

impl Notes for Noting<'_> {
    fn frame(&mut self, number: u64, place: usize, len_bytes: u32, first: &[u8]) {
        self.kept.begin_time(self.now, place);
        let content = KeptContent::Frame(self.kept.bytes.keep(first));
        self.kept.record.add(self.now, What::Given { number, len_bytes, content });
    }

    #[inline(always)]
    fn request(&mut self, number: u64, place: usize, len_bytes: u32, request: &Request) {
        self.kept.begin_time(self.now, place);
        let content = KeptContent::Request(*request);
        self.kept.record.add(self.now, What::Given { number, len_bytes, content });
    }

    #[inline(always)]
    fn done(&mut self, number: u64, place: usize, result: u32, detail: &[u8]) {
        let detail = if detail.is_empty() { Span::default() } else { self.kept.bytes.keep(detail) };
        self.kept.record.add(self.now, What::Done { number, result, detail });
        self.kept.end_time(self.now, place);
    }

    fn received(&mut self, number: u64, len_bytes: u32, first: &[u8]) {
        let frame = self.kept.bytes.keep(first);
        self.kept.record.add(self.now, What::Received { number, len_bytes, frame });
    }
}

impl Trace {
    /// Returns whether it is under way.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Returns the data that it has kept. The driver must not run as long as the caller has them.
    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock()
    }

    /// Has it keep so many bytes of a frame from now on.
    pub fn keep_frames(&self, most_bytes: usize) {
        self.frame_bytes.store(most_bytes, Ordering::Relaxed);
    }

    /// Returns the registers that are watched.
    pub fn registers(&self) -> Option<Registers> {
        *self.registers.lock()
    }

    fn turn_off(&self) {
        self.is_on.store(false, Ordering::Relaxed);
        if self.watched.is_some() {
            watch::end_access();
        }
    }
}

/// All traces, the oldest first.
static TRACES: Mutex<Vec<Arc<Trace>>> = Mutex::new(Vec::new());

/// Begins to trace the driver called `name`, which may not be loaded yet. An earlier trace of it is
/// dropped first. If there are too many traces, the oldest trace that has ended is dropped as well.
/// This makes room.
pub fn begin(name: &str, wish: &Wish) -> Result<Arc<Trace>, NotBegun> {
    let mut traces = TRACES.lock();
    let is_on = |trace: &Arc<Trace>| trace.is_on();
    if traces.iter().any(|trace| trace.name == name && trace.is_on()) {
        return Err(NotBegun::Already);
    }
    if wish.watched.is_some() && traces.iter().any(|trace| trace.watched.is_some() && trace.is_on()) {
        return Err(NotBegun::Watching);
    }
    traces.retain(|trace| trace.name != name);
    if traces.len() >= MOST {
        let ended = traces.iter().position(|trace| !is_on(trace)).ok_or(NotBegun::TooMany)?;
        traces.remove(ended);
    }
    let bytes = wish.events * size_of::<Event>() + wish.content_bytes + if wish.times { TIMES_BYTES } else { 0 };
    let kept = Some(()).filter(|()| memory::has_room(bytes)).and_then(|()| Kept::new(wish));
    let trace = Arc::new(Trace {
        name: name.into(),
        watched: wish.watched,
        frame_bytes: AtomicUsize::new(wish.frame_bytes),
        registers: Mutex::new(wish.registers),
        is_on: AtomicBool::new(true),
        kept: Mutex::new(kept.ok_or(NotBegun::NoMemory)?),
    });
    if let Some(watched) = wish.watched {
        watch::set_access(watched.start, watched.len_bytes);
    }
    traces.push(trace.clone());
    drop(traces);
    set(name);
    Ok(trace)
}

/// Ends the trace of the driver called `name`. The data that it has kept stay. Returns `false` if
/// the driver is not traced.
pub fn end(name: &str) -> bool {
    let ended = of(name).filter(|trace| trace.is_on());
    if let Some(trace) = &ended {
        trace.turn_off();
        set(name);
    }
    ended.is_some()
}

/// Has a trace that is under way note the accesses to `registers`.
pub fn watch(trace: &Trace, registers: Registers) -> Result<(), NotBegun> {
    if trace.registers().is_some() {
        return Err(NotBegun::Watched);
    }
    *trace.registers.lock() = Some(registers);
    set(&trace.name);
    Ok(())
}

/// Has a trace note no accesses to registers any more.
pub fn end_watch(trace: &Trace) {
    *trace.registers.lock() = None;
    set(&trace.name);
}

/// Ends this trace, if it is under way, and drops its data.
pub fn forget(trace: &Arc<Trace>) {
    if trace.is_on() {
        trace.turn_off();
        set(&trace.name);
    }
    TRACES.lock().retain(|other| !Arc::ptr_eq(other, trace));
}

/// Returns the last trace of a driver, be it under way or not.
pub fn of(name: &str) -> Option<Arc<Trace>> {
    TRACES.lock().iter().find(|trace| trace.name == name).cloned()
}

/// Tells the driver called `name` whether it is traced. A driver that is not registered yet is told
/// when it is mapped ([`trace_from_start`]), and again when it is registered ([`keep_up`]).
fn set(name: &str) {
    for handle in registry::in_slots().into_iter().filter(|handle| handle.lock().name == name) {
        trace_from_start(&mut handle.lock());
    }
}

/// Tells a driver whether it is traced, if that has changed while it slept in its `init`.
pub fn keep_up(domain: &mut Domain) {
    let current = of(&domain.name).filter(|trace| trace.is_on());
    let address = |trace: &Option<Arc<Trace>>| trace.as_ref().map(Arc::as_ptr);
    if address(&current) != address(&domain.trace) {
        trace_from_start(domain);
    }
}

/// Has a driver traced, if it is to be.
pub fn trace_from_start(domain: &mut Domain) {
    domain.trace = of(&domain.name).filter(|trace| trace.is_on());
    domain.watch_registers();
    let Some(trace) = &domain.trace else { return };
    if trace.registers().is_some() && domain.is_segmented() {
        let text = format_args!("it is segmented, where no registers are watched");
        console::say_about(&domain.source(), Level::Warn, text);
    }
    let mut kept = trace.kept();
    kept.kind = domain.manifest.kind().ok();
    if trace.registers().is_some() {
        let module = Module::parse(&domain.file.bytes);
        kept.registers = module.map(|module| module.registers.to_vec()).unwrap_or_default();
        kept.file = Some(domain.file.clone());
    }
    drop(kept);
    // The frames and requests that it has in hand already are not given to it now.
    if let Some(offer) = &mut domain.offer {
        offer.forget_passed();
    }
}

/// Notes an event of `domain`, if it is traced.
#[inline]
pub fn note(domain: &Domain, what: impl FnOnce() -> What) {
    if domain.trace.is_some() {
        record(domain, what());
    }
}

#[cold]
#[inline(never)]
fn record(domain: &Domain, what: What) {
    if let Some(trace) = under_way(domain) {
        trace.kept().record.add(time::tsc(), what);
    }
}

/// Returns the trace of `domain` that is under way. A trace that was ended while the driver was not
/// loaded yet does not count.
fn under_way(domain: &Domain) -> Option<&Trace> {
    domain.trace.as_deref().filter(|trace| trace.is_on())
}

/// Notes that a traced driver is entered for `operation`.
#[cold]
#[inline(never)]
pub fn note_enter(domain: &mut Domain, operation: u64, arguments: [u64; 3]) {
    let base = domain.base();
    let Some((mut kept, now)) = kept_with_passed(&domain.trace, &mut domain.offer, Side::Kernel) else { return };
    let mut text = Span::default();
    if operation == COMMAND {
        let mut room = [0; TEXT_BYTES];
        let [len_bytes, ..] = arguments;
        let room = room.get_mut(..(len_bytes as usize).min(TEXT_BYTES)).unwrap_or_default();
        if domain.space.read(base + MAILBOX, room) {
            text = kept.bytes.keep(room);
        }
    }
    kept.record.add(now, What::Enter(operation, arguments, text));
}

/// Notes that a traced driver has left its upcall.
#[cold]
#[inline(never)]
pub fn note_leave(domain: &mut Domain, result: Result<u64, UpcallError>) {
    let (operation, ticks) = (domain.upcall, domain.turn.last_ticks);
    let Some((mut kept, now)) = kept_with_passed(&domain.trace, &mut domain.offer, Side::Driver) else { return };
    // An upcall in which the driver sleeps takes as long as its parts.
    let all = core::mem::take(&mut kept.upcall_ticks).wrapping_add(ticks);
    match result {
        Err(UpcallError::Asleep) => kept.upcall_ticks = all,
        _ => kept.took(Timed::Upcall(operation), all),
    }
    kept.record.add(now, What::Leave(operation, result, ticks));
}

/// Notes that a traced driver is entered again, after its sleep.
#[cold]
#[inline(never)]
pub fn note_woken(domain: &mut Domain) {
    note_passed(domain, Side::Kernel);
    record(domain, What::Woken);
}

/// Notes the frames and requests that one side has passed to the other.
#[cold]
#[inline(never)]
pub fn note_passed(domain: &mut Domain, side: Side) {
    kept_with_passed(&domain.trace, &mut domain.offer, side);
}

/// Notes the frames and requests that one side has passed to the other, if the trace is under way.
/// Returns the trace's data, and the time at which they were noted.
#[inline(always)]
fn kept_with_passed<'a>(
    trace: &'a Option<Arc<Trace>>,
    offer: &mut Option<Box<dyn offer::Offer>>,
    side: Side,
) -> Option<(MutexGuard<'a, Kept>, u64)> {
    let trace = trace.as_deref().filter(|trace| trace.is_on())?;
    let (mut kept, now) = (trace.kept(), time::tsc());
    if let Some(offer) = offer {
        let most = trace.frame_bytes.load(Ordering::Relaxed);
        offer.passed(side, most, &mut Noting { kept: &mut kept, now });
    }
    Some((kept, now))
}

/// Notes that a traced driver calls a service.
pub fn begin_call(domain: &Domain) {
    if let Some(trace) = under_way(domain) {
        trace.kept().call_began = time::tsc();
    }
}

/// Notes the last service call of `domain`, if it is traced: the call is over, or the driver was
/// ended in it.
#[cold]
#[inline(never)]
pub fn note_call(domain: &Domain) {
    let (Some(trace), Some(call)) = (under_way(domain), domain.calls.last()) else { return };
    let mut room = [0; TEXT_BYTES];
    let text = text_of(domain, &call, &mut room);
    let mut kept = trace.kept();
    let now = time::tsc();
    let ticks = now.saturating_sub(kept.call_began);
    kept.took(Timed::Service(call.service), ticks);
    let text = kept.bytes.keep(text);
    kept.record.add(now, What::Call(call, text, ticks));
}

/// Copies the text that a call has passed to `room`, as much of it as fits. Returns no bytes if the
/// call passes no text, or a text that is not the driver's own.
fn text_of<'a>(domain: &Domain, call: &Call, room: &'a mut [u8; TEXT_BYTES]) -> &'a [u8] {
    let mut register = 0;
    for argument in SERVICES.get(call.service).map_or(&[][..], |service| service.arguments) {
        if argument.kind == Kind::Text
            && let Some([start, len_bytes]) = call.arguments.get(register..register + 2)
        {
            let extent = Extent::new(lifted(*start, domain.space.lift()), (*len_bytes).min(TEXT_BYTES as u64));
            let room = room.get_mut(..extent.len_bytes as usize).unwrap_or_default();
            let is_own = domain.slot_extent().encloses(extent);
            return if is_own && domain.space.read(extent.start, room) { room } else { &[] };
        }
        register += argument.kind.registers();
    }
    &[]
}

/// Notes an access to the watched memory. The driver whose upcall is under way made it, or the
/// kernel when it resets the driver's device between two upcalls; in that case no value is noted.
/// `rip` is the address after the instruction.
pub fn note_access(rip: u64) {
    // A service that a trusted driver calls runs on the driver's stack. So this module itself may
    // have touched the watched memory, while it held a lock.
    let Some(traces) = TRACES.try_lock() else { return };
    let watching = traces.iter().find_map(|trace| Some((trace, trace.watched.filter(|_| trace.is_on())?)));
    let Some((trace, watched)) = watching else { return };
    let Some(mut kept) = trace.kept.try_lock() else { return };
    let mut bytes = [0; 8];
    // The running service already holds the domain, so read the entered address space.
    let read =
        bytes.get_mut(..watched.len_bytes as usize).is_some_and(|bytes| hw::space::read_entered(watched.start, bytes));
    kept.record.add(time::tsc(), What::Access(rip, read.then(|| u64::from_le_bytes(bytes))));
}
