//! The other end of the cable: a host that answers protocols in a thread of its own, and sends the
//! frames that a test gives it.

use crate::wire::{
    self, ARP, BROADCAST, ECHO_ID, GUEST, IPV4, PEER, PEER_MAC, arp, datagram, echo_request, frame, icmp, packet,
};
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long to wait for a frame.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a request is repeated.
const AGAIN: Duration = Duration::from_millis(200);

/// The peer of the machine. Each datagram on its socket is one frame.
pub struct Peer {
    socket: Arc<UdpSocket>,
    frames: Receiver<Vec<u8>>,
    stop: Arc<AtomicBool>,
}

impl Peer {
    /// Returns the peer, and the setting that connects a machine's network card to it.
    pub fn new() -> Result<(Peer, String)> {
        let (socket, network) = wire::cable()?;
        let socket = Arc::new(socket);
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (sender, frames) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let (listens, stops) = (socket.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut frame = [0; 65536];
            while !stops.load(Ordering::Relaxed) {
                // The receive fails until QEMU is there, and whenever no frame comes in time.
                let Ok(len) = listens.recv(&mut frame) else { continue };
                let frame = &frame[..len];
                if let Some(answer) = answer(frame) {
                    // A failed send loses the frame, as a cable may.
                    let _ = listens.send(&answer);
                }
                if sender.send(frame.to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok((Peer { socket, frames, stop }, network))
    }

    /// Sends a frame unchanged.
    pub fn send(&self, frame: &[u8]) {
        // The socket may be full while QEMU is stopped. The frame is then lost, as on a cable.
        let _ = self.socket.send(frame);
    }

    /// Waits for a frame for which `wanted` returns a value. Sends `ask` repeatedly until it comes.
    pub fn wait<T>(&self, what: &str, ask: &[u8], wanted: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut again = Instant::now();
        while Instant::now() < deadline {
            if !ask.is_empty() && Instant::now() >= again {
                self.send(ask);
                again = Instant::now() + AGAIN;
            }
            match self.frames.recv_timeout(AGAIN) {
                Ok(frame) => {
                    if let Some(value) = wanted(&frame) {
                        return Ok(value);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        bail!("{what} did not come within {} s", PATIENCE.as_secs())
    }

    /// Asks for the guest's Ethernet address with ARP (RFC 826).
    pub fn resolve(&self) -> Result<[u8; 6]> {
        let request = arp(1, &PEER_MAC, &PEER, &[0; 6], &GUEST);
        let request = frame(&BROADCAST, ARP, &request);
        self.wait("an answer to ARP", &request, |frame| {
            let is_it = part(frame, 12, 2)? == ARP.to_be_bytes()
                && part(frame, 20, 2)? == [0, 2]
                && part(frame, 28, 4)? == GUEST;
            is_it.then(|| part(frame, 22, 6)?.try_into().ok())?
        })
    }

    /// Has the guest echo `data` (RFC 792), and compares the echo byte for byte.
    pub fn echo(&self, mac: &[u8; 6], data: &[u8]) -> Result<()> {
        let request = frame(mac, IPV4, &echo_request(data));
        let what = format!("the echo of {} bytes", data.len());
        let came = self.wait(&what, &request, |frame| echoed(frame, data.len()))?;
        if came != data {
            bail!("the echo of {} bytes is not what was sent", data.len());
        }
        Ok(())
    }

    /// Sends `count` echo requests with `data`, without waiting for the answers.
    pub fn flood(&self, mac: &[u8; 6], data: &[u8], count: usize) {
        let request = frame(mac, IPV4, &echo_request(data));
        (0..count).for_each(|_| self.send(&request));
    }

    /// Counts the different echo requests that have come from the guest.
    pub fn requests(&self) -> usize {
        let mut seen = BTreeSet::new();
        while let Ok(frame) = self.frames.recv_timeout(AGAIN) {
            seen.extend(requested(&frame));
        }
        seen.len()
    }

    /// Counts the echoes of `len_bytes` bytes that have come.
    pub fn echoes(&self, len_bytes: usize) -> usize {
        let mut count = 0;
        while let Ok(frame) = self.frames.recv_timeout(AGAIN) {
            count += usize::from(echoed(&frame, len_bytes).is_some());
        }
        count
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn part(frame: &[u8], at: usize, len: usize) -> Option<&[u8]> {
    frame.get(at..at.checked_add(len)?)
}

/// Returns the echoed data, if the frame answers the peer's request of `len_bytes` bytes.
fn echoed(frame: &[u8], len_bytes: usize) -> Option<Vec<u8>> {
    let is_answer = part(frame, 12, 2)? == IPV4.to_be_bytes()
        && *frame.get(23)? == 1
        && *frame.get(34)? == 0
        && part(frame, 38, 2)? == ECHO_ID
        && usize::from(u16::from_be_bytes(part(frame, 16, 2)?.try_into().ok()?)) == 28 + len_bytes;
    is_answer.then(|| part(frame, 42, len_bytes).map(<[u8]>::to_vec))?
}

/// Returns the sequence number of an echo request.
fn requested(frame: &[u8]) -> Option<[u8; 2]> {
    let is_request = part(frame, 12, 2)? == IPV4.to_be_bytes() && *frame.get(23)? == 1 && *frame.get(34)? == 8;
    is_request.then(|| part(frame, 40, 2)?.try_into().ok())?
}

/// Returns the peer's automatic answer to ARP, to an echo request, or to DHCP.
fn answer(asked: &[u8]) -> Option<Vec<u8>> {
    let from: [u8; 6] = part(asked, 6, 6)?.try_into().ok()?;
    if part(asked, 12, 2)? == ARP.to_be_bytes() {
        let is_for_peer = part(asked, 20, 2)? == [0, 1] && part(asked, 38, 4)? == PEER;
        let reply = arp(2, &PEER_MAC, &PEER, part(asked, 22, 6)?, part(asked, 28, 4)?);
        return is_for_peer.then(|| frame(&from, ARP, &reply));
    }
    if part(asked, 12, 2)? != IPV4.to_be_bytes() {
        return None;
    }
    let len = usize::from(u16::from_be_bytes(part(asked, 16, 2)?.try_into().ok()?));
    match *asked.get(23)? {
        1 if *asked.get(34)? == 8 && part(asked, 30, 4)? == PEER => {
            let data = part(asked, 42, len.checked_sub(28)?)?;
            let reply = icmp(0, part(asked, 38, 2)?, part(asked, 40, 2)?, data);
            Some(frame(&from, IPV4, &packet(1, &reply)))
        }
        17 if part(asked, 36, 2)? == [0, 67] => dhcp(&from, part(asked, 42, len.checked_sub(28)?)?),
        _ => None,
    }
}

/// Answers as a DHCP server (RFC 2131): with an offer or an acknowledgement.
fn dhcp(to: &[u8; 6], asked: &[u8]) -> Option<Vec<u8>> {
    let mut options = asked.get(240..)?;
    let kind = loop {
        match options {
            [53, 1, kind, ..] => break *kind,
            [0, rest @ ..] => options = rest,
            [255, ..] | [_] | [] => return None,
            [_, len, rest @ ..] => options = rest.get(usize::from(*len)..)?,
        }
    };
    let (discover, request, offer, ack) = (1, 3, 2, 5);
    let kind = if kind == discover { offer } else { (kind == request).then_some(ack)? };
    let mut message = asked.get(..240)?.to_vec();
    message[0] = 2;
    message[16..20].copy_from_slice(&GUEST);
    message.extend([53, 1, kind, 54, 4].iter().chain(&PEER));
    message.extend([51, 4, 0, 0, 3, 0, 1, 4, 255, 255, 255, 0, 3, 4].iter().chain(&PEER).chain(&[255]));
    message.resize(300, 0);
    Some(frame(to, IPV4, &datagram([67, 68], &message)))
}
