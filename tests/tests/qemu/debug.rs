//! Drivers under gdb: the real one, connected to the stub in the kernel.

use crate::segments::are_built;
use ringfence::machine::Running;
use ringfence::session::Session;
use ringfence_abi::layout::{STUBS, slot_base};
use ringfence_abi::service::SERVICES;
use ringfence_link::event::{Driver, Event};
use ringfence_tests::attacks::{Expected, rogue};
use ringfence_tests::gdb::Gdb;
use ringfence_tests::{
    assert_says, at_prompt, bare, boot_badly, leave, machine, outcome, run_well, runner, serves, wait_for_address,
};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Returns the driver called `name`, as `lsmod` tells of it.
fn driver(running: &mut Running, name: &str) -> Driver<'static> {
    running.type_line("lsmod").unwrap();
    running
        .wait_for_event(name, |event| match event {
            Event::Drivers(drivers) => drivers.into_iter().find(|driver| driver.name == name),
            _ => None,
        })
        .unwrap()
}

/// Returns the hash that the next command prints which reads blocks.
fn data(running: &mut Running) -> String {
    running
        .wait_for_event("data", |event| match event {
            Event::Data { sha256, .. } => Some(sha256.to_string()),
            _ => None,
        })
        .unwrap()
}

/// The SCSI driver stands with a request, whose fields have their names. Meanwhile the network
/// driver works, and the kernel does not take the SCSI driver for stuck. Then the read has its
/// data.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_driver_stands_while_everything_else_goes_on() {
    let mut machine = machine("");
    let disk = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(disk.path(), vec![0x5a; 1 << 20]).unwrap();
    machine.disks = vec![disk.path().to_path_buf().into()];
    let mut running = at_prompt(machine);
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    run_well(&mut running, "limits command-ms 100");
    running.type_line("blkread disk0 8 8").unwrap();
    let right = data(&mut running);
    let mut gdb = Gdb::start(&running, Some("virtio-scsi"));
    // Without optimization every variable has a place.
    let module = ringfence::build::for_debugger("virtio-scsi").unwrap();
    let mut session = Session::connect(&running.session()).unwrap();
    gdb.give("continue");
    let pushed = std::thread::spawn(move || {
        let bytes = std::fs::read(&module.packed).unwrap();
        session.push("virtio-scsi", &bytes, Some(&module.debug), &[], true, |_| ()).unwrap()
    });
    let stopped = gdb.wait();
    assert!(stopped.contains("SIGTRAP") && stopped.contains("rf_upcall (operation="), "{stopped}");
    let set = gdb.run("break rf_virtio_scsi::VirtioScsi::submit");
    assert!(set.contains("Breakpoint 1 at 0x100"), "{set}");
    gdb.give("continue");
    assert!(pushed.join().unwrap().unwrap().contains("serves in ring 1"));
    running.type_line("blkread disk0 8 8 &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("hit Breakpoint 1, rf_virtio_scsi::VirtioScsi::submit"), "{stopped}");
    assert_eq!(driver(&mut running, "virtio-scsi").state, "in the debugger");
    // gdb sees the driver's own code where its breakpoint is.
    let code = gdb.run("x/i $pc");
    assert!(code.starts_with("=> 0x100") && !code.contains("int3"), "{code}");
    let threads = gdb.run("info threads");
    assert!(threads.contains("(virtio-scsi, ring 1, in the debugger)"), "{threads}");
    assert!(threads.contains("(e1000, ring 1, running)"), "{threads}");
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    // READ(10) of 8 blocks from 8.
    let request = gdb.run("print/x request.cdb");
    assert!(request.contains("= [0x28, 0x0, 0x0, 0x0, 0x0, 0x8, 0x0, 0x0, 0x8, 0x0"), "{request}");
    assert!(gdb.run("print request.data_len").contains("= 4096"));
    let line = |said: &str| said.lines().find_map(|line| line.split_whitespace().next()?.parse::<u32>().ok()).unwrap();
    let [first, second] = [gdb.run("next"), gdb.run("next")].map(|said| line(&said));
    assert_eq!(second, first + 1);
    let caller = gdb.run("backtrace");
    assert!(caller.contains("rf_virtio_scsi::{impl#0}::poll"), "{caller}");
    // Several times the time after which a driver is ended that leaves a command undone.
    run_well(&mut running, "sleep 1");
    gdb.run("delete");
    gdb.give("continue");
    assert_eq!(data(&mut running), right);
    let now = driver(&mut running, "virtio-scsi");
    assert!(serves(&now) && now.restarts == 0, "{now:?}");
    // gdb waits for a driver that stands.
    gdb.kill();
    leave(running);
}

