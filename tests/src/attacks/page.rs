//! The document of the attacks, `docs/attacks.md`.

use super::rogue::{BOCHS, HARMLESS, SINCE_9_1};
use super::{Attack, Expected, fence, lies, rogue, segment};
use ringfence_abi::manifest::DomainKind;
use ringfence_abi::service::Refusal;

/// Returns the document, made from the tables.
pub fn page() -> String {
    let mut page = String::from(HEAD);
    let mut section = |test: &str, attacks: &[Attack]| {
        page += &format!("\n## `{test}`\n\n| attack | tries | stopped by | report |\n|---|---|---|---|\n");
        for attack in attacks {
            let (tries, stops) = explain(&attack.tell);
            let report = match &attack.expected {
                Expected::Fault(fault) => fault.clone(),
                Expected::Lines(lines) => lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(", then "),
                // The lying drivers answer with the refusal that they got, as a positive number.
                Expected::Answer(Some(answer)) => match Refusal::from_result(-(*answer as i64)) {
                    Some(refusal) if !attack.tell.starts_with("dma-") || attack.tell == "dma-all" => {
                        format!("refused: {refusal}")
                    }
                    _ => format!("answers {answer}"),
                },
                Expected::Answer(None) => "answers".to_string(),
            };
            let under = attack.under;
            page += &format!("| `{under}{}` | {tries} | {stops} | {report} |\n", attack.tell);
        }
    };
    section("sandbox::nothing_but_its_own_memory_is_there", &rogue::memory());
    section("sandbox::every_attack_ends_its_driver_with_the_exact_fault", &rogue::others());
    section("sandbox::every_instruction_that_ring_1_does_not_have_faults", &rogue::instructions());
    section("sandbox::floods_take_no_more_than_their_share", &rogue::floods());
    section("lies::each_lie_about_frames_ends_its_driver", &lies::nic_faults());
    section(
        "lies::nothing_but_what_it_was_given",
        &[lies::reaches(DomainKind::Paged), lies::ports(), lies::watched()].concat(),
    );
    section("debug::the_debugger_is_no_help_to_a_hostile_driver", &rogue::under_debugger());
    section("lies::a_sleep_has_an_end", &lies::sleeps());
    section("gates::interrupts_that_never_end_stop_nobody", &[lies::endless_poll()]);
    section(
        "lies::each_lie_about_commands_is_an_error_or_a_fault",
        &[lies::scsi_answers(), lies::scsi_faults()].concat(),
    );
    section("lies::a_device_at_fixed_ports_has_those_and_nothing_else", &lies::block());
    section("lies::what_is_not_its_own_is_refused", &lies::refused());
    section(
        "sandbox::no_load_of_ss_does_harm_under_bochs",
        &[rogue::loads_of_ss(), rogue::locked_bit_tests(), rogue::loads_of_no_segment()].concat(),
    );
    page += FENCE;
    for attack in fence::all() {
        let report = match &attack.expected {
            Expected::Fault(fault) => fault.clone(),
            Expected::Answer(Some(answer)) => format!("answers {answer:#x}"),
            other => panic!("{other:?} is not expected of the fence"),
        };
        let beside = if attack.beside.is_empty() { String::new() } else { format!(", beside {}", attack.beside) };
        let tries = fence::explain(&attack.tell);
        page += &format!("| `{}`{beside} | {tries} | {report} |\n", attack.tell);
    }
    page += SEGMENT;
    for attack in segment::all() {
        let report = match &attack.expected {
            Expected::Fault(fault) => fault.as_str(),
            _ => "answers",
        };
        page += &format!("| `{}` | {report} |\n", attack.tell);
    }
    for (tell, fault) in segment::WITHOUT_VIRTUAL_8086 {
        page += &format!("| `{tell}`, under Bochs, which does as a CPU does | {fault} |\n");
    }
    for (tell, fault) in segment::WITHOUT_SYSCALL {
        page += &format!("| `{tell}`, on a CPU of Intel's, and under Bochs | {fault} |\n");
    }
    page += "\n## `sandbox::what_does_no_harm_is_allowed`\n\n| what | answer | why |\n|---|---|---|\n";
    for (verb, answer, why) in HARMLESS {
        let answer = answer.map_or("any".into(), |answer| format!("{answer:#x}"));
        page += &format!("| `{verb}` | {answer} | {why} |\n");
    }
    page += "\n## Where QEMU differs since 9.1\n\nThe tables are QEMU 7.2's. Seen on 10.0.2:\n\n| attack | report | why |\n|---|---|---|\n";
    for (verb, fault, why) in SINCE_9_1 {
        page += &format!("| `{verb}` | {} | {why} |\n", fault.unwrap_or("answers"));
    }
    page += "\n## Where Bochs differs: `sandbox::the_same_attacks_fail_under_bochs`\n\n| attack | report under Bochs | why |\n|---|---|---|\n";
    for (verb, fault, why) in BOCHS {
        page += &format!("| `{verb}` | {fault} | {why} |\n");
    }
    page
}

