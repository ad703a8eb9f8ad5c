//! Modules are loaded, unloaded, moved between rings and refused.

use crate::changed::{DMA_BYTES, OFFSET, with_other_manifest};
use object::{Object, ObjectSymbol};
use ringfence::machine::Machine;
use ringfence_abi::manifest::DomainKind;
use ringfence_abi::parameter::Parameter;
use ringfence_tests::{
    Ran, assert_fault, assert_intact, assert_says, bare, boot_badly, boot_well, machine, system, usual_kind,
};
use std::mem::offset_of;

#[test]
fn a_module_runs_in_both_rings_and_moves() {
    let text = boot_well(&bare(
        "insmod template --ring 0; tell template a; ring template 1; tell template bb; ring template 0; \
         tell template ccc; rmmod template",
    ));
    for answer in ["template: 1 (0x1)", "template: 2 (0x2)", "template: 3 (0x3)", "template| good-bye"] {
        assert_says(&text, answer);
    }
}

#[test]
fn a_module_in_c_runs_in_both_rings() {
    let text = boot_well(&bare(
        "insmod hello-c; tell hello-c a; ring hello-c 0; tell hello-c b; rmmod hello-c; insmod hello-c --ring 0",
    ));
    // The driver's state moves with it. A segmented driver is reloaded as paged, and begins anew.
    let (greetings, second) = if usual_kind() == DomainKind::Paged { (2, 2) } else { (3, 1) };
    assert_eq!(text.lines().filter(|line| line.ends_with("hello-c| hello from C")).count(), greetings);
    assert_eq!(text.answers("hello-c"), [1, second], "{text}");
    assert_says(&text, "hello-c| good-bye from C");
}

/// A driver with a bridge would also have control of the devices behind it.
#[test]
fn no_module_gets_a_bridge() {
    const SOURCE: &str = r#"
        #include <ringfence.h>
        RF_MANIFEST = {
            RF_VERSIONS, .kind = RfKind_Other, .name = "bridges", .version = "1",
            .pci_ids = {{0x8086, 0x1237}, {0x8086, 0x7000}, {0x8086, 0x7113}}, .stack_bytes = 16384, .upcall_ms = 100,
        };
        int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
        {
            return (void)operation, (void)a, (void)b, (void)c, 0;
        }
    "#;
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("bridges.c");
    std::fs::write(&source, SOURCE).unwrap();
    let system = system();
    let mut machine = bare("lsmod; fails insmod bridges; lspci -v");
    machine.contents.modules.push(ringfence::build::module_in_c(&source).unwrap().packed);
    let run = Ran::from(machine.run(system, |_| ()).unwrap());
    assert_says(&run.to_string(), "as expected: bridges: no free device that it drives");
    assert!(
        !run.to_string().contains("bridges: loaded") && !run.to_string().contains("driver bridges"),
        "{}",
        run.to_string()
    );
}

/// Compilers call functions of the C library by themselves. A weak symbol that is missing is 0.
#[test]
fn a_module_in_c_needs_no_library() {
    const SOURCE: &str = r#"
        #include <ringfence.h>
        RF_MANIFEST = {
            RF_VERSIONS, .kind = RfKind_Other, .name = "copies",
            .version = "1", .pci_ids = RF_NO_PCI_IDS, .stack_bytes = 16384, .upcall_ms = 100,
        };
        struct big { char bytes[4000]; };
        static struct big one, other;
        __attribute__((weak)) int rf_nobody_has_this(void);
        __attribute__((noinline)) static void copy(struct big *to, const struct big *from) { *to = *from; }
        int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
        {
            (void)a, (void)b;
            if (operation != RF_COMMAND) return 0;
            for (unsigned i = 0; i < sizeof one; i++) one.bytes[i] = (char)i;
            copy(&other, &one);
            int64_t wrong = 0;
            for (unsigned i = 0; i < sizeof one; i++) wrong += other.bytes[i] != (char)i;
            __builtin_memmove(one.bytes + 10, one.bytes, 1000);
            for (unsigned i = 0; i < 1000; i++) wrong += one.bytes[i + 10] != (char)i;
            __builtin_memmove(one.bytes, one.bytes + 10, 1000);
            wrong += __builtin_memcmp(&one, &other, 1000) != 0;
            wrong += __builtin_memcmp("\1", "\377", c + 1 > 1 ? 1 : 1) >= 0;
            __builtin_memset(&one, 7, sizeof one);
            for (unsigned i = 0; i < sizeof one; i++) wrong += one.bytes[i] != 7;
            if (rf_nobody_has_this) wrong += 100000 + rf_nobody_has_this();
            return wrong == 0 ? 4711 : wrong;
        }
    "#;
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("copies.c");
    std::fs::write(&source, SOURCE).unwrap();
    let system = system();
    let module = ringfence::build::module_in_c(&source).unwrap();
    let mut machine = bare("insmod copies; tell copies a; ring copies 0; tell copies a");
    machine.contents.modules.push(module.packed);
    let run = Ran::from(machine.run(system, |_| ()).unwrap());
    assert_eq!(run.console().iter().filter(|line| line.contains("copies: 4711")).count(), 2, "{run}");
}

#[test]
fn a_trusted_driver_that_panics_is_ended_alone() {
    let run = boot_badly(&bare("insmod rogue --ring 0; tell rogue panic; insmod template; tell template a"), 1);
    assert_fault(&run, "rogue", "gave up, in command");
    assert_eq!(run.answers("template"), [1]);
}

#[test]
fn a_thousand_loads_leave_memory_as_it_was() {
    // The module is loaded once before, so that allocations that are made only once do not count.
    let text = boot_well(&bare("insmod null; rmmod null; mem; repeat 1000 insmod null, rmmod null; mem"));
    let (free, used) = (text.free_frames(), text.heap_used());
    assert_eq!(free.len(), 2);
    assert_eq!(free[0], free[1]);
    assert_eq!(used[0], used[1], "{text}");
}

