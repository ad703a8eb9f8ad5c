//! Drivers under a debugger: breakpoints, steps, and drivers that stand still.
//!
//! A driver that meets a breakpoint leaves its upcall as a driver does that sleeps
//! ([`super::sleep`]), only behind a trap: everything else runs on, polls for the driver are noted,
//! and its budget stands still. It goes on when the debugger says so. A driver that faults stands
//! at the faulting instruction, before it is ended. A driver that a service would end, or that
//! panics, stands behind its call.
//!
//! **The debugger's breakpoints and watches are gone with its session** ([`end`]). A driver that
//! stands then goes on with the registers that it had, or is ended by the fault that it had. The
//! debugger's writes to memory stay. A driver in ring 0 is not stopped, as its traps are the
//! kernel's.

use super::cause::{Cause, Site};
use super::fault::Fault;
use super::{Domain, Handle, Ring, registry};
use crate::file::File;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::Poll;
use embassy_sync::waitqueue::AtomicWaker;
use hw::arch::Caller;
use hw::arch::frame::{TRAP_FLAG, TrapFrame};
use hw::arch::handlers::{DriverTrap, Verdict};
use hw::arch::watch;
use ringfence_abi::layout::slot_of;
use ringfence_abi::service::{Refusal, SERVICE_COUNT};
use ringfence_abi::upcall::NULL;
use ringfence_core::disassembly::MAX_INSTRUCTION;
use ringfence_core::extent::Extent;
use ringfence_core::vector::{DEBUG, GENERAL_PROTECTION};
use spin::Mutex;

/// INT3.
const INT3: u8 = 0xcc;
/// The most breakpoints that a debugger has.
const MOST_BREAKPOINTS: usize = 256;

/// Why a driver stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It met a breakpoint.
    Breakpoint,
    /// It has done a step.
    Step,
    /// A person has interrupted it ([`interrupt`]).
    Interrupt,
    /// It has accessed watched memory at this address.
    Watch {
        /// The first address of that memory.
        address: u64,
        /// Whether reads count as well as writes.
        reads: bool,
    },
    /// It would be ended for this.
    Fault(Cause),
    /// It does not stand: it was loaded, or has a successor.
    New,
}

/// A driver that stands, or is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// Its slot.
    pub slot: usize,
    /// The number of the stop: that of [`Debugged::stops`].
    pub number: u64,
    /// Why.
    pub why: Why,
}

/// The state of one driver under a debugger.
#[derive(Debug, Default)]
pub struct Debugged {
    /// Why it stands, and the registers that it had then.
    standing: Option<(Why, TrapFrame)>,
    /// The call in which it stands, if it would be ended in a service.
    call: Option<Caller>,
    /// The number of its last stop, among those of all drivers.
    pub stops: u64,
    /// Whether the debugger has written to its memory.
    was_written: bool,
    /// The range of addresses in which it steps: it stands at the first instruction outside.
    steps: Option<(u64, u64)>,
    /// A breakpoint that is met once, where a step over a gate ends or the driver starts, and the
    /// byte that is there.
    once: Option<(u64, u8)>,
    /// Whether that breakpoint is [`interrupt`]'s.
    is_interrupted: bool,
}

/// A breakpoint.
struct Breakpoint {
    address: u64,
    /// The byte that is there, and the driver in whose memory the breakpoint is; none, if the
    /// driver is gone.
    placed: Option<(u8, Weak<Mutex<Domain>>)>,
    /// The build in which the address makes sense.
    file: File,
}

impl Breakpoint {
    /// Returns the byte that is in its place, if it is in the memory of `domain`.
    fn byte_in(&self, domain: &Domain) -> Option<u8> {
        let (byte, weak) = self.placed.as_ref()?;
        weak.ptr_eq(&domain.sleep.this).then_some(*byte)
    }
}

