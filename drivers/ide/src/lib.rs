//! ATA disk on a channel at fixed ports, by programmed I/O: *AT Attachment with Packet Interface 6*
//! (ATA/ATAPI-6, T13/1410D revision 3b).
//!
//! One command is under way at a time. The device interrupts when it has a part of the data, or
//! wants one, and the driver moves it: the device reaches no memory by itself. A channel has two
//! devices; **the first that is a disk is driven, the other is not**.
#![no_std]
#![forbid(unsafe_code)]

use core::fmt::Arguments;
use core::time::Duration;
use ringfence_sdk::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_OK, BLOCK_READ, BLOCK_UNSUPPORTED, BLOCK_WRITE, Block, BlockDriver, BlockInfo,
    BlockRequest, Queues, Ticket,
};
use ringfence_sdk::class::Device;
use ringfence_sdk::device::{self, Ports, pause};
use ringfence_sdk::{Events, Kind, Manifest, Refusal, Reply, Result, driver, service};

driver!(
    BlockDriver<Ide>,
    Manifest::new("ide", env!("CARGO_PKG_VERSION")).kind(Kind::Block).fixed(&[0x1f0, 0x170]).upcall_ms(1000).restart()
);

/// Registers of the command block (7, table 6), and the one of the control block.
mod register {
    pub const DATA: u16 = 0;
    pub const ERROR: u16 = 1;
    pub const SECTOR_COUNT: u16 = 2;
    pub const LBA_LOW: u16 = 3;
    pub const LBA_MID: u16 = 4;
    pub const LBA_HIGH: u16 = 5;
    pub const DEVICE: u16 = 6;
    /// Reading it lowers the interrupt.
    pub const STATUS: u16 = 7;
    pub const COMMAND: u16 = 7;
}
/// Device control and alternate status, the one port of the second run (7.5, 7.2).
const CONTROL: u16 = 0;
const NO_INTERRUPT: u8 = 1 << 1;
const SOFTWARE_RESET: u8 = 1 << 2;

/// Bits of the status (7.15).
mod status {
    pub const ERROR: u8 = 1 << 0;
    pub const DATA_REQUEST: u8 = 1 << 3;
    pub const DEVICE_FAULT: u8 = 1 << 5;
    pub const BUSY: u8 = 1 << 7;
    /// Nobody drives the lines.
    pub const NOBODY: u8 = 0x7f;
}

/// Commands (8).
mod command {
    pub const READ_MULTIPLE: u8 = 0xc4;
    pub const READ_MULTIPLE_EXT: u8 = 0x29;
    pub const WRITE_MULTIPLE: u8 = 0xc5;
    pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub const SET_MULTIPLE_MODE: u8 = 0xc6;
    pub const FLUSH_CACHE: u8 = 0xe7;
    pub const IDENTIFY_DEVICE: u8 = 0xec;
}

/// Bits of the device register: addresses are block numbers, and which device (7.7).
const LBA: u8 = 1 << 6;
const SECOND: u8 = 1 << 4;

/// Length of a block in bytes. Devices with others are not driven.
const BLOCK_BYTES: usize = 512;
/// Blocks in each part of the data that is asked for by an interrupt, at most.
const MOST_MULTIPLE: u8 = 16;
/// Blocks that 28 bits can count.
const BLOCKS_28: u64 = 1 << 28;
/// How long it may take to take devices into service, both together, in nanoseconds: an upcall is
/// no longer.
const INIT_NS: u64 = 800_000_000;
/// How long a device may take to ask for the first part of what is written to it (one without
/// moving parts asks at once).
const FIRST_NS: u64 = 200_000_000;
/// How long it may take to come back from a reset.
const RESTORE_NS: u64 = 500_000_000;
/// How long reset is held, how long a device has no status after it, and how long until one that
/// was selected has its status right (9.1, 9.2).
const RESET: Duration = Duration::from_micros(5);
const AFTER_RESET: Duration = Duration::from_millis(2);
const SELECT: Duration = Duration::from_nanos(400);

