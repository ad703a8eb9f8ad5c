//! A debugger lets drivers go on that stand still ([`crate::domain::debug`]).

use crate::domain::debug::{self, Go, Why};
use crate::domain::{Handle, fault, registry};
use crate::poll;

/// Lets a driver go on that stands. A driver that does not stand is left alone.
pub fn go_on(handle: &Handle, go: Go) {
    let enters = handle.lock().leave_debugger(go);
    fault::print_due();
    if enters {
        poll::go_on(handle);
    }
}

/// Ends the debugger's session. Drivers that stand go on as if it had not been there, or are ended
/// by the fault that they had.
pub fn end() {
    debug::end();
    for handle in registry::in_slots() {
        let why = handle.lock().why_it_stands();
        match why {
            Some(Why::Fault(..)) => go_on(&handle, Go::Fault),
            Some(_) => go_on(&handle, Go::On),
            None => {}
        }
    }
}