#[test]
fn a_killed_driver_leaves_memory_as_it_was() {
    let attack = "insmod rogue; tell rogue write 0; rmmod rogue";
    let run = boot_badly(&bare(&format!("{attack}; mem; {attack}; {attack}; mem")), 3);
    let free = run.free_frames();
    assert_eq!(free.len(), 2, "{run}");
    assert_eq!(free[0], free[1]);
}

/// The output shows memory, and the granted gates. `restart.rs` has a driver with ports.
#[test]
fn all_that_a_driver_can_reach_is_shown() {
    let text = boot_well(&bare("insmod template; vmmap template"));
    assert_says(&text, "0000008000220000  0000008000221000       4  r-x     own service stubs");
    // 32-bit code cannot name them.
    assert_eq!(text.contains("entry stacks"), usual_kind() == DomainKind::Paged, "{text}");
    let gates: Vec<&str> = text.lines().filter(|line| line.starts_with("gates  ")).collect();
    assert_eq!(gates, ["gates  rf_log rf_panic rf_heap_grow"], "{text}");
}

#[test]
fn all_slots_can_be_taken_and_one_more_is_refused() {
    let run = boot_badly(&bare("repeat 64 insmod null; insmod null; tell null.64 calls 1; lsmod"), 1);
    assert_says(&run.to_string(), "null: all 64 slots are taken");
    assert_says(&run.to_string(), "null.64");
}

#[test]
fn malformed_modules_are_refused_with_the_reason() {
    let good = system().modules.iter().find(|module| module.name == "template").expect("template is built");
    let good = std::fs::read(&good.packed).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut machine =
        bare("insmod text; insmod short; insmod abi; insmod rwx; insmod other; insmod names; insmod template");
    let mut add = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(format!("{name}.rfm"));
        std::fs::write(&path, bytes).unwrap();
        machine.contents.modules.push(path);
    };
    add("text", b"I am not a module");
    add("short", &good[..200]);
    let mut other_abi = good.clone();
    let manifest = find(&good, b"RINGFNCE");
    other_abi[manifest + 8] = 9;
    add("abi", &other_abi);
    let mut rwx = good.clone();
    // The flags of every program header: read, write and execute.
    let (offset, count) = (u64::from_le_bytes(good[32..40].try_into().unwrap()) as usize, good[56] as usize);
    for header in 0..count {
        rwx[offset + header * 56 + 4] = 7;
    }
    add("rwx", &rwx);
    add("other", &good);
    let (mut names, _) = entry_of("e1000");
    let name = find(&names, b"RDBAL\0\0\0");
    names[name] = b'r';
    add("names", &names);
    let text = boot_badly(&machine, 6);
    assert_says(&text, "names: refused: .ringfence.registers does not hold whole names of registers");
    assert_says(&text, "text: refused: not a well-formed ELF file");
    assert_says(&text, "short: refused: not a well-formed ELF file");
    assert_says(&text, "abi: refused: built for ABI version 9, this kernel has 4");
    assert_says(&text, "rwx: refused: segment 0 is writable and executable");
    assert_says(&text, "other: refused: the module in this file is called 'template'");
    assert!(!text.loaded("template").is_empty(), "{text}");
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).expect("it is there")
}

/// Returns the module's file, and the offset of its entry point, which is the same in the file as
/// in the image.
pub fn entry_of(name: &str) -> (Vec<u8>, usize) {
    let module = system().modules.iter().find(|module| module.name == name).expect("it is built");
    let bytes = std::fs::read(&module.packed).unwrap();
    let elf = object::File::parse(&*bytes).unwrap();
    let entry = elf.symbols().find(|symbol| symbol.name() == Ok("rf_upcall")).expect("an entry point").address();
    (bytes.clone(), entry as usize)
}

/// A jump to itself, written over the entry point, is executed by the next upcall of any kind.
#[test]
fn endless_loops_anywhere_are_cut_short() {
    let (mut endless, entry) = entry_of("template");
    endless[entry..entry + 2].copy_from_slice(&[0xeb, 0xfe]);
    let name = find(&endless, b"template\0\0\0\0\0\0\0\0");
    endless[name..][..8].copy_from_slice(b"endless\0");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("endless.rfm");
    std::fs::write(&path, endless).unwrap();
    let e1000 = entry_of("e1000").1;
    // Another driver, which must work as before after each loop.
    let beside = |script: &str| script.replace('|', "insmod null; tell null calls 1; rmmod null; integrity; mem;");
    let script = format!(
        "| insmod endless; | insmod template; poke template {entry:x}:ebfe; tell template x; rmmod template; | insmod template; \
         poke template {entry:x}:fdebfe; tell template x; rmmod template; | insmod template; poke template {entry:x}:ebfe; \
         rmmod template; | ip; policy e1000 stop; poke e1000 {e1000:x}:ebfe; ping 10.0.2.2 -c 1 -W 10; rmmod e1000; \
         insmod e1000; ip; |"
    );
    let mut machine = machine(&beside(&script));
    machine.contents.modules.push(path);
    let text = boot_badly(&machine, 4);
    assert_intact(&text);
    assert_eq!(text.answers("null").len(), 6, "{text}");
    let free = text.free_frames();
    assert!(free.len() == 6 && free.iter().all(|count| *count == free[0]), "{free:?}");
    for (driver, upcall) in [("endless", "init"), ("template", "command"), ("template", "exit"), ("e1000", "poll (")] {
        assert_fault(&text, driver, &format!("took longer than 200 ms, in {upcall}"));
    }
    assert_says(&text, "error: endless: init: the driver was ended");
    assert_says(&text, "    then: it is not loaded");
    assert_says(&text, "    then: it is unloaded all the same");
}

