//! The end of the machine: through QEMU's isa-debug-exit device or Bochs' port, where there is one.
//!
//! A triple fault ends QEMU with status 0, so no ending on purpose has that status. A run is good
//! only if it ended with the status of [`Ending::Done`] *and* the console's last line said so.

use super::handlers;
use super::port::IoPort;
use core::sync::atomic::{AtomicBool, Ordering};

/// The way in which the machine ends. QEMU's exit status is twice the value plus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Ending {
    /// An end in order, and every command succeeded.
    Done = 0x10,
    /// An end in order, but a command failed.
    CommandFailed = 0x11,
    /// A kernel panic.
    Panic = 0x12,
    /// An end in order, and the machine is to start again.
    Reboot = 0x13,
}

const EXIT_PORT: u16 = 0xf4;
const BOCHS_SHUTDOWN_PORT: u16 = 0x8900;

/// Resets the machine by the chipset's reset control register, and by the keyboard controller:
/// either may be missing.
fn reset() {
    const RESET_CONTROL: u16 = 0xcf9;
    const KEYBOARD_CONTROLLER: u16 = 0x64;
    IoPort::<u8>::new(RESET_CONTROL).write(0x02);
    IoPort::<u8>::new(RESET_CONTROL).write(0x06);
    IoPort::<u8>::new(KEYBOARD_CONTROLLER).write(0xfe);
}

/// Ends the machine.
pub fn end(ending: Ending) -> ! {
    x86_64::instructions::interrupts::disable();
    if let Some(handlers) = handlers::installed() {
        (handlers.before_power_off)();
    }
    IoPort::new(EXIT_PORT).write(ending as u32);
    if ending == Ending::Reboot {
        reset();
    }
    // Bochs ends when it is sent this word, a letter at a time.
    for letter in b"Shutdown" {
        IoPort::new(BOCHS_SHUTDOWN_PORT).write(*letter);
    }
    // The write to the port ends QEMU, but only at its next step. On other machines the kernel
    // stops here.
    handlers::halt()
}

/// Set once the kernel has panicked.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Notes that the kernel has panicked: no work that was under way goes on. Returns `false` if it
/// was noted before.
pub(crate) fn note_panic() -> bool {
    x86_64::instructions::interrupts::disable();
    !PANICKED.swap(true, Ordering::SeqCst)
}

/// Returns whether the kernel has panicked.
pub(crate) fn has_panicked() -> bool {
    PANICKED.load(Ordering::Relaxed)
}
