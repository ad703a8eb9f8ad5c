//! The limits that a person can change while the system runs (`limits NAME VALUE`): the kernel's
//! time limits and counts.

use core::sync::atomic::{AtomicU64, Ordering};

/// A number that a person can change.
pub struct Limit {
    /// The limit's name in the shell.
    pub name: &'static str,
    /// The thing that is limited, with its unit.
    pub what: &'static str,
    least: u64,
    most: u64,
    at_boot: u64,
    value: AtomicU64,
}

impl Limit {
    const fn new(name: &'static str, what: &'static str, [least, value, most]: [u64; 3]) -> Limit {
        Limit { name, what, least, most, at_boot: value, value: AtomicU64::new(value) }
    }

    /// Returns the limit's value.
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    /// Returns whether the value is another than at boot.
    pub fn is_changed(&self) -> bool {
        self.get() != self.at_boot
    }

    /// Changes the value until the returned guard is dropped.
    pub fn for_now(&'static self, value: u64) -> ForNow {
        ForNow { limit: self, before: self.value.swap(value, Ordering::Relaxed) }
    }

    /// Changes the value. The error has the least and the greatest value that are allowed.
    pub fn set(&self, value: u64) -> Result<(), (u64, u64)> {
        if !(self.least..=self.most).contains(&value) {
            return Err((self.least, self.most));
        }
        self.value.store(value, Ordering::Relaxed);
        Ok(())
    }
}

/// A guard that gives a limit its old value back.
pub struct ForNow {
    limit: &'static Limit,
    before: u64,
}

impl Drop for ForNow {
    fn drop(&mut self) {
        self.limit.value.store(self.before, Ordering::Relaxed);
    }
}

/// Restarts within [`RESTART_WINDOW_S`] after which a driver is given up.
pub static RESTARTS: Limit = Limit::new("restarts", "restarts before a driver is given up", [1, 8, 1000]);
/// Seconds over which restarts are counted, for [`RESTARTS`].
pub static RESTART_WINDOW_S: Limit = Limit::new("restart-window-s", "seconds they are counted over", [1, 60, 3600]);
/// Wait before the second restart; it doubles with each further restart.
pub static RESTART_WAIT_MS: Limit =
    Limit::new("restart-wait-ms", "ms before the second restart, doubled for each one", [0, 10, 1000]);
/// How long a driver that was reloaded is on probation: a fault brings the build before it back.
pub static RELOAD_S: Limit = Limit::new("reload-s", "seconds in which a fault undoes a reload", [0, 10, 3600]);
/// The names of the limits that a disk's settings do not change: they let code and devices in that
/// protection does not hold for.
pub const PROTECTIVE: [&str; 4] = ["ss-loads", "seg-loads", "lock-bts", "unfenced"];

/// How often the record of the modules' operations and faults is written to `/etc`.
pub static RECORD_S: Limit =
    Limit::new("record-s", "seconds between two writes of the record to /etc", [1, 60, 86_400]);
/// How long a command waits for a driver to come back.
pub static PAUSE_MS: Limit =
    Limit::new("pause-ms", "ms that a command waits for its driver to be back", [1, 10_000, 600_000]);
/// How long a SCSI command may take before its driver counts as stuck.
pub static COMMAND_MS: Limit = Limit::new("command-ms", "ms that a SCSI command may take", [1, 30_000, 600_000]);
/// How long the search for the units of a SCSI host may take.
pub static SCAN_MS: Limit = Limit::new("scan-ms", "ms that a SCSI host's units are looked for", [1, 30_000, 600_000]);
/// How long a frame may wait to be sent before its driver counts as stuck.
pub static TRANSMIT_MS: Limit = Limit::new("transmit-ms", "ms that a frame may take to be sent", [1, 5_000, 600_000]);

