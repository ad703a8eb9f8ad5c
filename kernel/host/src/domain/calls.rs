//! The calls of services that a driver made last: what it did before it went wrong.

use core::fmt;
use ringfence_abi::service::{Refusal, SERVICES};

/// A service's symbol.
pub fn service_name(service: usize) -> &'static str {
    SERVICES.get(service).map_or("?", |service| service.symbol)
}

/// A call of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The service's number.
    pub service: usize,
    /// Its arguments; those it does not take are 0.
    pub arguments: [u64; 3],
    /// What it returned; `None` while it runs, and if it ended the driver.
    pub result: Option<i64>,
}

impl Call {
    /// Whether it was to offer something.
    pub fn offers(&self) -> bool {
        service_name(self.service) == "rf_offer"
    }
}

/// The last calls of services, oldest first.
#[derive(Debug, Clone, Default)]
pub struct CallLog {
    calls: [Option<Call>; CallLog::LEN],
    next: usize,
}

impl CallLog {
    /// How many are kept.
    pub const LEN: usize = 32;

    /// Notes that a service is called.
    pub fn begin(&mut self, service: usize, arguments: [u64; 3]) {
        self.next = self.next.wrapping_add(1) % Self::LEN;
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

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", service_name(self.service))?;
        let taken = SERVICES.get(self.service).map_or(0, |service| service.arguments.len());
        for (index, argument) in self.arguments.iter().take(taken).enumerate() {
            write!(f, "{}{argument:#x}", if index > 0 { ", " } else { "" })?;
        }
        match self.result {
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
