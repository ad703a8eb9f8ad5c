//! Devices at fixed ports: those of every PC that no bus tells of.
//!
//! A driver can have the devices of [`all`], and no others: **their ports lead to no memory, and
//! none of them is one that the kernel uses**. The keyboard controller is not among them, as it
//! resets the CPU when it is told to (8042, command 0xfe).

use crate::arch::port::IoPort;
use crate::pci::{self, Function};
use core::fmt;
use pci_types::CommandRegister;
use ringfence_core::port_bitmap::Ports;

/// A device at fixed ports.
#[derive(Debug)]
#[non_exhaustive]
pub struct Fixed {
    /// What a person calls it.
    pub name: &'static str,
    /// Its ports, run by run; it is known by the first of all.
    pub ports: &'static [Ports],
    /// Its interrupt line.
    pub line: u8,
    /// A port that does not read as ones if it is there, and that does nothing when it is read.
    status: u16,
    /// The bit of a PCI IDE function's programming interface that says that the ports are not those
    /// (PCI IDE Controller Specification 1.0, 2.4).
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

/// Those that the machine has.
pub fn all() -> impl Iterator<Item = &'static Fixed> {
    DEVICES.iter().filter(|device| device.is_there())
}

/// The lines of all that there can be, as a set of bits.
pub(crate) fn lines() -> u16 {
    DEVICES.iter().fold(0, |lines, device| lines | 1 << device.line)
}

/// Whether `function` has registers at fixed ports. It is no driver's then: each of its channels is
/// one's.
pub fn is_one(function: &Function) -> bool {
    DEVICES.iter().any(|device| device.is_of(function))
}

impl Fixed {
    /// The port that it is known by.
    pub fn first_port(&self) -> u16 {
        self.ports.first().map_or(0, |ports| ports.first)
    }

    fn is_there(&self) -> bool {
        IoPort::<u8>::new(self.status).read() != u8::MAX
    }

    /// Whether it is a part of `function`.
    fn is_of(&self, function: &Function) -> bool {
        const IDE: (u8, u8) = (1, 1);
        let (base, sub, interface) = function.class;
        (base, sub) == IDE && interface & self.native == 0
    }

    /// Has the function that it is a part of, if it is of one, do nothing but answer at its ports:
    /// no DMA, which is another channel's as well.
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
