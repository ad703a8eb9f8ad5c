//! Uses of the shell: pasting, paging, help, background jobs, reboot.

use ringfence::machine::End;
use ringfence_tests::{Ran, assert_says, at_prompt, bare, boot_badly, boot_well, leave, machine, system};

/// 400 lines pasted at once are 400 commands, each as it was pasted.
#[test]
fn nothing_that_is_pasted_is_lost() {
    const LINES: usize = 400;
    let mut running = at_prompt(bare(""));
    let pasted: String =
        (0..LINES).map(|number| format!("echo line {number} of many, with words behind it\n")).collect();
    running.type_text(&pasted).unwrap();
    running.type_line("shutdown").unwrap();
    let run = Ran::from(running.finish(|_| ()).unwrap());
    assert_eq!(run.end(), End::Done, "{run}");
    let said = |number: usize| format!("line {number} of many, with words behind it");
    for number in 0..LINES {
        assert!(run.console().iter().any(|line| *line == said(number)), "line {number} is missing");
    }
}

/// A line that is cut might do something else, so it is refused.
#[test]
fn a_line_that_is_too_long_is_refused() {
    let mut running = at_prompt(bare(""));
    running.type_line(&format!("echo {}; insmod template", "x".repeat(5000))).unwrap();
    running.wait_for("error: the line was not run: it has more than 4096 characters").unwrap();
    running.type_line("tell template a").unwrap();
    running.wait_for("error: no domain 'template' is loaded").unwrap();
    leave(running);
}

#[test]
fn each_command_has_help_and_an_example() {
    let run = boot_badly(
        &bare("help; help --all; help ping; ping -h; ping 10.0.2.2 --help; lsmdo; nothing-like-it; panic --help"),
        2,
    );
    let text = run.to_string();
    assert_eq!(text.matches("    example: ping 10.0.2.2 -c 3").count(), 3, "{text}");
    assert_says(&text, "there is no command 'lsmdo'; 'help' lists them; did you mean 'lsmod'?");
    let nothing_like_it = "error: there is no command 'nothing-like-it'; 'help' lists them";
    assert!(run.console().iter().any(|line| line == nothing_like_it), "{text}");
    // The commands for tests are not in the short list.
    let help: Vec<&String> = run.console().iter().skip_while(|line| *line != "ringfence> help").skip(1).collect();
    let rows = help.iter().take_while(|line| !line.starts_with("ringfence> ")).count();
    assert!((5..=24).contains(&rows), "{text}");
    assert!(!help[..rows].iter().any(|line| line.contains("trial")), "{text}");
    assert_says(&text, "  trial ");
}

#[test]
fn jobs_are_listed_and_given_up() {
    let run =
        boot_badly(&bare("sleep 100000 &; sleep 100001 &; jobs; kill %1; jobs; kill %7; kill %2; wait; echo over"), 1);
    let text = run.to_string();
    assert_eq!(run.console().iter().filter(|line| line.starts_with("[2] sleep 100001")).count(), 2, "{text}");
    assert_eq!(run.console().iter().filter(|line| line.starts_with("[1] sleep 100000")).count(), 1, "{text}");
    assert_says(&text, "sleep 100000 & is given up");
    assert_says(&text, "error: there is no job %7; 'jobs' lists them");
    assert!(run.console().iter().any(|line| line == "over"), "{text}");
}

/// A user sees one page at a time, a script all pages at once.
#[test]
fn long_output_is_shown_in_pages() {
    let text = boot_well(&bare("help --all | more; echo over"));
    assert!(!text.contains("-- more"), "{text}");
    assert_says(&text, "  trial ");
    let mut running = at_prompt(bare(""));
    running.type_line("help --all | more").unwrap();
    // The first key shows one more row, the second ends the output. Keys that come early wait until
    // the pager asks for one.
    running.type_text("\rq").unwrap();
    running.type_line("echo over").unwrap();
    running.wait_for("ringfence> echo over").unwrap();
    running.type_line("shutdown").unwrap();
    let text = running.finish(|_| ()).unwrap().text();
    assert_eq!(text.matches("-- more: ").count(), 2, "{text}");
    assert_says(&text, "  insmod ");
    assert!(!text.contains("  trial "), "{text}");
}

