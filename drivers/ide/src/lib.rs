//! ATA disk on a channel at fixed ports, by programmed I/O: *AT Attachment with Packet Interface 6*
//! (ATA/ATAPI-6, T13/1410D revision 3b).
//!
//! One command is in progress at a time. The device interrupts when it has a part of the data, or
//! wants one. The driver then moves the data itself, so the device never accesses memory. A channel
//! has two devices: **the first device that is a disk is driven, the other one is not**.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use core::fmt::Arguments;
use core::time::Duration;
use registers::{self as reg, CONTROL, CommandBlock, ControlBlock};
use ringfence_sdk::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_OK, BLOCK_READ, BLOCK_UNSUPPORTED, BLOCK_WRITE, Block, BlockDriver, BlockInfo,
    BlockRequest, Queues, Ticket,
};
use ringfence_sdk::class::Device;
use ringfence_sdk::device::{self, pause};
use ringfence_sdk::register::{Register, Registers};
use ringfence_sdk::{Events, Kind, Manifest, Refusal, Reply, Result, driver, service};

driver!(
    BlockDriver<Ide>,
    Manifest::new("ide", env!("CARGO_PKG_VERSION")).kind(Kind::Block).fixed(&[0x1f0, 0x170]).upcall_ms(1000).restart()
);

mod registers {
    ringfence_sdk::registers! {
        /// The command block (7, table 6), the first run of ports.
        pub CommandBlock: ports 0, 8 bytes;
        DATA: u16 = 0;
        ERROR: u8 = 1;
        SECTOR_COUNT: u8 = 2;
        LBA_LOW: u8 = 3;
        LBA_MID: u8 = 4;
        LBA_HIGH: u8 = 5;
        DEVICE: u8 = 6;
        /// Reading this register lowers the interrupt.
        STATUS: u8 = 7;
        COMMAND: u8 = 7;
    }

    ringfence_sdk::registers! {
        /// The control block, the second run of ports.
        pub ControlBlock: ports 1, 1 bytes;
        /// Device control (7.5) when written, alternate status (7.2) when read.
        CONTROL: u8 = 0;
    }
}
const NO_INTERRUPT: u8 = 1 << 1;
const SOFTWARE_RESET: u8 = 1 << 2;

/// Bits of the status (7.15).
mod status {
    pub const ERROR: u8 = 1 << 0;
    pub const DATA_REQUEST: u8 = 1 << 3;
    pub const DEVICE_FAULT: u8 = 1 << 5;
    pub const BUSY: u8 = 1 << 7;
    /// No device drives the lines.
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

/// Bits of the device register (7.7): addresses are block numbers; the second device is selected.
const LBA: u8 = 1 << 6;
const SECOND: u8 = 1 << 4;

/// Length of a block in bytes. Devices with blocks of another length are not driven.
const BLOCK_BYTES: usize = 512;
/// The largest number of blocks in each part of the data.
const MOST_MULTIPLE: u8 = 16;
/// The number of blocks that an address of 28 bits can reach.
const BLOCKS_28: u64 = 1 << 28;
/// The longest time for taking the devices into service, both together, in nanoseconds. It must be
/// shorter than the limit of an upcall.
const INIT_NS: u64 = 800_000_000;
/// The longest time until a device accepts a command and, for a write, asks for the first part of
/// the data. A device without moving parts asks at once.
const FIRST_NS: u64 = 200_000_000;
/// The longest time until a device works again after a reset.
const RESTORE_NS: u64 = 500_000_000;
/// How long the reset is held, how long a device has no valid status after a reset, and how long it
/// has none after it was selected (9.1, 9.2).
const RESET: Duration = Duration::from_micros(5);
const AFTER_RESET: Duration = Duration::from_millis(2);
const SELECT: Duration = Duration::from_nanos(400);

struct Ide {
    channel: Channel,
    info: BlockInfo,
    /// Whether addresses have 48 bits.
    is_large: bool,
    /// The number of blocks in a part of the data.
    multiple: usize,
    now: Option<Doing>,
}

/// The request in progress.
struct Doing {
    ticket: Ticket,
    request: BlockRequest,
    /// The number of bytes of its data that were moved.
    moved: usize,
}

/// The registers of a channel, and the device that is selected.
struct Channel {
    command: Registers<CommandBlock>,
    control: Registers<ControlBlock>,
    device: u8,
}

impl Channel {
    fn write(&self, register: Register<CommandBlock, u8>, value: u8) {
        self.command.write(register, value);
    }

