//! The end of the kernel when it cannot go on.

use crate::arch::power::{self, Ending};
use crate::arch::watch;
use crate::console;
use crate::println;

/// Ends the kernel: `report` prints the reason, on the console and on the screen. **No work that
/// was under way ever goes on**, so `report` may read values that are locked.
pub fn end_kernel(report: impl FnOnce()) -> ! {
    if !power::note_panic() {
        // This is a panic in a panic: the console or the symbols are broken.
        power::end(Ending::Panic);
    }
    watch::end_all();
    console::take_over();
    report();
    println!("ringfence: kernel panic");
    power::end(Ending::Panic)
}
