//! The service of a driver in ring 1, for the record of its file ([`crate::evidence`]).

use super::{Domain, Ring};
use crate::evidence;
use hw::arch::time;

/// A driver's contribution to the record of its file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Witnessed {
    operations: u64,
    /// Until when, in nanoseconds since boot; 0 before the first time.
    until_ns: u64,
    /// Whether its code or data were changed in memory: it differs from its file then.
    pub is_changed: bool,
    /// Whether a person has moved it into ring 1, where it stays until a person moves it again.
    pub is_held: bool,
    /// The faults of its module when a person forced it into ring 0, if one has.
    pub forced_after: Option<u32>,
}

impl Domain {
    /// Counts the driver's operations and time in ring 1 since the last call, as served by its
    /// file. Must be called before the driver changes its ring, and before it ends without a fault.
    pub fn witness(&mut self) {
        let (operations, now) = (self.operations(), time::uptime_ns());
        let Witnessed { operations: before, until_ns, is_changed, .. } = self.witnessed;
        (self.witnessed.operations, self.witnessed.until_ns) = (operations, now);
        // A driver that stands for a debugger serves nobody.
        let serves = self.is_alive() && !self.stands();
        if until_ns > 0 && !is_changed && serves && self.ring() == Ring::Sandboxed {
            evidence::note_served(&self.file, operations.saturating_sub(before), now.saturating_sub(until_ns));
        }
    }

    /// Returns the number of frames or requests of the driver, or of its upcalls if it offers
    /// nothing.
    fn operations(&self) -> u64 {
        self.offer.as_ref().map_or(self.upcalls, |offer| offer.moved().count)
    }
}
