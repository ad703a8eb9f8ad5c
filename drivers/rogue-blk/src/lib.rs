//! A hostile driver of a channel for ATA disks. It offers an invented disk in place of the real
//! one, and lies to the kernel. `tell rogue-blk VERB` selects the lie in its answer to the next
//! request, or the memory, port or service that it tries to reach.
//!
//! Like `rogue`, this driver has unsafe code of its own.
#![no_std]
#![allow(clippy::undocumented_unsafe_blocks, reason = "the services believe nothing, and the rest is what is tested")]

use ringfence_sdk::abi::block::{
    BLOCK_OK, BLOCK_REQUESTS, BLOCK_UNSUPPORTED, BlockInfo, COMPLETE, SUBMIT, write_status,
};
use ringfence_sdk::abi::queue::{ENTRIES, PUT, Place, TAKEN, Words};
use ringfence_sdk::service::raw;
use ringfence_sdk::{Driver, Events, Kind, Manifest, Refusal, Reply, Result, driver, number};

driver!(
    RogueBlk,
    Manifest::new("rogue-blk", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Block)
        .uses(Kind::Block)
        .fixed(&[0x1f0])
        .dma_kib(64)
        .by_hand()
);

const BLOCKS: u64 = 1024;

struct RogueBlk {
    queues: *mut u64,
    taken: u64,
    put: u64,
    /// The lie in the next answer.
    lie: Option<Lie>,
}

#[derive(Clone, Copy)]
enum Lie {
    /// The request is never answered.
    Lose,
    /// The request is answered twice.
    Twice,
    /// Another request, which is not in flight, is answered.
    Another,
    /// A request with an impossible number is answered.
    Beyond,
    /// The driver announces more answers than the ring holds.
    Ahead,
    /// The queue of answers claims to hold one entry less than before.
    Backwards,
    /// The status is a value that no driver gives.
    Status,
    /// The status says that the device does not support the operation.
    Unsupported,
}

struct Memory(*mut u64);

impl Words for Memory {
    fn load(&self, index: usize) -> u64 {
        unsafe { self.0.add(index).read_volatile() }
    }
    fn store(&self, index: usize, value: u64) {
        unsafe { self.0.add(index).write_volatile(value) }
    }
}

