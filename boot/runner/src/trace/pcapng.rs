//! A capture for Wireshark in pcapng format (IETF draft-ietf-opsawg-pcapng): the frames of network
//! cards, and SCSI commands in the way that iSCSI has them (RFC 7143), which Wireshark dissects. A
//! comment stands where a driver was ended or replaced.

use super::{Sink, Source, Traced, WAIT, What};
use ringfence_abi::scsi::{Asked, FUNCTION_COMMAND};
use ringfence_link::trace::Content;
use std::collections::BTreeMap;
use std::io::{Result, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// Block types.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

/// Options of blocks.
const END: u16 = 0;
const COMMENT: u16 = 1;
const FLAGS: u16 = 2;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;
/// The resolution of timestamps: 10 to the power of minus this one.
const NANOSECONDS: u8 = 9;
/// Flags of packets.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Link types (tcpdump.org/linktypes.html).
const ETHERNET: u16 = 1;
const UPPER_PDU: u16 = 252;
/// Tags before an upper PDU: its dissector's name, and their end (Wireshark, epan/exported_pdu.h).
const TAG_DISSECTOR: u16 = 12;

/// iSCSI (RFC 7143, 11): operation codes, flags, and the length of a header.
const SCSI_COMMAND: u8 = 0x01;
const SCSI_RESPONSE: u8 = 0x21;
const FINAL: u8 = 0x80;
const READS: u8 = 0x40;
const WRITES: u8 = 0x20;
const HEADER: usize = 48;

/// A capture that is written.
pub struct Pcapng<W> {
    to: W,
    /// The interfaces: the driver's name, and the target that commands are for.
    interfaces: BTreeMap<(String, Option<u16>), u32>,
    /// The comment for the next packet of each driver.
    comments: BTreeMap<String, String>,
    /// The targets of the commands that are under way, by driver and number.
    commands: BTreeMap<(String, u64), u16>,
    /// The time of the system's boot, in nanoseconds since 1970, once an event has come.
    boot_ns: Option<u64>,
}

/// Returns an option of a block.
fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let value = value.get(..u16::MAX.into()).unwrap_or(value);
    let mut bytes = [code.to_le_bytes(), (value.len() as u16).to_le_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

impl<W: Write> Pcapng<W> {
    /// Begins a capture.
    pub fn new(to: W) -> Result<Pcapng<W>> {
        let (interfaces, comments, commands) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut capture = Pcapng { to, interfaces, comments, commands, boot_ns: None };
        let mut body = 0x1a2b_3c4d_u32.to_le_bytes().to_vec();
        // Version 1.0, and a section of unknown length.
        body.extend([1, 0, 0, 0]);
        body.extend([0xff; 8]);
        capture.block(SECTION, &body)?;
        Ok(capture)
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> Result<()> {
        let padded = body.len().next_multiple_of(4);
        let len = (padded as u32 + 12).to_le_bytes();
        self.to.write_all(&kind.to_le_bytes())?;
        self.to.write_all(&len)?;
        self.to.write_all(body)?;
        self.to.write_all(&[0; 3][..padded - body.len()])?;
        self.to.write_all(&len)
    }

    /// Returns the number of an interface, which is declared when it is first needed. iSCSI has no
    /// place for a target of SCSI, so that each target has an interface.
    fn interface(&mut self, source: &Source, target: Option<u16>) -> Result<u32> {
        let key = (source.driver.clone(), target);
        if let Some(number) = self.interfaces.get(&key) {
            return Ok(*number);
        }
        let name = target.map_or(source.driver.clone(), |target| format!("{} target {target}", source.driver));
        let number = self.interfaces.len() as u32;
        let link = if source.kind == "nic" { ETHERNET } else { UPPER_PDU };
        let mut body = [link.to_le_bytes(), [0; 2]].concat();
        // Packets of any length.
        body.extend([0; 4]);
        body.extend(option(NAME, name.as_bytes()));
        body.extend(option(RESOLUTION, &[NANOSECONDS]));
        body.extend(option(END, &[]));
        self.block(INTERFACE, &body)?;
        self.interfaces.insert(key, number);
        Ok(number)
    }

    /// Adds a packet, of which `bytes` were kept.
    fn packet(
        &mut self,
        source: &Source,
        target: Option<u16>,
        at_ns: u64,
        flags: u32,
        bytes: &[u8],
        len_bytes: u32,
    ) -> Result<()> {
        let number = self.interface(source, target)?;
        let boot_ns = *self.boot_ns.get_or_insert_with(|| {
            // The first event has waited for others.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(WAIT);
            (now.as_nanos() as u64).saturating_sub(at_ns)
        });
        let at = boot_ns.saturating_add(at_ns);
        let words = [number, (at >> 32) as u32, at as u32, bytes.len() as u32, len_bytes.max(bytes.len() as u32)];
        let mut body: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        body.extend(bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(option(FLAGS, &flags.to_le_bytes()));
        if let Some(comment) = self.comments.remove(&source.driver) {
            body.extend(option(COMMENT, comment.as_bytes()));
        }
        body.extend(option(END, &[]));
        self.block(PACKET, &body)
    }

    /// Adds an iSCSI PDU, with `data` behind its header.
    fn pdu(
        &mut self,
        source: &Source,
        target: u16,
        at_ns: u64,
        flags: u32,
        header: [u8; HEADER],
        data: &[u8],
    ) -> Result<()> {
        let tag = |code: u16, value: &[u8]| {
            let mut bytes = [code.to_be_bytes(), (value.len() as u16).to_be_bytes()].concat();
            bytes.extend(value);
            bytes
        };
        let mut bytes = tag(TAG_DISSECTOR, b"iscsi\0\0\0");
        bytes.extend(tag(END, &[]));
        bytes.extend(header);
        bytes.extend(data);
        // The data is padded to whole words (RFC 7143, 11.2.3).
        bytes.resize(bytes.len() + data.len().next_multiple_of(4) - data.len(), 0);
        let len_bytes = bytes.len() as u32;
        self.packet(source, Some(target), at_ns, flags, &bytes, len_bytes)
    }

    /// Adds words to the comment for the driver's next packet.
    fn comment(&mut self, source: &Source, words: &str) {
        let comment = self.comments.entry(source.driver.clone()).or_default();
        *comment += &format!("{}{words}", if comment.is_empty() { "" } else { ", " });
    }
}

/// Returns the target and the header of an iSCSI command (RFC 7143, 11.3); `None` for a request
/// that is none.
fn command(request: [u64; 3], number: u64, len_bytes: u32) -> Option<(u16, [u8; HEADER])> {
    let asked = Some(Asked::of_words(request)).filter(|asked| asked.function == FUNCTION_COMMAND)?;
    let mut header = [0; HEADER];
    header[0] = SCSI_COMMAND;
    // The WRITE commands of disks; the data of all others comes in.
    let writes = [0x2a, 0x8a].contains(&asked.cdb[0]);
    header[1] = FINAL
        | if len_bytes == 0 {
            0
        } else if writes {
            WRITES
        } else {
            READS
        };
    // A unit by peripheral or flat addressing (SAM-5, 4.7).
    header[8..10].copy_from_slice(&if asked.lun < 256 { asked.lun } else { 0x4000 | asked.lun }.to_be_bytes());
    header[16..20].copy_from_slice(&(number as u32).to_be_bytes());
    header[20..24].copy_from_slice(&len_bytes.to_be_bytes());
    header[32..].copy_from_slice(&asked.cdb);
    Some((asked.target, header))
}

/// Returns the header of an iSCSI response (RFC 7143, 11.4), and its data: the length of the sense
/// data, and the sense data.
fn response(result: u32, number: u64, sense: &[u8]) -> ([u8; HEADER], Vec<u8>) {
    let mut header = [0; HEADER];
    let failed = result >> 8 != 0;
    // The target failed, or it has sent a status.
    (header[0], header[1], header[2], header[3]) = (SCSI_RESPONSE, FINAL, u8::from(failed), result as u8);
    header[16..20].copy_from_slice(&(number as u32).to_be_bytes());
    if sense.is_empty() {
        return (header, Vec::new());
    }
    let data = [&(sense.len() as u16).to_be_bytes(), sense].concat();
    // Three bytes of length, behind the length of additional headers.
    header[4..8].copy_from_slice(&(data.len() as u32).to_be_bytes());
    (header, data)
}

impl<W: Write> Sink for Pcapng<W> {
    fn add(&mut self, source: &Source, event: &Traced<'static>) -> Result<bool> {
        let at_ns = event.at_ns;
        match &event.what {
            What::Given { content: Content::Frame(frame), len_bytes, .. } => {
                self.packet(source, None, at_ns, OUTBOUND, frame, *len_bytes)?;
            }
            What::Received { frame, len_bytes, .. } => {
                self.packet(source, None, at_ns, INBOUND, frame, *len_bytes)?;
            }
            What::Given { content: Content::Request(request), number, len_bytes, .. } if source.kind == "scsi" => {
                let Some((target, header)) = command(*request, *number, *len_bytes) else { return Ok(false) };
                self.commands.insert((source.driver.clone(), *number), target);
                self.pdu(source, target, at_ns, OUTBOUND, header, &[])?;
            }
            What::Done { result, number, detail, .. } => {
                // A response to a command that was not seen would be wrong.
                let Some(target) = self.commands.remove(&(source.driver.clone(), *number)) else { return Ok(false) };
                let (header, data) = response(*result, *number, detail);
                self.pdu(source, target, at_ns, INBOUND, header, &data)?;
            }
            What::Ended { kind, .. } => {
                self.commands.retain(|(driver, _), _| *driver != source.driver);
                self.comment(source, &format!("the driver was ended before this: {kind}"));
                return Ok(false);
            }
            What::Replaced => {
                self.comment(source, "a successor has taken its place");
                return Ok(false);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn lost(&mut self, source: &Source, _: u64, count: u64) -> Result<()> {
        self.commands.retain(|(driver, _), _| *driver != source.driver);
        self.comment(source, &format!("{count} events are missing before this"));
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }
}
