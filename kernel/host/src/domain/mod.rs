//! A domain: a loaded driver module, its memory, its grants, and the ring it runs in.
//!
//! Its root, slot, capability table and I/O bitmap are a [`hw::space::Space`].
//!
//! * [`memory`]: the only way to open a pointer that it passed
//! * [`upcall`]: running it, which is a call that returns a reason
//! * [`cause`], [`fault`]: why it was ended; [`report`]: that in words for a person; [`calls`]:
//!   what it had asked the kernel for
//! * [`device`]: the PCI function it drives; [`reset`]: how that is stopped; [`virtio`]: what it
//!   was told of queues, if it is one; [`messages`]: the interrupts that it sends by itself
//! * [`offer`]: what it offers to the rest of the kernel; [`turn`]: what it has had of the CPU;
//!   [`trace`]: what happens at its boundary
//! * [`life`], [`end`]: what becomes of it; [`trust`]: whether it may run in ring 0
//! * [`timer`], [`sleep`]: what happens because time has gone by
//! * [`registry`]: all that are loaded; [`whose`]: which of them has some memory

use crate::file::File;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use hw::console::Source;
use hw::memory::frames::{Lent, OutOfMemory};
use ringfence_abi::layout::{self, PAGE_SIZE};
use ringfence_abi::manifest::Manifest;
use ringfence_abi::upcall::{Events, POLL};
use ringfence_core::extent::Extent;
use ringfence_core::life::Life;
use ringfence_core::module::Imports;
use ringfence_core::timer::Timer;
use spin::Mutex;

pub mod calls;
pub mod cause;
pub mod device;
pub mod end;
pub mod fault;
pub mod hardware;
pub mod life;
pub mod memory;
pub mod offer;
pub mod registry;
pub mod report;
pub mod reset;
pub mod sleep;
pub mod timer;
pub mod trace;
pub mod trust;
pub mod turn;
pub mod upcall;
mod virtio;
pub mod whose;

pub use hw::space::Ring;

/// A domain that several parts of the kernel know.
///
/// It is locked while it runs. Services reach it through the CPU's state, never through the lock;
/// everything else in the kernel runs between upcalls.
pub type Handle = Arc<Mutex<Domain>>;

/// A loaded driver module.
pub struct Domain {
    /// Its name: the module's, with a number behind it if there are several.
    pub name: String,
    /// The module file it was loaded from.
    pub file: File,
    /// What the module says about itself.
    pub manifest: Manifest,
    /// What a person has given it, each as `name=value`: a successor has the same.
    pub parameters: alloc::vec::Vec<String>,
    /// The services it asked for and was granted.
    pub imports: Imports,
    /// Its address space.
    pub space: hw::space::Space,
    /// Offset of its entry point in the image.
    pub entry: u64,
    /// Length of its image in bytes.
    pub image_bytes: u64,
    /// The device it drives.
    pub device: Option<device::Device>,
    /// Which one that is, also when it was ended: a successor drives that one.
    pub drives: Option<hardware::Which>,
    /// Length of its heap in bytes.
    pub heap_bytes: u64,
    /// DMA memory that it asked for, and may give back. Queues' memory is not among it: that is the
    /// kernel's to free.
    pub dma: alloc::vec::Vec<DmaRegion>,
    /// DMA memory that it has given back. Its device may write there still: it is nobody else's
    /// until that is stopped.
    pub dma_kept: alloc::vec::Vec<DmaRegion>,
    /// Where its next DMA region goes.
    pub dma_next: u64,
    /// What it offers.
    pub offer: Option<Box<dyn offer::Offer>>,
    /// What it uses.
    pub used: Option<Box<dyn offer::Use>>,
    /// The upcall that is under way, or was last.
    pub upcall: u64,
    /// What that is for, if it is a poll.
    pub events: Events,
    /// Its last calls of services.
    pub calls: calls::CallLog,
    /// Whether what it does is noted ([`crate::domain::trace`]).
    pub traced: bool,
    /// Whether it runs, why it was ended if it was, and what becomes of it.
    pub life: Life<Arc<fault::Fault>>,
    /// How often it was entered.
    pub upcalls: u64,
    /// How many instances were in its place before.
    pub restarts: u64,
    /// Why it gave up, if it did.
    pub last_words: String,
    /// What lies where its device reached beyond its fence, if it was ended for that.
    pub lies_there: String,
    /// What it has had of the CPU.
    pub turn: turn::Turn,
    /// When it is polled because time has gone by.
    pub timer: Timer,
    /// What it has slept in the upcall under way, and what came of one in which it slept.
    pub sleep: sleep::Sleep,
    /// What it has said in answer to the command under way.
    pub answer: String,
    /// The commands that it understands, each with what it is for.
    pub commands: alloc::vec::Vec<String>,
    /// Lines that it may still log in the upcall under way, and lines that were dropped.
    pub log_left: u32,
    /// See `log_left`.
    pub log_dropped: u32,
    /// How long it took to stop its device, in TSC ticks.
    pub stop_ticks: u64,
    /// Frames that are kept for it ([`hw::memory::frames::promise`]).
    pub promised: u64,
}

