//! The ends of frames that two network stacks, or one and a test, hand to each other.

use smoltcp::phy::{RxToken, TxToken};

/// A frame that was received.
pub struct Received(pub Vec<u8>);

/// Where frames go that are sent, none longer than `most` bytes.
pub struct Sending<'a> {
    /// What was sent.
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