/// A debugger's session.
#[derive(Default)]
struct Session {
    /// The only driver that stands when it faults, if the debugger has named one.
    only: Option<String>,
    breakpoints: Vec<Breakpoint>,
    watches: [Option<(Extent, bool)>; watch::FOR_DEBUGGER],
    /// The names of drivers that are to stand when they start.
    starts: Vec<String>,
    stops: VecDeque<Stop>,
}

impl Session {
    fn concerns(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == name)
    }
}

static SESSION: Mutex<Option<Session>> = Mutex::new(None);
static ON_STOP: AtomicWaker = AtomicWaker::new();
/// The number of stops.
static STOPS: AtomicU64 = AtomicU64::new(0);

/// The reason why something is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No debugger is there.
    NoSession,
    /// The address is in no driver's memory.
    NotADrivers,
    /// The driver runs in ring 0.
    Trusted,
    /// The driver is segmented: gdb knows the registers of 64-bit code.
    Segmented,
    /// There are as many as there can be.
    Full,
}

impl Domain {
    /// Returns whether the driver stands still for a debugger.
    pub fn stands(&self) -> bool {
        self.debugged.standing.is_some()
    }

    /// Returns why the driver stands.
    pub fn why_it_stands(&self) -> Option<Why> {
        self.debugged.standing.map(|(why, _)| why)
    }

    /// Returns whether a debugger has changed the driver, so that it must stay in ring 1.
    pub fn is_debugged(&self) -> bool {
        let is_here = |address: u64| slot_of(address) == Some(self.space.slot());
        let session = SESSION.lock();
        let changes = |session: &Session| {
            session.breakpoints.iter().any(|breakpoint| breakpoint.byte_in(self).is_some())
                || session.watches.iter().flatten().any(|(watched, _)| is_here(watched.start))
        };
        self.stands() || self.debugged.was_written || session.as_ref().is_some_and(changes)
    }
}

/// Begins a session. If `only` names a driver, no other driver stands when it faults. Returns
/// `false` if there is a session already.
pub fn begin(only: Option<&str>) -> bool {
    let mut session = SESSION.lock();
    let is_free = session.is_none();
    if is_free {
        *session = Some(Session { only: only.map(String::from), ..Session::default() });
    }
    is_free
}

/// Ends the session, and takes back the debugger's breakpoints, watches and steps. Drivers that
/// stand have the registers again that they had, and must still go on.
pub fn end() {
    let Some(session) = SESSION.lock().take() else { return };
    session.breakpoints.iter().for_each(take_away);
    (0..watch::FOR_DEBUGGER).for_each(watch::end_for_debugger);
    for handle in registry::in_slots() {
        let mut domain = handle.lock();
        if let Some((_, before)) = domain.debugged.standing {
            domain.space.set_standing(before);
        }
        take_once(&mut domain);
        domain.debugged.steps = None;
    }
}

/// Returns whether the session is about the driver called `name`: the debugger has named it, or
/// none.
pub fn concerns(name: &str) -> bool {
    SESSION.lock().as_ref().is_some_and(|session| session.concerns(name))
}

/// Returns whether the debugger has named the driver called `name`.
pub fn is_about(name: &str) -> bool {
    SESSION.lock().as_ref().and_then(|session| session.only.as_deref()) == Some(name)
}

/// Tells the debugger of a driver that starts, and puts the breakpoints of its build into it. If
/// the driver is to stand when it starts, it gets one at its first instruction.
pub fn adopt(handle: &Handle) {
    let mut guard = SESSION.lock();
    let Some(session) = guard.as_mut() else { return };
    let mut domain = handle.lock();
    if domain.ring() == Ring::Trusted {
        return;
    }
    let slot = domain.space.slot();
    for breakpoint in session.breakpoints.iter_mut().filter(|breakpoint| slot_of(breakpoint.address) == Some(slot)) {
        // In another build the address is something else.
        let is_same = breakpoint.file.is_same(&domain.file);
        let byte = if is_same { place(&domain, breakpoint.address) } else { None };
        breakpoint.placed = byte.map(|byte| (byte, Arc::downgrade(handle)));
    }
    let at = session.starts.iter().position(|name| *name == domain.name && !domain.is_segmented());
    if let Some(at) = at {
        session.starts.remove(at);
        domain.debugged.once = place(&domain, domain.entry).map(|byte| (domain.entry, byte));
    }
    note(session, Stop { slot, number: 0, why: Why::New });
}

