//! All domains that are loaded.

use super::{Domain, Handle};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use spin::Mutex;

static LOADED: Mutex<Vec<Handle>> = Mutex::new(Vec::new());

/// Those that were mapped and are not loaded yet: their `init` may sleep.
static BEGUN: Mutex<Vec<Weak<Mutex<Domain>>>> = Mutex::new(Vec::new());

/// All of them, those that were loaded first in front.
pub fn all() -> Vec<Handle> {
    LOADED.lock().clone()
}

/// How many there are.
pub fn count() -> usize {
    LOADED.lock().len()
}

/// The one called `name`.
pub fn find(name: &str) -> Option<Handle> {
    all().into_iter().find(|handle| handle.lock().name == name)
}

/// Whether one is called `name`, or will be.
pub fn is_taken(name: &str) -> bool {
    let begun: Vec<Handle> = BEGUN.lock().iter().filter_map(Weak::upgrade).collect();
    all().into_iter().chain(begun).any(|handle| handle.lock().name == name)
}

/// One is mapped, and has its name from now on.
pub fn begin(handle: &Handle) {
    let mut begun = BEGUN.lock();
    // A domain's memory goes with the last who knows of it.
    begun.retain(|other| other.strong_count() > 0);
    begun.push(Arc::downgrade(handle));
}

/// One is loaded.
fn end_beginning(handle: &Handle) {
    BEGUN.lock().retain(|other| other.as_ptr() != Arc::as_ptr(handle));
}

/// Whether `handle` is one of them.
pub fn has(handle: &Handle) -> bool {
    LOADED.lock().iter().any(|other| Arc::ptr_eq(other, handle))
}

/// Looks at one after the other until `look` finds something; for a panic, which takes no lock that
/// may be held: those that are locked are left out.
pub fn find_unlocked<T>(mut look: impl FnMut(&Domain) -> Option<T>) -> Option<T> {
    LOADED.try_lock()?.iter().find_map(|handle| look(&*handle.try_lock()?))
}

/// Adds a domain.
pub fn add(handle: Handle) {
    end_beginning(&handle);
    LOADED.lock().push(handle);
}

/// Puts `fresh` in the place of `dead`.
pub fn replace(dead: &Handle, fresh: &Handle) {
    end_beginning(fresh);
    if let Some(place) = LOADED.lock().iter_mut().find(|other| Arc::ptr_eq(other, dead)) {
        *place = fresh.clone();
    }
}

/// Takes a domain out.
pub fn remove(handle: &Handle) {
    LOADED.lock().retain(|other| !Arc::ptr_eq(other, handle));
}
