//! The calls of services that a driver made last: what it did before it went wrong.

use core::fmt;
use ringfence_abi::service::{REGISTERS, Refusal, SERVICES, Service};
use ringfence_link::event;

/// A service's symbol.
pub fn service_name(service: usize) -> &'static str {
    SERVICES.get(service).map_or("?", |service| service.symbol)
}

/// A call of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Call {
    /// The service's number.
    pub service: usize,
    /// The registers that it takes; the others are 0.
    pub arguments: [u64; REGISTERS],
    /// What it returned, or [`Call::RUNS`].
    result: i64,
}

/// A call's place, in which registers that the service does not take are what was there before. Of
/// a power of two bytes, so that it is found by a shift: that is on the path of every gate.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Kept(Call);

impl Kept {
    fn call(&self) -> Call {
        let mut call = self.0;
        let taken = SERVICES.get(call.service).map_or(0, |service| service.registers().count());
        call.arguments.iter_mut().skip(taken).for_each(|argument| *argument = 0);
        call
    }
}

impl Call {
    /// In place of a result, while it runs, and if it ended the driver. No service returns that.
    const RUNS: i64 = i64::MIN;

    /// What it returned; `None` while it runs, and if it ended the driver.
    pub fn result(&self) -> Option<i64> {
        (self.result != Self::RUNS).then_some(self.result)
    }

    /// The same for programs.
    pub fn event(&self) -> event::Call<'static> {
        let taken = SERVICES.get(self.service).map_or(0, |service| service.registers().count());
        let arguments = self.arguments.iter().copied().take(taken).collect();
        event::Call { service: service_name(self.service).into(), arguments, result: self.result() }
    }

    /// Whether it was to offer something.
    pub fn offers(&self) -> bool {
        service_name(self.service) == "rf_offer"
    }
}

/// The last calls of services, oldest first.
#[derive(Debug, Clone, Default)]
pub struct CallLog {
    /// Each at its number, modulo their number; those that were not made yet mean nothing.
    calls: [Kept; CallLog::LEN],
    made: usize,
}

impl CallLog {
    /// How many are kept.
    pub const LEN: usize = 32;

    /// Notes that a service is called that takes so many registers.
    #[inline(always)]
    pub fn begin<const TAKEN: usize>(&mut self, service: usize, registers: [u64; REGISTERS]) {
        self.made = self.made.wrapping_add(1);
        let Kept(call) = &mut self.calls[self.made % Self::LEN];
        call.service = service;
        call.arguments.iter_mut().zip(registers).take(TAKEN).for_each(|(to, from)| *to = from);
        call.result = Call::RUNS;
    }

    /// Notes what it returned.
    pub fn end(&mut self, result: i64) {
        self.calls[self.made % Self::LEN].0.result = result;
    }

    /// The last call.
    pub fn last(&self) -> Option<Call> {
        (self.made > 0).then(|| self.calls[self.made % Self::LEN].call())
    }

    /// All calls that are kept, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Call> {
        let kept = self.made.min(Self::LEN);
        (self.made - kept + 1..=self.made).map(|number| self.calls[number % Self::LEN].call())
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", service_name(self.service))?;
        let kinds = SERVICES.get(self.service).into_iter().flat_map(Service::registers);
        for (index, (argument, kind)) in self.arguments.iter().zip(kinds).enumerate() {
            f.write_str(if index > 0 { ", " } else { "" })?;
            kind.write(f, *argument)?;
        }
        match self.result() {
            None => write!(f, ") did not return"),
            Some(result) => match Refusal::from_result(result) {
                Some(refusal) => write!(f, ") = {refusal}"),
                None => write!(f, ") = {result:#x}"),
            },
        }
    }
}

/// The last so many calls of a log, oldest first, in words for a person.
pub struct Last<'a>(pub &'a CallLog, pub usize);

impl fmt::Display for Last<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Last(log, shown) = *self;
        let count = log.iter().count();
        write!(f, "    last calls:")?;
        if count == 0 {
            write!(f, " none")?;
        }
        log.iter().skip(count.saturating_sub(shown)).try_for_each(|call| write!(f, "\n        {call}"))
    }
}