const SEGMENT: &str = "
## `segments::every_attack_of_32_bit_code_ends_its_driver_with_the_exact_fault`

By `drivers/rogue-segment`, whose file is for segmented domains; it is in slot 2, which begins at 0x18000000000. The
instructions are in `rogue-segment.c`, by these names. `segments::an_interrupt_in_virtual_8086_mode_does_not_go_on_in_ring_0`
has the race for virtual-8086 mode, which QEMU enters in long mode and no CPU does.

The drivers of devices are built for segmented domains too, and make their attacks there in a boot of their own
(`segments::attacks_of_other_drivers_end_in_segments_as_well`): the tables above but those of `rogue` and `rogue-ss` and the watched
accesses, and the extreme and random arguments and bad pointers of `gates`. They end in the same way, but that the address of the
I/O bitmap is cut off, and that addresses below 512 GiB are the driver's own, so that the report has them in its slot.

| attack | report |
|---|---|
";

const HEAD: &str = "\
# Attacks

Made from the tables of the tests that prove it (`tests/src/attacks/`). Each attack is something that `drivers/rogue`,
`rogue-nic`, `rogue-scsi`, `rogue-blk` or `rogue-lsi` is told, in a domain of its own, and all of them run in two boots (those of
segmented domains in more): after each, a second driver must still answer. After each sixteenth and the last one, checksums of
the kernel's text, read-only data, descriptor tables and page tables, and the count of free frames, must be what they were, and
nobody may have written to free memory. At the end the real drivers take the devices and work. `@` stands for the address of a
part of the kernel, as `vmmap` shows them; the report has the address.

`rogue`'s attacks also run, from the ISO image, under Bochs, a second and stricter model of the CPU's rings. Where the two
differ the last table has what Bochs says, and why; nothing goes through in either.

Too many for a table, but in the same boot. `make test` tries a fifth of the interrupts, of the selectors and of the random calls,
and `make test-all` all of them:

* `sandbox::no_interrupt_can_be_raised_by_instruction`: `int 0` to `int 255`, each a #GP that names its vector.
* `sandbox::no_selector_leads_anywhere_but_to_its_own_segments`: MOV to DS, ES, FS and GS, far return, interrupt return
  to a code segment and with a stack segment, far jump and far call, with every selector of GDT and LDT and every requested
  privilege level; all but the driver's own segments and the gates that it was granted are a #GP or #NP that names the entry. A far
  call to the driver's own code differs with the version of QEMU, and is tried under Bochs only.
* `gates::every_argument_at_every_extreme`, `gates::random_calls_of_every_service`: all services without pointers with every
  argument at 22 extremes, 10,648 calls each, of which so many are not refused as must be; 20,000 random calls of every service,
  but 4,000 of `rf_log`, which keeps lines. Every call has all registers but RSP set, and those that it keeps must be what they were.
  Ten million of each were made, too: `limits transmit-ms 600000; insmod rogue-nic; mute repeat 2500 tell rogue-nic random N` makes so
  many of service N.
