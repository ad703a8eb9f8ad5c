//! Tokens for frames between two network stacks, or between a stack and a test.

use smoltcp::phy::{RxToken, TxToken};

/// A frame that was received.
pub struct Received(pub Vec<u8>);

/// A list that collects sent frames, each of at most `most` bytes.
pub struct Sending<'a> {
    /// The sent frames.
    pub frames: &'a mut Vec<Vec<u8>>,
    /// Longest frame in bytes.
    pub most: usize,
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len_bytes: usize, f: F) -> R {
        let mut frame = vec![0; len_bytes.min(self.most)];
        let result = f(&mut frame);
        self.frames.push(frame);
        result
    }
}
