//! Reads the interrupts and exceptions that QEMU logs (`-d int`).

use std::io::BufRead;

/// An interrupt or exception that QEMU delivered, and the state of the code that it interrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are registers")]
pub struct Interrupt {
    pub vector: u64,
    pub error_code: u64,
    pub ring: u64,
    pub cs: u64,
    pub rip: u64,
    pub ss: u64,
    pub rsp: u64,
    pub rflags: u64,
}

/// Start of the kernel's image, and of the entry area, which every domain maps.
const KERNEL: u64 = 0xffff_ffff_8000_0000;
const ENTRY_AREA: u64 = 0xffff_ffff_c000_0000;
/// First address of any domain.
const DOMAINS: u64 = 1 << 39;
const KERNEL_CODE: u64 = 8;

impl Interrupt {
    /// Returns whether a driver was interrupted: in ring 1 or 2, in VM86 mode, to which QEMU's IRET
    /// can lead, or in the entry text.
    pub fn is_of_driver(&self) -> bool {
        const VM: u64 = 1 << 17;
        self.ring > 0 && (self.ring < 3 && self.cs != 0 || self.rflags & VM != 0)
            || self.cs == KERNEL_CODE && self.rip >= ENTRY_AREA && self.vector < 32
    }

    /// Returns whether the kernel was interrupted. Firmware and loader lie elsewhere and do not
    /// count.
    pub fn is_of_kernel(&self) -> bool {
        self.ring == 0 && self.cs == KERNEL_CODE && (self.rip >= KERNEL || self.rip >= DOMAINS)
    }
}

/// Returns all interrupts in `log`.
pub fn interrupts(log: impl BufRead) -> impl Iterator<Item = Interrupt> {
    let mut lines = log.split(b'\n').map_while(Result::ok);
    let mut begun: Option<Interrupt> = None;
    std::iter::from_fn(move || {
        for bytes in lines.by_ref() {
            let line = String::from_utf8_lossy(&bytes);
            if let Some(interrupt) = head(&line) {
                begun = Some(interrupt);
            } else if let Some(rflags) = line.split_once(" RFL=").and_then(|(_, rest)| hex(rest.get(..8)?)) {
                if let Some(interrupt) = begun.take() {
                    return Some(Interrupt { rflags, ..interrupt });
                }
            } else if let Some((_, rest)) = line.split_once(" EFL=")
                && let Some(interrupt) = begun.take()
            {
                // State of 16 or 32 bits: the firmware, or a mode that IRET led to.
                return Some(Interrupt { rflags: hex(rest.get(..8).unwrap_or("")).unwrap_or(0), ..interrupt });
            }
        }
        None
    })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// Parses a line like `12: v=0e e=0006 i=0 cpl=1 IP=000d:0000008000402d10 pc=... SP=0001:...
/// CR2=...`.
fn head(line: &str) -> Option<Interrupt> {
    let (number, rest) = line.trim_start().split_once(": v=")?;
    number.parse::<u64>().ok()?;
    // QEMU logs INT n before it looks at the gate, and logs the outcome separately. If the gate let
    // one through, the kernel's report of it would have no entry to be compared with.
    if rest.contains(" i=1 ") {
        return None;
    }
    let vector = hex(rest.get(..2)?)?;
    let word = |name: &str| rest.split_whitespace().find_map(|word| word.strip_prefix(name));
    let (cs, rip) = word("IP=")?.split_once(':')?;
    let (ss, rsp) = word("SP=")?.split_once(':')?;
    Some(Interrupt {
        vector,
        error_code: hex(word("e=")?)?,
        ring: word("cpl=")?.parse().ok()?,
        cs: hex(cs)?,
        rip: hex(rip)?,
        ss: hex(ss)?,
        rsp: hex(rsp)?,
        rflags: 0,
    })
}

/// An exception of a driver.
#[cfg(test)]
pub const EXAMPLE: Interrupt = Interrupt {
    vector: 13,
    error_code: 8,
    ring: 1,
    cs: 0xd,
    rip: 0x8000402d10,
    ss: 1,
    rsp: 0x80017fffa0,
    rflags: 0x10246,
};

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
   140: v=03 e=0000 i=1 cpl=1 IP=000d:0000008000402d0f pc=0000008000402d0f SP=0001:00000080017fffa0 env->regs[R_EAX]=0000000000000001
RIP=0000008000402d0f RFL=00010246 [---Z-P-] CPL=1 II=0 A20=1 SMM=0 HLT=0
check_exception old: 0xffffffff new 0xd
   141: v=0d e=0008 i=0 cpl=1 IP=000d:0000008000402d10 pc=0000008000402d10 SP=0001:00000080017fffa0 env->regs[R_EAX]=0000000000000001
RAX=0000000000000001 RBX=0000008000407080 RCX=0000000000000002 RDX=0000000000000060
RIP=0000008000402d10 RFL=00010246 [---Z-P-] CPL=1 II=0 A20=1 SMM=0 HLT=0
Servicing hardware INT=0x20
   142: v=20 e=0000 i=0 cpl=0 IP=0008:ffffffff80212345 pc=ffffffff80212345 SP=0000:ffffff0000012345 env->regs[R_EAX]=0000000000000000
RIP=ffffffff80212345 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
";

    #[test]
    fn the_log_is_read_as_qemu_writes_it() {
        let found: Vec<Interrupt> = interrupts(LOG.as_bytes()).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], EXAMPLE);
        assert!(found[0].is_of_driver() && !found[0].is_of_kernel());
        assert!(!found[1].is_of_driver() && found[1].is_of_kernel());
    }
}
