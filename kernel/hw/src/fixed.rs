//! Devices at fixed ports: a PC's devices that no bus lists.
//!
//! A driver can have the devices of [`all`], and no others: **their ports lead to no memory, and
//! the kernel uses none of them**. The keyboard controller is not among them, as its command 0xfe
//! resets the CPU (8042).

use crate::arch::port::IoPort;
use crate::pci::{self, Function};
use core::fmt;
use pci_types::CommandRegister;
use ringfence_core::port_bitmap::Ports;

/// A device at fixed ports.
#[derive(Debug)]
#[non_exhaustive]
pub struct Fixed {
    /// The device's name, for a person.
    pub name: &'static str,
    /// The device's ports, as runs; the first port of all identifies the device.
    pub ports: &'static [Ports],
    /// The device's interrupt line.
    pub line: u8,
    /// A port that does not read as ones if the device is there. Reading it has no effect.
    status: u16,
    /// The bit of a PCI IDE function's programming interface that says that the channel is not at
    /// these ports (PCI IDE Controller Specification 1.0, 2.4).
    native: u8,
}

/// Channels of ATA disks: command block, and device control (ATA/ATAPI-6 with PCI IDE Controller
/// Specification 1.0, 2.1).
static DEVICES: [Fixed; 2] = [
    Fixed {
        name: "ide0",
        ports: &[Ports { first: 0x1f0, count: 8 }, Ports { first: 0x3f6, count: 1 }],
        line: 14,
        status: 0x3f6,
        native: 1 << 0,
    },
    Fixed {
        name: "ide1",
        ports: &[Ports { first: 0x170, count: 8 }, Ports { first: 0x376, count: 1 }],
        line: 15,
        status: 0x376,
        native: 1 << 2,
    },
];

/// Returns the devices that the machine has.
pub fn all() -> impl Iterator<Item = &'static Fixed> {
    DEVICES.iter().filter(|device| device.is_there())
}

/// Returns the lines of all possible devices, as a set of bits.
pub(crate) fn lines() -> u16 {
    DEVICES.iter().fold(0, |lines, device| lines | 1 << device.line)
}

/// Returns whether `function` has registers at fixed ports. No driver gets the function as a whole
/// then: each of its channels is a device of its own.
pub fn is_one(function: &Function) -> bool {
    DEVICES.iter().any(|device| device.is_of(function))
}

impl Fixed {
    /// Returns the port that identifies the device.
    pub fn first_port(&self) -> u16 {
        self.ports.first().map_or(0, |ports| ports.first)
    }

    fn is_there(&self) -> bool {
        IoPort::<u8>::new(self.status).read() != u8::MAX
    }

    /// Returns whether the device is a part of `function`.
    fn is_of(&self, function: &Function) -> bool {
        const IDE: (u8, u8) = (1, 1);
        let (base, sub, interface) = function.class;
        (base, sub) == IDE && interface & self.native == 0
    }

    /// Restricts the PCI function that the device is a part of, if any, to answering at its ports.
    /// It gets no DMA, which would serve the other channel as well.
    pub fn confine(&self) {
        for function in pci::functions().iter().filter(|function| self.is_of(function)) {
            function.change_command(CommandRegister::IO_ENABLE, CommandRegister::BUS_MASTER_ENABLE);
        }
    }
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}