    /// Reads the alternate status, which does not lower the interrupt.
    fn peek(&self) -> u8 {
        self.control.read(CONTROL)
    }

    /// Waits until the device is not busy. Returns its status, or `None` if it is still busy at
    /// `end`.
    fn wait(&self, end: u64) -> Option<u8> {
        self.wait_for(end, |_| true)
    }

    /// Waits until the device is not busy and `is_wanted` accepts its status. Returns the status,
    /// or `None` if that has not happened by `end`.
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

    /// Gives the device a command, and waits until the status is valid (9).
    fn command(&self, command: u8) {
        self.write(reg::COMMAND, command);
        pause(SELECT);
    }

    /// Has the device move `blocks` blocks in each part of the data. Returns whether the device
    /// accepts that (8, SET MULTIPLE MODE).
    fn set_multiple(&self, blocks: usize, end: u64) -> bool {
        let [blocks, ..] = blocks.to_le_bytes();
        self.write(reg::SECTOR_COUNT, blocks);
        self.command(command::SET_MULTIPLE_MODE);
        self.wait(end).is_some_and(|found| found & (status::ERROR | status::DEVICE_FAULT) == 0)
    }

    /// Lets the device interrupt from now on. Clears an interrupt that is pending.
    fn allow_interrupts(&self) {
        self.command.read(reg::STATUS);
        self.control.write(CONTROL, 0);
    }

    /// Selects the device with the bit `device`, which is 0 or `SECOND`.
    fn select(&mut self, device: u8) {
        self.device = device;
        self.write(reg::DEVICE, LBA | device);
        pause(SELECT);
    }

    /// Resets both devices, which ends their commands, also those of an earlier driver.
    fn reset(&self) {
        self.control.write(CONTROL, NO_INTERRUPT | SOFTWARE_RESET);
        pause(RESET);
        self.control.write(CONTROL, NO_INTERRUPT);
        pause(AFTER_RESET);
    }

