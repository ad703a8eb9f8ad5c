//! LSI 53C895A, which is QEMU's `lsi53c895a`. Sections are those of the *LSI53C895A PCI to Ultra2
//! SCSI Controller Technical Manual*, version 2.2.
//!
//! The adapter has a processor of its own. It carries out a program in memory ([`script`]), which
//! does all the transfers of a command.
#![no_std]
#![forbid(unsafe_code)]

mod registers;
mod script;

use core::time::Duration;
use registers::{self as reg, Adapter};
use ringfence_sdk::device;
use ringfence_sdk::dma::{self, Dma};
use ringfence_sdk::register::Registers;
use ringfence_sdk::scsi::{HOST_ERROR, HOST_NO_DEVICE, HOST_OK};
use ringfence_sdk::scsi_bus::{BusAdapter, BusDriver, Command, Direction, Ending, OWN_ID};
use ringfence_sdk::{Kind, Manifest, Reset, Result, driver};
use script::{Label, PROGRAM, has_address, says, table};

driver!(
    BusDriver<Lsi>,
    Manifest::new("lsi53c895a", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Scsi)
        .pci(&[(0x1000, 0x0012)])
        .dma_kib(16)
        .restart()
        .reset(
            Reset::register(1, reg::ISTAT.offset(), 4)
                .sets(reg::ISTAT_SRST as u32)
                .waits_for(reg::ISTAT_SRST as u32, 0)
                .within_us(10_000)
        )
);

/// The longest time that a reset may take.
const RESET: Duration = Duration::from_millis(10);
/// How long the reset of the bus is held (SPI-5, 9.5: at least 25 us).
const BUS_RESET: Duration = Duration::from_micros(30);
/// Offsets in the adapter's memory: the table is first, followed by the memory that it points to,
/// and the program.
const IDENTIFY: usize = 0x40;
const CDB: usize = 0x50;
const STATUS: usize = 0x80;
const MESSAGE: usize = 0x88;
/// The place for a byte that a target transfers in a command without data.
const NOWHERE: usize = 0x90;
const SCRIPT: usize = 0x100;
const MEMORY: usize = SCRIPT + PROGRAM.len() * 8;
/// The status byte before the target has given a status: no SCSI status has this value.
const NO_STATUS: u8 = 0xff;

struct Lsi {
    registers: Registers<Adapter>,
    memory: Dma,
    /// The length of the data of the command in progress, and the number of bytes that it has left.
    data_len: u32,
    left: u32,
    is_busy: bool,
}

impl BusAdapter for Lsi {
    fn init() -> Result<Lsi> {
        let registers = Registers::map()?;
        let memory = Dma::within_4_gib(MEMORY)?;
        let mut lsi = Lsi { registers, memory, data_len: 0, left: 0, is_busy: false };
        lsi.reset()?;
        lsi.load();
        device::enable_dma()?;
        device::enable_interrupts()?;
        log::info!("53C895A: 7 targets, one command at a time");
        Ok(lsi)
    }

    fn start(&mut self, command: &Command) {
        self.memory.write(IDENTIFY, command.identify);
        self.memory.write_bytes(CDB, command.cdb());
        self.memory.write(STATUS, NO_STATUS);
        self.memory.write(table::SELECT as usize, u32::from(command.target) << 16);
        self.point(table::COMMAND, command.cdb().len() as u32, self.address(CDB));
        match command.direction {
            // If the target wants to move data nevertheless, it finds room for only one byte.
            Direction::None => self.point(table::DATA, 1, self.address(NOWHERE)),
            _ => self.point(table::DATA, command.data_len, command.data),
        }
        (self.data_len, self.left, self.is_busy) = (command.data_len, 0, true);
        dma::write_barrier();
        self.run(0);
    }

