//! A domain: a loaded driver module, its memory, its grants, and the ring it runs in.
//!
//! Its page-table root, slot, capability table and I/O bitmap are a [`hw::space::Space`].
//!
//! * [`memory`]: the only way to open a pointer that it passed
//! * [`upcall`]: runs the driver; a call that returns the driver's answer, or the reason for having
//!   none
//! * [`cause`], [`fault`]: the reason of its end; [`report`]: the reason in words for a person;
//!   [`remains`]: its registers and its memory, for a core file;
//!   [`calls`]: its last calls of services
//! * [`device`]: the device that it drives; [`reset`]: stops the device; [`virtio`]: the queues of
//!   a virtio device
//! * [`offer`]: the device that it offers to the rest of the kernel; [`turn`]: its share of the
//!   CPU; [`trace`]: the record of the calls across its boundary; [`accesses`]: its accesses to its
//!   device's registers
//! * [`debug`]: a debugger's breakpoints, and drivers that stand still for it
//! * [`life`], [`end`]: its states and its end; [`trust`]: whether it may run in ring 0;
//!   [`witness`]: counts its operations and its time in ring 1 for the record of its file
//! * [`timer`], [`sleep`]: its timer and its sleeps; [`saved`]: its state over a reload
//! * [`registry`]: all loaded domains; [`whose`]: the owner of an address

use crate::file::File;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use hw::console::Source;
use hw::memory::frames::{Lent, OutOfMemory};
use ringfence_abi::layout::{self, PAGE_SIZE};
use ringfence_abi::manifest::DomainKind;
use ringfence_abi::manifest::Manifest;
use ringfence_abi::upcall::{Events, POLL};
use ringfence_core::extent::Extent;
use ringfence_core::life::Life;
use ringfence_core::module::Imports;
use ringfence_core::timer::Timer;
use spin::Mutex;

pub mod accesses;
pub mod calls;
pub mod cause;
pub mod debug;
pub mod device;
pub mod end;
pub mod fault;
pub mod hardware;
pub mod life;
pub mod memory;
pub mod offer;
pub mod registry;
pub mod remains;
pub mod report;
pub mod reset;
pub mod saved;
pub mod sleep;
pub mod timer;
pub mod trace;
pub mod trust;
pub mod turn;
pub mod upcall;
mod virtio;
pub mod whose;
pub mod witness;

pub use hw::space::Ring;

/// A domain that is shared by several parts of the kernel.
///
/// It is locked while it runs. Services reach it through the CPU's state, never through the lock.
/// Everything else in the kernel runs between upcalls.
pub type Handle = Arc<Mutex<Domain>>;

/// A loaded driver module.
pub struct Domain {
    /// Its name: the module's name, followed by a number if several domains have that name.
    pub name: String,
    /// The module file it was loaded from.
    pub file: File,
    /// The module's manifest.
    pub manifest: Manifest,
    /// Its parameters, each as `name=value`; a successor has the same.
    pub parameters: alloc::vec::Vec<String>,
    /// The services that it asked for and was granted.
    pub imports: Imports,
    /// Its address space.
    pub space: hw::space::Space,
    /// The address of its entry point.
    pub entry: u64,
    /// The timer ticks that an upcall may use, from the manifest's milliseconds.
    pub budget: u32,
    /// The length of its image in bytes.
    pub image_bytes: u64,
    /// The device that it drives, until the device is stopped.
    pub device: Option<device::Device>,
    /// The identity of the device, also after the driver's end: a successor drives the same device.
    pub drives: Option<hardware::Which>,
    /// The length of its heap in bytes.
    pub heap_bytes: u64,
    /// DMA memory that it asked for, and may give back. The memory of queues is not among it: the
    /// kernel frees that.
    pub dma: alloc::vec::Vec<DmaRegion>,
    /// DMA memory that it has given back. Its device may still write there, so that no other domain
    /// gets the memory until the device is stopped.
    pub dma_kept: alloc::vec::Vec<DmaRegion>,
    /// Whether a person was told that the budget of DMA memory is too small.
    pub budget_blamed: bool,
    /// Whether a person was told that the recipe for a reset does not fit the device.
    pub recipe_blamed: bool,
    /// The offset of its next DMA region.
    pub dma_next: u64,
    /// The device that it offers.
    pub offer: Option<Box<dyn offer::Offer>>,
    /// Another driver's device that it uses.
    pub used: Option<Box<dyn offer::Use>>,
    /// The operation of the upcall that is under way, or of the last one.
    pub upcall: u64,
    /// The events of that upcall, if it is a poll.
    pub events: Events,
    /// Its last service calls.
    pub calls: calls::CallLog,
    /// The trace of it that is under way ([`trace`]).
    pub trace: Option<Arc<trace::Trace>>,
    /// Its state: running, asleep, or ended for a reason and to be restarted or not.
    pub life: Life<Arc<fault::Fault>>,
    /// The number of upcalls.
    pub upcalls: u64,
    /// The number of instances that were in its place before because of faults.
    pub restarts: u64,
    /// The build that was in its place before, as long as a fault brings that one back.
    pub probation: Option<Probation>,
    /// Its message when it gave up, if it did.
    pub last_words: String,
    /// The owner of the memory that its device reached for beyond its fence, if the driver was
    /// ended because of that access.
    pub lies_there: String,
    /// Its state under a debugger.
    pub debugged: debug::Debugged,
    /// Its share of the CPU.
    pub turn: turn::Turn,
    /// Its timer.
    pub timer: Timer,
    /// Its sleep in the upcall under way, and the outcome of an upcall in which it slept.
    pub sleep: sleep::Sleep,
    /// Its answer to the command under way.
    pub answer: String,
    /// The commands that it understands, each with its help.
    pub commands: alloc::vec::Vec<String>,
    /// The number of lines that it may still log in the upcall under way, and of dropped lines.
    pub log_left: u32,
    /// The number of lines that were dropped for lack of `log_left`.
    pub log_dropped: u32,
    /// The time that stopping its device took, in TSC ticks.
    pub stop_ticks: u64,
    /// The number of frames that are reserved for it ([`hw::memory::frames::promise`]).
    pub promised: u64,
    /// Its contribution to the record of its file.
    pub witnessed: witness::Witnessed,
}

