//! Backtraces by frame pointers: on the kernel's stacks, or on a trusted driver's.

use crate::memory::read_kernel;

/// Returns RBP and RSP of the caller.
#[inline(always)]
pub fn here() -> (u64, u64) {
    let (rbp, rsp): (u64, u64);
    // SAFETY: this only reads registers.
    unsafe {
        core::arch::asm!("mov {}, rbp", "mov {}, rsp", out(reg) rbp, out(reg) rsp, options(nomem, nostack, preserves_flags));
    }
    (rbp, rsp)
}

/// Returns the return addresses of the frames, from the frame at `rbp` on. They end at the first
/// broken frame pointer.
pub fn from(rbp: u64) -> impl Iterator<Item = u64> {
    let frame = move |rbp: u64| {
        let return_address = read_kernel(rbp.checked_add(8)?).filter(|address| *address != 0)?;
        Some((read_kernel(rbp)?, return_address))
    };
    let mut next = Some(rbp);
    core::iter::from_fn(move || {
        let rbp = next.take()?;
        let (above, return_address) = frame(rbp)?;
        next = Some(above).filter(|above| *above > rbp);
        Some(return_address)
    })
}
