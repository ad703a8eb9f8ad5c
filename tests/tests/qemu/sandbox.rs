//! Forbidden acts of a driver in ring 1, and the exact report of each.

use crate::modules::entry_of;
use crate::segments::are_built;
use object::{Object, ObjectSection, ObjectSymbol};
use ringfence::machine::{End, Machine, qemu};
use ringfence_abi::layout::{IMAGE, PAGE_SIZE, slot_base};
use ringfence_core::tcg;
use ringfence_tests::attacks::rogue::{BOCHS, SINCE_9_1};
use ringfence_tests::attacks::{Attack, Expected, assert_all, carry_out, lies, rogue};
use ringfence_tests::{assert_fault, assert_says, at_prompt, bare, boot, file_of, leave, run_well};
use std::collections::BTreeSet;

#[test]
fn nothing_but_its_own_memory_is_there() {
    assert_all(&rogue::memory());
}

#[test]
fn every_attack_ends_its_driver_with_the_exact_fault() {
    assert_all(&rogue::others());
}

#[test]
fn every_instruction_that_ring_1_does_not_have_faults() {
    let attacks: Vec<Attack> = rogue::instructions().into_iter().map(by_this_qemu).collect();
    assert_all(&attacks);
}

#[test]
fn what_does_no_harm_is_allowed() {
    assert_all(&rogue::harmless());
}

#[test]
fn floods_take_no_more_than_their_share() {
    assert_all(&rogue::floods());
}

#[test]
fn no_interrupt_can_be_raised_by_instruction() {
    assert_all(&rogue::interrupts());
}

#[test]
fn no_selector_leads_anywhere_but_to_its_own_segments() {
    assert_all(&rogue::segment_loads());
}

/// Returns an attack with the outcome that is expected on the installed QEMU.
pub fn by_this_qemu(attack: Attack) -> Attack {
    let is_new = qemu::is_at_least(9, 1).expect("QEMU is there");
    match SINCE_9_1.iter().find(|(verb, ..)| is_new && *verb == attack.tell) {
        Some((_, Some(fault), _)) => {
            // A trap is reported at the instruction after its own.
            let instruction =
                if fault.contains("invalid") || fault.contains("general") { attack.instruction } else { "" };
            Attack { expected: Expected::Fault(fault.to_string()), instruction, ..attack }
        }
        Some((_, None, _)) => Attack { expected: Expected::Answer(None), instruction: "", ..attack },
        None => attack,
    }
}

/// Boots Bochs with a script; returns the lines of its console.
pub fn under_bochs(script: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("attacks.iso");
    let contents = ringfence::ramdisk::Contents { exec: Some(script.to_string()), ..Default::default() };
    ringfence::iso::make(ringfence_tests::system(), &contents, &image).unwrap();
    let lines = ringfence::bochs::run(&image, std::time::Duration::from_secs(1200)).unwrap();
    let ends = [" command failed", " commands failed", "ringfence: done"];
    let last = lines.last().expect("it says something");
    assert!(ends.iter().any(|end| last.ends_with(end)), "{}", lines.join("\n"));
    lines
}