/// The probation of a driver after a reload: it must run for a while without a fault.
#[derive(Debug, Clone)]
pub struct Probation {
    /// The file of the build before.
    pub before: File,
    /// The end of the time, in nanoseconds since boot.
    pub until_ns: u64,
}

/// DMA memory of a domain.
#[derive(Debug, Clone)]
pub struct DmaRegion {
    /// Its extent for the driver.
    pub extent: Extent,
    /// The memory, shared by the domain and its device.
    pub memory: Lent,
}

impl Domain {
    /// Returns the first address of the domain's slot.
    pub fn base(&self) -> u64 {
        layout::slot_base(self.space.slot())
    }

    /// Returns whether the domain is segmented: its driver is 32-bit code.
    pub fn is_segmented(&self) -> bool {
        self.space.kind() == DomainKind::Segmented
    }

    /// Returns the extent of the domain's slot.
    pub fn slot_extent(&self) -> Extent {
        Extent::new(self.base(), layout::SLOT_SIZE)
    }

    /// Returns the ring that the domain runs in.
    pub fn ring(&self) -> Ring {
        self.space.ring()
    }

    /// Moves the driver between rings. It does not run now, because the caller holds its lock. Its
    /// memory, its state and the work of its device stay as they are. A driver that sleeps is moved
    /// at the end of the upcall that it sleeps in: its stack has values that belong to a ring.
    pub fn set_ring(&mut self, ring: Ring) {
        if self.space.is_asleep() {
            self.sleep.ring = Some(ring);
        } else {
            self.witness();
            if ring == Ring::Sandboxed {
                self.witnessed.forced_after = None;
            }
            self.space.set_ring(ring, self.imports);
            self.watch_registers();
        }
    }

    /// Maps `len_bytes` bytes (whole pages) of physically contiguous zeroed memory, which the
    /// domain can use for DMA. Its device can write there if `is_written`.
    pub fn map_dma(&mut self, len_bytes: u64, is_written: bool) -> Result<DmaRegion, OutOfMemory> {
        let start = self.base() + layout::DMA + self.dma_next;
        let next = self.dma_next.checked_add(len_bytes + PAGE_SIZE).ok_or(OutOfMemory)?;
        if next > layout::DMA_MAX {
            return Err(OutOfMemory);
        }
        let memory = self.space.map_lent(start, len_bytes)?;
        // Leave out a page after each region, so that an access past the region's end faults.
        self.dma_next = next;
        let region = DmaRegion { extent: Extent::new(start, len_bytes), memory };
        if let Err(error) = self.let_device_reach(&region, is_written) {
            self.unmap_dma(&region);
            return Err(error);
        }
        Ok(region)
    }

    /// Takes away a region that [`Domain::map_dma`] has mapped. If its device may still reach the
    /// region, no other domain ever gets that memory.
    pub fn unmap_dma(&mut self, region: &DmaRegion) {
        if self.keep_device_from(region) {
            self.space.unmap(region.extent.start, region.extent.len_bytes);
        } else {
            self.space.set_aside();
        }
    }

    /// Returns the number of bytes of DMA memory that count against the domain's budget.
    pub fn dma_bytes(&self) -> u64 {
        self.dma.iter().chain(&self.dma_kept).map(|region| region.extent.len_bytes).sum()
    }

    /// Returns the source to which a log line is attributed, in or after the domain's last upcall.
    pub fn source(&self) -> Source {
        let was_killed = self.life.fault().is_some_and(|fault| fault.kind == "killed");
        match self.upcall == POLL && !was_killed {
            true => Source::by_itself(&self.name),
            false => Source::asked(&self.name),
        }
    }

    /// Returns whether an upcall of the domain is under way.
    pub fn is_running(&self) -> bool {
        self.space.is_entered()
    }

    /// Returns whether the driver was left in the middle of an upcall by a trap: it runs, or stands
    /// for a debugger and is ended now.
    pub fn is_in_upcall(&self) -> bool {
        self.is_running() || self.space.standing().is_some()
    }

    /// Returns whether the domain has not been ended. It can be entered then, unless it sleeps.
    pub fn is_alive(&self) -> bool {
        self.life.is_alive()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // Stop the device first: until then it may write to the domain's memory, so the memory must
        // have no other owner.
        self.stop_device();
        // Memory that is set aside is never free again.
        if !self.space.is_set_aside() {
            hw::memory::frames::take_back_promise(self.promised);
        }
    }
}
