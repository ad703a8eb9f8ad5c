//! The state of a driver, in words. [`ringfence_core::life`] has the logic.

use super::{Domain, Handle};
use crate::file::File;
use alloc::format;
use alloc::string::{String, ToString};
use hw::arch::time;
use ringfence_core::life::State;
use ringfence_link::event;

/// The activity of a driver since it was loaded.
#[derive(Debug, Clone, Copy, Default)]
pub struct Activity {
    /// TSC ticks of CPU time.
    pub cpu_ticks: u64,
    /// Upcalls.
    pub upcalls: u64,
    /// Calls of services.
    pub calls: u64,
    /// Frames or requests.
    pub operations: u64,
    /// Bytes of the frames, or of the requests' data.
    pub bytes: u64,
    /// Interrupts of its device.
    pub interrupts: u64,
}

impl Domain {
    /// Returns the driver's identity and state, for programs.
    pub fn event(&self) -> event::Driver<'_> {
        event::Driver {
            name: self.name.as_str().into(),
            module: self.file.name.as_str().into(),
            build: self.file.build,
            kind: self.space.kind().name().into(),
            ring: self.ring() as u8,
            slot: self.space.slot() as u64,
            device: self.device.as_ref().map(|device| device.which().to_string().into()),
            state: self.state().into(),
            upcalls: self.upcalls,
            cpu_ms: time::nanoseconds(self.turn.all_ticks) / 1_000_000,
            restarts: self.restarts,
        }
    }

    /// Returns the activity of the driver since it was loaded.
    pub fn activity(&self) -> Activity {
        let moved = self.offer.as_ref().map(|offer| offer.moved()).unwrap_or_default();
        Activity {
            cpu_ticks: self.turn.all_ticks,
            upcalls: self.upcalls,
            calls: self.calls.count() as u64,
            operations: moved.count,
            bytes: moved.bytes,
            interrupts: self.turn.acknowledged,
        }
    }

    /// Returns the memory that the driver has, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.image_bytes + self.heap_bytes + self.dma_bytes() + u64::from(self.manifest.stack_bytes)
    }

    /// Returns the driver's state, in a few words.
    pub fn state(&self) -> String {
        match self.life.state() {
            State::Running if self.turn.is_due() => "resting".into(),
            State::Running => "running".into(),
            State::Asleep if self.stands() => "in the debugger".into(),
            State::Asleep => "asleep".into(),
            State::GivenUp => "given up".into(),
            State::Ended if self.goes_back_to().is_some() => "ended, to be back".into(),
            State::Ended => "ended".into(),
            State::Back(None) => "ended, to be back".into(),
            State::Back(Some(at)) => {
                format!("back in {} ms", at.saturating_sub(time::uptime_ns()).div_ceil(1_000_000))
            }
        }
    }

    /// Returns whether a successor follows if the driver is ended by a fault now.
    pub fn has_successor(&self) -> bool {
        let probation = self.probation.as_ref();
        self.life.restarts() || probation.is_some_and(|probation| time::uptime_ns() < probation.until_ns)
    }

    /// Returns the file of the build that takes the place of a driver that was ended, if that is
    /// not its own: the one before a reload, when the new build has faulted while it was on
    /// probation. Then its policy does not matter.
    pub fn goes_back_to(&self) -> Option<&File> {
        let probation = self.probation.as_ref()?;
        let fault = self.life.fault()?;
        (fault.kind != "killed" && fault.at_ns < probation.until_ns).then_some(&probation.before)
    }
}

/// Returns whether a driver that was ended will be restarted.
pub fn will_be_back(handle: &Handle) -> bool {
    let domain = handle.lock();
    domain.life.will_be_back() || domain.life.can_be_replaced() && domain.goes_back_to().is_some()
}