/// A driver's log output is marked as its own in every row, at any width of the terminal, and does
/// not displace the log lines of others.
#[test]
fn what_a_driver_logs_is_quoted() {
    let mut machine = bare("insmod rogue; tell rogue log-forged; insmod null; repeat 20 tell null log 64; dmesg");
    machine.contents.columns = Some(40);
    let text = boot_well(&machine);
    let quoted: Vec<&str> = text.lines().filter(|line| line.contains("rogue| ")).collect();
    let (first, rest) = quoted[0].split_once("rogue| ").unwrap();
    assert!(first.starts_with('[') && first.len() == 14, "{text}");
    let rows = [rest, quoted[1], quoted[2], quoted[3]];
    let continued = |row: &str| format!("{:14}rogue| {row}", "");
    let expected = ["?[2J????[   0.00000", "1] e1000: loaded in", "to ring 0"];
    assert_eq!(rows[0], expected[0]);
    assert_eq!(rows[1..3], [continued(expected[1]), continued(expected[2])]);
    // The log has the same rows, together with the lines before and after them.
    let log = text.split_once("> dmesg").unwrap().1;
    assert!(log.contains("Ringfence 0.1.0: ") && log.contains(quoted[0]), "{log}");
    assert_eq!(log.matches("null| ").count(), 64, "{log}");
}

/// Returns the numbers that follow `before` in the lines of `text`.
fn numbers_behind(text: &str, before: &str) -> Vec<u64> {
    let number = |line: &str| line.split_once(before)?.1.split_whitespace().next()?.parse().ok();
    text.lines().filter_map(number).collect()
}

/// A driver is polled when its timer goes off, in either ring, once or repeatedly, and not after it
/// has turned the timer off. Its successor has the same parameters.
#[test]
fn a_driver_has_parameters_a_timer_and_commands() {
    let script = "insmod watchman period-ms=2 place=harbour; sleep 200; tell watchman rounds; ring watchman 0; sleep 200; \
                  tell watchman rounds; ring watchman 1; tell watchman stop; tell watchman rounds; sleep 100; \
                  tell watchman rounds; tell watchman once; sleep 200; tell watchman rounds; tell watchman; \
                  policy watchman restart; kill watchman; sleep 200; tell watchman rounds; lsmod -v; modinfo watchman";
    let text = boot_well(&bare(script));
    let rounds = numbers_behind(&text, "watchman| all is well at the harbour, after ");
    let [sandboxed, trusted, stopped, later, once, restarted] = rounds[..] else { panic!("{rounds:?}\n{text}") };
    assert!(0 < sandboxed && sandboxed < trusted && trusted <= stopped && restarted > 0, "{rounds:?}");
    assert_eq!((later, once), (stopped, stopped + 1), "{rounds:?}");
    assert_eq!(text.restarts("watchman"), 1, "{text}");
    assert_says(&text, "watchman rounds               how often it has looked around");
    assert_says(&text, "                 period-ms=2 place=harbour");
    assert_says(
        &text,
        "takes     period-ms          how often it looks around, in milliseconds: 1 to 60000, 1000 if not given",
    );
    assert_says(&text, "takes     place              what it looks after: a text, 'gate' if not given");
    assert_says(&text, "takes     awake              whether it begins at once: on or off, on if not given");
}

/// Returns the state of the driver called `name` from each `lsmod` that lists it.
fn states<'a>(text: &'a Ran, name: &str) -> Vec<&'a str> {
    text.drivers(name).into_iter().map(|driver| &*driver.state).collect()
}

/// Returns a machine without devices that runs `script`, and whose time counts instructions: what
/// the script does while a driver sleeps takes as long on each host.
fn timed(script: &str) -> Machine {
    let mut machine = bare(script);
    machine.icount = true;
    machine
}

/// A driver that sleeps in the middle of an upcall continues there, in either ring. Other drivers
/// run meanwhile, and callers of the sleeping driver wait.
#[test]
fn a_driver_sleeps_in_an_upcall_and_goes_on() {
    let script = "insmod watchman period-ms=4 late-ms=100; tell watchman nap 400 &; sleep 50; lsmod; \
                  tell watchman rounds; wait; ring watchman 0; tell watchman nap 400 &; sleep 50; lsmod; \
                  ring watchman 1; wait; tell watchman nap 20; tell watchman rounds; \
                  tell watchman nap 100 &; sleep 20; rmmod watchman; wait; lsmod";
    let text = boot_well(&timed(script));
    let naps = numbers_behind(&text, "watchman| slept for ");
    assert_eq!(naps.len(), 4, "{text}");
    assert!(naps.iter().zip([400, 400, 20, 100]).all(|(slept, asked)| *slept >= asked), "{naps:?}");
    assert_eq!(states(&text, "watchman"), ["asleep", "asleep"], "{text}");
    assert_eq!(numbers_behind(&text, "after ").len(), 2, "{text}");
    assert_says(&text, "watchman: now in ring 1");
}

