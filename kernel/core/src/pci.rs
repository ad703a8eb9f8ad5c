//! Reads the configuration space of a PCI function, which may hold anything.

use alloc::vec::Vec;

/// Offset of the command and status registers.
const STATUS: u16 = 4;
/// Status bit: the function has a list of capabilities.
const HAS_CAPABILITIES: u32 = 1 << 20;
/// Offset of the pointer to the first capability (PCI 3.0, 6.7).
const CAPABILITIES: u16 = 0x34;
/// The most capabilities that there can be: they are 4 bytes or longer, from 0x40 on.
const MOST_CAPABILITIES: usize = 48;
/// The last offset at which a capability of 16 bytes can begin.
const LAST_OF_16: u32 = 0xf0;
/// Capability id of vendor capabilities.
const VENDOR: u32 = 9;
/// Type of virtio's vendor capability for the common configuration.
const COMMON: u32 = 1;

/// Returns the offset and the first word of each capability, in the order of the list. If the list
/// is a ring, it is cut off. `read` returns the 32 bits at an offset, a multiple of 4.
pub fn capabilities(read: impl Fn(u16) -> u32) -> Vec<(u16, u32)> {
    let mut found = Vec::new();
    if read(STATUS) & HAS_CAPABILITIES == 0 {
        return found;
    }
    let mut at = read(CAPABILITIES) & 0xfc;
    while at != 0 && found.len() < MOST_CAPABILITIES {
        let head = read(at as u16);
        found.push((at as u16, head));
        at = head >> 8 & 0xfc;
    }
    found
}

/// Returns BAR and offset of a virtio device's common configuration (VIRTIO 1.0, 4.1.4).
pub fn virtio_common(read: impl Fn(u16) -> u32) -> Option<(u32, u32)> {
    let is_common =
        |(at, head): &(u16, u32)| head & 0xff == VENDOR && head >> 24 == COMMON && u32::from(*at) <= LAST_OF_16;
    let (at, _) = capabilities(&read).into_iter().find(is_common)?;
    Some((read(at + 4) & 0xff, read(at + 8)))
}

/// The MSI-X capability (PCI 3.0, 6.8.2): the place of the table with the interrupts that a
/// function sends as messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiX {
    /// The capability's offset in configuration space; the upper half of the word there is the
    /// message control.
    pub at: u16,
    /// Number of entries in the table, 16 bytes each.
    pub entries: u32,
    /// BAR and offset of the table.
    pub table: (u8, u32),
    /// BAR and offset of the pending bits.
    pub pending: (u8, u32),
}

impl MsiX {
    /// Finds the capability, if the function has it.
    pub fn find(read: impl Fn(u16) -> u32) -> Option<MsiX> {
        const MSI_X: u32 = 0x11;
        let (at, head) =
            capabilities(&read).into_iter().find(|(at, head)| head & 0xff == MSI_X && u32::from(*at) <= LAST_OF_16)?;
        let place = |word: u32| ((word & 7) as u8, word & !7);
        let entries = (head >> 16 & 0x7ff) + 1;
        Some(MsiX { at, entries, table: place(read(at + 4)), pending: place(read(at + 8)) })
    }

    /// Returns the parts of BAR `bar` that hold the table or the pending bits: offset and length in
    /// bytes.
    pub fn parts_of(&self, bar: u64) -> impl Iterator<Item = (u64, u64)> {
        let table = (self.table, u64::from(self.entries) * 16);
        let pending = (self.pending, u64::from(self.entries).div_ceil(64) * 8);
        let is_there = move |((in_bar, _), _): &((u8, u32), u64)| u64::from(*in_bar) == bar;
        [table, pending].into_iter().filter(is_there).map(|((_, offset), len_bytes)| (offset.into(), len_bytes))
    }
}

/// Returns the number of ports of an I/O BAR whose register reads `mask` after all ones were
/// written to it (PCI 3.0, 6.2.5.1). Devices may leave the upper 16 bits zero.
pub fn port_count(mask: u32) -> u32 {
    (!(mask & 0xfffc | 0xffff_0000)).wrapping_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn space(words: &[(u16, u32)]) -> impl Fn(u16) -> u32 {
        move |offset| words.iter().find(|(at, _)| *at == offset).map_or(0, |(_, word)| *word)
    }

    #[test]
    fn msi_x_is_found() {
        let words = [(4, HAS_CAPABILITIES), (0x34, 0x40), (0x40, 0x8003_0011), (0x44, 0x2001), (0x48, 0x3001)];
        let found = MsiX::find(space(&words)).unwrap();
        assert_eq!(found, MsiX { at: 0x40, entries: 4, table: (1, 0x2000), pending: (1, 0x3000) });
        assert_eq!(found.parts_of(1).collect::<Vec<_>>(), [(0x2000, 64), (0x3000, 8)]);
        assert_eq!(found.parts_of(0).count(), 0);
        assert_eq!(MsiX::find(space(&words[..2])), None);
    }

    #[test]
    fn the_common_configuration_is_found() {
        let words = [
            (4, HAS_CAPABILITIES),
            (0x34, 0x40),
            (0x40, 0x0205_5009), // vendor, next at 0x50, type 2
            (0x50, 0x0114_0009), // vendor, last, type 1
            (0x54, 4),
            (0x58, 0x1000),
        ];
        assert_eq!(virtio_common(space(&words)), Some((4, 0x1000)));
        assert_eq!(virtio_common(space(&words[1..])), None);
    }

    #[test]
    fn a_ring_has_an_end() {
        let words = [(4, HAS_CAPABILITIES), (0x34, 0x40), (0x40, 0x4000)];
        assert_eq!(capabilities(space(&words)).len(), MOST_CAPABILITIES);
    }

    #[test]
    fn ports_are_counted() {
        assert_eq!(port_count(0xffff_ffc1), 64);
        assert_eq!(port_count(0x0000_ffe1), 32);
    }

    proptest! {
        #[test]
        fn no_configuration_makes_it_panic(words in proptest::collection::vec(any::<u32>(), 64), mask in any::<u32>()) {
            let read = |offset: u16| words[usize::from(offset / 4) % 64];
            let _ = virtio_common(read);
            let _ = port_count(mask);
        }
    }
}
