//! Ring 0 is for modules that have earned it: by a signature, by a record, by a report, or by
//! force. Other tests show how a module loses it.

use crate::network::{echoing, free_port, pattern, read, serving};
use ringfence::images::Fat;
use ringfence::machine::{End, Machine, Protocol};
use ringfence_core::evidence::hex;
use ringfence_core::evidence::record::{Chain, Done};
use ringfence_core::evidence::report::Report;
use ringfence_core::evidence::signed::{Purpose, SecretKey, Signed, identity, sign};
use ringfence_tests::filesystem::fat;
use ringfence_tests::{Ran, assert_says, bare, boot, boot_badly, boot_well, leave, machine, paged, run_well, system};
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const BY_SIGNATURE: &str = "admit = [[\"signature\"]]\n";
const BY_RECORD: &str = "admit = [[\"record\"]]\n[record]\noperations = 10\nminutes = 0\n";
const BY_REPORT: &str = "admit = [[\"report\"]]\n[report]\nchanges = 10\n";

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed([number; 32])
}

/// The `etc` files of a machine's ramdisk, and a folder that has them.
struct Told {
    folder: TempDir,
    files: Vec<(String, PathBuf)>,
}

impl Told {
    /// A policy, the key 1 that is trusted, and the machine's key 9.
    fn new(policy: &str) -> Told {
        let mut told = Told { folder: TempDir::new().unwrap(), files: Vec::new() };
        told.add("policy.toml", policy.as_bytes());
        told.add("keys/boss.pub", key(1).public().text().as_bytes());
        told.add("machine.key", key(9).text().as_bytes());
        told
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> &mut Told {
        let path = self.folder.path().join(name.replace('/', "-"));
        std::fs::write(&path, bytes).unwrap();
        self.files.retain(|(other, _)| other != name);
        self.files.push((name.into(), path));
        self
    }

    fn machine(&self, mut machine: Machine) -> Machine {
        machine.contents.etc_files = self.files.clone();
        machine
    }

    /// A machine with only the module `template`, whose file is `bytes`.
    fn template(&self, bytes: &[u8], commands: &str) -> Machine {
        let path = self.folder.path().join("template.rfm");
        std::fs::write(&path, bytes).unwrap();
        let mut machine = self.machine(bare(commands));
        machine.contents.modules.push(path);
        machine
    }
}

fn template() -> Vec<u8> {
    let module = system().modules.iter().find(|module| module.name == "template").unwrap();
    std::fs::read(&module.packed).unwrap()
}

/// Returns why drivers were not promoted. Of a segmented driver it is said that its paged build
/// decides.
fn refused(run: &Ran) -> Vec<String> {
    let errors = run.errors().into_iter().filter(|(command, _)| command.starts_with("promote"));
    errors.map(|(_, why)| why.replacen("its paged build may not run in ring 0: ", "", 1)).collect()
}

#[test]
fn a_signature_by_a_trusted_key_admits() {
    let told = Told::new(BY_SIGNATURE);
    let promote = "insmod template; promote template; modinfo template; lsmod";
    let good = sign(&template(), Purpose::Module, &key(1)).unwrap();
    let text = boot_well(&told.template(&good, promote));
    assert_says(&text, "template: now in ring 0: by its signature");
    assert_says(&text, "signed    by boss, whose key is trusted");
    assert_eq!(text.drivers("template")[0].ring, 0);

    let other = sign(&template(), Purpose::Module, &key(2)).unwrap();
    let mut changed = good.clone();
    // In the ELF header's padding, so that the module itself stays good.
    changed[9] ^= 1;
    let report = sign(&template(), Purpose::Report, &key(1)).unwrap();
    let cases = [
        (template(), "it is not signed"),
        (other, "it is signed by key 8139770ea87d, which is not trusted"),
        (changed, "its signature by key 8a88e3dd7409 is wrong: it was changed since, or is another kind of file"),
        (report, "its signature by key 8a88e3dd7409 is wrong: it was changed since, or is another kind of file"),
    ];
    for (bytes, why) in cases {
        let run = boot_badly(&told.template(&bytes, promote), 1);
        assert_eq!(refused(&run), [format!("template stays in ring 1: {why}")], "{run}");
        assert_eq!(run.drivers("template")[0].ring, 1);
    }
    // It is loaded all the same, but into ring 1.
    let text = boot_well(&told.template(&template(), "insmod template --ring 0; lsmod"));
    assert_says(&text, "template: loaded into ring 1: it is not signed");
}

/// A machine with the disk `image` at `/etc`.
fn with_etc(told: &Told, image: &Fat, commands: &str) -> Machine {
    let mut machine = told.machine(machine(commands));
    machine.etc = Some(image.0.clone().into());
    machine
}

#[test]
fn a_record_is_earned_kept_over_boots_and_lost_when_it_was_changed() {
    let told = Told::new(BY_RECORD);
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 1440, 12);
    // Only paged drivers earn ring 0.
    let with_etc = |told: &Told, image: &Fat, commands: &str| paged(with_etc(told, image, commands));
    let earn = "promote e1000; ping 10.0.2.2 -c 10 -i 0; promote e1000; demote e1000; modinfo e1000";
    let run = boot_badly(&with_etc(&told, &image, earn), 1);
    let why = refused(&run);
    assert!(why[0].starts_with("e1000 stays in ring 1: its record has ") && why[0].ends_with(" of 10 frames"), "{run}");
    assert_says(&run, "e1000: now in ring 0: by its record");
    // It is there at once after a boot.
    let text = boot_well(&with_etc(&told, &image, "promote e1000"));
    assert_says(&text, "modules goes on");
    assert_says(&text, "e1000: now in ring 0: by its record");