/// A driver that is ended while it sleeps does not continue, and its caller gets an error. If the
/// caller of a sleeping `init` gives up, the driver is removed. Other drivers are loaded and
/// restarted meanwhile.
#[test]
fn a_driver_that_sleeps_can_be_ended_and_holds_up_nobody() {
    for ring in [1, 0] {
        let script = format!(
            "insmod watchman --ring {ring}; policy watchman restart; tell watchman nap 1; mem; tell watchman nap 4000 &; sleep 50; \
             kill watchman; wait; sleep 50; tell watchman nap 10; mem; insmod watchman late-ms=4000 &; sleep 50; \
             kill %1; insmod watchman; rmmod watchman.2; mem"
        );
        let text = boot_badly(&timed(&script), 1);
        let errors = text.errors();
        assert!(errors.iter().any(|(_, error)| error.contains("the driver was ended")), "{errors:?}");
        assert_eq!(text.restarts("watchman"), 1, "{text}");
        assert_eq!(numbers_behind(&text, "watchman| slept for ").len(), 2, "{text}");
        let free = text.free_frames();
        assert!(free.len() == 3 && free.iter().all(|frames| *frames == free[0]), "{free:?}");
    }
    let script = "insmod watchman late-ms=900; insmod watchman; policy watchman restart; policy watchman.2 restart; \
                  kill watchman; kill watchman.2; sleep 200; lsmod; tell watchman.2 rounds; sleep 1200; lsmod; \
                  insmod watchman late-ms=300 &; insmod watchman late-ms=100; wait; lsmod";
    let text = boot_well(&timed(script));
    assert_eq!(states(&text, "watchman"), ["ended, to be back", "running", "running"], "{text}");
    assert_eq!(states(&text, "watchman.2"), ["running"; 3], "{text}");
    assert_eq!([states(&text, "watchman.3"), states(&text, "watchman.4")], [["running"], ["running"]], "{text}");
}

/// Each caller gets its own answer, and not one for another caller or for a caller that has given
/// up.
#[test]
fn answers_of_a_driver_that_sleeps_are_kept_apart() {
    let script = "insmod watchman awake=off; tell watchman nap 200 &; tell watchman rounds &; tell watchman nap 50 &; \
                  wait; tell watchman nap 300 &; sleep 20; kill %1; sleep 400; tell watchman nap 100";
    let text = boot_well(&timed(script));
    let naps = numbers_behind(&text, "watchman| slept for ");
    let [first, second, last] = naps[..] else { panic!("{naps:?}\n{text}") };
    assert!(first >= 200 && second >= 50 && (100..300).contains(&last), "{naps:?}");
    assert_eq!(numbers_behind(&text, "all is well at the gate, after "), [0], "{text}");
}

/// A driver that loses its trust while it sleeps is moved when its upcall has ended, and only once.
#[test]
fn a_driver_that_sleeps_loses_ring_0_when_it_wakes() {
    let script = "limits sleep-ms 600; insmod watchman --ring 0; insmod watchman; tell watchman nap 500 &; sleep 20; \
                  fails tell watchman.2 nap 700; lsmod; wait; lsmod";
    let text = boot_well(&timed(script));
    let rings: Vec<u8> = text.drivers("watchman").iter().map(|driver| driver.ring).collect();
    assert_eq!(rings, [0, 1], "{text}");
    assert_eq!(text.to_string().matches("watchman: moved to ring 1").count(), 1, "{text}");
    assert_eq!(numbers_behind(&text, "watchman| slept for ").len(), 1, "{text}");
}

/// An `init` that is refused leaves nothing on the heap.
#[test]
fn loads_that_fail_leave_nothing_on_the_heap() {
    let (_folder, refuses) = c_module("refuses", "if (operation == RF_INIT) return -RF_REFUSED_NOT_FOUND;");
    let mut machine = bare("repeat 20 fails insmod refuses; mem; repeat 200 fails insmod refuses; mem");
    machine.contents.modules.push(refuses.unwrap().packed);
    let used = boot_well(&machine).heap_used();
    assert!(used.len() == 2 && used[1] <= used[0] + 1024, "{used:?}");
}

/// A driver that sleeps whenever it is polled can be unloaded, and does not delay the shutdown.
#[test]
fn a_driver_that_sleeps_all_the_time_can_be_unloaded() {
    let nap = "insmod rogue-nic; tell rogue-nic nap 150000000; sleep 200";
    let mut machine = machine(&format!(
        "insmod rogue-nic; rmmod rogue-nic; mem; limits sleep-ms 200; {nap}; rmmod rogue-nic; mem; {nap}"
    ));
    machine.contents.autoload = false;
    let text = boot_well(&machine);
    let free = text.free_frames();
    assert!(free.len() == 2 && free[0] == free[1], "{free:?}");
}

/// Parameters are checked before the driver runs, and nothing of a refused load stays.
#[test]
fn parameters_that_are_wrong_are_said() {
    let wrong = [
        ("period-ms=0", "parameter period-ms is 1 to 60000, 1000 if not given; it cannot be '0'"),
        ("period=5", "there is no parameter 'period'; there are: awake, late-ms, period-ms, place"),
        ("awake=on awake=off", "parameter awake is given twice"),
        ("awake=maybe", "parameter awake is on or off, on if not given; it cannot be 'maybe'"),
    ];
    let lines: Vec<String> = wrong.iter().map(|(given, _)| format!("insmod watchman {given}; ")).collect();
    let script = format!(
        "insmod watchman; rmmod watchman; mem; {}mem; insmod watchman awake=off; sleep 20; tell watchman rounds",
        lines.concat()
    );
    let text = boot_badly(&bare(&script), wrong.len());
    let errors: Vec<&str> = text.errors().into_iter().map(|(_, error)| error).collect();
    for (error, (given, said)) in errors.iter().zip(wrong) {
        assert_eq!(*error, format!("watchman: {said}"), "{given}");
    }
    let free = text.free_frames();
    assert!(free.len() == 2 && free[0] == free[1], "{free:?}");
    assert_says(&text, "watchman| all is well at the gate, after 0 rounds");
}

