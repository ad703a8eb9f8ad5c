//! A stream of bytes through the guest's echo server and back.

use super::PATIENCE;
use crate::output;
use anyhow::{Context, Result, bail};
use sha2::Digest;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Reports the loss of the stream at once, so that the message is beside the console's lines of
/// that moment.
fn ended(doing: &str, error: &std::io::Error) {
    output::complain(&format!("\nsoak: {doing} ended: {error}"));
}

/// A stream of random bytes through the guest's echo server.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<Option<[u8; 32]>>,
    receiver: JoinHandle<(u64, u64, [u8; 32])>,
}

impl Stream {
    /// Connects to the guest's echo server behind `port`, and begins to send.
    pub fn start(port: u16, seed: u64) -> Result<Stream> {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).context("connecting to the guest")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        // One piece goes there and back before any driver is ended. libslirp 4.7 loses the data
        // that it has read from the host if a SYN-ACK comes twice (`sbreserve` empties its buffer).
        // It comes twice if the driver is ended before the guest has the answer to it.
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut first, mut back) = ([0; 4096], [0; 4096]);
        random.fill(&mut first);
        socket.write_all(&first).and_then(|()| socket.read_exact(&mut back)).context("the first bytes")?;
        if back != first {
            bail!("the first bytes of the stream came back wrong");
        }
        let mut sum = sha2::Sha256::new_with_prefix(first);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(first.len() as u64)));
        let (mut out, mut back) = (socket.try_clone()?, socket);
        let (stopped, count) = (stop.clone(), sent.clone());
        let (mut random_back, mut sum_back) = (random.clone(), sum.clone());
        // Both ends generate the bytes from the same seed. Each has its own checksum of the bytes
        // that it sent or received.
        let sender = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                random.fill(&mut piece);
                out.write_all(&piece).inspect_err(|error| ended("sending", error)).ok()?;
                sum.update(piece);
                count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            out.shutdown(Shutdown::Write).ok()?;
            Some(sum.finalize().into())
        });
        let receiver = std::thread::spawn(move || {
            let (mut piece, mut expected) = ([0; 4096], [0; 4096]);
            let (mut bytes, mut wrong) = (first.len() as u64, 0);
            let mut filled = 0;
            let mut read = |room: &mut [u8]| back.read(room).inspect_err(|error| ended("receiving", error));
            while let Ok(count @ 1..) = read(&mut piece[filled..]) {
                sum_back.update(&piece[filled..filled + count]);
                bytes += count as u64;
                filled += count;
                if filled == piece.len() {
                    random_back.fill(&mut expected);
                    wrong += piece.iter().zip(&expected).filter(|(is, should)| is != should).count() as u64;
                    filled = 0;
                }
            }
            (bytes, wrong, sum_back.finalize().into())
        });
        Ok(Stream { stop, sent, sender, receiver })
    }

    /// Closes the stream, and returns its result.
    pub fn stop(self) -> Stopped {
        self.stop.store(true, Ordering::Relaxed);
        let sent_sum = self.sender.join().ok().flatten();
        let (bytes, wrong, sum) = self.receiver.join().unwrap_or_default();
        let whole = bytes == self.sent.load(Ordering::Relaxed) && sent_sum == Some(sum);
        Stopped { bytes, wrong, sum: whole.then_some(sum) }
    }
}

/// The result of a stream.
pub struct Stopped {
    /// Number of bytes that came back.
    pub bytes: u64,
    /// Number of bytes that came back wrong.
    pub wrong: u64,
    /// SHA-256 of the bytes that were sent, if all of them came back.
    pub sum: Option<[u8; 32]>,
}
