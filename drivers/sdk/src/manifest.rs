//! Makes a manifest at compile time.

use ringfence_abi::ABI_VERSION;
use ringfence_abi::manifest::{self, Kind, MAGIC, Manifest as Raw, Policy};
use ringfence_abi::reset::Reset;

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
            fixed_ports: [0; manifest::MAX_FIXED],
            heap_bytes: 64 << 10,
            dma_bytes: 0,
            stack_bytes: 32 << 10,
            upcall_ms: 200,
            policy: Policy::Stop as u32,
            flags: 0,
            reset: Reset::UNKNOWN,
            uses: Kind::Other as u32,
            reserved: 0,
        })
    }

    /// What it is, and so which services it is granted.
    pub const fn kind(mut self, kind: Kind) -> Manifest {
        self.0.kind = kind as u32;
        self
    }

    /// What kind of another driver's it uses: [`Kind::Block`] for a disk.
    pub const fn uses(mut self, kind: Kind) -> Manifest {
        self.0.uses = kind as u32;
        self
    }

    /// Vendor and device ids of the PCI functions that it drives.
    pub const fn pci(mut self, ids: &[(u16, u16)]) -> Manifest {
        self.0.pci_ids = manifest::pci_ids(ids);
        self
    }

    /// The devices at fixed ports that it drives, by the first port of each: 0x1f0 and 0x170 are
    /// the channels of ATA disks. Panics if there are too many.
    pub const fn fixed(mut self, first_ports: &[u16]) -> Manifest {
        assert!(first_ports.len() <= manifest::MAX_FIXED, "too many devices at fixed ports");
        let mut index = 0;
        while index < first_ports.len() {
            self.0.fixed_ports[index] = first_ports[index];
            index += 1;
        }
        self
    }

    /// Most heap, in KiB.
    pub const fn heap_kib(mut self, kib: u32) -> Manifest {
        self.0.heap_bytes = kib.saturating_mul(1 << 10);
        self
    }

    /// Most DMA memory, in KiB. What comes with the queues of its kind is not counted.
    pub const fn dma_kib(mut self, kib: u32) -> Manifest {
        self.0.dma_bytes = kib.saturating_mul(1 << 10);
        self
    }

    /// Stack, in KiB.
    pub const fn stack_kib(mut self, kib: u32) -> Manifest {
        self.0.stack_bytes = kib.saturating_mul(1 << 10);
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

    /// Has the driver never run in ring 0.
    pub const fn ring1_only(mut self) -> Manifest {
        self.0.flags |= manifest::RING1_ONLY;
        self
    }

    /// Has the driver not loaded at boot for a device that it drives: only a person loads it.
    pub const fn by_hand(mut self) -> Manifest {
        self.0.flags |= manifest::BY_HAND;
        self
    }

    /// Has the driver not loaded for a device that an IOMMU does not keep within the driver's
    /// memory.
    pub const fn needs_fence(mut self) -> Manifest {
        self.0.flags |= manifest::NEEDS_FENCE;
        self
    }

    /// How the kernel stops the device when the driver can't any more. Without a recipe a device
    /// that uses DMA is set aside for good when its driver ends, with the driver's memory if no
    /// IOMMU keeps it from that.
    pub const fn reset(mut self, recipe: Reset) -> Manifest {
        self.0.reset = recipe;
        self
    }

    /// The manifest as the module file holds it. Panics, which is an error of the compiler's, if
    /// the kernel would refuse it.
    pub const fn build(self) -> Raw {
        if let Err(error) = self.0.check() {
            panic!("{}", error.what());
        }
        self.0
    }
}