/// Parameter descriptions that make no sense are refused, and so are those outside the driver's
/// writable memory.
#[test]
fn parameters_that_make_no_sense_are_refused() {
    let (good, _) = entry_of("watchman");
    let (manifest, parameter) = (find(&good, b"watchman\0\0\0\0\0\0\0\0"), find(&good, b"period-ms\0\0\0\0\0\0\0"));
    let directory = tempfile::tempdir().unwrap();
    let mut machine = bare("");
    let changes = [
        ("capital", 0, b'P'),
        ("kind", offset_of!(Parameter, kind), 3),
        ("reserved", offset_of!(Parameter, reserved), 1),
        ("default", offset_of!(Parameter, value) + 7, 0x80),
    ];
    for (called, at, value) in changes {
        let mut bad = good.clone();
        bad[parameter + at] = value;
        bad[manifest..][..9].fill(0);
        bad[manifest..][..called.len()].copy_from_slice(called.as_bytes());
        let path = directory.path().join(format!("{called}.rfm"));
        std::fs::write(&path, bad).unwrap();
        machine.contents.modules.push(path);
    }
    machine.contents.exec = Some(changes.map(|(called, ..)| format!("insmod {called}")).join("; "));
    let text = boot_badly(&machine, changes.len());
    for (called, ..) in changes {
        let name = if called == "capital" { "Period-ms" } else { "period-ms" };
        let why = format!("{called}: refused: parameter '{name}' makes no sense, or has the name of another");
        assert_says(&text, &why);
    }
}

#[test]
fn a_module_in_cpp_runs_in_both_rings() {
    let text = boot_well(&bare(
        "insmod hello-cpp; sleep 100; tell hello-cpp x; tell hello-cpp polls; ring hello-cpp 0; sleep 100; tell hello-cpp x; \
         tell hello-cpp polls; tell hello-cpp",
    ));
    assert_says(&text, "hello-cpp| hello from C++");
    let [1, sandboxed, second, trusted] = text.answers("hello-cpp")[..] else { panic!("{text}") };
    // As above.
    let (expected, least) = if usual_kind() == DomainKind::Paged { (2, sandboxed) } else { (1, 0) };
    assert!(0 < sandboxed && second == expected && least < trusted, "{text}");
    assert_says(&text, "hello-cpp| polled by its timer");
    assert_says(&text, "hello-cpp polls                how often its timer has gone off");
}

/// Compiles the header with all warnings, as C99, C11 and C++17, by each compiler that is
/// installed.
#[test]
fn the_c_header_is_c99_and_cpp17() {
    system();
    let folder = tempfile::tempdir().unwrap();
    // The source uses the functions for all classes, because compilers do not check unused
    // functions fully.
    const SOURCE: &str = r#"
        #include <ringfence.h>
        RF_MANIFEST = {
            RF_MAGIC, RF_ABI_VERSION, RfKind_Scsi, "all", "1", RF_NO_PCI_IDS, {0, 0, 0, 0}, 0, 0, 16384, 100, 0, 0,
            {0, 0, 0, 0, 0, 0, 0, RF_NO_REGISTERS, 0}, 0, 0,
        };
        int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
        {
            static RfRequests requests;
            RfScsiInfo scsi = {1, 1, 1, RF_CAN_ALL & (RF_CAN_ABORT_TASK | RF_CAN_RESET_LOGICAL_UNIT)};
            RfBlockInfo block;
            RfRequest request;
            RfBlockRequest block_request;
            RfOutcome outcome;
            static RfNet net;
            RfFrame frame;
            uint64_t number = b + c;
            const uint8_t mac[6] = {0x52, 0x54, 0, 0, 0, 1};
            memset(&block, 0, sizeof block), memset(&outcome, 0, sizeof outcome);
            if (operation == RF_INIT && rf_scsi_offer(&requests, &scsi) < 0) return -RF_REFUSED_BUSY;
            if (rf_scsi_take(&requests, &number, &request)) {
                if (number >= RF_TASK_MANAGEMENT && request.function == RF_FUNCTION_ABORT_TASK)
                    outcome.host = RF_HOST_ABORTED;
                rf_scsi_complete(&requests, number, &outcome);
            }
            if (rf_block_offer(&requests, &block) < 0) return -RF_REFUSED_NO_MEMORY;
            if (rf_block_take(&requests, &number, &block_request)) rf_block_complete(&requests, number, RF_BLOCK_OK);
            if (rf_net_offer(&net, mac) < 0) return -RF_REFUSED_FULL;
            if (rf_net_take_transmit(&net, &frame)) rf_net_pad(&frame), rf_net_give_transmitted(&net, &frame);
            if (rf_net_take_empty(&net, &frame)) rf_net_give_received(&net, &frame, 0), rf_net_count(&net, RfCounter_TxErrors, 1);
            rf_timer(1000, 0);
            rf_out8(1, 2, rf_in8(1, 2)), rf_out16(1, 2, rf_in16(1, 2)), rf_out32(1, 2, rf_in32(1, 2));
            rf_write8(a, 0, rf_read8(a, 0)), rf_write16(a, 0, rf_read16(a, 0));
            rf_write32(a, 0, rf_read32(a, 0)), rf_write64(a, 0, rf_read64(a, 0));
            return rf_has_vector(a, 7) && rf_is(rf_typed(), a, "x") ? (int64_t)RF_REPLY_ACKNOWLEDGED : rf_enable_dma();
        }
    "#;
    let include = ringfence::header::write().unwrap();
    let mut tried = 0;
    for (compiler, standard, end) in [
        ("gcc", "c99", "c"),
        ("gcc", "c11", "c"),
        ("g++", "c++17", "cpp"),
        ("clang", "c99", "c"),
        ("clang++", "c++17", "cpp"),
    ] {
        let source = folder.path().join(format!("all.{end}"));
        std::fs::write(&source, format!("{}\n", SOURCE.trim_end())).unwrap();
        let flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffreestanding", "-O2", "-mgeneral-regs-only", "-c"];
        let mut command = std::process::Command::new(compiler);
        command.args(flags).arg(format!("-std={standard}")).arg("-I").arg(&include).arg(&source);
        match command.arg("-o").arg(folder.path().join("all.o")).output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success() && said.is_empty(), "{compiler} {standard}: {said}");
                tried += 1;
            }
            // gcc is installed, because it builds the modules.
            Err(_) => assert!(compiler.starts_with("clang"), "{compiler} is missing"),
        }
    }
    assert!(tried >= 3);
}

