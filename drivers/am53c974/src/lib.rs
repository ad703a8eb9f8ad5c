//! AMD Am53C974, which is QEMU's `am53c974` and `dc390`. Chapters are those of the *Am53C974A
//! PCscsi II Technical Manual*.
//!
//! The driver reaches the adapter through ports alone. The adapter has a SCSI core of the 53C90
//! family, and a DMA engine that moves one contiguous range below 4 GiB at a time. The message and
//! the command go through that engine too, because together they can be longer than the core's
//! FIFO.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod registers;
#[cfg(test)]
mod tests;

use registers::{self as reg, Adapter, command, dma, int, phase};
use ringfence_sdk::device;
use ringfence_sdk::dma::{Dma, write_barrier};
use ringfence_sdk::register::Registers;
use ringfence_sdk::scsi::{HOST_ERROR, HOST_NO_DEVICE, HOST_OK};
use ringfence_sdk::scsi_bus::{BusAdapter, BusDriver, Command, Direction, Ending, OWN_ID};
use ringfence_sdk::{Kind, Manifest, Reset, Result, driver};

driver!(
    BusDriver<Am53c974>,
    Manifest::new("am53c974", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Scsi)
        .pci(&[(0x1022, 0x2020)])
        .dma_kib(16)
        .restart()
        // First the engine is stopped, then the core is reset. The command register reads as the
        // last command, so it is set to zero before the bits of the reset are set.
        .reset(
            Reset::register(0, reg::COMMAND.offset(), 4)
                .zeroes([reg::DMA_COMMAND.offset(), reg::COMMAND.offset()])
                .sets(command::RESET_CHIP as u32)
                .within_us(10_000)
        )
);

/// The largest length of a message with its command.
const MOST_OUT: usize = 1 + 32;

/// The event that the command in progress waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Idle,
    /// The target is selected and takes the command.
    Selected,
    /// The data is moved, completely or in part.
    Moved,
    /// The status and the message are in the FIFO.
    Status,
    /// The target disconnects.
    Gone,
}

struct Am53c974 {
    registers: Registers<Adapter>,
    /// The message and the command to send.
    out: Dma,
    step: Step,
    data: u32,
    data_len: u32,
    direction: Direction,
    residual: u32,
    status: u8,
}

impl BusAdapter for Am53c974 {
    fn init() -> Result<Am53c974> {
        let registers = Registers::map()?;
        let out = Dma::within_4_gib(MOST_OUT)?;
        let mut adapter = Am53c974 {
            registers,
            out,
            step: Step::Idle,
            data: 0,
            data_len: 0,
            direction: Direction::None,
            residual: 0,
            status: 0,
        };
        adapter.reset();
        device::enable_dma()?;
        device::enable_interrupts()?;
        log::info!("Am53C974: 7 targets, one command at a time");
        Ok(adapter)
    }

    fn start(&mut self, command: &Command) {
        self.out.write(0, command.identify);
        self.out.write_bytes(1, command.cdb());
        (self.data, self.data_len, self.direction) = (command.data, command.data_len, command.direction);
        (self.residual, self.status, self.step) = (command.data_len, 0, Step::Selected);
        self.registers.write(reg::STATUS, command.target);
        self.registers.write(reg::COMMAND, command::CLEAR_FIFO);
        let len_bytes = 1 + command.cdb().len() as u32;
        self.transfer(command::SELECT_WITH_ATN, self.out.address(0) as u32, len_bytes, Direction::Out);
    }

    fn poll(&mut self, _interrupted: bool) -> Option<Ending> {
        while self.registers.read(reg::STATUS) & reg::STATUS_INT != 0 {
            // Reading the causes also clears the status and the step.
            let status = self.registers.read(reg::STATUS);
            let causes = self.registers.read(reg::INTERRUPT);
            let ending = self.go_on(status, causes);
            if ending.is_some() {
                return ending;
            }
        }
        None
    }

    fn reset_bus(&mut self) {
        self.reset();
    }

    fn exit(&mut self) {
        self.registers.write(reg::DMA_COMMAND, dma::IDLE);
        self.registers.write(reg::COMMAND, command::RESET_CHIP);
    }
}

