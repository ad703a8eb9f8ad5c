//! The extension point for classes of devices. **No file below the classes imports a class**: the
//! code there handles an offer through the traits of this file only.
//!
//! A class is one row of [`install`]'s table. A driver's offer is the class's record of the driver:
//! the kernel's end of the queues, and the work that the driver has in hand.

use super::cause::Cause;
use super::trace::Noting;
use super::{Domain, Handle};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::any::Any;
use hw::memory::frames::Lent;
use hw::memory::queues::QueueMemory;
use ringfence_abi::layout::{PAGE_SIZE, QUEUE, USED};
use ringfence_abi::manifest::{Kind, Manifest};
use ringfence_abi::queue::HasQueues;
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Reply;
use ringfence_core::passed::{Content, Moved, Side};
use spin::Once;

/// A device that a driver offers.
pub trait Offer: Any + Send {
    /// Called after an upcall of a driver that still runs: takes the entries that it has put into
    /// its queues. A lie among them ends the driver.
    fn after_upcall(&mut self) -> Result<(), Cause>;

    /// Notes the news in a driver's reply, besides its answer to the interrupt.
    fn take_news(&mut self, news: Reply);

    /// Called when the driver has been ended, and its device stopped.
    fn driver_ended(&mut self);

    /// Called when a driver goes on that a debugger had stopped: it is not to blame for that time.
    fn excuse(&mut self) {}

    /// Returns how much has gone through the driver.
    fn moved(&self) -> Moved;

    /// Tells `notes` of each frame or request that one side has passed to the other since the last
    /// call for that side, with at most `most` bytes of a frame. For traces.
    fn passed(&mut self, side: Side, most: usize, notes: &mut Noting);

    /// Takes what was passed so far for seen: a trace begins.
    fn forget_passed(&mut self);

    /// Returns the number of things that the driver has in hand, and their name, for reports.
    fn in_hand(&self) -> (usize, &'static str);

    /// Returns where `len_bytes` bytes are that begin at a driver's `address`: the memory of the
    /// data of the requests to the driver, and the offset there. `None` if not all of them are in
    /// that memory.
    fn data_at(&self, address: u64, len_bytes: usize) -> Option<(&Lent, usize)> {
        let _ = (address, len_bytes);
        None
    }
}

/// Another driver's device that a driver uses.
pub trait Use: Any + Send {
    /// Takes the driver's requests to the device that it uses. A lie among them ends the driver.
    fn take(&mut self) -> Result<(), Cause>;

    /// Has the requests carried out that were taken: the driver is told when one is done
    /// ([`poll::answered`](crate::poll::answered)).
    fn begin(&mut self);

    /// Answers the requests that need no waiting, while the driver waits. `offer` is what the
    /// driver offers itself.
    fn answer_at_once(&mut self, offer: Option<&dyn Offer>) -> Result<(), Cause> {
        let _ = offer;
        Ok(())
    }

    /// Called when the driver has been ended: no one waits for its requests any more.
    fn driver_ended(&mut self);

    /// Returns the number of things that the driver waits for, and their name, for reports.
    fn in_hand(&self) -> (usize, &'static str);
}

/// A class of devices.
pub trait Class: Sync {
    /// Returns the kind of drivers that can make offers of this class.
    fn kind(&self) -> Kind;

    /// Returns the length of a driver's description of its device in bytes.
    fn info_bytes(&self) -> usize;

    /// Checks a driver's description of its device.
    fn check(&self, info: &[u8]) -> Result<(), Refusal>;

    /// Makes queues for `domain`, which has no offer yet. `info` is the driver's description of its
    /// device, and was checked.
    fn offer(&self, domain: &mut Domain, info: &[u8]) -> Result<Box<dyn Offer>, Refusal>;

    /// Returns the meaning of a refusal with [`Refusal::Full`], for a person.
    fn full(&self) -> &'static str {
        "there are as many of these as there can be"
    }

    /// Opens the device called `name` for `domain`, which uses no device yet.
    fn open(&self, domain: &mut Domain, name: &str) -> Result<Box<dyn Use>, Refusal> {
        let _ = (domain, name);
        Err(Refusal::NotFound)
    }

    /// Returns the name of one of the things that kernel and driver pass to each other.
    fn noun(&self) -> &'static str;

    /// Describes the content of a frame or request, for a person, as far as a trace has kept it.
    fn content_words(&self, content: &Content) -> String;

