//! The drivers, as gdb sees them.
//!
//! Each driver is a thread, whose number is that of its slot plus 1. gdb reads and writes the
//! memory and the registers **of drivers only**: no address of the kernel is read, and no register
//! of a device, as a read may have an effect.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::num::NonZeroUsize;
use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadRangeStepping, MultiThreadRangeSteppingOps, MultiThreadResume, MultiThreadResumeOps,
    MultiThreadSchedulerLocking, MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::libraries::{Libraries, LibrariesOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use host::debugger::go_on;
use host::domain::cause::Cause;
use host::domain::debug::{self, Go, Refused, Stop, Why};
use host::domain::{Handle, registry};
use hw::arch::frame::TrapFrame;
use ringfence_abi::layout::IMAGE;
use ringfence_abi::manifest::SEGMENTED_SUFFIX;
use ringfence_core::extent::Extent;
use ringfence_core::vector::{DEBUG, DIVIDE_ERROR, INVALID_OPCODE};

type Reason = MultiThreadStopReason<u64>;

/// The thread that gdb sees when no driver is loaded: it wants one.
const NO_DRIVER: Tid = Tid::new(1_000_000).expect("it is not zero");

/// The most bytes of memory that one packet reads.
const MOST_READ: usize = 64 << 10;

/// The drivers, and gdb's requests for them.
#[derive(Default)]
pub struct Drivers {
    /// The slots of drivers that stand and of which gdb was told, and the numbers of their stops.
    told: Vec<(usize, u64)>,
    /// Warnings for a person: gdb says nothing of a breakpoint that is refused in a library.
    pub warnings: Vec<String>,
    /// How many bytes of memory a packet may still read.
    readable: usize,
    /// How the drivers in these slots go on, if not as the others.
    actions: BTreeMap<usize, Go>,
    /// Whether only those go on.
    is_locked: bool,
    /// Whether gdb has said that they go on.
    goes_on: bool,
}

fn thread(slot: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(slot)
}

/// Returns the driver that is a thread.
fn driver(thread: Tid) -> Option<Handle> {
    registry::in_slots().into_iter().find(|handle| handle.lock().space.slot() + 1 == thread.get())
}

/// Returns the driver in a slot, if it stands for the stop with this number.
fn standing(slot: usize, number: u64) -> Option<Handle> {
    driver(thread(slot)).filter(|handle| {
        let domain = handle.lock();
        domain.stands() && domain.debugged.stops == number
    })
}

/// Returns the driver in whose slot `start` is, and how many of `len` bytes from there are in that
/// slot.
fn part(start: u64, len: usize) -> Option<(Handle, usize)> {
    let handle = debug::driver_at(start)?;
    let end = handle.lock().slot_extent().end()?;
    Some((handle, len.min(usize::try_from(end - start).ok()?)))
}

impl Drivers {
    /// Lets the drivers go on for which gdb has said so.
    pub fn let_go(&mut self) {
        if !core::mem::take(&mut self.goes_on) {
            return;
        }
        let (actions, is_locked) = (core::mem::take(&mut self.actions), core::mem::take(&mut self.is_locked));
        let goes = |(slot, _): &(usize, u64)| !is_locked || actions.contains_key(slot);
        let (go, stay): (Vec<_>, Vec<_>) = self.told.iter().copied().partition(goes);
        self.told = stay;
        for (slot, number) in go {
            // A successor may stand for another reason, of which gdb is told first.
            if let Some(handle) = standing(slot, number) {
                go_on(&handle, actions.get(&slot).copied().unwrap_or(Go::On));
            }
        }
    }

    /// Begins to serve another packet.
    pub fn begin_packet(&mut self) {
        self.readable = MOST_READ;
    }

    /// Returns the stop reason of a driver that stands, for gdb; `None` if it does not stand any
    /// more.
    pub fn report(&mut self, stop: &Stop) -> Option<Reason> {
        let tid = thread(stop.slot);
        let mut vector = 0;
        if stop.why != Why::New {
            vector = standing(stop.slot, stop.number)?.lock().space.standing()?.vector;
            self.told.retain(|(slot, _)| *slot != stop.slot);
            self.told.push((stop.slot, stop.number));
        }
        let signal = |signal| Reason::SignalWithThread { tid, signal };
        Some(match stop.why {
            Why::New => Reason::Library(tid),
            Why::Breakpoint => Reason::SwBreak(tid),
            Why::Step => signal(Signal::SIGTRAP),
            Why::Interrupt => signal(Signal::SIGINT),
            Why::Watch { address, reads } => {
                let kind = if reads { WatchKind::ReadWrite } else { WatchKind::Write };
                Reason::Watch { tid, kind, addr: address }
            }
            Why::Fault(Cause::Overrun) => signal(Signal::SIGXCPU),
            Why::Fault(Cause::Panic) => signal(Signal::SIGABRT),
            // A service would end it.
            Why::Fault(cause) if !matches!(cause, Cause::Exception { .. }) => signal(Signal::SIGSYS),
            Why::Fault(_) => signal(match vector {
                DIVIDE_ERROR => Signal::SIGFPE,
                // SIGTRAP is for breakpoints and steps.
                DEBUG | INVALID_OPCODE => Signal::SIGILL,
                _ => Signal::SIGSEGV,
            }),
        })
    }

    /// Has the driver stand that gdb was started for, or all drivers, as a person has interrupted
    /// gdb. Returns the stop reason for gdb.
    pub fn interrupted(&mut self) -> Reason {
        let mut drivers = registry::in_slots();
        drivers.retain(|handle| debug::concerns(&handle.lock().name));
        for handle in &drivers {
            if let Some(stop) = debug::interrupt(handle) {
                self.told.retain(|(slot, _)| *slot != stop.slot);
                self.told.push((stop.slot, stop.number));
                continue;
            }
            let domain = handle.lock();
            if domain.is_alive() && !domain.stands() {
                self.warnings.push(format!("{}, ring {}, {}: goes on\n", domain.name, domain.ring(), domain.state()));
            }
        }
        let first = drivers.first().map(|handle| thread(handle.lock().space.slot()));
        let told = self.told.first().map(|(slot, _)| thread(*slot));
        Reason::SignalWithThread { tid: told.or(first).unwrap_or(NO_DRIVER), signal: Signal::SIGINT }
    }
}

impl Target for Drivers {
    type Arch = X86_64_SSE;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64_SSE, Infallible> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_libraries(&mut self) -> Option<LibrariesOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Drivers {
    /// A driver that does not stand is between two upcalls: the registers are those with which it
    /// is entered next.
    fn read_registers(&mut self, registers: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let Some(handle) = driver(tid) else { return Ok(()) };
        let domain = handle.lock();
        let between = TrapFrame { rip: domain.entry, rsp: domain.space.first_rsp(), ..TrapFrame::default() };
        let frame = domain.space.standing().unwrap_or(between);
        registers.regs = [
            frame.rax, frame.rbx, frame.rcx, frame.rdx, frame.rsi, frame.rdi, frame.rbp, frame.rsp, frame.r8, frame.r9,
            frame.r10, frame.r11, frame.r12, frame.r13, frame.r14, frame.r15,
        ];
        (registers.rip, registers.eflags) = (frame.rip, frame.rflags as u32);
        (registers.segments.cs, registers.segments.ss) = (frame.cs as u32, frame.ss as u32);
        Ok(())
    }

    fn write_registers(&mut self, registers: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let handle = driver(tid).ok_or(TargetError::NonFatal)?;
        let domain = handle.lock();
        let frame = domain.space.standing().ok_or(TargetError::NonFatal)?;
        let [rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8, r9, r10, r11, r12, r13, r14, r15] = registers.regs;
        let (rip, rflags) = (registers.rip, u64::from(registers.eflags));
        domain.space.set_standing(TrapFrame {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            rsp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
            ..frame
        });
        Ok(())
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], _: Tid) -> TargetResult<usize, Self> {
        let (handle, len) = part(start, data.len().min(self.readable)).ok_or(TargetError::NonFatal)?;
        let domain = handle.lock();
        // As many as there are up to the next page that cannot be read.
        const PAGE: u64 = ringfence_abi::layout::PAGE_SIZE;
        let mut done = 0;
        while done < len {
            let at = start + done as u64;
            let here = (len - done).min((PAGE - at % PAGE) as usize);
            if !data.get_mut(done..done + here).is_some_and(|room| domain.space.read(at, room)) {
                break;
            }
            done += here;
        }
        self.readable -= done;
        debug::hide_breakpoints(&domain, start, data.get_mut(..done).unwrap_or_default());
        if done == 0 { Err(TargetError::NonFatal) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], _: Tid) -> TargetResult<(), Self> {
        let (handle, len) = part(start, data.len()).ok_or(TargetError::NonFatal)?;
        let mut domain = handle.lock();
        if len < data.len() || !debug::write(&mut domain, start, data) {
            return Err(TargetError::NonFatal);
        }
        Ok(())
    }

    fn list_active_threads(&mut self, is_active: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        let mut drivers = registry::in_slots();
        // gdb looks at the first one when it connects.
        drivers.sort_by_key(|handle| !debug::is_about(&handle.lock().name));
        drivers.iter().for_each(|handle| is_active(thread(handle.lock().space.slot())));
        if drivers.is_empty() {
            is_active(NO_DRIVER);
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Drivers {
    fn thread_extra_info(&self, tid: Tid, room: &mut [u8]) -> Result<usize, Infallible> {
        let text = match driver(tid) {
            Some(handle) => {
                let domain = handle.lock();
                format!("{}, ring {}, {}", domain.name, domain.ring(), domain.state())
            }
            None => "no driver".into(),
        };
        Ok(copy(text.as_bytes(), room))
    }
}

/// Copies as much as there is room for. Returns how much that is.
fn copy(from: &[u8], to: &mut [u8]) -> usize {
    to.iter_mut().zip(from).map(|(to, from)| *to = *from).count()
}

/// Returns how a driver goes on to which gdb passes this signal.
fn passes(signal: Option<Signal>) -> Go {
    if signal.is_some() { Go::Fault } else { Go::On }
}

impl MultiThreadResume for Drivers {
    fn resume(&mut self) -> Result<(), Infallible> {
        self.goes_on = true;
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        (self.actions, self.is_locked) = (BTreeMap::new(), false);
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, signal: Option<Signal>) -> Result<(), Infallible> {
        self.actions.insert(tid.get() - 1, passes(signal));
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_range_step(&mut self) -> Option<MultiThreadRangeSteppingOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Drivers {
    fn set_resume_action_step(&mut self, tid: Tid, signal: Option<Signal>) -> Result<(), Infallible> {
        let go = match passes(signal) {
            Go::Fault => Go::Fault,
            _ => Go::Step(0, 0),
        };
        self.actions.insert(tid.get() - 1, go);
        Ok(())
    }
}

impl MultiThreadRangeStepping for Drivers {
    fn set_resume_action_range_step(&mut self, tid: Tid, start: u64, end: u64) -> Result<(), Infallible> {
        self.actions.insert(tid.get() - 1, Go::Step(start, end));
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Drivers {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        self.is_locked = true;
        Ok(())
    }
}

impl Breakpoints for Drivers {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Drivers {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let added = debug::add_breakpoint(address);
        if let Err(why @ (Refused::Trusted | Refused::Segmented)) = added
            && let Some(handle) = debug::driver_at(address)
        {
            let name = handle.lock().name.clone();
            let file = handle.lock().file.name.clone();
            let (is_where, mends) = match file.strip_suffix(SEGMENTED_SUFFIX).filter(|_| why == Refused::Segmented) {
                Some(paged) => ("is segmented", format!("reload {name} {paged}' makes it paged")),
                None => ("runs in ring 0", format!("ring {name} 1' moves it to ring 1")),
            };
            let warning = format!("{name} {is_where}, where no breakpoint stops it; 'monitor {mends}\n");
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        Ok(added.is_ok())
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(debug::remove_breakpoint(address))
    }
}

/// Returns whether reads count; `None` if the CPU cannot watch that.
fn reads(kind: WatchKind) -> Option<bool> {
    match kind {
        WatchKind::Write => Some(false),
        WatchKind::ReadWrite => Some(true),
        // The CPU has no breakpoint for reads alone.
        WatchKind::Read => None,
    }
}

impl HwWatchpoint for Drivers {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let is_word = matches!(len, 1 | 2 | 4 | 8) && address.is_multiple_of(len);
        let added = reads(kind).filter(|_| is_word).map(|reads| debug::add_watch(Extent::new(address, len), reads));
        Ok(added.is_some_and(|added| added.is_ok()))
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        Ok(reads(kind).is_some_and(|reads| debug::remove_watch(Extent::new(address, len), reads)))
    }
}

impl Libraries for Drivers {
    /// Each paged driver is a library: the runner has a file of that name with its symbols. gdb
    /// takes no symbols of 32-bit code.
    fn get_libraries(&self, offset: u64, len: usize, room: &mut [u8]) -> TargetResult<usize, Self> {
        let mut list = String::from("<library-list version=\"1.0\">");
        for handle in registry::in_slots() {
            let domain = handle.lock();
            if domain.is_segmented() {
                continue;
            }
            let (name, build, start) = (&domain.file.name, domain.file.build, domain.base() + IMAGE);
            list += &format!("<library name=\"{name}#{build}\"><segment address=\"{start:#x}\"/></library>");
        }
        list += "</library-list>";
        let rest = usize::try_from(offset).ok().and_then(|offset| list.as_bytes().get(offset..)).unwrap_or_default();
        Ok(copy(rest.get(..len).unwrap_or(rest), room))
    }
}
