//! What is to become of a driver.

use super::{Domain, Handle};
use alloc::format;
use alloc::string::String;
use hw::arch::time;
use ringfence_abi::manifest::Policy;

impl Domain {
    /// Whether it is restarted when it is ended.
    pub fn restarts(&self) -> bool {
        !self.stopped && self.policy == Policy::Restart && !self.given_up
    }

    /// What becomes of it, in a word or a few.
    pub fn state(&self) -> String {
        match self.is_alive() {
            true if self.turn.is_due() => "resting".into(),
            true => "running".into(),
            false if self.given_up => "given up".into(),
            false if !self.restarts() => "ended".into(),
            false => match self.restart_at {
                Some(at) => format!("back in {} ms", at.saturating_sub(time::uptime_ns()).div_ceil(1_000_000)),
                None => "ended, to be back".into(),
            },
        }
    }
}

/// Whether a driver that was ended will be back.
pub fn will_be_back(handle: &Handle) -> bool {
    let domain = handle.lock();
    domain.fault.is_some() && domain.restarts()
}
