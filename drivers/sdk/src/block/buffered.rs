//! A disk that a filesystem uses, with buffers.
//!
//! A filesystem's code reads a few blocks and waits for them, again and again, and each wait is a
//! call of the kernel. So a small read fetches the blocks around it as well, and the memory of the
//! [requests](USED_REQUESTS) keeps what was read and written last. Writes are collected, and the
//! kernel is called once for several of them: **it carries them out one by one, in their order**,
//! unless the filesystem says otherwise ([`Order`]).
//!
//! Large pieces that are read into the data of a request, or written out of it, leave the buffers
//! alone: the kernel finds the [lent](Lent) data where it is.

use super::{BLOCK_FLUSH, BLOCK_OK, BLOCK_READ, BlockInfo, Disk, Order, USED_REQUESTS};
use crate::service::safe::rf_wait;
use crate::{Refusal, Result};
use alloc::rc::Rc;
use core::cell::RefCell;
use core::ops::Range;
use ringfence_abi::block::BLOCK_MAX_DATA;

/// What a small read fetches, in bytes: a part of the disk that begins at a multiple of this.
const AROUND_BYTES: usize = 4096;
/// The least piece that goes past the buffers. Two smaller ones may be fetched at once.
const LARGE_BYTES: usize = BLOCK_MAX_DATA / 2 + 1;

/// A disk with buffers. No other driver may write to it meanwhile, as to the disk of a filesystem.
/// Clones are the same disk.
#[derive(Clone)]
pub struct BufferedDisk(Rc<RefCell<Buffers>>);

struct Buffers {
    disk: Disk,
    /// Length of a block in bytes, not 0.
    block_bytes: usize,
    buffers: [Buffer; USED_REQUESTS],
    /// Counts the uses of buffers.
    clock: u64,
    /// Whether a write has failed since the user began, or began again.
    has_failed: bool,
    /// What was lent, and the addresses of the data.
    lent: (Lent, Range<u64>),
    /// The block behind the last read that went past the buffers.
    read_to: Option<u64>,
}

/// What the disk may do with the data of a request to the driver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lent {
    /// Read into it.
    In,
    /// Write out of it: it must stay as it is until [`BufferedDisk::settle`] is called.
    Out,
}

/// The memory of a request, and the last request that had its number.
#[derive(Clone, Copy, Default)]
struct Buffer {
    /// The block that its content begins with, and the length of the content in bytes: 0 if it has
    /// nothing that the disk has.
    lba: u64,
    len_bytes: usize,
    /// Whether its content was read.
    is_read: bool,
    /// When it was used last. The smallest makes room first.
    used: u64,
    /// The last request: whether it writes or flushes, whether it is under way, and whether its
    /// data is the content.
    changes: bool,
    is_under_way: bool,
    has_data: bool,
}

impl Buffer {
    /// Returns the block behind its content.
    fn end(&self, block_bytes: usize) -> u64 {
        self.lba + (self.len_bytes / block_bytes) as u64
    }
}

