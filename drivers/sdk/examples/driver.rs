//! A minimal driver with a state: it adds up the numbers that it is told.
#![no_std]
#![forbid(unsafe_code)]

use ringfence_sdk::{Driver, Manifest, Result, driver, number};

driver!(Counter, Manifest::new("counter", "0.1.0").heap_kib(16));

struct Counter {
    sum: u64,
}

impl Driver for Counter {
    fn init() -> Result<Counter> {
        log::info!("counts what it is told");
        Ok(Counter { sum: 0 })
    }

    /// Adds a number to the sum and answers the sum, as for `tell counter 5`.
    fn command(&mut self, text: &str) -> Result<u64> {
        self.sum = self.sum.saturating_add(number(text)?);
        Ok(self.sum)
    }
}
