//! What an IOMMU does for the fence, whatever kind it is: who uses the fence knows only
//! [`super::Fence`].
//!
//! A *domain* is a set of addresses that devices have (VT-d, 3.3); here it is one device's, or that
//! of those behind one bridge. A *source* is how a device says who it is: bus, device and function.

use crate::memory::frames::{Frames, OutOfMemory};
use crate::memory::registers::OneRegister;
use crate::memory::shared::SharedMemory;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

/// An IOMMU that is on: **a source that is attached to no domain reaches nothing.**
pub trait Iommu: Send {
    /// Attaches `source` to `domain`, which maps nothing yet. On an error it may be attached:
    /// [`Iommu::detach`] ends that.
    fn attach(&mut self, source: u16, domain: u16) -> Result<(), Unusable>;

    /// Maps `memory` (whole pages), which stays as long as it is mapped, at the devices' address
    /// `start`. On an error some of it may be mapped.
    fn map(&mut self, domain: u16, start: u64, memory: &SharedMemory, is_written: bool) -> Result<(), Unusable>;

    /// Takes them out of the domain. **Devices may reach them until [`Iommu::flush`] has
    /// succeeded.**
    fn unmap(&mut self, domain: u16, start: u64, len_bytes: u64) -> Result<(), Unusable>;

    /// Has it forget what it remembers of a domain, and waits until it has.
    fn flush(&mut self, domain: u16) -> Result<(), Unusable>;

    /// Has it record no more faults of `source`: who floods is known.
    fn silence(&mut self, source: u16, domain: u16) -> Result<(), Unusable>;

    /// Ends what [`Iommu::attach`] began, and frees what the domain needed. On an error the source
    /// may reach all that it did, and nothing was freed.
    fn detach(&mut self, source: u16, domain: u16) -> Result<(), Unusable>;

    /// Where it says that it has recorded a fault: that is read after each poll, without asking the
    /// IOMMU.
    fn fault_status(&self) -> FaultStatus;

    /// Takes the faults that it has recorded.
    fn take_faults(&mut self, take: &mut dyn FnMut(Fault));

    /// Frames that it has for itself, by name.
    fn parts(&self) -> Vec<(&'static str, u64)>;

    /// Physical address of the domain's first table, if it is in memory.
    fn table(&self, domain: u16) -> Option<u64>;

    /// Whether one of the domain's tables is in the page at `page`.
    fn has_table(&self, domain: u16, page: u64) -> bool;

    /// Its part that checks interrupts, if it has one.
    fn remapper(&mut self) -> Option<&mut dyn Remapper>;
}

/// The part of an IOMMU that looks up the interrupts that devices send.
pub trait Remapper {
    /// Has it look up interrupts in `table` from now on.
    fn remap(&mut self, table: &InterruptTable) -> Result<(), Unusable>;

    /// Writes entry `index` of the table, and has it forget what it remembers of that.
    fn set_route(&mut self, table: &InterruptTable, index: u8, entry: [u64; 2]) -> Result<(), Unusable>;
}

/// Why an IOMMU is not used, or did not do as it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unusable {
    /// Its registers are not where they can be reached.
    NoRegisters,
    /// It does not translate in a way that is known here.
    Unknown,
    /// It does not do as it is told.
    Silent,
    /// There is no memory for its tables.
    NoMemory,
}

impl Unusable {
    /// The reason in words.
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

/// What a device did that an IOMMU did not let it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Bus, device and function of who did it.
    pub source: u16,
    /// The page.
    pub address: u64,
    /// Whether it wanted to write.
    pub writes: bool,
    /// Why not (VT-d, table 19).
    pub reason: u8,
}

/// A word in which an IOMMU says that it has recorded something: some of its bits are set then.
pub struct FaultStatus {
    word: OneRegister,
    bits: AtomicU32,
}

impl FaultStatus {
    /// None.
    pub const fn none() -> FaultStatus {
        FaultStatus { word: OneRegister::none(), bits: AtomicU32::new(0) }
    }

    /// The `bits` of `word`.
    pub fn new(word: OneRegister, bits: u32) -> FaultStatus {
        FaultStatus { word, bits: AtomicU32::new(bits) }
    }

    /// Makes it another one.
    pub fn set(&self, other: FaultStatus) {
        self.bits.store(other.bits.into_inner(), Ordering::Relaxed);
        self.word.set(other.word);
    }

    /// Whether something was recorded, or lost.
    #[inline(always)]
    pub fn is_set(&self) -> bool {
        self.word.read() & self.bits.load(Ordering::Relaxed) != 0
    }
}

/// Entries of the table of interrupts.
pub const ROUTES: usize = 256;

/// The table of interrupts that devices may send (VT-d, 9.9): an entry says which vector, at which
/// CPU, and for which device.
pub struct InterruptTable(Frames);

impl InterruptTable {
    /// An empty one.
    pub fn new() -> Result<InterruptTable, OutOfMemory> {
        Frames::new(1).map(InterruptTable)
    }

    /// Where it is.
    pub fn physical(&self) -> u64 {
        self.0.physical()
    }

    /// Its words, two an entry.
    pub fn words(&self) -> &SharedMemory {
        &self.0
    }
}

/// An entry that has the device `source`, and no other, raise `vector` at the CPU with number
/// `apic` (VT-d, 9.10): fixed delivery.
pub fn route(source: u16, vector: u8, apic: u8, is_level: bool) -> [u64; 2] {
    const PRESENT: u64 = 1;
    const LEVEL: u64 = 1 << 4;
    const CHECK_ALL_OF_SOURCE: u64 = 1 << 18;
    [
        PRESENT | if is_level { LEVEL } else { 0 } | u64::from(vector) << 16 | u64::from(apic) << 40,
        u64::from(source) | CHECK_ALL_OF_SOURCE,
    ]
}
