//! Watches one instruction: whether it is ever executed. Debug register 0 does that, whatever the ring (SDM vol. 3B, 17.2).

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

/// Vector of the debug exception.
pub const DEBUG: u64 = 1;
/// DR7: breakpoint 0 is on, for execution; bit 10 is always 1.
const ON: u64 = 1 << 1 | 1 << 10;
const OFF: u64 = 1 << 10;
/// DR6: breakpoint 0 was met.
const MET: u64 = 1;

static HIT: AtomicBool = AtomicBool::new(false);

fn set_dr7(value: u64) {
    // SAFETY: switches a breakpoint whose exception is handled.
    unsafe { asm!("mov dr7, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// Watches the instruction at `address`, and no other.
pub fn set(address: u64) {
    HIT.store(false, Ordering::Relaxed);
    set_dr7(OFF);
    // SAFETY: as above.
    unsafe { asm!("mov dr0, {}", in(reg) address, options(nomem, nostack, preserves_flags)) };
    set_dr7(ON);
}

/// Ends the watch. Whether the instruction was executed.
pub fn take() -> bool {
    set_dr7(OFF);
    HIT.swap(false, Ordering::Relaxed)
}

/// For the debug exception's handler: whether it came from the watch, which has ended by that.
pub fn was_hit() -> bool {
    let dr6: u64;
    // SAFETY: reads the debug status, and clears it, as the handler must.
    unsafe {
        asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64, options(nomem, nostack, preserves_flags));
    }
    let hit = dr6 & MET != 0 && !HIT.load(Ordering::Relaxed) && watching();
    if hit {
        set_dr7(OFF);
        HIT.store(true, Ordering::Relaxed);
    }
    hit
}

fn watching() -> bool {
    let dr7: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr7", out(reg) dr7, options(nomem, nostack, preserves_flags)) };
    dr7 & ON & !OFF != 0
}
