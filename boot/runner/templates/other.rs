//! NAME: a driver without a device.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use ringfence_sdk::{Driver, Manifest, Result, driver};

driver!(TYPE, Manifest::new("NAME", env!("CARGO_PKG_VERSION")).restart()/*PCI*/);

struct TYPE;

impl Driver for TYPE {
    fn init() -> Result<TYPE> {
        log::info!("here");
        Ok(TYPE)
    }

    /// Carries out `tell NAME TEXT`.
    fn command(&mut self, text: &str) -> Result<u64> {
        log::info!("was told '{text}'");
        Ok(text.len() as u64)
    }
}
