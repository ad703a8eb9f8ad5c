//! What a PCI function says of itself in configuration space, which may be anything.

use alloc::vec::Vec;

/// Offset of the command and status registers, and the status bit that says that there is a list of capabilities.
const STATUS: u16 = 4;
const HAS_CAPABILITIES: u32 = 1 << 20;
/// Offset of the pointer to the first capability (PCI 3.0, 6.7).
const CAPABILITIES: u16 = 0x34;
/// Capabilities are 4 bytes or longer, from 0x40 on.
const MOST_CAPABILITIES: usize = 48;
/// Where the last capability that has 16 bytes can begin.
const LAST_OF_16: u32 = 0xf0;
/// Capability id of vendor capabilities, and virtio's type of the common configuration.
const VENDOR: u32 = 9;
const COMMON: u32 = 1;

/// Offsets and first words of the capabilities, in the order of the list, which may be a ring: it is cut off then. `read`
/// returns the 32 bits at an offset, a multiple of 4.
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

/// BAR and offset of a virtio device's common configuration (VIRTIO 1.0, 4.1.4).
pub fn virtio_common(read: impl Fn(u16) -> u32) -> Option<(u32, u32)> {
    let is_common =
        |(at, head): &(u16, u32)| head & 0xff == VENDOR && head >> 24 == COMMON && u32::from(*at) <= LAST_OF_16;
    let (at, _) = capabilities(&read).into_iter().find(is_common)?;
    Some((read(at + 4) & 0xff, read(at + 8)))
}

/// How many ports an I/O BAR has whose register reads `mask` after all ones were written (PCI 3.0, 6.2.5.1). Devices may
/// leave the upper 16 bits zero.
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
