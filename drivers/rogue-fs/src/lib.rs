//! A hostile filesystem. It invents all its files: every path is a directory, but for paths that
//! end with `file`. `tell rogue-fs VERB` selects how it lies from then on; with `write` it writes
//! to its disk, although it says that it cannot, or was told not to. With `pairs` it writes faster
//! than the disk does. With `reach` it has the disk's blocks put where it must not. With `later` it
//! asks for a block that the kernel has, and does not wait; `polled` fails until it was told.
//!
//! Like `rogue`, this driver has unsafe code of its own.
#![no_std]
#![allow(clippy::undocumented_unsafe_blocks, reason = "the services believe nothing, and the rest is what is tested")]

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;
use ringfence_sdk::abi::block::{
    self, BLOCK_FLUSH, BLOCK_MAX_DATA, BLOCK_OK, BLOCK_READ, BLOCK_WRITE, BlockRequest, USED_DATA,
};
use ringfence_sdk::abi::fs::{
    COMPLETE, FS_DIRECTORY, FS_FILE, FS_MAX_DATA, FS_MAX_NAME, FS_READ_ONLY, FS_REQUESTS, FsEntry, FsInfo, FsOutcome,
    FsRequest, Operation, SUBMIT, read_request, write_outcome,
};
use ringfence_sdk::abi::layout::{DMA, SLOT_SIZE, USED};
use ringfence_sdk::abi::queue::{ENTRIES, PUT, TAKEN, Words};
use ringfence_sdk::block::{BufferedDisk, Order};
use ringfence_sdk::fs::field;
use ringfence_sdk::service::raw;
use ringfence_sdk::{Driver, Events, Kind, Manifest, Refusal, Reply, Result, driver, parameters};
use zerocopy::IntoBytes;

driver!(
    RogueFs,
    Manifest::new("rogue-fs", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Fs)
        .uses(Kind::Block)
        .heap_kib(256)
        .stack_kib(64)
        .restart()
);

parameters! {
    DISK: Text("disk", "the disk that it is on", "disk0");
    CLAIMS: Flag("claims", "whether it says that it cannot be written", true);
    READ_ONLY: Flag("ro", "what it does not care about", false);
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

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// It has one file and one directory in each directory.
    None,
    /// More was read, or listed, than there was room for.
    More,
    /// A status that there is not.
    Status,
    /// An entry whose name has no bytes, or more than there are.
    Empty,
    Long,
    /// The same entries for ever, which are left out of a list.
    Dots,
    /// Entries for ever, with names that take as much memory as they can.
    Huge,
    /// Names that no path can have, or that control a terminal.
    Names,
}

struct RogueFs {
    disk: BufferedDisk,
    memory: Memory,
    /// Whether it was polled for its queues since `later`.
    is_polled: bool,
    lie: Lie,
}

