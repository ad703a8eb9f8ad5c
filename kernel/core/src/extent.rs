//! Ranges of addresses. All arithmetic is checked: a range that wraps around lies within no other.

/// A range of `len_bytes` bytes from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

impl Extent {
    /// Returns the range of `len_bytes` bytes from `start` on.
    pub const fn new(start: u64, len_bytes: u64) -> Extent {
        Extent { start, len_bytes }
    }

    /// Returns the first address after the range; `None` if that wraps around.
    pub const fn end(self) -> Option<u64> {
        self.start.checked_add(self.len_bytes)
    }

    /// Returns whether `address` lies in the range.
    pub const fn contains(self, address: u64) -> bool {
        address >= self.start && address - self.start < self.len_bytes
    }

    /// Returns whether all of `inner` lies in the range. An empty `inner` must start within the
    /// range or at its end.
    pub fn encloses(self, inner: Extent) -> bool {
        match (inner.end(), self.end()) {
            (Some(inner_end), Some(end)) => inner.start >= self.start && inner_end <= end,
            _ => false,
        }
    }

    /// Returns whether the ranges share an address. A range that wraps around overlaps every other.
    pub fn overlaps(self, other: Extent) -> bool {
        match (self.end(), other.end()) {
            (Some(end), Some(other_end)) => {
                self.len_bytes > 0 && other.len_bytes > 0 && self.start < other_end && other.start < end
            }
            _ => true,
        }
    }
}

/// Returns `value` rounded up to a multiple of `align`, a power of two; `None` if that wraps
/// around.
pub const fn align_up(value: u64, align: u64) -> Option<u64> {
    match value.checked_add(align - 1) {
        Some(sum) => Some(sum & !(align - 1)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_wraps_around_lies_in_nothing() {
        let all = Extent::new(0, u64::MAX);
        assert!(!all.encloses(Extent::new(u64::MAX, 2)));
        assert!(!Extent::new(0x1000, 0x1000).encloses(Extent::new(0x1fff, 2)));
        assert!(Extent::new(0x1000, 0x1000).encloses(Extent::new(0x1fff, 1)));
        assert!(Extent::new(0x1000, 0x1000).encloses(Extent::new(0x2000, 0)));
        assert!(!Extent::new(0x1000, 0x1000).encloses(Extent::new(0xfff, 1)));
    }

    proptest! {
        #[test]
        fn agrees_with_wide_arithmetic(a in any::<u64>(), al in any::<u64>(), b in any::<u64>(), bl in any::<u64>()) {
            let wide = |start: u64, len: u64| (u128::from(start), u128::from(start) + u128::from(len));
            let ((a0, a1), (b0, b1)) = (wide(a, al), wide(b, bl));
            let fits = a1 <= u128::from(u64::MAX) && b1 <= u128::from(u64::MAX);
            prop_assert_eq!(Extent::new(a, al).encloses(Extent::new(b, bl)), fits && b0 >= a0 && b1 <= a1);
            prop_assert_eq!(Extent::new(a, al).contains(b), b0 >= a0 && b0 < a1);
        }
    }
}
