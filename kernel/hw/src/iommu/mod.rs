//! The fence around devices: a device reaches the memory that its driver was given for it, and
//! nothing else.
//!
//! * [`unit`]: the operations of an IOMMU of any kind
//! * [`vtd`]: Intel's remapping units
//! * [`routes`]: the interrupts that devices send
//!
//! From the start of the kernel on, no device reaches anything. [`Fence::new`] makes a fence for a
//! device, and [`Fence::map`] lets the device reach memory, at addresses that are the driver's own,
//! counted from the start of its slot. Any access beyond that is recorded, and ends the device's
//! driver.

use crate::memory::frames::{Lent, OutOfMemory};
use crate::memory::registers::Registers;
use crate::pci::{self, Function};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, Ordering};
use log::{info, warn};
use pci_types::PciAddress;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_core::acpi::Wiring;
use ringfence_core::dmar::{self, Dmar, Scope, ScopeKind};
use ringfence_core::extent::Extent;
use ringfence_core::pci::virtio_common;
pub use routes::remaps_interrupts;
use spin::Mutex;
pub use unit::Fault;
use unit::{FaultStatus, Iommu};

mod routes;
mod unit;
mod vtd;

/// A unit, and the devices that it watches.
struct Watcher {
    unit: Box<dyn Iommu>,
    watches: dmar::Unit,
}

/// This lock is held while interrupts are let in ([`crate::latency::breathe`]): no interrupt
/// handler may take it.
static WATCHERS: Mutex<Vec<Watcher>> = Mutex::new(Vec::new());
static IS_ON: AtomicBool = AtomicBool::new(false);
/// Memory that firmware has reserved for devices that it uses itself.
static RESERVED: Mutex<Vec<dmar::Reserved>> = Mutex::new(Vec::new());
/// Numbers of domains that are in use; 0 is reserved (VT-d, 9.3).
static DOMAINS: Mutex<[bool; MOST_DOMAINS]> = Mutex::new([false; MOST_DOMAINS]);
const MOST_DOMAINS: usize = 256;

/// Recorded faults that [`Fence::take_fault`] has not taken yet.
static FAULTS: Mutex<Vec<Fault>> = Mutex::new(Vec::new());
/// Fault status of the first unit, which can be read without a lock.
static STATUS: FaultStatus = FaultStatus::none();
/// Whether there are other units.
static HAS_OTHERS: AtomicBool = AtomicBool::new(false);
/// Whether there are other units, or recorded faults that concern a driver.
static MUST_LOOK: AtomicBool = AtomicBool::new(false);
/// Most faults that are kept.
const MOST_FAULTS: usize = 64;

/// Turns on all units that firmware's table names.
pub fn init(table: &Dmar, wiring: &Wiring) {
    for found in table.units.iter().filter(|unit| unit.segment == 0) {
        match vtd::Unit::start(found.registers) {
            Ok(unit) => {
                info!("iommu: VT-d at {:#x} keeps devices to what they are given", found.registers);
                WATCHERS.lock().push(Watcher { unit: Box::new(unit), watches: found.clone() });
                IS_ON.store(true, Ordering::Relaxed);
            }
            Err(why) => warn!("iommu: VT-d at {:#x} is not used: {why}", found.registers),
        }
    }
    {
        let watchers = WATCHERS.lock();
        STATUS.set(watchers.first().map_or(FaultStatus::none(), |watcher| watcher.unit.fault_status()));
        HAS_OTHERS.store(watchers.len() > 1, Ordering::Relaxed);
    }
    note_left(&[]);
    *RESERVED.lock() = table.reserved.clone();
    if table.remaps_interrupts && is_on() {
        routes::init(wiring);
    }
}

/// Returns whether there is a fence at all.
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// The reason why a device has no fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfenced {
    /// The machine has no IOMMU.
    NoIommu,
    /// No IOMMU watches the device.
    NotWatched,
    /// The device is behind a bridge that makes requests for it, and also for a device that another
    /// driver has.
    Shared,
    /// The device is a virtio device that goes past the IOMMU, or does not say that it goes through
    /// it.
    Bypasses,
    /// Firmware uses the device, too.
    Reserved,
    /// There was no memory for the tables, or no domain number, or the unit failed.
    Failed,
}