    let good = image.get("record").unwrap();
    let say = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let more = say(&good).replacen(" served ", " served 9", 1);
    let content = Signed::parse(&good).unwrap().content;
    let by_other = sign(content, Purpose::Record, &key(2)).unwrap();
    let second = say(&good).lines().nth(1).map(|line| format!("{line}\n")).unwrap();
    let cut = say(&good).replace(&second, "");
    let cases = [
        (more.into_bytes(), "the chain is broken at line 2: a line was changed"),
        (cut.into_bytes(), "the chain is broken at line 2: a line was changed"),
        (by_other, "it is signed by key 8139770ea87d, which is not trusted"),
        (b"nonsense".to_vec(), "it is no record"),
    ];
    for (bytes, why) in cases {
        image.put("record", &bytes).unwrap();
        let run = boot_badly(&with_etc(&told, &image, "promote e1000"), 1);
        assert_says(&run, &format!("/etc/record does not count, and a new record begins: {why}"));
        assert_says(&run, "it is kept as /etc/record.bad");
        assert_eq!(image.get("record.bad").unwrap(), bytes);
    }
    // A machine without a key leaves the record of another one as it is.
    image.put("record", &good).unwrap();
    let mut keyless = Told::new(BY_RECORD);
    keyless.files.retain(|(name, _)| name != "machine.key");
    boot_badly(&with_etc(&keyless, &image, "promote e1000"), 1);
    assert_eq!(image.get("record").unwrap(), good);
}

#[test]
fn a_fault_ends_a_record_and_is_written_at_once() {
    let told = Told::new("admit = [[\"record\"]]\n[record]\noperations = 200\nminutes = 0\n");
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 1440, 12);
    // The machine ends without saying so, once the record is written.
    let script = "insmod rogue; policy rogue restart; tell rogue read 0; \
                  sleep 500; panic";
    let run = boot(&with_etc(&told, &image, script));
    assert_eq!(run.end(), End::Panic);
    let run = boot_badly(&with_etc(&told, &image, "insmod rogue; promote rogue"), 1);
    let why = refused(&run);
    assert!(why[0].contains("its record has ") && why[0].contains(" of 200 upcalls (1 fault, "), "{run}");
}

/// The record of another machine counts if its key is trusted.
#[test]
fn the_record_of_another_machine_counts_if_its_key_is_trusted() {
    let mut chain = Chain::default();
    chain.add(5, &identity(&template()), "template", Done::Served { operations: 10, ms: 1 });
    let promote = "insmod template; promote template";
    let mut told = Told::new(BY_RECORD);
    let text = boot_well(&told.add("records/lab.record", &chain.signed(&key(1))).template(&template(), promote));
    assert_says(&text, "template: now in ring 0: by its record");
    let run = boot_badly(&told.add("records/lab.record", &chain.signed(&key(2))).template(&template(), promote), 1);
    assert_says(&run, "record lab: it does not count: it is signed by key 8139770ea87d, which is not trusted");
}

