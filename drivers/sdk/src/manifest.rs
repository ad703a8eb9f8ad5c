//! Builds a module's manifest at compile time.

use ringfence_abi::ABI_VERSION;
use ringfence_abi::manifest::{self, DomainKind, Kind, MAGIC, Manifest as Raw, Policy};
use ringfence_abi::reset::Reset;

/// A module's manifest under construction. Budgets that are not set are small.
pub struct Manifest(Raw);

impl Manifest {
    /// Begins the manifest of a module of kind [`Kind::Other`], which drives no device.
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

    /// Sets the kind of the module, which determines the services that it is granted.
    pub const fn kind(mut self, kind: Kind) -> Manifest {
        self.0.kind = kind as u32;
        self
    }

    /// Sets the kind of another driver's device that the module uses: [`Kind::Block`] for a disk.
    pub const fn uses(mut self, kind: Kind) -> Manifest {
        self.0.uses = kind as u32;
        self
    }

    /// Sets the vendor and device ids of the PCI functions that the module drives.
    pub const fn pci(mut self, ids: &[(u16, u16)]) -> Manifest {
        self.0.pci_ids = manifest::pci_ids(ids);
        self
    }

    /// Sets the devices at fixed ports that the module drives, each by its first port. 0x1f0 and
    /// 0x170 are the channels of ATA disks. Panics if there are too many.
    pub const fn fixed(mut self, first_ports: &[u16]) -> Manifest {
        assert!(first_ports.len() <= manifest::MAX_FIXED, "too many devices at fixed ports");
        let mut index = 0;
        while index < first_ports.len() {
            self.0.fixed_ports[index] = first_ports[index];
            index += 1;
        }
        self
    }

    /// Sets the largest size of the heap, in KiB.
    pub const fn heap_kib(mut self, kib: u32) -> Manifest {
        self.0.heap_bytes = kib.saturating_mul(1 << 10);
        self
    }

    /// Sets the largest amount of DMA memory, in KiB. The memory that comes with the queues of the
    /// module's kind does not count.
    pub const fn dma_kib(mut self, kib: u32) -> Manifest {
        self.0.dma_bytes = kib.saturating_mul(1 << 10);
        self
    }

    /// Sets the size of the stack, in KiB.
    pub const fn stack_kib(mut self, kib: u32) -> Manifest {
        self.0.stack_bytes = kib.saturating_mul(1 << 10);
        self
    }

    /// Sets the longest time that one upcall may take, in milliseconds.
    pub const fn upcall_ms(mut self, milliseconds: u32) -> Manifest {
        self.0.upcall_ms = milliseconds;
        self
    }

    /// Has the kernel load the driver again after a fault has ended it.
    pub const fn restart(mut self) -> Manifest {
        self.0.policy = Policy::Restart as u32;
        self
    }

    /// Forbids the kernel to run the driver in ring 0.
    pub const fn ring1_only(mut self) -> Manifest {
        self.0.flags |= manifest::RING1_ONLY;
        self
    }

    /// Keeps the kernel from loading the driver at boot, even if its device is present: only a
    /// person loads it.
    pub const fn by_hand(mut self) -> Manifest {
        self.0.flags |= manifest::BY_HAND;
        self
    }

    /// Allows the driver to be loaded only if an IOMMU confines its device to the driver's memory.
    pub const fn needs_fence(mut self) -> Manifest {
        self.0.flags |= manifest::NEEDS_FENCE;
        self
    }

    /// Sets the kind of domain that the driver is loaded into, where its module is built for that
    /// kind and nobody asks for another. Without it the machine's policy decides.
    pub const fn kind_preferred(mut self, kind: DomainKind) -> Manifest {
        self.0.flags &= !(manifest::PREFERS_PAGED | manifest::PREFERS_SEGMENTED);
        self.0.flags |= match kind {
            DomainKind::Paged => manifest::PREFERS_PAGED,
            DomainKind::Segmented => manifest::PREFERS_SEGMENTED,
        };
        self
    }

    /// Sets how the kernel stops the device when the driver no longer can. Without a recipe, a
    /// device that uses DMA is set aside for good when its driver ends. If no IOMMU confines the
    /// device, the driver's memory is set aside with it.
    pub const fn reset(mut self, recipe: Reset) -> Manifest {
        self.0.reset = recipe;
        self
    }

    /// Returns the manifest as the module's file holds it. Panics if the kernel would refuse the
    /// manifest; the panic is a compile error.
    pub const fn build(#[allow(unused_mut, reason = "a recording needs room")] mut self) -> Raw {
        #[cfg(feature = "record")]
        {
            self.0.heap_bytes = self.0.heap_bytes.saturating_add(2 * crate::record::ROOM as u32);
        }
        if let Err(error) = self.0.check() {
            panic!("{}", error.what());
        }
        self.0
    }
}