* `gates::random_calls_of_rf_panic`: 10,000 in a boot of their own, as each ends its driver; ten million in the same way.
* `gates::pointers_to_what_is_not_its_own_end_the_driver`: null, kernel, other slots, the ends of the slot and of the stack,
  non-canonical addresses and such that overflow, passed to every service that takes a pointer.
* `gates::interrupts_that_never_end_stop_nobody`: a device that interrupts for ever, with a driver that says so, one that
  says it is quiet, and one that takes long each time; `turns::a_driver_that_wants_all_of_the_cpu_has_half` has how long others get.

These have a boot of their own: they need other modules or another machine, or they leave the machine changed.

* `sandbox::no_interrupt_and_no_selector_under_bochs`: `int n` and all selectors under Bochs.
* `sandbox::what_qemu_would_take_for_ring_0_is_not_loaded`: **QEMU 7.2's TCG takes the ring from SS, and lets ring 1 load a null
  selector there, which makes the driver ring 0.** No CPU does. Under TCG a module whose code has the bytes of such a load, at any
  offset, is refused; `limits ss-loads` lets it in, and shows what QEMU makes of it. `rogue-ss` has these attacks, MOV to SS with
  every selector among them, for Bochs.
* `sandbox::what_qemu_would_take_for_a_segment_register_is_not_loaded`: **QEMU 10.0 lets ring 1 load CS with MOV, and with segment
  registers that do not exist (6 and 7, and 8 to 15 by REX.R) LDTR, TR, GDTR, IDTR and control registers**; a CPU and QEMU 7.2 refuse
  that with #UD, or ignore REX.R. Found by `cargo run -- snippets`. Where the kernel sees at boot that it is so, a module that has
  such bytes is refused; `limits seg-loads` lets it in.
* `sandbox::what_qemu_cannot_translate_is_not_loaded`: **QEMU 7.2 aborts on a bit test of a register with a LOCK prefix** (`f0 0f a3
  c9`), which a CPU refuses with #UD, as QEMU does since 9.1. A module that has such bytes is refused as well; `limits lock-bts` lets it in.
* `sandbox::interrupts_hit_every_instruction_that_they_can`: interrupts on each instruction of a gate that one can hit.
* `reset::*`: devices that do not stop, whose memory is set aside. `policy::*`: modules that faulted and want ring 0.
  `restart::*`: code that was changed before a restart.
* `modules::endless_loops_anywhere_are_cut_short`: an endless loop in every upcall that a driver has.
* `lies::what_a_device_writes_to_free_memory_is_counted`.
* `lies::a_hostile_host_at_the_other_end_hurts_nobody`: `drivers/rogue-peer` makes up a network whose other host sends more of a
  TCP stream than was asked for, or asks again whenever it is answered.

Queues that change while they are read are tried by the fuzz target `queue` (`fuzz/src/lib.rs`): on one CPU no driver can do that,
but a device can. What a driver passes cannot change between check and use: services copy it in first and use the copy, there is one CPU, and the
driver does not run meanwhile. A device could change it by DMA; then the copy is what counts. The return gate without an upcall,
or twice, cannot be tried: a driver runs only in an upcall, and the return gate ends it.

Not shown, and why:

* What PCID is attacked with (INVPCID, stale translations of another PCID): QEMU 7.2's TCG has none, the kernel does not turn it on,
  and INVPCID is an invalid opcode there.
* What CET is attacked with (returns to elsewhere, forged shadow stacks): TCG has none; its instructions are tried, and invalid.
* What protection keys are attacked with (WRPKRU, WRMSR of PKRS): CR4.PKE and CR4.PKS are not set; both instructions are tried.
* Two CPUs at a time in one driver: the kernel starts one.

QEMU shifts the vector in the error code of a
refused `int n` by 4, the manual by 3; the report takes the vector from the instruction.
";

const FENCE: &str = "
## `fence::every_place_and_every_way`

