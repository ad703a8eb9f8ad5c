//! What a driver in ring 1 may not do, and exactly what is said when it does.
//!
//! Each attack runs in a domain of its own, all in one boot; after each, a second driver must still answer.

use ringfence::machine::End;
use ringfence_tests::{assert_says, bare, boot};

/// Attack, and the beginning of the fault it must end with.
const FAULTS: &[(&str, &str)] = &[
    ("read 0", "#PF reading 0x0 (null), in command, at rf_rogue::attacks::read+"),
    ("write 8", "#PF writing 0x8 (null), in command, at rf_rogue::attacks::write+"),
    ("execute 0", "#PF executing 0x0 (null), in command, at 0x0 (null)"),
    ("read 0x123456789000", "#PF reading 0x123456789000 (unmapped)"),
    ("read 0xffffffff80000000", "#PF reading 0xffffffff80000000 (kernel read-only data)"),
    ("write 0xffffffff80000000", "#PF writing 0xffffffff80000000 (kernel read-only data)"),
    ("execute 0xffffffff80000000", "#PF executing 0xffffffff80000000 (kernel read-only data)"),
    ("read 0xffff800000000000", "#PF reading 0xffff800000000000 (kernel memory)"),
    ("write 0xffffffffc0000000", "#PF writing 0xffffffffc0000000 (entry text)"),
    ("write 0xffffffffc0002008", "#PF writing 0xffffffffc0002008 (descriptor tables)"),
    ("write 0xffffffffc0003000", "#PF writing 0xffffffffc0003000 (descriptor tables)"),
    ("write 0xffffffffc0005000", "#PF writing 0xffffffffc0005000 (I/O bitmap)"),
    ("write 0xffffffffc0007030", "#PF writing 0xffffffffc0007030 (capability table (LDT))"),
    ("execute 0xffffffffc0008000", "#PF executing 0xffffffffc0008000 (entry stacks)"),
    ("read 0x8000000000000000", "#GP general protection, in command, at rf_rogue::attacks::read+"),
    ("write 0x8000400000", "#PF writing 0x8000400000 (another domain's slot)"),
    ("write-text", "(own text), in command, at rf_rogue::attacks::write+"),
    ("execute-data", "(own data), in command, at "),
    ("write-relro", "(own read-only data), in command, at rf_rogue::attacks::write+"),
    ("recurse", "(guard below own stack), in command, at rf_rogue::attacks::deeper+"),
    ("big-frame", "(guard below own stack), in command, at rf_rogue::attacks::big_frame+"),
    ("cli", "#GP general protection, in command, at rf_rogue::attacks::cli+"),
    ("hlt", "#GP general protection, in command, at rf_rogue::attacks::hlt+"),
    ("read-cr3", "#GP general protection, in command, at rf_rogue::attacks::read_cr3+"),
    ("write-cr3 0x1000", "#GP general protection, in command, at rf_rogue::attacks::write_cr3+"),
    ("lidt", "#GP general protection, in command, at rf_rogue::attacks::lidt+"),
    ("rdmsr 0xc0000080", "#GP general protection, in command, at rf_rogue::attacks::rdmsr+"),
    ("in 0x60", "#GP general protection, in command, at rf_rogue::attacks::port_in+"),
    ("out 0xf4", "#GP general protection, in command, at rf_rogue::attacks::port_out+"),
    ("out 0xffff", "#GP general protection, in command, at rf_rogue::attacks::port_out+"),
    ("int", "#GP general protection on int 0x80, in command, at rf_rogue::attacks::int_0x80+"),
    ("int3", "#GP general protection on int 0x3, in command, at rf_rogue::attacks::int3+"),
    ("syscall", "#UD invalid opcode, in command, at rf_rogue::attacks::syscall+"),
    ("sysenter", "#UD invalid opcode, in command, at rf_rogue::attacks::sysenter+"),
    ("ud2", "#UD invalid opcode, in command, at rf_rogue::attacks::ud2+"),
    ("sse", "#UD invalid opcode, in command, at rf_rogue::attacks::sse+"),
    ("divide 0", "#DE divide error, in command, at rf_rogue::attacks::divide+"),
    ("far-call 0x125", "#NP segment not present on the gate of rf_scsi_register, in command"),
    // The upper half of a gate, and code that is no gate.
    ("far-call 0x12d", "#GP general protection on the gate of rf_scsi_register, in command"),
    ("far-call 0xffff", "#GP general protection on entry 8191 of the LDT, in command"),
    ("far-call 8", "#GP general protection on entry 1 of the GDT, in command"),
    ("far-call 0x18", "#GP general protection on entry 3 of the GDT, in command"),
    ("far-jump-ring0", "#GP general protection on entry 1 of the GDT, in command"),
    ("iret-ring0", "#GP general protection on entry 1 of the GDT, in command"),
    ("trap-flag-gate", "#DB debug exception, in command, at "),
    ("log-pointer 0", "bad pointer to rf_log: 0x10 bytes at 0x0 (null), in command"),
    ("log-pointer 0xffffffff80000000", "bad pointer to rf_log: 0x10 bytes at 0xffffffff80000000"),
    ("log-pointer 0xfffffffffffffff8", "bad pointer to rf_log: 0x10 bytes at 0xfffffffffffffff8"),
    ("log-pointer 0x8000400000", "bad pointer to rf_log: 0x10 bytes at 0x8000400000 (another domain's slot)"),
    ("panic", "gave up, in command"),
    ("loop", "took longer than 100 ms, in command, at rf_rogue::attacks::endless+"),
    ("loop-df", "took longer than 100 ms, in command, at rf_rogue::attacks::endless_df+"),
    ("gate-flood", "took longer than 100 ms, in command, at "),
    ("bad-stack 0xffffffffc0008800", "took longer than 100 ms, in command, at "),
    ("nonsense-that-is-refused", ""),
];

