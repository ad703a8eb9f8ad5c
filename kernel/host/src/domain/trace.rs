//! Traces: the calls between one driver and the kernel while a command runs (`trace NAME COMMAND`).
//!
//! **A trace keeps at most [`EVENTS`] events, whatever the driver does**: the oldest are dropped,
//! and counted. Nothing is allocated while the trace runs. A driver that is not traced pays one
//! check of [`Domain::traced`] for each crossing.

use super::Domain;
use super::calls::Call;
use super::cause::UpcallError;
use alloc::string::String;
use hw::arch::{time, watch};
use ringfence_abi::upcall::Events;
use ringfence_core::extent::Extent;
use ringfence_core::trace::Record;
use spin::Mutex;

/// The number of events that are kept.
pub const EVENTS: usize = 512;

/// An event at a driver's boundary.
#[derive(Debug, Clone, Copy)]
pub enum What {
    /// The kernel entered the driver: the operation and its arguments.
    Enter(u64, [u64; 3]),
    /// The driver returned: the result, and the TSC ticks that it took.
    Leave(Result<u64, UpcallError>, u64),
    /// The driver called a service.
    Call(Call),
    /// The driver was ended: the kind of the fault.
    Ended(&'static str),
    /// The watched memory was read or written: the address after the instruction, and the value
    /// there now.
    Access(u64, Option<u64>),
    /// The driver is to be polled for these events, but rests ([`crate::poll`]).
    Rests(Events),
    /// The driver is to be polled for these events, but sleeps ([`super::sleep`]).
    Sleeps(Events),
    /// Another instance was put in the driver's place.
    Replaced,
}

/// An event, with its time in TSC ticks since the trace began.
pub type Event = ringfence_core::trace::Event<What>;

/// A trace.
#[derive(Debug)]
pub struct Trace {
    /// The driver's name. A successor has the same name.
    name: String,
    /// The watched memory, if there is any: an address in the driver's slot, and a length of 1, 2,
    /// 4 or 8 bytes.
    watched: Option<Extent>,
    /// The events.
    pub record: Record<What>,
}

/// The trace that is under way.
static TRACE: Mutex<Option<Trace>> = Mutex::new(None);

/// Begins to trace the driver called `name`, and the accesses to the memory `watched`. Returns
/// `false` if a trace is under way, or there is no memory for one.
pub fn begin(name: &str, watched: Option<Extent>) -> bool {
    let mut trace = TRACE.lock();
    let Some(record) = Record::new(EVENTS, time::tsc()).filter(|_| trace.is_none()) else { return false };
    *trace = Some(Trace { name: name.into(), watched, record });
    if let Some(watched) = watched {
        watch::set_access(watched.start, watched.len_bytes);
    }
    true
}

/// Ends the trace that is under way, and returns it.
pub fn end() -> Option<Trace> {
    watch::end_access();
    TRACE.lock().take()
}

/// Returns whether the driver called `name` is traced.
pub fn traces(name: &str) -> bool {
    TRACE.lock().as_ref().is_some_and(|trace| trace.name == name)
}

/// Notes an event of `domain`, if it is traced.
#[inline]
pub fn note(domain: &Domain, what: impl FnOnce() -> What) {
    if domain.traced {
        record(what());
    }
}

/// Notes the last service call of `domain`, if it is traced.
#[cold]
#[inline(never)]
pub fn note_call(domain: &Domain) {
    if let Some(call) = domain.calls.last().filter(|_| domain.traced) {
        record(What::Call(call));
    }
}

/// Notes an access to the watched memory. The driver whose upcall is under way made it, or the
/// kernel when it resets the driver's device between two upcalls; in that case no value is noted.
/// `rip` is the address after the instruction.
pub fn note_access(rip: u64) {
    // A service that a trusted driver calls runs on the driver's stack. So this module itself may
    // have touched the watched memory, while it held the lock.
    let Some(mut trace) = TRACE.try_lock() else { return };
    let Some(trace) = trace.as_mut() else { return };
    let value = trace.watched.and_then(|watched| {
        let mut bytes = [0; 8];
        // The running service already holds the domain, so read the entered address space.
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