#[test]
fn a_report_counts_for_its_file_if_a_trusted_key_has_signed_it() {
    let told_with = |of: &[u8], number: u8, changes: u64| {
        let mut report = Report::default();
        (report.module.name, report.module.sha256) = ("template".into(), hex(&identity(of)));
        (report.campaign.changes, report.campaign.kernel_intact, report.campaign.restored) =
            (changes, changes, changes);
        report.made.at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let text = toml::to_string(&report).unwrap();
        let mut told = Told::new(BY_REPORT);
        told.add("reports/template.report", &sign(text.as_bytes(), Purpose::Report, &key(number)).unwrap());
        told
    };
    let promote = "insmod template; promote template; modinfo template";
    let text = boot_well(&told_with(&template(), 1, 10).template(&template(), promote));
    assert_says(&text, "template: now in ring 0: by its report");
    assert!(text.lines().any(|line| line.starts_with("report    20") && line.ends_with(", by boss")), "{text}");
    let other = format!("its report is for another file ({}, not ", &hex(&identity(b"another"))[..12]);
    let cases = [
        (told_with(b"another", 1, 10), other.as_str()),
        (
            told_with(&template(), 2, 10),
            "its report does not count: it is signed by key 8139770ea87d, which is not trusted",
        ),
        (told_with(&template(), 1, 9), "its report has 9 of 10 changes"),
        (Told::new(BY_REPORT), "it has no report"),
    ];
    for (told, why) in cases {
        let run = boot_badly(&told.template(&template(), promote), 1);
        assert!(refused(&run)[0].starts_with(&format!("template stays in ring 1: {why}")), "{run}");
    }
}

#[test]
fn force_admits_where_the_policy_takes_it() {
    let script = "insmod rogue; promote rogue; promote rogue --force; lsmod; demote rogue; insmod template --ring 0 --force; lsmod";
    let run = boot_badly(&Told::new("admit = [[\"force\"]]").machine(bare(script)), 1);
    assert_eq!(refused(&run), ["rogue stays in ring 1: --force is not given"]);
    assert_says(&run, "rogue: now in ring 0: by force");
    assert_eq!(run.drivers("rogue").iter().map(|driver| driver.ring).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(run.drivers("template")[0].ring, 0);
    let run = boot_badly(&Told::new(BY_SIGNATURE).machine(bare("insmod rogue; promote rogue --force")), 1);
    assert_eq!(refused(&run), ["rogue stays in ring 1: it is not signed; or the policy takes no --force"]);
}

/// A driver whose code was changed in memory does not match its file any more.
#[test]
fn what_was_changed_in_memory_has_no_claim() {
    let told = Told::new(BY_SIGNATURE);
    let good = sign(&template(), Purpose::Module, &key(1)).unwrap();
    let run = boot_badly(&told.template(&good, "insmod template; poke template 2000:90; promote template"), 1);
    let why = "template stays in ring 1: its code or data were changed in memory, so it is not what its file says";
    assert_eq!(refused(&run), [why]);
}

#[test]
fn with_a_policy_that_cannot_be_read_nothing_runs_in_ring_0() {
    let run =
        boot_badly(&Told::new("admit = [[\"charm\"]]").machine(bare("insmod template; promote template; policy")), 1);
    assert_eq!(refused(&run), ["template stays in ring 1: the policy admits nothing to ring 0"]);
    assert_says(&run, "nothing runs in ring 0: policy.toml: line 1: unknown variant `charm`");
}

/// A policy on a disk has come through drivers, so it cannot weaken that of the ramdisk.
#[test]
fn a_policy_on_a_disk_is_taken_if_it_cannot_be_weaker_or_is_signed() {
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 1440, 12);
    let mut built_in = Told::new("");
    built_in.files.retain(|(name, _)| name != "policy.toml");
    let development = b"development = true\n";
    image.put("policy.toml", BY_SIGNATURE.as_bytes()).unwrap();
    let run = boot_badly(&with_etc(&built_in, &image, "promote e1000; policy"), 1);
    assert_eq!(refused(&run), ["e1000 stays in ring 1: it is not signed"]);
    assert_says(&run, "policy    of /etc/policy.toml");
    image.put("policy.toml", b"admit = 1").unwrap();
    let run = boot_badly(&with_etc(&built_in, &image, "promote e1000"), 1);
    assert_says(&run, "/etc/policy.toml: nothing runs in ring 0: line 1: invalid type");
    let strict = Told::new(BY_SIGNATURE);
    for (bytes, failed, says) in [
        (
            development.to_vec(),
            1,
            "only a policy that a trusted key has signed takes the place of the ramdisk's: it is not signed",
        ),
        (
            sign(development, Purpose::Policy, &key(2)).unwrap(),
            1,
            "the ramdisk's: it is signed by key 8139770ea87d, which is not trusted",
        ),
        (
            sign(development, Purpose::Policy, &key(1)).unwrap(),
            1,
            "a policy for development does not take the place of the ramdisk's",
        ),
        (sign(b"admit = [[\"force\"]]", Purpose::Policy, &key(1)).unwrap(), 1, ": --force is not given"),
    ] {
        image.put("policy.toml", &bytes).unwrap();
        let run = boot(&with_etc(&strict, &image, "promote e1000"));
        assert_eq!(run.errors().len(), failed, "{run}");
        assert_says(&run, says);
    }
}

