//! Why a driver was ended, in words for a person.

use super::Domain;
use super::memory::describe;
use super::upcall::end_current;
use crate::arch::time;
use crate::arch::traps::{TrapFrame, exception_name};
use crate::symbols;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::fmt::Write;
use ringfence_abi::layout::IMAGE;
use ringfence_abi::service::{Refusal, SERVICES};
use ringfence_abi::upcall;
use ringfence_core::descriptor::{SelectorName, describe_selector};
use spin::Mutex;

/// What a driver did that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The CPU refused an instruction; `address` is the one that a page fault names.
    Exception {
        /// CR2, for a page fault.
        address: Option<u64>,
    },
    /// An upcall took longer than its budget.
    Overrun,
    /// A person asked for it.
    Killed,
    /// The driver gave up: it has logged why.
    Panic,
    /// It passed a pointer that is not its own memory.
    BadPointer {
        /// The pointer.
        address: u64,
        /// The length that went with it, in bytes.
        len_bytes: u64,
    },
    /// Its position in a queue cannot be true.
    QueueLie {
        /// Which queue.
        queue: &'static str,
        /// What it claims.
        claimed: u64,
        /// What the kernel has counted.
        counted: u64,
    },
    /// It put something into a queue that does not exist or is not its to give.
    QueueEntry {
        /// Which queue.
        queue: &'static str,
        /// The entry.
        entry: u64,
    },
}

/// Faults that are kept.
const KEPT: usize = 32;

/// The last faults of all drivers, oldest first, and how many there were in all.
static HISTORY: Mutex<(VecDeque<Arc<Fault>>, usize)> = Mutex::new((VecDeque::new(), 0));

/// The faults that are kept, each with its number, which counts from 1 since boot.
pub fn history() -> Vec<(usize, Arc<Fault>)> {
    let history = HISTORY.lock();
    let first = history.1 - history.0.len() + 1;
    (first..).zip(history.0.iter().cloned()).collect()
}

/// A record of why a driver was ended.
#[derive(Debug)]
pub struct Fault {
    /// When, in nanoseconds since boot.
    pub at_ns: u64,
    /// The first line of the report: driver, what, during what.
    pub headline: String,
    /// The rest: where, registers and calls.
    pub details: String,
}

impl Fault {
    /// Records what `domain` did; `frame` has its registers if it ran.
    pub fn new(domain: &Domain, cause: Cause, frame: Option<&TrapFrame>) -> Fault {
        // Writing to a String does not fail.
        let (mut headline, mut details) = (String::new(), String::new());
        let _ = write!(headline, "{}: ", domain.name);
        let _ = write_cause(&mut headline, domain, cause, frame);
        let _ = write!(headline, ", in {}", upcall::name(domain.upcall));
        if let Some(frame) = frame {
            let _ = writeln!(details, "    at {}", Place { domain, rip: frame.rip });
            let _ = writeln!(details, "    in ring {}, slot {}", frame.cs & 3, domain.space.slot());
            let _ = writeln!(details, "{frame}");
        }
        let _ = write!(details, "{}", domain.calls);
        Fault { at_ns: time::uptime_ns(), headline, details }
    }

    /// Prints the report, and keeps it.
    pub fn report(self) -> Arc<Fault> {
        log::error!(target: crate::console::REPORT, "{self}");
        let fault = Arc::new(self);
        let mut history = HISTORY.lock();
        if history.0.len() == KEPT {
            history.0.pop_front();
        }
        history.0.push_back(fault.clone());
        history.1 += 1;
        fault
    }

    /// Ends the driver whose upcall is under way because of a trap.
    pub fn end_driver(cause: Cause, frame: TrapFrame) -> ! {
        end_current(|domain| Fault::new(domain, cause, Some(&frame)))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fault: {}\n{}", self.headline, self.details.trim_end())
    }
}

