//! The boot from power-on to the prompt, and all ways in which a run ends.

use ringfence::iso;
use ringfence::machine::{Boot, End};
use ringfence_tests::{Ran, assert_says, at_prompt, bare, boot, boot_badly, boot_well, leave, machine, system};

#[test]
fn boots_to_the_shell_with_64_mib() {
    let text = boot_well(&bare("help; mem; dmesg"));
    assert_says(&text, "protections: NX WP SMEP SMAP UMIP");
    assert_says(&text, "ringfence> mem");
}

#[test]
fn a_cpu_without_the_protections_will_do() {
    let mut machine = bare("insmod rogue; tell rogue flags");
    machine.extra = vec!["-cpu".into(), "qemu64,-smep,-smap,-umip".into()];
    let text = boot_well(&machine);
    assert!(text.lines().any(|line| line.ends_with("protections: NX WP")), "{text}");
}

#[test]
fn a_command_that_fails_fails_the_run() {
    assert_eq!(boot(&bare("nonsense")).end(), End::CommandFailed);
}

#[test]
fn a_kernel_panic_has_a_status_and_a_backtrace() {
    let run = boot(&bare("panic"));
    assert_eq!(run.end(), End::Panic);
    assert_says(&run.to_string(), "kernel panic: as asked for");
    assert_says(&run.to_string(), "ringfence_kernel::shell::commands");
}

#[test]
fn too_little_memory_is_said() {
    let mut machine = bare("help");
    // With less, QEMU puts the ramdisk over the loader.
    machine.memory = 12;
    let run = boot(&machine);
    assert_eq!(run.end(), End::Panic, "{run}");
    assert_says(&run.to_string(), "boot failed: too little memory");
}

#[test]
fn a_missing_kernel_is_said() {
    let mut system = system().clone();
    let directory = tempfile::tempdir().unwrap();
    system.packed_kernel = directory.path().join("kernel");
    std::fs::write(&system.packed_kernel, b"this is no kernel").unwrap();
    let run = Ran::from(bare("help").run(&system, |_| ()).unwrap());
    assert_eq!(run.end(), End::Panic);
    assert_says(&run, "boot failed: the kernel cannot be loaded: it is not an ELF file");
}

/// Boots with `bytes` as the ramdisk; returns the console's output.
fn boot_with_ramdisk(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ramdisk");
    std::fs::write(&path, bytes).unwrap();
    let mut machine = bare("help");
    // QEMU uses the last `-initrd`.
    machine.extra = vec!["-initrd".into(), path.into()];
    let run = boot(&machine);
    assert_eq!(run.end(), End::Panic, "{run}");
    run.to_string()
}

#[test]
fn a_damaged_ramdisk_is_said() {
    assert_says(&boot_with_ramdisk(&[0x55; 4096]), "boot failed: the ramdisk is damaged");
    assert_says(&boot_with_ramdisk(b"short"), "boot failed: the ramdisk is damaged: it is not a tar archive");
    // An archive without the kernel.
    let contents = ringfence::ramdisk::Contents { autoload: true, ..Default::default() };
    let mut archive = ringfence::ramdisk::pack(system(), &contents).unwrap();
    archive[0] = b'x';
    let checksum = std::str::from_utf8(&archive[148..155]).unwrap();
    let checksum = u32::from_str_radix(checksum, 8).unwrap() + u32::from(b'x' - b'k');
    archive[148..155].copy_from_slice(format!("{checksum:07o}").as_bytes());
    assert_says(&boot_with_ramdisk(&archive), "boot failed: there is no file 'kernel' in the ramdisk");
}

#[test]
fn an_endless_run_meets_its_time_limit() {
    let mut machine = bare("sleep 1000000");
    machine.timeout = Some(std::time::Duration::from_secs(3));
    assert_eq!(boot(&machine).end(), End::TimeLimit);
}