/// Settings on a disk have come through drivers, so they are no person's word.
#[test]
fn settings_of_a_disk_force_and_forgive_nothing() {
    let told = Told::new("admit = [[\"force\"]]");
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 1440, 12);
    let fault = "insmod rogue --ring 0 --force; policy rogue restart; fails tell rogue read 0; sleep 300";
    boot_well(&with_etc(&told, &image, fault));
    let settings = "promote e1000 --force\nrepeat 1 promote e1000 --force\ninsmod template --ring 0 --force\n\
                    limits ss-loads 9\npoke e1000 2000:90\ninsmod rogue\npolicy rogue restart\n";
    image.put("settings", settings.as_bytes()).unwrap();
    let run = boot_badly(&with_etc(&told, &image, "lsmod; limits ss-loads; promote rogue; promote rogue --force"), 1);
    for driver in ["e1000", "template", "rogue"] {
        assert_eq!(run.drivers(driver)[0].ring, 1, "{driver}: {run}");
    }
    assert_says(&run, "ss-loads                  0  ");
    let why = refused(&run);
    assert!(why[0].starts_with("rogue stays in ring 1: it faulted in ring 0 (20"), "{run}");
    // A person can.
    assert_says(&run, "rogue: now in ring 0: by force");
}

/// A driver whose own code is on top of the stack is to blame in ring 0, too: it is ended, and
/// neither its successor nor its file goes to ring 0 again, in later boots either.
#[test]
fn a_fault_in_ring_0_demotes_the_successor_and_the_file() {
    let told = Told::new("development = true");
    let directory = TempDir::new().unwrap();
    let image = fat(directory.path(), 1440, 12);
    for (attack, kind) in [
        ("read 0", "page-fault"),
        ("execute 0", "page-fault"),
        ("write @kernel-text", "page-fault"),
        ("recurse", "page-fault"),
        ("loop", "overrun"),
    ] {
        let script = format!(
            "insmod rogue --ring 0; policy rogue restart; fails tell rogue {attack}; sleep 300; lsmod; fails promote rogue; \
             insmod template; tell template a; integrity"
        );
        let run = boot_well(&told.machine(bare(&script)));
        let faults = run.faults("rogue");
        assert_eq!((faults.len(), faults[0].kind.as_ref(), faults[0].ring), (1, kind, 0), "{attack}: {run}");
        assert_eq!(run.drivers("rogue")[0].ring, 1, "{attack}: {run}");
        assert_says(&run, "as expected: rogue stays in ring 1: it faulted once, in ring 0");
        assert_eq!(run.answers("template"), [1]);
    }
    let fault = "insmod rogue --ring 0; policy rogue restart; fails tell rogue read 0; sleep 300";
    boot_well(&with_etc(&told, &image, fault));
    let run =
        boot_well(&with_etc(&told, &image, "insmod rogue; fails promote rogue; policy rogue restart; promote rogue"));
    assert_says(&run, "as expected: rogue stays in ring 1: it faulted in ring 0 (20");
    assert_says(&run, "rogue: now in ring 0: the policy is for development");
    assert_says(&boot_well(&with_etc(&told, &image, "insmod rogue; promote rogue")), "rogue: now in ring 0");
}

/// The kernel's code is on top, so nobody knows who is to blame.
#[test]
fn a_trap_in_the_kernel_s_code_is_its_end_also_when_a_trusted_driver_called() {
    let run = boot(&bare("insmod rogue --ring 0; tell rogue execute @kernel-read-only-data"));
    assert_eq!(run.end(), End::CommandFailed, "{run}");
    let run = boot(&bare("insmod rogue --ring 0; tell rogue execute @kernel-text"));
    assert_eq!(run.end(), End::Panic, "{run}");
}

