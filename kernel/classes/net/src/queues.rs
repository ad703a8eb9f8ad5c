//! The kernel's end of a network driver's queues ([`ringfence_abi::net`]).

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use host::domain::Domain;
use host::domain::cause::Cause;
use host::domain::offer::{self, Offer};
use hw::arch::time;
use hw::memory::frames::Lent;
use ringfence_abi::net::{
    EMPTY, FRAME_BYTES, MAX_FRAME, QUEUE_BYTES, RECEIVED, RX_ADDRESS, RX_FRAMES, TRANSMIT, TRANSMITTED, TX_ADDRESS,
    TX_FRAMES, entry, split,
};
use ringfence_abi::queue::{Consumer, Producer, Words};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Reply;
use ringfence_core::limits::TRANSMIT_MS;

/// Shortest frame that is worth looking at: an Ethernet header.
const MIN_FRAME: usize = 14;
/// Shortest and longest time from a poll to the next that looks for frames that were sent, in nanoseconds.
const LOOK_AGAIN_NS: u64 = 20_000_000;
const LOOK_AGAIN_MOST_NS: u64 = 1_000_000_000;

/// The kernel's end of a network driver's queues.
pub struct Queues {
    /// Ethernet address of the interface.
    pub mac: [u8; 6],
    memory: Lent,
    tx: Lent,
    rx: Lent,
    transmit: Producer,
    transmitted: Consumer,
    empty: Producer,
    received: Consumer,
    /// Which frames the driver has: the kernel believes only itself. Of a receive frame, where in the queue of empty ones it is: until
    /// the driver has taken it there, it is not the driver's to give back.
    tx_lent: [bool; TX_FRAMES],
    rx_lent: [Option<u64>; RX_FRAMES],
    /// Receive frames that were handed back since the driver was polled last, and the most that it has had.
    handed_back: usize,
    most_empty: u64,
    /// Frames put into `transmit` since the driver was last polled.
    unsent: usize,
    /// When to poll the driver for frames that it may have sent, in nanoseconds since boot.
    look_again_at: u64,
    /// How long after the next poll that is, in nanoseconds: twice as long each time, while nothing comes back.
    look_again_in: u64,
    /// When the driver last gave a frame back, or got one while it had none, in nanoseconds since boot.
    progress_ns: u64,
    /// The frames it has, in the order in which it got them.
    order: VecDeque<(usize, usize)>,
    /// What another driver, which was ended, had delivered.
    inherited: VecDeque<Vec<u8>>,
    /// Counters for `ip`.
    pub counts: Counts,
    /// Whether there is a link, as far as the driver has said; and whether one came up since that was asked last.
    has_link: bool,
    link_came_up: bool,
}

/// What went through an interface.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Frames handed to the driver.
    pub sent: u64,
    /// Frames that it delivered.
    pub received: u64,
}

impl Offer for Queues {
    fn after_upcall(&mut self) -> Result<(), Cause> {
        super::wake();
        Ok(())
    }

    fn take_news(&mut self, news: Reply) {
        if news.intersects(Reply::LINK_UP | Reply::LINK_DOWN) {
            // One that says both has seen it go and come.
            self.link_is(news.contains(Reply::LINK_UP), news.contains(Reply::LINK_DOWN));
            super::wake();
        }
    }

    fn driver_ended(&mut self) {
        super::wake();
    }

    fn in_hand(&self) -> (usize, &'static str) {
        (self.order.len(), "frames to send")
    }
}

impl Queues {
    /// The driver has seen the link go down, come up, or both.
    fn link_is(&mut self, came_up: bool, went_down: bool) {
        self.link_came_up |= came_up && (went_down || !self.has_link);
        self.has_link = came_up;
        // Nobody is to blame for what could not be sent meanwhile.
        self.progress_ns = time::uptime_ns();
    }

    /// Whether there is a link, as far as is known.
    pub fn has_link(&self) -> bool {
        self.has_link
    }

    /// Whether a link came up since this was asked last.
    pub fn take_link_up(&mut self) -> bool {
        core::mem::take(&mut self.link_came_up)
    }