/// Has the driver called `name` stand at its first instruction when it starts next. Returns `false`
/// if no debugger is there.
pub fn stop_next(name: &str) -> bool {
    let mut guard = SESSION.lock();
    let Some(session) = guard.as_mut() else { return false };
    if !session.starts.iter().any(|other| other == name) {
        session.starts.push(String::from(name));
    }
    true
}

/// Takes back the request of [`stop_next`], if the driver has not started since.
pub fn stop_next_no_more(name: &str) {
    if let Some(session) = SESSION.lock().as_mut() {
        session.starts.retain(|other| other != name);
    }
}

/// Has a driver stand at its entry point, in an upcall that does nothing: between its upcalls a
/// driver executes nothing that could be interrupted. Returns the stop, of which the debugger is
/// not told again; `None` if the driver cannot stand, sleeps, or stands already.
pub fn interrupt(handle: &Handle) -> Option<Stop> {
    let mut domain = handle.lock();
    let can_stand = domain.ring() == Ring::Sandboxed && !domain.is_segmented();
    if !can_stand || !domain.life.is_running() {
        return None;
    }
    take_once(&mut domain);
    let byte = place(&domain, domain.entry)?;
    domain.debugged.once = Some((domain.entry, byte));
    domain.debugged.is_interrupted = true;
    // It stands: the upcall has no result yet.
    let _ = domain.upcall(NULL, [0; 3]);
    domain.debugged.is_interrupted = false;
    let slot = domain.space.slot();
    let mut session = SESSION.lock();
    let stops = &mut session.as_mut()?.stops;
    let place = stops.iter().position(|stop| stop.slot == slot && stop.why == Why::Interrupt)?;
    stops.remove(place)
}

/// Returns the driver in whose slot `address` is.
pub fn driver_at(address: u64) -> Option<Handle> {
    let slot = slot_of(address)?;
    registry::in_slots().into_iter().find(|handle| handle.lock().space.slot() == slot)
}

/// Adds a breakpoint. A breakpoint that is there already is left alone.
pub fn add_breakpoint(address: u64) -> Result<(), Refused> {
    let handle = driver_at(address).ok_or(Refused::NotADrivers)?;
    let mut guard = SESSION.lock();
    let session = guard.as_mut().ok_or(Refused::NoSession)?;
    let domain = handle.lock();
    if domain.ring() == Ring::Trusted || domain.next_ring() == Ring::Trusted {
        return Err(Refused::Trusted);
    }
    if domain.is_segmented() {
        return Err(Refused::Segmented);
    }
    let known = session.breakpoints.iter().position(|breakpoint| breakpoint.address == address);
    if let Some(known) = known {
        let weak = Arc::downgrade(&handle);
        let is_here = |breakpoint: &Breakpoint| breakpoint.placed.as_ref().is_some_and(|(_, at)| at.ptr_eq(&weak));
        if session.breakpoints.get(known).is_some_and(is_here) {
            return Ok(());
        }
        // The driver in which it was is gone.
        session.breakpoints.remove(known);
    }
    if session.breakpoints.len() >= MOST_BREAKPOINTS {
        return Err(Refused::Full);
    }
    let byte = place(&domain, address).ok_or(Refused::NotADrivers)?;
    let placed = Some((byte, Arc::downgrade(&handle)));
    session.breakpoints.push(Breakpoint { address, placed, file: domain.file.clone() });
    Ok(())
}

