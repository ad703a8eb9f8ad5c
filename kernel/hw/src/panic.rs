//! How the kernel ends when it cannot go on.

use crate::arch::power::{self, Ending};
use crate::arch::watch;
use crate::console;
use crate::println;

/// Ends the kernel: `report` says why, on the console and on the screen. **Nothing that was under
/// way ever goes on**, so that it can be looked at whoever has it.
pub fn end_kernel(report: impl FnOnce()) -> ! {
    if !power::note_panic() {
        // A panic in a panic: the console or the symbols are what is broken.
        power::end(Ending::Panic);
    }
    watch::end_all();
    console::take_over();
    report();
    println!("ringfence: kernel panic");
    power::end(Ending::Panic)
}
