//! A module's description of itself, in its section [`SECTION`], which is read before any of its
//! code runs. All fields are little-endian.

use crate::layout::PAGE_SIZE;
use crate::reset::Reset;
use crate::{block, fs, net, scsi};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// End of the name of a module's file for segmented domains, behind the module's name: `e1000.32`
/// beside `e1000`.
pub const SEGMENTED_SUFFIX: &str = ".32";

/// The kind of domain that a module is built for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DomainKind {
    /// 64-bit code in an address space without the kernel.
    #[default]
    Paged,
    /// 32-bit code, which cannot name an address of the kernel's.
    Segmented,
}

impl DomainKind {
    /// The kinds.
    pub const ALL: [DomainKind; 2] = [DomainKind::Paged, DomainKind::Segmented];

    /// Returns the kind's name.
    pub const fn name(self) -> &'static str {
        match self {
            DomainKind::Paged => "paged",
            DomainKind::Segmented => "segmented",
        }
    }

    /// Returns the kind with this name.
    pub fn named(name: &str) -> Option<DomainKind> {
        DomainKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns the suffix of the names of modules' files for this kind.
    pub const fn suffix(self) -> &'static str {
        match self {
            DomainKind::Paged => "",
            DomainKind::Segmented => SEGMENTED_SUFFIX,
        }
    }
}

impl core::fmt::Display for DomainKind {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.name())
    }
}

/// Name of the ELF section that holds the [`Manifest`].
pub const SECTION: &str = ".ringfence";
/// First field of every manifest.
pub const MAGIC: u64 = u64::from_le_bytes(*b"RINGFNCE");
/// Most PCI ids that a module can name.
pub const MAX_PCI_IDS: usize = 8;
/// Most devices at fixed ports that a module can name.
pub const MAX_FIXED: usize = 4;

/// Longest time that a manifest can allow one upcall, in milliseconds: nothing else runs meanwhile.
pub const MAX_UPCALL_MS: u64 = 1000;
/// Smallest stack in bytes: in ring 0 the services run on it as well.
pub const MIN_STACK: u64 = 16 << 10;

/// Hands the list of classes to the macro `$then`: the number, the name, the struct that describes
/// a device of the class, and the number of bytes that its driver shares with the kernel for queues
/// and their data. A class is a row here, a module of this crate, a crate of the kernel, and a
/// module of the SDK.
#[macro_export]
macro_rules! for_each_class {
    ($then:ident) => {
        $then! {
            1 Nic "a network interface" "NetInfo"
                net::QUEUE_BYTES + (net::TX_FRAMES + net::RX_FRAMES) * net::FRAME_BYTES;
            2 Scsi "a SCSI host bus adapter" "ScsiInfo" scsi::QUEUE_BYTES + scsi::REQUESTS * scsi::MAX_DATA;
            3 Block "a block device" "BlockInfo" block::QUEUE_BYTES + block::BLOCK_REQUESTS * block::BLOCK_MAX_DATA;
            4 Fs "a filesystem" "FsInfo" fs::QUEUE_BYTES + fs::FS_REQUESTS * fs::FS_MAX_DATA;
        }
    };
}

macro_rules! define_kinds {
    ($($number:literal $class:ident $what:literal $info:literal $bytes:expr;)*) => {
        /// The kind of a module, which decides the services that it can be granted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Kind {
            /// A module of no class: it offers nothing.
            Other = 0,
            $(
                #[doc = concat!("It drives ", $what, ".")]
                $class = $number,
            )*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Kind] = &[Kind::Other, $(Kind::$class),*];

            /// Returns the kind with this number.
            pub const fn of(number: u32) -> Option<Kind> {
                match number {
                    0 => Some(Kind::Other),
                    $($number => Some(Kind::$class),)*
                    _ => None,
                }
            }

            /// Returns the name of the struct that describes a driver's offer; empty if it offers
            /// nothing.
            pub const fn offers(self) -> &'static str {
                match self {
                    Kind::Other => "",
                    $(Kind::$class => $info,)*
                }
            }

            /// Returns the bytes of memory that a driver of this kind shares with the kernel: its
            /// queues, and the frames or blocks that go through them.
            pub const fn queue_bytes(self) -> u64 {
                let bytes = match self {
                    Kind::Other => 0,
                    $(Kind::$class => $bytes,)*
                };
                bytes.next_multiple_of(PAGE_SIZE as usize) as u64
            }

            /// Returns the bytes of memory that a driver shares with the kernel to use a device of
            /// this kind.
            pub const fn used_bytes(self) -> u64 {
                match self {
                    Kind::Block => (block::USED_BYTES).next_multiple_of(PAGE_SIZE as usize) as u64,
                    _ => 0,
                }
            }
        }
    };
}
for_each_class!(define_kinds);