/// A folder of several files with their own flags. Compiler warnings are shown and do not stop the
/// build.
#[test]
fn a_folder_of_c_files_with_flags_is_a_module() {
    const MAIN: &str = r#"
        #include <ringfence.h>
        RF_MANIFEST = {
            RF_VERSIONS, .kind = RfKind_Other, .name = "parts", .version = "1", .pci_ids = RF_NO_PCI_IDS,
            .stack_bytes = 16384, .upcall_ms = 100,
        };
        int64_t other(int64_t number);
        static int unused;
        int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
        {
            return operation == RF_COMMAND ? other(FROM_FLAGS) : 0;
        }
    "#;
    const OTHER: &str = "#include <ringfence.h>\nint64_t other(int64_t number) { return number + 1; }\n";
    let folder = tempfile::tempdir().unwrap();
    let parts = folder.path().join("parts");
    std::fs::create_dir(&parts).unwrap();
    for (name, text) in [("main.c", MAIN), ("other.c", OTHER), ("compile_flags.txt", "-DFROM_FLAGS=41\n\n-std=gnu99\n")]
    {
        std::fs::write(parts.join(name), text).unwrap();
    }
    system();
    let mut machine = bare("insmod parts; tell parts x; ring parts 0; tell parts x");
    machine.contents.modules.push(ringfence::build::module_in_c(&parts).unwrap().packed);
    assert_eq!(boot_well(&machine).answers("parts"), [42, 42]);
    // A compile error stops the build and names the file.
    std::fs::write(parts.join("other.c"), "this is no C").unwrap();
    let error = format!("{:#}", ringfence::build::module_in_c(&parts).unwrap_err());
    assert!(error.contains("other.c"), "{error}");
    std::fs::remove_file(parts.join("main.c")).unwrap();
    std::fs::remove_file(parts.join("other.c")).unwrap();
    let error = format!("{:#}", ringfence::build::module_in_c(&parts).unwrap_err());
    assert!(error.ends_with("has neither a Cargo.toml nor a file in C or C++"), "{error}");
}

