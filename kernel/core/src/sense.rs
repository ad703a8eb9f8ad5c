//! The answer of a SCSI device when a command fails, in words: status (SAM-5 5.3.1) and sense data
//! (SPC-4 4.5).

use core::fmt;

/// Status byte of a command that succeeded.
pub const GOOD: u8 = 0x00;
/// Status byte of a command that failed and has sense data.
pub const CHECK_CONDITION: u8 = 0x02;

/// Sense key and additional sense code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}

impl Sense {
    /// Sense key of a device that reports a change; the command may be sent again.
    pub const UNIT_ATTENTION: u8 = 0x6;

    /// Returns whether there is no such unit (LOGICAL UNIT NOT SUPPORTED).
    pub fn is_no_unit(&self) -> bool {
        (self.key, self.asc) == (0x5, 0x25)
    }

    /// Returns whether the host has other units than before (REPORTED LUNS DATA HAS CHANGED).
    pub fn units_changed(&self) -> bool {
        (self.key, self.asc, self.ascq) == (Sense::UNIT_ATTENTION, 0x3f, 0x0e)
    }

    /// Returns whether the unit may have changed: its parameters (2A), its medium (28), its
    /// identity (3F), or anything after a reset (29).
    pub fn unit_changed(&self) -> bool {
        self.key == Sense::UNIT_ATTENTION && matches!(self.asc, 0x28 | 0x29 | 0x2a | 0x3f)
    }

    /// Reads sense data in fixed or descriptor format; `None` if it is cut short, or in neither
    /// format.
    pub fn parse(data: &[u8]) -> Option<Sense> {
        let byte = |at: usize| data.get(at).copied();
        match byte(0)? & 0x7f {
            0x70 | 0x71 => Some(Sense { key: byte(2)? & 0xf, asc: byte(12)?, ascq: byte(13)? }),
            0x72 | 0x73 => Some(Sense { key: byte(1)? & 0xf, asc: byte(2)?, ascq: byte(3)? }),
            _ => None,
        }
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = match self.key {
            0x0 => "no sense",
            0x1 => "recovered error",
            0x2 => "not ready",
            0x3 => "medium error",
            0x4 => "hardware error",
            0x5 => "illegal request",
            0x6 => "unit attention",
            0x7 => "data protect",
            0x8 => "blank check",
            0xb => "aborted command",
            0xd => "volume overflow",
            0xe => "miscompare",
            _ => "unknown sense key",
        };
        let code = match (self.asc, self.ascq) {
            (0x00, 0x00) => "",
            (0x04, _) => "logical unit not ready",
            (0x08, _) => "logical unit communication failure",
            (0x0c, _) => "write error",
            (0x11, _) => "unrecovered read error",
            (0x20, 0x00) => "invalid command operation code",
            (0x21, 0x00) => "logical block address out of range",
            (0x24, 0x00) => "invalid field in CDB",
            (0x25, 0x00) => "logical unit not supported",
            (0x26, _) => "invalid field in parameter list",
            (0x27, 0x07) => "write protected: what it lies on is full",
            (0x27, _) => "write protected",
            (0x28, _) => "medium may have changed",
            (0x29, _) => "power on, reset, or bus device reset occurred",
            (0x2a, _) => "parameters changed",
            (0x3a, _) => "medium not present",
            (0x3f, 0x0e) => "reported LUNs data has changed",
            (0x44, _) => "internal target failure",
            _ => "other",
        };
        write!(f, "{key}")?;
        if !code.is_empty() {
            write!(f, ", {code}")?;
        }
        write!(f, " ({:x}/{:02x}/{:02x})", self.key, self.asc, self.ascq)
    }
}

/// Returns a status byte in words.
pub fn status_name(status: u8) -> &'static str {
    match status {
        GOOD => "GOOD",
        CHECK_CONDITION => "CHECK CONDITION",
        0x04 => "CONDITION MET",
        0x08 => "BUSY",
        0x18 => "RESERVATION CONFLICT",
        0x28 => "TASK SET FULL",
        0x30 => "ACA ACTIVE",
        0x40 => "TASK ABORTED",
        _ => "unknown status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let fixed = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0];
        let descriptor = [0x72, 5, 0x21, 0, 0, 0, 0, 0];
        let expected = Sense { key: 5, asc: 0x21, ascq: 0 };
        assert_eq!(Sense::parse(&fixed), Some(expected));
        assert_eq!(Sense::parse(&descriptor), Some(expected));
        assert_eq!(Sense::parse(&fixed[..12]), None);
        assert_eq!(Sense::parse(&[]), None);
        assert_eq!(expected.to_string(), "illegal request, logical block address out of range (5/21/00)");
    }
}