/// DMA memory of a domain.
#[derive(Debug, Clone)]
pub struct DmaRegion {
    /// Where the driver sees it.
    pub extent: Extent,
    /// The memory, which is the domain's and its device's.
    pub memory: Lent,
}

impl Domain {
    /// First address of its slot.
    pub fn base(&self) -> u64 {
        layout::slot_base(self.space.slot())
    }

    /// The extent of its slot.
    pub fn slot_extent(&self) -> Extent {
        Extent::new(self.base(), layout::SLOT_SIZE)
    }

    /// The ring it runs in.
    pub fn ring(&self) -> Ring {
        self.space.ring()
    }

    /// Moves it between rings. Nothing of it runs right now, because whoever calls this holds its
    /// lock: its memory, its state and what its device is doing stay as they are. One that sleeps
    /// is moved when the upcall that it sleeps in has ended: on its stack is what belongs to a
    /// ring.
    pub fn set_ring(&mut self, ring: Ring) {
        if self.space.is_asleep() {
            self.sleep.ring = Some(ring);
        } else {
            self.space.set_ring(ring, self.imports);
        }
    }

    /// Maps physically contiguous zeroed memory of `len_bytes` bytes (whole pages) that it can use
    /// for DMA; its device can write there if `is_written`.
    pub fn map_dma(&mut self, len_bytes: u64, is_written: bool) -> Result<DmaRegion, OutOfMemory> {
        let start = self.base() + layout::DMA + self.dma_next;
        let next = self.dma_next.checked_add(len_bytes + PAGE_SIZE).ok_or(OutOfMemory)?;
        if next > layout::DMA_MAX {
            return Err(OutOfMemory);
        }
        let memory = self.space.map_lent(start, len_bytes)?;
        // A page is left out behind each region, so that running off its end faults.
        self.dma_next = next;
        let region = DmaRegion { extent: Extent::new(start, len_bytes), memory };
        if let Err(error) = self.let_device_reach(&region, is_written) {
            self.unmap_dma(&region);
            return Err(error);
        }
        Ok(region)
    }

    /// Takes away what [`Domain::map_dma`] has mapped. What its device may reach all the same is
    /// never anybody else's.
    pub fn unmap_dma(&mut self, region: &DmaRegion) {
        if self.keep_device_from(region) {
            self.space.unmap(region.extent.start, region.extent.len_bytes);
        } else {
            self.space.set_aside();
        }
    }

    /// Bytes of DMA memory that count against its budget.
    pub fn dma_bytes(&self) -> u64 {
        self.dma.iter().chain(&self.dma_kept).map(|region| region.extent.len_bytes).sum()
    }

    /// Because of whom a line of the log is said, in or behind its last upcall.
    pub fn source(&self) -> Source {
        let was_killed = self.life.fault().is_some_and(|fault| fault.kind == "killed");
        match self.upcall == POLL && !was_killed {
            true => Source::by_itself(&self.name),
            false => Source::asked(&self.name),
        }
    }

    /// Whether an upcall of it is under way.
    pub fn is_running(&self) -> bool {
        self.space.is_entered()
    }

    /// Whether it was not ended. It can be run then, unless it sleeps.
    pub fn is_alive(&self) -> bool {
        self.life.is_alive()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // The device first: what it may still write must not be somebody else's by then.
        self.stop_device();
        // What is set aside is never free again.
        if !self.space.is_set_aside() {
            hw::memory::frames::take_back_promise(self.promised);
        }
    }
}
