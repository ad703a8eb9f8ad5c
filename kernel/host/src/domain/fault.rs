//! The record of each driver's fault, and the history of faults. [`super::report`] has the words.

use super::calls::{CallLog, Last};
use super::cause::{Cause, Site};
use super::remains::{self, Remains};
use super::report::{Scene, Words};
use super::trace::{self, What};
use super::{Domain, Ring, trust};
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use hw::arch::frame::TrapFrame;
use hw::arch::time;
use hw::{console, link};
use ringfence_abi::manifest::Policy;
use ringfence_abi::upcall::{EXIT, INIT, POLL};
use ringfence_core::fault::kind;
use ringfence_link::event::Event;
use spin::{Mutex, Once};

/// The number of faults that are kept.
const KEPT: usize = 32;

/// The last faults of all drivers, oldest first, and the number of faults since boot.
static HISTORY: Mutex<(VecDeque<Arc<Fault>>, usize)> = Mutex::new((VecDeque::new(), 0));

/// Faults whose report is still to be printed. The flag says whether the driver is to be restarted
/// first.
static PENDING: Mutex<Vec<(Arc<Fault>, bool)>> = Mutex::new(Vec::new());

/// For each of the last few drivers: its name, its last report, and how often that report came in a
/// row.
static LAST: Mutex<VecDeque<(String, String, u32)>> = Mutex::new(VecDeque::new());
/// The number of drivers whose last report is kept.
const LAST_KEPT: usize = 16;

/// Prints all pending reports.
pub fn print_pending() {
    let pending = core::mem::take(&mut *PENDING.lock());
    pending.iter().for_each(|(fault, _)| fault.print());
}

/// Prints the pending reports of drivers that are not to be restarted first.
pub fn print_due() {
    let due: Vec<Arc<Fault>> = {
        let mut pending = PENDING.lock();
        let due = pending.iter().filter(|(_, restart)| !restart).map(|(fault, _)| fault.clone()).collect();
        pending.retain(|(_, restart)| *restart);
        due
    };
    due.iter().for_each(|fault| fault.print());
}

/// Forgets the last report of a driver that is loaded anew, so that its next report is printed in
/// full.
pub fn forget_last(driver: &str) {
    LAST.lock().retain(|(name, ..)| name != driver);
}

/// Counts the faults that a driver has had in a row with these words, including this one.
fn in_a_row(driver: &str, words: &str) -> u32 {
    let mut last = LAST.lock();
    let before = last.iter().position(|(name, ..)| name == driver).and_then(|at| last.remove(at));
    let count = before.filter(|(_, before, _)| before == words).map_or(1, |(.., count)| count.saturating_add(1));
    if last.len() == LAST_KEPT {
        last.pop_front();
    }
    last.push_back((driver.to_string(), words.to_string(), count));
    count
}

/// Discards the pending reports, of drivers that were to be restarted first.
pub fn discard_pending() {
    PENDING.lock().clear();
}

/// Returns the faults that are kept, each with its number since boot, counted from 1.
pub fn history() -> Vec<(usize, Arc<Fault>)> {
    let history = HISTORY.lock();
    let first = history.1 - history.0.len() + 1;
    (first..).zip(history.0.iter().cloned()).collect()
}

/// Returns the number of faults since boot.
pub fn count() -> usize {
    HISTORY.lock().1
}

/// Returns the first fault of `driver` after the first `before` faults of all drivers, if it is
/// still kept.
pub fn since(before: usize, driver: &str) -> Option<Arc<Fault>> {
    history().into_iter().find(|(number, fault)| *number > before && fault.driver == driver).map(|(_, fault)| fault)
}

/// The record of a fault, for which a driver was ended.
#[derive(Debug)]
pub struct Fault {
    /// The driver's name.
    pub driver: String,
    /// The time of the fault, in nanoseconds since boot.
    pub at_ns: u64,
    /// The time of the fault, as a reading of the TSC.
    pub at_tsc: u64,
    /// The kind of the fault, in one word: see [`ringfence_core::fault::kind`].
    pub kind: &'static str,
    /// Whether the driver was ended in or after a poll, in which no person had asked it for
    /// anything.
    by_itself: bool,
    /// The registers, if a trap ended the driver.
    pub trap: Option<TrapFrame>,
    /// The material for the report, until the report's words are first needed.
    scene: Mutex<Option<Scene>>,
    words: Once<Words>,
    /// The driver's registers and a copy of its memory, while they are kept.
    remains: Mutex<Option<Remains>>,
    /// The driver's last service calls.
    calls: CallLog,
    /// The kernel's reaction to the fault, in words.
    done: Mutex<String>,
}

/// The number of calls that a report shows; [`Fault::in_full`] has all kept calls.
const CALLS_SHOWN: usize = 8;