    /// Takes back what was sent. When the driver is taken for stuck unless it sends another frame, in nanoseconds since
    /// boot; `None` if it has none, or no link to send them to.
    pub fn deadline_ns(&mut self) -> Result<Option<u64>, Cause> {
        self.reclaim()?;
        Ok((self.has_link && !self.order.is_empty()).then(|| self.progress_ns + TRANSMIT_MS.get() * 1_000_000))
    }

    /// Takes over from another driver, which was ended, what it had delivered, and hands over again what it had and did not
    /// send. What it may have sent is sent twice, which networks do as well.
    pub fn take_over(&mut self, other: &mut Queues) {
        let mut frame = [0; FRAME_BYTES];
        // It cannot deliver more than its ring holds any more.
        while let Ok(Some(len_bytes)) = other.receive(&mut frame) {
            let mut kept = Vec::new();
            if let Some(frame) = frame.get(..len_bytes)
                && self.inherited.len() < RX_FRAMES
                && kept.try_reserve_exact(len_bytes).is_ok()
                && self.inherited.try_reserve(1).is_ok()
            {
                kept.extend_from_slice(frame);
                self.inherited.push_back(kept);
            }
        }
        // What it lied about is not taken over.
        let _ = other.reclaim();
        for (number, len_bytes) in core::mem::take(&mut other.order) {
            let Some(frame) = frame.get_mut(..len_bytes) else { continue };
            if other.tx.read(number * FRAME_BYTES, frame) {
                // The new driver's queue is as long and has nothing in it yet.
                let _ = self.send(frame);
            }
        }
        // These will be counted when they are received.
        self.has_link = other.has_link;
        self.counts =
            Counts { received: other.counts.received.saturating_sub(self.inherited.len() as u64), ..other.counts };
    }

    /// Maps queues and frames into `domain`, and lends it all receive frames.
    pub fn new(domain: &mut Domain, mac: [u8; 6]) -> Result<Queues, Refusal> {
        let memory = offer::map_queues(domain, QUEUE_BYTES)?;
        // On an error what is mapped by then goes again.
        // What is sent a device only reads.
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
        let mut queues = Queues {
            mac,
            memory,
            tx: tx.memory,
            rx: rx.memory,
            transmit: Producer::new(TRANSMIT),
            transmitted: Consumer::new(TRANSMITTED),
            empty: Producer::new(EMPTY),
            received: Consumer::new(RECEIVED),
            tx_lent: [false; TX_FRAMES],
            rx_lent: [None; RX_FRAMES],
            handed_back: 0,
            most_empty: 0,
            unsent: 0,
            look_again_at: 0,
            look_again_in: LOOK_AGAIN_NS,
            progress_ns: 0,
            order: VecDeque::with_capacity(TX_FRAMES),
            inherited: VecDeque::new(),
            counts: Counts::default(),
            has_link: true,
            link_came_up: false,
        };
        for frame in 0..RX_FRAMES {
            // The ring is empty and as long as there are frames.
            let _ = queues.lend(frame);
        }
        Ok(queues)
    }

    fn lend(&mut self, frame: usize) -> Result<(), Cause> {
        let position = self.empty.position();
        if self.empty.put(&self.memory, entry(frame as u32, FRAME_BYTES as u32)).map_err(Cause::lie("empty"))? {
            self.rx_lent[frame] = Some(position);
            self.handed_back += 1;
        }
        Ok(())
    }

    /// Whether the driver is to be polled so that it takes the receive frames that were handed back. **A device that has no empty
    /// frame raises no interrupt, and would be deaf for ever**: so the driver is when it has less than a quarter of what it has had
    /// at most.
    pub fn is_starved(&mut self) -> Result<bool, Cause> {
        if self.handed_back == 0 {
            return Ok(false);
        }
        let taken = self.empty.taken(&self.memory).map_err(Cause::lie("empty"))?;
        let filled = self.received.put(&self.memory).map_err(Cause::lie("received"))?;
        let has = taken.saturating_sub(filled);
        self.most_empty = self.most_empty.max(has);
        Ok(has * 4 <= self.most_empty)
    }