impl BufferedDisk {
    /// Opens the disk `name`, as [`Disk::open`] does.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn open(name: &str) -> Result<BufferedDisk> {
        let disk = Disk::open(name)?;
        let block_bytes = disk.info().block_bytes as usize;
        if !(1..=BLOCK_MAX_DATA).contains(&block_bytes) {
            return Err(Refusal::Invalid);
        }
        let buffers = [Buffer::default(); USED_REQUESTS];
        let (lent, read_to) = ((Lent::In, 0..0), None);
        let buffers = Buffers { disk, block_bytes, buffers, clock: 0, has_failed: false, lent, read_to };
        Ok(BufferedDisk(Rc::new(RefCell::new(buffers))))
    }

    /// Returns the description of the disk, with the number and the length of its blocks.
    pub fn info(&self) -> BlockInfo {
        self.0.borrow().disk.info()
    }

    /// Reads whole blocks from `lba` on. If the driver must wait for them, the upcall is left
    /// meanwhile, and other drivers run.
    ///
    /// # Errors
    /// [`Refusal::NoAnswer`] if the disk has failed, [`Refusal::Invalid`] if the blocks are not
    /// whole, or not on the disk.
    pub fn read(&self, lba: u64, to: &mut [u8]) -> Result<()> {
        self.0.borrow_mut().read(lba, to)
    }

    /// Writes whole blocks from `lba` on. The kernel has them at the latest when
    /// [`BufferedDisk::settle`] or [`BufferedDisk::flush`] is called, and the disk gets them in
    /// this `order`. What is read afterwards is what was written, in each order.
    ///
    /// # Errors
    /// [`Refusal::NoAnswer`] if it must wait for an earlier write, and the disk is gone;
    /// [`Refusal::Invalid`] as [`BufferedDisk::read`].
    pub fn write(&self, lba: u64, from: &[u8], order: Order) -> Result<()> {
        self.0.borrow_mut().write(lba, from, order)
    }

    /// Waits until the kernel has all writes. They reach the medium in the [`Order`] that was
    /// asked for, as with a disk that has a cache.
    ///
    /// # Errors
    /// [`Refusal::NoAnswer`] if one of the writes so far has failed, or a flush. The kernel takes
    /// no more then, until the user has [begun again](BufferedDisk::begin_again).
    pub fn settle(&self) -> Result<()> {
        self.0.borrow_mut().settle()
    }

    /// Lends the data of a request to the disk, until the next call.
    pub(crate) fn lend(&self, what: Lent, data: &mut [u8]) {
        let start = data.as_mut_ptr().expose_provenance() as u64;
        self.0.borrow_mut().lent = (what, start..start + data.len() as u64);
    }

    /// Waits until everything written has reached the medium.
    ///
    /// # Errors
    /// As [`BufferedDisk::settle`].
    pub fn flush(&self) -> Result<()> {
        let mut disk = self.0.borrow_mut();
        let number = disk.vacant()?;
        disk.ask(number, BLOCK_FLUSH, 0, 0, 0);
        disk.settle()
    }

    /// Forgets a write that has failed, and all content: from now on the disk is as it is, and can
    /// be written. What its user knows of the content may be ahead of that.
    pub fn begin_again(&self) {
        // It tells the kernel that the failure is known.
        let _ = self.flush();
        let mut disk = self.0.borrow_mut();
        (disk.has_failed, disk.read_to) = (false, None);
        disk.buffers.iter_mut().filter(|buffer| !buffer.is_under_way).for_each(|buffer| *buffer = Buffer::default());
    }
}

impl Buffers {
    fn read(&mut self, lba: u64, to: &mut [u8]) -> Result<()> {
        self.check(lba, to.len())?;
        for (piece, lba) in to.chunks_mut(BLOCK_MAX_DATA).zip((lba..).step_by(self.blocks_in(BLOCK_MAX_DATA))) {
            if self.found(lba, piece) {
                continue;
            }
            if let Some(data) = self.lent(Lent::In, piece.as_mut_ptr(), piece.len()) {
                self.fetch(lba, piece.len(), data)?;
                self.read_to = Some(lba + self.blocks_in(piece.len()) as u64);
                continue;
            }
            let (first, len_bytes) = self.around(lba, piece.len());
            let is_all = (first, len_bytes) == (lba, piece.len());
            match self.fetch(first, len_bytes, 0) {
                // A block beside those that are asked for may be bad.
                Err(_) if !is_all => self.fetch(lba, piece.len(), 0)?,
                fetched => fetched?,
            }
            if !self.found(lba, piece) {
                return Err(Refusal::NoAnswer);
            }
        }
        Ok(())
    }

