//! Makes a manifest at compile time.

use ringfence_abi::ABI_VERSION;
use ringfence_abi::manifest::{self, Kind, MAGIC, Manifest as Raw, Policy};

/// What a module says about itself. Budgets not named are small ones.
pub struct Manifest(Raw);

impl Manifest {
    /// A module of kind [`Kind::Other`] that drives nothing.
    pub const fn new(name: &str, version: &str) -> Manifest {
        Manifest(Raw {
            magic: MAGIC,
            abi_version: ABI_VERSION,
            kind: Kind::Other as u32,
            name: manifest::field(name),
            version: manifest::field(version),
            pci_ids: manifest::pci_ids(&[]),
            heap_bytes: 64 << 10,
            dma_bytes: 0,
            stack_bytes: 32 << 10,
            upcall_ms: 200,
            policy: Policy::Stop as u32,
            reserved: 0,
        })
    }

    /// What it is, and so which services it is granted.
    pub const fn kind(mut self, kind: Kind) -> Manifest {
        self.0.kind = kind as u32;
        self
    }

    /// Vendor and device ids of the PCI functions that it drives.
    pub const fn pci(mut self, ids: &[(u16, u16)]) -> Manifest {
        self.0.pci_ids = manifest::pci_ids(ids);
        self
    }

    /// Most heap, in KiB.
    pub const fn heap_kib(mut self, kib: u32) -> Manifest {
        self.0.heap_bytes = kib << 10;
        self
    }

    /// Most DMA memory, in KiB. What comes with the queues of its kind is not counted.
    pub const fn dma_kib(mut self, kib: u32) -> Manifest {
        self.0.dma_bytes = kib << 10;
        self
    }

    /// Stack, in KiB.
    pub const fn stack_kib(mut self, kib: u32) -> Manifest {
        self.0.stack_bytes = kib << 10;
        self
    }

    /// Longest time that one upcall may take, in milliseconds.
    pub const fn upcall_ms(mut self, milliseconds: u32) -> Manifest {
        self.0.upcall_ms = milliseconds;
        self
    }

    /// Has the driver loaded anew when it was ended by a fault.
    pub const fn restart(mut self) -> Manifest {
        self.0.policy = Policy::Restart as u32;
        self
    }

    /// The manifest as the module file holds it.
    pub const fn build(self) -> Raw {
        self.0
    }
}