/// Flag of a manifest: the module never runs in ring 0.
pub const RING1_ONLY: u32 = 1;
/// Flag of a manifest: the module is not loaded at boot for a device that it drives; a person loads
/// it.
pub const BY_HAND: u32 = 2;
/// Flag of a manifest: the module drives only a device that is fenced.
pub const NEEDS_FENCE: u32 = 4;
/// Flag of a manifest: the module prefers a paged domain.
pub const PREFERS_PAGED: u32 = 8;
/// Flag of a manifest: the module prefers a segmented domain. It cannot prefer both.
pub const PREFERS_SEGMENTED: u32 = 16;

/// The action that follows when a fault has ended a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Policy {
    /// The driver stays ended, for a person to look at.
    Stop = 0,
    /// The driver is loaded anew.
    Restart = 1,
}

/// Vendor and device id of a PCI function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PciId {
    /// Vendor id; 0xffff ends the list.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
}

impl PciId {
    /// Ends a manifest's list of ids; also the value that an empty PCI slot reads as.
    pub const NONE: PciId = PciId { vendor: 0xffff, device: 0xffff };
}

/// Room for a module's name in a manifest, with at least one zero at its end.
pub const NAME_BYTES: usize = 32;

/// A module's description of itself.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Manifest {
    /// [`MAGIC`].
    pub magic: u64,
    /// The [`ABI_VERSION`](crate::ABI_VERSION) that the module was built for.
    pub abi_version: u32,
    /// A [`Kind`].
    pub kind: u32,
    /// Name in ASCII, filled up with zeros.
    pub name: [u8; NAME_BYTES],
    /// Version in ASCII, filled up with zeros.
    pub version: [u8; 16],
    /// The PCI functions that the module drives, ended by [`PciId::NONE`] if there are fewer.
    pub pci_ids: [PciId; MAX_PCI_IDS],
    /// The devices at fixed ports that the module drives, by the first port of each; 0 ends the
    /// list.
    pub fixed_ports: [u16; MAX_FIXED],
    /// Most heap that the driver may have, in bytes.
    pub heap_bytes: u32,
    /// Most DMA memory that the driver may have, in bytes, not counting the queues of its kind.
    pub dma_bytes: u32,
    /// Length of the stack in bytes.
    pub stack_bytes: u32,
    /// Longest time that one upcall may take, in milliseconds.
    pub upcall_ms: u32,
    /// A [`Policy`].
    pub policy: u32,
    /// [`RING1_ONLY`], [`BY_HAND`], [`NEEDS_FENCE`], and [`PREFERS_PAGED`] or
    /// [`PREFERS_SEGMENTED`]; any of them, or 0.
    pub flags: u32,
    /// How the device is reset when its driver was ended.
    pub reset: Reset,
    /// The [`Kind`] of the device that the driver uses, which belongs to another driver; 0 for
    /// none.
    pub uses: u32,
    /// Must be zero.
    pub reserved: u32,
}

// The layout is part of the ABI.
const _: () = assert!(size_of::<Manifest>() == 176 && align_of::<Manifest>() == align_of::<u64>());

/// The errors that a manifest can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestError {
    /// The manifest is shorter than a [`Manifest`].
    Short,
    /// The manifest does not begin with [`MAGIC`].
    Magic,
    /// The module was built for this other version of the ABI.
    AbiVersion(u32),
    /// The policy is unknown.
    Policy(u32),
    /// There are unknown flags.
    Flags(u32),
    /// The recipe for resetting the device makes no sense.
    Reset,
    /// The kind is unknown.
    Kind(u32),
    /// A driver cannot use a device of this kind.
    Uses(u32),
    /// The name is empty, not ended by a zero, or has characters other than lower-case letters,
    /// digits, `-` and `_`.
    Name,
    /// The name is a word that lines of the kernel's log begin with.
    Reserved,
    /// The version is not printable ASCII ended by a zero.
    Version,
    /// A budget is zero where it must not be, or larger than its region of the slot.
    Budget(Budget),
}