fn entry(name: &[u8], name_len: usize, kind: u32) -> Vec<u8> {
    let head = FsEntry { len_bytes: 5, modified: 0, kind, name_len: name_len as u32 };
    let mut bytes = [head.as_bytes(), name].concat();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// How often a large write and a small one follow each other: more than the kernel has room for.
const PAIRS: u64 = 40;

impl RogueFs {
    /// Writes [`PAIRS`] pieces of the disk, and the first block of each again. There may be room
    /// for the second write of a pair while the first one waits.
    fn write_pairs(&mut self) -> Result<u64> {
        let large = vec![1; BLOCK_MAX_DATA];
        let block_bytes = self.disk.info().block_bytes as usize;
        for lba in (0..PAIRS).map(|number| number * (BLOCK_MAX_DATA / block_bytes) as u64) {
            self.disk.write(lba, &large, Order::Kept)?;
            self.disk.write(lba, &vec![2; block_bytes], Order::Kept)?;
        }
        self.disk.settle().map(|()| PAIRS)
    }

    /// Writes to the disk. Returns how many of the writes were carried out.
    fn write_in_each_order(&mut self) -> Result<u64> {
        let mut done = 0;
        for order in [Order::Kept, Order::Late, Order::Last, Order::Early] {
            let written = self.disk.write(0, &[0xff; 4096], order).and_then(|()| self.disk.settle());
            done += u64::from(written.is_ok());
            self.disk.begin_again();
        }
        if done == 0 { Err(Refusal::NoAnswer) } else { Ok(done) }
    }

    /// Reads a page of the disk to addresses that are mostly false, and writes other bytes from
    /// there to pages behind it. Returns a bit for each read that was carried out and has put the
    /// page there, and a bit from 16 on for each write that was carried out.
    fn reach() -> u64 {
        const LEN: usize = 4096;
        let slot = RogueFs::reach as *const () as u64 & !(SLOT_SIZE - 1);
        // The data of its requests: the first memory of this kind that it has.
        let data = slot + DMA;
        let end = data + (FS_REQUESTS * FS_MAX_DATA) as u64;
        let own = slot + USED + USED_DATA as u64;
        let page = LEN as u64;
        let places = [
            data,
            end - page,
            data - page,
            data - 1,
            end - page + 1,
            end,
            u64::MAX - page + 1,
            u64::MAX,
            RogueFs::reach as *const () as u64,
            own,
            0xffff_ffff_8020_0000,
            data + SLOT_SIZE,
        ];
        let bytes = |place: u64| unsafe { core::slice::from_raw_parts_mut(place as *mut u8, LEN) };
        RogueFs::asked(slot, BLOCK_READ, 8, 0, LEN);
        let expected = bytes(own).to_vec();
        let mut carried_out = 0;
        for (bit, place) in places.into_iter().enumerate() {
            bytes(own).fill(0);
            let is_read = RogueFs::asked(slot, BLOCK_READ, 8, place, LEN);
            carried_out |= u64::from(is_read && *bytes(place) == expected) << bit;
            // A refused read has changed nothing that can be seen.
            assert!(bytes(own).iter().all(|byte| *byte == 0));
        }
        for (bit, place) in places.into_iter().enumerate() {
            if bit < 2 {
                bytes(place).fill(0xa0 + bit as u8);
            }
            let lba = 16 + 8 * bit as u64;
            carried_out |= u64::from(RogueFs::asked(slot, BLOCK_WRITE, lba, place, LEN)) << (16 + bit);
            // After a write that was refused, no other is carried out until a flush, which fails.
            let is_refused = carried_out >> (16 + bit) & 1 == 0;
            assert!(!is_refused || !RogueFs::asked(slot, BLOCK_WRITE, lba, data, LEN));
            assert_eq!(RogueFs::asked(slot, BLOCK_FLUSH, 0, 0, 0), !is_refused);
        }
        carried_out
    }

    /// Asks for a block that the kernel has read before, and does not wait for it.
    fn ask_later(&mut self) -> Result<u64> {
        let slot = RogueFs::reach as *const () as u64 & !(SLOT_SIZE - 1);
        if !RogueFs::asked(slot, BLOCK_READ, 8, 0, 4096) {
            return Err(Refusal::NoAnswer);
        }
        self.is_polled = false;
        RogueFs::ask(slot, BLOCK_READ, 8, 0, 4096);
        Ok(0)
    }

    /// Makes a request to the disk, past the SDK, and waits. Returns whether it was carried out.
    fn asked(slot: u64, operation: u32, lba: u64, data: u64, len_bytes: usize) -> bool {
        let used = RogueFs::ask(slot, operation, lba, data, len_bytes);
        let _ = unsafe { raw::rf_wait() };
        block::read_status(&used, 0) == u64::from(BLOCK_OK)
    }

    /// Makes a request to the disk, past the SDK. Returns the memory that is shared for it.
    fn ask(slot: u64, operation: u32, lba: u64, data: u64, len_bytes: usize) -> Memory {
        let used = Memory((slot + USED) as *mut u64);
        let request = BlockRequest { data_address: 0, data, data_len: len_bytes as u32, operation, lba };
        block::write_request(&used, 0, &request);
        let put = used.load(block::SUBMIT.base + PUT);
        used.store(block::SUBMIT.base + ENTRIES + put as usize % block::SUBMIT.capacity, 0);
        used.store(block::SUBMIT.base + PUT, put + 1);
        used
    }

    fn outcome(&self, request: &FsRequest) -> FsOutcome {
        let data = request.data as *mut u8;
        let room = request.data_len as usize;
        let fill = |bytes: &[u8]| {
            let len_bytes = bytes.len().min(room);
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), data, len_bytes) };
            len_bytes as u64
        };
        let done = FsOutcome::default();
        let status = if self.lie == Lie::Status { 99 } else { 0 };
        match Operation::of(request.operation) {
            Some(Operation::Stat | Operation::Open) => {
                let path = unsafe { core::slice::from_raw_parts(data, room) };
                let kind = if path.ends_with(b"file") { FS_FILE } else { FS_DIRECTORY };
                FsOutcome { status, kind, value: 5, next: u64::MAX }
            }
            Some(Operation::Read) if self.lie == Lie::More => FsOutcome { value: room as u64 + 1, ..done },
            Some(Operation::Read) if request.offset > 0 => done,
            Some(Operation::Read) => FsOutcome { value: fill(b"lies\n"), ..done },
            Some(Operation::List) => {
                let (bytes, next) = match self.lie {
                    Lie::Empty => (entry(b"", 0, FS_FILE), 0),
                    Lie::Long => (entry(b"name", 5000, FS_FILE), 0),
                    Lie::Dots => (entry(b".", 1, FS_DIRECTORY), 1),
                    Lie::Huge => {
                        let one = entry(&[0xff; FS_MAX_NAME], FS_MAX_NAME, FS_FILE);
                        (one.repeat(room / one.len()), request.offset + 1)
                    }
                    Lie::Names => {
                        let names: [&[u8]; 4] = [b"../up", b"\x1b[2J", b"..", b"a\nb"];
                        (names.iter().flat_map(|name| entry(name, name.len(), FS_FILE)).collect(), 0)
                    }
                    _ => ([entry(b"file", 4, FS_FILE), entry(b"d", 1, FS_DIRECTORY)].concat(), 0),
                };
                let value = fill(&bytes);
                FsOutcome { value: if self.lie == Lie::More { u64::MAX } else { value }, next, ..done }
            }
            Some(Operation::Space) => FsOutcome { value: 0, next: u64::MAX, ..done },
            _ => done,
        }
    }
}