    fn write(&mut self, lba: u64, from: &[u8], order: Order) -> Result<()> {
        self.check(lba, from.len())?;
        let last = lba + self.blocks_in(from.len()) as u64;
        for (piece, lba) in from.chunks(BLOCK_MAX_DATA).zip((lba..).step_by(self.blocks_in(BLOCK_MAX_DATA))) {
            let block_bytes = self.block_bytes;
            let end = lba + (piece.len() / block_bytes) as u64;
            for buffer in &mut self.buffers {
                if buffer.lba < end && lba < buffer.end(block_bytes) {
                    buffer.len_bytes = 0;
                }
            }
            let number = self.vacant()?;
            let data = self.lent(Lent::Out, piece.as_ptr(), piece.len()).unwrap_or(0);
            if data == 0 {
                self.disk.data().write(number * BLOCK_MAX_DATA, piece);
            }
            // Only the last piece ends a group.
            let order = if order == Order::Last && end < last { Order::Late } else { order };
            self.ask(number, order.operation(), lba, piece.len(), data);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        while self.buffers.iter().any(|buffer| buffer.is_under_way) {
            self.wait()?;
        }
        if self.has_failed { Err(Refusal::NoAnswer) } else { Ok(()) }
    }

    fn blocks_in(&self, len_bytes: usize) -> usize {
        len_bytes / self.block_bytes
    }

    /// Checks that `len_bytes` bytes from a block on are whole blocks of the disk.
    fn check(&self, lba: u64, len_bytes: usize) -> Result<()> {
        let is_whole = len_bytes.is_multiple_of(self.block_bytes);
        let end = lba.checked_add(self.blocks_in(len_bytes) as u64);
        if is_whole && end.is_some_and(|end| end <= self.disk.info().blocks) { Ok(()) } else { Err(Refusal::Invalid) }
    }

    /// Copies blocks out of a buffer that has them all. Returns `false` if there is none.
    fn found(&mut self, lba: u64, to: &mut [u8]) -> bool {
        let block_bytes = self.block_bytes;
        let place_in = |buffer: &Buffer| {
            let blocks = usize::try_from(lba.checked_sub(buffer.lba)?).ok()?;
            let place = blocks.checked_mul(block_bytes)?;
            (place <= buffer.len_bytes.checked_sub(to.len())?).then_some(place)
        };
        let found = self.buffers.iter().enumerate().find_map(|(number, buffer)| Some((number, place_in(buffer)?)));
        let Some((number, place)) = found else { return false };
        self.disk.data().read(number * BLOCK_MAX_DATA + place, to);
        self.clock += 1;
        // As much as a request can move is not asked for again.
        self.buffers[number].used = if to.len() < BLOCK_MAX_DATA { self.clock } else { 0 };
        true
    }

    /// Returns what is fetched for a read: the first block and the length in bytes. A read that
    /// goes on where a buffer ends is probably one of many.
    fn around(&self, lba: u64, len_bytes: usize) -> (u64, usize) {
        let goes_on = |buffer: &Buffer| buffer.len_bytes > 0 && buffer.is_read && buffer.end(self.block_bytes) == lba;
        let step = self.blocks_in(AROUND_BYTES).max(1) as u64;
        let (first, most) = match self.read_to == Some(lba) || self.buffers.iter().any(goes_on) {
            true => (lba, BLOCK_MAX_DATA),
            false => (lba - lba % step, AROUND_BYTES),
        };
        let blocks = (self.disk.info().blocks - first).min(self.blocks_in(most) as u64) as usize;
        let is_within = (lba - first) as usize * self.block_bytes + len_bytes <= blocks * self.block_bytes;
        if is_within { (first, blocks * self.block_bytes) } else { (lba, len_bytes) }
    }

    /// Returns the address of a large piece, if it is in data that was lent for this.
    fn lent(&self, what: Lent, piece: *const u8, len_bytes: usize) -> Option<u64> {
        let (lent, place) = &self.lent;
        let start = piece.expose_provenance() as u64;
        let is_within = place.start <= start && start + len_bytes as u64 <= place.end;
        (*lent == what && len_bytes >= LARGE_BYTES && is_within).then_some(start)
    }

    /// Reads to `data`, an address that was lent, or into a buffer if that is 0, and waits for it.
    fn fetch(&mut self, lba: u64, len_bytes: usize, data: u64) -> Result<()> {
        let number = self.vacant()?;
        self.ask(number, BLOCK_READ, lba, len_bytes, data);
        while self.buffers[number].is_under_way {
            self.wait()?;
        }
        let is_read = self.disk.status(number) == BLOCK_OK;
        if is_read { Ok(()) } else { Err(Refusal::NoAnswer) }
    }

    /// Returns the number of a request that is not under way, and waits for one if need be.
    fn vacant(&mut self) -> Result<usize> {
        loop {
            let vacant = self.buffers.iter().enumerate().filter(|(_, buffer)| !buffer.is_under_way);
            if let Some((number, _)) = vacant.min_by_key(|(_, buffer)| (buffer.len_bytes > 0, buffer.used)) {
                return Ok(number);
            }
            self.wait()?;
        }
    }

    fn ask(&mut self, number: usize, operation: u32, lba: u64, len_bytes: usize, data: u64) {
        self.clock += 1;
        let (changes, is_under_way) = (operation != BLOCK_READ, true);
        let has_data = data == 0 && len_bytes > 0;
        let before = self.buffers[number];
        self.buffers[number] = if has_data {
            let used = if len_bytes < BLOCK_MAX_DATA { self.clock } else { 0 };
            Buffer { lba, len_bytes, is_read: !changes, used, changes, is_under_way, has_data }
        } else {
            Buffer { changes, is_under_way, has_data, ..before }
        };
        self.disk.submit(number, operation, lba, len_bytes, data);
    }

    /// Waits until a request is done.
    fn wait(&mut self) -> Result<()> {
        let refused = rf_wait().err();
        let mut is_any_done = false;
        while let Some(number) = self.disk.next_done() {
            self.is_done(number);
            is_any_done = true;
        }
        match refused {
            // The kernel had answered already, while a debugger had the driver perhaps.
            Some(refusal) if !is_any_done => {
                // It never will.
                self.has_failed |= self.buffers.iter().any(|buffer| buffer.is_under_way && buffer.changes);
                self.buffers = [Buffer::default(); USED_REQUESTS];
                Err(refusal)
            }
            _ => Ok(()),
        }
    }

    fn is_done(&mut self, number: usize) {
        let Some(buffer) = self.buffers.get_mut(number) else { return };
        buffer.is_under_way = false;
        if self.disk.status(number) != BLOCK_OK {
            self.has_failed |= buffer.changes;
            buffer.len_bytes = if buffer.has_data { 0 } else { buffer.len_bytes };
        }
    }
}

#[cfg(all(test, feature = "fake"))]
mod tests {
    use super::*;
    use crate::fake::{self, Kernel};
    use ringfence_abi::block::{BLOCK_WRITE, BLOCK_WRITE_EARLY, BLOCK_WRITE_LAST, BLOCK_WRITE_LATE};
    use std::vec;
    use std::vec::Vec;

