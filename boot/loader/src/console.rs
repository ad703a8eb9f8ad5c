//! The serial port, on which the loader reports why the machine does not boot.

use core::fmt::{self, Write};
use uart_16550::{Config, Uart16550, backend::PioBackend};
use x86_64::instructions::port::Port;

/// COM1.
const BASE_PORT: u16 = 0x3f8;
/// The port of QEMU's isa-debug-exit device; other machines have no device there.
const EXIT_PORT: u16 = 0xf4;
/// Ends QEMU with the status that also stands for a kernel panic.
const EXIT_PANIC: u32 = 0x12;

struct Console(Uart16550<PioBackend>);

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.send_bytes_exact(text.as_bytes());
        Ok(())
    }
}

/// Prints why the machine does not boot, and stops the machine.
pub fn fail(reason: fmt::Arguments) -> ! {
    // SAFETY: only the loader uses COM1; a machine without it ignores the writes.
    if let Ok(mut uart) = unsafe { Uart16550::new_port(BASE_PORT) }
        && uart.init(Config::DEFAULT).is_ok()
    {
        // If writing to the console fails, there is nowhere to report the failure.
        let _ = writeln!(Console(uart), "\nboot failed: {reason}");
    }
    // SAFETY: the port belongs to QEMU's isa-debug-exit device, or to no device.
    unsafe { Port::new(EXIT_PORT).write(EXIT_PANIC) };
    loop {
        x86_64::instructions::hlt();
    }
}
