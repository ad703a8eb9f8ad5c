//! A driver that panics gives up: the kernel logs why and ends it.

use crate::service::LineBuffer;
use crate::service::safe::rf_panic;
use core::fmt::Write;
use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    let mut line = LineBuffer::new();
    // A message that is too long is cut off; the place is not.
    let _ = write!(line, "panicked");
    if let Some(location) = info.location() {
        let _ = write!(line, " at {}:{}", location.file(), location.line());
    }
    let _ = write!(line, ": {}", info.message());
    let _ = rf_panic(line.text());
    // The kernel does not return here; a loop would be ended by the time budget.
    loop {
        core::hint::spin_loop();
    }
}