/// Returns an attack with the outcome that is expected of Bochs, which is stricter than QEMU.
fn by_bochs(attack: Attack) -> Attack {
    match BOCHS.iter().find(|(verb, ..)| *verb == attack.tell) {
        Some((_, fault, _)) => {
            // A trap is reported at the instruction after its own.
            let instruction = if fault.starts_with("#DB") { "" } else { attack.instruction };
            Attack { expected: Expected::Fault(fault.to_string()), instruction, ..attack }
        }
        None => attack,
    }
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn the_same_attacks_fail_under_bochs() {
    let attacks = [
        rogue::memory(),
        rogue::others(),
        rogue::instructions(),
        rogue::harmless(),
        rogue::floods(),
        rogue::far_calls_to_own_code(),
        lies::scsi_answers(),
        lies::scsi_faults(),
    ];
    let attacks: Vec<Attack> = attacks.concat().into_iter().map(by_bochs).collect();
    carry_out(&attacks, |script| under_bochs(&format!("limits command-ms 300; {script}"))).assert(&attacks);
}

/// Under QEMU 7.2's TCG, a driver that loads a null selector into SS becomes ring 0, and the kernel
/// cannot prevent that. So the kernel loads no module that could do this, and puts none in a
/// driver's place. This test will fail when a QEMU no longer behaves like this.
#[test]
fn what_qemu_would_take_for_ring_0_is_not_loaded() {
    let script = "insmod rogue-ss; insmod null --kind paged; trial null 1000:8ed0 0 1 help | help | help; limits ss-loads 10; limits seg-loads 10; \
                  limits lock-bts 10; insmod rogue-ss; tell rogue-ss null-ss";
    let text = boot(&bare(script));
    assert_says(&text, "refused: it could load SS, which QEMU's TCG takes for ring 0 (limits ss-loads lets it in)");
    assert_says(&text, "at rf_rogue_ss::");
    let [trial] = text.trials()[..] else { panic!("{text}") };
    assert!(trial.kind == "init-failed" && trial.why.starts_with("refused: it could load SS"), "{trial:?}");
    let [cr3] = text.answers("rogue-ss")[..] else { panic!("{text}") };
    assert!(cr3 != 0 && cr3.is_multiple_of(4096), "{text}");
}

/// QEMU 7.2 aborts on this code, which is no triple fault. QEMU since 9.1 raises the exception that
/// a CPU raises.
#[test]
fn what_qemu_cannot_translate_is_not_loaded() {
    let text =
        boot(&bare("limits ss-loads 100; limits seg-loads 100; insmod rogue-ss; limits lock-bts 100; insmod rogue-ss"));
    let refusal = "error: rogue-ss: refused: it could LOCK a bit test of a register, which aborts QEMU 7.2 (limits lock-bts lets it in)";
    assert_says(&text, refusal);
    assert_says(&text, "at rf_rogue_ss::lock_bt+");
    assert!(!text.loaded("rogue-ss").is_empty(), "{text}");
    for attack in rogue::locked_bit_tests() {
        let run = boot(&bare(&format!("{LET_IN}; insmod rogue-ss; tell rogue-ss {}", attack.tell)));
        if qemu::is_at_least(9, 1).expect("QEMU is there") {
            assert_fault(&run, "rogue-ss", "#UD invalid opcode, in command");
        } else {
            assert_eq!((run.end(), run.end().status()), (End::Signal(SIGABRT), 4), "{run}");
        }
    }
}

/// A change must not put a LOCK prefix before an existing bit test, or a register in place of its
/// memory operand.
#[test]
fn no_change_locks_a_bit_test() {
    let (_, entry) = entry_of("template");
    // BT [RCX], ECX with a NOP before it; then the prefix, alone and with others; then a register.
    let script = format!(
        "insmod template; poke template {entry:x}:900fa30990; poke template {entry:x}:f0; poke template {:x}:c9; \
         poke template {entry:x}:90660fa3c9; fails poke template {entry:x}:f0; limits lock-bts 1; poke template {entry:x}:f0; poke template {entry:x}:90",
        entry + 3
    );
    let text = ringfence_tests::boot_badly(&bare(&script), 1);
    assert_eq!(text.matches("refused: it could LOCK a bit test of a register").count(), 2, "{text}");
}

/// The limits that let `rogue-ss` in under TCG.
const LET_IN: &str = "limits ss-loads 100; limits seg-loads 100; limits lock-bts 100";
const SIGABRT: i32 = 6;

/// A CPU, Bochs and QEMU 7.2 have no segment registers 6 and 7. QEMU 10.0 has LDTR and TR there;
/// after a load of them no driver can be entered. It also lets a driver load CS.
#[test]
fn what_qemu_would_take_for_a_segment_register_is_not_loaded() {
    let is_loaded = qemu::is_at_least(9, 1).expect("QEMU is there");
    let text = boot(&bare("limits ss-loads 100; limits lock-bts 100; insmod rogue-ss"));
    if is_loaded {
        let refusal = "error: rogue-ss: refused: it could load what is no segment register, which QEMU 10.0 does";
        assert_says(&text, refusal);
    } else {
        assert!(!text.loaded("rogue-ss").is_empty(), "{text}");
    }
    // Such a load is not written into a driver's code either: MOV to segment registers 6, 1 and, by
    // REX.R, 11.
    let (_, entry) = entry_of("template");
    for code in ["8ef0", "8ec8", "448ed8"] {
        let text = boot(&bare(&format!("insmod template; poke template {entry:x}:{code}")));
        let refusal = "refused: it could load what is no segment register, which QEMU 10.0 does (limits seg-loads lets it in)\n    at rf_upcall+0x0 ";
        assert_eq!(text.contains(refusal), is_loaded, "{code}: {text}");
    }
    let script = format!("{LET_IN}; insmod rogue-ss; tell rogue-ss load-none 6; insmod template --kind paged");
    let text = boot(&bare(&script));
    if is_loaded {
        assert_fault(&text, "template", "#GP general protection on entry 1 of the LDT, in init");
    } else {
        assert_fault(&text, "rogue-ss", "#UD invalid opcode, in command");
        assert!(!text.loaded("template").is_empty(), "{text}");
    }
}

/// A change must not write a load of SS into a driver's code, either at once or byte by byte.
#[test]
fn no_change_loads_ss() {
    let (_, entry) = entry_of("template");
    let next = entry + 1;
    let script = format!(
        "limits seg-loads 1; insmod template; poke template {entry:x}:908ed090; poke template {entry:x}:908e; poke template {next:x}:90; \
         poke template {entry:x}:8e90; poke template {next:x}:d0; poke template {next:x}:90; limits ss-loads 1; poke template {next:x}:d0",
    );
    let text = ringfence_tests::boot_badly(&bare(&script), 2);
    let at = |offset| {
        format!(
            "error: refused: it could load SS, which QEMU's TCG takes for ring 0 (limits ss-loads lets it in)\n    at rf_upcall+0x{offset} "
        )
    };
    assert_eq!((text.matches(&at(1)).count(), text.matches(&at(0)).count()), (1, 1), "{text}");
}

/// The entry code is executable in ring 1 as well, so it must have no holes.
#[test]
fn nothing_in_the_entry_text_is_more_for_qemu_than_it_is() {
    let file = std::fs::read(&ringfence_tests::system().kernel).unwrap();
    let file = object::File::parse(&*file).unwrap();
    let text = file.section_by_name(".entry.text").expect("there is entry text").uncompressed_data().unwrap();
    assert!(!text.is_empty());
    assert_eq!(tcg::holes(&text).next(), None);
}

/// Each page that a crossing uses is looked up anew after a paged driver (kernel.ld).
#[test]
fn what_each_upcall_uses_of_the_data_is_on_one_page() {
    let file = std::fs::read(&ringfence_tests::system().kernel).unwrap();
    let file = object::File::parse(&*file).unwrap();
    let pages = |name: &str| -> BTreeSet<u64> {
        let symbols = file.symbols().filter(|symbol| symbol.name().is_ok_and(|symbol| symbol.contains(name)));
        symbols.map(|symbol| symbol.address() / PAGE_SIZE).collect()
    };
    let page = pages("4arch3cpu3CPU");
    assert_eq!(page.len(), 1);
    let used = [
        "6upcall7CURRENT",
        "4turn8IN_POLLS",
        "5iommu6STATUS",
        "5iommu9MUST_LOOK",
        "13ringfence_net7PENDING",
        "12TSC_PER_TICK",
    ];
    for name in used {
        assert_eq!(pages(name), page, "{name}");
    }
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn no_load_of_ss_does_harm_under_bochs() {
    let attacks = [rogue::loads_of_ss(), rogue::locked_bit_tests(), rogue::loads_of_no_segment()].concat();
    carry_out(&attacks, under_bochs).assert(&attacks);
}

/// Runs every `int n` and every selector under Bochs.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn no_interrupt_and_no_selector_under_bochs() {
    let attacks = [rogue::interrupts(), rogue::segment_loads(), rogue::selectors_in_ss()].concat();
    let attacks: Vec<Attack> = attacks.into_iter().map(by_bochs).collect();
    carry_out(&attacks, under_bochs).assert(&attacks);
}

/// `docs/attacks.md` is made from the tables. `RINGFENCE_BLESS=1 cargo test attack_table` writes
/// it.
#[test]
fn the_attack_table_is_current() {
    let page = ringfence_tests::attacks::page::page();
    let path = ringfence::project().join("docs/attacks.md");
    if std::env::var_os("RINGFENCE_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap() == page, "docs/attacks.md is not what the tests say");
}

/// The instructions of gates that an interrupt can hit, with the driver's root loaded. A call gate
/// leaves interrupts on. The code of a service's gate turns them off next, and the return turns
/// them on after its last instruction. The return gate leaves the root first.
const INTERRUPTED: [&str; 4] = ["gate_0+0x0", "gate_0+0x2", "gate_return+0x0", "gate_return+0x8"];
/// The same for segmented drivers: the last instruction on the way in, and the first one behind the
/// way out.
const INTERRUPTED_IN_SEGMENTS: [&str; 4] =
    ["gate32_0+0x0", "gate32_0+0x2", "into_segment+0x1a", "syscall32_return+0x0"];

/// Interrupts hit each of these instructions, while the driver's root is still loaded, and do no
/// harm. TCG takes interrupts between translated blocks, so here each instruction is a block.
/// Chance decides which instruction is hit, so the test goes on until all were hit.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn interrupts_hit_every_instruction_that_they_can() {
    let mut machine = bare("");
    step_singly(&mut machine);
    let mut running = at_prompt(machine);
    for command in ["insmod template", "insmod null", "insmod rogue"] {
        running.type_line(command).unwrap();
    }
    let mut seen = BTreeSet::new();
    let in_segments = if are_built() { &INTERRUPTED_IN_SEGMENTS[..] } else { &[] };
    while !INTERRUPTED.iter().chain(in_segments).all(|at| seen.contains(*at)) {
        // Calls through gates, and then upcalls, which end in another gate, or by SYSCALL. The
        // kernel must leave no data where a driver can read it.
        running.type_line("repeat 20 tell rogue leaks 2000").unwrap();
        for line in std::iter::from_fn(|| Some(running.wait_for("").unwrap())) {
            match line {
                line if line.starts_with("20 times in") => break,
                line if line.starts_with("rogue: ") && line.contains("(0x") => assert_eq!(line, "rogue: 0 (0x0)"),
                _ => {}
            }
        }
        run_well(&mut running, "bench upcall");
        run_well(&mut running, "bench call/gate");
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
    // No later instruction can be hit, in any gate. The benchmark's replacements of gates do not
    // count.
    let gates = seen.iter().filter(|at| !at.starts_with("bench_"));
    assert!(
        gates.clone().all(|at| INTERRUPTED.contains(&at.as_str())
            || INTERRUPTED_IN_SEGMENTS.contains(&at.as_str())
            || ((at.starts_with("gate_") || at.starts_with("gate32_"))
                && (at.ends_with("+0x0") || at.ends_with("+0x2")))),
        "{seen:?}"
    );
    leave(running);
}

/// Makes QEMU translate each instruction as a block of its own. The option has another name since
/// 8.1.
fn step_singly(machine: &mut Machine) {
    if qemu::is_at_least(8, 1).expect("QEMU is there") {
        machine.accel = "tcg,one-insn-per-tb=on".into();
    } else {
        machine.extra.push("-singlestep".into());
    }
}

/// If the kernel jumped into a ring-1 driver by mistake, it would fault at once. Into a trusted
/// driver it may jump.
#[test]
fn ring_0_executes_nothing_of_a_driver_in_ring_1() {
    let entry = slot_base(0) + IMAGE + entry_of("template").1 as u64;
    let run = boot(&bare(&format!("insmod template; panic {entry:#x}")));
    assert_eq!(run.end(), End::Panic);
    // A fetch (bit 4) from a present page (bit 0).
    assert_says(&run.to_string(), &format!("kernel panic: #PF page fault, error code 0x11, at {entry:#x}"));
    let file = file_of("template");
    assert_says(&run.to_string(), &format!("    the kernel does not execute what is a driver's ({file}+0x"));
    let text = ringfence_tests::boot_well(&bare(&format!("insmod template --ring 0; panic {entry:#x}")));
    assert_says(&text, &format!("what is at {entry:#x} returned"));
    let run = boot(&bare(&format!("insmod template --ring 0; ring template 1; panic {entry:#x}")));
    assert_eq!(run.end(), End::Panic);
}

#[test]
fn the_same_attacks_in_ring_0_are_the_kernels_end() {
    // The next interrupt finds no gate. There may be none before the end of a script.
    let run = boot(&bare("insmod rogue --ring 0; tell rogue lidt; sleep 1000"));
    assert_eq!(run.end(), End::Crash, "{run}");
}