    /// Returns the data with which a disk identifies itself (8.15.8); `None` if there is no disk.
    fn identify(&self, end: u64) -> Option<[u8; BLOCK_BYTES]> {
        let found = self.wait(end)?;
        // A packet device has a signature in these registers after a reset (9.12).
        let is_disk = (self.command.read(reg::LBA_MID), self.command.read(reg::LBA_HIGH)) == (0, 0);
        if found == 0 || found == status::NOBODY || !is_disk {
            return None;
        }
        self.command(command::IDENTIFY_DEVICE);
        let found = self.wait(end)?;
        if found & (status::ERROR | status::DEVICE_FAULT) != 0 || found & status::DATA_REQUEST == 0 {
            return None;
        }
        let mut words = [0; BLOCK_BYTES];
        self.command.read_words(reg::DATA, &mut words);
        Some(words)
    }
}

/// Returns word `number` of the data with which a disk identifies itself.
fn word(words: &[u8; BLOCK_BYTES], number: usize) -> u16 {
    u16::from_le_bytes([words[2 * number], words[2 * number + 1]])
}

impl Device<Block> for Ide {
    fn init() -> Result<Ide> {
        let mut channel = Channel { command: Registers::map()?, control: Registers::map()?, device: 0 };
        let now = service::time_ns();
        let end = now + INIT_NS;
        channel.reset();
        // The first device gets half of the time, so that the second one is tried even if the first
        // stays busy.
        let found = [(0, now + INIT_NS / 2), (SECOND, end)].into_iter().find_map(|(device, end)| {
            channel.select(device);
            channel.identify(end)
        });
        let words = found.ok_or(Refusal::NotFound)?;
        let has = |number, bit: u16| word(&words, number) & 1 << bit != 0;
        let count = |numbers: core::ops::Range<usize>| {
            numbers.rev().fold(0, |blocks, number| blocks << 16 | u64::from(word(&words, number)))
        };
        // The word is valid if bit 14 is set and bit 15 is clear. Blocks are longer if bit 12 is
        // set too.
        let has_long_blocks = word(&words, 106) >> 12 & 0xd == 5;
        if !has(49, 9) || has_long_blocks {
            log::error!("the disk has no block numbers, or blocks that are not of {BLOCK_BYTES} bytes");
            return Err(Refusal::Invalid);
        }
        let is_large = has(83, 10);
        let blocks = if is_large { count(100..104) } else { count(60..62) };
        let mut model = [0; 24];
        // The letters are stored in pairs, the second letter of each pair first.
        let letters = words[54..].chunks(2).flat_map(|pair| [pair[1], pair[0]]);
        model.iter_mut().zip(letters).for_each(|(to, letter)| *to = letter);
        let len = model.iter().rposition(|letter| *letter != b' ').map_or(0, |last| last + 1);
        model[len..].fill(0);
        // Word 47: the largest number of blocks in a part of the data.
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
    /// Begins a request, or completes it if it cannot be begun.
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
        // A device with 48-bit addresses takes two bytes in each register, the higher byte first
        // (6.20).
        if self.is_large {
            channel.write(reg::SECTOR_COUNT, count_high);
            channel.write(reg::LBA_LOW, third);
            channel.write(reg::LBA_MID, fourth);
            channel.write(reg::LBA_HIGH, fifth);
        }
        channel.write(reg::SECTOR_COUNT, count_low);
        channel.write(reg::LBA_LOW, low);
        channel.write(reg::LBA_MID, mid);
        channel.write(reg::LBA_HIGH, high);
        let rest = if self.is_large { 0 } else { third & 0x0f };
        channel.write(reg::DEVICE, LBA | channel.device | rest);
        channel.command(command);
        // The device asks for the first part of a write without an interrupt (9.7).
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

    /// Completes a request that failed, and resets the device so that it forgets the request.
    #[cold]
    fn fail(&mut self, ticket: Ticket, request: &BlockRequest, queues: &mut Queues, why: Arguments) {
        log::warn!("block {}: {why}", request.lba);
        queues.complete(ticket, &BLOCK_ERROR);
        let end = service::time_ns() + RESTORE_NS;
        let device = self.channel.device;
        self.channel.reset();
        // A busy device ignores a selection.
        let mut is_back = self.channel.wait(end).is_some();
        self.channel.select(device);
        // The reset may have cleared the multiple mode.
        is_back &= self.channel.wait(end).is_some() && self.channel.set_multiple(self.multiple, end);
        if !is_back {
            log::error!("the disk does not come back from a reset");
        }
        self.channel.allow_interrupts();
    }

    /// Moves the part of the data that the device has or wants, and completes the request when it
    /// is done.
    fn go_on(&mut self, queues: &mut Queues) {
        let Some(mut doing) = self.now.take() else {
            // No request is in progress. Reading the status lowers the interrupt.
            self.channel.command.read(reg::STATUS);
            return;
        };
        let found = self.channel.command.read(reg::STATUS);
        if found & status::BUSY != 0 {
            self.now = Some(doing);
            return;
        }
        if found & (status::ERROR | status::DEVICE_FAULT) != 0 {
            let error = self.channel.command.read(reg::ERROR);
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
                self.channel.command.write_words(reg::DATA, &block);
            } else {
                self.channel.command.read_words(reg::DATA, &mut block);
                queues.write_data(&doing.ticket, doing.moved, &block);
            }
            doing.moved += BLOCK_BYTES;
        }
        // A read is done when its last part was moved. A write is done only when the device
        // interrupts again after its last part.
        match doing.moved == doing.request.data_len as usize && !is_write {
            true => queues.complete(doing.ticket, &BLOCK_OK),
            false => self.now = Some(doing),
        }
    }
}
