//! The operations of an IOMMU of any kind that the fence needs. Users of the fence see only
//! [`super::Fence`].
//!
//! A *domain* is a set of addresses that devices have (VT-d, 3.3). Here each domain belongs to one
//! device, or to the devices behind one bridge. A *source* is a device's id in its requests: bus,
//! device and function.

use crate::memory::frames::{Frames, OutOfMemory};
use crate::memory::registers::OneRegister;
use crate::memory::shared::SharedMemory;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

/// An IOMMU that is on: **a source that is attached to no domain reaches nothing.**
pub trait Iommu: Send {
    /// Attaches `source` to `domain`, which maps nothing yet. On an error the source may be
    /// attached all the same; [`Iommu::detach`] ends that.
    fn attach(&mut self, source: u16, domain: u16) -> Result<(), Unusable>;

    /// Maps `memory` (whole pages) at the devices' address `start`. The memory must stay as long as
    /// it is mapped. On an error some of it may be mapped.
    fn map(&mut self, domain: u16, start: u64, memory: &SharedMemory, is_written: bool) -> Result<(), Unusable>;

    /// Unmaps `len_bytes` bytes at `start` from the domain. **Devices may reach them until
    /// [`Iommu::flush`] has succeeded.**
    fn unmap(&mut self, domain: u16, start: u64, len_bytes: u64) -> Result<(), Unusable>;

    /// Makes the IOMMU forget its cached entries of a domain, and waits until it has done so.
    fn flush(&mut self, domain: u16) -> Result<(), Unusable>;

    /// Stops the recording of further faults of `source`, when it has caused a flood of them.
    fn silence(&mut self, source: u16, domain: u16) -> Result<(), Unusable>;

    /// Detaches the source, and frees the domain's tables. On an error the source may still reach
    /// all memory that it reached before, and nothing is freed.
    fn detach(&mut self, source: u16, domain: u16) -> Result<(), Unusable>;

    /// Returns the word that tells whether the IOMMU has recorded a fault: it is read after each
    /// poll, without asking the IOMMU.
    fn fault_status(&self) -> FaultStatus;

    /// Passes each recorded fault to `take`, and removes it from the IOMMU.
    fn take_faults(&mut self, take: &mut dyn FnMut(Fault));

    /// Returns the frames that the IOMMU has for itself, by name.
    fn parts(&self) -> Vec<(&'static str, u64)>;

    /// Returns the physical address of the domain's first table, if the table is in memory.
    fn table(&self, domain: u16) -> Option<u64>;

    /// Returns whether one of the domain's tables is in the page at `page`.
    fn has_table(&self, domain: u16, page: u64) -> bool;

    /// Returns the part of the IOMMU that checks interrupts, if it has one.
    fn remapper(&mut self) -> Option<&mut dyn Remapper>;
}

/// The part of an IOMMU that looks up the interrupts that devices send.
pub trait Remapper {
    /// Makes the IOMMU look up interrupts in `table` from now on.
    fn remap(&mut self, table: &InterruptTable) -> Result<(), Unusable>;

    /// Writes entry `index` of the table, and makes the IOMMU forget its cached copy.
    fn set_route(&mut self, table: &InterruptTable, index: u8, entry: [u64; 2]) -> Result<(), Unusable>;
}

/// The reason why an IOMMU is not used, or has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// The registers are not where the kernel can reach them.
    NoRegisters,
    /// The kernel does not know this way of translation.
    Unknown,
    /// The IOMMU does not obey.
    Silent,
    /// There is no memory for the tables.
    NoMemory,
}

impl Unusable {
    /// Returns the reason in words.
    pub fn name(self) -> &'static str {
        match self {
            Unusable::NoRegisters => "its registers are not where they can be reached",
            Unusable::Unknown => "it does not translate in a way that is known here",
            Unusable::Silent => "it does not do as it is told",
            Unusable::NoMemory => "there is no memory for its tables",
        }
    }
}

impl core::fmt::Display for Unusable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

impl From<OutOfMemory> for Unusable {
    fn from(_: OutOfMemory) -> Unusable {
        Unusable::NoMemory
    }
}

/// An access of a device that an IOMMU blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Bus, device and function of the device.
    pub source: u16,
    /// Address of the page.
    pub address: u64,
    /// Whether the device tried to write.
    pub writes: bool,
    /// The reason why the access was blocked (VT-d, table 19).
    pub reason: u8,
}

/// A word in which an IOMMU sets some bits when it has recorded a fault.
pub struct FaultStatus {
    word: OneRegister,
    bits: AtomicU32,
}

impl FaultStatus {
    /// Makes a status of no IOMMU.
    pub const fn none() -> FaultStatus {
        FaultStatus { word: OneRegister::none(), bits: AtomicU32::new(0) }
    }

    /// Makes a status from the `bits` of `word`.
    pub fn new(word: OneRegister, bits: u32) -> FaultStatus {
        FaultStatus { word, bits: AtomicU32::new(bits) }
    }

    /// Replaces the status by `other`.
    pub fn set(&self, other: FaultStatus) {
        self.bits.store(other.bits.into_inner(), Ordering::Relaxed);
        self.word.set(other.word);
    }

    /// Returns whether a fault was recorded, or lost.
    #[inline(always)]
    pub fn is_set(&self) -> bool {
        self.word.read() & self.bits.load(Ordering::Relaxed) != 0
    }
}

/// Number of entries of the table of interrupts.
pub const ROUTES: usize = 256;

/// The table of interrupts that devices may send (VT-d, 9.9). An entry gives the vector, the CPU
/// that it is raised at, and the device that may send it.
pub struct InterruptTable(Frames);

impl InterruptTable {
    /// Makes an empty table.
    pub fn new() -> Result<InterruptTable, OutOfMemory> {
        Frames::new(1).map(InterruptTable)
    }

    /// Returns the table's physical address.
    pub fn physical(&self) -> u64 {
        self.0.physical()
    }

    /// Returns the table's words, two for each entry.
    pub fn words(&self) -> &SharedMemory {
        &self.0
    }
}

/// Makes an entry that lets the device `source`, and no other, raise `vector` at the CPU with
/// number `apic` (VT-d, 9.10): fixed delivery.
pub fn route(source: u16, vector: u8, apic: u8, is_level: bool) -> [u64; 2] {
    const PRESENT: u64 = 1;
    const LEVEL: u64 = 1 << 4;
    const CHECK_ALL_OF_SOURCE: u64 = 1 << 18;
    [
        PRESENT | if is_level { LEVEL } else { 0 } | u64::from(vector) << 16 | u64::from(apic) << 40,
        u64::from(source) | CHECK_ALL_OF_SOURCE,
    ]
}