/// Builds a C module with `body` in its entry point.
fn c_module(name: &str, body: &str) -> (tempfile::TempDir, Result<ringfence::build::Module, String>) {
    system();
    let source = format!(
        r#"#include <ringfence.h>
        RF_MANIFEST = {{
            RF_VERSIONS, .kind = RfKind_Other, .name = "{name}", .version = "1", .pci_ids = RF_NO_PCI_IDS,
            .stack_bytes = 16384, .upcall_ms = 100,
        }};
        int64_t rf_lgo(int64_t number);
        int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
        {{
            {body}
            return (int64_t)(operation + a + b + c);
        }}
        "#
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{name}.c"));
    std::fs::write(&path, source).unwrap();
    let module = ringfence::build::module_in_c(&path).map_err(|error| format!("{error:#}"));
    (folder, module)
}

/// If the kernel would refuse a module, its build fails, and the error names the place if it is
/// known.
#[test]
fn what_the_kernel_would_refuse_does_not_build() {
    let refused = |name: &str, body: &str| c_module(name, body).1.unwrap_err();
    let unknown = refused("asks", "return rf_lgo(1);");
    assert!(
        unknown.ends_with("the module asks: refused: asks for unknown service rf_lgo; did you mean rf_log?"),
        "{unknown}"
    );
    let loads = refused("loads", "__asm__ volatile(\"mov %0, %%ss\" : : \"r\"(0));");
    let place =
        loads.strip_prefix("the kernel would not take the module loads: refused: it could load SS, which QEMU's TCG");
    let place = place.and_then(|rest| rest.strip_prefix(" takes for ring 0\n    at rf_upcall+0x"));
    assert!(place.is_some_and(|place| place.contains(" (loads+0x") && place.contains("loads.c:9")), "{loads}");
    let big = refused("big", "static char big[17 << 20]; __asm__ volatile(\"\" : : \"r\"(big));");
    assert!(big.contains("is too large (most: 0x1000000)"), "{big}");
}

/// A finished module file can be checked separately.
#[test]
fn a_finished_file_is_checked() {
    let check = |files: &[&std::path::Path], json: bool| {
        let mut command = std::process::Command::new(ringfence_tests::runner());
        command.arg("check").args(files).args(json.then_some("--json"));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let packed = |name: &str| system().modules.iter().find(|module| module.name == name).unwrap().packed.clone();
    let (status, said) = check(&[&packed("e1000"), &packed("hello-c")], false);
    assert_eq!((status, said.lines().count()), (Some(0), 2), "{said}");
    assert!(said.contains("e1000.rfm: the kernel takes it: for either ring; "), "{said}");
    let (status, said) = check(&[&packed("rogue-ss")], false);
    assert_eq!(status, Some(1));
    assert!(
        said.contains("refused: it could load SS, which QEMU's TCG takes for ring 0\n    at rf_rogue_ss::"),
        "{said}"
    );
    // The kernel loads this module, and ends the driver when it executes the instruction.
    let (folder, halts) = c_module("halts", "if (operation == 77) __asm__ volatile(\"hlt\");");
    let halts = halts.unwrap().packed;
    let (status, said) = check(&[&halts], false);
    assert_eq!(status, Some(0));
    assert!(said.contains("warning: 'hlt' ends the driver in ring 1\n    at rf_upcall+0x"), "{said}");
    // A folder with sources can be checked in place of a file.
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../drivers/hello-c");
    let (status, said) = check(&[&sources], false);
    assert_eq!(status, Some(0));
    assert!(said.contains("hello-c.rfm: the kernel takes it"), "{said}");
    let other = folder.path().join("other.rfm");
    std::fs::copy(&halts, &other).unwrap();
    let (status, said) = check(&[&other], true);
    assert_eq!(status, Some(1));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let what = "the module in this file is called 'halts': its file must be halts.rfm";
    assert_eq!((&said["refused"], &said["findings"][0]["what"]), (&true.into(), &what.into()));
    std::fs::write(&other, "nothing of the kind").unwrap();
    let (status, said) = check(&[&other], false);
    assert!(status == Some(1) && said.ends_with("refused: not a well-formed ELF file\n"), "{said}");
}

/// A package in another folder that depends on the SDK by its path is built, checked and named like
/// the project's own modules.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_driver_in_a_folder_of_ones_own_is_a_module() {
    system();
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    std::fs::create_dir_all(own.join("src")).unwrap();
    let sdk = ringfence::project().join("drivers/sdk");
    let manifest = format!(
        "[package]\nname = \"rf-own\"\nedition = \"2024\"\n[dependencies]\nlog = \"0.4\"\n\
         ringfence-sdk = {{ path = {sdk:?} }}\n[workspace]\n"
    );
    const SOURCE: &str = r#"
        #![no_std]
        #![forbid(unsafe_code)]
        use ringfence_sdk::{Driver, Manifest, Result, driver};
        driver!(Own, Manifest::new("own", "7"));
        struct Own;
        impl Driver for Own {
            fn init() -> Result<Own> {
                Ok(Own)
            }
            fn command(&mut self, text: &str) -> Result<u64> {
                assert!(text != "panic", "as asked for");
                Ok(7)
            }
        }
    "#;
    std::fs::write(own.join("Cargo.toml"), &manifest).unwrap();
    std::fs::write(own.join("src/lib.rs"), SOURCE).unwrap();
    let runner = |folder: &std::path::Path, commands: &str| {
        let mut command = std::process::Command::new(ringfence_tests::runner());
        command.args(["--nic", "none", "--hba", "none", "--exec", commands, "--module"]).arg(folder);
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.code(), said)
    };
    let (status, said) =
        runner(&own, "insmod own; tell own x; ring own 0; tell own x; ring own 1; fails tell own panic");
    assert_eq!((status, said.matches("own: 7 (0x7)").count()), (Some(0), 2), "{said}");
    assert!(said.contains("gave up, in command: panicked at src/lib.rs:12: as asked for"), "{said}");
    // A copy is another module, though it has the same name, version and times.
    let copy = folder.path().join("copy");
    for (file, text) in [("Cargo.toml", manifest.clone()), ("src/lib.rs", SOURCE.replace("Ok(7)", "Ok(8)"))] {
        let (from, to) = (own.join(file), copy.join(file));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::write(&to, text).unwrap();
        let modified = std::fs::metadata(from).unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(to).unwrap().set_modified(modified).unwrap();
    }
    for (folder, answer) in [(&copy, "own: 8 (0x8)"), (&own, "own: 7 (0x7)")] {
        let (status, said) = runner(folder, "insmod own; tell own x");
        assert!(status == Some(0) && said.contains(answer), "{said}");
    }
    let upcall = said.lines().find(|line| line.starts_with("        rf_upcall+"));
    assert!(upcall.is_some_and(|line| line.contains("src/lib.rs:")), "{said}");
    // A manifest that the kernel would refuse does not compile.
    for (manifest, why) in [
        ("Manifest::new(\"Own\", \"7\")", "name must be lower-case letters, digits, - and _"),
        ("Manifest::new(\"own\", \"7\").dma_kib(1 << 20)", "DMA budget is out of range"),
    ] {
        std::fs::write(own.join("src/lib.rs"), SOURCE.replace("Manifest::new(\"own\", \"7\")", manifest)).unwrap();
        let (status, said) = runner(&own, "help");
        assert!(status == Some(4) && said.contains(why), "{said}");
    }
    // The compiler's message is shown.
    std::fs::write(own.join("src/lib.rs"), "this is no Rust").unwrap();
    let (status, said) = runner(&own, "help");
    assert!(status == Some(4) && said.contains("src/lib.rs:1:"), "{said}");
}

/// The Tab key puts a driver's command names into the user's line, and a driver's answers are
/// shown. So both must be plain text, and limited in number.
#[test]
fn commands_and_answers_are_names_and_text() {
    let body = r#"
        static const char *const bad[] = {
            "s;shutdown\tx", "s&\tx", "|more\tx", "\tx", " a\tx", "a", "a\t", "a\tb\tc", "a\x01 b\tx", "a\t\x1b[2J",
            "a\xff\tx",
        };
        if (operation == RF_INIT) {
            for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++)
                if (rf_command_text(bad[i]) != -RF_REFUSED_INVALID) return -RF_REFUSED_BUSY;
            if (rf_answer("x", 1) != -RF_REFUSED_INVALID) return -RF_REFUSED_BUSY;
            for (unsigned i = 0; i < 32; i++)
                if (rf_command_text("fine-1 [MORE]\tit is fine") != 0) return -RF_REFUSED_BUSY;
            return rf_command_text("more\tthan there can be") == -RF_REFUSED_FULL ? 0 : -RF_REFUSED_BUSY;
        }
        if (operation == RF_COMMAND) {
            static char lines[4096];
            memset(lines, '\n', sizeof lines);
            int64_t wrong = rf_command_text("late\tit is too late") != -RF_REFUSED_INVALID;
            wrong += rf_answer(lines, sizeof lines) != 0;
            return wrong + (rf_answer("x", 1) != -RF_REFUSED_FULL);
        }
        return 0;
    "#;
    let (_folder, module) = c_module("names", body);
    let mut machine = bare("insmod names; tell names; tell names x; tell names x");
    machine.contents.modules.push(module.unwrap().packed);
    let text = boot_well(&machine);
    assert_eq!(text.answers("names"), [0, 0]);
    assert_eq!(text.matches("names fine-1 [MORE]        it is fine").count(), 32, "{text}");
    assert_eq!(text.lines().filter(|line| *line == "names| ").count(), 2 * 64, "{text}");
    assert_eq!(text.matches("names: 4032 more lines are not shown").count(), 2, "{text}");
}

