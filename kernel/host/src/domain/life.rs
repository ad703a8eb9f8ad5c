//! The state of a driver, in words. [`ringfence_core::life`] has the logic.

use super::{Domain, Handle};
use alloc::format;
use alloc::string::{String, ToString};
use hw::arch::time;
use ringfence_core::life::State;
use ringfence_link::event;

impl Domain {
    /// Returns the driver's identity and state, for programs.
    pub fn event(&self) -> event::Driver<'_> {
        event::Driver {
            name: self.name.as_str().into(),
            module: self.file.name.as_str().into(),
            ring: self.ring() as u8,
            slot: self.space.slot() as u64,
            device: self.device.as_ref().map(|device| device.which().to_string().into()),
            state: self.state().into(),
            upcalls: self.upcalls,
            cpu_ms: time::nanoseconds(self.turn.all_ticks) / 1_000_000,
            restarts: self.restarts,
        }
    }

    /// Returns the driver's state, in a few words.
    pub fn state(&self) -> String {
        match self.life.state() {
            State::Running if self.turn.is_due() => "resting".into(),
            State::Running => "running".into(),
            State::Asleep => "asleep".into(),
            State::GivenUp => "given up".into(),
            State::Ended => "ended".into(),
            State::Back(None) => "ended, to be back".into(),
            State::Back(Some(at)) => {
                format!("back in {} ms", at.saturating_sub(time::uptime_ns()).div_ceil(1_000_000))
            }
        }
    }
}

/// Returns whether a driver that was ended will be restarted.
pub fn will_be_back(handle: &Handle) -> bool {
    handle.lock().life.will_be_back()
}
