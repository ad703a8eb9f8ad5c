//! Misbehaves on command: `tell rogue VERB [NUMBER]`. Each verb does one thing that no driver may
//! do, as directly as the machine allows. The kernel must stop it. `tell rogue list` logs the
//! verbs.
//!
//! Only this driver and the other rogues have unsafe code of their own.
#![no_std]

extern crate alloc;

mod attacks;
mod instructions;

use ringfence_sdk::service::raw;
use ringfence_sdk::{Driver, Manifest, Refusal, Result, driver};

driver!(Rogue, Manifest::new("rogue", env!("CARGO_PKG_VERSION")).heap_kib(256).stack_kib(16).upcall_ms(100));

struct Rogue;

/// For tests, which change the module's file: `init` fails if the time since boot exceeds the
/// second number, in nanoseconds.
#[used]
static LATEST_INIT: [u64; 2] = [u64::from_le_bytes(*b"init-by:"), u64::MAX];

impl Driver for Rogue {
    fn init() -> Result<Rogue> {
        // SAFETY: reads the value in the file, which the compiler does not know; the service takes
        // no arguments.
        let ([_, latest], now) = unsafe { ((&raw const LATEST_INIT).read_volatile(), raw::rf_time_ns() as u64) };
        if now > latest { Err(Refusal::Busy) } else { Ok(Rogue) }
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let (verb, argument) = text.split_once(' ').unwrap_or((text, "0"));
        let argument = ringfence_sdk::number(argument)?;
        let attack = attacks::ATTACKS
            .iter()
            .chain(instructions::INSTRUCTIONS)
            .find(|(name, _)| *name == verb)
            .ok_or(Refusal::NotFound)?;
        Ok((attack.1)(argument))
    }
}