    /// Block `n` of the disk has the bytes `n`.
    const BLOCK: usize = 512;
    const BLOCKS: usize = 1001;

    struct Tested {
        kernel: Kernel,
        disk: BufferedDisk,
    }

    impl Tested {
        fn new() -> Tested {
            let bytes = (0..BLOCKS).flat_map(|block| [block as u8; BLOCK]).collect();
            let mut kernel = Kernel::new(());
            kernel.disk = Some(fake::Disk::new(bytes, BLOCK));
            let disk = kernel.run(|| BufferedDisk::open("disk0").unwrap());
            Tested { kernel, disk }
        }

        fn below(&mut self) -> &mut fake::Disk {
            self.kernel.disk.as_mut().unwrap()
        }

        fn read(&mut self, lba: u64, blocks: usize) -> Result<Vec<u8>> {
            let mut bytes = vec![0; blocks * BLOCK];
            self.kernel
                .run(|| self.disk.read(lba, &mut bytes))
                .map(|()| bytes.chunks(BLOCK).map(|block| block[0]).collect())
        }

        fn write(&mut self, lba: u64, blocks: usize, byte: u8) -> Result<()> {
            self.kernel.run(|| self.disk.write(lba, &vec![byte; blocks * BLOCK], Order::Kept))
        }

        fn settle(&mut self) -> Result<()> {
            self.kernel.run(|| self.disk.settle())
        }

        /// Takes the requests that were carried out since the last call.
        fn requests(&mut self) -> Vec<(u32, u64, usize)> {
            core::mem::take(&mut self.below().requests)
        }
    }

    #[test]
    fn a_small_read_fetches_what_is_around_it() {
        let mut tested = Tested::new();
        assert_eq!(tested.read(11, 1), Ok(vec![11]));
        assert_eq!(tested.read(8, 8), Ok((8..16).collect()));
        assert_eq!(tested.requests(), [(BLOCK_READ, 8, 4096)]);
        // Across the end of what is around it, and at the end of the disk.
        assert_eq!(tested.read(31, 2), Ok(vec![31, 32]));
        assert_eq!(tested.read(1000, 1), Ok(vec![1000_u64 as u8]));
        assert_eq!(tested.requests(), [(BLOCK_READ, 31, 1024), (BLOCK_READ, 1000, 512)]);
        for (lba, blocks) in [(1001, 1), (1000, 2), (u64::MAX, 1), (u64::MAX / BLOCK as u64, 1)] {
            assert_eq!(tested.read(lba, blocks), Err(Refusal::Invalid));
            assert_eq!(tested.write(lba, blocks, 0), Err(Refusal::Invalid));
        }
        let mut half = [0; BLOCK / 2];
        assert_eq!(tested.kernel.run(|| tested.disk.read(0, &mut half)), Err(Refusal::Invalid));
    }