/// A resource whose use a manifest limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// Heap.
    Heap,
    /// DMA memory.
    Dma,
    /// Stack.
    Stack,
    /// Time of an upcall.
    Time,
}

impl ManifestError {
    /// Returns the error in words, without the wrong value: this can be used at compile time.
    pub const fn what(&self) -> &'static str {
        match self {
            ManifestError::Short => "manifest is cut short",
            ManifestError::Magic => "manifest does not begin with RINGFNCE",
            ManifestError::AbiVersion(_) => "built for another ABI version",
            ManifestError::Policy(_) => "unknown policy",
            ManifestError::Flags(_) => "unknown flags",
            ManifestError::Reset => "the recipe for resetting the device makes no sense",
            ManifestError::Kind(_) => "unknown kind",
            ManifestError::Uses(_) => "nothing of this kind can be used",
            ManifestError::Name => "name must be lower-case letters, digits, - and _",
            ManifestError::Reserved => "name is one that lines of the kernel begin with",
            ManifestError::Version => "version must be printable ASCII",
            ManifestError::Budget(budget) => match budget {
                Budget::Heap => "heap budget is out of range",
                Budget::Dma => "DMA budget is out of range",
                Budget::Stack => "stack budget is out of range",
                Budget::Time => "time budget is out of range",
            },
        }
    }
}

impl core::fmt::Display for ManifestError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ManifestError::AbiVersion(other) => {
                write!(f, "built for ABI version {other}, this kernel has {}", crate::ABI_VERSION)
            }
            ManifestError::Policy(number) | ManifestError::Kind(number) => write!(f, "{} {number}", self.what()),
            ManifestError::Flags(flags) => write!(f, "unknown flags {flags:#x}"),
            ManifestError::Uses(kind) => write!(f, "nothing of kind {kind} can be used"),
            _ => f.write_str(self.what()),
        }
    }
}

/// Words that lines of the kernel's log begin with, and the prefixes of numbered names.
const RESERVED: [&[u8]; 5] = [b"error", b"warning", b"fault", b"pci", b"target"];
const NUMBERED: [&[u8]; 2] = [b"disk", b"eth"];

/// Returns whether a module of this name could write lines into the log that look like the kernel's
/// own. Those begin with one of these words, or with the name of a disk or an interface, and a
/// colon.
const fn is_reserved(name: &[u8]) -> bool {
    let mut index = 0;
    while index < RESERVED.len() {
        let word = RESERVED[index];
        if name.len() == word.len() && begins_with(name, word) {
            return true;
        }
        index += 1;
    }
    let mut index = 0;
    while index < NUMBERED.len() {
        let kind = NUMBERED[index];
        if name.len() > kind.len() && begins_with(name, kind) && are_digits(name.split_at(kind.len()).1) {
            return true;
        }
        index += 1;
    }
    false
}

const fn begins_with(text: &[u8], word: &[u8]) -> bool {
    let mut index = 0;
    while index < word.len() {
        if index >= text.len() || text[index] != word[index] {
            return false;
        }
        index += 1;
    }
    true
}

const fn are_digits(mut text: &[u8]) -> bool {
    while let [first, rest @ ..] = text {
        if !first.is_ascii_digit() {
            return false;
        }
        text = rest;
    }
    true
}

pub(crate) const fn is_name(mut name: &[u8]) -> bool {
    if name.is_empty() {
        return false;
    }
    while let [first, rest @ ..] = name {
        if !matches!(first, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') {
            return false;
        }
        name = rest;
    }
    true
}

/// Returns the error of a `Result`, if it is one, from a `const fn`.
macro_rules! check {
    ($result:expr) => {
        if let Err(error) = $result {
            return Err(error);
        }
    };
}