/// How long a driver may sleep in one upcall in total.
pub static SLEEP_MS: Limit = Limit::new("sleep-ms", "ms that a driver may sleep in one upcall", [0, 5_000, 600_000]);
/// The debt of CPU time beyond which a driver rests ([`crate::debt`]).
pub static TURN_MS: Limit = Limit::new("turn-ms", "ms a driver may be ahead of others, then it rests", [0, 10, 1000]);

/// Rows a second of log output on the console that a driver may have without having been asked.
pub static CONSOLE_ROWS: Limit =
    Limit::new("console-rows", "rows a second that a driver may show unasked", [1, 20, 1_000_000]);

/// Loads of SS that a module's code may have under QEMU's TCG, which executes some that a CPU
/// refuses ([`LoadsSs`](crate::tcg::Hole::LoadsSs)).
pub static SS_LOADS: Limit = Limit::new("ss-loads", "places in a module that load SS, under QEMU's TCG", [0, 0, 1000]);

/// MOVs to CS, or to no segment register, that a module's code may have under TCG: QEMU 10.0
/// executes them ([`LoadsNoSegment`](crate::tcg::Hole::LoadsNoSegment)).
pub static SEG_LOADS: Limit =
    Limit::new("seg-loads", "places in a module that load no segment, under TCG", [0, 0, 1000]);
/// Bit tests of a register with a LOCK prefix that a module's code may have under TCG: QEMU 7.2
/// aborts on them ([`LocksBitTest`](crate::tcg::Hole::LocksBitTest)).
pub static LOCK_BTS: Limit = Limit::new("lock-bts", "places in a module that LOCK a BT, under TCG", [0, 0, 1000]);

/// Whether devices without a fence may have drivers: 1 if they may, 0 if not.
pub static UNFENCED: Limit = Limit::new("unfenced", "whether devices without a fence have drivers", [0, 1, 1]);

/// All limits.
pub static ALL: [&Limit; 16] = [
    &RESTARTS,
    &RESTART_WINDOW_S,
    &RESTART_WAIT_MS,
    &RELOAD_S,
    &RECORD_S,
    &PAUSE_MS,
    &COMMAND_MS,
    &SCAN_MS,
    &TRANSMIT_MS,
    &SLEEP_MS,
    &TURN_MS,
    &CONSOLE_ROWS,
    &SS_LOADS,
    &SEG_LOADS,
    &LOCK_BTS,
    &UNFENCED,
];

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn a_limit_has_values_within_its_own_limits_only() {
        static LIMIT: Limit = Limit::new("some", "something", [2, 3, 5]);
        assert_eq!(LIMIT.get(), 3);
        for wrong in [0, 1, 6, u64::MAX] {
            assert_eq!(LIMIT.set(wrong), Err((2, 5)));
            assert_eq!(LIMIT.get(), 3, "it stays as it was");
        }
        for right in [2, 5, 4] {
            assert_eq!(LIMIT.set(right), Ok(()));
            assert_eq!(LIMIT.get(), right);
        }
    }

    #[test]
    fn a_limit_that_is_changed_for_now_is_as_before_afterwards() {
        static LIMIT: Limit = Limit::new("some", "something", [0, 3, 5]);
        {
            // The kernel itself may set values that a person cannot.
            let _first = LIMIT.for_now(1000);
            assert_eq!(LIMIT.get(), 1000);
            let _second = LIMIT.for_now(0);
            assert_eq!(LIMIT.get(), 0);
        }
        assert_eq!(LIMIT.get(), 3);
    }

    #[test]
    fn each_limit_has_a_name_of_its_own_and_begins_within_its_limits() {
        let names: BTreeSet<&str> = ALL.iter().map(|limit| limit.name).collect();
        assert_eq!(names.len(), ALL.len());
        for limit in ALL {
            assert!((limit.least..=limit.most).contains(&limit.get()), "{}", limit.name);
            // A row of `limits` is one line.
            assert!(limit.name.len() <= 18 && limit.what.len() <= 60, "{}", limit.name);
        }
    }
}