/// A network driver that stands with frames to send is not taken for stuck, neither meanwhile nor
/// when it goes on.
#[test]
fn a_card_may_be_slow_while_its_driver_stands() {
    let mut running = at_prompt(machine(""));
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    run_well(&mut running, "limits transmit-ms 100");
    let mut gdb = Gdb::start(&running, Some("e1000"));
    gdb.run("break rf_e1000::_::rf_upcall");
    gdb.give("continue");
    running.type_line("ping 10.0.2.2 -c 1 &").unwrap();
    assert!(gdb.wait().contains("Breakpoint 1"));
    run_well(&mut running, "sleep 1");
    assert_eq!(driver(&mut running, "e1000").state, "in the debugger");
    gdb.run("delete");
    gdb.give("continue");
    run_well(&mut running, "ping 10.0.2.2 -c 2");
    let now = driver(&mut running, "e1000");
    assert!(serves(&now) && now.restarts == 0, "{now:?}");
    gdb.kill();
    leave(running);
}

/// A step into a gate ends behind it, when the service has done its work.
#[test]
fn a_step_goes_through_a_gate() {
    let mut running = at_prompt(bare(""));
    let mut gdb = Gdb::start(&running, None);
    gdb.give("continue");
    running.type_line("insmod template --debug &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("rf_upcall (operation=0"), "{stopped}");
    let log = SERVICES.iter().position(|service| service.symbol == "rf_log").unwrap() as u64;
    let stub = slot_base(0) + STUBS + 32 * log;
    gdb.run(&format!("tbreak *{stub:#x}"));
    gdb.run("continue");
    assert!(gdb.run("x/i $pc").contains("lcall"));
    let before = gdb.run("info registers rbx rsp rbp r12 r13 r14 r15");
    gdb.run("stepi");
    running.wait_for("hello from a driver that does not know its ring").unwrap();
    let code = gdb.run("x/i $pc");
    assert!(code.contains("ret") && code.contains(&format!("{:x}", stub + 6)), "{code}");
    assert_eq!(gdb.run("info registers rbx rsp rbp r12 r13 r14 r15"), before);
    assert!(gdb.run("print $rax").contains("= 0"), "the service's result");
    gdb.run("stepi");
    assert!(gdb.run("x/i $pc").contains("rf_template") || gdb.run("backtrace 1").contains("ringfence_sdk"));
    // A step that ends the upcall ends where the next one begins.
    let last = slot_base(0) + STUBS + 32 * SERVICES.len() as u64;
    gdb.run(&format!("tbreak *{last:#x}"));
    gdb.run("continue");
    gdb.give("stepi");
    running.wait_for("template: loaded into ring 1").unwrap();
    running.type_line("tell template x &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("rf_upcall (operation="), "{stopped}");
    gdb.give("continue");
    running.wait_for("template: 1 (0x1)").unwrap();
    gdb.kill();
    leave(running);
}

/// A driver that faults stands at the faulting instruction. It is ended by that fault when gdb
/// passes the signal on, and goes on if a person has mended its registers.
#[test]
fn a_driver_that_faults_stands_before_it_is_ended() {
    let mut running = at_prompt(bare(""));
    run_well(&mut running, "insmod rogue");
    let mut gdb = Gdb::start(&running, Some("rogue"));
    gdb.give("continue");
    running.type_line("tell rogue write 0xffff800000000000 &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("received signal SIGSEGV"), "{stopped}");
    assert!(stopped.contains("rf_rogue::attacks::write"), "{stopped}");
    assert_eq!(driver(&mut running, "rogue").state, "in the debugger");
    let code = gdb.run("x/i $pc");
    assert!(code.contains("movq   $0x41,(%rdi)"), "{code}");
    // Its own mailbox.
    gdb.run("set $rdi = 0x8001f00000");
    gdb.give("signal 0");
    running.wait_for("rogue: 0 (0x0)").unwrap();
    running.type_line("tell rogue write 0xffff800000000000 &").unwrap();
    assert!(gdb.wait().contains("SIGSEGV"));
    gdb.give("continue");
    running.wait_for("fault: rogue: #PF writing 0xffff800000000000").unwrap();
    running.wait_for("at rf_rogue::attacks::write+").unwrap();
    gdb.kill();
    leave(running);
}

/// A driver that a service would end stands behind its call, and so does a driver that panics.
#[test]
fn a_driver_that_a_service_ends_stands_before() {
    let mut running = at_prompt(bare(""));
    run_well(&mut running, "insmod rogue");
    let mut gdb = Gdb::start(&running, Some("rogue"));
    gdb.give("continue");
    running.type_line("tell rogue log-pointer 0 &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("received signal SIGSYS"), "{stopped}");
    let place = gdb.run("backtrace 4");
    // The attack itself ended with the call.
    assert!(place.starts_with("#0") && place.contains("::command (text=..."), "{place}");
    assert_eq!(driver(&mut running, "rogue").state, "in the debugger");
    gdb.give("continue");
    running.wait_for("fault: rogue: bad pointer to rf_log: 0x10 bytes at 0x0").unwrap();
    running.wait_for("did not return").unwrap();
    run_well(&mut running, "rmmod rogue");
    run_well(&mut running, "insmod rogue");
    running.type_line("tell rogue panic &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("received signal SIGABRT"), "{stopped}");
    let place = gdb.run("backtrace 12");
    assert!(place.contains("ringfence_sdk::panic::"), "{place}");
    gdb.kill();
    // Without its debugger, it is ended as it would have been.
    running.wait_for("fault: rogue: gave up, in command").unwrap();
    leave(running);
}

/// A filesystem's driver stands in the middle of a copy: the disk's driver, the network and the
/// shell run on, and the copy is whole.
#[test]
fn a_filesystem_stands_under_open_files() {
    let directory = tempfile::TempDir::new().unwrap();
    let image = ringfence_tests::filesystem::fat(directory.path(), 8 << 10, 16);
    let content: Vec<u8> = (0..300_000u32).map(|number| (number / 7) as u8).collect();
    image.put("big", &content).unwrap();
    let mut machine = machine("");
    machine.disks = vec![image.0.clone().into()];
    let mut running = at_prompt(machine);
    wait_for_address(&mut running, [10, 0, 2, 15]);
    run_well(&mut running, "mount disk0 /mnt");
    let mut gdb = Gdb::start(&running, Some("fat"));
    // The crate's function that writes into the clusters of a file.
    let set = gdb.run("break hadris_fat::sync::fatfs::FatFs<rf_fat::disk::Blocks>::fill<rf_fat::disk::Blocks>");
    assert!(set.contains("Breakpoint 1 at 0x"), "{set}");
    gdb.give("continue");
    running.type_line("cp /mnt/big /mnt/copy &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("fatfs::FatFs<rf_fat::disk::Blocks>::fill"), "{stopped}");
    let place = gdb.run("backtrace");
    assert!(place.contains("ringfence_sdk::fs::") && place.contains("carry_out"), "{place}");
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    run_well(&mut running, "blkread disk0 0 100");
    assert_eq!(driver(&mut running, "fat").state, "in the debugger");
    gdb.run("delete");
    gdb.give("continue");
    running.wait_for("cp /mnt/big /mnt/copy & is done").unwrap();
    gdb.kill();
    run_well(&mut running, "umount /mnt");
    leave(running);
    ringfence_tests::filesystem::assert_clean(&image);
    assert!(image.get("copy").unwrap() == content);
}

/// Gdb's breakpoints and its changes of registers are gone when it dies: a driver that stands goes
/// on with the registers that it had, and meets no breakpoint any more.
#[test]
fn nothing_stays_of_a_debugger_that_dies() {
    let mut machine = machine("");
    let disk = ringfence::machine::empty_disk().unwrap();
    machine.disks = vec![disk.path().to_path_buf().into()];
    let mut running = at_prompt(machine);
    running.type_line("blkread disk0 0 8").unwrap();
    let right = data(&mut running);
    let mut gdb = Gdb::start(&running, None);
    gdb.run("break rf_virtio_scsi::_::rf_upcall");
    gdb.run("watch *(0x10001f00000 as *mut u64)");
    assert_eq!(
        outcome(&mut running, "ring virtio-scsi 0").as_deref(),
        Some("virtio-scsi stays in ring 1: a debugger has breakpoints in it, or has stopped it")
    );
    gdb.give("continue");
    running.type_line("blkread disk0 0 8 &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("hit Breakpoint 1"), "{stopped}");
    gdb.run("set $rip = 0");
    gdb.run("set $rsp = 8");
    assert!(gdb.run("print $rip").contains("0x0"));
    // Nobody tells the kernel, which notices after a while.
    gdb.kill();
    assert_eq!(data(&mut running), right);
    running.type_line("blkread disk0 0 8").unwrap();
    assert_eq!(data(&mut running), right);
    run_well(&mut running, "ring virtio-scsi 0");
    assert_eq!(driver(&mut running, "virtio-scsi").restarts, 0);
    leave(running);
}

/// gdb sees the memory of drivers, and nothing of the kernel, and no registers of devices.
#[test]
fn the_kernel_and_devices_are_out_of_reach() {
    let mut running = at_prompt(machine(""));
    let mut gdb = Gdb::start(&running, Some("e1000"));
    assert!(gdb.run("x/1bx 0x8000430000").contains("0x7f"), "the driver's ELF header");
    for address in ["0xffffffff80200000", "0xffff800000000000", "0xffffffffc0000000", "0x802_01a_0000", "0"] {
        let address = address.replace('_', "");
        let read = gdb.run(&format!("x/8bx {address}"));
        assert!(read.contains("Cannot access memory at address"), "{address}: {read}");
        let written = gdb.run(&format!("set *({address} as *mut u8) = 1"));
        assert!(written.contains("Cannot access memory at address"), "{address}: {written}");
    }
    let modules = gdb.run("monitor lsmod");
    assert!(modules.contains("e1000            1    0") && !modules.contains("error"), "{modules}");
    assert!(gdb.run("monitor nope").contains("error: there is no command 'nope'"));
    gdb.leave();
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    leave(running);
}

/// A driver that stands in its `exit` is unloaded when it goes on.
#[test]
fn a_driver_can_stand_in_its_exit() {
    let mut running = at_prompt(bare(""));
    run_well(&mut running, "insmod template");
    let mut gdb = Gdb::start(&running, None);
    gdb.run("break rf_template::_::rf_upcall");
    gdb.give("continue");
    running.type_line("rmmod template &").unwrap();
    let stopped = gdb.wait();
    // The compiler may take the first instruction for one of the SDK's function that is inlined.
    let is_there = ["rf_template::_::rf_upcall (operation=2", "::enter<rf_template::Template> (operation=2"];
    assert!(stopped.contains("Breakpoint 1, ") && is_there.iter().any(|text| stopped.contains(text)), "{stopped}");
    gdb.give("continue");
    running.wait_for("template| good-bye").unwrap();
    running.wait_for("template: unloaded").unwrap();
    gdb.kill();
    leave(running);
}

/// A driver whose registers are watched can be debugged: neither tool disturbs the other.
#[test]
fn a_driver_is_watched_and_debugged_at_once() {
    let mut running = at_prompt(machine(""));
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    let mut gdb = Gdb::start(&running, Some("e1000"));
    // The writes of registers, which are stepped over.
    gdb.run("break drivers/sdk/src/device.rs:161");
    gdb.run("commands\nsilent\nstepi\nstepi\ncontinue\nend");
    gdb.give("continue");
    // The first answer may be taken before its interrupt, which comes before the second answer.
    running.type_line("watch e1000 mmio ping 10.0.2.2 -c 2 -i 0.1").unwrap();
    for said in ["2 sent, 2 answered", "* writes TDT 0x", "* reads ICR 0x"] {
        running.wait_for(said).unwrap();
    }
    gdb.kill();
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    leave(running);
}

/// A command for the shell that waits for the driver that stands does not keep the session for
/// ever. A driver in ring 0 is neither stopped nor written to.
#[test]
fn a_session_ends_in_the_middle_of_a_command() {
    let mut running = at_prompt(bare(""));
    ["insmod template", "insmod rogue", "ring rogue 0"].into_iter().for_each(|line| run_well(&mut running, line));
    let mut gdb = Gdb::start(&running, None);
    let rogue = gdb.run("info threads").lines().position(|line| line.contains("(rogue, ring 0, running)"));
    assert!(rogue.is_some());
    gdb.run("break rf_rogue::_::rf_upcall");
    assert!(gdb.run("set *(0x10001f00000 as *mut u64) = 1").contains("Cannot access memory"));
    gdb.run("break rf_template::_::rf_upcall");
    gdb.give("continue");
    running.type_line("tell template x &").unwrap();
    let said = gdb.wait();
    assert!(said.contains("rogue runs in ring 0, where no breakpoint stops it; 'monitor ring rogue 1'"), "{said}");
    gdb.give("monitor tell template y");
    gdb.kill();
    running.wait_for("template: 1 (0x1)").unwrap();
    run_well(&mut running, "tell template z");
    leave(running);
}

/// Ctrl-C has the driver stand that gdb was started for, or all drivers that can stand: where the
/// next upcall begins. Nothing is lost when they go on.
#[test]
fn a_person_interrupts_drivers() {
    let mut running = at_prompt(bare(""));
    ["insmod template", "insmod null", "insmod null", "ring null.2 0"]
        .into_iter()
        .for_each(|line| run_well(&mut running, line));
    let stands = |running: &mut Running, name| driver(running, name).state == "in the debugger";
    let interrupt = |running: &mut Running, gdb: &mut Gdb| {
        gdb.give("continue");
        gdb.wait_until("Continuing.");
        // Until the drivers go on, gdb takes an interrupt for one of its own.
        while stands(running, "template") {}
        gdb.interrupt();
        gdb.wait()
    };
    let mut gdb = Gdb::start(&running, Some("template"));
    let stopped = interrupt(&mut running, &mut gdb);
    assert!(stopped.contains("SIGINT") && stopped.contains("rf_template::_::rf_upcall"), "{stopped}");
    assert_eq!(["template", "null"].map(|name| stands(&mut running, name)), [true, false]);
    running.type_line("tell template x &").unwrap();
    run_well(&mut running, "tell null calls 1");
    gdb.give("continue");
    running.wait_for("template: 1 (0x1)").unwrap();
    // It goes on as well when gdb detaches.
    gdb.interrupt();
    assert!(gdb.wait().contains("SIGINT"));
    gdb.leave();
    run_well(&mut running, "tell template x");
    let mut gdb = Gdb::start(&running, None);
    let stopped = interrupt(&mut running, &mut gdb);
    assert!(stopped.contains("null.2, ring 0, running: goes on"), "{stopped}");
    assert_eq!(["template", "null", "null.2"].map(|name| stands(&mut running, name)), [true, true, false]);
    // One `continue` is for all of them.
    gdb.give("continue");
    ["tell template y", "tell null calls 1"].into_iter().for_each(|line| run_well(&mut running, line));
    gdb.kill();
    leave(running);
}

/// The debug registers watch a driver's memory.
#[test]
fn a_watchpoint_stops_the_driver_that_writes() {
    let mut running = at_prompt(bare(""));
    run_well(&mut running, "insmod rogue");
    let mut gdb = Gdb::start(&running, None);
    // The driver's mailbox.
    let set = gdb.run("watch *(0x8001f00008 as *mut u64)");
    assert!(set.contains("Hardware watchpoint 1"), "{set}");
    gdb.give("continue");
    running.type_line("tell rogue write 0x8001f00008 &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("Hardware watchpoint 1") && stopped.contains("New value = 65"), "{stopped}");
    assert!(stopped.contains("rf_rogue::attacks::write"), "{stopped}");
    gdb.run("delete");
    gdb.give("continue");
    running.wait_for("rogue: 0 (0x0)").unwrap();
    gdb.kill();
    leave(running);
}

/// With a debugger that stops at each fault and passes it on, hostile drivers are ended as ever.
#[test]
fn the_debugger_is_no_help_to_a_hostile_driver() {
    let mut running = at_prompt(bare("limits restarts 100"));
    run_well(&mut running, "insmod rogue");
    let mut gdb = Gdb::start(&running, None);
    gdb.run("handle all pass nostop noprint");
    gdb.run("break rf_rogue::attacks::divide");
    gdb.give("continue");
    for attack in rogue::under_debugger() {
        let (tell, Expected::Fault(fault)) = (&attack.tell, &attack.expected) else { panic!("{attack:?}") };
        running.type_line(&format!("tell rogue {tell}")).unwrap();
        let fault_of = |event| match event {
            Event::Fault(fault) if fault.driver == "rogue" => Some(fault.headline.into_owned()),
            _ => None,
        };
        let headline = running.wait_for_event(tell, fault_of).unwrap();
        assert!(headline.contains(fault.as_str()), "{tell}: {headline}");
        run_well(&mut running, "rmmod rogue");
        run_well(&mut running, "insmod rogue");
    }
    gdb.kill();
    run_well(&mut running, "integrity");
    leave(running);
}

/// Visual Studio Code's debugger speaks with gdb in its machine interface.
#[test]
fn what_vs_code_says_to_gdb_connects_it() {
    let mut running = at_prompt(machine(""));
    let project = ringfence::project();
    let read = |name: &str| {
        let text = std::fs::read_to_string(project.join(".vscode").join(name)).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let (launch, tasks) = (read("launch.json"), read("tasks.json"));
    let launch = &launch["configurations"][0];
    let task = tasks["tasks"].as_array().unwrap().iter().find(|task| task["label"] == launch["preLaunchTask"]).unwrap();
    let task = task["command"].as_str().unwrap().strip_prefix("cargo run -q -- ").unwrap();
    // The task names no system, as a person has only one; here other tests run as well.
    let (arguments, file) = task.split_once(" > ").unwrap();
    let system = running.session().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let made = Command::new(runner()).args(arguments.split(' ')).args(["--system", &system]).output().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("target")).unwrap();
    std::fs::write(folder.path().join(file), made.stdout).unwrap();
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "--interpreter=mi"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut gdb = gdb.spawn().unwrap();
    let mut input = gdb.stdin.take().unwrap();
    for command in launch["customLaunchSetupCommands"].as_array().unwrap() {
        let text = command["text"].as_str().unwrap();
        writeln!(input, "{}", text.replace("${workspaceFolder}", &folder.path().to_string_lossy())).unwrap();
    }
    writeln!(input, "-break-insert -f rf_e1000::_::rf_upcall\n-exec-continue").unwrap();
    let mut lines = BufReader::new(gdb.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("^running")), "gdb does not run the drivers");
    running.type_line("ping 10.0.2.2 -c 1 &").unwrap();
    let stopped = lines.find(|line| line.starts_with("*stopped")).unwrap();
    assert!(stopped.contains("breakpoint-hit") && stopped.contains("rf_e1000"), "{stopped}");
    assert_eq!(driver(&mut running, "e1000").state, "in the debugger");
    writeln!(input, "-target-detach\n-gdb-exit").unwrap();
    gdb.wait().unwrap();
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    leave(running);
}

/// Returns what gdb says about a core file.
fn gdb_with_core(file: &str, commands: &[&str]) -> String {
    let mut gdb = Command::new(runner());
    gdb.args(["gdb", "--core", file, "--", "-nx", "-batch", "-ex", "set width 0"]);
    commands.iter().for_each(|command| _ = gdb.args(["-ex", command]));
    String::from_utf8_lossy(&gdb.output().unwrap().stdout).into_owned()
}

/// A core file of 32-bit code is one of that class: a fault in its own code, and one in a service.
#[test]
fn a_core_file_shows_a_driver_of_32_bit_code() {
    if !are_built() {
        return;
    }
    let script = "insmod rogue-segment; tell rogue-segment pop-null-ss; rmmod rogue-segment; \
                  insmod rogue-nic.32; tell rogue-nic panic-at 0x430000 16; rmmod rogue-nic; \
                  faults 1 --core narrow-fault; faults 2 --core narrow-panic";
    let mut machine = machine(script);
    machine.contents.autoload = false;
    boot_badly(&machine, 2);
    let said = gdb_with_core("narrow-fault", &["backtrace", "x/i $pc", "info registers", "x/x $esp"]);
    assert_says(&said, "Program terminated with signal SIGSEGV");
    assert_says(&said, "drivers/rogue-segment/rogue-segment.c:");
    assert_says(&said, "pop    %ss");
    let has = |register: &str| said.lines().any(|line| line.starts_with(register));
    assert!(has("eip ") && !has("rip "), "{said}");
    // The word that it takes for a selector is on its stack.
    let words: Vec<&str> = said.lines().filter(|line| line.ends_with("0x00000000") && line.starts_with("0x")).collect();
    assert_eq!(words.len(), 1, "{said}");
    let said = gdb_with_core("narrow-panic", &["backtrace"]);
    assert_says(&said, "Program terminated with signal SIGABRT");
    assert_says(&said, "rf_rogue_nic::");
}

/// The registers, the memory and the source line of a driver that is long gone: a fault in its own
/// code, and one in a service.
#[test]
fn a_core_file_shows_a_driver_that_is_gone() {
    let script = "insmod rogue; tell rogue write @kernel-text; rmmod rogue; insmod rogue; tell rogue panic; rmmod rogue; \
                  faults 1 --core test-wild; faults 2 --core test-panic; faults 1 --core ../test; faults 9 --core a; \
                  insmod rogue; kill rogue; faults 3 --core a; faults 1 b";
    let text = boot_badly(&bare(script), 6).to_string();
    for error in [
        "a core file's name has up to 64 letters, digits, '.', '-', '_' and '#', not '../test'",
        "fault 9 is not kept",
        "no memory of the driver is kept: it was ended between upcalls, or long ago",
    ] {
        assert_says(&text, &format!("error: {error}"));
    }
    let said = gdb_with_core("test-wild", &["backtrace", "x/i $pc", "p/x $rdi"]);
    assert_says(&said, "Program terminated with signal SIGSEGV");
    assert_says(&said, "#0  rf_rogue::attacks::write (address=");
    assert_says(&said, "at drivers/rogue/src/attacks.rs:");
    // Its caller is found by the stack's content.
    assert_says(&said, "rf_rogue::{impl#0}::command");
    assert_says(&said, "movq   $0x41,(%rdi)");
    assert_says(&said, "= 0xffffffff8");
    let said = gdb_with_core("test-panic", &["backtrace"]);
    assert_says(&said, "Program terminated with signal SIGABRT");
    assert_says(&said, "rf_rogue::{impl#0}::command");
    let none = Command::new(runner()).args(["gdb", "--core", "no-such-core"]).output().unwrap();
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("no-such-core"));
}

#[test]
fn what_needs_a_debugger_says_so() {
    let text = boot_badly(&bare("insmod template --debug; insmod template --debug --ring 0"), 2).to_string();
    assert_says(&text, "error: no debugger is there; 'cargo run -- gdb' starts one");
    let output = Command::new(runner()).args(["gdb", "--system", "none"]).output().unwrap();
    assert!(!output.status.success());
}