    fn poll(&mut self, _interrupted: bool) -> Option<Ending> {
        let status = self.registers.read(reg::ISTAT);
        if status & reg::ISTAT_SIP != 0 {
            let (first, second) = (self.registers.read(reg::SIST0), self.registers.read(reg::SIST1));
            // 2.2.16: a DMA interrupt may be stacked behind the SCSI interrupt.
            if second & reg::SIST1_STO != 0 {
                return self.end(Ending::failed(HOST_NO_DEVICE));
            }
            if first & reg::SIST0_ERRORS != 0 {
                return self.give_up(format_args!("the bus has failed (SIST0 {first:#x})"));
            }
            if first & reg::SIST0_MA != 0 && self.is_busy {
                // The target has moved less data than it might. The program checks which phase the
                // target wants now.
                self.left = self.registers.read(reg::DBC) & 0xff_ffff;
                self.run(Label::Dispatch.offset());
            }
        }
        let status = self.registers.read(reg::ISTAT);
        if status & reg::ISTAT_DIP == 0 {
            return None;
        }
        let causes = self.registers.read(reg::DSTAT) & reg::DSTAT_CAUSES;
        let said = self.registers.read(reg::DSPS);
        match causes {
            reg::DSTAT_SIR if said == says::DONE => {
                let status = self.memory.read(STATUS);
                let residual = self.left.min(self.data_len);
                self.end(Ending { host: HOST_OK, status, residual })
            }
            reg::DSTAT_SIR => self.give_up(format_args!("the target does not do as expected ({said})")),
            _ => self.give_up(format_args!("SCRIPTS stopped (DSTAT {causes:#x})")),
        }
    }

    fn reset_bus(&mut self) {
        // `reset` logs its own failure, and the next command fails as well.
        let _ = self.reset();
        self.is_busy = false;
    }

    fn exit(&mut self) {
        self.registers.write(reg::ISTAT, reg::ISTAT_SRST);
    }
}

impl Lsi {
    /// Resets the adapter and the bus, and sets the adapter up (4.2).
    fn reset(&mut self) -> Result<()> {
        let registers = &self.registers;
        registers.write(reg::ISTAT, reg::ISTAT_SRST);
        registers.write(reg::ISTAT, 0);
        device::wait_until(RESET, || registers.read(reg::ISTAT) & reg::ISTAT_SRST == 0)
            .inspect_err(|_| log::error!("the adapter does not come out of reset"))?;
        registers.write(reg::SCNTL0, reg::SCNTL0_ARBITRATION);
        registers.write(reg::SCID, reg::SCID_RRE | OWN_ID);
        registers.write(reg::RESPID0, 1 << OWN_ID);
        registers.write(reg::DCNTL, reg::DCNTL_COM);
        registers.write(reg::STIME0, reg::STIME0_250_MS);
        registers.write(reg::SCNTL1, reg::SCNTL1_RST);
        device::pause(BUS_RESET);
        registers.write(reg::SCNTL1, 0);
        // The reset of the bus raises an interrupt too; these reads clear it.
        for cleared_by_reading in [reg::SIST0, reg::SIST1, reg::DSTAT] {
            registers.read(cleared_by_reading);
        }
        registers.write(reg::SIEN0, reg::SIST0_MA | reg::SIST0_ERRORS);
        registers.write(reg::SIEN1, reg::SIST1_STO);
        registers.write(reg::DIEN, reg::DSTAT_CAUSES);
        Ok(())
    }

    /// Writes the program and the constant part of the table into memory.
    fn load(&mut self) {
        let program = self.address(SCRIPT);
        for (index, instruction) in PROGRAM.into_iter().enumerate() {
            let [first, second] = instruction;
            let base = if has_address(instruction) { program } else { 0 };
            self.memory.write(SCRIPT + index * 8, first);
            self.memory.write(SCRIPT + index * 8 + 4, second + base);
        }
        self.point(table::IDENTIFY, 1, self.address(IDENTIFY));
        self.point(table::STATUS, 1, self.address(STATUS));
        self.point(table::MESSAGE, 1, self.address(MESSAGE));
    }

    /// Sets an entry of the table.
    fn point(&mut self, entry: u32, len_bytes: u32, address: u32) {
        self.memory.write(entry as usize, len_bytes);
        self.memory.write(entry as usize + 4, address);
    }

    /// Returns the adapter's address of the byte at `offset` of its memory.
    fn address(&self, offset: usize) -> u32 {
        self.memory.address(offset) as u32
    }

    /// Starts the program at `offset`.
    fn run(&mut self, offset: u32) {
        self.registers.write(reg::DSA, self.address(0));
        self.registers.write(reg::DSP, self.address(SCRIPT) + offset);
    }

    /// Ends the command in progress, and returns its result; `None` if no command is in progress.
    fn end(&mut self, ending: Ending) -> Option<Ending> {
        core::mem::take(&mut self.is_busy).then_some(ending)
    }

    /// Ends the command with an error. The state of the bus is unknown then, so the bus is reset.
    fn give_up(&mut self, why: core::fmt::Arguments) -> Option<Ending> {
        log::error!("{why}; the bus is reset");
        let _ = self.reset();
        self.end(Ending::failed(HOST_ERROR))
    }
}
