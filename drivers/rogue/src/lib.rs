//! Misbehaves on command: `tell rogue VERB [NUMBER]`. Each verb does one thing that no driver may do, as directly as the
//! machine allows; what stops it is the kernel's affair. `tell rogue list` logs the verbs.
//!
//! Beside `rogue-nic` and `rogue-scsi`, this is the one driver with unsafe code of its own.
#![no_std]

mod attacks;
mod instructions;

use ringfence_sdk::{Driver, Manifest, Refusal, Result, driver};

driver!(Rogue, Manifest::new("rogue", env!("CARGO_PKG_VERSION")).heap_kib(256).stack_kib(16).upcall_ms(100));

struct Rogue;

impl Driver for Rogue {
    fn init() -> Result<Rogue> {
        Ok(Rogue)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let (verb, argument) = text.split_once(' ').unwrap_or((text, "0"));
        let argument = match argument.trim().strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => argument.trim().parse(),
        };
        let argument = argument.map_err(|_| Refusal::Invalid)?;
        let attack = attacks::ATTACKS
            .iter()
            .chain(instructions::INSTRUCTIONS)
            .find(|(name, _)| *name == verb)
            .ok_or(Refusal::NotFound)?;
        Ok((attack.1)(argument))
    }
}
