//! I/O ports.

use core::marker::PhantomData;
use ringfence_core::port_bitmap::Ports;
use x86_64::structures::port::{PortRead, PortWrite};

/// A port that is read and written `T` at once.
///
/// No port leads to memory by itself: what a device does that is told so by one is for who has the
/// device to answer. **Drivers' devices have theirs above those of the mainboard**
/// (`space/device.rs`), and there the kernel uses none but to reset them: a [`DevicePort`].
#[derive(Debug)]
pub struct IoPort<T> {
    number: u16,
    width: PhantomData<fn() -> T>,
}

impl<T> IoPort<T> {
    /// Port `number`.
    pub(crate) const fn new(number: u16) -> IoPort<T> {
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

/// A port of a device that a driver has.
#[derive(Debug, Clone, Copy)]
pub struct DevicePort(u16);

impl DevicePort {
    /// The one at `offset` of `ports`, if they have it.
    pub(crate) fn new(ports: Ports, offset: u16) -> Option<DevicePort> {
        (offset < ports.count).then(|| DevicePort(ports.first + offset))
    }

    /// Reads `width_bytes` (1, 2 or 4) bytes.
    pub fn read(self, width_bytes: u32) -> u32 {
        match width_bytes {
            1 => IoPort::<u8>::new(self.0).read().into(),
            2 => IoPort::<u16>::new(self.0).read().into(),
            _ => IoPort::<u32>::new(self.0).read(),
        }
    }

    /// Writes them.
    pub fn write(self, width_bytes: u32, value: u32) {
        match width_bytes {
            1 => IoPort::<u8>::new(self.0).write(value as u8),
            2 => IoPort::<u16>::new(self.0).write(value as u16),
            _ => IoPort::<u32>::new(self.0).write(value),
        }
    }
}
