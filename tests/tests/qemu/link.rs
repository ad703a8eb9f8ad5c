//! Programs that read the kernel's events slowly, or not at all.

use ringfence_link::event::Event;
use ringfence_link::frame::Decoder;
use ringfence_tests::{TIME_LIMIT, assert_says, bare, system};
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

/// Number of faults. The kernel tells some 300 bytes about each.
const FAULTS: usize = 1000;

/// Boots a machine whose driver is ended [`FAULTS`] times. Returns the console's output, and the
/// result of `listen` for the link.
fn with_listener<T: Send + 'static>(listen: impl FnOnce(UnixStream) -> T + Send + 'static) -> (String, T) {
    let folder = tempfile::tempdir().unwrap();
    let (console, link) = (folder.path().join("console"), folder.path().join("link"));
    let listener = UnixListener::bind(&link).unwrap();
    let mut machine = bare(&format!(
        "limits restarts {FAULTS}; limits restart-wait-ms 0; limits turn-ms 1000; insmod rogue; policy rogue restart; \
         mute repeat {FAULTS} fails tell rogue read 0x10; mem"
    ));
    // These become the first and the second serial port. The runner's own are the third and the
    // fourth, on which it hears nothing.
    machine.extra = [
        "-chardev".to_string(),
        format!("file,id=first,path={}", console.display()),
        "-serial".to_string(),
        "chardev:first".to_string(),
        "-chardev".to_string(),
        format!("socket,id=second,path={}", link.display()),
        "-serial".to_string(),
        "chardev:second".to_string(),
    ]
    .map(Into::into)
    .to_vec();
    let listens = thread::spawn(move || listen(listener.accept().unwrap().0));
    machine.start(system()).unwrap().finish_within(TIME_LIMIT).unwrap();
    (std::fs::read_to_string(console).unwrap(), listens.join().unwrap())
}

/// The program reads at most 64 KB a second, a fraction of the rate at which the kernel tells
/// events.
#[test]
fn who_listens_slowly_hears_all() {
    let (console, (events, missing)) = with_listener(|mut stream| {
        let (mut decoder, mut events, mut missing) = (Decoder::default(), Vec::new(), 0);
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            for frame in bytes[..count].iter().filter_map(|byte| decoder.push(*byte)) {
                let frame = frame.expect("no byte is lost");
                missing += frame.missing;
                events.push(Event::read(&frame.payload).expect("an event"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        (events, missing)
    });
    assert_says(&console, "frames");
    let faults = events.iter().filter(|event| matches!(event, Event::Fault(_))).count();
    assert_eq!((missing, faults), (0, FAULTS), "{console}");
    assert!(matches!(events.last(), Some(Event::Ended { failed: 0 })), "{:?}", events.last());
}

#[test]
fn who_hears_nothing_holds_nobody_up() {
    let (console, _stream) = with_listener(|stream| stream);
    assert_says(&console, "ringfence: done");
}
