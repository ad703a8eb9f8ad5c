//! What firmware says about the machine, in its ACPI tables.

use crate::arch::clock::Clocks;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use ringfence_core::acpi::{self, Tables, Wiring};
use ringfence_core::dmar::Dmar;

/// What is known of the machine; nothing of it need be there.
#[derive(Default)]
pub struct Firmware {
    /// Where clocks are.
    pub clocks: Clocks,
    /// Buses of PCI segment 0.
    pub buses: Vec<RangeInclusive<u8>>,
    /// Units that fence devices.
    pub dmar: Option<Dmar>,
    /// How interrupt lines are wired.
    pub wiring: Wiring,
}

impl Firmware {
    /// Reads the tables that the one at `root` leads to. `bytes` are those at a physical address,
    /// if they are firmware's.
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
