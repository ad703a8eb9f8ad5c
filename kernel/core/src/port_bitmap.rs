//! The I/O permission bitmap of a task state segment (Intel SDM vol. 1, 19.5.2): a set bit forbids
//! a port.

/// Length of the bitmap in bytes: a bit for each of 65,536 ports.
pub const BYTES: usize = 8192;

/// The range of ports that a domain may use.
///
/// The segment's limit ends with the bitmap, without the extra byte of ones that the manual asks
/// for. The CPU reads two bytes at a time. So it refuses the last eight ports of all, because the
/// second byte lies beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// First port.
    pub first: u16,
    /// Number of ports.
    pub count: u16,
}

impl Ports {
    /// Returns whether `port` is one of these.
    pub fn has(self, port: u16) -> bool {
        port.checked_sub(self.first).is_some_and(|offset| offset < self.count)
    }

    /// Returns the words of the bitmap, 64 ports each, that contain some of these ports, with the
    /// bits of these ports set. Ports beyond the last are ignored.
    pub fn words(self) -> impl Iterator<Item = (usize, u64)> {
        let (first, end) = (u64::from(self.first), u64::from(self.first) + u64::from(self.count));
        (first / 64..end.min(BYTES as u64 * 8).div_ceil(64)).map(move |word| {
            let below = |port: u64| if port >= 64 { u64::MAX } else { (1 << port) - 1 };
            (word as usize, below(end - word * 64) & !below(first.saturating_sub(word * 64)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn opens_just_the_ports_it_names(first in any::<u16>(), count in any::<u16>()) {
            let mut bitmap = [u64::MAX; BYTES / 8];
            Ports { first, count }.words().for_each(|(index, open)| bitmap[index] &= !open);
            for port in 0..=u16::MAX {
                let open = bitmap[usize::from(port) / 64] & 1 << (port % 64) == 0;
                prop_assert_eq!(open, port >= first && u32::from(port) < u32::from(first) + u32::from(count));
                prop_assert_eq!(open, Ports { first, count }.has(port));
            }
        }
    }
}
