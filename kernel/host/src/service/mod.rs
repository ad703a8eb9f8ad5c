//! The services that a driver may call. Each group of services has a file; each service has a gate
//! and a function.
//!
//! A service is a safe function from the calling domain and the arguments to an answer. A request
//! that cannot be granted is refused, and the driver goes on. A request that no correct driver
//! makes is a fault, and ends the driver. **No argument of a driver can panic the kernel.**
//! Interrupts are off while a sandboxed driver's service runs, so services are short and bounded.

use crate::domain::Domain;
use crate::domain::cause::Cause;
use crate::domain::sleep::sleep_current;
use crate::domain::trace;
use crate::domain::upcall::{end_in_call, with_current};
use arguments::Registers;
use core::hint::black_box;
use hw::arch::handlers::Services;
use ringfence_abi::for_each_service;
use ringfence_abi::service::{REGISTERS, Refusal};

mod arguments;
mod bar;
mod command;
mod dma;
mod heap;
mod irq;
mod log;
mod null;
mod offer;
mod panic;
mod pci;
mod time;
mod used;

use bar::{rf_bar_len, rf_bar_map};
use command::{rf_answer, rf_command};
use dma::{rf_dma_address, rf_dma_alloc, rf_dma_free};
use heap::rf_heap_grow;
use irq::{rf_irq_ack, rf_irq_enable, rf_irq_vectors};
use log::rf_log;
use null::rf_null;
use offer::rf_offer;
use panic::rf_panic;
use pci::{rf_pci_read, rf_pci_write};
use time::{rf_sleep, rf_time_ns, rf_timer};
use used::{rf_use, rf_wait};

/// Services for `bench`, called with a driver whose budgets are changed for the measurement.
pub mod measured {
    use crate::domain::Domain;

    /// Allocates DMA memory and gives it back.
    pub fn dma(domain: &mut Domain, len_bytes: u64) {
        domain.manifest.dma_bytes = u32::try_from(len_bytes).unwrap_or(u32::MAX);
        if let Ok(start) = super::rf_dma_alloc(domain, len_bytes) {
            // The region was allocated just above, so this finds it.
            let _ = super::rf_dma_free(domain, start);
        }
    }

    /// Grows the heap.
    pub fn heap(domain: &mut Domain, len_bytes: u64) {
        domain.manifest.heap_bytes = u32::try_from(len_bytes).unwrap_or(u32::MAX);
        // The result does not matter for the measurement.
        let _ = super::rf_heap_grow(domain, len_bytes);
    }
}

/// The answer of a service: a value below 2^63, or the reason why there is none.
type Answer = Result<u64, No>;

/// The reason why a service has no value.
enum No {
    /// The request is refused; the driver goes on.
    Refused(Refusal),
    /// The driver is ended.
    Fault(Cause),
    /// The driver sleeps. The call returns 0 when the driver wakes.
    Sleeps,
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> No {
        No::Refused(refusal)
    }
}

impl From<Cause> for No {
    fn from(cause: Cause) -> No {
        No::Fault(cause)
    }
}

impl From<hw::memory::frames::OutOfMemory> for No {
    fn from(_: hw::memory::frames::OutOfMemory) -> No {
        No::Refused(Refusal::NoMemory)
    }
}

/// Runs a service that takes `TAKEN` registers, for the domain whose upcall is under way. Returns
/// the value for the driver's RAX.
#[inline(always)]
fn serve<const TAKEN: usize>(
    number: usize,
    registers: [u64; REGISTERS],
    service: impl Fn(&mut Domain, &mut Registers) -> Answer,
) -> i64 {
    let done = with_current(|domain| match domain.trace {
        None => Some(carry_out::<TAKEN>(domain, number, registers, &service)),
        Some(_) => None,
    });
    match done {
        Some(Some(done)) => finish(done),
        Some(None) => {
            let [first, second, third] = registers;
            // This is no call in tail position, so that it has a stack frame of its own, and the
            // path above needs none.
            black_box(serve_traced::<TAKEN>(number, first, second, third, service))
        }
        None => Refusal::Denied.to_result(),
    }
}

/// Does the same for a driver that is traced. This is a separate function, and its arguments are no
/// array, so that the path of an untraced call saves nothing for it.
#[cold]
#[inline(never)]
fn serve_traced<const TAKEN: usize>(
    number: usize,
    first: u64,
    second: u64,
    third: u64,
    service: impl Fn(&mut Domain, &mut Registers) -> Answer,
) -> i64 {
    let registers = [first, second, third];
    let done = with_current(|domain| {
        trace::begin_call(domain);
        let done = carry_out::<TAKEN>(domain, number, registers, &service);
        if done.is_ok() {
            trace::note_call(domain);
        }
        done
    });
    done.map_or(Refusal::Denied.to_result(), finish)
}

/// Runs a service and notes its result. The error is the cause that ends the driver, or `None` if
/// the driver sleeps.
#[inline(always)]
fn carry_out<const TAKEN: usize>(
    domain: &mut Domain,
    number: usize,
    registers: [u64; REGISTERS],
    service: impl Fn(&mut Domain, &mut Registers) -> Answer,
) -> Result<i64, Option<Cause>> {
    domain.calls.begin::<TAKEN>(number, registers);
    let lift = domain.space.lift();
    let result = match service(domain, &mut Registers(registers, 0, lift)) {
        Ok(value) => value as i64,
        Err(No::Refused(refusal)) => refusal.to_result(),
        Err(No::Fault(cause)) => return Err(Some(cause)),
        Err(No::Sleeps) => return Err(None),
    };
    domain.calls.end(result);
    Ok(result)
}

/// Returns to the driver, unless the service has ended it or put it to sleep. All values of the
/// service are dropped by now.
#[inline(always)]
fn finish(done: Result<i64, Option<Cause>>) -> i64 {
    match done {
        Ok(result) => result,
        Err(Some(cause)) => end_in_call(cause),
        // A sandboxed driver goes on without returning here: only its registers are restored.
        Err(None) => {
            sleep_current();
            0
        }
    }
}

macro_rules! define_entries {
    ($($number:literal $symbol:ident($($argument:ident: $kind:ident),*) $what:literal => $value:literal, $refuses:literal;)*) => {
        /// The entry points that gates call in ring 0, and that trusted drivers call directly. Each
        /// converts the ABI's registers to the arguments of a Rust function.
        mod entry {
            use super::arguments::{self, Argument as _};
            use ringfence_abi::service::Kind;

            $(
                pub extern "C" fn $symbol(first: u64, second: u64, third: u64) -> i64 {
                    const TAKEN: usize = 0 $(+ Kind::$kind.registers())*;
                    super::serve::<TAKEN>($number, [first, second, third], |domain, _registers| {
                        $(let $argument = arguments::$kind::take(_registers)?;)*
                        super::$symbol(domain, $($argument),*)
                    })
                }
            )*
        }

        /// The functions behind the gates, by service number.
        pub static ENTRIES: Services = [$(entry::$symbol),*];
    };
}
for_each_service!(define_entries);
