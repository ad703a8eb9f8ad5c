//! A sample of what a driver has besides a device: parameters, a timer, and commands with answers.
//!
//! `insmod watchman period-ms=200 place=harbour` has it look around five times a second, and
//! `tell watchman rounds` asks what it has seen.
#![no_std]
#![forbid(unsafe_code)]

use core::time::Duration;
use ringfence_sdk::{Command, Driver, Events, Manifest, Refusal, Reply, Result, answer, driver, parameters, timer};

driver!(Watchman, Manifest::new("watchman", env!("CARGO_PKG_VERSION")));

parameters! {
    PERIOD_MS: Number("period-ms", "how often it looks around, in milliseconds", 1000, 1, 60_000);
    PLACE: Text("place", "what it looks after", "gate");
    AWAKE: Flag("awake", "whether it begins at once", true);
}

struct Watchman {
    rounds: u64,
}

impl Driver for Watchman {
    const COMMANDS: &'static [Command] = &[
        Command::new("rounds", "how often it has looked around"),
        Command::new("start", "look around from now on"),
        Command::new("once", "look around once, after a period"),
        Command::new("stop", "look around no more"),
    ];

    fn init() -> Result<Watchman> {
        if AWAKE.get() {
            timer::every(period())?;
        }
        Ok(Watchman { rounds: 0 })
    }

    fn poll(&mut self, events: Events) -> Reply {
        if events.contains(Events::TIMER) {
            self.rounds += 1;
        }
        Reply::ACKNOWLEDGED
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        match text {
            "rounds" => answer!("all is well at the {}, after {} rounds", PLACE.get(), self.rounds),
            "start" => timer::every(period())?,
            "once" => timer::once(period()),
            "stop" => timer::off(),
            _ => return Err(Refusal::NotFound),
        }
        Ok(self.rounds)
    }
}

fn period() -> Duration {
    Duration::from_millis(PERIOD_MS.get().unsigned_abs())
}