impl Manifest {
    /// Copies a manifest out of `bytes` and checks every field.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let (manifest, _) = Manifest::read_from_prefix(bytes).map_err(|_| ManifestError::Short)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks every field: the kernel calls it before it loads a module, and the compiler when it
    /// builds one.
    pub const fn check(&self) -> Result<(), ManifestError> {
        const fn is_within(value: u32, least: u64, most: u64) -> bool {
            least <= value as u64 && value as u64 <= most
        }
        if self.magic != MAGIC {
            return Err(ManifestError::Magic);
        }
        if self.abi_version != crate::ABI_VERSION {
            return Err(ManifestError::AbiVersion(self.abi_version));
        }
        check!(self.kind());
        check!(self.policy());
        check!(self.uses());
        const PREFERENCES: u32 = PREFERS_PAGED | PREFERS_SEGMENTED;
        let is_known = self.flags & !(RING1_ONLY | BY_HAND | NEEDS_FENCE | PREFERENCES) == 0;
        if !is_known || self.flags & PREFERENCES == PREFERENCES {
            return Err(ManifestError::Flags(self.flags));
        }
        if self.reset.method().is_none() {
            return Err(ManifestError::Reset);
        }
        match text(&self.name) {
            Some(name) if is_name(name) => {
                if is_reserved(name) {
                    return Err(ManifestError::Reserved);
                }
            }
            _ => return Err(ManifestError::Name),
        }
        if text(&self.version).is_none() {
            return Err(ManifestError::Version);
        }
        if !is_within(self.heap_bytes, 0, crate::layout::HEAP_MAX) {
            return Err(ManifestError::Budget(Budget::Heap));
        }
        if !is_within(self.dma_bytes, 0, crate::layout::DMA_MAX) {
            return Err(ManifestError::Budget(Budget::Dma));
        }
        if !is_within(self.stack_bytes, MIN_STACK, crate::layout::STACK_MAX) {
            return Err(ManifestError::Budget(Budget::Stack));
        }
        if !is_within(self.upcall_ms, 1, MAX_UPCALL_MS) {
            return Err(ManifestError::Budget(Budget::Time));
        }
        Ok(())
    }

    /// Returns the kind, if it is a known one.
    pub const fn kind(&self) -> Result<Kind, ManifestError> {
        match Kind::of(self.kind) {
            Some(kind) => Ok(kind),
            None => Err(ManifestError::Kind(self.kind)),
        }
    }

    /// Returns the kind of the device that the module uses, if it can be used; `Other` for none.
    pub const fn uses(&self) -> Result<Kind, ManifestError> {
        match Kind::of(self.uses) {
            Some(kind @ (Kind::Other | Kind::Block)) if self.reserved == 0 => Ok(kind),
            _ => Err(ManifestError::Uses(self.uses)),
        }
    }

    /// Returns the kind of domain that the module prefers, if it prefers one.
    pub const fn kind_preferred(&self) -> Option<DomainKind> {
        match self.flags & (PREFERS_PAGED | PREFERS_SEGMENTED) {
            PREFERS_PAGED => Some(DomainKind::Paged),
            PREFERS_SEGMENTED => Some(DomainKind::Segmented),
            _ => None,
        }
    }

    /// Returns the policy, if it is a known one.
    pub const fn policy(&self) -> Result<Policy, ManifestError> {
        match self.policy {
            0 => Ok(Policy::Stop),
            1 => Ok(Policy::Restart),
            other => Err(ManifestError::Policy(other)),
        }
    }

    /// Returns the module's name.
    pub fn name(&self) -> &str {
        words(&self.name)
    }

    /// Returns the module's version.
    pub fn version(&self) -> &str {
        words(&self.version)
    }

    /// Returns the PCI functions that the module drives.
    pub fn pci_ids(&self) -> impl Iterator<Item = PciId> {
        self.pci_ids.into_iter().take_while(|id| *id != PciId::NONE)
    }

    /// Returns the devices at fixed ports that the module drives, by the first port of each.
    pub fn fixed_ports(&self) -> impl Iterator<Item = u16> {
        self.fixed_ports.into_iter().take_while(|port| *port != 0)
    }

    /// Returns whether the module drives a device.
    pub fn has_device(&self) -> bool {
        self.pci_ids().next().is_some() || self.fixed_ports().next().is_some()
    }
}

/// Makes a field of `N` bytes from `text`, for a manifest that is built at compile time. Panics if
/// the text does not fit.
pub const fn field<const N: usize>(text: &str) -> [u8; N] {
    let bytes = text.as_bytes();
    assert!(bytes.len() < N, "too long for its field of the manifest");
    let mut field = [0; N];
    let mut index = 0;
    while index < bytes.len() {
        field[index] = bytes[index];
        index += 1;
    }
    field
}

/// Makes a manifest's list of `ids`. Panics if there are too many.
pub const fn pci_ids(ids: &[(u16, u16)]) -> [PciId; MAX_PCI_IDS] {
    assert!(ids.len() <= MAX_PCI_IDS, "too many PCI ids");
    let mut list = [PciId::NONE; MAX_PCI_IDS];
    let mut index = 0;
    while index < ids.len() {
        list[index] = PciId { vendor: ids[index].0, device: ids[index].1 };
        index += 1;
    }
    list
}

