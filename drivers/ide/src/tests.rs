//! Tests of the driver with a model of a disk that, unlike QEMU's, is slow, fails and lies.

use super::registers as reg;
use super::{BLOCK_BYTES, BLOCK_ERROR, BLOCK_OK, Block, BlockDriver, Ide, command, status};
use ringfence_sdk::fake::{Device, Kernel, Register, Requests};
use ringfence_sdk::{Driver, Refusal};
use std::cell::RefCell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

type Disk = BlockDriver<Ide>;

const BLOCKS: usize = 64;

/// A channel with one disk (ATA/ATAPI-6), whose addresses have 28 bits.
struct Channel {
    blocks: Vec<u8>,
    registers: [u8; 8],
    status: u8,
    /// The data that moves through the data register, the command it belongs to, and how much of it
    /// was moved.
    data: Vec<u8>,
    now: u8,
    moved: usize,
    /// The status that a command for data ends with in place of success.
    fails: Option<u8>,
    resets: usize,
}

impl Channel {
    fn new() -> Rc<RefCell<Channel>> {
        let blocks = vec![0; BLOCKS * BLOCK_BYTES];
        let (registers, data) = ([0; 8], Vec::new());
        let disk = Channel { blocks, registers, status: 0x50, data, now: 0, moved: 0, fails: None, resets: 0 };
        Rc::new(RefCell::new(disk))
    }

    /// Returns the disk's description of itself: block numbers (word 49), their count (60), and up
    /// to 16 blocks at once (47).
    fn identity() -> Vec<u8> {
        let mut words = [0u16; BLOCK_BYTES / 2];
        (words[47], words[49], words[60]) = (16, 1 << 9, BLOCKS as u16);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The bytes on the disk that the command is about.
    fn range(&self) -> core::ops::Range<usize> {
        let of = |register: u32| usize::from(self.registers[register as usize]);
        let lba = of(reg::LBA_LOW.offset()) | of(reg::LBA_MID.offset()) << 8;
        lba * BLOCK_BYTES..(lba + of(reg::SECTOR_COUNT.offset())) * BLOCK_BYTES
    }

    fn command(&mut self, number: u8) {
        (self.now, self.moved, self.status) = (number, 0, 0x50);
        match number {
            command::IDENTIFY_DEVICE => self.data = Channel::identity(),
            command::READ_MULTIPLE => self.data = self.blocks[self.range()].to_vec(),
            command::WRITE_MULTIPLE => self.data = vec![0; self.range().len()],
            _ => return,
        }
        match (number, self.fails) {
            (command::READ_MULTIPLE | command::WRITE_MULTIPLE, Some(status)) => self.status = status,
            _ => self.status |= status::DATA_REQUEST,
        }
    }

    /// Moves the next word, through `by`.
    fn word(&mut self, by: impl FnOnce(&mut [u8])) {
        if let Some(word) = self.data.get_mut(self.moved..self.moved + 2) {
            by(word);
        }
        self.moved += 2;
        if self.moved >= self.data.len() {
            self.status &= !status::DATA_REQUEST;
            if self.now == command::WRITE_MULTIPLE {
                let range = self.range();
                self.blocks[range].copy_from_slice(&self.data);
            }
        }
    }
}

const DATA: u32 = reg::DATA.offset();
const STATUS: u32 = reg::STATUS.offset();

impl Device for Channel {
    fn read(&mut self, Register { bar, offset, .. }: Register) -> u64 {
        match (bar, offset as u32) {
            (1, _) | (0, STATUS) => self.status.into(),
            (0, DATA) => {
                let mut read = [0; 2];
                self.word(|word| read.copy_from_slice(word));
                u16::from_le_bytes(read).into()
            }
            // The signature of a packet device is not there.
            (_, register) if self.now == 0 && register != reg::ERROR.offset() => 0,
            (_, register) => self.registers[register as usize].into(),
        }
    }

    fn write(&mut self, Register { bar, offset, .. }: Register, value: u64) {
        match (bar, offset as u32) {
            (1, _) => self.resets += usize::from(value as u8 & super::SOFTWARE_RESET != 0),
            (0, DATA) => self.word(|word| word.copy_from_slice(&(value as u16).to_le_bytes())),
            // The command register is at the status' place.
            (_, STATUS) => self.command(value as u8),
            (_, register) => self.registers[register as usize] = value as u8,
        }
    }

