//! A network driver that lies to the kernel. Each `tell rogue-nic VERB` writes one false value to
//! its queues, or asks for one thing to which the driver has no right. It claims an e1000, which
//! only a few verbs use.
//!
//! Like `rogue`, this driver has unsafe code of its own.
#![no_std]
#![allow(clippy::undocumented_unsafe_blocks, reason = "the services believe nothing, and the rest is what is tested")]

mod dma;
mod gates;
mod reach;
mod virtio;

use core::arch::asm;
use ringfence_sdk::abi::layout::{DMA, SLOT_SIZE};
use ringfence_sdk::abi::net::{
    EMPTY, Entry, FRAME_BYTES, MAX_QUEUES, NetInfo, RECEIVED, TRANSMIT, TRANSMITTED, TX_ADDRESS, TX_FRAMES,
};
use ringfence_sdk::abi::queue::{ENTRIES, PUT, Place, TAKEN};
use ringfence_sdk::service::raw;
use ringfence_sdk::{Driver, Events, Kind, Manifest, Refusal, Reply, Reset, Result, device, driver};

driver!(
    RogueNic,
    Manifest::new("rogue-nic", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Nic)
        .by_hand()
        .pci(&[(0x8086, 0x100e)])
        .dma_kib(64)
        .upcall_ms(1000)
        .reset(Reset::register(0, 0, 4).zeroes([0x2808, 0x3808]).sets(1 << 26).waits_for(1 << 26, 0).within_us(10_000))
);

struct RogueNic {
    queues: *mut u64,
    /// The state of the random numbers.
    random: u64,
    /// The reply to a poll, and how long a poll takes.
    reply: Reply,
    poll_ms: u64,
    /// How long the driver sleeps in each poll.
    nap_ns: u64,
    /// The number of frames that the driver has claimed to have sent; `None` if it makes no such
    /// claims.
    sent: Option<u64>,
    /// Whether the driver has delivered the frame that `received-backwards` then withdraws.
    backwards: bool,
}

impl RogueNic {
    fn set(&self, place: Place, word: usize, value: u64) {
        // SAFETY: the driver's own queue memory; the kernel must not trust its contents.
        unsafe { self.queues.add(place.base + word).write_volatile(value) };
    }

    /// Puts one entry into a ring that the driver fills.
    fn put(&self, place: Place, value: u64) {
        self.set(place, ENTRIES, value);
        self.set(place, PUT, 1);
    }

    /// Has the device interrupt. From then on, polls reply `reply`.
    fn interrupt(&mut self, reply: Reply) {
        const INTERRUPT_CAUSE_SET: u64 = 0xc8;
        const INTERRUPT_MASK_SET: u64 = 0xd0;
        let registers = unsafe { raw::rf_bar_map(0) } as u64;
        self.reply = reply;
        unsafe {
            raw::rf_irq_enable();
            ((registers + INTERRUPT_MASK_SET) as *mut u32).write_volatile(u32::MAX);
            ((registers + INTERRUPT_CAUSE_SET) as *mut u32).write_volatile(1);
        }
    }

    /// Returns the start of the slot, which follows from any address in the slot.
    fn slot(&self) -> u64 {
        self.queues as u64 & !(SLOT_SIZE - 1)
    }
}

/// The description of the interface.
static INFO: NetInfo = NetInfo::new([0x52, 0x54, 0, 0, 0, 1]);
const INFO_BYTES: u64 = size_of::<NetInfo>() as u64;

/// Offers an interface whose description the kernel is to read at `info`.
fn offer(info: u64, len_bytes: u64) -> i64 {
    // SAFETY: the kernel trusts no argument.
    unsafe { raw::rf_offer(info, len_bytes) }
}

impl Driver for RogueNic {
    fn init() -> Result<RogueNic> {
        let start = offer(&raw const INFO as u64, INFO_BYTES);
        if start < 0 {
            return Err(Refusal::from_result(start).unwrap_or(Refusal::Invalid));
        }
        Ok(RogueNic {
            queues: start as *mut u64,
            random: 0x1997,
            reply: Reply::empty(),
            poll_ms: 0,
            nap_ns: 0,
            sent: None,
            backwards: false,
        })
    }