/// Offers the disk to the kernel, after `change` has changed its description. Returns the kernel's
/// result.
fn offer(change: impl FnOnce(&mut BlockInfo)) -> i64 {
    let mut info = BlockInfo {
        blocks: BLOCKS,
        block_bytes: 512,
        queue_depth: BLOCK_REQUESTS as u32,
        flags: 0,
        reserved: 0,
        model: *b"made up\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    };
    change(&mut info);
    unsafe { raw::rf_offer(&raw const info as u64, size_of::<BlockInfo>() as u64) }
}

/// Changes that make the description invalid.
const WRONG: [fn(&mut BlockInfo); 9] = [
    |info| info.block_bytes = 0,
    |info| info.block_bytes = 256,
    |info| info.block_bytes = 513,
    |info| info.block_bytes = 8192,
    |info| info.queue_depth = 0,
    |info| info.queue_depth = BLOCK_REQUESTS as u32 + 1,
    |info| info.flags = 2,
    |info| info.reserved = 1,
    |info| info.blocks = u64::MAX / 512 + 1,
];

impl RogueBlk {
    fn memory(&self) -> Memory {
        Memory(self.queues)
    }

    fn set(&self, place: Place, word: usize, value: u64) {
        self.memory().store(place.base + word, value);
    }

    fn answer(&mut self, number: u64) {
        self.set(COMPLETE, ENTRIES + self.put as usize % BLOCK_REQUESTS, number);
        self.put += 1;
        self.set(COMPLETE, PUT, self.put);
    }

    fn carry_out(&mut self, number: u64) {
        let place = number as usize % BLOCK_REQUESTS;
        write_status(&self.memory(), place, BLOCK_OK);
        match self.lie.take() {
            None => self.answer(number),
            Some(Lie::Lose) => {}
            Some(Lie::Twice) => {
                self.answer(number);
                self.answer(number);
            }
            Some(Lie::Another) => self.answer((number + 7) % BLOCK_REQUESTS as u64),
            Some(Lie::Beyond) => self.answer(u64::MAX),
            Some(Lie::Ahead) => self.set(COMPLETE, PUT, 1000),
            Some(Lie::Backwards) => self.set(COMPLETE, PUT, self.put.wrapping_sub(1)),
            Some(Lie::Status) => {
                write_status(&self.memory(), place, BLOCK_UNSUPPORTED + 1);
                self.answer(number);
            }
            Some(Lie::Unsupported) => {
                write_status(&self.memory(), place, BLOCK_UNSUPPORTED);
                self.answer(number);
            }
        }
    }
}

/// Uses a disk. Returns the memory of its queues, or the number of the refusal.
fn use_disk(name: &str) -> core::result::Result<Memory, u64> {
    match unsafe { raw::rf_use(name.as_ptr() as u64, name.len() as u64) } {
        start @ 0.. => Ok(Memory(start as *mut u64)),
        refused => Err(refusal(refused)),
    }
}

/// Puts entries into a disk's queue of requests, and claims to have put `put` entries in all.
fn ask(entries: &[u64], put: u64) -> Result<u64> {
    let memory = use_disk("disk0").map_err(|_| Refusal::NotFound)?;
    for (index, entry) in entries.iter().enumerate() {
        memory.store(SUBMIT.base + ENTRIES + index, *entry);
    }
    memory.store(SUBMIT.base + PUT, put);
    Ok(0)
}

/// Returns the number of the refusal in a service's result.
fn refusal(result: i64) -> u64 {
    result.unsigned_abs()
}

#[inline(never)]
fn port_in8(port: u16) -> u8 {
    let value;
    unsafe { core::arch::asm!("in al, dx", in("dx") port, out("al") value) };
    value
}

#[inline(never)]
fn port_in16(port: u16) -> u16 {
    let value;
    unsafe { core::arch::asm!("in ax, dx", in("dx") port, out("ax") value) };
    value
}

impl Driver for RogueBlk {
    fn init() -> Result<RogueBlk> {
        if WRONG.iter().any(|change| offer(change) != Refusal::Invalid.to_result()) {
            return Err(Refusal::Denied);
        }
        // Opens the first run of its ports, but not the second.
        let first = unsafe { raw::rf_bar_map(0) };
        if let Some(refusal) = Refusal::from_result(first) {
            return Err(refusal);
        }
        let start = offer(|_| {});
        match Refusal::from_result(start) {
            Some(refusal) => Err(refusal),
            None => Ok(RogueBlk { queues: start as *mut u64, taken: 0, put: 0, lie: None }),
        }
    }

    fn poll(&mut self, _: Events) -> Reply {
        while self.taken != self.memory().load(SUBMIT.base + PUT) {
            let number = self.memory().load(SUBMIT.base + ENTRIES + self.taken as usize % BLOCK_REQUESTS);
            self.taken += 1;
            self.set(SUBMIT, TAKEN, self.taken);
            self.carry_out(number);
        }
        Reply::ACKNOWLEDGED
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        match text.split_once(' ') {
            Some(("port", port)) => return Ok(port_in8(number(port)? as u16).into()),
            Some(("wide-port", port)) => return Ok(port_in16(number(port)? as u16).into()),
            Some(("use", name)) => return Ok(use_disk(name).err().unwrap_or(0)),
            Some(("open", region)) => return Ok(refusal(unsafe { raw::rf_bar_map(number(region)?) })),
            _ => {}
        }
        self.lie = Some(match text {
            "lose" => Lie::Lose,
            "twice" => Lie::Twice,
            "another" => Lie::Another,
            "beyond" => Lie::Beyond,
            "ahead" => Lie::Ahead,
            "backwards" => Lie::Backwards,
            "status" => Lie::Status,
            "unsupported" => Lie::Unsupported,
            // This verb acts at once, not with the next answer.
            "unasked" => {
                self.answer(0);
                return Ok(0);
            }
            "use-twice" => {
                use_disk("disk0").map_err(|_| Refusal::NotFound)?;
                return Ok(use_disk("disk0").err().unwrap_or(0));
            }
            // Requests that no correct user of a disk makes.
            "ask-beyond" => return ask(&[BLOCK_REQUESTS as u64], 1),
            "ask-twice" => return ask(&[3, 3], 2),
            "ask-ahead" => return ask(&[], 1000),
            // Waits without a request, or right after a request with a number that cannot be.
            "wait" => return Ok(refusal(unsafe { raw::rf_wait() })),
            "wait-beyond" => {
                ask(&[u64::MAX], 1)?;
                return Ok(refusal(unsafe { raw::rf_wait() }));
            }
            "offer-twice" => return Ok(refusal(offer(|_| {}))),
            // Services for devices with DMA.
            "be-bus-master" => return Ok(refusal(unsafe { raw::rf_pci_write(4, 2, 4) })),
            "read-config" => return Ok(refusal(unsafe { raw::rf_pci_read(0, 4) })),
            "ask-for-vectors" => return Ok(refusal(unsafe { raw::rf_irq_vectors(1) })),
            "address-for-dma" => {
                let memory = unsafe { raw::rf_dma_alloc(4096) };
                return Ok(refusal(unsafe { raw::rf_dma_address(memory as u64) }));
            }
            _ => return Err(Refusal::NotFound),
        });
        Ok(0)
    }
}
