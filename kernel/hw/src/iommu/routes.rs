//! The interrupts that devices send, as messages that name an entry of the IOMMU's table. **An
//! entry belongs to one device**, and gives the vector that it raises. A message that names no
//! entry is blocked (VT-d, 5.1).

use super::unit::{InterruptTable, Remapper, Unusable, route};
use super::{Fence, WATCHERS, Watcher};
use crate::arch::io_apic::Pin;
use crate::arch::{interrupts, local_apic, tcg};
use crate::fixed;
use alloc::vec::Vec;
use log::{info, warn};
use ringfence_core::acpi::Wiring;
use ringfence_core::dmar::ScopeKind;
use spin::Once;

/// The table of interrupts, and the number of the CPU that gets them, if all units remap them.
static INTERRUPTS: Once<(InterruptTable, u8)> = Once::new();

/// Routes interrupts through the table: those of devices, and of lines if there is an I/O APIC.
pub(super) fn init(wiring: &Wiring) {
    match remap_interrupts() {
        Ok(()) => {
            info!("iommu: interrupts are remapped: devices send what they are given");
            if !take_wires(wiring) {
                info!("iommu: lines come from the 8259s, past it");
            }
        }
        Err(why) => warn!("iommu: interrupts are not remapped: {why}"),
    }
    if tcg::is_there() {
        warn!("iommu: QEMU lets others pass, NMI and INIT among them");
    }
}

/// Returns the physical address of the table.
pub(super) fn table() -> Option<u64> {
    INTERRUPTS.get().map(|(table, _)| table.physical())
}

/// Makes all units look up interrupts in one table; they go to the CPU that this runs on.
fn remap_interrupts() -> Result<(), &'static str> {
    let mut watchers = WATCHERS.lock();
    let remappers: Option<Vec<&mut dyn Remapper>> =
        watchers.iter_mut().map(|watcher| watcher.unit.remapper()).collect();
    let remappers = remappers.ok_or("not all units can")?;
    let table = InterruptTable::new().map_err(|_| Unusable::NoMemory.name())?;
    for remapper in remappers {
        // If one unit fails, the table stays allocated: other units use it.
        remapper.remap(&table).map_err(Unusable::name)?;
    }
    let apic = local_apic::number().ok_or("the CPU has no local APIC, or a number that is too long")?;
    INTERRUPTS.call_once(|| (table, apic));
    Ok(())
}

/// Routes interrupt lines through the table as well. They come from the I/O APIC that has the first
/// lines, if a unit watches it. Returns `false` if there is none: the lines then stay with the
/// 8259s.
fn take_wires(wiring: &Wiring) -> bool {
    let (Some((table, apic)), Some((id, registers, _))) =
        (INTERRUPTS.get(), wiring.io_apics.iter().find(|(_, _, first)| *first == 0))
    else {
        return false;
    };
    let mut watchers = WATCHERS.lock();
    let source = |watcher: &Watcher| {
        let scope = watcher.watches.scopes.iter().find(|scope| scope.kind == ScopeKind::IoApic && scope.id == *id)?;
        let [(device, function)] = scope.path.as_slice() else { return None };
        Some(u16::from_be_bytes([scope.bus, device << 3 | function & 7]))
    };
    let found = watchers.iter_mut().find_map(|watcher| source(watcher).map(|source| (watcher, source)));
    let Some((watcher, source)) = found else { return false };
    interrupts::use_io_apic(*registers, fixed::lines(), |line, is_level| {
        let (to, told, is_low) = wiring.of_line(line);
        let (is_level, vector, entry) = (told.unwrap_or(is_level), interrupts::vector_of(line), FIRST_WIRE + line);
        watcher.unit.remapper()?.set_route(table, entry, route(source, vector, *apic, is_level)).ok()?;
        Some(Pin { number: u8::try_from(to).ok()?, is_level, is_low, vector, entry })
    })
}

/// Entry of the table for line 0 of the I/O APIC. The entries before it are for messages of
/// devices.
const FIRST_WIRE: u8 = 128;

/// Returns whether devices can be given interrupts of their own.
pub fn remaps_interrupts() -> bool {
    INTERRUPTS.get().is_some()
}

impl Fence {
    /// Lets the device raise `vector`, by a message to the returned address. Entry `index` of the
    /// table belongs to the device alone from now on. Returns `None` if interrupts are not
    /// remapped, or the unit failed.
    pub fn route(&self, index: u8, vector: u8) -> Option<u32> {
        /// The window of interrupts; the message names an entry of the table (5.1.2.2).
        const WINDOW: u32 = 0xfee0_0000;
        const NAMES_ENTRY: u32 = 1 << 4;
        let (table, apic) = INTERRUPTS.get()?;
        let entry = route(self.source, vector, *apic, false);
        self.with(|unit| Some(unit.remapper()?.set_route(table, index, entry)))??.ok()?;
        Some(WINDOW | NAMES_ENTRY | u32::from(index) << 5)
    }

    /// Takes entry `index` of the table from the device, which can raise its vector no more.
    pub fn end_route(&self, index: u8) {
        if let Some((table, _)) = INTERRUPTS.get() {
            // If this fails, the device keeps a vector for which no driver is polled.
            let _ = self.with(|unit| unit.remapper().map(|remapper| remapper.set_route(table, index, [0; 2])));
        }
    }
}