    fn bar(&self, bar: u64) -> (bool, u64) {
        (true, [8, 1].get(bar as usize).copied().unwrap_or(0))
    }
}

fn started(channel: &Rc<RefCell<Channel>>) -> (Kernel, Disk) {
    let mut kernel = Kernel::new(channel.clone());
    let disk = kernel.run(Disk::init).unwrap();
    assert!(kernel.has_interrupts);
    (kernel, disk)
}

fn requests(kernel: &mut Kernel) -> &mut Requests<Block> {
    kernel.block.as_mut().unwrap()
}

/// More blocks than the disk moves at once.
#[test]
fn blocks_are_written_and_read_in_parts() {
    let channel = Channel::new();
    let (mut kernel, mut disk) = started(&channel);
    let written: Vec<u8> = (0..20 * BLOCK_BYTES).map(|byte| (byte / 3) as u8).collect();
    requests(&mut kernel).write(0, 7, &written);
    requests(&mut kernel).flush(1);
    // The disk interrupts for each part, and when it is done.
    (0..4).for_each(|_| kernel.poll(&mut disk));
    assert_eq!(requests(&mut kernel).take_completed(), [(0, BLOCK_OK), (1, BLOCK_OK)]);
    assert_eq!(channel.borrow().blocks[7 * BLOCK_BYTES..][..written.len()], written);
    requests(&mut kernel).read(2, 7, written.len());
    (0..4).for_each(|_| kernel.poll(&mut disk));
    assert_eq!(requests(&mut kernel).take_completed(), [(2, BLOCK_OK)]);
    assert_eq!(requests(&mut kernel).data(2, 0, written.len()), written);
}

/// After an error the disk is reset, and the next request is carried out.
#[test]
fn a_request_that_fails_is_the_only_one() {
    let channel = Channel::new();
    let (mut kernel, mut disk) = started(&channel);
    let resets = channel.borrow().resets;
    channel.borrow_mut().fails = Some(0x50 | status::ERROR);
    requests(&mut kernel).read(0, 0, BLOCK_BYTES);
    kernel.poll(&mut disk);
    kernel.poll(&mut disk);
    assert_eq!(requests(&mut kernel).take_completed(), [(0, BLOCK_ERROR)]);
    assert_eq!(channel.borrow().resets, resets + 1);
    assert!(kernel.log.concat().contains("block 0: status 0x51"), "{:?}", kernel.log);
    channel.borrow_mut().fails = None;
    requests(&mut kernel).read(0, 0, BLOCK_BYTES);
    kernel.poll(&mut disk);
    kernel.poll(&mut disk);
    assert_eq!(requests(&mut kernel).take_completed(), [(0, BLOCK_OK)]);
}

/// The driver waits for the disk no longer than an upcall may take.
#[test]
#[cfg_attr(miri, ignore = "a wait of many thousand steps")]
fn a_disk_that_never_asks_for_data_ends_its_request() {
    let channel = Channel::new();
    let (mut kernel, mut disk) = started(&channel);
    channel.borrow_mut().fails = Some(0x50);
    let start = kernel.time_ns;
    requests(&mut kernel).write(0, 0, &[1; BLOCK_BYTES]);
    kernel.poll(&mut disk);
    assert_eq!(requests(&mut kernel).take_completed(), [(0, BLOCK_ERROR)]);
    assert!(kernel.time_ns - start < 1_000_000_000);
}

/// A block that is not on the disk reaches no register.
#[test]
fn what_is_beyond_the_disk_is_refused() {
    let channel = Channel::new();
    let (mut kernel, mut disk) = started(&channel);
    requests(&mut kernel).read(0, BLOCKS as u64 - 1, 2 * BLOCK_BYTES);
    requests(&mut kernel).read(1, u64::MAX, BLOCK_BYTES);
    channel.borrow_mut().now = 0;
    kernel.poll(&mut disk);
    assert_eq!(requests(&mut kernel).take_completed(), [(0, BLOCK_ERROR), (1, BLOCK_ERROR)]);
    assert_eq!(channel.borrow().now, 0);
}

#[test]
#[cfg_attr(miri, ignore = "a wait of many thousand steps")]
fn where_nothing_answers_there_is_no_disk() {
    for status in [status::NOBODY, status::BUSY] {
        let channel = Channel::new();
        channel.borrow_mut().status = status;
        let mut kernel = Kernel::new(channel);
        assert_eq!(kernel.run(Disk::init).err(), Some(Refusal::NotFound));
    }
}