/// Removes a breakpoint. Returns `false` if there is none.
pub fn remove_breakpoint(address: u64) -> bool {
    let mut guard = SESSION.lock();
    let Some(session) = guard.as_mut() else { return false };
    let place = session.breakpoints.iter().position(|breakpoint| breakpoint.address == address);
    let removed = place.map(|place| session.breakpoints.remove(place));
    drop(guard);
    removed.as_ref().map(take_away).is_some()
}

/// Puts the driver's own bytes into `data`, read from `start` on in `domain`, where breakpoints
/// are.
pub fn hide_breakpoints(domain: &Domain, start: u64, data: &mut [u8]) {
    let session = SESSION.lock();
    for breakpoint in session.iter().flat_map(|session| &session.breakpoints) {
        let offset = breakpoint.address.checked_sub(start).and_then(|offset| usize::try_from(offset).ok());
        if let (Some(byte), Some(place)) = (breakpoint.byte_in(domain), offset.and_then(|offset| data.get_mut(offset)))
        {
            *place = byte;
        }
    }
}

/// Writes to the memory of a driver, which stays in ring 1 from then on. Breakpoints stay in place.
/// Returns `false` if the driver is in ring 0, or the memory is not its own.
pub fn write(domain: &mut Domain, start: u64, data: &[u8]) -> bool {
    let is_trusted = domain.ring() == Ring::Trusted || domain.next_ring() == Ring::Trusted;
    if is_trusted || !domain.space.write(start, data) {
        return false;
    }
    domain.debugged.was_written = true;
    domain.witnessed.is_changed = true;
    let mut session = SESSION.lock();
    for breakpoint in session.iter_mut().flat_map(|session| &mut session.breakpoints) {
        let offset = breakpoint.address.checked_sub(start).and_then(|offset| usize::try_from(offset).ok());
        if breakpoint.byte_in(domain).is_some()
            && let Some(written) = offset.and_then(|offset| data.get(offset))
            && let Some((byte, _)) = &mut breakpoint.placed
        {
            *byte = *written;
            domain.space.write(breakpoint.address, &[INT3]);
        }
    }
    true
}

/// Watches a word of a driver's memory; `reads` says whether reads count as well as writes.
pub fn add_watch(watched: Extent, reads: bool) -> Result<(), Refused> {
    let handle = driver_at(watched.start).ok_or(Refused::NotADrivers)?;
    let mut guard = SESSION.lock();
    let session = guard.as_mut().ok_or(Refused::NoSession)?;
    {
        let domain = handle.lock();
        if domain.ring() == Ring::Trusted || domain.next_ring() == Ring::Trusted {
            return Err(Refused::Trusted);
        }
        if !domain.slot_extent().encloses(watched) {
            return Err(Refused::NotADrivers);
        }
    }
    let number = session.watches.iter().position(Option::is_none).ok_or(Refused::Full)?;
    if let Some(free) = session.watches.get_mut(number) {
        *free = Some((watched, reads));
    }
    watch::set_for_debugger(number, watched.start, watched.len_bytes, reads);
    Ok(())
}

/// Removes a watch. Returns `false` if there is none.
pub fn remove_watch(watched: Extent, reads: bool) -> bool {
    let mut guard = SESSION.lock();
    let Some(session) = guard.as_mut() else { return false };
    let number = session.watches.iter().position(|other| *other == Some((watched, reads)));
    if let Some(number) = number
        && let Some(place) = session.watches.get_mut(number)
    {
        *place = None;
        watch::end_for_debugger(number);
    }
    number.is_some()
}

/// Writes a breakpoint. Returns the byte that is there; `None` if there is no memory.
fn place(domain: &Domain, address: u64) -> Option<u8> {
    let mut byte = [0];
    (domain.space.read(address, &mut byte) && domain.space.write(address, &[INT3])).then_some(byte[0])
}