    fn poll(&mut self, _: Events) -> Reply {
        // An endless loop, without a call of any service.
        if self.poll_ms == u64::MAX {
            loop {
                core::hint::spin_loop();
            }
        }
        if self.nap_ns > 0 {
            unsafe { raw::rf_sleep(self.nap_ns) };
        }
        let now_ns = || unsafe { raw::rf_time_ns() as u64 };
        let end_ns = now_ns() + self.poll_ms * 1_000_000;
        while now_ns() < end_ns {
            // In QEMU, a gate call or PAUSE takes much longer than these steps.
            for step in 0..20_000 {
                core::hint::black_box(step);
            }
        }
        if let Some(mut sent) = self.sent {
            let word = |word: usize| unsafe { self.queues.add(word).read_volatile() };
            while sent != word(TRANSMIT.base + PUT) {
                let place = ENTRIES + sent as usize % TRANSMIT.capacity;
                self.set(TRANSMITTED, place, Entry(word(TRANSMIT.base + place)).frame() as u64);
                sent += 1;
                self.set(TRANSMIT, TAKEN, sent);
                self.set(TRANSMITTED, PUT, sent);
            }
            self.sent = Some(sent);
        }
        self.reply
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        match text.split_once(' ') {
            Some((verb, numbers)) => match numbers.split_once(' ') {
                Some((first, second)) => {
                    self.with_two(verb, ringfence_sdk::number(first)?, ringfence_sdk::number(second)?)
                }
                None => self.with_number(verb, ringfence_sdk::number(numbers)?),
            },
            None => self.alone(text),
        }
    }
}

/// Returns a service's refusal as a number; 0 if it has not refused.
fn refusal(result: i64) -> u64 {
    if result < 0 { -result as u64 } else { 0 }
}

/// The commands. Each kind is a function of its own: one large function would have jumps whose
/// bytes the kernel refuses.
impl RogueNic {
    #[inline(never)]
    fn with_two(&mut self, verb: &str, address: u64, len_bytes: u64) -> Result<u64> {
        Ok(match verb {
            "dma-write" => {
                dma::Card::looped_back(self.queues)?.write(address, len_bytes);
                0
            }
            // With a changed manifest, the device is a virtio device. The numbers are a part of
            // its queue, and that part's address.
            "virtio-queue" => virtio::queue_at(address as usize, len_bytes, self.queues)?,
            "log-at" => refusal(unsafe { raw::rf_log(3, address, len_bytes) }),
            "answer-at" => refusal(unsafe { raw::rf_answer(address, len_bytes) }),
            "command-at" => refusal(unsafe { raw::rf_command(address, len_bytes) }),
            "panic-at" => refusal(unsafe { raw::rf_panic(address, len_bytes) }),
            _ => return Err(Refusal::NotFound),
        })
    }

    #[inline(never)]
    fn with_number(&mut self, verb: &str, number: u64) -> Result<u64> {
        let slot = self.slot();
        Ok(match verb {
            "extremes" => gates::all_extremes(slot, number),
            "random" => gates::at_random(slot, number, &mut self.random),
            "dma-read" => dma::Card::looped_back(self.queues)?.read(number),
            "device-writes" => {
                device_writes(number)?;
                0
            }
            // The device interrupts without end, and each poll takes the given number of
            // milliseconds.
            "hog" => {
                self.poll_ms = number;
                self.interrupt(Reply::ACKNOWLEDGED);
                0
            }
            // The driver sleeps in each poll, and its timer polls it every millisecond.
            "nap" => {
                self.nap_ns = number;
                refusal(unsafe { raw::rf_timer(0, 1_000_000) })
            }
            // `sleep` takes nanoseconds; `doze` sleeps for a millisecond, the given number of
            // times.
            "sleep" => refusal(unsafe { raw::rf_sleep(number) }),
            "doze" => (0..number).map(|_| refusal(unsafe { raw::rf_sleep(1_000_000) })).sum(),
            "map-bar" => refusal(unsafe { raw::rf_bar_map(number) }),
            // Reads a register in BAR 0, which must be a memory BAR.
            "read-register" => {
                let registers = unsafe { raw::rf_bar_map(0) } as u64;
                unsafe { ((registers + number) as *const u32).read_volatile() }.into()
            }
            "register-at" => offer(number, INFO_BYTES) as u64,
            "register-length" => refusal(offer(&raw const INFO as u64, number)),
            _ => return Err(Refusal::NotFound),
        })
    }

