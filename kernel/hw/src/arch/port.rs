//! I/O ports.

use core::marker::PhantomData;
use x86_64::structures::port::{PortRead, PortWrite};

/// A port that is read and written `T` at once.
///
/// No port leads to memory by itself: what a device does that is told so by one is for who has the device to answer. **Drivers' devices have
/// theirs above those of the mainboard** (`domain/device.rs`), and there the kernel uses none but to reset them.
#[derive(Debug)]
pub struct IoPort<T> {
    number: u16,
    width: PhantomData<fn() -> T>,
}

impl<T> IoPort<T> {
    /// Port `number`.
    pub const fn new(number: u16) -> IoPort<T> {
        IoPort { number, width: PhantomData }
    }
}

impl<T: PortRead> IoPort<T> {
    /// Reads it.
    pub fn read(&self) -> T {
        // SAFETY: reading a port touches no memory.
        unsafe { T::read_from_port(self.number) }
    }
}

impl<T: PortWrite> IoPort<T> {
    /// Writes it.
    pub fn write(&self, value: T) {
        // SAFETY: writing a port touches no memory; for what a device does then, see above.
        unsafe { T::write_to_port(self.number, value) }
    }
}
