//! The screen of a machine that was started from the ISO image.

use ringfence::iso;
use ringfence::machine::Monitor;
use ringfence_tests::{TIME_LIMIT, bare, system};
use spleen_font::FONT_8X16;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long to wait until the next look. QEMU runs no guest while it copies the screen.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A machine with a screen, started with QEMU and the image, as a user would.
struct WithScreen {
    folder: TempDir,
    qemu: Child,
    monitor: Monitor,
}

impl Drop for WithScreen {
    fn drop(&mut self) {
        // QEMU may have ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl WithScreen {
    /// Starts a machine that runs `commands`, if there are any.
    fn start(commands: &str, arguments: &[&str]) -> WithScreen {
        let arguments = [&["-serial", "null"], arguments].concat();
        WithScreen::without_port(commands, &arguments)
    }

    /// Starts a machine with only the serial ports in `arguments`.
    fn without_port(commands: &str, arguments: &[&str]) -> WithScreen {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("ringfence.iso");
        let contents = bare(commands).contents;
        iso::make(system(), &contents, &image).expect("grub-mkrescue makes the image");
        let socket = folder.path().join("qmp");
        let program = std::env::var_os("RINGFENCE_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
        let mut qemu = Command::new(program)
            .args(["-m", "256", "-cpu", "max", "-vga", "std", "-display", "none", "-nic", "none", "-cdrom"])
            .arg(image)
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .args(arguments)
            .spawn()
            .expect("QEMU starts");
        let began = Instant::now();
        while !socket.exists() {
            assert!(began.elapsed() < TIME_LIMIT && qemu.try_wait().unwrap().is_none(), "QEMU does not listen");
            std::thread::sleep(LOOK_AGAIN);
        }
        let monitor = Monitor::new(&socket).unwrap();
        WithScreen { folder, qemu, monitor }
    }

    /// Waits until the screen shows all of `expected`, each text within one row.
    fn wait_for(&mut self, expected: &[&str], read: fn(&mut Monitor, &Path) -> Vec<String>) {
        let began = Instant::now();
        let file = self.folder.path().join("screen");
        loop {
            let rows = read(&mut self.monitor, &file);
            if expected.iter().all(|text| rows.iter().any(|row| row.contains(text))) {
                return;
            }
            assert!(began.elapsed() < TIME_LIMIT, "{expected:?} is not all in\n{}", rows.join("\n"));
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Reads the rows of a VGA in text mode.
fn characters(monitor: &mut Monitor, file: &Path) -> Vec<String> {
    const SCREEN: (u64, usize) = (0xb8000, 80 * 25 * 2);
    let arguments = format!(r#""val": {}, "size": {}, "filename": "{}""#, SCREEN.0, SCREEN.1, file.display());
    monitor.execute(&format!(r#"{{"execute": "pmemsave", "arguments": {{{arguments}}}}}"#)).unwrap();
    let cells = std::fs::read(file).unwrap();
    cells.chunks(160).map(|row| row.iter().step_by(2).map(|byte| char::from(*byte)).collect()).collect()
}

/// Reads the rows of a screen of pixels by comparing the pixels with the font's characters.
fn pixels(monitor: &mut Monitor, file: &Path) -> Vec<String> {
    monitor
        .execute(&format!(r#"{{"execute": "screendump", "arguments": {{"filename": "{}"}}}}"#, file.display()))
        .unwrap();
    let image = std::fs::read(file).unwrap();
    // The image is a portable pixel map: magic, width, height and greatest value, and then three
    // bytes per pixel.
    let header: Vec<_> = image.splitn(5, u8::is_ascii_whitespace).collect();
    let [b"P6", width, height, _, bytes] = header[..] else { panic!("this is no picture") };
    let number = |text| std::str::from_utf8(text).unwrap().parse::<usize>().unwrap();
    let (width, height) = (number(width), number(height));
    let bits = |column: usize, line: usize| {
        (0..8).fold(0, |bits, x| bits << 1 | u8::from(bytes[(line * width + column * 8 + x) * 3] > 0x80))
    };
    let glyph = |c: u8| &FONT_8X16[4 + 16 * usize::from(c)..][..16];
    let character = |column: usize, row: usize| {
        let seen: Vec<u8> = (0..16).map(|line| bits(column, row * 16 + line)).collect();
        (b' '..=b'~').find(|c| glyph(*c) == seen).map_or('\u{fffd}', char::from)
    };
    (0..height / 16).map(|row| (0..width / 8).map(|column| character(column, row)).collect()).collect()
}

const TITLE: &str = "type at the first serial port (COM1, 115200 8N1)";

#[test]
fn a_screen_with_characters_has_the_log() {
    let mut machine = WithScreen::start("insmod template; sleep 1000000", &[]);
    machine.wait_for(&[TITLE, "pci: ", "template| hello from a driver"], characters);
}

#[test]
fn a_screen_with_pixels_has_the_log() {
    let mut machine = WithScreen::start("insmod template; sleep 1000000", &["-bios", "/usr/share/ovmf/OVMF.fd"]);
    machine.wait_for(&[TITLE, "pci: ", "template| hello from a driver"], pixels);
}

#[test]
fn a_panic_is_on_the_screen() {
    let mut machine = WithScreen::start("panic", &[]);
    machine.wait_for(&["kernel panic: as asked for", "backtrace:", "ringfence: kernel panic"], characters);
}

#[test]
fn why_it_does_not_boot_is_on_the_screen() {
    let mut machine = WithScreen::start("help", &["-machine", "pc,pit=off,hpet=off,acpi=off"]);
    machine.wait_for(&["boot failed: nothing says how fast the TSC is"], characters);
}

/// A missing port reads as ones, as if input never ended.
#[test]
fn a_machine_without_a_serial_port_comes_up() {
    let mut machine = WithScreen::without_port("sleep 1000000", &["-serial", "none"]);
    machine.wait_for(&["there is no serial port (COM1) to type at", "pci: "], characters);
}