    #[inline(never)]
    fn alone(&mut self, text: &str) -> Result<u64> {
        if let Some(answer) = reach::reach(text, self.queues as u64) {
            return Ok(answer);
        }
        Ok(match text {
            // To be used a second before `dma-write` and `dma-read`, because the card receives
            // nothing during that second.
            "loop-back" => {
                dma::Card::looped_back(self.queues)?;
                0
            }
            "dma-write-read-only" => {
                dma::Card::looped_back(self.queues)?.write_what_is_only_read();
                0
            }
            // Only the kernel may free the frames of the queues.
            "free-frames" => refusal(unsafe { raw::rf_dma_free(self.slot() + DMA) }),
            "phys-frames" => refusal(unsafe { raw::rf_dma_address(self.slot() + DMA) }),
            "register-twice" => refusal(offer(&raw const INFO as u64, INFO_BYTES)),
            "register-group" => {
                let info = NetInfo::new([0xff; 6]);
                refusal(offer(&raw const info as u64, INFO_BYTES))
            }
            "register-long" => {
                let info = INFO.longest(FRAME_BYTES + 1);
                refusal(offer(&raw const info as u64, INFO_BYTES))
            }
            "register-queues" => {
                let info = INFO.queues(MAX_QUEUES + 1);
                refusal(offer(&raw const info as u64, INFO_BYTES))
            }
            "register-offload" => {
                let info = NetInfo { offload: 1 << 15, ..INFO };
                refusal(offer(&raw const info as u64, INFO_BYTES))
            }
            // Parts of configuration space that only the kernel may change: BAR 0 and the interrupt
            // line; then invalid offsets and BARs.
            "move-bar" => refusal(unsafe { raw::rf_pci_write(0x10, 4, 0) }),
            "move-line" => refusal(unsafe { raw::rf_pci_write(0x3c, 1, 1) }),
            "beyond-config" => refusal(unsafe { raw::rf_pci_read(256, 4) }),
            "odd-config" => refusal(unsafe { raw::rf_pci_read(1, 4) }),
            "no-such-bar" => refusal(unsafe { raw::rf_bar_map(6) }),
            "huge-bar" => refusal(unsafe { raw::rf_bar_map(u64::MAX) }),
            "dma-forever" => {
                let mut regions = 0;
                while unsafe { raw::rf_dma_alloc(4096) } > 0 {
                    regions += 1;
                }
                regions
            }
            // The driver gives back memory whose address its device may know. The kernel must give
            // this memory only to the same driver again, and cleared.
            "dma-again" | "dma-freed" => {
                const LEN_BYTES: u64 = 8192;
                let allocate = || unsafe {
                    let start = raw::rf_dma_alloc(LEN_BYTES) as u64;
                    (start, raw::rf_dma_address(start))
                };
                let (start, address) = allocate();
                unsafe { (start as *mut u64).write_volatile(1) };
                unsafe { raw::rf_dma_free(start) };
                if text == "dma-freed" {
                    return Ok(unsafe { (start as *const u64).read_volatile() });
                }
                let (again, address_again) = allocate();
                let word = unsafe { (again as *const u64).read_volatile() };
                (address == address_again && word == 0).into()
            }
            "dma-all" => refusal(unsafe { raw::rf_dma_alloc(1 << 40) }),
            // Logs from memory that the driver has given back.
            "log-freed" => unsafe {
                let start = raw::rf_dma_alloc(4096) as u64;
                raw::rf_dma_free(start);
                raw::rf_log(3, start, 16) as u64
            },
            // Logs from registers, which the kernel must not read as memory.
            "log-registers" => {
                let registers = unsafe { raw::rf_bar_map(0) };
                unsafe { raw::rf_log(3, registers as u64, 16) as u64 }
            }
            // Positions that cannot be true.
            "received-ahead" => {
                self.set(RECEIVED, PUT, 1000);
                0
            }
            // The first call delivers a frame. The second call, after the kernel has taken the
            // frame, sets the position back.
            "received-backwards" if self.backwards => {
                self.set(RECEIVED, PUT, 0);
                0
            }
            "received-backwards" => {
                self.backwards = true;
                self.set(EMPTY, TAKEN, 1);
                self.put(RECEIVED, Entry::new(0, 60).0);
                0
            }
            "transmitted-ahead" => {
                self.set(TRANSMITTED, PUT, u64::MAX);
                0
            }
            "empty-ahead" => {
                self.set(EMPTY, TAKEN, u64::MAX);
                self.put(RECEIVED, Entry::new(0, 60).0);
                0
            }
            // Entries that the driver has no right to give.
            "no-such-frame" => {
                self.put(RECEIVED, Entry::new(u16::MAX, 60).0);
                0
            }
            "huge-frame" => {
                self.put(RECEIVED, Entry::new(0, u16::MAX).0);
                0
            }
            // The driver has declared one queue, and no card that checks checksums.
            "no-such-queue" => {
                self.set(EMPTY, TAKEN, 1);
                self.put(RECEIVED, Entry::new(0, 60).in_queue(1).0);
                0
            }
            "not-checked" => {
                self.set(EMPTY, TAKEN, 1);
                self.put(RECEIVED, Entry::new(0, 60).checked(true).0);
                0
            }
            "no-such-frame-sent" => {
                self.put(TRANSMITTED, Entry::new(200, 0).0);
                0
            }
            // The last frame that the kernel would use.
            "frame-not-lent" => {
                self.put(TRANSMITTED, Entry::new(TX_FRAMES as u16 - 1, 0).0);
                0
            }
            // Delivers a valid frame, and ends the driver at once.
            "deliver-last" => {
                self.set(EMPTY, TAKEN, 1);
                self.put(RECEIVED, Entry::new(0, 60).0);
                panic!("with a frame delivered");
            }
            "frame-twice" => {
                self.set(EMPTY, TAKEN, 1);
                self.set(RECEIVED, ENTRIES, Entry::new(0, 60).0);
                self.set(RECEIVED, ENTRIES + 1, Entry::new(0, 60).0);
                self.set(RECEIVED, PUT, 2);
                0
            }
            // The driver has taken frame 0, and gives back frame 1.
            "neighbour-frame" => {
                self.set(EMPTY, TAKEN, 1);
                self.put(RECEIVED, Entry::new(1, 60).0);
                0
            }
            // The device interrupts, and the driver does not clear the cause. With `interrupt`, the
            // driver does not acknowledge the interrupt; with `interrupt-storm`, it does.
            "interrupt" => {
                self.interrupt(Reply::empty());
                0
            }
            // The device interrupts without end. The driver claims to send all frames, and never
            // delivers one.
            "silent" => {
                self.sent = Some(0);
                self.interrupt(Reply::ACKNOWLEDGED);
                0
            }
            "interrupt-storm" => {
                self.interrupt(Reply::ACKNOWLEDGED);
                0
            }
            // With a changed manifest, the device is a virtio device older than 1.0. QEMU's model
            // of such a device turns on bus mastering by itself when the driver announces itself.
            // `-hidden` turns bus mastering off again, to hide that it was on.
            "legacy-bus-master" | "legacy-bus-master-hidden" => {
                const DEVICE_STATUS: u16 = 18;
                const ACKNOWLEDGE: u8 = 1;
                const DRIVER: u8 = 2;
                let first = unsafe { raw::rf_bar_map(0) };
                for status in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
                    unsafe { asm!("out dx, al", in("dx") first as u16 + DEVICE_STATUS, in("al") status) };
                }
                if text.ends_with("-hidden") { refusal(unsafe { raw::rf_pci_write(4, 2, 0) }) } else { 0 }
            }
            // Overwrites the address of the frames for the device, which the kernel never reads
            // back.
            "move-frames" => {
                unsafe { self.queues.add(TX_ADDRESS).write_volatile(0) };
                0
            }
            _ => return Err(Refusal::NotFound),
        })
    }
}

/// Has the e1000 use the memory at the device's address `address` as a ring of transmit
/// descriptors. If all bits of the memory are ones, each descriptor requests a report, so the
/// device writes to it.
fn device_writes(address: u64) -> Result<()> {
    // Transmit control; base, length, head and tail of the transmit ring (e1000 manual, 13.4.33 to
    // 13.4.40).
    const TCTL: u64 = 0x400;
    const ENABLE: u32 = 1 << 1;
    const TDBAL: u64 = 0x3800;
    const TDBAH: u64 = 0x3804;
    const TDLEN: u64 = 0x3808;
    const TDH: u64 = 0x3810;
    const TDT: u64 = 0x3818;
    let ring = [(TDBAL, address as u32), (TDBAH, (address >> 32) as u32), (TDLEN, 128), (TDH, 0)];
    device::enable_dma()?;
    unsafe {
        let registers = raw::rf_bar_map(0) as u64;
        for (offset, value) in ring.into_iter().chain([(TCTL, ENABLE), (TDT, 1)]) {
            ((registers + offset) as *mut u32).write_volatile(value);
        }
    }
    Ok(())
}