    /// The driver is about to be polled, at `now_ns` since boot, and sees all that is there for it.
    pub fn before_poll(&mut self, now_ns: u64) {
        (self.unsent, self.handed_back) = (0, 0);
        self.look_again_at = now_ns.saturating_add(self.look_again_in);
        self.look_again_in = (self.look_again_in * 2).min(LOOK_AGAIN_MOST_NS);
    }

    /// Takes back the frames that were sent.
    fn reclaim(&mut self) -> Result<(), Cause> {
        let mut progress = false;
        while let Some(taken) = self.transmitted.take(&self.memory).map_err(Cause::lie("transmitted"))? {
            let (frame, _) = split(taken);
            match self.tx_lent.get_mut(frame as usize) {
                Some(lent) if *lent => *lent = false,
                _ => return Err(Cause::QueueEntry { queue: "transmitted", entry: taken }),
            }
            // Devices send in order; if this one does not, it is looked for.
            match self.order.front() {
                Some((number, _)) if *number == frame as usize => drop(self.order.pop_front()),
                _ => self.order.retain(|(number, _)| *number != frame as usize),
            }
            progress = true;
        }
        if progress {
            self.progress_ns = time::uptime_ns();
            self.look_again_in = LOOK_AGAIN_NS;
        }
        Ok(())
    }

    /// Whether a frame can be sent.
    pub fn can_send(&mut self) -> Result<bool, Cause> {
        Ok(self.free_frame()?.is_some())
    }

    /// A frame that can be sent.
    #[inline]
    fn free_frame(&mut self) -> Result<Option<usize>, Cause> {
        let is_free = |lent: &bool| !*lent;
        if let Some(number) = self.tx_lent.iter().position(is_free) {
            return Ok(Some(number));
        }
        self.reclaim()?;
        Ok(self.tx_lent.iter().position(is_free))
    }

    /// Puts a frame (at most [`MAX_FRAME`] bytes) into the driver's hands; `false` if there is no room. The driver
    /// looks at it when it is polled.
    pub fn send(&mut self, frame: &[u8]) -> Result<bool, Cause> {
        if frame.len() > MAX_FRAME {
            return Ok(false);
        }
        let Some(number) = self.free_frame()? else { return Ok(false) };
        self.tx.write(number * FRAME_BYTES, frame);
        let put = self
            .transmit
            .put(&self.memory, entry(number as u32, frame.len() as u32))
            .map_err(Cause::lie("transmit"))?;
        if put {
            if self.order.is_empty() {
                self.progress_ns = time::uptime_ns();
            }
            self.tx_lent[number] = true;
            self.order.push_back((number, frame.len()));
            self.unsent += 1;
            self.counts.sent += 1;
        }
        Ok(put)
    }

    /// Frames put in since the driver was polled last: it must be polled for them.
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// When to look whether frames were sent that the driver has not given back, in nanoseconds since boot: its device may raise no
    /// interrupt for that.
    pub fn look_again_ns(&self) -> Option<u64> {
        (!self.order.is_empty()).then_some(self.look_again_at)
    }

    /// Copies the next received frame into `to` and returns its length in bytes.
    pub fn receive(&mut self, to: &mut [u8; FRAME_BYTES]) -> Result<Option<usize>, Cause> {
        if let Some(frame) = self.inherited.pop_front()
            && let Some(room) = to.get_mut(..frame.len())
        {
            room.copy_from_slice(&frame);
            self.counts.received += 1;
            return Ok(Some(frame.len()));
        }
        loop {
            let Some(taken) = self.received.take(&self.memory).map_err(Cause::lie("received"))? else {
                return Ok(None);
            };
            let (frame, len_bytes) = split(taken);
            let (frame, len_bytes) = (frame as usize, len_bytes as usize);
            let bad = Cause::QueueEntry { queue: "received", entry: taken };
            let position = self.rx_lent.get_mut(frame).and_then(Option::take).ok_or(bad)?;
            if position >= self.empty.taken(&self.memory).map_err(Cause::lie("empty"))? {
                return Err(bad);
            }
            let room = to.get_mut(..len_bytes).ok_or(bad)?;
            self.rx.read(frame * FRAME_BYTES, room);
            self.lend(frame)?;
            if len_bytes >= MIN_FRAME {
                self.counts.received += 1;
                return Ok(Some(len_bytes));
            }
        }
    }
}
