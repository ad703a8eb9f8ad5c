//! Makes a driver cross in another way than through its gates, to measure it. See
//! [`crate::arch::bench`].

use super::{STUB_BYTES, Space};
use crate::arch::bench::{Crossing, VECTOR, set_vector};
use crate::arch::entry_area;
use crate::memory::frames::{Frames, OutOfMemory};
use crate::memory::tables::Root;
use ringfence_abi::layout::slot_base;
use ringfence_core::descriptor;
use ringfence_core::module::Imports;
use x86_64::structures::paging::PageTableFlags as Flags;

/// The changes of [`Space::cross_by`], which [`Space::cross_as_usual`] takes back.
pub struct Changed {
    crossing: Crossing,
    /// The root that is not in use, and the table that joins the shared root's two halves.
    root: Option<(Frames, Frames)>,
}

impl Space {
    /// Makes calls of service `number` by a sandboxed driver use another `crossing`.
    pub fn cross_by(&mut self, number: usize, crossing: Crossing) -> Result<Changed, OutOfMemory> {
        let mut root = None;
        match crossing {
            Crossing::Bare => {}
            Crossing::SharedRoot => {
                let (mut shared, table) = self.shared_root()?;
                core::mem::swap(&mut self.root, &mut shared);
                root = Some((shared, table));
            }
            Crossing::Interrupt => {
                let mut stub = [0xcc; STUB_BYTES as usize];
                stub[..3].copy_from_slice(&[0xcd, VECTOR, 0xc3]);
                self.write_stub(number, stub);
                set_vector(true);
            }
        }
        if crossing != Crossing::Interrupt {
            self.set_ldt(descriptor::gate_entry(number), descriptor::call_gate(crossing.target(), true));
        }
        Ok(Changed { crossing, root })
    }

    /// Takes back the changes of [`Space::cross_by`].
    pub fn cross_as_usual(&mut self, changed: Changed, granted: Imports) {
        let Changed { crossing, root } = changed;
        if let Some((mut own, _table)) = root {
            core::mem::swap(&mut self.root, &mut own);
        }
        if crossing == Crossing::Interrupt {
            set_vector(false);
        }
        self.set_grants(granted);
        self.set_ring(self.ring(), granted);
    }

    /// Makes a root that maps the kernel as well as the domain: for the cost of crossings without
    /// protection of memory.
    fn shared_root(&self) -> Result<(Frames, Frames), OutOfMemory> {
        let (root, table) = (Frames::new(1)?, Frames::new(1)?);
        let shared = Root::of(&root);
        shared.set_top(entry_area::BASE, Some((&self.entry_table, Flags::empty())));
        shared.share_kernel(&table, entry_area::BASE);
        shared.set_top(slot_base(self.slot), Some((&self.slot_table, Flags::empty())));
        Ok((root, table))
    }
}
