//! The table of DMA remapping units, `DMAR` (Intel Virtualization Technology for Directed I/O,
//! revision 4.0, 8): which unit watches which devices. Firmware wrote it, and it may hold anything:
//! structures that cannot be true are left out.

use alloc::vec::Vec;

/// Offsets of the table's own fields, and of its first structure.
const WIDTH: usize = 36;
const FLAGS: usize = 37;
const STRUCTURES: usize = 48;
/// The most structures, and the most scopes of one structure, that are read.
const MOST: usize = 64;

/// The content of the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dmar {
    /// Address bits that devices can use.
    pub address_bits: u8,
    /// Whether interrupts can be remapped.
    pub remaps_interrupts: bool,
    /// The units.
    pub units: Vec<Unit>,
    /// Memory that firmware reserves for devices that it uses itself.
    pub reserved: Vec<Reserved>,
}

/// A remapping unit (8.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Physical address of its registers.
    pub registers: u64,
    /// PCI segment.
    pub segment: u16,
    /// Whether the unit watches all devices of the segment that no other unit names.
    pub watches_rest: bool,
    /// The devices that it watches by name.
    pub scopes: Vec<Scope>,
}

/// Reserved memory (8.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// PCI segment.
    pub segment: u16,
    /// The devices that use it.
    pub scopes: Vec<Scope>,
}

/// The kind of device that a scope names (8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScopeKind {
    /// A PCI function.
    Endpoint,
    /// A bridge and all devices below it.
    Bridge,
    /// An I/O APIC.
    IoApic,
    /// Something else.
    Other,
}

/// A device, named by the path to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Its kind.
    pub kind: ScopeKind,
    /// The id, if it is an I/O APIC.
    pub id: u8,
    /// The bus where the path begins.
    pub bus: u8,
    /// Device and function on that bus, then on the bus below each bridge of the path.
    pub path: Vec<(u8, u8)>,
}

impl Dmar {
    /// Reads a whole table.
    pub fn parse(table: &[u8]) -> Option<Dmar> {
        const REMAPS_INTERRUPTS: u8 = 1;
        let mut dmar = Dmar {
            address_bits: table.get(WIDTH)?.checked_add(1)?,
            remaps_interrupts: table.get(FLAGS)? & REMAPS_INTERRUPTS != 0,
            ..Dmar::default()
        };
        let mut rest = table.get(STRUCTURES..)?;
        for _ in 0..MOST {
            let Some((kind, structure, after)) =
                split(rest, 4, |bytes| Some((word(bytes, 0)?, word(bytes, 2)?.into())))
            else {
                break;
            };
            dmar.read(kind, structure);
            rest = after;
        }
        Some(dmar)
    }

    fn read(&mut self, kind: u16, structure: &[u8]) -> Option<()> {
        const UNIT: u16 = 0;
        const RESERVED: u16 = 1;
        match kind {
            UNIT => self.units.push(Unit {
                registers: long(structure, 8)?,
                segment: word(structure, 6)?,
                watches_rest: structure.get(4)? & 1 != 0,
                scopes: scopes(structure.get(16..)?),
            }),
            RESERVED => self.reserved.push(Reserved {
                first: long(structure, 8)?,
                last: long(structure, 16)?,
                segment: word(structure, 6)?,
                scopes: scopes(structure.get(24..)?),
            }),
            _ => {}
        }
        Some(())
    }
}

fn scopes(mut rest: &[u8]) -> Vec<Scope> {
    let mut scopes = Vec::new();
    while let Some((kind, scope, after)) = split(rest, 8, |bytes| Some((*bytes.first()?, usize::from(*bytes.get(1)?))))
    {
        rest = after;
        let kind = match kind {
            1 => ScopeKind::Endpoint,
            2 => ScopeKind::Bridge,
            3 => ScopeKind::IoApic,
            _ => ScopeKind::Other,
        };
        let [_, _, _, _, id, bus, path @ ..] = scope else { break };
        let path: Vec<_> = path.as_chunks::<2>().0.iter().map(|[device, function]| (*device, *function)).collect();
        if scopes.len() < MOST && !path.is_empty() {
            scopes.push(Scope { kind, id: *id, bus: *bus, path });
        }
    }
    scopes
}