impl Am53c974 {
    /// Resets the adapter and the bus, and sets the adapter up.
    fn reset(&mut self) {
        self.registers.write(reg::DMA_COMMAND, dma::ABORT);
        self.registers.write(reg::DMA_COMMAND, dma::IDLE);
        self.registers.write(reg::COMMAND, command::RESET_CHIP);
        // NOP must be the first command after a reset of the chip.
        self.registers.write(reg::COMMAND, command::NOP);
        self.registers.write(reg::CONTROL1, OWN_ID | reg::CONTROL1_NO_RESET_INTERRUPT);
        self.registers.write(reg::CONTROL2, reg::CONTROL2_24_BITS);
        self.registers.write(reg::INTERRUPT, reg::TIMEOUT_250_MS);
        self.registers.write(reg::COMMAND, command::RESET_BUS);
        self.registers.read(reg::INTERRUPT);
        self.step = Step::Idle;
    }

    /// Gives the core a command that moves `len_bytes` bytes through the DMA engine, at `address`
    /// in memory.
    fn transfer(&mut self, command: u8, address: u32, len_bytes: u32, direction: Direction) {
        let way = if direction == Direction::In { dma::TO_MEMORY } else { 0 };
        let [low, middle, high, _] = len_bytes.to_le_bytes();
        write_barrier();
        self.registers.write(reg::DMA_COMMAND, dma::IDLE | way);
        self.registers.write(reg::COUNT_LOW, low);
        self.registers.write(reg::COUNT_MIDDLE, middle);
        self.registers.write(reg::COUNT_HIGH, high);
        self.registers.write(reg::DMA_COUNT, len_bytes);
        self.registers.write(reg::DMA_ADDRESS, address);
        self.registers.write(reg::COMMAND, command | command::DMA);
        self.registers.write(reg::DMA_COMMAND, dma::START | way);
    }

    /// Handles an interrupt of the core. Returns the command's result, if the command has ended.
    fn go_on(&mut self, status: u8, causes: u8) -> Option<Ending> {
        let is_gone = causes & int::DISCONNECTED != 0;
        match self.step {
            Step::Idle => return None,
            _ if causes & (int::ILLEGAL_COMMAND | int::RESET) != 0 => {
                return self.give_up(format_args!("the bus has failed (interrupt status {causes:#x})"));
            }
            Step::Selected if is_gone => return self.end(Ending::failed(HOST_NO_DEVICE)),
            Step::Gone if is_gone => {
                return self.end(Ending { host: HOST_OK, status: self.status, residual: self.residual });
            }
            Step::Status if causes & int::DONE != 0 => {
                self.status = self.registers.read(reg::FIFO);
                // The second byte is the message COMMAND COMPLETE.
                self.registers.read(reg::FIFO);
                self.step = Step::Gone;
                self.registers.write(reg::COMMAND, command::ACCEPT_MESSAGE);
                return None;
            }
            _ if is_gone => return self.give_up(format_args!("the target is gone without a status")),
            _ => {}
        }
        if self.step == Step::Moved {
            self.residual = self.registers.read(reg::DMA_LEFT).min(self.data_len);
        }
        match (status & phase::MASK, self.direction) {
            (phase::DATA_IN, Direction::In) | (phase::DATA_OUT, Direction::Out) if self.residual > 0 => {
                self.step = Step::Moved;
                let address = self.data + (self.data_len - self.residual);
                // The rest of the data becomes the data of the next transfer.
                (self.data, self.data_len) = (address, self.residual);
                self.transfer(command::TRANSFER, address, self.data_len, self.direction);
                None
            }
            (phase::STATUS, _) => {
                self.step = Step::Status;
                self.registers.write(reg::COMMAND, command::CLEAR_FIFO);
                self.registers.write(reg::COMMAND, command::COMPLETE);
                None
            }
            (wanted, _) => self.give_up(format_args!("the target wants phase {wanted}, which has no place here")),
        }
    }

    /// Marks the adapter as idle, and returns the command's result.
    fn end(&mut self, ending: Ending) -> Option<Ending> {
        self.step = Step::Idle;
        Some(ending)
    }

    /// Ends the command with an error. The state of the bus is unknown then, so the bus is reset.
    fn give_up(&mut self, why: core::fmt::Arguments) -> Option<Ending> {
        log::error!("{why}; the bus is reset");
        self.reset();
        self.end(Ending::failed(HOST_ERROR))
    }
}
