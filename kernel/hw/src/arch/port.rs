//! I/O ports.

use core::marker::PhantomData;
use ringfence_core::port_bitmap::Ports;
use x86_64::structures::port::{PortRead, PortWrite};

/// A port that is read and written `T` at once.
///
/// No port leads to memory by itself. If an access makes a device use DMA, the owner of the device
/// is responsible. **The ports of drivers' devices lie above those of the mainboard**
/// (`space/device.rs`), and the kernel uses them only to reset the devices: a [`DevicePort`].
#[derive(Debug)]
pub struct IoPort<T> {
    number: u16,
    width: PhantomData<fn() -> T>,
}

impl<T> IoPort<T> {
    /// Makes port `number`.
    pub(crate) const fn new(number: u16) -> IoPort<T> {
        IoPort { number, width: PhantomData }
    }
}

impl<T: PortRead> IoPort<T> {
    /// Reads the port.
    pub fn read(&self) -> T {
        // SAFETY: reading a port touches no memory.
        unsafe { T::read_from_port(self.number) }
    }
}

impl<T: PortWrite> IoPort<T> {
    /// Writes the port.
    pub fn write(&self, value: T) {
        // SAFETY: writing a port touches no memory; for the effect on a device, see above.
        unsafe { T::write_to_port(self.number, value) }
    }
}

/// A port of a device that a driver has.
#[derive(Debug, Clone, Copy)]
pub struct DevicePort(u16);

impl DevicePort {
    /// Returns the port at `offset` of `ports`, if it is one of them.
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

    /// Writes `width_bytes` (1, 2 or 4) bytes.
    pub fn write(self, width_bytes: u32, value: u32) {
        match width_bytes {
            1 => IoPort::<u8>::new(self.0).write(value as u8),
            2 => IoPort::<u16>::new(self.0).write(value as u16),
            _ => IoPort::<u32>::new(self.0).write(value),
        }
    }
}