#[test]
fn the_machine_starts_again_on_demand() {
    let mut running = at_prompt(bare(""));
    running.type_line("reboot").unwrap();
    assert_eq!(running.finish(|_| ()).unwrap().end, End::Reboot);
    // A script ends instead of rebooting.
    boot_badly(&bare("reboot; echo over"), 1);
}

#[test]
fn modules_functions_and_lines_are_shown_in_full() {
    let text = boot_well(&machine("ip; ping 10.0.2.2 -c 1; kill e1000; sleep 500; lsmod -v; lspci -v; irqs"));
    assert_says(&text, "1 restarts, 0 faults, heap ");
    let nic: Vec<&str> = text.lines().skip_while(|line| !line.contains("8086:100e")).take(5).collect();
    assert!(nic[2].contains("driver e1000, line 10, bus master on"), "{nic:#?}");
    assert!(nic[3].contains("BAR 0: 0x") && nic[3].contains("0x20000 bytes"), "{nic:#?}");
    assert_says(&text, "capabilities: MSI-X at 0x");
    let line: Vec<&str> = text.lines().filter(|line| line.starts_with("line 10 ")).collect();
    assert!(line.len() == 1 && line[0].ends_with("  e1000"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("line  0 ") && line.ends_with("  timer")), "{text}");
}

#[test]
fn the_log_is_shown_by_level_and_driver() {
    let script = "insmod template; insmod rogue; fails tell rogue panic; mute echo; echo all:; dmesg; echo errors:; dmesg error; \
                  echo template:; dmesg template";
    let run = boot_well(&bare(script));
    let part = |from: &str| -> Vec<&str> {
        let behind = run.lines().skip_while(move |line| *line != from).skip(1);
        behind.take_while(|line| !line.starts_with("ringfence> echo")).collect()
    };
    let has = |lines: &[&str], text: &str| lines.iter().any(|line| line.contains(text));
    let (all, errors, template) = (part("all:"), part("errors:"), part("template:"));
    assert!(has(&all, "protections: ") && has(&all, "template: loaded") | has(&all, "template| "), "{run}");
    assert!(has(&errors, "fault: rogue: gave up") && !has(&errors, "protections: "), "{run}");
    assert!(has(&template, "template| ") && !has(&template, "rogue"), "{run}");
}

/// A refused module file, and a card without a driver, each get a line.
#[test]
fn what_is_not_used_is_said_at_boot() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.rfm");
    std::fs::write(&file, b"nothing of the kind").unwrap();
    let mut machine = machine("lsmod");
    machine.nic = "i82551".into();
    machine.contents.modules.push(file);
    let text = machine.run(system(), |_| ()).unwrap().text();
    assert_says(&text, "broken.rfm is refused: ");
    assert_says(&text, "no module drives the network card (8086:1209)");
}

/// A panic's reason and place are in the headline of the report and in the list of faults.
#[test]
fn the_reason_of_a_panic_is_in_its_headline() {
    let text = boot_well(&bare("insmod rogue; fails tell rogue panic; faults"));
    let said = "rogue: gave up, in command: panicked at drivers/rogue/src/attacks.rs:";
    assert_eq!(
        text.lines().filter(|line| line.contains(said) && line.ends_with(": as it was told")).count(),
        2,
        "{text}"
    );
}

/// Ctrl-C works even behind much input that was typed ahead.
#[test]
fn ctrl_c_is_heard_behind_what_was_typed_ahead() {
    let mut running = at_prompt(bare(""));
    running.type_line("sleep 1000000").unwrap();
    running.type_line(&"echo this is not run\r".repeat(200)).unwrap();
    running.type_text("\x03").unwrap();
    running.type_line("echo it is over").unwrap();
    let mut said = String::new();
    while said != "it is over" {
        said = running.wait_for("").unwrap();
        assert_ne!(said, "this is not run");
    }
    leave(running);
}