fn write_cause(out: &mut String, domain: &Domain, cause: Cause, frame: Option<&TrapFrame>) -> fmt::Result {
    match (cause, frame) {
        (Cause::Exception { address: Some(address) }, Some(frame)) => {
            // Page-fault error code (SDM vol. 3A, 4.7): bit 1 write, bit 4 instruction fetch.
            let verb = match (frame.error_code & 1 << 1 != 0, frame.error_code & 1 << 4 != 0) {
                (_, true) => "executing",
                (true, _) => "writing",
                _ => "reading",
            };
            write!(out, "#PF {verb} {address:#x} ({})", describe(domain, address))
        }
        (Cause::Exception { .. }, Some(frame)) => {
            write!(out, "{}", exception_name(frame.vector))?;
            const WITH_SELECTOR: [u64; 4] = [10, 11, 12, 13];
            if !WITH_SELECTOR.contains(&frame.vector) || frame.error_code == 0 {
                return Ok(());
            }
            match describe_selector(frame.error_code) {
                SelectorName::Gate(number) => write!(out, " on the gate of {}", symbol(number)),
                SelectorName::ReturnGate => write!(out, " on the return gate"),
                SelectorName::Interrupt(vector) => {
                    // The instruction itself is the better witness: QEMU shifts the vector by 4 in place of 3.
                    let mut code = [0; 2];
                    let vector = match (domain.space.read(frame.rip, &mut code), code) {
                        (true, [0xcd, vector]) => vector,
                        (true, [0xcc, _]) => 3,
                        _ => vector,
                    };
                    write!(out, " on int {vector:#x}")
                }
                SelectorName::Global(entry) => write!(out, " on entry {entry} of the GDT"),
                SelectorName::Local(entry) => write!(out, " on entry {entry} of the LDT"),
            }
        }
        (Cause::Exception { .. }, None) => write!(out, "an exception"),
        (Cause::Overrun, _) => write!(out, "took longer than {} ms", domain.manifest.upcall_ms),
        (Cause::Killed, _) => write!(out, "killed"),
        (Cause::Panic, _) => write!(out, "gave up"),
        (Cause::BadPointer { address, len_bytes }, _) => {
            let last = domain.calls.last().map_or("?", |call| symbol(call.service));
            write!(out, "bad pointer to {last}: {len_bytes:#x} bytes at {address:#x} ({})", describe(domain, address))
        }
        (Cause::QueueLie { queue, claimed, counted }, _) => {
            write!(out, "lied about the {queue} queue: position {claimed:#x}, but {counted:#x} is counted")
        }
        (Cause::QueueEntry { queue, entry }, _) => write!(out, "bad entry {entry:#x} in the {queue} queue"),
    }
}

fn symbol(service: usize) -> &'static str {
    SERVICES.get(service).map_or("?", |service| service.symbol)
}

/// Where in the driver an address lies: `function+0x12`, or what else it is.
struct Place<'a> {
    domain: &'a Domain,
    rip: u64,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offset = self.rip.wrapping_sub(self.domain.base() + IMAGE);
        if offset < self.domain.image_bytes
            && let Some((name, into)) = ringfence_core::module::symbol_at(self.domain.file.bytes, offset)
        {
            return write!(f, "{}+{into:#x}", symbols::Demangled(name));
        }
        write!(f, "{:#x} ({})", self.rip, describe(self.domain, self.rip))
    }
}

/// A call of a service.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The service's number.
    pub service: usize,
    /// Its arguments; those it does not take are 0.
    pub arguments: [u64; 3],
    /// What it returned; `None` while it runs, and if it ended the driver.
    pub result: Option<i64>,
}

/// The last calls of services, oldest first.
#[derive(Debug, Default)]
pub struct CallLog {
    calls: [Option<Call>; CallLog::LEN],
    next: usize,
}

impl CallLog {
    const LEN: usize = 32;

    /// Notes that a service is called.
    pub fn begin(&mut self, service: usize, arguments: [u64; 3]) {
        self.next = (self.next + 1) % Self::LEN;
        self.calls[self.next] = Some(Call { service, arguments, result: None });
    }

    /// Notes what it returned.
    pub fn end(&mut self, result: i64) {
        if let Some(call) = &mut self.calls[self.next] {
            call.result = Some(result);
        }
    }

    /// The last call.
    pub fn last(&self) -> Option<Call> {
        self.calls[self.next]
    }

    /// All calls that are kept, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Call> {
        (1..=Self::LEN).filter_map(|back| self.calls[(self.next + back) % Self::LEN].as_ref())
    }
}

impl fmt::Display for CallLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let count = self.iter().count();
        write!(f, "    last calls:")?;
        if count == 0 {
            write!(f, " none")?;
        }
        for call in self.iter().skip(count.saturating_sub(SHOWN)) {
            write!(f, "\n        {}(", symbol(call.service))?;
            let taken = SERVICES.get(call.service).map_or(0, |service| service.arguments.len());
            for (index, argument) in call.arguments.iter().take(taken).enumerate() {
                write!(f, "{}{argument:#x}", if index > 0 { ", " } else { "" })?;
            }
            match call.result {
                None => write!(f, ") did not return")?,
                Some(result) => match Refusal::from_result(result) {
                    Some(refusal) => write!(f, ") = {refusal}")?,
                    None => write!(f, ") = {result:#x}")?,
                },
            }
        }
        Ok(())
    }
}
