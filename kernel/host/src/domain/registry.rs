//! The registry of loaded domains.

use super::{Domain, Handle};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use ringfence_abi::layout::MAX_DOMAINS;
use spin::Mutex;

static LOADED: Mutex<Vec<Handle>> = Mutex::new(Vec::new());

/// Domains that are mapped and not loaded yet: their `init` may sleep.
static BEGUN: Mutex<Vec<Weak<Mutex<Domain>>>> = Mutex::new(Vec::new());

/// Returns all loaded domains, in the order in which they were loaded.
pub fn all() -> Vec<Handle> {
    LOADED.lock().clone()
}

/// Returns all domains that are loaded or being loaded and have their slots. A domain whose
/// successor is being loaded is not among them.
pub fn in_slots() -> Vec<Handle> {
    let begun: Vec<Handle> = BEGUN.lock().iter().filter_map(Weak::upgrade).collect();
    all().into_iter().chain(begun).filter(|handle| handle.lock().space.has_slot()).collect()
}

/// Puts the values that `select` finds among the loaded domains into an empty list, in the order in
/// which the domains were loaded. Unlike [`all`], this allocates nothing, and it moves no list: it
/// runs for each interrupt. No domain may be locked.
pub fn select<T>(found: &mut heapless::Vec<T, MAX_DOMAINS>, mut select: impl FnMut(&Handle, &mut Domain) -> Option<T>) {
    for handle in LOADED.lock().iter() {
        if let Some(one) = select(handle, &mut handle.lock()) {
            // There is room: no more domains can be loaded.
            let _ = found.push(one);
        }
    }
}

/// Returns the number of loaded domains.
pub fn count() -> usize {
    LOADED.lock().len()
}

/// Returns the loaded domain called `name`.
pub fn find(name: &str) -> Option<Handle> {
    all().into_iter().find(|handle| handle.lock().name == name)
}

/// Returns whether a domain called `name` is loaded or is being loaded.
pub fn is_taken(name: &str) -> bool {
    let begun: Vec<Handle> = BEGUN.lock().iter().filter_map(Weak::upgrade).collect();
    all().into_iter().chain(begun).any(|handle| handle.lock().name == name)
}

/// Registers a domain that is mapped, and whose name is taken from now on.
pub fn begin(handle: &Handle) {
    let mut begun = BEGUN.lock();
    // Drop the entries of freed domains: a weak reference keeps the domain's allocation alive.
    begun.retain(|other| other.strong_count() > 0);
    begun.push(Arc::downgrade(handle));
}

/// Takes a domain off the list of domains that are being loaded.
fn end_beginning(handle: &Handle) {
    BEGUN.lock().retain(|other| other.as_ptr() != Arc::as_ptr(handle));
}

/// Returns whether `handle` is a loaded domain.
pub fn has(handle: &Handle) -> bool {
    LOADED.lock().iter().any(|other| Arc::ptr_eq(other, handle))
}

/// Calls `look` on one domain after the other until it returns a value. It is for a panic, which
/// must not wait for a lock: locked domains are left out.
pub fn find_unlocked<T>(mut look: impl FnMut(&Domain) -> Option<T>) -> Option<T> {
    LOADED.try_lock()?.iter().find_map(|handle| look(&*handle.try_lock()?))
}

/// Calls `look` on one domain after the other that is loaded or being loaded, until it returns a
/// value. Locked domains are left out: it is for services, whose own domain is locked.
pub fn find_in_service<T>(mut look: impl FnMut(&Domain) -> Option<T>) -> Option<T> {
    let begun: Vec<Handle> = BEGUN.lock().iter().filter_map(Weak::upgrade).collect();
    all().iter().chain(&begun).find_map(|handle| look(&*handle.try_lock()?))
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

/// Removes a domain, whose name is free from now on.
pub fn remove(handle: &Handle) {
    end_beginning(handle);
    LOADED.lock().retain(|other| !Arc::ptr_eq(other, handle));
}