impl Driver for RogueFs {
    fn init() -> Result<RogueFs> {
        let info = FsInfo {
            format: field("\u{1b}[31mFS"),
            label: [0xff; 32],
            disk: field(&DISK.get()),
            flags: if CLAIMS.get() { FS_READ_ONLY } else { 0 },
            reserved: 0,
        };
        let disk = BufferedDisk::open(&DISK.get())?;
        match unsafe { raw::rf_offer(info.as_bytes().as_ptr() as u64, size_of::<FsInfo>() as u64) } {
            start @ 0.. => Ok(RogueFs { disk, memory: Memory(start as *mut u64), is_polled: false, lie: Lie::None }),
            _ => Err(Refusal::Full),
        }
    }

    fn poll(&mut self, events: Events) -> Reply {
        self.is_polled |= events.contains(Events::QUEUE);
        loop {
            let taken = self.memory.load(SUBMIT.base + TAKEN);
            if taken == self.memory.load(SUBMIT.base + PUT) {
                return Reply::ACKNOWLEDGED;
            }
            let number = self.memory.load(SUBMIT.base + ENTRIES + taken as usize % FS_REQUESTS);
            self.memory.store(SUBMIT.base + TAKEN, taken + 1);
            let Some(request) = read_request(&self.memory, number as usize) else { continue };
            write_outcome(&self.memory, number as usize, &self.outcome(&request));
            let put = self.memory.load(COMPLETE.base + PUT);
            self.memory.store(COMPLETE.base + ENTRIES + put as usize % FS_REQUESTS, number);
            self.memory.store(COMPLETE.base + PUT, put + 1);
        }
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        self.lie = match text {
            "write" => return self.write_in_each_order(),
            "pairs" => return self.write_pairs(),
            "reach" => return Ok(RogueFs::reach()),
            "later" => return self.ask_later(),
            "polled" => return if self.is_polled { Ok(0) } else { Err(Refusal::Busy) },
            "none" => Lie::None,
            "more" => Lie::More,
            "status" => Lie::Status,
            "empty" => Lie::Empty,
            "long" => Lie::Long,
            "dots" => Lie::Dots,
            "huge" => Lie::Huge,
            "names" => Lie::Names,
            _ => return Err(Refusal::NotFound),
        };
        Ok(0)
    }
}
