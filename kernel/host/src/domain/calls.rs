//! The last service calls of a driver: a record of its actions before it failed.

use core::fmt;
use ringfence_abi::service::{Kind, REGISTERS, Refusal, SERVICES};
use ringfence_link::event;

/// Returns the symbol of a service.
pub fn service_name(service: usize) -> &'static str {
    SERVICES.get(service).map_or("?", |service| service.symbol)
}

/// A call of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Call {
    /// The service's number.
    pub service: usize,
    /// The registers that the service takes; the others are 0.
    pub arguments: [u64; REGISTERS],
    /// The result of the call, or [`Call::RUNS`].
    result: i64,
}

/// A place for a call in the log. Registers that the service does not take keep the values of
/// earlier calls. The size is a power of two, so that indexing is a shift: this is on the path of
/// every gate.
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
    /// Stands for the result while the call is under way, and if the call ended the driver. No
    /// service returns this value.
    const RUNS: i64 = i64::MIN;

    /// Returns the result of the call, or `None` if the call is under way or ended the driver.
    pub fn result(&self) -> Option<i64> {
        (self.result != Self::RUNS).then_some(self.result)
    }

    /// Returns the call in the form that programs receive.
    pub fn event(&self) -> event::Call<'static> {
        let taken = SERVICES.get(self.service).map_or(0, |service| service.registers().count());
        let arguments = self.arguments.iter().copied().take(taken).collect();
        event::Call { service: service_name(self.service).into(), arguments, result: self.result() }
    }

    /// Returns whether this is a call of `rf_offer`.
    pub fn offers(&self) -> bool {
        service_name(self.service) == "rf_offer"
    }
}

/// The last calls of services, oldest first.
#[derive(Debug, Clone, Default)]
pub struct CallLog {
    /// Call number `n` is at index `n` modulo [`CallLog::LEN`]. Places that were never used have no
    /// meaning.
    calls: [Kept; CallLog::LEN],
    made: usize,
}

impl CallLog {
    /// The number of calls that are kept.
    pub const LEN: usize = 32;

    /// Notes the call of a service that takes `TAKEN` registers.
    #[inline(always)]
    pub fn begin<const TAKEN: usize>(&mut self, service: usize, registers: [u64; REGISTERS]) {
        self.made = self.made.wrapping_add(1);
        let Kept(call) = &mut self.calls[self.made % Self::LEN];
        call.service = service;
        call.arguments.iter_mut().zip(registers).take(TAKEN).for_each(|(to, from)| *to = from);
        call.result = Call::RUNS;
    }

    /// Notes the result of the last call.
    pub fn end(&mut self, result: i64) {
        self.calls[self.made % Self::LEN].0.result = result;
    }

    /// Returns how many calls there were.
    pub fn count(&self) -> usize {
        self.made
    }

    /// Returns the last call.
    pub fn last(&self) -> Option<Call> {
        (self.made > 0).then(|| self.calls[self.made % Self::LEN].call())
    }

    /// Returns all calls that are kept, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Call> {
        let kept = self.made.min(Self::LEN);
        (self.made - kept + 1..=self.made).map(|number| self.calls[number % Self::LEN].call())
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        WithText(self, None).fmt(f)
    }
}

/// A call, for a person. If its text is known, the text stands in the place of its address and
/// length.
pub struct WithText<'a>(pub &'a Call, pub Option<&'a str>);

impl fmt::Display for WithText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WithText(call, text) = self;
        write!(f, "{}(", service_name(call.service))?;
        let mut values = call.arguments.iter();
        let mut separator = "";
        for argument in SERVICES.get(call.service).map_or(&[][..], |service| service.arguments) {
            let (first, second) = argument.kind.of_registers();
            let registers = values.by_ref().take(argument.kind.registers());
            match (argument.kind, text) {
                (Kind::Text, Some(text)) => {
                    registers.for_each(drop);
                    write!(f, "{separator}{text:?}")?;
                }
                _ => {
                    for (kind, value) in core::iter::once(first).chain(second).zip(registers) {
                        f.write_str(core::mem::replace(&mut separator, ", "))?;
                        kind.write(f, *value)?;
                    }
                }
            }
            separator = ", ";
        }
        match call.result() {
            None => write!(f, ") did not return"),
            Some(result) => match Refusal::from_result(result) {
                Some(refusal) => write!(f, ") = {refusal}"),
                None => write!(f, ") = {result:#x}"),
            },
        }
    }
}

/// The last calls of a log, at most as many as the number says, oldest first, in words for a
/// person.
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