/// The counters of a network driver are shown, with any values, and kept for its successor.
#[test]
fn what_a_network_driver_counts_is_shown() {
    const SOURCE: &str = r#"
        #include <ringfence.h>
        RF_MANIFEST = {
            RF_VERSIONS, .kind = RfKind_Nic, .name = "counts", .version = "1", .pci_ids = RF_NO_PCI_IDS,
            .stack_bytes = 16384, .upcall_ms = 100, .policy = RfPolicy_Restart,
        };
        int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
        {
            static RfNet net;
            const uint8_t mac[6] = {0x52, 0x54, 0, 0, 0, 1};
            if (operation != RF_INIT) return (int64_t)(0 * (a + b + c));
            int64_t result = rf_net_offer(&net, mac);
            rf_net_count(&net, RfCounter_RxMissed, 1);
            rf_net_count(&net, RfCounter_RxErrors, 3);
            rf_net_count(&net, RfCounter_TxErrors, UINT64_MAX);
            return result;
        }
    "#;
    system();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("counts.c");
    std::fs::write(&source, SOURCE).unwrap();
    let mut machine = bare("insmod counts; ip addr add 10.7.0.2/24 dev eth0; ip; kill counts; ip");
    machine.contents.modules.push(ringfence::build::module_in_c(&source).unwrap().packed);
    let text = boot_well(&machine);
    assert_says(&text, "counts says: 1 missed, 3 damaged, 18446744073709551615 not sent");
    assert_says(&text, "counts says: 2 missed, 6 damaged, 18446744073709551615 not sent");
}

/// The steps that an author forgets most easily are named where they are missed, and not as a
/// number only.
#[test]
fn forgotten_steps_are_named() {
    const SOURCE: &str = r#"
        #include <ringfence.h>
        RF_MANIFEST = { RF_VERSIONS, .kind = RfKind_Nic, .name = "forgets", .version = "1",
            .pci_ids = {{0x8086, 0x100e}, {0xffff, 0xffff}}, .dma_bytes = 4096,
            .stack_bytes = 16384, .upcall_ms = 200, .policy = RfPolicy_Restart };
        int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c) {
            static RfNet net;
            const uint8_t mac[6] = {0x52, 0x54, 0, 0, 0, 1};
            if (operation != RF_INIT) return (int64_t)(0 * (a + b + c));
            return rf_dma_alloc(4096) < 0 ? -1 : rf_net_offer(&net, mac);
        }
    "#;
    system();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("forgets.c");
    std::fs::write(&source, SOURCE).unwrap();
    let mut machine = machine("insmod forgets");
    machine.contents.autoload = false;
    machine.contents.modules.push(ringfence::build::module_in_c(&source).unwrap().packed);
    let text = boot_well(&machine);
    assert_says(&text, "warning: forgets: its init has not enabled the device's interrupts (enable_interrupts)");
    assert_says(&text, "warning: forgets: its init has not enabled the device's DMA (enable_dma)");
    let (machine, _kept) = with_other_manifest("e1000", "little", &[(DMA_BYTES, 4096)], "insmod little");
    let text = boot_badly(&machine, 1);
    assert_says(&text, "warning: little: 8 KiB of DMA memory are more than the manifest's budget of 4 KiB (dma_kib)");
    let (machine, _kept) = with_other_manifest("e1000", "else", &[(OFFSET, 0x20000)], "insmod else");
    let text = boot_badly(&machine, 1);
    let why = "the manifest's recipe for a reset does not fit the device: it names BAR 0, offset 0x20000";
    assert_says(&text, &format!("error: else: {why}"));
    // Drivers that have done it all are not warned.
    let text = boot_well(&ringfence_tests::machine("lsmod"));
    assert!(!text.contains("its init"), "{text}");
}

/// A driver in C declares queues and checksums, and delivers a checked frame of its second queue.
#[test]
fn a_driver_in_c_has_queues_and_checksums() {
    const SOURCE: &str = r#"
        #include <ringfence.h>
        RF_MANIFEST = {
            RF_VERSIONS, .kind = RfKind_Nic, .name = "checks", .version = "1", .pci_ids = RF_NO_PCI_IDS,
            .stack_bytes = 16384, .upcall_ms = 100, .policy = RfPolicy_Restart,
        };
        int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
        {
            static RfNet net;
            RfNetInfo info;
            RfFrame frame;
            if (operation != RF_INIT) return (int64_t)(0 * (a + b + c));
            memset(&info, 0, sizeof info);
            info.mac[0] = 2;
            info.offload = RF_OFFLOAD_TX_CHECKSUM | RF_OFFLOAD_RX_CHECKSUM;
            info.queues = 2;
            int64_t result = rf_net_offer_info(&net, &info);
            if (result < 0 || !rf_net_take_empty(&net, &frame)) return -1;
            memset(frame.bytes, 0, 60);
            frame.queue = 1;
            rf_net_give_checked(&net, &frame, 60);
            return 0;
        }
    "#;
    system();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("checks.c");
    std::fs::write(&source, SOURCE).unwrap();
    let mut machine = bare("insmod checks; ip addr add 10.7.0.2/24 dev eth0; sleep 50; ip");
    machine.contents.modules.push(ringfence::build::module_in_c(&source).unwrap().packed);
    let text = boot_well(&machine);
    // The kernel's DHCP requests go out of either queue.
    let queues = text.lines().find_map(|line| line.trim().strip_prefix("queues ")).expect("the queues are shown");
    let received: Vec<&str> = queues.split("; ").filter_map(|queue| queue.split(", ").nth(1)).collect();
    assert_eq!(received, ["0 in", "1 in"], "{text}");
    assert_says(&text, "the card completes and checks checksums");
}
