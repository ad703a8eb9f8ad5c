//! Requests to a block device ([`ringfence_abi::block`]).

use alloc::format;
use alloc::string::{String, ToString};
use host::requests::{self, Protocol, Transfer};
use ringfence_abi::block::{
    BLOCK_ERROR, BLOCK_MAX_DATA, BLOCK_OK, BLOCK_READ, BLOCK_REQUESTS, BLOCK_UNSUPPORTED, BLOCK_WRITE, BlockInfo,
    BlockRequest, COMPLETE, QUEUE_BYTES, SUBMIT, read_request, read_status, write_request,
};
use ringfence_abi::queue::{Place, Rings, Words};
use ringfence_abi::upcall::Reply;
use ringfence_core::passed::{self, Content};

/// The protocol of requests to a block device.
pub struct Blocks;

/// The kernel's end of a block driver's queues.
pub type Queues = requests::queue::Queues<Blocks>;

/// A request to a block device.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// `BLOCK_READ`, `BLOCK_WRITE` or `BLOCK_FLUSH`.
    pub operation: u32,
    /// The first block.
    pub lba: u64,
}

/// Describes a request for a trace.
pub fn content_words(content: &Content) -> String {
    match content {
        Content::Request([operation, lba, _]) if *operation == BLOCK_READ.into() => format!("read from block {lba}"),
        Content::Request([operation, lba, _]) if *operation == BLOCK_WRITE.into() => format!("write from block {lba}"),
        Content::Request(_) => "flush".to_string(),
        Content::Frame(_) => String::new(),
    }
}

/// Describes the result of a request for a trace.
pub fn result_words(result: u32) -> &'static str {
    match result {
        BLOCK_OK => "done",
        BLOCK_ERROR => "failed",
        _ => "not supported",
    }
}

impl Rings for Blocks {
    const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
}

impl Protocol for Blocks {
    type Info = BlockInfo;
    type Request = Request;
    /// `BLOCK_OK`, `BLOCK_ERROR` or `BLOCK_UNSUPPORTED`.
    type Outcome = u32;
    type Unit = ();

    const NAMES: [&'static str; 2] = ["block request", "block requests"];
    const QUEUE_BYTES: usize = QUEUE_BYTES;
    const REQUESTS: usize = BLOCK_REQUESTS;
    const MAX_DATA: usize = BLOCK_MAX_DATA;
    const NEWS: Reply = Reply::empty();

    fn depth(info: &BlockInfo) -> usize {
        info.queue_depth as usize
    }

    fn unit(_: &Request) {}

    fn write(memory: &impl Words, number: usize, request: &Request, data: Transfer) {
        let Request { operation, lba } = *request;
        write_request(
            memory,
            number,
            &BlockRequest { data_address: data.address, data: data.start, data_len: data.len_bytes, operation, lba },
        );
    }

    fn read(memory: &impl Words, number: usize) -> Result<u32, u64> {
        let status = read_status(memory, number);
        match u32::try_from(status) {
            Ok(known @ BLOCK_OK..=BLOCK_UNSUPPORTED) => Ok(known),
            _ => Err(status),
        }
    }

    /// The operation, and the first block.
    fn describe(memory: &impl Words, number: usize) -> (passed::Request, u32) {
        let Some(request) = read_request(memory, number) else { return Default::default() };
        ([request.operation.into(), request.lba, 0], request.data_len)
    }

    fn result(memory: &impl Words, number: usize) -> u32 {
        u32::try_from(read_status(memory, number)).unwrap_or(u32::MAX)
    }
}
