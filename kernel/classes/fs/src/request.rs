//! Requests to the driver of a filesystem ([`ringfence_abi::fs`]).

use alloc::format;
use alloc::string::String;
use host::requests::{self, Protocol, Transfer};
use ringfence_abi::fs::{
    COMPLETE, FS_MAX_DATA, FS_OK, FS_REQUESTS, FsError, FsInfo, FsOutcome, FsRequest, Operation, QUEUE_BYTES, SUBMIT,
    read_outcome, read_request, write_request,
};
use ringfence_abi::queue::{Place, Rings, Words};
use ringfence_abi::upcall::Reply;
use ringfence_core::passed::{self, Content};

/// The protocol of requests to a filesystem.
pub struct Files;

/// The kernel's end of a filesystem's queues.
pub type Queues = requests::queue::Queues<Files>;

/// A request to a filesystem; its path, if it has one, is its data.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// The operation.
    pub operation: Operation,
    /// The number of an open file.
    pub node: u64,
    /// A position or a length in bytes.
    pub offset: u64,
    /// Flags, by the operation.
    pub flags: u32,
}

/// A driver's answer: its outcome if it has done it.
pub type Answer = Result<FsOutcome, FsError>;

/// Describes a request for a trace.
pub fn content_words(content: &Content) -> String {
    let Content::Request([number, node, offset]) = content else { return String::new() };
    let operation = u32::try_from(*number).ok().and_then(Operation::of);
    match operation {
        Some(Operation::Open) => format!("open as file {node}"),
        Some(Operation::Close) => format!("close file {node}"),
        Some(Operation::Read) => format!("read file {node} from {offset}"),
        Some(Operation::Write) => format!("write file {node} from {offset}"),
        Some(Operation::Truncate) => format!("make file {node} {offset} bytes long"),
        Some(Operation::List) => format!("list directory {node} from {offset}"),
        Some(Operation::Stat) => "stat".into(),
        Some(Operation::MakeDirectory) => "make a directory".into(),
        Some(Operation::Remove) => "remove".into(),
        Some(Operation::Rename) => "rename".into(),
        Some(Operation::Sync) => "sync".into(),
        Some(Operation::Space) => "space".into(),
        None => String::new(),
    }
}

/// Describes the result of a request for a trace.
pub fn result_words(result: u32) -> &'static str {
    match result {
        FS_OK => "done",
        other => FsError::of(other).map_or("unknown", FsError::words),
    }
}

impl Rings for Files {
    const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
}

impl Protocol for Files {
    type Info = FsInfo;
    type Request = Request;
    type Outcome = Answer;
    type Unit = ();

    const NAMES: [&'static str; 2] = ["file request", "file requests"];
    const QUEUE_BYTES: usize = QUEUE_BYTES;
    const REQUESTS: usize = FS_REQUESTS;
    const MAX_DATA: usize = FS_MAX_DATA;
    const NEWS: Reply = Reply::empty();

    fn depth(_: &FsInfo) -> usize {
        FS_REQUESTS
    }

    fn unit(_: &Request) {}

    fn write(memory: &impl Words, number: usize, request: &Request, data: Transfer) {
        let Request { operation, node, offset, flags } = *request;
        let operation = operation as u32;
        let (data, data_len) = (data.start, data.len_bytes);
        write_request(memory, number, &FsRequest { data, data_len, operation, node, offset, flags, reserved: 0 });
    }

    fn read(memory: &impl Words, number: usize) -> Result<Answer, u64> {
        let outcome = read_outcome(memory, number).unwrap_or_default();
        match outcome.status {
            FS_OK => Ok(Ok(outcome)),
            other => FsError::of(other).map(Err).ok_or(other.into()),
        }
    }

    /// The operation, the file's number, and the position.
    fn describe(memory: &impl Words, number: usize) -> (passed::Request, u32) {
        let Some(request) = read_request(memory, number) else { return Default::default() };
        ([request.operation.into(), request.node, request.offset], request.data_len)
    }

    fn result(memory: &impl Words, number: usize) -> u32 {
        read_outcome(memory, number).map_or(u32::MAX, |outcome| outcome.status)
    }
}
