//! Actions that a correct kernel never takes, to see them stopped. **A kernel without the
//! feature `campaign` has none of them.** In a kernel that has them, this crate's promise of memory
//! safety does not hold: a person may call any address.

/// Calls `address` as the kernel's own code would be called.
pub fn call(address: u64) {
    // SAFETY: none. A person has asked for this call, to see that it faults.
    unsafe { core::arch::asm!("call {}", in(reg) address, clobber_abi("C")) };
}
