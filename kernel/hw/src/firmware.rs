//! Firmware's description of the machine, in its ACPI tables.

use crate::arch::clock::Clocks;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use ringfence_core::acpi::{self, Tables, Wiring};
use ringfence_core::dmar::Dmar;

/// A description of the machine; any part of it may be missing.
#[derive(Default)]
pub struct Firmware {
    /// The places of the clocks.
    pub clocks: Clocks,
    /// Buses of PCI segment 0.
    pub buses: Vec<RangeInclusive<u8>>,
    /// The units that fence devices.
    pub dmar: Option<Dmar>,
    /// The wiring of interrupt lines.
    pub wiring: Wiring,
}

impl Firmware {
    /// Reads the tables that the root pointer at physical address `root` leads to. `bytes` returns
    /// the bytes at a physical address, if they belong to firmware.
    pub(crate) fn read(root: Option<u64>, bytes: impl Fn(u64, usize) -> Option<&'static [u8]>) -> Firmware {
        let tables = root.and_then(|at| Tables::at(at, bytes));
        let Some(tables) = tables else { return Firmware::default() };
        let clocks = Clocks {
            hpet: tables.find(b"HPET").and_then(acpi::hpet),
            pm_timer: tables.find(b"FACP").and_then(acpi::pm_timer),
        };
        let buses = tables.find(b"MCFG").into_iter().flat_map(acpi::buses).collect();
        let wiring = tables.find(b"APIC").map(Wiring::parse).unwrap_or_default();
        Firmware { clocks, buses, dmar: tables.find(b"DMAR").and_then(Dmar::parse), wiring }
    }
}
