//! Traces: what one driver is asked, and asks for, while a command runs (`trace NAME COMMAND`).
//!
//! **A trace takes no more than [`EVENTS`] places, whatever the driver does**: the oldest go, and
//! are counted. Nothing is allocated while it runs. A driver that is not traced pays one look at
//! [`Domain::traced`] for each crossing.

use super::Domain;
use super::calls::Call;
use super::cause::UpcallError;
use alloc::string::String;
use hw::arch::{time, watch};
use ringfence_abi::upcall::Events;
use ringfence_core::extent::Extent;
use ringfence_core::trace::Record;
use spin::Mutex;

/// Events that are kept.
pub const EVENTS: usize = 512;

/// Something that happened at a driver's boundary.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// The kernel entered it: the operation and its arguments.
    Enter(u64, [u64; 3]),
    /// It returned, after so many TSC ticks.
    Leave(Result<u64, UpcallError>, u64),
    /// It called a service.
    Call(Call),
    /// It was ended: the kind of the fault.
    Ended(&'static str),
    /// It read or wrote what is watched: the address behind the instruction, and what is there now.
    Access(u64, Option<u64>),
    /// It is to be polled for these, but rests ([`crate::poll`]).
    Rests(Events),
    /// It is to be polled for these, but sleeps ([`super::sleep`]).
    Sleeps(Events),
    /// Another instance was put in its place.
    Replaced,
}

/// When, in TSC ticks since the trace began, and what.
pub type Event = ringfence_core::trace::Event<What>;

/// What was traced.
#[derive(Debug)]
pub struct Trace {
    /// The driver's name: a successor has the same.
    name: String,
    /// The memory that is watched, if some is: an address in the driver's slot, and a length of 1,
    /// 2, 4 or 8 bytes.
    watched: Option<Extent>,
    /// What happened.
    pub record: Record<What>,
}

/// The trace that is under way.
static TRACE: Mutex<Option<Trace>> = Mutex::new(None);

/// Begins to trace the driver called `name`, and who reads or writes the memory `watched`; `false`
/// if a trace is under way, or there is no memory for one.
pub fn begin(name: &str, watched: Option<Extent>) -> bool {
    let mut trace = TRACE.lock();
    let Some(record) = Record::new(EVENTS, time::tsc()).filter(|_| trace.is_none()) else { return false };
    *trace = Some(Trace { name: name.into(), watched, record });
    if let Some(watched) = watched {
        watch::set_access(watched.start, watched.len_bytes);
    }
    true
}

/// Ends the trace that is under way.
pub fn end() -> Option<Trace> {
    watch::end_access();
    TRACE.lock().take()
}

/// Whether the driver called `name` is traced.
pub fn traces(name: &str) -> bool {
    TRACE.lock().as_ref().is_some_and(|trace| trace.name == name)
}

/// Notes what happened to `domain`, if it is traced.
#[inline]
pub fn note(domain: &Domain, what: impl FnOnce() -> What) {
    if domain.traced {
        record(what());
    }
}

/// Notes the last call of a service by `domain`, if it is traced.
#[cold]
#[inline(never)]
pub fn note_call(domain: &Domain) {
    if let Some(call) = domain.calls.last().filter(|_| domain.traced) {
        record(What::Call(call));
    }
}

/// Notes that what is watched was read or written: by the driver whose upcall is under way, or by
/// the kernel when it resets the driver's device between two, which says no value. `rip` is behind
/// the instruction.
pub fn note_access(rip: u64) {
    // A service that a trusted driver calls runs on its stack: it may be this module that has
    // touched what is watched.
    let Some(mut trace) = TRACE.try_lock() else { return };
    let Some(trace) = trace.as_mut() else { return };
    let value = trace.watched.and_then(|watched| {
        let mut bytes = [0; 8];
        // That service has the domain in hand.
        let read = hw::space::read_entered(watched.start, bytes.get_mut(..watched.len_bytes as usize)?);
        read.then(|| u64::from_le_bytes(bytes))
    });
    trace.record.add(time::tsc(), What::Access(rip, value));
}

#[cold]
#[inline(never)]
fn record(what: What) {
    if let Some(trace) = TRACE.lock().as_mut() {
        trace.record.add(time::tsc(), what);
    }
}
