//! What the successor of a driver that was ended takes over of its address space: the slot, and the
//! pages that hold what of the module's file nobody may write.
//!
//! The driver comes back at the addresses where it was, so that what an emulator made of its code
//! serves again; copying and translating it anew is most of a restart otherwise. **Only pages that
//! hold exactly what the file says are taken over**, of a driver that is never entered again and
//! whose device has been stopped.

use super::Space;
use crate::memory::frames::OutOfMemory;
use crate::memory::shared::SharedMemory;
use crate::memory::tables::Leaf;
use ringfence_abi::layout::{IMAGE, PAGE_SIZE, slot_base};
use ringfence_abi::queue::Words;
use ringfence_core::module::Segment;
use x86_64::structures::paging::PageTableFlags as Flags;

impl Space {
    /// Takes the pages of a constant segment over from `before`, with rights `flags`; `false` if
    /// they are not what the file says, and then all stays as it is.
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

    /// Whether the pages of a constant segment are its own, read-only, and just as they were
    /// loaded.
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

/// The offsets of a segment's pages in the image.
fn pages(segment: &Segment) -> impl Iterator<Item = u64> {
    let first = segment.pages.start;
    (0..segment.pages.len_bytes).step_by(PAGE_SIZE as usize).map(move |offset| first + offset)
}

/// What the page at `offset` in the image holds once it is loaded: the file's bytes, and zeros
/// around them.
fn page_of(segment: &Segment, offset: u64) -> [u8; PAGE_SIZE as usize] {
    let mut page = [0; PAGE_SIZE as usize];
    // The segment begins in its first page, maybe not at that page's start.
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
