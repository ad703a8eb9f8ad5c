//! The parts of an address space that the successor of an ended driver takes over: the slot, and
//! the pages of the module's file that are never written.
//!
//! The driver comes back at the same addresses, so that an emulator can use its translations of the
//! code again. Otherwise copying the code and translating it anew would be most of a restart.
//! **Only pages that hold exactly the file's contents are taken over**, from a driver that is never
//! entered again and whose device has been stopped.

use super::Space;
use crate::memory::frames::OutOfMemory;
use crate::memory::shared::SharedMemory;
use crate::memory::tables::Leaf;
use ringfence_abi::layout::{IMAGE, PAGE_SIZE, slot_base};
use ringfence_abi::queue::Words;
use ringfence_core::module::Segment;
use x86_64::structures::paging::PageTableFlags as Flags;

impl Space {
    /// Takes the pages of a constant segment over from `before`, with rights `flags`. Returns
    /// `false` if they do not have the file's contents; the pages then stay where they are.
    pub fn take_over(&mut self, before: &mut Space, segment: &Segment, flags: Flags) -> Result<bool, OutOfMemory> {
        let is_own = self.is_own(self.image() + segment.pages.start, segment.pages.len_bytes);
        if before.is_set_aside() || before.is_entered() || !is_own || !before.holds(segment) {
            return Ok(false);
        }
        let (from, to) = (before.image(), self.image());
        for offset in pages(segment) {
            let Some(frame) = before.table().take(from + offset) else { return Ok(false) };
            self.table().map(to + offset, Leaf::Own(frame), flags)?;
        }
        Ok(true)
    }

    fn image(&self) -> u64 {
        slot_base(self.slot()) + IMAGE
    }

    /// Returns whether the pages of a constant segment are the domain's own, read-only, and just as
    /// they were loaded.
    fn holds(&self, segment: &Segment) -> bool {
        pages(segment).all(|offset| {
            let address = self.image() + offset;
            let is_constant = self.translate(address).is_some_and(|(_, flags)| !flags.contains(Flags::WRITABLE));
            let page = page_of(segment, offset);
            let (words, _) = page.as_chunks::<8>();
            // A trusted driver or a device may have written there.
            let is_same = |found: &SharedMemory, _| {
                words.iter().enumerate().all(|(index, word)| found.load(index) == u64::from_le_bytes(*word))
            };
            is_constant && self.table().with_page(address, is_same) == Some(true)
        })
    }
}

/// Returns the offsets of a segment's pages in the image.
fn pages(segment: &Segment) -> impl Iterator<Item = u64> {
    let first = segment.pages.start;
    (0..segment.pages.len_bytes).step_by(PAGE_SIZE as usize).map(move |offset| first + offset)
}

/// Returns the contents of the page at `offset` in the image once it is loaded: the file's bytes,
/// and zeros around them.
fn page_of(segment: &Segment, offset: u64) -> [u8; PAGE_SIZE as usize] {
    let mut page = [0; PAGE_SIZE as usize];
    // The segment begins in its first page, but maybe not at the start of that page.
    let (skipped, at) = match offset.checked_sub(segment.start) {
        Some(skipped) => (skipped as usize, 0),
        None => (0, (segment.start - offset) as usize),
    };
    let bytes = segment.bytes.get(skipped..).unwrap_or(&[]);
    for (to, from) in page.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
    page
}