Attacks by devices: `rogue-lsi` has an LSI 53C895A copy, `rogue-nic` an e1000 that sends to itself. `%` stands for the physical address of a
part of the kernel, of the IOMMU, or of a driver. Each is stopped by the IOMMU's tables, where nothing else is mapped for the device, and
the fault that it records ends the driver.

| attack | its device | report |
|---|---|---|
";

/// Returns an attack in words: the attempt, and the protection that stops it.
fn explain(verb: &str) -> (String, &'static str) {
    let (name, argument) = verb.split_once(' ').unwrap_or((verb, ""));
    let (tries, stops) = match name {
        "read" | "write" | "execute" if argument == "0x8000000000000000" => {
            ("goes to ARG", "there is no such address: it is not canonical")
        }
        "read" => ("reads ARG", "the domain's root does not map it"),
        "write" => ("writes ARG", "the domain's root does not map it writable"),
        "execute" if argument == "@entry-text" => ("jumps to ARG", "it may, but the instructions there are privileged"),
        "execute" => ("jumps to ARG", "the domain's root does not map it executable"),
        "int-n" => ("executes `int ARG`", "the gates of interrupts are for ring 0"),
        "write-text" => ("writes its own text", "mapped read-only"),
        "execute-data" => ("executes its own stack", "mapped NX"),
        "execute-static" => ("executes its own data", "mapped NX"),
        "iretd" | "retfd" => ("returns with 32 bits", "what is there is not its own"),
        "icebp" => ("raises a debug exception by ICEBP", "the exception is the driver's"),
        "execute-dma" | "execute-queues" | "execute-registers" => ("executes what it was given", "mapped NX"),
        "over-dma" | "over-registers" | "before-registers" => {
            ("reads over the end of what it was given", "unmapped addresses on both sides")
        }
        "step-registers" => {
            ("reads a register of its device with the trap flag set", "the debug exception is the driver's")
        }
        "call-registers" => (
            "calls a gate through a pointer in registers of its device",
            "the debug exception is attributed by CR3, and the watch's own",
        ),
        "own" => ("reads a port of its own card", "allowed: it is its own"),
        "before" | "behind" | "over-the-end" | "write-behind" | "string-behind" | "keyboard" | "configuration" => {
            ("uses a port beside those of its card", "the I/O permission bitmap")
        }
        "over-ports" | "before-ports" | "behind-ports" | "other-ports" => {
            ("uses ports beside those it was given", "the I/O bitmap")
        }
        "port" | "wide-port" if argument == "0x1f7" && name == "port" => ("uses its own port ARG", "nothing: it may"),
        "port" | "wide-port" => ("uses port ARG beside those it was given", "the I/O bitmap"),
        "open-ports" => ("writes the I/O bitmap that has its ports", "mapped read-only"),
        "sleep" if argument.len() < 5 => ("sleeps for ARG nanoseconds", "nothing: it may"),
        "doze" if argument.len() < 2 => ("sleeps for a millisecond, ARG times", "nothing: it may"),
        "sleep" => ("sleeps for ARG nanoseconds", "`limits sleep-ms`"),
        "doze" => ("sleeps for a millisecond, ARG times", "`limits sleep-ms`"),
        "hog" => ("loops for ever when its device interrupts", "time budget"),
        "write-relro" => ("writes its relocated constants", "read-only after relocation"),
        "recurse" => ("recurses until the stack is gone", "unmapped addresses below the stack"),
        "big-frame" => ("reaches 256 KiB below the stack at once", "unmapped addresses below the stack"),
        "in" | "out" => ("uses port ARG", "the I/O bitmap, and IOPL 0"),
        "int" | "int3" => ("raises an interrupt by instruction", "IDT gates have privilege 0"),
        "far-call" => ("calls far to selector ARG", "the gate is not present, or it is no gate of ring 1"),
        "far-jump-ring0" => ("jumps far to the kernel's code segment", "privilege check"),
        "iret-ring0" => ("returns from an interrupt to the kernel's code segment", "privilege check"),
        "shadowed-gate" => (
            "single-steps into a gate from the shadow of a write to SS",
            "the trap is attributed by CR3, and has a stack of its own",
        ),
        "flag" => ("sets the trap flag", "the debug exception is the driver's"),
        "shadowed-return" => (
            "single-steps into the return gate from the shadow of a write to SS",
            "the trap is attributed by CR3, and has a stack of its own",
        ),
        "bad-stack-fault" => ("faults with RSP at ARG", "exceptions have stacks of their own"),
        "hidden" => ("jumps into the middle of an instruction, where another one is", "privileged all the same"),
        "bad-stack-push" => {
            ("pushes with RSP at ARG", "the domain's root does not map it, or there is no such address")
        }
        "trap-flag-return" => {
            ("single-steps into the return gate", "the trap is attributed by CR3, and has a stack of its own")
        }
        "load-none" => ("a load of CS, or of segment register 6 or 7", "no such register"),
        "lock-bt" => ("a bit test of a register with a LOCK prefix", "no such instruction"),
        "trap-flag-gate" => ("single-steps into a gate", "the trap is attributed by CR3, and has a stack of its own"),
        "log-pointer" | "log-pointer-quiet" => ("has the kernel read ARG", "the pointer is not in its slot"),
        "log" => ("logs ARG lines in one upcall", "64 lines an upcall"),
        "null-ss" => ("loads a null selector into SS and reads CR3", "a load of SS changes no ring"),
        "watched-gate" => (
            "loads SS from watched memory right before a gate call",
            "the debug exception is attributed by CR3, and has a stack of its own",
        ),
        "panic" => ("panics", "`rf_panic`"),
        "loop" => ("loops for ever", "time budget"),
        "loop-df" => ("loops for ever with the direction flag set", "time budget; traps clear the flag"),
        "gate-flood" => ("calls a gate for ever", "time budget"),
        "bad-stack" => ("waits for interrupts with RSP at ARG", "interrupts have stacks of their own"),
        "divide" => ("divides by zero", "exception"),
        "ud2" => ("executes an invalid opcode", "exception"),
        "sse" | "fninit" | "avx" | "fxsave" => ("uses SSE, AVX or x87", "CR0.EM, no CR4.OSFXSR"),
        "syscall" | "sysenter" | "sysretq" | "sysretl" | "sysexit" => {
            ("executes `NAME`", "EFER.SCE = 0, SYSENTER_CS = 0")
        }
        "sgdt" | "sidt" | "sldt" | "str" | "smsw" => ("executes `NAME`", "UMIP"),
        "rdfsbase" | "rdgsbase" | "wrfsbase" | "wrgsbase" => ("executes `NAME`", "CR4.FSGSBASE = 0"),
        "in16" | "in32" | "in32-end" | "out16" | "out32" | "insb" | "insw" | "insd" | "rep-insb" | "outsb"
        | "outsw" | "outsd" | "rep-outsb" => ("executes `NAME`", "the I/O bitmap, and IOPL 0"),
        "wrssq" | "wrussq" | "rstorssp" | "setssbsy" | "clrssbsy" => ("executes `NAME`", "CR4.CET = 0"),
        "xsaves" | "xrstors" => ("executes `NAME`", "CR4.OSXSAVE = 0"),
        "xgetbv" | "rdpkru" | "wrpkru" => ("executes `NAME`", "CR4.OSXSAVE = 0, CR4.PKE = 0"),
        "vmcall" | "vmmcall" | "vmxoff" | "vmlaunch" | "vmrun" | "vmload" | "vmsave" | "stgi" | "clgi" | "skinit"
        | "invlpga" | "vmxon" | "vmptrld" | "vmclear" | "vmread" | "vmwrite" | "vmresume" | "invept" | "invvpid"
        | "monitorx" | "mwaitx" | "getsec" | "encls" | "rsm" => ("executes `NAME`", "not enabled"),
        "monitor" | "mwait" => ("executes `NAME`", "ring 0 only: #UD, not #GP (SDM vol. 2)"),
        "received-ahead" | "empty-ahead" | "transmitted-ahead" | "ahead" | "read-ahead" | "received-backwards"
        | "backwards" => ("claims a position in a queue that cannot be true", "the kernel keeps its own"),
        "no-such-frame" | "no-such-frame-sent" | "huge-frame" | "beyond" => {
            ("puts an entry into a queue that cannot exist", "checked")
        }
        "no-such-queue" | "not-checked" => (
            "says more of a frame than its card can: a queue, or a check, that it never declared",
            "checked against the offer",
        ),
        "frame-not-lent" | "neighbour-frame" | "frame-twice" | "twice" | "another" | "unasked" | "abort-twice"
        | "unasked-abort" => {
            ("gives back what it has not, or not any more", "the kernel keeps its own account of what it has lent")
        }
        "use" if argument == "disk0" => ("uses a disk", "nothing: its manifest says so"),
        "use" | "use-twice" => ("uses what there is not, or a second disk", "checked"),
        "wait" => ("waits for a disk that it has asked for nothing", "refused"),
        "ask-beyond" | "ask-twice" | "ask-ahead" | "wait-beyond" => {
            ("asks a disk for what cannot be asked", "the kernel keeps its own account")
        }
        "offer-twice" => ("offers a second disk", "checked"),
        "open" => ("opens ports that its device does not have", "checked"),
        "be-bus-master" | "read-config" | "ask-for-vectors" | "address-for-dma" => {
            ("asks for what only PCI functions have", "its device is none")
        }
        "unsupported" => ("says that it cannot do that", "an error like others"),
        "lose" => ("leaves a command undone", "`limits command-ms`"),
        "hold" => ("leaves a command undone until it is to abort it", "the command is sent again"),
        "hold-on" => ("leaves a command undone until it is to reset the unit", "the command is sent again"),
        "pretend" => ("says that it has aborted a command, and reset its unit, and has not", "`limits command-ms`"),
        "deaf" => ("leaves a command undone, and what is asked about it", "`limits command-ms`"),
        "status" => ("answers with a status that there is not", "checked"),
        "residual" | "sense" => ("says that more was left over, or more is wrong, than there can be", "checked"),
        "host" | "gone" => ("answers with a code that no driver has", "an error like others"),
        "log-elsewhere" => {
            ("has the kernel read null, and says that somebody else called", "the report goes by what the CPU pushed")
        }
        "log-freed" => ("has the kernel read memory that it gave back", "it is not mapped any more"),
        "log-registers" => ("has the kernel read its device's registers", "they are not memory"),
        "free-frames" | "phys-frames" => ("asks for the queues' memory as if it were its own", "it is the kernel's"),
        "register-twice" | "register-group" | "register-long" | "register-queues" | "register-offload"
        | "register-huge" | "register-length" => ("registers what cannot be", "checked"),
        "move-bar" | "move-line" => ("writes configuration registers that are the kernel's", "checked"),
        "beyond-config" | "odd-config" => ("reads outside configuration space, or across registers", "checked"),
        "no-such-bar" | "huge-bar" => ("maps a BAR that does not exist", "checked"),
        "dma-all" | "dma-forever" => ("takes DMA memory until there is none", "the budget in its manifest"),
        "dma-again" | "dma-freed" => {
            ("gives DMA memory back that its device may know of", "it stays the driver's, and faults meanwhile")
        }
        "move-frames" => ("changes where its frames are said to be", "only the driver reads that"),
        "cli" | "hlt" | "lidt" | "rdmsr" => ("executes `NAME`", "privileged"),
        _ if super::rogue::instructions().iter().any(|attack| attack.tell == verb) => ("executes `NAME`", "privileged"),
        _ => panic!("'{verb}' is not explained"),
    };
    (tries.replace("ARG", argument).replace("NAME", verb), stops)
}