struct Ide {
    channel: Channel,
    info: BlockInfo,
    /// Addresses have 48 bits.
    is_large: bool,
    /// Blocks in a part of the data.
    multiple: usize,
    now: Option<Doing>,
}

/// A request under way.
struct Doing {
    ticket: Ticket,
    request: BlockRequest,
    /// Bytes of its data that were moved.
    moved: usize,
}

/// The registers of a channel, and which of its devices is meant.
struct Channel {
    command: Ports,
    control: Ports,
    device: u8,
}

impl Channel {
    fn write(&self, register: u16, value: u8) {
        self.command.write8(register, value);
    }

    /// The status, which lowers no interrupt.
    fn peek(&self) -> u8 {
        self.control.read8(CONTROL)
    }

    /// Waits until the device is not busy; its status then, or `None` if it is still at `end`.
    fn wait(&self, end: u64) -> Option<u8> {
        self.wait_for(end, |_| true)
    }

    /// Waits until the device is not busy and its status is as `is_wanted` says; the status then,
    /// or `None` if that is not so at `end`.
    fn wait_for(&self, end: u64, is_wanted: impl Fn(u8) -> bool) -> Option<u8> {
        loop {
            let found = self.peek();
            if found & status::BUSY == 0 && is_wanted(found) {
                return Some(found);
            }
            if service::time_ns() >= end {
                return None;
            }
        }
    }

    /// Gives a command. Its status is right when this returns (9).
    fn command(&self, command: u8) {
        self.write(register::COMMAND, command);
        pause(SELECT);
    }

    /// Has the device move so many blocks at once; whether it does (8, SET MULTIPLE MODE).
    fn set_multiple(&self, blocks: usize, end: u64) -> bool {
        let [blocks, ..] = blocks.to_le_bytes();
        self.write(register::SECTOR_COUNT, blocks);
        self.command(command::SET_MULTIPLE_MODE);
        self.wait(end).is_some_and(|found| found & (status::ERROR | status::DEVICE_FAULT) == 0)
    }

    /// Lets the device interrupt from now on. What it has interrupted for until now is over.
    fn allow_interrupts(&self) {
        self.command.read8(register::STATUS);
        self.control.write8(CONTROL, 0);
    }

    /// Means the device whose bit this is, 0 or `SECOND`, from now on.
    fn select(&mut self, device: u8) {
        self.device = device;
        self.write(register::DEVICE, LBA | device);
        pause(SELECT);
    }

    /// Ends whatever the devices do, and what a driver before has begun.
    fn reset(&self) {
        self.control.write8(CONTROL, NO_INTERRUPT | SOFTWARE_RESET);
        pause(RESET);
        self.control.write8(CONTROL, NO_INTERRUPT);
        pause(AFTER_RESET);
    }

    /// What a disk says of itself (8.15.8); `None` if there is no disk.
    fn identify(&self, end: u64) -> Option<[u8; BLOCK_BYTES]> {
        let found = self.wait(end)?;
        // A packet device has its mark there after a reset (9.12).
        let is_disk = (self.command.read8(register::LBA_MID), self.command.read8(register::LBA_HIGH)) == (0, 0);
        if found == 0 || found == status::NOBODY || !is_disk {
            return None;
        }
        self.command(command::IDENTIFY_DEVICE);
        let found = self.wait(end)?;
        if found & (status::ERROR | status::DEVICE_FAULT) != 0 || found & status::DATA_REQUEST == 0 {
            return None;
        }
        let mut words = [0; BLOCK_BYTES];
        self.command.read_words(register::DATA, &mut words);
        Some(words)
    }
}

/// Word `number` of what a disk says of itself.
fn word(words: &[u8; BLOCK_BYTES], number: usize) -> u16 {
    u16::from_le_bytes([words[2 * number], words[2 * number + 1]])
}