    /// Describes a driver's result for it, and what else it says about a failure, for a person.
    fn result_words(&self, result: u32, detail: &[u8]) -> String {
        let _ = (result, detail);
        String::new()
    }

    /// Called when a driver of the class is loaded.
    fn attach(&self, handle: &Handle);

    /// Called when `fresh` has replaced a driver that was ended: the layers above go on with it.
    fn replace(&self, dead: &Handle, fresh: &Handle);

    /// Called before a driver is unloaded.
    fn detach(&self, handle: &Handle);

    /// Wakes the tasks that wait for a driver, so that they check again whether one will come.
    fn wake_waiting(&self);
}

static CLASSES: Once<&[&dyn Class]> = Once::new();

/// Installs the classes, before any module is loaded.
pub fn install(classes: &'static [&'static dyn Class]) {
    CLASSES.call_once(|| classes);
}

/// Returns all classes.
pub fn classes() -> impl Iterator<Item = &'static dyn Class> {
    CLASSES.get().into_iter().flat_map(|classes| classes.iter().copied())
}

/// Wakes all tasks that wait for a successor of a driver, so that they check again whether one will
/// come.
pub fn wake_waiting() {
    classes().for_each(|class| class.wake_waiting());
}

/// Returns the name of this kind of drivers, for programs: `nic`, `scsi`, `block`, `fs` or `other`.
pub fn kind_name(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// Returns the class of the devices that drivers of this kind offer, if they offer any.
pub fn class(kind: Kind) -> Option<&'static dyn Class> {
    classes().find(|class| class.kind() == kind)
}

/// Returns the name of the operations of a module's drivers, in the plural.
pub fn operations_noun(manifest: &Manifest) -> String {
    let class = manifest.kind().ok().and_then(class);
    class.map_or("upcalls".into(), |class| format!("{}s", class.noun()))
}

/// Maps the shared memory of a driver's queues at the address of all queues.
pub fn map_queues<Q: HasQueues>(domain: &mut Domain) -> Result<QueueMemory<Q>, Refusal> {
    let len_bytes = (Q::WORDS * size_of::<u64>()).next_multiple_of(PAGE_SIZE as usize);
    let start = domain.base() + QUEUE;
    let queues = QueueMemory::new(domain.space.map_lent(start, len_bytes as u64)?);
    if queues.is_none() {
        domain.space.unmap(start, len_bytes as u64);
    }
    queues.ok_or(Refusal::NoMemory)
}

/// Maps the shared memory for the device that a driver uses, `len_bytes` bytes.
pub fn map_used(domain: &mut Domain, len_bytes: usize) -> Result<Lent, Refusal> {
    let len_bytes = len_bytes.next_multiple_of(PAGE_SIZE as usize);
    Ok(domain.space.map_lent(domain.base() + USED, len_bytes as u64)?)
}

/// Unmaps the memory that [`map_queues`] has mapped.
pub fn unmap_queues<Q: HasQueues>(domain: &mut Domain, queues: &QueueMemory<Q>) {
    domain.space.unmap(domain.base() + QUEUE, queues.memory().len_bytes() as u64);
}

impl Domain {
    /// Returns the class of the devices that it can offer.
    pub fn class(&self) -> Option<&'static dyn Class> {
        class(self.manifest.kind().ok()?)
    }

    /// Returns the class of the device that it offers.
    pub fn offered_class(&self) -> Option<&'static dyn Class> {
        self.class().filter(|_| self.offer.is_some())
    }

    /// Returns the device that it uses, if that is a `T`.
    pub fn used_mut<T: Use>(&mut self) -> Option<&mut T> {
        let used: &mut dyn Any = &mut **self.used.as_mut()?;
        used.downcast_mut()
    }

    /// Returns the device that it uses, if that is a `T`, to look at.
    pub fn used<T: Use>(&self) -> Option<&T> {
        let used: &dyn Any = &**self.used.as_ref()?;
        used.downcast_ref()
    }

    /// Returns its offer, if that is a `T`.
    #[inline]
    pub fn offered<T: Offer>(&self) -> Option<&T> {
        let offer: &dyn Any = &**self.offer.as_ref()?;
        offer.downcast_ref()
    }

    /// Returns its offer to be changed, if that is a `T`.
    #[inline]
    pub fn offered_mut<T: Offer>(&mut self) -> Option<&mut T> {
        let offer: &mut dyn Any = &mut **self.offer.as_mut()?;
        offer.downcast_mut()
    }
}
