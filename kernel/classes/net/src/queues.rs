//! The kernel's end of a network driver's queues, as a part of a domain. The account is in
//! [`ringfence_core::frames`].

use core::net::Ipv4Addr;
use core::ops::{Deref, DerefMut};
use host::domain::Domain;
use host::domain::cause::Cause;
use host::domain::offer::{self, Offer};
use host::domain::trace::Noting;
use hw::arch::time;
use hw::memory::frames::Lent;
use hw::memory::queues::QueueMemory;
use ringfence_abi::net::{
    FRAME_BYTES, Hearing, NetInfo, QUEUE_BYTES, RX_ADDRESS, RX_FRAMES, RX_START, TX_ADDRESS, TX_FRAMES, TX_START,
};
use ringfence_abi::queue::{HasQueues, Words};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Reply;
use ringfence_core::frames::Frames;
pub use ringfence_core::frames::{Card, Counts};
use ringfence_core::passed::{Moved, Side};

/// The kernel's end of a network driver's queues.
pub struct Queues {
    /// Ethernet address of the interface.
    pub mac: [u8; 6],
    /// The other frames that the card can be told to receive.
    pub can_hear: Hearing,
    frames: Frames<QueueMemory<Queues>, Lent>,
}

impl HasQueues for Queues {
    const WORDS: usize = QUEUE_BYTES / size_of::<u64>();
}

impl Deref for Queues {
    type Target = Frames<QueueMemory<Queues>, Lent>;

    #[inline]
    fn deref(&self) -> &Frames<QueueMemory<Queues>, Lent> {
        &self.frames
    }
}

impl DerefMut for Queues {
    #[inline]
    fn deref_mut(&mut self) -> &mut Frames<QueueMemory<Queues>, Lent> {
        &mut self.frames
    }
}

impl Offer for Queues {
    fn excuse(&mut self) {
        self.frames.excuse();
    }

    fn after_upcall(&mut self) -> Result<(), Cause> {
        if !super::is_woken() {
            self.wake_for_news();
        }
        Ok(())
    }

    fn take_news(&mut self, news: Reply) {
        if news.intersects(Reply::LINK_UP | Reply::LINK_DOWN) {
            // A driver that reports both has seen the link go down and come up.
            self.link_is(news.contains(Reply::LINK_UP), news.contains(Reply::LINK_DOWN));
            super::wake();
        }
    }

    fn driver_ended(&mut self) {
        super::wake();
    }

    fn moved(&self) -> Moved {
        self.frames.moved()
    }

    fn passed(&mut self, side: Side, most: usize, notes: &mut Noting) {
        self.frames.passed(side, most, notes);
    }

    fn forget_passed(&mut self) {
        [Side::Kernel, Side::Driver].into_iter().for_each(|side| self.frames.passed(side, 0, &mut ()));
    }

    fn in_hand(&self) -> (usize, &'static str) {
        (self.frames.in_hand(), "frames to send")
    }
}

impl Queues {
    /// Wakes the network task, unless it has nothing to look at: an interrupt often comes when an
    /// earlier poll has seen to everything.
    #[inline(never)]
    fn wake_for_news(&mut self) {
        if self.frames.has_news() {
            super::wake();
        }
    }

    /// Maps queues and frames into `domain`, and lends the driver all receive frames.
    pub fn new(domain: &mut Domain, info: NetInfo) -> Result<Queues, Refusal> {
        let card = Card::new(&info).ok_or(Refusal::Invalid)?;
        let memory = offer::map_queues(domain)?;
        // On an error, the regions that are mapped already are unmapped again. The device only
        // reads frames that are sent.
        let tx = domain.map_dma((TX_FRAMES * FRAME_BYTES) as u64, false);
        let rx = domain.map_dma((RX_FRAMES * FRAME_BYTES) as u64, true);
        let (tx, rx) = match (tx, rx) {
            (Ok(tx), Ok(rx)) => (tx, rx),
            (tx, rx) => {
                offer::unmap_queues(domain, &memory);
                [tx, rx].into_iter().flatten().for_each(|region| domain.unmap_dma(&region));
                return Err(Refusal::NoMemory);
            }
        };
        memory.store(TX_ADDRESS, domain.device_address(&tx));
        memory.store(RX_ADDRESS, domain.device_address(&rx));
        memory.store(TX_START, tx.extent.start);
        memory.store(RX_START, rx.extent.start);
        let frames = Frames::new(memory, [tx.memory, rx.memory], time::uptime_ns, card);
        Ok(Queues { mac: info.mac, can_hear: Hearing::from_bits_truncate(info.can_hear), frames })
    }

    /// Returns how the card hears groups: those alone, or all groups, or all frames; `None` if it
    /// cannot.
    pub fn hears_groups_by(&self) -> Option<Hearing> {
        let ways = [Hearing::GROUPS, Hearing::ALL_MULTICAST, Hearing::PROMISCUOUS];
        ways.into_iter().find(|way| self.can_hear.contains(*way))
    }

    /// Tells the driver which frames its card is to receive besides frames to itself and to all:
    /// the kinds of `wanted` that the card can receive, and frames to `groups`. Returns whether
    /// there are any; the driver must be polled to see them.
    pub fn hear(&mut self, wanted: Hearing, groups: &[Ipv4Addr]) -> bool {
        let by = if groups.is_empty() { None } else { self.hears_groups_by() };
        let hears = (wanted & self.can_hear) | by.unwrap_or_default();
        self.frames.say_hearing(hears, groups.iter().map(ethernet_group));
        !hears.is_empty()
    }
}

/// Returns the Ethernet address of a group of hosts (RFC 1112, 6.4).
fn ethernet_group(group: &Ipv4Addr) -> [u8; 6] {
    let [_, b, c, d] = group.octets();
    [0x01, 0x00, 0x5e, b & 0x7f, c, d]
}
