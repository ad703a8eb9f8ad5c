//! Makes a driver cross in another way than through its gates, to measure it. See
//! [`crate::arch::bench`].

use super::{Ring, STUB_BYTES, Space, rights, stub_of};
use crate::arch::bench::{self, Crossing, VECTOR, set_vector};
use crate::arch::entry_area;
use crate::memory::frames::{Frames, OutOfMemory};
use crate::memory::tables::{self, Root};
use ringfence_abi::layout::{PAGE_SIZE, STUBS, slot_base};
use ringfence_abi::service::SERVICE_COUNT;
use ringfence_core::descriptor;
use ringfence_core::module::Imports;
use x86_64::structures::paging::PageTableFlags as Flags;

/// The page of a slot that leads the kernel into ring 3, far enough behind the stubs.
const WAY_TO_USER: u64 = STUBS + 0x1_0000;

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

    /// Lets [`bench::with_syscall`] run the driver in ring 3, in the kernel's root: its pages there
    /// become user pages, and its stubs use SYSCALL. Returns the entry point of upcalls meanwhile,
    /// in place of `entry`. Outside of `with_syscall` the driver must not be entered.
    pub fn to_user(&mut self, entry: u64, granted: Imports) -> Result<u64, OutOfMemory> {
        self.set_ring(Ring::Trusted, granted);
        let way = slot_base(self.slot) + WAY_TO_USER;
        tables::set_user(&self.slot_table, true);
        // Ring 0 executes this page, which SMEP forbids for user pages.
        self.map_fresh(way, PAGE_SIZE, rights::EXECUTE).inspect_err(|_| self.from_user(granted))?;
        self.write(way, &super::jump_stub(bench::user_entry()));
        for number in (0..SERVICE_COUNT).filter(|number| granted.contains(*number)) {
            self.write_stub(number, stub_of(&[&syscall(number), &[0xc3]]));
        }
        // mov %r10, %rcx; call *%rax
        let start = [0x4c, 0x89, 0xd1, 0xff, 0xd0];
        self.write_stub(SERVICE_COUNT, stub_of(&[&start, &syscall(SERVICE_COUNT)]));
        Root::kernel().set_top(slot_base(self.slot), Some((&self.slot_table, Flags::USER_ACCESSIBLE)));
        x86_64::instructions::tlb::flush_all();
        bench::set_user(self.stub(SERVICE_COUNT), entry, granted);
        Ok(way)
    }

    /// Takes back the changes of [`Space::to_user`]. The driver is sandboxed from then on.
    pub fn from_user(&mut self, granted: Imports) {
        self.unmap(slot_base(self.slot) + WAY_TO_USER, PAGE_SIZE);
        tables::set_user(&self.slot_table, false);
        self.set_ring(Ring::Sandboxed, granted);
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

/// Returns `mov $number, %r10d; syscall`.
fn syscall(number: usize) -> [u8; 8] {
    let [a, b, c, d] = (number as u32).to_le_bytes();
    [0x41, 0xba, a, b, c, d, 0x0f, 0x05]
}