/// Returns the first structure of `bytes` with its kind, and the bytes after it. `head` reads the
/// structure's kind and length, which must be at least `least` bytes.
fn split<K>(bytes: &[u8], least: usize, head: impl Fn(&[u8]) -> Option<(K, usize)>) -> Option<(K, &[u8], &[u8])> {
    let (kind, len_bytes) = head(bytes)?;
    let (structure, rest) = bytes.split_at_checked(Some(len_bytes).filter(|len| *len >= least)?)?;
    Some((kind, structure, rest))
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn structure(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &(4 + body.len() as u16).to_le_bytes(), body].concat()
    }

    /// A table as QEMU's: one unit with an I/O APIC, an endpoint and a bridge, and reserved memory
    /// of a controller behind a bridge.
    fn table() -> Vec<u8> {
        let mut table = vec![0; STRUCTURES];
        (table[WIDTH], table[FLAGS]) = (38, 1);
        let unit = [&[0, 0, 0, 0][..], &0xfed9_0000u64.to_le_bytes()].concat();
        let scopes = [[3, 8, 0, 0, 0, 0xff, 0, 0], [1, 8, 0, 0, 0, 0, 2, 0], [2, 8, 0, 0, 0, 0, 3, 1]].concat();
        table.extend(structure(0, &[unit, scopes].concat()));
        let memory = [&[0, 0, 0, 0][..], &0x7000_0000u64.to_le_bytes(), &0x7000_ffffu64.to_le_bytes()].concat();
        table.extend(structure(1, &[&memory[..], &[1, 10, 0, 0, 0, 0, 0x1c, 0, 5, 2]].concat()));
        table.extend(structure(77, &[0; 9]));
        table.extend(structure(0, &[&[1, 0, 0, 0][..], &0xfed9_1000u64.to_le_bytes()].concat()));
        table
    }

    #[test]
    fn units_and_reserved_memory_are_found() {
        let dmar = Dmar::parse(&table()).unwrap();
        assert_eq!((dmar.address_bits, dmar.remaps_interrupts), (39, true));
        let [first, second] = &dmar.units[..] else { panic!("{dmar:?}") };
        assert_eq!((first.registers, first.watches_rest), (0xfed9_0000, false));
        let kinds: Vec<_> = first.scopes.iter().map(|scope| (scope.kind, scope.bus, scope.path[0])).collect();
        let expected =
            [(ScopeKind::IoApic, 0xff, (0, 0)), (ScopeKind::Endpoint, 0, (2, 0)), (ScopeKind::Bridge, 0, (3, 1))];
        assert_eq!(kinds, expected);
        assert!(second.watches_rest && second.scopes.is_empty());
        let [reserved] = &dmar.reserved[..] else { panic!("{dmar:?}") };
        assert_eq!((reserved.first, reserved.last), (0x7000_0000, 0x7000_ffff));
        assert_eq!(reserved.scopes[0].path, [(0x1c, 0), (5, 2)]);
    }

    /// A structure of no length would be read for ever.
    #[test]
    fn what_has_no_length_ends_the_table() {
        let mut table = table();
        table[STRUCTURES + 2..STRUCTURES + 4].copy_from_slice(&[0, 0]);
        assert_eq!(Dmar::parse(&table).unwrap().units, []);
        assert_eq!(Dmar::parse(&table[..40]), None);
    }

    proptest! {
        #[test]
        fn no_table_makes_it_panic(changes in proptest::collection::vec((0usize..200, any::<u8>()), 0..20), cut in 0usize..200) {
            let mut table = table();
            for (at, byte) in changes {
                if let Some(place) = table.get_mut(at) { *place = byte; }
            }
            table.truncate(cut);
            let _ = Dmar::parse(&table);
        }
    }
}