    #[test]
    fn reads_that_follow_one_another_fetch_more() {
        let mut tested = Tested::new();
        for lba in 0..200 {
            assert_eq!(tested.read(lba, 1), Ok(vec![lba as u8]));
        }
        assert_eq!(tested.requests(), [(BLOCK_READ, 0, 4096), (BLOCK_READ, 8, 65536), (BLOCK_READ, 136, 65536)]);
    }

    /// What is read in large pieces takes one buffer, and leaves the others to what is read again.
    #[test]
    fn large_reads_leave_the_small_ones_in_their_buffers() {
        let mut tested = Tested::new();
        assert_eq!(tested.read(3, 1), Ok(vec![3]));
        for lba in (0..7).map(|step| 100 + 128 * step) {
            assert_eq!(tested.read(lba, 128), Ok((lba..lba + 128).map(|block| block as u8).collect()));
        }
        tested.requests();
        assert_eq!(tested.read(5, 1), Ok(vec![5]));
        assert_eq!(tested.requests(), []);
    }

    #[test]
    fn the_kernel_is_told_which_writes_may_be_late() {
        let mut tested = Tested::new();
        let bytes = vec![7; BLOCK_MAX_DATA + BLOCK];
        let mut written = |lba, blocks: usize, order| {
            let written = tested.kernel.run(|| tested.disk.write(lba, &bytes[..blocks * BLOCK], order));
            assert_eq!((written, tested.settle()), (Ok(()), Ok(())));
            tested.requests()
        };
        assert_eq!(written(3, 1, Order::Late), [(BLOCK_WRITE_LATE, 3, 512)]);
        assert_eq!(written(4, 2, Order::Early), [(BLOCK_WRITE_EARLY, 4, 1024)]);
        // A group ends with the last piece of its last write.
        assert_eq!(written(8, 129, Order::Last), [(BLOCK_WRITE_LATE, 8, 65536), (BLOCK_WRITE_LAST, 136, 512)]);
        assert_eq!(tested.read(136, 1), Ok(vec![7]));
    }

    #[test]
    fn writes_are_carried_out_in_their_order_when_the_driver_settles() {
        let mut tested = Tested::new();
        assert_eq!(
            (tested.write(9, 1, 0xa1), tested.write(20, 2, 0xa2), tested.write(9, 1, 0xa3)),
            (Ok(()), Ok(()), Ok(()))
        );
        assert_eq!((tested.requests(), tested.below().waits), (vec![], 0));
        assert_eq!(tested.settle(), Ok(()));
        let all = [(BLOCK_WRITE, 9, 512), (BLOCK_WRITE, 20, 1024), (BLOCK_WRITE, 9, 512)];
        assert_eq!((tested.requests(), tested.below().waits), (all.to_vec(), 1));
        assert_eq!(tested.below().bytes[9 * BLOCK], 0xa3);
        assert_eq!((tested.settle(), tested.below().waits), (Ok(()), 1));
        // A flush comes behind the writes.
        assert_eq!(tested.write(5, 1, 1), Ok(()));
        assert_eq!(tested.kernel.run(|| tested.disk.flush()), Ok(()));
        assert_eq!(tested.requests(), [(BLOCK_WRITE, 5, 512), (BLOCK_FLUSH, 0, 0)]);
    }

    #[test]
    fn a_read_finds_what_was_written() {
        let mut tested = Tested::new();
        assert_eq!(tested.read(8, 8), Ok((8..16).collect()));
        assert_eq!(
            (tested.write(10, 1, 0xb1), tested.write(10, 1, 0xb2), tested.write(40, 3, 0xb3)),
            (Ok(()), Ok(()), Ok(()))
        );
        tested.requests();
        // From the memory of the write, before the kernel has it.
        assert_eq!((tested.read(10, 1), tested.read(41, 2)), (Ok(vec![0xb2]), Ok(vec![0xb3; 2])));
        assert_eq!(tested.requests(), []);
        // With what is around it, behind the write.
        assert_eq!(tested.read(8, 4), Ok(vec![8, 9, 0xb2, 11]));
        let writes = [(BLOCK_WRITE, 10, 512), (BLOCK_WRITE, 10, 512), (BLOCK_WRITE, 40, 1536)];
        assert_eq!(tested.requests(), [&writes[..], &[(BLOCK_READ, 8, 4096)]].concat());
        assert_eq!(tested.read(39, 3), Ok(vec![39, 0xb3, 0xb3]));
    }

