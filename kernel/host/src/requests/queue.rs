//! The kernel's end of a driver's queues, in a domain.

use crate::domain::Domain;
use crate::domain::cause::Cause;
use crate::domain::offer::{self, Offer};
use crate::domain::trace::Noting;
use alloc::sync::Arc;
use core::ops::{Deref, DerefMut};
use hw::memory::frames::Lent;
use hw::memory::queues::QueueMemory;
use hw::space::lifted;
use ringfence_abi::queue::HasQueues;
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Reply;
use ringfence_core::passed::{Moved, Side};
use ringfence_core::requests::repeat::Repeats;
use ringfence_core::requests::{Account, Memory, Protocol};
pub use ringfence_core::requests::{Moves, Ticket};

/// The kernel's end of a driver's queues.
pub struct Queues<P: Protocol> {
    /// The driver's description of its device, checked.
    pub info: P::Info,
    account: Account<P, QueueMemory<Queues<P>>, Lent>,
    /// The server's requests that are to be sent again.
    repeats: Arc<Repeats>,
    /// The news of the driver.
    news: Reply,
    /// What the driver leaves out of its addresses ([`Space::lift`](hw::space::Space::lift)).
    lift: u64,
}

impl<P: Protocol> HasQueues for Queues<P> {
    const WORDS: usize = P::QUEUE_BYTES / size_of::<u64>();
}

impl<P: Protocol> Deref for Queues<P> {
    type Target = Account<P, QueueMemory<Queues<P>>, Lent>;

    #[inline]
    fn deref(&self) -> &Account<P, QueueMemory<Queues<P>>, Lent> {
        &self.account
    }
}

impl<P: Protocol> DerefMut for Queues<P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Account<P, QueueMemory<Queues<P>>, Lent> {
        &mut self.account
    }
}

impl<P: Protocol> Offer for Queues<P> {
    fn after_upcall(&mut self) -> Result<(), Cause> {
        Ok(self.account.collect()?)
    }

    fn take_news(&mut self, news: Reply) {
        if news.intersects(P::NEWS) {
            self.news |= news & P::NEWS;
            P::news_came();
        }
    }

    fn driver_ended(&mut self) {
        self.account.fail_all(|number| self.repeats.add(number));
    }

    fn moved(&self) -> Moved {
        self.account.moved()
    }

    fn passed(&mut self, side: Side, _: usize, notes: &mut Noting) {
        self.account.passed(side, notes);
    }

    fn forget_passed(&mut self) {
        [Side::Kernel, Side::Driver].into_iter().for_each(|side| self.account.passed(side, &mut ()));
    }

    fn in_hand(&self) -> (usize, &'static str) {
        let [_, several] = P::NAMES;
        (self.account.count(), several)
    }

    fn data_at(&self, address: u64, len_bytes: usize) -> Option<(&Lent, usize)> {
        self.account.data_at(lifted(address, self.lift), len_bytes)
    }
}

impl<P: Protocol> Queues<P> {
    /// Maps queues and data memory into `domain`.
    pub fn new(domain: &mut Domain, info: P::Info) -> Result<Queues<P>, Refusal> {
        let queues = offer::map_queues(domain)?;
        let Ok(data) = domain.map_dma((P::REQUESTS * P::MAX_DATA) as u64, true) else {
            offer::unmap_queues(domain, &queues);
            return Err(Refusal::NoMemory);
        };
        let memory = Memory {
            queues,
            data_address: domain.device_address(&data),
            data_start: data.extent.start,
            data: data.memory,
        };
        let account = Account::new(memory, P::depth(&info));
        let (repeats, news, lift) = (Arc::default(), Reply::empty(), domain.space.lift());
        Ok(Queues { info, account, repeats, news, lift })
    }

    /// Returns the news of the driver since the last call.
    pub fn take_news(&mut self) -> Reply {
        core::mem::replace(&mut self.news, Reply::empty())
    }

    /// Returns the server's requests that are to be sent again.
    pub fn repeats(&self) -> &Arc<Repeats> {
        &self.repeats
    }

    /// Makes these queues part of another driver's server.
    pub fn set_repeats(&mut self, repeats: &Arc<Repeats>) {
        self.repeats = repeats.clone();
    }
}
