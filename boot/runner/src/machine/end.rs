//! How a run of a machine ended.
//!
//! **A run is good only if QEMU ended with the one agreed status and the console's last line is
//! [`FINAL_LINE`].** A triple fault ends QEMU with status 0, so that status never means success.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The machine shut down in order, and every command succeeded.
    Done,
    /// The machine shut down in order, but a command failed.
    CommandFailed,
    /// The kernel panicked, or the loader could not start it.
    Panic,
    /// QEMU ended with the status of a triple fault, or without the console's last line.
    Crash,
    /// QEMU refused to start and has printed the reason.
    NotStarted,
    /// A signal ended QEMU itself: QEMU aborted, or somebody sent the signal.
    Signal(i32),
    /// QEMU itself ended with an unknown status.
    Status(i32),
    /// The time limit passed.
    TimeLimit,
    /// The user left.
    Left,
    /// The machine shut down in order, to be started again.
    Reboot,
}

impl End {
    /// Returns the runner's exit status.
    pub fn status(self) -> u8 {
        match self {
            End::Done | End::Left | End::Reboot => 0,
            End::CommandFailed => 1,
            End::Panic | End::Crash => 2,
            End::TimeLimit => 3,
            End::NotStarted | End::Signal(_) | End::Status(_) => 4,
        }
    }

    /// Describes the end for a person.
    pub fn description(self) -> String {
        match self {
            End::Done => "done".to_string(),
            End::CommandFailed => "a command failed".to_string(),
            End::Panic => "the kernel panicked".to_string(),
            End::Crash => "the machine crashed (triple fault?)".to_string(),
            End::TimeLimit => "the time limit passed".to_string(),
            End::NotStarted => "QEMU did not start the machine".to_string(),
            End::Signal(signal) => format!("QEMU itself was ended by {}", signal_name(signal)),
            End::Status(status) => format!("QEMU itself failed with status {status}"),
            End::Left => "left".to_string(),
            End::Reboot => "it is to be started again".to_string(),
        }
    }

    /// Returns how a run ended. `said_done` tells whether the console's last line was
    /// [`FINAL_LINE`]; `terminated_by` is the signal that QEMU named as the reason for its end.
    ///
    /// The kernel's statuses are twice its value plus one (`kernel/hw/src/arch/power.rs`); QEMU's
    /// own are 0 and 1.
    pub(super) fn of(status: ExitStatus, said_done: bool, terminated_by: Option<i32>) -> End {
        const OK: i32 = 0;
        const REFUSED: i32 = 1;
        const DONE: i32 = 0x10 << 1 | 1;
        const COMMAND_FAILED: i32 = 0x11 << 1 | 1;
        const PANIC: i32 = 0x12 << 1 | 1;
        const REBOOT: i32 = 0x13 << 1 | 1;
        if let Some(signal) = status.signal() {
            return End::Signal(signal);
        }
        match status.code() {
            Some(OK) => terminated_by.map_or(End::Crash, End::Signal),
            Some(REFUSED) => End::NotStarted,
            Some(DONE) if said_done => End::Done,
            Some(COMMAND_FAILED) => End::CommandFailed,
            Some(PANIC) => End::Panic,
            Some(REBOOT) => End::Reboot,
            Some(DONE) | None => End::Crash,
            Some(other) => End::Status(other),
        }
    }
}

/// The console's last line in a run without errors.
pub const FINAL_LINE: &str = "ringfence: done";

/// Returns the signal that ended QEMU, if the line of QEMU's standard error names one, as in
/// `terminating on signal 15 from pid 7 (sh)`.
pub(super) fn terminated_by(line: &str) -> Option<i32> {
    let (_, rest) = line.split_once("terminating on signal ")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn signal_name(signal: i32) -> String {
    const NAMES: &[(i32, &str)] = &[
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (15, "SIGTERM"),
        (25, "SIGXFSZ"),
    ];
    let name = NAMES.iter().find(|(number, _)| *number == signal).map(|(_, name)| format!(" ({name})"));
    format!("signal {signal}{}", name.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_s_end_means() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(End::of(exited(33), true, None), End::Done);
        assert_eq!(End::of(exited(33), false, None), End::Crash);
        assert_eq!(End::of(exited(35), false, None), End::CommandFailed);
        assert_eq!(End::of(exited(37), false, None), End::Panic);
        assert_eq!(End::of(exited(0), true, None), End::Crash);
        assert_eq!(End::of(exited(0), true, Some(15)), End::Signal(15));
        assert_eq!(End::of(exited(1), true, None), End::NotStarted);
        assert_eq!(End::of(exited(2), true, None), End::Status(2));
        assert_eq!(End::of(exited(39), true, None), End::Reboot);
        let aborted = End::of(ExitStatus::from_raw(6), true, None);
        assert_eq!((aborted, aborted.status()), (End::Signal(6), 4));
        assert_eq!(aborted.description(), "QEMU itself was ended by signal 6 (SIGABRT)");
        assert_eq!(terminated_by("qemu-system-x86_64: terminating on signal 15 from pid 7 (sh)"), Some(15));
        assert_eq!(terminated_by("qemu-system-x86_64: terminating on signal"), None);
    }
}