impl Unfenced {
    /// Returns the reason in words.
    pub fn name(self) -> &'static str {
        match self {
            Unfenced::NoIommu => "the machine has no IOMMU",
            Unfenced::NotWatched => "no IOMMU watches it",
            Unfenced::Shared => "a bridge asks in its place, and in that of a device that another driver has",
            Unfenced::Bypasses => "it goes past the IOMMU (virtio without ACCESS_PLATFORM)",
            Unfenced::Reserved => "firmware uses it, too",
            Unfenced::Failed => "the IOMMU failed, or has no room for it",
        }
    }
}

impl core::fmt::Display for Unfenced {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// The fence around one device.
pub struct Fence {
    watcher: usize,
    source: u16,
    domain: u16,
    /// The memory that is mapped for the device, and where. It is never freed as long as the device
    /// may reach it: only [`Fence::unmap`] and [`Fence::remove`] release it, after they have
    /// succeeded.
    mapped: ManuallyDrop<Vec<(u64, Lent)>>,
}

impl Fence {
    /// Makes a fence around `function`, which reaches nothing yet.
    pub fn new(function: &Function) -> Result<Fence, Unfenced> {
        let mut watchers = WATCHERS.lock();
        if watchers.is_empty() {
            return Err(Unfenced::NoIommu);
        }
        let address = function.address;
        let by_name = |watcher: &Watcher| watcher.watches.scopes.iter().any(|scope| names(scope, address));
        let watcher = watchers
            .iter()
            .position(by_name)
            .or_else(|| watchers.iter().position(|watcher| watcher.watches.watches_rest))
            .ok_or(Unfenced::NotWatched)?;
        if goes_past(function) {
            return Err(Unfenced::Bypasses);
        }
        if RESERVED.lock().iter().flat_map(|reserved| &reserved.scopes).any(|scope| names(scope, address)) {
            return Err(Unfenced::Reserved);
        }
        let Watcher { unit, .. } = watchers.get_mut(watcher).ok_or(Unfenced::Failed)?;
        let source = source_of(pci::requester(address));
        if !take_source(source) {
            return Err(Unfenced::Shared);
        }
        let Some(domain) = take_domain() else {
            give_back_source(source);
            return Err(Unfenced::Failed);
        };
        let attached = unit.attach(source, domain);
        drop(watchers);
        // Faults that the device caused before it had a driver must not count against this driver.
        forget_source(source);
        SAID.lock().retain(|said| *said != source);
        let fence = Fence { watcher, source, domain, mapped: ManuallyDrop::default() };
        if attached.is_err() {
            // The unit may have attached the device all the same. If the unit does not detach it,
            // the domain's number stays taken.
            let _ = fence.remove();
            return Err(Unfenced::Failed);
        }
        Ok(fence)
    }

    /// Returns the physical address of the fence's first table.
    pub fn tables(&self) -> Option<u64> {
        self.with(|unit| unit.table(self.domain)).flatten()
    }

    /// Returns whether one of the fence's tables is in the page at `page`.
    pub fn has_table(&self, page: u64) -> bool {
        self.with(|unit| unit.has_table(self.domain, page)).unwrap_or(false)
    }

    fn with<T>(&self, then: impl FnOnce(&mut dyn Iommu) -> T) -> Option<T> {
        WATCHERS.lock().get_mut(self.watcher).map(|watcher| then(&mut *watcher.unit))
    }

    /// Lets the device reach `memory` (whole pages) at its address `start`. On an error the device
    /// may reach some of it; [`Fence::unmap`] ends that.
    pub fn map(&mut self, start: u64, memory: &Lent, is_written: bool) -> Result<(), OutOfMemory> {
        self.mapped.push((start, memory.clone()));
        let mapped = self.with(|unit| unit.map(self.domain, start, memory, is_written));
        mapped.and_then(Result::ok).ok_or(OutOfMemory)
    }

    /// Takes `len_bytes` bytes at `start` out of the device's reach. Returns `false` if the unit
    /// does not obey.
    #[must_use]
    pub fn unmap(&mut self, start: u64, len_bytes: u64) -> bool {
        let is_done = self.with(|unit| unit.unmap(self.domain, start, len_bytes)).is_some_and(|done| done.is_ok())
            && self.flush();
        if is_done {
            let taken = Extent::new(start, len_bytes);
            self.mapped.retain(|(at, memory)| !taken.encloses(Extent::new(*at, memory.len_bytes() as u64)));
        }
        is_done
    }

    /// Makes the unit forget its cached entries for the device. Returns `false` if the unit does
    /// not obey.
    #[must_use]
    pub fn flush(&self) -> bool {
        self.with(|unit| unit.flush(self.domain)).is_some_and(|done| done.is_ok())
    }