#[test]
fn every_attack_ends_its_driver_with_the_exact_fault_and_nobody_else() {
    let mut script = String::from("insmod template; insmod null");
    for (attack, _) in FAULTS {
        script += &format!("; insmod rogue; tell rogue {attack}; faults rogue; rmmod rogue; tell template still there");
    }
    let run = boot(&bare(&script));
    // The attacks failed, which is their purpose; the machine did not.
    assert_eq!(run.end, End::CommandFailed, "{}", run.text());
    let text = run.text();
    let mut wrong = Vec::new();
    for (attack, fault) in FAULTS {
        let start = text.find(&format!("> tell rogue {attack}\n")).unwrap_or_else(|| panic!("{attack} was not run"));
        let report = &text[start..];
        let report = &report[..report.find("> tell template").expect("the script goes on")];
        if fault.is_empty() {
            assert_says(report, "refused: not found");
        } else {
            // The first line says what, the second where.
            let mut said = report.lines().skip_while(|line| !line.contains("fault: rogue: "));
            let said = format!("{}, {}", said.next().unwrap_or(report), said.next().unwrap_or("").trim());
            if !said.contains(fault) {
                wrong.push(format!("{attack}\n    should say {fault}\n    but says   {said}"));
            }
        }
        let after = &text[start + report.len()..];
        assert_says(after.lines().take(4).collect::<Vec<_>>().join("\n").as_str(), "template: 11 (0xb)");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_driver_may_do_it_can() {
    let script = "insmod rogue; tell rogue bad-stack-gate 0x10; tell rogue bad-stack-gate 0xffffffff80000000; \
                  tell rogue flags; tell rogue leaks; tell rogue heap; tell rogue log-length 16; tell rogue log-length 513; \
                  tell rogue list";
    let text = ringfence_tests::boot_well(&bare(script));
    // All of its budget of 256 KiB, less what it had already.
    assert_says(&text, "rogue: 245760 (0x3c000)");
    let answer = |verb: &str| text.lines().skip_while(|line| !line.ends_with(verb)).nth(1).unwrap().to_string();
    assert_eq!(answer("tell rogue leaks"), "rogue: 0 (0x0)");
    // IF set and IOPL 0, whatever it had asked for.
    let flags = text.lines().skip_while(|line| !line.contains("tell rogue flags")).nth(1).expect("an answer");
    let flags = u64::from_str_radix(flags.split("0x").nth(1).unwrap().trim_end_matches(')'), 16).unwrap();
    assert_eq!(flags & 0x3200, 0x200, "flags are {flags:#x}");
}

#[test]
fn the_same_attacks_in_ring_0_are_the_kernels_end() {
    let run = boot(&bare("insmod rogue --ring 0; tell rogue read 0"));
    assert_eq!(run.end, End::Panic);
    assert_says(&run.text(), "in a driver that runs trusted in ring 0: rogue");
}
