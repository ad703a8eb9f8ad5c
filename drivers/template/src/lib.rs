//! The smallest driver: it logs. `docs/writing-a-driver.md` leads on from here.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use ringfence_sdk::{Driver, Manifest, Result, driver};

driver!(Template, Manifest::new("template", env!("CARGO_PKG_VERSION")));

struct Template;

impl Driver for Template {
    fn init() -> Result<Template> {
        log::info!("hello from a driver that does not know its ring");
        Ok(Template)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        log::info!("was told '{text}'");
        Ok(text.len() as u64)
    }

    fn exit(&mut self) {
        log::info!("good-bye");
    }
}
