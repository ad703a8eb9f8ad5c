//! A driver that does nothing, to measure the cost of a crossing apart from that of a device.
//!
//! `tell null calls N` calls the empty service N times and answers the number of TSC ticks taken.
#![no_std]
#![forbid(unsafe_code)]

use ringfence_sdk::{Driver, Manifest, Refusal, Result, driver, service};

driver!(Null, Manifest::new("null", env!("CARGO_PKG_VERSION")).upcall_ms(1000));

struct Null;

impl Driver for Null {
    fn init() -> Result<Null> {
        Ok(Null)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let (verb, count) = text.split_once(' ').ok_or(Refusal::Invalid)?;
        let count: u32 = count.parse().map_err(|_| Refusal::Invalid)?;
        let start = service::tsc();
        match verb {
            "calls" => (0..count).for_each(|_| service::null()),
            "log" => (0..count).for_each(|number| log::info!("line {number}")),
            _ => return Err(Refusal::NotFound),
        }
        Ok(service::tsc() - start)
    }
}
