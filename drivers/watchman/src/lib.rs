//! A sample of a driver's features besides a device: parameters, a timer, and commands with
//! answers.
//!
//! `insmod watchman period-ms=200 place=harbour` makes the driver look around five times a second.
//! `tell watchman rounds` shows how many rounds it has made.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;
use core::time::Duration;
use ringfence_sdk::{Command, Driver, Events, Manifest, Refusal, Reply, Result};
use ringfence_sdk::{answer, driver, parameters, service, timer};

driver!(Watchman, Manifest::new("watchman", env!("CARGO_PKG_VERSION")));

parameters! {
    PERIOD_MS: Number("period-ms", "how often it looks around, in milliseconds", 1000, 1, 60_000);
    PLACE: Text("place", "what it looks after", "gate");
    AWAKE: Flag("awake", "whether it begins at once", true);
    LATE_MS: Number("late-ms", "for how long it sleeps before it begins, in milliseconds", 0, 0, 10_000);
}

struct Watchman {
    rounds: u64,
}

/// The version of the state that is kept over a reload: the rounds, in eight bytes.
const ROUNDS: u32 = 1;

impl Driver for Watchman {
    const COMMANDS: &'static [Command] = &[
        Command::new("rounds", "how often it has looked around"),
        Command::new("start", "look around from now on"),
        Command::new("once", "look around once, after a period"),
        Command::new("stop", "look around no more"),
        Command::new("nap", "sleep for so many milliseconds, and tell for how long it was"),
    ];

    fn init() -> Result<Watchman> {
        timer::sleep(Duration::from_millis(LATE_MS.get().unsigned_abs()));
        if AWAKE.get() {
            timer::every(period())?;
        }
        Ok(Watchman { rounds: 0 })
    }

    const STATE_VERSION: u32 = ROUNDS;

    fn save(&mut self) -> Vec<u8> {
        self.rounds.to_le_bytes().to_vec()
    }

    fn restore(&mut self, version: u32, state: &[u8]) -> Result<()> {
        let rounds = <[u8; 8]>::try_from(state).ok().filter(|_| version == ROUNDS);
        self.rounds = u64::from_le_bytes(rounds.ok_or(Refusal::Invalid)?);
        Ok(())
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
            text => {
                let text = text.strip_prefix("nap ").ok_or(Refusal::NotFound)?;
                let time = Duration::from_millis(text.parse().map_err(|_| Refusal::Invalid)?);
                let fell_asleep = service::time_ns();
                timer::sleep(time);
                answer!("slept for {} ms", (service::time_ns() - fell_asleep) / 1_000_000);
            }
        }
        Ok(self.rounds)
    }
}

fn period() -> Duration {
    Duration::from_millis(PERIOD_MS.get().unsigned_abs())
}
