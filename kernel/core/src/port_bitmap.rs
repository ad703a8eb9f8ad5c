//! The I/O permission bitmap of a task state segment (Intel SDM vol. 1, 19.5.2): a set bit forbids a port.

/// Length of the bitmap in bytes: a bit for each of 65,536 ports.
pub const BYTES: usize = 8192;

/// Which ports a domain may use.
///
/// The segment's limit ends with the bitmap, so the extra byte of ones that the manual asks for is not there: the CPU
/// reads two bytes at a time, and refuses the last eight ports of all because the second one lies beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// How many.
    pub count: u16,
}

impl Ports {
    /// Opens these ports in `bitmap`. Ports beyond the last are ignored.
    pub fn allow(self, bitmap: &mut [u8; BYTES]) {
        for port in usize::from(self.first)..usize::from(self.first) + usize::from(self.count) {
            if let Some(byte) = bitmap.get_mut(port / 8) {
                *byte &= !(1 << (port % 8));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn opens_just_the_ports_it_names(first in any::<u16>(), count in any::<u16>()) {
            let mut bitmap = [0xff; BYTES];
            Ports { first, count }.allow(&mut bitmap);
            for port in 0..=u16::MAX {
                let open = bitmap[usize::from(port) / 8] & 1 << (port % 8) == 0;
                prop_assert_eq!(open, port >= first && u32::from(port) < u32::from(first) + u32::from(count));
            }
        }
    }
}