    /// Stops the recording of further faults of the device.
    pub fn silence(&self) {
        // If this fails, only more faults are recorded, which does no harm.
        let _ = self.with(|unit| unit.silence(self.source, self.domain));
    }

    /// Takes the first recorded fault of this device, and forgets its other ones.
    pub fn take_fault(&self) -> Option<Fault> {
        let mut faults = FAULTS.lock();
        let first = faults.iter().position(|fault| fault.source == self.source)?;
        let fault = faults.get(first).copied();
        faults.retain(|fault| fault.source != self.source);
        note_left(&faults);
        fault
    }

    /// Takes all memory out of the device's reach. Returns `false` if the unit does not obey: the
    /// device may then still reach all memory that it reached before.
    #[must_use]
    pub fn remove(self) -> bool {
        let is_done = self.with(|unit| unit.detach(self.source, self.domain)).is_some_and(|done| done.is_ok());
        let Fence { source, domain, mapped, .. } = self;
        if is_done {
            drop(ManuallyDrop::into_inner(mapped));
            give_back_domain(domain);
            give_back_source(source);
        }
        // Faults that the device caused until now must not count against a later driver.
        forget_source(source);
        is_done
    }
}

/// Sources that have a fence. Several devices can have one source: they share one fence, and one
/// driver.
static SOURCES: Mutex<Vec<u16>> = Mutex::new(Vec::new());

fn take_source(source: u16) -> bool {
    let mut sources = SOURCES.lock();
    let is_free = !sources.contains(&source);
    if is_free {
        sources.push(source);
    }
    is_free
}

fn give_back_source(source: u16) {
    SOURCES.lock().retain(|other| *other != source);
}

fn take_domain() -> Option<u16> {
    let mut domains = DOMAINS.lock();
    let free = (1..MOST_DOMAINS).find(|number| domains.get(*number) == Some(&false))?;
    *domains.get_mut(free)? = true;
    u16::try_from(free).ok()
}

fn give_back_domain(number: u16) {
    if let Some(used) = DOMAINS.lock().get_mut(usize::from(number)) {
        *used = false;
    }
}

/// Returns whether a device can access ports by itself, which no IOMMU prevents. The devices known
/// to do so are the 53C8xx, by the bits DIOM and SIOM of their DMODE register (LSI53C895A Technical
/// Manual, 4.2).
pub fn reaches_ports(function: &Function) -> bool {
    const LSI_LOGIC: u16 = 0x1000;
    function.id.vendor == LSI_LOGIC && (0x0001..=0x0012).contains(&function.id.device)
}

/// Returns whether a device goes past the IOMMU: a virtio device does, unless it offers
/// ACCESS_PLATFORM (VIRTIO 1.1, 6.1).
fn goes_past(function: &Function) -> bool {
    const VIRTIO: u16 = 0x1af4;
    const COMMON_BYTES: u64 = 56;
    const FEATURE_SELECT: u64 = 0;
    const FEATURES: u64 = 4;
    const ACCESS_PLATFORM: u32 = 1 << (33 - 32);
    if function.id.vendor != VIRTIO {
        return false;
    }
    let common = virtio_common(|offset| function.read(offset)).and_then(|(bar, offset)| {
        let (start, _) = function.bars.get(bar as usize)?.as_ref().and_then(pci::memory_extent)?;
        Registers::at(start.checked_add(offset.into())?, COMMON_BYTES)
    });
    // A device from before virtio 1.0 does not have the feature.
    let Some(common) = common else { return true };
    common.write32(FEATURE_SELECT, 1);
    common.read32(FEATURES) & ACCESS_PLATFORM == 0
}

/// Returns whether a scope names the function at `address`, or a bridge above it.
fn names(scope: &Scope, address: PciAddress) -> bool {
    let Some(((device, function), above)) = scope.path.split_last() else { return false };
    let Some(bus) = above.iter().try_fold(scope.bus, |bus, (device, function)| {
        pci::buses_below(PciAddress::new(0, bus, *device & 31, *function & 7)).map(|below| *below.start())
    }) else {
        return false;
    };
    let named = PciAddress::new(0, bus, *device & 31, *function & 7);
    match scope.kind {
        ScopeKind::Endpoint => named == address,
        ScopeKind::Bridge => pci::buses_below(named).is_some_and(|below| below.contains(&address.bus())),
        ScopeKind::IoApic | ScopeKind::Other => false,
    }
}

/// Collects the faults that the units have recorded. Returns whether any of them concerns a driver.
/// This is called after each poll.
#[inline(always)]
pub fn note_faults() -> bool {
    (STATUS.is_set() || MUST_LOOK.load(Ordering::Relaxed)) && take_down()
}

#[cold]
fn take_down() -> bool {
    let mut watchers = WATCHERS.lock();
    let mut faults = FAULTS.lock();
    for watcher in watchers.iter_mut().filter(|watcher| watcher.unit.fault_status().is_set()) {
        watcher.unit.take_faults(&mut |fault| {
            if faults.len() < MOST_FAULTS {
                faults.push(fault);
            }
        });
    }
    note_left(&faults)
}

/// Notes and returns whether faults are left that concern a driver.
fn note_left(faults: &[Fault]) -> bool {
    MUST_LOOK.store(HAS_OTHERS.load(Ordering::Relaxed) || !faults.is_empty(), Ordering::Relaxed);
    !faults.is_empty()
}

/// Returns the requesters that caused the recorded faults.
pub fn sources() -> Vec<PciAddress> {
    let faults = FAULTS.lock();
    let address = |source: u16| {
        let [function, bus] = source.to_le_bytes();
        PciAddress::new(0, bus, function >> 3, function & 7)
    };
    faults.iter().map(|fault| address(fault.source)).collect()
}

/// Sources whose faults without a driver were logged, so that a flood of faults is one line.
static SAID: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// Forgets the recorded faults of a requester.
pub fn forget(requester: PciAddress) {
    forget_source(source_of(requester));
}

/// Forgets the recorded faults of a requester whose devices have no driver. Logs the first of them,
/// and further ones only after a driver has had one of the devices.
pub fn forget_unowned(requester: PciAddress) {
    const MOST_SAID: usize = 64;
    let source = source_of(requester);
    let first = FAULTS.lock().iter().find(|fault| fault.source == source).copied();
    forget_source(source);
    let mut said = SAID.lock();
    if let Some(fault) = first.filter(|_| said.len() < MOST_SAID && !said.contains(&source)) {
        said.push(source);
        let direction = if fault.writes { "write to" } else { "read" };
        let why = reason(fault.reason);
        warn!("{requester}: it tried to {direction} {:#x}, and no driver has it: {why}", fault.address);
    }
}

/// Forgets all faults of a source, including faults that its unit has not reported yet.
fn forget_source(source: u16) {
    take_down();
    let mut faults = FAULTS.lock();
    faults.retain(|fault| fault.source != source);
    note_left(&faults);
}

/// Returns the source id of a function (VT-d, 3.4.1).
fn source_of(address: PciAddress) -> u16 {
    u16::from_be_bytes([address.bus(), address.device() << 3 | address.function()])
}

/// Returns the reason why a unit blocked an access (VT-d, 7.2.3), in words.
pub fn reason(reason: u8) -> String {
    let words = match reason {
        0x1 | 0x2 => "it has been given nothing",
        0x4 => "no address is as long",
        0x5 => "it may not write there",
        0x6 => "it may not read there",
        0xe => "interrupts are raised there",
        _ => return format!("reason {reason:#x}"),
    };
    words.into()
}

/// Returns whether the page at `page` holds a unit's registers, its queue or its own tables.
/// Devices have separate tables: [`Fence::has_table`].
pub fn has(page: u64) -> bool {
    if routes::table() == Some(page) {
        return true;
    }
    let watchers = WATCHERS.lock();
    watchers
        .iter()
        .any(|watcher| watcher.watches.registers == page || watcher.unit.parts().iter().any(|(_, part)| *part == page))
}

/// Returns the address of the first unit's part with this name: `registers`, `queue`, or one of its
/// tables.
pub fn part(name: &str) -> Option<u64> {
    let watchers = WATCHERS.lock();
    let first = watchers.first()?;
    let table = routes::table().map(|table| ("interrupt-table", table));
    let registers = core::iter::once(("registers", first.watches.registers)).chain(table);
    registers.chain(first.unit.parts()).find(|(part, _)| *part == name).map(|(_, at)| at)
}

/// Returns whether `extent` overlaps registers of a unit, which only the kernel may reach.
pub fn has_registers(extent: Extent) -> bool {
    let watchers = WATCHERS.lock();
    watchers.iter().any(|watcher| extent.overlaps(Extent::new(watcher.watches.registers, PAGE_SIZE)))
}
