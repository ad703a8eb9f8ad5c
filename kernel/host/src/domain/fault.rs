//! Why drivers were ended: the causes, and the record of each. [`super::report`] has the words.

use super::calls::{CallLog, Last};
use super::cause::{Cause, Site};
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

/// Faults that are kept.
const KEPT: usize = 32;

/// The last faults of all drivers, oldest first, and how many there were in all.
static HISTORY: Mutex<(VecDeque<Arc<Fault>>, usize)> = Mutex::new((VecDeque::new(), 0));

/// Faults whose report is still to be printed, and whether the driver is to be restarted before.
static PENDING: Mutex<Vec<(Arc<Fault>, bool)>> = Mutex::new(Vec::new());

/// The last report of each of a few drivers, and how often it came in a row.
static LAST: Mutex<VecDeque<(String, String, u32)>> = Mutex::new(VecDeque::new());
/// Drivers whose last report is kept.
const LAST_KEPT: usize = 16;

/// Prints all reports that are still to be printed.
pub fn print_pending() {
    let pending = core::mem::take(&mut *PENDING.lock());
    pending.iter().for_each(|(fault, _)| fault.print());
}

/// Prints the reports of drivers that are not to be restarted first.
pub fn print_due() {
    let due: Vec<Arc<Fault>> = {
        let mut pending = PENDING.lock();
        let due = pending.iter().filter(|(_, restart)| !restart).map(|(fault, _)| fault.clone()).collect();
        pending.retain(|(_, restart)| *restart);
        due
    };
    due.iter().for_each(|fault| fault.print());
}

/// A driver of this name is loaded anew: its next report is printed in full.
pub fn forget_last(driver: &str) {
    LAST.lock().retain(|(name, ..)| name != driver);
}

/// How often in a row a driver has had a fault of these words, this one included.
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

/// Forgets the reports of drivers that were to be restarted first.
pub fn discard_pending() {
    PENDING.lock().clear();
}

/// The faults that are kept, each with its number, which counts from 1 since boot.
pub fn history() -> Vec<(usize, Arc<Fault>)> {
    let history = HISTORY.lock();
    let first = history.1 - history.0.len() + 1;
    (first..).zip(history.0.iter().cloned()).collect()
}

/// How many faults there were since boot.
pub fn count() -> usize {
    HISTORY.lock().1
}

/// The first fault of `driver` behind the first `before` faults of all, if there was one and it is
/// kept.
pub fn since(before: usize, driver: &str) -> Option<Arc<Fault>> {
    history().into_iter().find(|(number, fault)| *number > before && fault.driver == driver).map(|(_, fault)| fault)
}

/// A record of why a driver was ended.
#[derive(Debug)]
pub struct Fault {
    /// Whose it was.
    pub driver: String,
    /// When, in nanoseconds since boot.
    pub at_ns: u64,
    /// When, as a reading of the TSC.
    pub at_tsc: u64,
    /// What kind of fault it was, in one word: see [`ringfence_core::fault::kind`].
    pub kind: &'static str,
    /// Whether nobody had asked it for anything when it was ended: it was polled.
    by_itself: bool,
    /// The registers, if it was ended by a trap.
    pub trap: Option<TrapFrame>,
    /// What there is to say, until it is said for the first time.
    scene: Mutex<Option<Scene>>,
    words: Once<Words>,
    /// Its last calls of services.
    calls: CallLog,
    /// What was done about it.
    done: Mutex<String>,
}

/// Calls that a report shows; [`Fault::in_full`] has all that are kept.
const CALLS_SHOWN: usize = 8;

impl Fault {
    /// Records what `domain` did in the gate call that is under way.
    pub fn at_gate(domain: &Domain, cause: Cause) -> Fault {
        let site = match domain.ring() {
            Ring::Sandboxed => hw::arch::caller().map_or(Site::Nowhere, Site::Gate),
            Ring::Trusted => Site::Nowhere,
        };
        Fault::new(domain, cause, site)
    }

    /// Records what `domain` did.
    pub fn new(domain: &Domain, cause: Cause, site: Site) -> Fault {
        let (at_ns, at_tsc) = (time::uptime_ns(), time::tsc());
        trust::record_fault(domain, cause);
        let kind = kind(cause, site.exception());
        // The call that it was ended in, if it was in one.
        if let Site::Gate(_) = site {
            trace::note_call(domain);
        }
        trace::note(domain, || What::Ended(kind));
        let done = match (domain.life.policy(), domain.upcall) {
            (_, INIT) if domain.is_running() => "it is not loaded",
            (_, EXIT) if domain.is_running() => "it is unloaded all the same",
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
            calls: domain.calls.clone(),
            done: Mutex::new(done.to_string()),
        }
    }

    /// Keeps the report. It is printed by [`print_due`]; or, if the driver is to be restarted, by
    /// [`print_pending`]: finding the words and printing them takes longer than a restart, and may
    /// not be done where interrupts are off.
    pub fn report(self, restart: bool) -> Arc<Fault> {
        let fault = Arc::new(self);
        PENDING.lock().push((fault.clone(), restart));
        let mut history = HISTORY.lock();
        if history.0.len() == KEPT {
            history.0.pop_front();
        }
        history.0.push_back(fault.clone());
        history.1 += 1;
        fault
    }

    /// One that is like the one before it is a line, with how many there were.
    fn print(&self) {
        self.tell();
        let Words { headline, details, .. } = self.words();
        // Where it was is the first of the details, if it was anywhere; what else is there is never
        // the same.
        let place = details.lines().next().filter(|line| line.starts_with("    at ")).unwrap_or("");
        let done = self.done.lock().clone();
        let text = match in_a_row(&self.driver, &format!("{headline} {place}")) {
            1 => format!("fault: {}", self.text(CALLS_SHOWN)),
            count => format!("fault: {headline}, as before: {count} in a row; {done}"),
        };
        console::report(&self.driver, self.by_itself, text);
    }

    /// Tells programs of it.
    fn tell(&self) {
        let Some(facts) = &self.words().facts else { return };
        let mut fault = facts.clone();
        let count = self.calls.iter().count();
        fault.kind = self.kind.into();
        fault.calls = self.calls.iter().skip(count.saturating_sub(CALLS_SHOWN)).map(|call| call.event()).collect();
        fault.then = self.done.lock().clone().into();
        link::tell(&Event::Fault(fault));
    }

    /// The report with all calls that are kept.
    pub fn in_full(&self) -> String {
        self.text(CallLog::LEN)
    }

    /// The first line of the report: driver, what, during what.
    pub fn headline(&self) -> &str {
        &self.words().headline
    }

    fn words(&self) -> &Words {
        self.words.call_once(|| self.scene.lock().take().as_ref().map(Words::new).unwrap_or_default())
    }

    /// Notes what was done about it.
    pub fn set_done(&self, done: String) {
        *self.done.lock() = done;
    }

    fn text(&self, calls: usize) -> String {
        let Words { headline, details, .. } = self.words();
        format!("{headline}\n{details}{}\n    then: {}", Last(&self.calls, calls), self.done.lock())
    }
}