    /// What is read and written is the same as with buffers.
    #[test]
    fn large_pieces_of_lent_data_leave_the_buffers_alone() {
        let mut tested = Tested::new();
        let mut data = vec![0; BLOCK_MAX_DATA];
        tested.disk.lend(Lent::In, &mut data);
        assert_eq!(tested.read(5, 1), Ok(vec![5]));
        assert_eq!(tested.kernel.run(|| tested.disk.read(3, &mut data)), Ok(()));
        assert!(data.chunks(BLOCK).zip(3_u64..).all(|(block, lba)| block == [lba as u8; BLOCK]));
        assert_eq!(
            (tested.requests(), tested.below().in_place),
            (vec![(BLOCK_READ, 0, 4096), (BLOCK_READ, 3, 65536)], 1)
        );
        // Half of what a request can move, memory beside the data, and data that a buffer has.
        assert_eq!(tested.kernel.run(|| tested.disk.read(200, &mut data[BLOCK_MAX_DATA / 2..])), Ok(()));
        assert_eq!(tested.read(300, 128), Ok((300..428).map(|block| block as u8).collect()));
        assert_eq!(tested.kernel.run(|| tested.disk.read(300, &mut data)), Ok(()));
        assert_eq!((data[0], tested.requests().len(), tested.below().in_place), (44, 2, 1));
        // A buffer with blocks that are written in place has them no more.
        data.fill(0xd1);
        tested.disk.lend(Lent::Out, &mut data);
        assert_eq!(tested.kernel.run(|| tested.disk.write(290, &data, Order::Early)), Ok(()));
        assert_eq!((tested.read(300, 1), tested.below().in_place), (Ok(vec![0xd1]), 2));
        assert_eq!(tested.requests(), [(BLOCK_WRITE_EARLY, 290, 65536), (BLOCK_READ, 296, 4096)]);
        // What fails is told, whatever a buffer had.
        tested.below().bad = vec![600];
        assert_eq!(tested.kernel.run(|| tested.disk.write(550, &data, Order::Kept)), Ok(()));
        assert_eq!((tested.settle(), tested.below().in_place), (Err(Refusal::NoAnswer), 3));
        tested.disk.lend(Lent::In, &mut data);
        assert_eq!(tested.kernel.run(|| tested.disk.read(550, &mut data)), Err(Refusal::NoAnswer));
        assert_eq!(tested.below().in_place, 4);
        // Data that was lent to be read into may change: it is written out of a buffer.
        tested.below().bad = vec![];
        tested.kernel.run(|| tested.disk.begin_again());
        assert_eq!(tested.kernel.run(|| tested.disk.write(550, &data, Order::Kept)), Ok(()));
        assert_eq!((tested.settle(), tested.below().in_place), (Ok(()), 4));
        // Data is lent until other data is.
        tested.disk.lend(Lent::In, &mut []);
        assert_eq!(tested.kernel.run(|| tested.disk.read(700, &mut data)), Ok(()));
        assert_eq!((data[0], tested.below().in_place), (188, 4));
    }

    #[test]
    fn seven_buffers_keep_their_content_beside_a_large_piece() {
        let mut tested = Tested::new();
        let mut data = vec![0; BLOCK_MAX_DATA];
        tested.disk.lend(Lent::In, &mut data);
        for lba in (0..7).map(|number| number * 20) {
            assert_eq!(tested.read(lba, 1), Ok(vec![lba as u8]));
        }
        tested.requests();
        assert_eq!(tested.kernel.run(|| tested.disk.read(300, &mut data)), Ok(()));
        for lba in (0..7).map(|number| number * 20) {
            assert_eq!(tested.read(lba, 1), Ok(vec![lba as u8]));
        }
        assert_eq!(tested.requests(), [(BLOCK_READ, 300, 65536)]);
        // A read that goes on behind it is one of many.
        assert_eq!((tested.read(428, 1), tested.requests()), (Ok(vec![172]), vec![(BLOCK_READ, 428, 65536)]));
        // One that fails leaves the others where they are.
        tested.below().bad = vec![700];
        assert_eq!(tested.kernel.run(|| tested.disk.read(650, &mut data)), Err(Refusal::NoAnswer));
        tested.requests();
        let found = (1..7).map(|number| number * 20).all(|lba| tested.read(lba, 1) == Ok(vec![lba as u8]));
        assert_eq!((found, tested.requests()), (true, vec![]));
    }

