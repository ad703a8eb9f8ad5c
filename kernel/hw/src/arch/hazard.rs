//! What no kernel does, to see what stops it. **A kernel without the feature `campaign` has none of
//! this**, and what this crate promises of memory safety does not hold for it: a person who calls
//! an address gets what is there.

/// Calls `address` as the kernel's own code would be called.
pub fn call(address: u64) {
    // SAFETY: none: a person has asked for it, and to see that it faults.
    unsafe { core::arch::asm!("call {}", in(reg) address, clobber_abi("C")) };
}