/// Takes a breakpoint out of its driver's memory.
fn take_away(breakpoint: &Breakpoint) {
    let Some((byte, weak)) = &breakpoint.placed else { return };
    if let Some(handle) = weak.upgrade() {
        restore(&handle.lock(), breakpoint.address, *byte);
    }
}

/// Writes the byte back that was at a breakpoint, if the breakpoint is still there.
fn restore(domain: &Domain, address: u64, byte: u8) {
    let mut now = [0];
    if domain.space.read(address, &mut now) && now == [INT3] {
        domain.space.write(address, &[byte]);
    }
}

fn take_once(domain: &mut Domain) -> Option<u64> {
    let (address, byte) = domain.debugged.once.take()?;
    restore(domain, address, byte);
    Some(address)
}

/// Decides about a driver that a trap has hit, in ring 1 or at a gate that it has called.
pub fn judge(domain: &mut Domain, why: DriverTrap, frame: &mut TrapFrame) -> Verdict {
    let met = if frame.vector == DEBUG { watch::take_met() } else { None };
    let mut guard = SESSION.lock();
    let Some(session) = guard.as_mut() else { return Verdict::Ends };
    if domain.ring() == Ring::Trusted || domain.is_segmented() {
        return Verdict::Ends;
    }
    let is_exception = matches!(why, DriverTrap::Exception { .. });
    let is_debug = is_exception && frame.vector == DEBUG && (domain.debugged.steps.is_some() || met.is_some());
    if is_debug && !frame.is_in_driver() {
        // A step into a gate ends behind it. A step that ends the upcall ends where the next upcall
        // begins.
        frame.rflags &= !TRAP_FLAG;
        take_once(domain);
        let last_stub = Extent::new(domain.space.stub(SERVICE_COUNT), MAX_INSTRUCTION as u64);
        let returns_to = domain
            .space
            .gate_returns_to(frame.rsp)
            .map(|rip| if last_stub.encloses(Extent::new(rip, 1)) { domain.entry } else { rip });
        domain.debugged.once = returns_to.and_then(|rip| Some((rip, place(domain, rip)?)));
        return Verdict::GoesOn;
    }
    if !frame.is_in_driver() {
        return Verdict::Ends;
    }
    // The rest of a range of steps.
    if is_debug && met.is_none() && domain.debugged.steps.is_some_and(|(start, end)| (start..end).contains(&frame.rip))
    {
        return Verdict::GoesOn;
    }
    // The gate of #BP is for ring 0, so that INT3 raises #GP, at the instruction itself.
    let at = frame.rip;
    let is_int3 = is_exception && frame.vector == GENERAL_PROTECTION;
    let stop = if is_debug {
        let watched = met.and_then(|number| session.watches.get(number).copied().flatten());
        match watched {
            Some((watched, reads)) => Why::Watch { address: watched.start, reads },
            None => Why::Step,
        }
    } else if is_int3 && domain.debugged.once.is_some_and(|(address, _)| address == at) {
        take_once(domain);
        if core::mem::take(&mut domain.debugged.is_interrupted) { Why::Interrupt } else { Why::Step }
    } else if is_int3
        && session.breakpoints.iter().any(|breakpoint| breakpoint.address == at && breakpoint.byte_in(domain).is_some())
    {
        Why::Breakpoint
    } else if session.concerns(&domain.name) {
        let cause = match why {
            DriverTrap::Exception { address } => Cause::Exception { address },
            DriverTrap::Overrun => Cause::Overrun,
        };
        Why::Fault(cause)
    } else {
        return Verdict::Ends;
    };
    frame.rflags &= !TRAP_FLAG;
    // An access that was let through has not been made: it begins anew when the driver goes on.
    domain.space.hide_again();
    domain.debugged.call = None;
    begin_stand(session, domain, stop, frame);
    Verdict::Stands
}