impl Device<Block> for Ide {
    fn init() -> Result<Ide> {
        let mut channel = Channel { command: Ports::open(0)?, control: Ports::open(1)?, device: 0 };
        let now = service::time_ns();
        let end = now + INIT_NS;
        channel.reset();
        // The second one is looked for in time, however long the first one is busy.
        let found = [(0, now + INIT_NS / 2), (SECOND, end)].into_iter().find_map(|(device, end)| {
            channel.select(device);
            channel.identify(end)
        });
        let words = found.ok_or(Refusal::NotFound)?;
        let has = |number, bit: u16| word(&words, number) & 1 << bit != 0;
        let count = |numbers: core::ops::Range<usize>| {
            numbers.rev().fold(0, |blocks, number| blocks << 16 | u64::from(word(&words, number)))
        };
        // Valid if bit 14 is set and bit 15 is not; blocks are longer then if bit 12 is set, too.
        let has_long_blocks = word(&words, 106) >> 12 & 0xd == 5;
        if !has(49, 9) || has_long_blocks {
            log::error!("the disk has no block numbers, or blocks that are not of {BLOCK_BYTES} bytes");
            return Err(Refusal::Invalid);
        }
        let is_large = has(83, 10);
        let blocks = if is_large { count(100..104) } else { count(60..62) };
        let mut model = [0; 24];
        // Letters are in pairs, the second one first.
        let letters = words[54..].chunks(2).flat_map(|pair| [pair[1], pair[0]]);
        model.iter_mut().zip(letters).for_each(|(to, letter)| *to = letter);
        let len = model.iter().rposition(|letter| *letter != b' ').map_or(0, |last| last + 1);
        model[len..].fill(0);
        // Word 47: most blocks in a part.
        let multiple = usize::from(words[94].clamp(1, MOST_MULTIPLE));
        if !channel.set_multiple(multiple, end) {
            log::error!("the disk does not move {multiple} blocks at once");
            return Err(Refusal::Invalid);
        }
        channel.allow_interrupts();
        device::enable_interrupts()?;
        log::info!("{blocks} blocks of {BLOCK_BYTES} bytes, {multiple} at once");
        let info = BlockInfo { blocks, block_bytes: BLOCK_BYTES as u32, queue_depth: 1, flags: 0, reserved: 0, model };
        Ok(Ide { channel, info, is_large, multiple, now: None })
    }

    fn info(&self) -> BlockInfo {
        self.info
    }

    fn poll(&mut self, _: Events, queues: &mut Queues) -> Reply {
        self.go_on(queues);
        while self.now.is_none() {
            let Some((ticket, request)) = queues.take() else { break };
            self.start(ticket, request, queues);
        }
        Reply::ACKNOWLEDGED
    }

    fn exit(&mut self) {
        self.channel.reset();
    }
}