    /// There is memory for seven requests: the driver waits when all of them are under way.
    #[test]
    fn more_writes_than_there_is_memory_for_wait() {
        let mut tested = Tested::new();
        for lba in 0..20 {
            assert_eq!(tested.write(lba * 2, 1, lba as u8), Ok(()));
        }
        assert_eq!((tested.requests().len(), tested.below().waits), (14, 2));
        assert_eq!(tested.write(100, 300, 0xcc), Ok(()));
        assert_eq!(tested.settle(), Ok(()));
        let large = [(BLOCK_WRITE, 100, 65536), (BLOCK_WRITE, 228, 65536), (BLOCK_WRITE, 356, 22528)];
        assert_eq!(tested.requests()[6..], large);
        assert_eq!(tested.below().bytes[399 * BLOCK..][..2 * BLOCK], [[0xcc; BLOCK], [144; BLOCK]].concat());
    }

    /// After a write that fails, nothing is written until the user knows of it.
    #[test]
    fn a_write_that_fails_is_told_until_the_user_begins_again() {
        let mut tested = Tested::new();
        tested.below().bad = vec![7];
        assert_eq!((tested.write(7, 1, 1), tested.write(30, 1, 2)), (Ok(()), Ok(())));
        assert_eq!((tested.settle(), tested.settle()), (Err(Refusal::NoAnswer), Err(Refusal::NoAnswer)));
        assert_eq!((tested.write(7, 1, 1), tested.settle()), (Ok(()), Err(Refusal::NoAnswer)));
        assert_eq!(tested.below().bytes[30 * BLOCK], 30);
        tested.below().bad = vec![];
        tested.kernel.run(|| tested.disk.begin_again());
        assert_eq!((tested.read(7, 1), tested.read(30, 1)), (Ok(vec![7]), Ok(vec![30])));
        assert_eq!((tested.write(7, 1, 1), tested.settle()), (Ok(()), Ok(())));
        assert_eq!(tested.below().bytes[7 * BLOCK], 1);
    }

    /// Writes that the kernel has taken may be lost as well: the next flush tells.
    #[test]
    fn what_was_written_is_forgotten_when_the_user_begins_again() {
        let mut tested = Tested::new();
        assert_eq!((tested.write(7, 1, 1), tested.settle()), (Ok(()), Ok(())));
        tested.below().bytes[7 * BLOCK] = 7;
        tested.below().has_failed = true;
        assert_eq!(tested.kernel.run(|| tested.disk.flush()), Err(Refusal::NoAnswer));
        tested.kernel.run(|| tested.disk.begin_again());
        assert_eq!((tested.read(7, 1), tested.settle()), (Ok(vec![7]), Ok(())));
    }

    #[test]
    fn a_bad_block_does_not_hide_those_around_it() {
        let mut tested = Tested::new();
        tested.below().bad = vec![7];
        assert_eq!(tested.read(6, 1), Ok(vec![6]));
        assert_eq!(tested.requests(), [(BLOCK_READ, 0, 4096), (BLOCK_READ, 6, 512)]);
        assert_eq!(tested.read(7, 1), Err(Refusal::NoAnswer));
        tested.below().bad = vec![];
        assert_eq!(tested.read(7, 1), Ok(vec![7]));
    }

    #[test]
    fn a_disk_that_is_gone_ends_each_wait() {
        let mut tested = Tested::new();
        tested.below().is_gone = true;
        assert_eq!(tested.write(7, 1, 1), Ok(()));
        assert_eq!((tested.read(20, 1), tested.settle()), (Err(Refusal::Invalid), Err(Refusal::NoAnswer)));
        tested.kernel.run(|| tested.disk.begin_again());
        assert_eq!((tested.write(7, 1, 1), tested.settle()), (Ok(()), Err(Refusal::Invalid)));
        // The driver may ask again.
        tested.below().is_gone = false;
        tested.kernel.run(|| tested.disk.begin_again());
        assert_eq!((tested.read(20, 1), tested.settle()), (Ok(vec![20]), Ok(())));
    }
}