/// Returns the bytes before the first zero, if they are printable ASCII.
pub(crate) const fn text(field: &[u8]) -> Option<&[u8]> {
    let mut end = 0;
    while end < field.len() {
        match field[end] {
            0 => return Some(field.split_at(end).0),
            0x20..0x7f => end += 1,
            _ => return None,
        }
    }
    None
}

/// Returns the text of a field as a string; `?` if it is not printable ASCII ended by a zero.
pub(crate) fn words(field: &[u8]) -> &str {
    text(field).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn good() -> Manifest {
        Manifest {
            magic: MAGIC,
            abi_version: crate::ABI_VERSION,
            kind: Kind::Nic as u32,
            name: field("e1000"),
            version: field("0.1.0"),
            pci_ids: pci_ids(&[(0x8086, 0x100e)]),
            fixed_ports: [0; MAX_FIXED],
            heap_bytes: 65536,
            dma_bytes: 65536,
            stack_bytes: 16384,
            upcall_ms: 100,
            policy: Policy::Restart as u32,
            flags: 0,
            reset: Reset::UNKNOWN,
            uses: 0,
            reserved: 0,
        }
    }

    #[test]
    fn a_good_manifest_is_read_back() {
        let manifest = Manifest::parse(good().as_bytes()).unwrap();
        assert_eq!(manifest.name(), "e1000");
        assert_eq!(manifest.version(), "0.1.0");
        assert_eq!(manifest.kind(), Ok(Kind::Nic));
        assert_eq!(manifest.pci_ids().count(), 1);
    }

    #[test]
    fn names_of_the_kernels_own_lines_are_not_had() {
        let parsed = |name: &str| Manifest::parse(Manifest { name: field(name), ..good() }.as_bytes());
        for name in ["fault", "error", "warning", "pci", "target", "disk0", "eth12"] {
            assert_eq!(parsed(name).unwrap_err(), ManifestError::Reserved, "{name}");
        }
        for name in ["faults", "disk", "eth", "disk0-fast", "ethernet"] {
            assert!(parsed(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn each_bad_field_is_named() {
        let refused = |change: fn(&mut Manifest)| {
            let mut manifest = good();
            change(&mut manifest);
            Manifest::parse(manifest.as_bytes()).unwrap_err()
        };
        assert_eq!(Manifest::parse(&good().as_bytes()[..175]).unwrap_err(), ManifestError::Short);
        assert_eq!(refused(|m| m.magic ^= 1), ManifestError::Magic);
        assert_eq!(refused(|m| m.abi_version = 9), ManifestError::AbiVersion(9));
        assert_eq!(refused(|m| m.kind = 7), ManifestError::Kind(7));
        assert_eq!(refused(|m| m.policy = 2), ManifestError::Policy(2));
        assert_eq!(refused(|m| m.uses = 1), ManifestError::Uses(1));
        assert_eq!(refused(|m| m.uses = 9), ManifestError::Uses(9));
        assert_eq!(refused(|m| m.reserved = 1), ManifestError::Uses(0));
        assert_eq!(refused(|m| m.flags = 32), ManifestError::Flags(32));
        assert_eq!(refused(|m| m.flags = 24), ManifestError::Flags(24));
        assert_eq!(refused(|m| m.reset.method = 9), ManifestError::Reset);
        assert_eq!(refused(|m| m.name = [0; 32]), ManifestError::Name);
        assert_eq!(refused(|m| m.name = [b'a'; 32]), ManifestError::Name);
        assert_eq!(refused(|m| m.name = field("A b")), ManifestError::Name);
        assert_eq!(refused(|m| m.version = [0xff; 16]), ManifestError::Version);
        assert_eq!(refused(|m| m.heap_bytes = u32::MAX), ManifestError::Budget(Budget::Heap));
        assert_eq!(refused(|m| m.dma_bytes = u32::MAX), ManifestError::Budget(Budget::Dma));
        assert_eq!(refused(|m| m.stack_bytes = 0), ManifestError::Budget(Budget::Stack));
        assert_eq!(refused(|m| m.upcall_ms = 0), ManifestError::Budget(Budget::Time));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes);
        }
    }
}