/// Decides about a driver that is to be ended in the service that it has called. Returns the
/// registers behind the call, which is refused, if the driver stands instead.
pub fn judge_call(domain: &mut Domain, cause: Cause) -> Option<TrapFrame> {
    let mut guard = SESSION.lock();
    let session = guard.as_mut().filter(|session| session.concerns(&domain.name))?;
    if domain.ring() == Ring::Trusted || domain.is_segmented() {
        return None;
    }
    let caller = hw::arch::caller()?;
    let mut frame = caller.behind_call(Refusal::Denied.to_result());
    // Behind the stub's RET as well: gdb knows no stubs.
    let mut word = [0; 8];
    if domain.space.read(frame.rsp, &mut word) {
        let returns_to = u64::from_le_bytes(word);
        if domain.slot_extent().encloses(Extent::new(returns_to, 1)) {
            (frame.rip, frame.rsp) = (returns_to, frame.rsp.wrapping_add(8));
        }
    }
    domain.debugged.call = Some(caller);
    begin_stand(session, domain, Why::Fault(cause), &frame);
    Some(frame)
}

/// Notes that a driver stands from now on.
fn begin_stand(session: &mut Session, domain: &mut Domain, why: Why, frame: &TrapFrame) {
    domain.debugged.steps = None;
    let number = STOPS.fetch_add(1, Ordering::Relaxed) + 1;
    domain.debugged.stops = number;
    domain.debugged.standing = Some((why, *frame));
    note(session, Stop { slot: domain.space.slot(), number, why });
}

/// Has the debugger told of a stop. Of a slot it is told of one stop, and once that there is a new
/// driver.
fn note(session: &mut Session, stop: Stop) {
    let is_new = |stop: &Stop| stop.why == Why::New;
    session.stops.retain(|other| other.slot != stop.slot || is_new(other) != is_new(&stop));
    session.stops.push_back(stop);
    ON_STOP.wake();
}

/// Forgets the new drivers that the debugger was not told of: it has yet to ask for all of them.
pub fn forget_new() {
    if let Some(session) = SESSION.lock().as_mut() {
        session.stops.retain(|stop| stop.why != Why::New);
    }
}

/// Waits for a driver that stands, or is new. For one task only.
pub async fn next_stop() -> Stop {
    poll_fn(|context| {
        ON_STOP.register(context.waker());
        let stop = SESSION.lock().as_mut().and_then(|session| session.stops.pop_front());
        stop.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// How a driver goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// It runs.
    On,
    /// It executes one instruction, and more as long as they are between these addresses (the
    /// second one is outside), and stands again.
    Step(u64, u64),
    /// It is ended by the fault for which it stands, or runs if it stands for no fault.
    Fault,
}

impl Domain {
    /// Prepares a driver that stands to go on. Returns `false` if it is not to be entered: it does
    /// not stand, or is ended now.
    pub fn leave_debugger(&mut self, go: Go) -> bool {
        let Some((why, frame)) = self.debugged.standing.take() else { return false };
        if !self.is_alive() {
            return false;
        }
        if let (Why::Fault(cause), Go::Fault) = (why, go) {
            let site = self.debugged.call.take().map_or(Site::Trap(&frame), Site::Gate);
            let fault = Fault::new(self, cause, site);
            let has_successor = self.has_successor();
            self.life.end(fault.report(has_successor));
            super::end::quiesce(self);
            return false;
        }
        if let Some(mut frame) = self.space.standing() {
            self.debugged.steps = if let Go::Step(start, end) = go { Some((start, end)) } else { None };
            frame.rflags &= !TRAP_FLAG;
            if self.debugged.steps.is_some() {
                frame.rflags |= TRAP_FLAG;
            }
            self.space.set_standing(frame);
        }
        if self.sleep.ticks_left == 0 {
            self.sleep.ticks_left = self.budget;
        }
        if let Some(offer) = &mut self.offer {
            offer.excuse();
        }
        true
    }
}