/// A script that makes commands fail on purpose succeeds if they fail.
#[test]
fn failures_can_be_expected_and_output_held_back() {
    let text = boot_well(&bare("fails insmod nope; mute insmod null; mute repeat 2 mute lsmod; lsmod"));
    assert_says(&text, "as expected: there is no module 'nope' in the ramdisk");
    assert!(!text.contains("null: loaded") && text.matches("DOMAIN ").count() == 1, "{text}");
    let text = boot_badly(&bare("fails lsmod; mute insmod nope; fails; mute"), 4);
    assert_says(&text, "error: 'lsmod' did not fail");
    assert_says(&text, "error: there is no module 'nope' in the ramdisk");
    assert_eq!(text.matches("error: the command is missing; usage: ").count(), 2, "{text}");
}

#[test]
fn the_iso_boots_from_bios_firmware() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("ringfence.iso");
    let mut machine = machine("insmod template; lsmod");
    iso::make(system(), &machine.contents, &image).expect("grub-mkrescue makes the image");
    machine.boot = Boot::Iso(image);
    assert!(!boot_well(&machine).loaded("template").is_empty());
}

#[test]
fn the_iso_boots_from_uefi_firmware() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("ringfence.iso");
    let mut machine = machine("lsmod");
    iso::make(system(), &machine.contents, &image).expect("grub-mkrescue makes the image");
    machine.boot = Boot::Iso(image);
    machine.memory = 256;
    machine.extra = vec!["-bios".into(), "/usr/share/ovmf/OVMF.fd".into()];
    assert!(!boot_well(&machine).loaded("e1000").is_empty());
}

/// Output that comes while a line is being typed appears above that line, and does not become part
/// of it.
#[test]
fn a_line_that_is_being_typed_stays_whole() {
    let mut running = at_prompt(bare(""));
    // The job prints a line after two seconds.
    running.type_line("repeat 1 sleep 2000 &").unwrap();
    running.type_text("help xx\x1b[D\x1b[D").unwrap();
    // The half-typed line is erased from the job's line.
    let said = running.wait_for("1 times in ").unwrap();
    assert!(said.starts_with("1 times in "), "{said:?}");
    running.type_line("insmod \x1b[C\x1b[C\x08\x08").unwrap();
    // The half-typed line appears again, with the cursor where it was.
    let line = running.wait_for("help xx\x1b[2Di").unwrap();
    assert!(line.starts_with("ringfence> "), "{line:?}");
    running.wait_for("insmod NAME [OPTIONS] [K=V]").unwrap();
    leave(running);
}

#[test]
fn lines_are_edited_completed_and_remembered() {
    let mut running = at_prompt(bare(""));
    // Backspace, completion of a command and of a module's name, and the previous line.
    running.type_line("insx\x08m\ttempl\t").unwrap();
    running.wait_for("template: loaded into ring 1, slot 0").unwrap();
    running.type_line("\x1b[A").unwrap();
    running.wait_for("template.2: loaded into ring 1, slot 1").unwrap();
    // Words from the usage of the line's last command are completed. If there are several, all are
    // listed.
    running.type_line("nonsense;limits tu\t").unwrap();
    running.wait_for("turn-ms                  10  ms a driver may be ahead").unwrap();
    running.type_line("policy template re\t").unwrap();
    running.wait_for("template: when it is ended it is restarted").unwrap();
    // Words that a driver has named are completed.
    running.type_line("insmod watch\t").unwrap();
    running.type_line("tell watchman roun\t").unwrap();
    running.wait_for("watchman| all is well at the gate").unwrap();
    running.type_text("insmod rogue-\t").unwrap();
    // Builds for segmented domains are in between, where there are any. These two have none.
    let line = running.wait_for("  rogue-ss  rogue-virtio-net").unwrap();
    assert!(line.starts_with("rogue-blk  ") && line.contains("  rogue-fs  "), "{line}");
    running.type_line("\x15").unwrap();
    // Home, End, and Delete in the middle.
    running.type_line("mmem\x1b[H\x1b[3~help \x1b[F").unwrap();
    running.wait_for("memory: free, kernel, domains").unwrap();
    running.type_line("nonsense; tell template abc").unwrap();
    running.wait_for("there is no command 'nonsense'").unwrap();
    running.wait_for("template: 3 (0x3)").unwrap();
    leave(running);
}

