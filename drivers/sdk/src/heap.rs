//! The driver's heap. It grows piece by piece through a service of the kernel, up to the budget in
//! the manifest.

use crate::service::safe::rf_heap_grow;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use linked_list_allocator::Heap;

/// The smallest growth in bytes, so that one call of the service covers several pages.
const STEP: usize = 16 << 10;

struct DriverHeap(UnsafeCell<Heap>);

// SAFETY: a driver has one thread, and the kernel enters it again only after it has returned.
unsafe impl Sync for DriverHeap {}

#[global_allocator]
static HEAP: DriverHeap = DriverHeap(UnsafeCell::new(Heap::empty()));

// SAFETY: the methods pass on the guarantees of the allocator.
unsafe impl GlobalAlloc for DriverHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see `Sync`.
        let heap = unsafe { &mut *self.0.get() };
        if let Ok(block) = heap.allocate_first_fit(layout) {
            return block.as_ptr();
        }
        // Enough for the block, its alignment and the allocator's own bookkeeping.
        let wanted = (layout.size() + layout.align() + 64).next_multiple_of(STEP);
        // SAFETY: the kernel maps fresh memory for this driver alone, right behind the present
        // heap.
        let grown = unsafe {
            match rf_heap_grow(wanted as u64) {
                Err(_) => return core::ptr::null_mut(),
                Ok(start) if heap.size() == 0 => heap.init(start as *mut u8, wanted),
                Ok(_) => heap.extend(wanted),
            }
            heap.allocate_first_fit(layout)
        };
        grown.map_or(core::ptr::null_mut(), |block| block.as_ptr())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = core::ptr::NonNull::new(block) {
            // SAFETY: see `Sync`; the block came from `alloc` with this layout.
            unsafe { (*self.0.get()).deallocate(block, layout) };
        }
    }
}