/// Drivers are promoted by themselves when they have earned it, and stay where a person puts them.
#[test]
fn drivers_are_promoted_by_themselves() {
    let script = "promote --auto; sleep 1200; lsmod; ping 10.0.2.2 -c 10 -i 0; sleep 1500; lsmod; demote e1000; sleep 1500; lsmod; \
                  policy; promote --auto off";
    let text = boot_well(&Told::new(BY_RECORD).machine(paged(machine(script))));
    let rings: Vec<u8> = text.drivers("e1000").into_iter().map(|driver| driver.ring).collect();
    assert_eq!(rings, [1, 0, 1], "{text}");
    assert_says(&text, "e1000: now in ring 0: by its record");
    assert_says(&text, "automatic drivers are promoted as soon as they have earned it");
}

/// Moves under load lose nothing of a stream, and nothing of a disk's blocks.
#[test]
fn drivers_move_under_load_and_nothing_is_lost() {
    let port = free_port();
    let mut running = serving(&[(Protocol::Tcp, port, 7)]);
    let (mut stream, data) = (echoing(port), pattern(256 << 10));
    for _ in 0..10 {
        stream.write_all(&data).unwrap();
        run_well(&mut running, "promote e1000");
        assert!(read(&mut stream, data.len()) == data, "the echo differs");
        stream.write_all(&data).unwrap();
        run_well(&mut running, "demote e1000");
        assert!(read(&mut stream, data.len()) == data, "the echo differs");
    }
    leave(running);
    let script = "blkcheck disk0 0 20000 1 &; repeat 30 promote virtio-scsi, demote virtio-scsi; wait; blkverify disk0 0 20000 1";
    let text = boot_well(&Machine { scratch: true, ..machine(script) });
    assert_eq!(text.matches("virtio-scsi: now in ring 0").count(), 30, "{text}");
    assert!(text.faults("virtio-scsi").is_empty(), "{text}");
}

/// Runs the runner; returns its status and its output.
fn run(folder: &std::path::Path, arguments: &[&str]) -> (i32, String) {
    let output = std::process::Command::new(ringfence_tests::runner())
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("the runner runs");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn keys_are_made_and_files_signed_and_checked_at_the_terminal() {
    let folder = TempDir::new().unwrap();
    let run = |arguments: &[&str]| run(folder.path(), arguments);
    std::fs::write(folder.path().join("template.rfm"), template()).unwrap();
    assert_eq!(run(&["verify", "template.rfm"]).0, 1);
    let (status, text) = run(&["sign", "template.rfm"]);
    assert!(
        status == 4 && text.contains("cannot read the key ringfence.key ('cargo run -- keygen' makes it)"),
        "{text}"
    );
    assert_eq!(run(&["keygen"]).0, 0);
    assert_eq!(run(&["keygen", "other.key"]).0, 0);
    // A key is never overwritten, and nobody else can read it.
    let secret = std::fs::read(folder.path().join("ringfence.key")).unwrap();
    assert_eq!(run(&["keygen"]).0, 4);
    assert_eq!(std::fs::read(folder.path().join("ringfence.key")).unwrap(), secret);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&folder.path().join("ringfence.key").metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(run(&["sign", "template.rfm"]).0, 0);
    let (status, text) = run(&["verify", "template.rfm", "--key", "ringfence.pub"]);
    assert!(status == 0 && text.contains("signed by ringfence"), "{text}");
    let (status, text) = run(&["verify", "template.rfm", "--key", "other.pub"]);
    assert!(status == 1 && text.contains("which is not trusted"), "{text}");
    let (status, text) = run(&["verify", "template.rfm", "--key", "ringfence.key"]);
    assert!(status == 4 && text.contains("it is a secret key, which nobody else should have"), "{text}");
    std::fs::write(folder.path().join("note"), "hello").unwrap();
    let (status, text) = run(&["sign", "note"]);
    assert!(status == 4 && text.contains("it is no policy (line 1: "), "{text}");
}

/// A report that 'verify' has written admits its module.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_report_of_verify_admits() {
    let folder = TempDir::new().unwrap();
    let arguments = ["verify", "template", "--inputs", "20", "--sign", "boss.key"];
    std::fs::write(folder.path().join("boss.key"), key(1).text()).unwrap();
    let (status, text) = run(folder.path(), &arguments);
    assert!(status == 0 && text.contains("template.report: written and signed"), "{text}");
    let mut told = Told::new("admit = [[\"report\"]]\n[report]\nchanges = 0\ninputs = 20\n");
    told.add("reports/template.report", &std::fs::read(folder.path().join("template.report")).unwrap());
    let text = boot_well(&told.template(&template(), "insmod template; promote template"));
    assert_says(&text, "template: now in ring 0: by its report");
}
