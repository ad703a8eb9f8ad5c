//! The kernel's end of a channel of requests: a SCSI adapter's or a block device's.

use super::{Kernel, Memory, bytes, seen_by_device};
use crate::block::Block;
use crate::class::Protocol;
use crate::scsi::Scsi;
use ringfence_abi::block::{self, BLOCK_FLUSH, BLOCK_READ, BLOCK_WRITE, BlockRequest};
use ringfence_abi::queue::{Complete, Consumer, Producer, Submit, Words};
use ringfence_abi::scsi::{self, DIRECTION_IN, DIRECTION_NONE, DIRECTION_OUT, MAX_CDB, Request};
use std::vec::Vec;
use zerocopy::FromBytes;

/// The part of a class that the kernel needs to make requests.
pub trait Asks: Protocol {
    /// How many requests have data: those with the numbers below.
    const WITH_DATA: usize;
    /// The most data of a request, in bytes.
    const MAX_DATA: usize;

    /// Writes request `number` into shared memory. `data` and `address` are the addresses of the
    /// request's data for the driver and for the device.
    fn ask(memory: &impl Words, number: usize, request: &Self::Request, data: u64, address: u64);

    /// Reads the outcome of request `number` from shared memory.
    fn outcome(memory: &impl Words, number: usize) -> Self::Outcome;
}

/// The kernel's end of a channel of requests. A test chooses the numbers of requests; requests that
/// the driver has at the same time have different numbers.
pub struct Requests<P: Asks> {
    memory: Memory,
    /// The data of request 0, as the driver sees it. Those of the others follow.
    data: u64,
    submit: Producer<Submit<P>>,
    complete: Consumer<Complete<P>>,
}

impl<P: Asks> Requests<P> {
    pub(super) fn new() -> Requests<P> {
        let memory = Memory::new(Kernel::allocate(P::QUEUE_BYTES as u64), P::QUEUE_BYTES);
        let data = Kernel::allocate_dma((P::WITH_DATA * P::MAX_DATA) as u64);
        Requests { memory, data, submit: Producer::new(), complete: Consumer::new() }
    }

    pub(super) fn start(&self) -> i64 {
        self.memory.start as i64
    }

    fn place(&self, number: usize) -> u64 {
        assert!(number < P::WITH_DATA, "request {number} has no data");
        self.data + (number * P::MAX_DATA) as u64
    }

    /// Gives the driver request `number`. Its addresses are set to those of the request's data.
    pub fn ask(&mut self, number: usize, request: &P::Request) {
        let place = if number < P::WITH_DATA { self.place(number) } else { 0 };
        P::ask(&self.memory, number, request, place, seen_by_device(place));
        assert_eq!(self.submit.put(&self.memory, number as u64), Ok(true));
    }

    /// Sets data of request `number`, from the byte at `offset` on.
    pub fn set_data(&mut self, number: usize, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= P::MAX_DATA);
        super::dma_write(seen_by_device(self.place(number)) + offset as u64, from);
    }

    /// Returns `len` bytes of the data of request `number`, from the byte at `offset` on.
    pub fn data(&self, number: usize, offset: usize, len: usize) -> Vec<u8> {
        assert!(offset + len <= P::MAX_DATA);
        bytes(self.place(number) + offset as u64, len as u64)
    }

    /// Takes the requests that the driver has completed: their numbers and outcomes.
    pub fn take_completed(&mut self) -> Vec<(usize, P::Outcome)> {
        let next = || self.complete.take(&self.memory).expect("a position that can be");
        let numbers: Vec<u64> = std::iter::from_fn(next).collect();
        numbers.into_iter().map(|number| (number as usize, P::outcome(&self.memory, number as usize))).collect()
    }

    /// Gives the driver a recorded request: its bytes.
    pub(super) fn ask_again(&mut self, number: usize, request: &[u8]) {
        self.ask(number, &P::Request::read_from_bytes(request).expect("a request of this class"));
    }
}

impl Asks for Scsi {
    const WITH_DATA: usize = scsi::REQUESTS;
    const MAX_DATA: usize = scsi::MAX_DATA;

    fn ask(memory: &impl Words, number: usize, request: &Request, data: u64, data_address: u64) {
        scsi::write_request(memory, number, &Request { data, data_address, ..*request });
    }

    fn outcome(memory: &impl Words, number: usize) -> scsi::Outcome {
        scsi::read_outcome(memory, number).expect("every outcome has this length")
    }
}

/// The data of a command.
pub enum Data<'a> {
    /// No data moves.
    None,
    /// So many bytes move from the device into memory.
    In(usize),
    /// These bytes move to the device.
    Out(&'a [u8]),
}

impl Requests<Scsi> {
    /// Gives the driver command `number` for a logical unit of a target.
    pub fn command(&mut self, number: usize, [target, lun]: [u16; 2], block: &[u8], data: Data) {
        let (direction, data_len) = match data {
            Data::None => (DIRECTION_NONE, 0),
            Data::In(len) => (DIRECTION_IN, len),
            Data::Out(from) => {
                self.set_data(number, 0, from);
                (DIRECTION_OUT, from.len())
            }
        };
        let mut cdb = [0; MAX_CDB];
        cdb[..block.len()].copy_from_slice(block);
        let (data_len, cdb_len) = (data_len as u32, block.len() as u16);
        let (data, data_address, managed, function) = (0, 0, 0, scsi::FUNCTION_COMMAND);
        let request = Request { data_address, data, data_len, direction, managed, target, lun, cdb_len, function, cdb };
        self.ask(number, &request);
    }
}

impl Asks for Block {
    const WITH_DATA: usize = block::BLOCK_REQUESTS;
    const MAX_DATA: usize = block::BLOCK_MAX_DATA;

    fn ask(memory: &impl Words, number: usize, request: &BlockRequest, data: u64, data_address: u64) {
        block::write_request(memory, number, &BlockRequest { data, data_address, ..*request });
    }

    fn outcome(memory: &impl Words, number: usize) -> u32 {
        block::read_status(memory, number) as u32
    }
}

impl Requests<Block> {
    fn operation(&mut self, number: usize, operation: u32, lba: u64, len: usize) {
        self.ask(number, &BlockRequest { data_address: 0, data: 0, data_len: len as u32, operation, lba });
    }

    /// Has the driver read `len` bytes from block `lba` on.
    pub fn read(&mut self, number: usize, lba: u64, len: usize) {
        self.operation(number, BLOCK_READ, lba, len);
    }

    /// Has the driver write these bytes to the blocks from `lba` on.
    pub fn write(&mut self, number: usize, lba: u64, from: &[u8]) {
        self.set_data(number, 0, from);
        self.operation(number, BLOCK_WRITE, lba, from.len());
    }

    /// Has the driver flush its device.
    pub fn flush(&mut self, number: usize) {
        self.operation(number, BLOCK_FLUSH, 0, 0);
    }
}
