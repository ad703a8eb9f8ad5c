//! The labs of docs/labs.md: a folder as it is to begin with fails, and a right solution passes.

use ringfence::project;
use ringfence_tests::runner;
use std::path::Path;
use std::process::Command;

/// Runs `lab` in the project's folder. Returns whether it passes, and its output.
fn lab(arguments: &[&str]) -> (bool, String) {
    let mut lab = Command::new(runner());
    // Lets cargo build the folder's package where other packages are built.
    lab.current_dir(project()).arg("lab").args(arguments);
    let output = lab.output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    (output.status.success(), said)
}

/// Makes the folder of a lab, which must fail; changes it, and checks it again, with these further
/// arguments: the tests of a class have tests of their own.
fn solve(number: &str, only: &[&str], fails: &[&str], solution: impl FnOnce(&Path)) {
    ringfence_tests::system();
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join(format!("lab-{number}"));
    let path = own.to_str().unwrap();
    let (made, said) = lab(&[number, path, "--start"]);
    assert!(made, "{said}");
    let (passes, said) = lab(&[&[number, path], only].concat());
    assert!(!passes, "{said}");
    for what in fails {
        assert!(said.contains(&format!("FAILED  {what}")), "{what}: {said}");
    }
    solution(&own);
    let (passes, said) = lab(&[&[number, path], only].concat());
    assert!(passes, "{said}");
    let (again, said) = lab(&[number, path, "--start"]);
    assert!(!again && said.contains("is there already"), "{said}");
}

/// Checks that a mend which is none is noticed: text of a lab's library is replaced, and the
/// checker must say this.
fn is_noticed(number: &str, from: &str, to: &str, says: &str) {
    ringfence_tests::system();
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join(format!("lab-{number}"));
    let path = own.to_str().unwrap();
    let (made, said) = lab(&[number, path, "--start"]);
    assert!(made, "{said}");
    change(&own, from, to);
    let (passes, said) = lab(&[number, path]);
    assert!(!passes && said.contains(says), "{to}: {said}");
}

/// Replaces text in the folder's library.
fn change(folder: &Path, from: &str, to: &str) {
    let path = folder.join("src/lib.rs");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn lab_1_is_about_a_frame_that_is_not_given_back() {
    solve("1", &["--only", "ring-dry"], &[], |folder| change(folder, "take_if(|_| slot + 1 < SENDING)", "take()"));
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn lab_2_is_about_an_index() {
    solve("2", &[], &["the driver is not ended"], |folder| {
        change(
            folder,
            "unsafe { &mut *self.cells.as_mut_ptr().add(number()?) }",
            "self.cells.get_mut(number()?).ok_or(Refusal::Invalid)?",
        );
    });
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn lab_3_is_about_batches() {
    let measured = Command::new(runner())
        .args(["--icount", "--json", "--nic", "rtl8139", "--exec", "bench nic/tx --instructions"])
        .output()
        .unwrap();
    let rows: Vec<serde_json::Value> =
        String::from_utf8_lossy(&measured.stdout).lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    solve("3", &[], &["batch 1, ring 1", "batch 32, ring 0"], |folder| {
        let median = |batch: u64, ring: u64| {
            let mut of = rows.iter().map(|row| &row["bench"]);
            let is_it = |row: &&serde_json::Value| row["batch"] == batch && row["ring"] == ring;
            of.find(is_it).unwrap_or_else(|| panic!("{rows:?}"))["median"].as_f64().unwrap().round()
        };
        let line = |batch| format!("batch {batch}: ring 1 {}, ring 0 {}\n", median(batch, 1), median(batch, 0));
        std::fs::write(folder.join("answers.txt"), [1, 8, 32].map(line).concat()).unwrap();
    });
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn lab_4_is_about_a_receive_path() {
    solve("4", &["--only", "dhcp"], &[], |folder| {
        let source = std::fs::read_to_string(project().join("drivers/ne2k-pci/src/lib.rs")).unwrap();
        let (_, body) = source.split_once("    fn receive(&mut self, queues: &mut Queues) {\n").unwrap();
        let (body, _) = body.split_once("\n    }\n").unwrap();
        change(folder, "        let _ = queues;", body);
    });
}

#[test]
fn lab_5_is_about_a_start_and_a_length() {
    solve("5", &[], &["no caller gets more than its own"], |folder| {
        change(
            folder,
            "    let offset = (start - memory.start) as usize;\n    \
             Some(memory.bytes[offset..offset + len_bytes as usize].to_vec())\n",
            "    let offset = usize::try_from(start.checked_sub(memory.start)?).ok()?;\n    \
             let len = usize::try_from(len_bytes).ok().filter(|_| len_bytes <= MOST)?;\n    \
             Some(memory.bytes.get(offset..offset.checked_add(len)?)?.to_vec())\n",
        );
    });
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn lab_6_is_about_a_reset() {
    solve(
        "6",
        &[],
        &["its recipe resets the card", "it comes back each time", "the network works after that"],
        |folder| {
            change(
                folder,
                ".waits_for(command::RESET as u32, command::RESET as u32)",
                ".waits_for(command::RESET as u32, 0)",
            );
        },
    );
}

#[test]
fn the_labs_are_listed() {
    let (listed, said) = lab(&[]);
    assert!(listed && said.contains("4  write the receive path of the NE2000"), "{said}");
    let (there, said) = lab(&["7"]);
    assert!(!there && said.contains("there are labs 1 to 6, and not 7"), "{said}");
    let (there, said) = lab(&["2", "/nowhere"]);
    assert!(!there && said.contains("there is no folder /nowhere: 'lab 2 /nowhere --start' makes it"), "{said}");
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn half_a_mend_of_lab_2_is_noticed() {
    let index = "let cell = unsafe { &mut *self.cells.as_mut_ptr().add(number()?) };";
    let only = |check: &str| {
        format!("let index = number()?;\n{check}\nlet cell = unsafe {{ &mut *self.cells.as_mut_ptr().add(index) }};")
    };
    for check in ["index > CELLS", "index.wrapping_mul(8) >= 8 * CELLS", "index >= CELLS && verb == \"set\""] {
        let to = only(&format!("if {check} {{ return Err(Refusal::Invalid); }}"));
        is_noticed("2", index, &to, "FAILED  each wrong index is refused");
    }
    let last = only("if index >= CELLS - 1 { return Err(Refusal::Invalid); }");
    is_noticed("2", index, &last, "FAILED  all 16 cells can be used");
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn what_is_no_mend_of_lab_5_is_noticed() {
    let begins = "    let offset = (start - memory.start) as usize;\n";
    let with = |line: &str| format!("    {line}\n{begins}");
    is_noticed("5", begins, &with("std::process::exit(0);"), "the kernel ends: ");
    is_noticed("5", begins, &with("while len_bytes > MOST {}"), "it does not return: ");
    let caught = with(
        "if len_bytes > MOST || std::panic::catch_unwind(|| memory.bytes[start as usize]).is_err() { return None; }",
    );
    is_noticed("5", begins, &caught, "the kernel ends: ");
    is_noticed("5", begins, &with("if memory.start > 0 { return None; }"), "None instead of Some of ");
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn what_is_no_mend_of_lab_6_is_noticed() {
    let waits = ".waits_for(command::RESET as u32, command::RESET as u32)";
    for none in ["", ".waits_for(0, 0)"] {
        is_noticed("6", waits, none, "it does not wait for the end of the reset");
    }
}
