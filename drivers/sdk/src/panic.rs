//! The panic handler of a driver: the kernel logs the message and ends the driver.

use crate::service::LineBuffer;
use crate::service::safe::rf_panic;
use core::fmt::Write;
use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let mut line = LineBuffer::new();
    // A message that is too long is cut off at its end; the source location comes first and stays.
    let _ = write!(line, "panicked");
    if let Some(location) = info.location() {
        let _ = write!(line, " at {}:{}", location.file(), location.line());
    }
    let _ = write!(line, ": {}", info.message());
    let _ = rf_panic(line.text());
    // The kernel does not return here. If it did, the time budget would end the loop.
    loop {
        core::hint::spin_loop();
    }
}