impl Ide {
    /// Begins what is asked for.
    fn start(&mut self, ticket: Ticket, request: BlockRequest, queues: &mut Queues) {
        let (lba, count) = (request.lba, request.data_len as usize / BLOCK_BYTES);
        let is_beyond = lba.checked_add(count as u64).is_none_or(|end| end > self.info.blocks);
        let command = match (request.operation, self.is_large) {
            (BLOCK_READ, true) => command::READ_MULTIPLE_EXT,
            (BLOCK_READ, false) => command::READ_MULTIPLE,
            (BLOCK_WRITE, true) => command::WRITE_MULTIPLE_EXT,
            (BLOCK_WRITE, false) => command::WRITE_MULTIPLE,
            (BLOCK_FLUSH, _) => command::FLUSH_CACHE,
            _ => return queues.complete(ticket, &BLOCK_UNSUPPORTED),
        };
        let moves = request.operation != BLOCK_FLUSH;
        if moves && (count == 0 || is_beyond || !self.is_large && lba + count as u64 > BLOCKS_28) {
            return queues.complete(ticket, &BLOCK_ERROR);
        }
        let [low, mid, high, third, fourth, fifth, ..] = lba.to_le_bytes();
        let [count_low, count_high, ..] = count.to_le_bytes();
        let channel = &self.channel;
        let end = service::time_ns() + FIRST_NS;
        if channel.wait_for(end, |found| found & status::DATA_REQUEST == 0).is_none() {
            return self.fail(ticket, &request, queues, format_args!("the disk takes no command"));
        }
        // A device with long addresses takes two bytes in each register, the higher ones first
        // (6.20).
        if self.is_large {
            channel.write(register::SECTOR_COUNT, count_high);
            channel.write(register::LBA_LOW, third);
            channel.write(register::LBA_MID, fourth);
            channel.write(register::LBA_HIGH, fifth);
        }
        channel.write(register::SECTOR_COUNT, count_low);
        channel.write(register::LBA_LOW, low);
        channel.write(register::LBA_MID, mid);
        channel.write(register::LBA_HIGH, high);
        let rest = if self.is_large { 0 } else { third & 0x0f };
        channel.write(register::DEVICE, LBA | channel.device | rest);
        channel.command(command);
        // No interrupt asks for the first part of what is written (9.7).
        let is_asked = |found| found & (status::DATA_REQUEST | status::ERROR | status::DEVICE_FAULT) != 0;
        let is_write = request.operation == BLOCK_WRITE;
        if is_write && channel.wait_for(end, is_asked).is_none() {
            return self.fail(ticket, &request, queues, format_args!("the disk does not ask for data"));
        }
        self.now = Some(Doing { ticket, request, moved: 0 });
        if is_write {
            self.go_on(queues);
        }
    }

    /// Completes a request that failed, and has the device forget it.
    #[cold]
    fn fail(&mut self, ticket: Ticket, request: &BlockRequest, queues: &mut Queues, why: Arguments) {
        log::warn!("block {}: {why}", request.lba);
        queues.complete(ticket, &BLOCK_ERROR);
        let end = service::time_ns() + RESTORE_NS;
        let device = self.channel.device;
        self.channel.reset();
        // A device that is busy does not hear that it is meant.
        let mut is_back = self.channel.wait(end).is_some();
        self.channel.select(device);
        // What was set before a reset may be gone.
        is_back &= self.channel.wait(end).is_some() && self.channel.set_multiple(self.multiple, end);
        if !is_back {
            log::error!("the disk does not come back from a reset");
        }
        self.channel.allow_interrupts();
    }

    /// Moves what the device has or wants, and completes what is done.
    fn go_on(&mut self, queues: &mut Queues) {
        let Some(mut doing) = self.now.take() else {
            // What interrupted is nothing of this driver's.
            self.channel.command.read8(register::STATUS);
            return;
        };
        let found = self.channel.command.read8(register::STATUS);
        if found & status::BUSY != 0 {
            self.now = Some(doing);
            return;
        }
        if found & (status::ERROR | status::DEVICE_FAULT) != 0 {
            let error = self.channel.command.read8(register::ERROR);
            let why = format_args!("status {found:#x}, error {error:#x}");
            return self.fail(doing.ticket, &doing.request, queues, why);
        }
        let left = doing.request.data_len as usize - doing.moved;
        let is_write = doing.request.operation == BLOCK_WRITE;
        if found & status::DATA_REQUEST == 0 {
            match left {
                0 => queues.complete(doing.ticket, &BLOCK_OK),
                _ => self.now = Some(doing),
            }
            return;
        }
        for _ in 0..self.multiple.min(left / BLOCK_BYTES) {
            let mut block = [0; BLOCK_BYTES];
            if is_write {
                queues.read_data(&doing.ticket, doing.moved, &mut block);
                self.channel.command.write_words(register::DATA, &block);
            } else {
                self.channel.command.read_words(register::DATA, &mut block);
                queues.write_data(&doing.ticket, doing.moved, &block);
            }
            doing.moved += BLOCK_BYTES;
        }
        // The last part that is read ends the command; the last part that is written is interrupted
        // for when it is done.
        match doing.moved == doing.request.data_len as usize && !is_write {
            true => queues.complete(doing.ticket, &BLOCK_OK),
            false => self.now = Some(doing),
        }
    }
}
