//! Core files: the registers and the memory of a driver that was ended, in the format in which
//! debuggers open them (*System V ABI*, chapter 4; Linux, `elf_prstatus` for x86-64 and for i386).

use alloc::vec::Vec;
use ringfence_abi::manifest::DomainKind;

/// A core file's contents.
pub struct Core<'a> {
    /// The kind of the driver's domain: a segmented driver has 32-bit code, and a file of that
    /// class.
    pub kind: DomainKind,
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

/// The sizes of a class of ELF files, and its numbers.
struct Class {
    /// The byte of the class, and the number of the machine.
    class: u8,
    machine: u16,
    header_bytes: usize,
    segment_bytes: usize,
    /// The offsets of the process's number and of the registers in `elf_prstatus`, and its length.
    process: usize,
    registers: usize,
    status_bytes: usize,
}

const X86_64: Class = Class {
    class: 2,
    machine: 62,
    header_bytes: 64,
    segment_bytes: 56,
    process: 32,
    registers: 112,
    status_bytes: 336,
};
const I386: Class =
    Class { class: 1, machine: 3, header_bytes: 52, segment_bytes: 32, process: 24, registers: 72, status_bytes: 144 };

const NT_PRSTATUS: u32 = 1;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const READ: u32 = 4;
const WRITE: u32 = 2;

/// Writes numbers one after the other.
struct Out(Vec<u8>, DomainKind);

impl Out {
    fn half(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    fn word(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    /// Writes an address or a register.
    fn long(&mut self, value: u64) {
        match self.1 {
            DomainKind::Paged => self.0.extend(value.to_le_bytes()),
            DomainKind::Segmented => self.word(value as u32),
        }
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
        if self.1 == DomainKind::Paged {
            self.word(flags);
        }
        self.long(offset as u64);
        self.long(address);
        self.long(0);
        self.long(len as u64);
        self.long(len as u64);
        if self.1 == DomainKind::Segmented {
            self.word(flags);
        }
        self.long(1);
    }
}

impl Core<'_> {
    fn class(&self) -> Class {
        match self.kind {
            DomainKind::Paged => X86_64,
            DomainKind::Segmented => I386,
        }
    }

    /// Returns the file; `None` if there is no memory for it.
    pub fn file(&self) -> Option<Vec<u8>> {
        let Class { class, machine, header_bytes, segment_bytes, .. } = self.class();
        let mut notes = Out(Vec::new(), self.kind);
        notes.note("CORE", NT_PRSTATUS, &self.status());
        notes.note(NOTE, 1, self.note.as_bytes());
        let mut out = Out(Vec::new(), self.kind);
        // The class, little-endian, version 1; a core file (4).
        out.0.extend([0x7f, b'E', b'L', b'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.half(4);
        out.half(machine);
        out.word(1);
        out.long(0);
        out.long(header_bytes as u64);
        out.long(0);
        out.word(0);
        out.half(header_bytes as u16);
        out.half(segment_bytes as u16);
        out.half(1 + self.memory.len() as u16);
        (0..3).for_each(|_| out.half(0));
        let mut offset = header_bytes + segment_bytes * (1 + self.memory.len());
        out.segment(PT_NOTE, 0, offset, 0, notes.0.len());
        offset += notes.0.len();
        for (address, bytes) in self.memory {
            out.segment(PT_LOAD, READ | WRITE, offset, *address, bytes.len());
            offset += bytes.len();
        }
        out.0.try_reserve_exact(offset - out.0.len()).ok()?;
        out.0.extend(notes.0);
        self.memory.iter().for_each(|(_, bytes)| out.0.extend(bytes));
        Some(out.0)
    }

    /// Returns `elf_prstatus`.
    fn status(&self) -> Vec<u8> {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = self.general;
        let Class { process, registers, status_bytes, .. } = self.class();
        let mut out = Out(Vec::new(), self.kind);
        [u32::from(self.signal), 0, 0, u32::from(self.signal)].into_iter().for_each(|word| out.word(word));
        out.0.resize(process, 0);
        // The process, by which gdb names the thread.
        out.word(1);
        out.0.resize(registers, 0);
        // No system call was under way.
        let orig_rax = u64::MAX;
        let (cs, ss) = (0x0d, 0x01);
        // The data segments of 32-bit code are not kept.
        let narrow = [rbx, rcx, rdx, rsi, rdi, rbp, rax, 0, 0, 0, 0, orig_rax, self.rip, cs, self.rflags, rsp, ss];
        let wide = [
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
        let in_order = if self.kind == DomainKind::Paged { &wide[..] } else { &narrow };
        in_order.iter().for_each(|register| out.long(*register));
        out.0.resize(status_bytes, 0);
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
        let note = "e1000#3 0x8000430000";
        let kind = DomainKind::Paged;
        let core = Core { kind, general, rip: 0x1234, rflags: 0x202, signal: 11, note, memory: &memory };
        let file = core.file().unwrap();
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

    #[test]
    fn the_same_holds_for_one_of_32_bit_code() {
        let mut general = [0; 16];
        (general[0], general[4], general[7]) = (u64::MAX, 0x17f_f000, 7);
        let memory = [(0x43_0000, [1, 2, 3].to_vec())];
        let kind = DomainKind::Segmented;
        let file = Core { kind, general, rip: 0x43_1234, rflags: 0x202, signal: 4, note: "a#1 0x0", memory: &memory }
            .file()
            .unwrap();
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_le_bytes(file[at..at + 2].try_into().unwrap());
        assert_eq!((file[4], half(18), word(28), half(40), half(42), half(44)), (1, 3, 52, 52, 32, 2));
        let segment = |number: usize| 52 + number * 32;
        let offset = word(segment(1) + 4) as usize;
        assert_eq!((word(segment(1) + 8), word(segment(1) + 16), word(segment(1) + 24)), (0x43_0000, 3, READ | WRITE));
        assert_eq!(file[offset..], [1, 2, 3]);
        let status = word(segment(0) + 4) as usize + 12 + 8;
        assert_eq!((word(status), word(status + 24)), (4, 1), "the signal, and the process");
        let register = |number: usize| word(status + 72 + 4 * number);
        assert_eq!((register(4), register(6), register(12), register(15)), (7, u32::MAX, 0x43_1234, 0x17f_f000));
        assert_eq!(&file[status + 144 + 12..status + 144 + 22], b"RINGFENCE\0");
    }
}
