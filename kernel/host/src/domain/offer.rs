//! What drivers offer: the extension point for classes of devices. **No file below the classes
//! imports one**: all that is done with an offer there goes through the traits here.
//!
//! A class is one row of [`install`]'s table. A driver's offer is what the class keeps of it: its
//! end of the queues, and what it has in hand.

use super::cause::Cause;
use super::{Domain, Handle};
use alloc::boxed::Box;
use core::any::Any;
use hw::memory::frames::Lent;
use ringfence_abi::layout::{PAGE_SIZE, QUEUE, USED};
use ringfence_abi::manifest::Kind;
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Reply;
use spin::Once;

/// What a driver offers.
pub trait Offer: Any + Send {
    /// After an upcall of a driver that runs still: takes what it has put into its queues. A lie
    /// that is found there ends it.
    fn after_upcall(&mut self) -> Result<(), Cause>;

    /// Takes down what a driver told beside how it dealt with its interrupt.
    fn take_news(&mut self, news: Reply);

    /// The driver has been ended, and its device stopped.
    fn driver_ended(&mut self);

    /// How many things the driver has in hand, and what they are called, for reports.
    fn in_hand(&self) -> (usize, &'static str);
}

/// What a driver uses, which is another driver's.
pub trait Use: Any + Send {
    /// After an upcall of a driver that runs still: takes what it has asked for. A lie that is
    /// found there ends it.
    fn after_upcall(&mut self) -> Result<(), Cause>;

    /// The driver has been ended: nobody waits any more for what it asked for.
    fn driver_ended(&mut self);

    /// How many things it waits for, and what they are called, for reports.
    fn in_hand(&self) -> (usize, &'static str);
}

/// A class of devices.
pub trait Class: Sync {
    /// Which drivers can offer this.
    fn kind(&self) -> Kind;

    /// Bytes of what a driver says about what it offers.
    fn info_bytes(&self) -> usize;

    /// Whether what a driver says about what it offers can be.
    fn check(&self, info: &[u8]) -> Result<(), Refusal>;

    /// Makes queues for `domain`, which has no offer yet; `info` is what it says about what it
    /// offers, and was checked.
    fn offer(&self, domain: &mut Domain, info: &[u8]) -> Result<Box<dyn Offer>, Refusal>;

    /// What is meant when it refuses an offer with [`Refusal::Full`], for a person.
    fn full(&self) -> &'static str {
        "there are as many of these as there can be"
    }

    /// Opens what is called `name` for `domain`, which uses nothing yet.
    fn open(&self, domain: &mut Domain, name: &str) -> Result<Box<dyn Use>, Refusal> {
        let _ = (domain, name);
        Err(Refusal::NotFound)
    }

    /// A driver that offers this is loaded.
    fn attach(&self, handle: &Handle);

    /// A driver has come in the place of one that was ended: what is above that goes on with it.
    fn replace(&self, dead: &Handle, fresh: &Handle);

    /// A driver is about to be unloaded.
    fn detach(&self, handle: &Handle);

    /// Has those who wait for a driver look again whether one will come.
    fn wake_waiting(&self);
}

static CLASSES: Once<&[&dyn Class]> = Once::new();

/// Installs the classes, before any module is loaded.
pub fn install(classes: &'static [&'static dyn Class]) {
    CLASSES.call_once(|| classes);
}

/// All classes.
pub fn classes() -> impl Iterator<Item = &'static dyn Class> {
    CLASSES.get().into_iter().flat_map(|classes| classes.iter().copied())
}

/// Has all look again who wait for a driver that was ended: one will come, or none.
pub fn wake_waiting() {
    classes().for_each(|class| class.wake_waiting());
}

/// The class of what drivers of this kind offer, if they offer anything.
pub fn class(kind: Kind) -> Option<&'static dyn Class> {
    classes().find(|class| class.kind() == kind)
}

/// The shared memory of a driver's queues, `len_bytes` bytes that begin where all queues do.
pub fn map_queues(domain: &mut Domain, len_bytes: usize) -> Result<Lent, Refusal> {
    let len_bytes = len_bytes.next_multiple_of(PAGE_SIZE as usize);
    Ok(domain.space.map_lent(domain.base() + QUEUE, len_bytes as u64)?)
}

/// The shared memory of what a driver uses, `len_bytes` bytes.
pub fn map_used(domain: &mut Domain, len_bytes: usize) -> Result<Lent, Refusal> {
    let len_bytes = len_bytes.next_multiple_of(PAGE_SIZE as usize);
    Ok(domain.space.map_lent(domain.base() + USED, len_bytes as u64)?)
}

/// Takes away what [`map_queues`] has mapped.
pub fn unmap_queues(domain: &mut Domain, queues: &Lent) {
    domain.space.unmap(domain.base() + QUEUE, queues.len_bytes() as u64);
}

impl Domain {
    /// The class of what it can offer.
    pub fn class(&self) -> Option<&'static dyn Class> {
        class(self.manifest.kind().ok()?)
    }

    /// The class of what it offers.
    pub fn offered_class(&self) -> Option<&'static dyn Class> {
        self.class().filter(|_| self.offer.is_some())
    }

    /// What it uses, if that is a `T`.
    pub fn used_mut<T: Use>(&mut self) -> Option<&mut T> {
        let used: &mut dyn Any = &mut **self.used.as_mut()?;
        used.downcast_mut()
    }

    /// What it offers, if that is a `T`.
    #[inline]
    pub fn offered<T: Offer>(&self) -> Option<&T> {
        let offer: &dyn Any = &**self.offer.as_ref()?;
        offer.downcast_ref()
    }

    /// The same, to be changed.
    #[inline]
    pub fn offered_mut<T: Offer>(&mut self) -> Option<&mut T> {
        let offer: &mut dyn Any = &mut **self.offer.as_mut()?;
        offer.downcast_mut()
    }
}