impl Fault {
    /// Records a fault of `domain` in the gate call that is under way.
    pub fn at_gate(domain: &Domain, cause: Cause) -> Fault {
        let site = match domain.ring() {
            Ring::Sandboxed => hw::arch::caller().map_or(Site::Nowhere, Site::Gate),
            Ring::Trusted => Site::Nowhere,
        };
        Fault::new(domain, cause, site)
    }

    /// Records a fault of `domain`.
    pub fn new(domain: &Domain, cause: Cause, site: Site) -> Fault {
        let (at_ns, at_tsc) = (time::uptime_ns(), time::tsc());
        let kind = kind(cause, site.exception());
        trust::record_fault(domain, cause, kind);
        // Trace the call in which the driver was ended, if it was in a call.
        if let Site::Gate(_) = site {
            trace::note_call(domain);
        }
        trace::note(domain, || What::Ended(kind, cause));
        let done = match (domain.life.policy(), domain.upcall) {
            (_, INIT) if domain.is_in_upcall() => "it is not loaded",
            (_, EXIT) if domain.is_in_upcall() => "it is unloaded all the same",
            (Policy::Restart, _) => "it will be restarted",
            (Policy::Stop, _) => "it stays ended: its policy is to stop",
        };
        Fault {
            driver: domain.name.clone(),
            at_ns,
            at_tsc,
            kind,
            by_itself: domain.upcall == POLL && cause != Cause::Killed,
            trap: if let Site::Trap(frame) = site { Some(*frame) } else { None },
            scene: Mutex::new(Some(Scene::new(domain, cause, site))),
            words: Once::new(),
            remains: Mutex::new(Remains::of(domain, cause, site)),
            calls: domain.calls.clone(),
            done: Mutex::new(done.to_string()),
        }
    }

    /// Keeps the report for printing. [`print_due`] prints it, or [`print_pending`] if the driver
    /// is to be restarted first: composing and printing a report takes longer than a restart. Nor
    /// can it be done here, where interrupts may be off.
    pub fn report(self, restart: bool) -> Arc<Fault> {
        let fault = Arc::new(self);
        PENDING.lock().push((fault.clone(), restart));
        let mut history = HISTORY.lock();
        if history.0.len() == KEPT {
            history.0.pop_front();
        }
        history.0.push_back(fault.clone());
        for older in history.0.iter().rev().filter(|fault| fault.remains.lock().is_some()).skip(remains::KEPT) {
            *older.remains.lock() = None;
        }
        history.1 += 1;
        fault
    }

    /// Prints the report. A report that repeats the driver's previous report is cut to one line
    /// with a count.
    fn print(&self) {
        self.tell();
        let Words { headline, details, .. } = self.words();
        // The first detail line gives the place, if there is one. The other details differ each
        // time.
        let place = details.lines().next().filter(|line| line.starts_with("    at ")).unwrap_or("");
        let done = self.done.lock().clone();
        let text = match in_a_row(&self.driver, &format!("{headline} {place}")) {
            1 => format!("fault: {}", self.text(CALLS_SHOWN)),
            count => format!("fault: {headline}, as before: {count} in a row; {done}"),
        };
        console::report(&self.driver, self.by_itself, text);
    }

    /// Sends the fault to programs.
    fn tell(&self) {
        let Some(facts) = &self.words().facts else { return };
        let mut fault = facts.clone();
        let count = self.calls.iter().count();
        fault.kind = self.kind.into();
        fault.calls = self.calls.iter().skip(count.saturating_sub(CALLS_SHOWN)).map(|call| call.event()).collect();
        fault.then = self.done.lock().clone().into();
        link::tell(&Event::Fault(fault));
    }

    /// Returns the core file of the driver, if its remains are kept and there is room for the file.
    pub fn core(&self) -> Option<Vec<u8>> {
        self.remains.lock().as_ref().and_then(Remains::core)
    }

    /// Returns the report with all calls that are kept.
    pub fn in_full(&self) -> String {
        self.text(CallLog::LEN)
    }

    /// Returns the first line of the report: driver, fault, upcall.
    pub fn headline(&self) -> &str {
        &self.words().headline
    }

    fn words(&self) -> &Words {
        self.words.call_once(|| self.scene.lock().take().as_ref().map(Words::new).unwrap_or_default())
    }

    /// Notes the kernel's reaction to the fault.
    pub fn set_done(&self, done: String) {
        *self.done.lock() = done;
    }

    fn text(&self, calls: usize) -> String {
        let Words { headline, details, .. } = self.words();
        format!("{headline}\n{details}{}\n    then: {}", Last(&self.calls, calls), self.done.lock())
    }
}