/// Boots a machine that cannot come up, which must end as after a panic; returns the console's
/// output.
fn failing(board: &str, cpu: Option<&str>) -> String {
    let mut machine = bare("help");
    machine.use_board(board);
    machine.cpu = cpu.map(String::from);
    let run = boot(&machine);
    assert_eq!(run.end(), End::Panic, "{run}");
    run.to_string()
}

#[test]
fn what_a_machine_lacks_is_said() {
    for board in ["pc,pit=off,hpet=off,acpi=off", "microvm,pit=off"] {
        let text = failing(board, None);
        assert_says(
            &text,
            "boot failed: nothing says how fast the TSC is: there is no 8254 timer (PIT), no HPET and no ACPI PM timer",
        );
    }
    let text = failing("pc,pit=off", Some("max,-apic"));
    assert_says(
        &text,
        "boot failed: nothing ticks: there is no 8254 timer (PIT), and no local APIC whose timer counts",
    );
    // On QEMU 7.2, 'pc' has these controllers in spite of the option.
    let text = failing("q35,pic=off", None);
    assert_says(&text, "boot failed: there are no 8259 interrupt controllers (PIC)");
    for cpu in ["qemu32", "qemu64,-nx"] {
        let text = failing("pc", Some(cpu));
        assert_says(&text, "boot failed: the CPU has no long mode, or cannot make pages not executable (NX)");
    }
}

/// With `-icount` the TSC counts each instruction as a nanosecond, so the result must be 1000 MHz.
#[test]
fn another_clock_will_do() {
    for (board, measure) in [("pc,pit=off", "HPET"), ("pc,pit=off,hpet=off", "ACPI PM timer"), ("q35,pit=off", "HPET")]
    {
        let mut machine = bare("sleep 100; irqs");
        machine.icount = true;
        machine.use_board(board);
        let text = boot_well(&machine);
        let expected =
            format!("no 8254 timer (PIT): the TSC counts at 1000 MHz by the {measure}, and the local APIC ticks");
        assert_says(&text, &expected);
        let ticks =
            text.lines().find_map(|line| line.strip_prefix("line  0")?.strip_suffix("timer")?.trim().parse().ok());
        // The timer ticks 250 times a second.
        assert!(ticks.is_some_and(|ticks: u32| ticks >= 25), "{text}");
    }
}

/// A bus that is not below a bridge is a root bus, whether firmware names the buses (q35) or not.
#[test]
fn devices_on_other_root_buses_are_found() {
    let pc = "-device pxb,id=root,bus_nr=128 -device e1000,netdev=other,bus=root,addr=1";
    let q35 = "-device pxb-pcie,id=root,bus_nr=128 -device pcie-root-port,id=port0,bus=root,chassis=1 \
               -device e1000,netdev=other,bus=port0";
    for (board, devices) in [("pc", pc), ("q35", q35)] {
        let mut machine = bare("lspci");
        machine.use_board(board);
        machine.extra = format!("-netdev user,id=other {devices}").split_whitespace().map(Into::into).collect();
        let text = boot_well(&machine);
        assert_says(&text, "e1000: loaded into ring 1 for 0000:81:0");
        let addresses: Vec<_> = text.lines().filter(|line| line.starts_with("0000:")).collect();
        assert!(addresses.is_sorted(), "{text}");
    }
}

/// The machine has no PCI, no port 0x61, no firmware that sets up the local APIC, and a list of
/// modules that is aligned to 4 bytes.
#[test]
fn a_microvm_will_do() {
    let mut machine = bare("sleep 100; insmod template; tell template a; irqs");
    machine.use_board("microvm");
    let text = boot_well(&machine);
    assert_says(&text, "template: 1 (0x1)");
    assert!(text.lines().any(|line| line.ends_with("  timer")), "{text}");
}
