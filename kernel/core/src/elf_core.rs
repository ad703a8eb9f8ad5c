//! Core files: the registers and the memory of a driver that was ended, in the format in which
//! debuggers open them (*System V ABI*, chapter 4; Linux, `elf_prstatus` for x86-64).

use alloc::vec::Vec;

/// A core file's contents.
pub struct Core<'a> {
    /// The general registers, in the order of their numbers, RAX first.
    pub general: [u64; 16],
    /// RIP and RFLAGS.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// The signal that a program would have got.
    pub signal: u8,
    /// A text for the runner, in a note of its own ([`NOTE`]).
    pub note: &'a str,
    /// The memory: addresses in ascending order, and bytes.
    pub memory: &'a [(u64, Vec<u8>)],
}

/// The name of the note with [`Core::note`]; its type is 1.
pub const NOTE: &str = "RINGFENCE";

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
/// The length of `elf_prstatus`, and the offset of the registers in it.
const STATUS_BYTES: usize = 336;
const REGISTERS: usize = 112;
const NT_PRSTATUS: u32 = 1;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const READ: u32 = 4;
const WRITE: u32 = 2;

/// Writes numbers one after the other.
#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn half(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    fn word(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn long(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn note(&mut self, name: &str, kind: u32, content: &[u8]) {
        self.word(name.len() as u32 + 1);
        self.word(content.len() as u32);
        self.word(kind);
        for part in [name.as_bytes(), &[0]] {
            self.0.extend(part);
        }
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn segment(&mut self, kind: u32, flags: u32, offset: usize, address: u64, len: usize) {
        self.word(kind);
        self.word(flags);
        self.long(offset as u64);
        self.long(address);
        self.long(0);
        self.long(len as u64);
        self.long(len as u64);
        self.long(1);
    }
}

impl Core<'_> {
    /// Returns the file.
    pub fn file(&self) -> Vec<u8> {
        let mut notes = Out::default();
        notes.note("CORE", NT_PRSTATUS, &self.status());
        notes.note(NOTE, 1, self.note.as_bytes());
        let mut out = Out::default();
        // 64 bits, little-endian, version 1; a core file (4) for x86-64 (62).
        out.0.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.half(4);
        out.half(62);
        out.word(1);
        out.long(0);
        out.long(HEADER_BYTES as u64);
        out.long(0);
        out.word(0);
        out.half(HEADER_BYTES as u16);
        out.half(SEGMENT_BYTES as u16);
        out.half(1 + self.memory.len() as u16);
        (0..3).for_each(|_| out.half(0));
        let mut offset = HEADER_BYTES + SEGMENT_BYTES * (1 + self.memory.len());
        out.segment(PT_NOTE, 0, offset, 0, notes.0.len());
        offset += notes.0.len();
        for (address, bytes) in self.memory {
            out.segment(PT_LOAD, READ | WRITE, offset, *address, bytes.len());
            offset += bytes.len();
        }
        out.0.reserve_exact(offset - out.0.len());
        out.0.extend(notes.0);
        self.memory.iter().for_each(|(_, bytes)| out.0.extend(bytes));
        out.0
    }

    /// Returns `elf_prstatus`.
    fn status(&self) -> Vec<u8> {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = self.general;
        let mut out = Out::default();
        [u32::from(self.signal), 0, 0, u32::from(self.signal)].into_iter().for_each(|word| out.word(word));
        out.0.resize(32, 0);
        // The process, by which gdb names the thread.
        out.word(1);
        out.0.resize(REGISTERS, 0);
        // No system call was under way.
        let orig_rax = u64::MAX;
        let (cs, ss) = (0x0d, 0x01);
        let in_order = [
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            orig_rax,
            self.rip,
            cs,
            self.rflags,
            rsp,
            ss,
        ];
        in_order.into_iter().for_each(|register| out.long(register));
        out.0.resize(STATUS_BYTES, 0);
        out.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_a_core_file_is_where_its_headers_say() {
        let mut general = [0; 16];
        (general[4], general[15]) = (0x1000_17ff, 15);
        let memory = [(0x8000_0000, [1, 2, 3].to_vec()), (0x9000_0000, [4].to_vec())];
        let core =
            Core { general, rip: 0x1234, rflags: 0x202, signal: 11, note: "e1000#3 0x8000430000", memory: &memory };
        let file = core.file();
        let long = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
        let half = |at: usize| u16::from_le_bytes(file[at..at + 2].try_into().unwrap());
        assert_eq!((half(16), half(18), half(56), long(32)), (4, 62, 3, 64));
        let segment = |number: usize| 64 + number * 56;
        for (number, (address, bytes)) in memory.iter().enumerate() {
            let at = segment(number + 1);
            let offset = long(at + 8) as usize;
            assert_eq!((long(at + 16), long(at + 32)), (*address, bytes.len() as u64));
            assert_eq!(file[offset..offset + bytes.len()], bytes[..]);
        }
        assert_eq!(long(segment(2) + 8) + 1, file.len() as u64);
        let notes = long(segment(0) + 8) as usize;
        // Name and content are padded to words: "CORE" takes eight bytes.
        let status = notes + 12 + 8;
        assert_eq!((half(status + 12), long(status + 112)), (11, 15), "R15");
        assert_eq!((long(status + 112 + 16 * 8), long(status + 112 + 19 * 8)), (0x1234, 0x1000_17ff), "RIP, RSP");
        let own = status + 336;
        assert_eq!(&file[own + 12..own + 22], b"RINGFENCE\0");
        assert_eq!(&file[own + 24..own + 44], b"e1000#3 0x8000430000");
    }
}
