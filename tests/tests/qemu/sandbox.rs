//! What a driver in ring 1 may not do, and exactly what is said when it does.

use ringfence::machine::{End, Machine, qemu};
use ringfence_tests::attacks::{
    BOCHS, CODE_LOADS, DATA_LOADS, FAULTS, HARMLESS, INSTRUCTIONS, explain, segment_fault, selectors,
};
use ringfence_tests::{HEALTH, TIME_LIMIT, assert_says, assert_unharmed, at_prompt, bare, boot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// What the attacks that `wanted` picks left, out of one boot in which all of them run, each in a rogue of its own, with a
/// second driver beside them.
///
/// After each one the second driver must answer, what of the kernel must never change must not have, nobody may have written
/// to free memory, and as many frames must be free as before.
fn attack(wanted: &[String]) -> Vec<String> {
    static REPORTS: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    let reports = REPORTS.get_or_init(|| {
        let attacks = [faults(), instructions(), interrupts(), segment_loads()].concat();
        let reports = attack_on(&attacks, true, |script| {
            let mut machine = bare(script);
            machine.timeout = Some(5 * TIME_LIMIT);
            let run = boot(&machine);
            // The attacks failed, which is their purpose; the machine did not.
            let last: Vec<String> = run.lines.iter().rev().take(40).rev().cloned().collect();
            assert_eq!(run.end, End::CommandFailed, "{}", last.join("\n"));
            run.lines
        });
        attacks.into_iter().zip(reports).collect()
    });
    wanted.iter().map(|attack| reports[attack].clone()).collect()
}

fn faults() -> Vec<String> {
    verbs(FAULTS)
}

fn instructions() -> Vec<String> {
    verbs(INSTRUCTIONS).into_iter().chain(HARMLESS.iter().map(|verb| verb.to_string())).collect()
}

fn interrupts() -> Vec<String> {
    (0..256).map(|number| format!("int-n {number}")).collect()
}

fn segment_loads() -> Vec<String> {
    let verbs = DATA_LOADS.iter().chain(CODE_LOADS).chain(&["load-ss"]);
    verbs.flat_map(|verb| selectors().map(move |selector| format!("{verb} {selector:#x}"))).collect()
}

/// The same on a machine that `run` boots with a script, and returns the console of.
fn attack_on(attacks: &[String], check_each: bool, run: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    let after_each = if check_each { HEALTH } else { "tell template x" };
    let mut script =
        format!("insmod template; tell template x; insmod rogue; tell rogue write 0; rmmod rogue; {HEALTH}");
    for attack in attacks {
        script += &format!("; insmod rogue; tell rogue {attack}; rmmod rogue; {after_each}");
    }
    let text = run(&format!("{script}; {HEALTH}")).join("\n");
    assert_unharmed(&text, if check_each { attacks.len() + 2 } else { 2 });
    let answers = text.matches("template: 1 (0x1)").count();
    assert_eq!(answers, if check_each { 1 } else { attacks.len() + 1 }, "the second driver did not always answer");
    // In order: what lies between one attack and the next.
    text.split("> tell rogue ").skip(2).map(str::to_string).collect()
}

/// Asserts what each attack said; `None` means that it went through.
#[track_caller]
fn assert_said(attacks: &[String], reports: &[String], expected: impl Fn(&str) -> Option<String>) {
    assert_eq!(attacks.len(), reports.len());
    let mut wrong = Vec::new();
    for (attack, report) in attacks.iter().zip(reports) {
        let report = &report[..report.find("> rmmod").unwrap_or(report.len())];
        // The first line says what, the second where.
        let mut fault = report.lines().skip_while(|line| !line.contains("fault: rogue: "));
        let said = fault.next().map(|first| format!("{first}, {}", fault.next().unwrap_or("").trim()));
        let right = match (&said, expected(attack)) {
            (Some(said), Some(expected)) => said.contains(&expected),
            (None, None) => report.lines().any(|line| line.starts_with("rogue: ")),
            _ => false,
        };
        if !right {
            wrong.push(format!(
                "{attack}\n    should say {:?}\n    but says   {}",
                expected(attack),
                said.unwrap_or(report.into())
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn lookup(table: &[(&str, &str)], attack: &str) -> Option<String> {
    table.iter().find(|(verb, _)| *verb == attack).map(|(_, fault)| fault.to_string())
}

fn verbs(table: &[(&str, &str)]) -> Vec<String> {
    table.iter().map(|(verb, _)| verb.to_string()).collect()
}

#[test]
fn every_attack_ends_its_driver_with_the_exact_fault_and_nobody_else() {
    assert_said(&faults(), &attack(&faults()), |attack| lookup(FAULTS, attack));
}

#[test]
fn every_instruction_that_ring_1_does_not_have_faults() {
    assert_said(&instructions(), &attack(&instructions()), |attack| lookup(INSTRUCTIONS, attack));
}

#[test]
fn no_interrupt_can_be_raised_by_instruction() {
    assert_said(&interrupts(), &attack(&interrupts()), |attack| {
        let number: u8 = attack.rsplit(' ').next()?.parse().ok()?;
        Some(format!("#GP general protection on int {number:#x}, in command, at rf_rogue::instructions::int_n+"))
    });
}

#[test]
fn no_selector_leads_anywhere_but_to_its_own_segments() {
    assert_said(&segment_loads(), &attack(&segment_loads()), |attack| {
        let (verb, selector) = attack.split_once(" 0x")?;
        segment_fault(verb, u16::from_str_radix(selector, 16).ok()?)
    });
}

/// Boots Bochs with a script; returns its console.
fn under_bochs(script: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("attacks.iso");
    let contents = ringfence::ramdisk::Contents { exec: Some(script.to_string()), ..Default::default() };
    ringfence::iso::make(ringfence_tests::system(), &contents, &image).unwrap();
    let lines = ringfence::bochs::run(&image, std::time::Duration::from_secs(1200)).unwrap();
    assert!(lines.last().is_some_and(|line| line.ends_with(" commands failed")), "{}", lines.join("\n"));
    lines
}

/// Bochs' opinion, which is the stricter one where the two differ: see `BOCHS` in the tables.
#[test]
fn the_same_attacks_fail_under_bochs() {
    let attacks = [faults(), instructions()].concat();
    let reports = attack_on(&attacks, true, under_bochs);
    assert_said(&attacks, &reports, |attack| {
        let other = BOCHS.iter().find(|(verb, ..)| *verb == attack).map(|(_, fault, _)| fault.to_string());
        other.or_else(|| lookup(FAULTS, attack)).or_else(|| lookup(INSTRUCTIONS, attack))
    });
}

/// As the two tests above, under Bochs, which takes minutes: `cargo test -- --ignored bochs`.
#[test]
#[ignore = "takes minutes"]
fn no_interrupt_and_no_selector_under_bochs() {
    let attacks = [interrupts(), segment_loads()].concat();
    let reports = attack_on(&attacks, false, under_bochs);
    assert_said(&attacks, &reports, |attack| {
        if let Some((_, fault, _)) = BOCHS.iter().find(|(verb, ..)| *verb == attack) {
            return Some(fault.to_string());
        }
        if let Some(number) = attack.strip_prefix("int-n ") {
            let number: u8 = number.parse().ok()?;
            return Some(format!("#GP general protection on int {number:#x}, in command"));
        }
        let (verb, selector) = attack.split_once(" 0x")?;
        let selector = u16::from_str_radix(selector, 16).ok()?;
        segment_fault(verb, selector)
    });
}

/// `docs/attacks.md` says what the tables say. `RINGFENCE_BLESS=1 cargo test attack_table` writes it anew.
#[test]
fn the_attack_table_is_current() {
    let mut page = String::from(ATTACKS_HEAD);
    for (table, test) in [
        (FAULTS, "every_attack_ends_its_driver_with_the_exact_fault_and_nobody_else"),
        (INSTRUCTIONS, "every_instruction_that_ring_1_does_not_have_faults"),
    ] {
        page += &format!("\n## `sandbox::{test}`\n\n| attack | tries | stopped by | report |\n|---|---|---|---|\n");
        for (verb, fault) in table {
            let (tries, stops) = explain(verb);
            page += &format!("| `{verb}` | {tries} | {stops} | {fault} |\n");
        }
    }
    page += "\n## Where Bochs differs: `sandbox::the_same_attacks_fail_under_bochs`\n\n| attack | report under Bochs | why |\n|---|---|---|\n";
    for (verb, fault, why) in BOCHS {
        page += &format!("| `{verb}` | {fault} | {why} |\n");
    }
    let path = ringfence::project().join("docs/attacks.md");
    if std::env::var_os("RINGFENCE_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap() == page, "docs/attacks.md is not what the tests say");
}

const ATTACKS_HEAD: &str = "\
# Attacks

Made from the tables of the tests that prove it (`tests/src/attacks.rs`). Each attack is a verb of `drivers/rogue`, runs in a
domain of its own, and all of them run in one boot, with those of the first two tests below: after each, a second driver must
still answer; checksums of the kernel's text, read-only data, descriptor tables and page tables, and the count of free frames,
must be what they were, and nobody may have written to free memory.

Both tables also run, from the ISO image, under Bochs, a second and stricter model of the CPU's rings. Where the two differ the
last table has what Bochs says, and why; nothing goes through in either.

Beside the tables below:

* `sandbox::no_interrupt_can_be_raised_by_instruction`: `int 0` to `int 255`, each a #GP that names its vector.
* `sandbox::no_selector_leads_anywhere_but_to_its_own_segments`: MOV to DS, ES, FS, GS and SS, far return, interrupt return and
  far jump, with every selector of GDT and LDT and every requested privilege level; all but the driver's own segments are a #GP
  that names the entry.
* `sandbox::no_interrupt_and_no_selector_under_bochs`: both under Bochs, which takes minutes and is run on demand.
* `sandbox::what_a_driver_may_do_it_can`: gate calls with RSP anywhere, all flags set, from the last byte of a page, and no
  kernel address in any register or on the entry stacks afterwards.
* `sandbox::each_flag_alone_changes_nothing`: POPF with every flag, one at a time, and a gate call with it.
* `gates::every_argument_at_every_extreme`, `gates::random_calls_of_every_service`: all services without pointers with every
  argument at 22 extremes, 10,648 calls each, and thousands of random calls of every service.
* `gates::pointers_to_what_is_not_its_own_end_the_driver`: null, kernel, other slots, the ends of the slot and of the stack,
  non-canonical addresses and such that overflow, passed to every service that takes a pointer.
* `gates::interrupts_that_never_end_stop_nobody`: a device that interrupts for ever, with a driver that says so and one that
  says it is quiet.
* `lies::*`: a network and a SCSI driver's lies about their queues, and requests for what is not their own; after each that
  ends the driver the same is asked as here.
* `restart::*`: devices that do not stop, modules that faulted and want ring 0.
* `modules::endless_loops_anywhere_are_cut_short`: an endless loop in every upcall that a driver has.

What a driver passes cannot change between check and use: services copy it in first and use the copy, there is one CPU, and the
driver does not run meanwhile. A device could change it by DMA; then the copy is what counts. The return gate without an upcall,
or twice, cannot be tried: a driver runs only in an upcall, and the return gate ends it. A data breakpoint needs a debug
register, which ring 1 does not have (`mov-dr0`).

Not shown by QEMU 7.2's emulation: PCID, CET and protection keys for ring 1 are not used. QEMU shifts the vector in the error code of a
refused `int n` by 4, the manual by 3; the report takes the vector from the instruction.
";

#[test]
fn what_a_driver_may_do_it_can() {
    let script = "insmod rogue; tell rogue bad-stack-gate 0x10; tell rogue bad-stack-gate 0xffffffff80000000; \
                  tell rogue gate-at-page-end; tell rogue flags; tell rogue leaks; tell rogue heap; tell rogue log-length 16; tell rogue log-length 513; \
                  tell rogue list";
    let text = ringfence_tests::boot_well(&bare(script));
    // All of its budget of 256 KiB, less what it had already.
    assert_says(&text, "rogue: 245760 (0x3c000)");
    let answer = |verb: &str| text.lines().skip_while(|line| !line.ends_with(verb)).nth(1).unwrap().to_string();
    assert_eq!(answer("tell rogue gate-at-page-end"), "rogue: 0 (0x0)");
    assert_eq!(answer("tell rogue leaks"), "rogue: 0 (0x0)");
    // IF set and IOPL 0, whatever it had asked for.
    let flags = text.lines().skip_while(|line| !line.contains("tell rogue flags")).nth(1).expect("an answer");
    let flags = u64::from_str_radix(flags.split("0x").nth(1).unwrap().trim_end_matches(')'), 16).unwrap();
    assert_eq!(flags & 0x3200, 0x200, "flags are {flags:#x}");
}

/// Each flag that POPF could set, alone, but TF, which has an attack of its own.
#[test]
fn each_flag_alone_changes_nothing() {
    const TF: u64 = 8;
    let bits: Vec<u64> = (0..22).filter(|bit| *bit != TF).collect();
    let script: Vec<String> = bits.iter().map(|bit| format!("tell rogue flag {bit}")).collect();
    let text = ringfence_tests::boot_well(&bare(&format!("insmod rogue; {}; tell rogue flag 0", script.join("; "))));
    let answers: Vec<u64> = text
        .lines()
        .filter_map(|line| line.strip_prefix("rogue: ")?.split("(0x").nth(1))
        .map(|hex| u64::from_str_radix(hex.trim_end_matches(')'), 16).unwrap())
        .collect();
    assert_eq!(answers.len(), bits.len() + 1, "{text}");
    // IF set, and IOPL, NT, VM, VIF and VIP clear behind the gate, whatever was asked for.
    for (bit, flags) in bits.iter().zip(answers) {
        assert_eq!(flags & 0x1a_7200, 0x200, "flag {bit}: {flags:#x}");
    }
}

/// The instructions of gates that an interrupt can hit: a call gate does not turn interrupts off, the gate itself does that
/// next, and its return turns them on behind its last instruction.
const INTERRUPTED: [&str; 4] = ["gate_0+0x0", "gate_0+0x2", "gate_return+0x0", "gate_return+0x2"];

/// Interrupts hit each of these instructions, while the driver's root is still loaded, and nothing comes of it. TCG takes
/// interrupts between translated blocks: here each instruction is one. What is hit when is chance, so that this goes on
/// until all were.
#[test]
fn interrupts_hit_every_instruction_that_they_can() {
    let mut machine = bare("");
    step_singly(&mut machine);
    let mut running = at_prompt(machine);
    for command in ["insmod template", "insmod null", "insmod rogue"] {
        running.type_line(command).unwrap();
    }
    let mut seen = BTreeSet::new();
    while !INTERRUPTED.iter().all(|at| seen.contains(*at)) {
        // Gates, and then upcalls, which end in a gate as well. Nothing of the kernel is left where a driver can read it.
        running.type_line("repeat 20 tell rogue leaks 2000").unwrap();
        for line in std::iter::from_fn(|| Some(running.wait_for("").unwrap())) {
            match line {
                line if line.starts_with("20 times in") => break,
                line if line.starts_with("rogue: ") && line.contains("(0x") => assert_eq!(line, "rogue: 0 (0x0)"),
                _ => {}
            }
        }
        running.type_line("bench upcall").unwrap();
        running.wait_for("upcall   ").unwrap();
        running.type_line("irqs").unwrap();
        running.wait_for("in entry code with a driver's root").unwrap();
        running.type_line("tell template still there").unwrap();
        loop {
            let line = running.wait_for("").unwrap();
            match line.split_once(" at ") {
                Some((_, at)) => seen.insert(at.to_string()),
                None if line.contains("template: 11 (0xb)") => break,
                None => false,
            };
        }
    }
    // Nothing behind these can be, in no gate; what the benchmark puts in a gate's place is not held to that.
    let gates = seen.iter().filter(|at| !at.starts_with("bench_"));
    assert!(
        gates.clone().all(|at| at.starts_with("gate_") && (at.ends_with("+0x0") || at.ends_with("+0x2"))),
        "{seen:?}"
    );
    running.type_line("shutdown").unwrap();
    assert_eq!(running.finish(|_| ()).unwrap().end, End::Done);
}

/// Has QEMU make each instruction a translated block of its own: the option has another name since 8.1.
fn step_singly(machine: &mut Machine) {
    let output = std::process::Command::new(qemu()).arg("--version").output().expect("QEMU is there");
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().nth(3).expect("a version");
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    if (numbers.next(), numbers.next()) >= (Some(8), Some(1)) {
        machine.accel = "tcg,one-insn-per-tb=on".into();
    } else {
        machine.extra.push("-singlestep".into());
    }
}

#[test]
fn the_same_attacks_in_ring_0_are_the_kernels_end() {
    let run = boot(&bare("insmod rogue --ring 0; tell rogue read 0"));
    assert_eq!(run.end, End::Panic);
    assert_says(&run.text(), "in a driver that runs trusted in ring 0: rogue");
}
