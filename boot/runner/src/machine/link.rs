//! The runner's end of the link: what the kernel tells programs, from its second serial port.
//!
//! QEMU connects that port to a socket on which the runner listens before QEMU starts, so that
//! nothing is lost at the beginning.

use super::files::RunFiles;
use anyhow::{Context, Result};
use ringfence_link::EVENTS;
use ringfence_link::event::Event;
use ringfence_link::frame::Decoder;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// Longest path of a socket (Linux: `sun_path`, its end included).
const MOST_PATH: usize = 108;

/// A socket on which the link is expected.
pub struct Link {
    listener: UnixListener,
    path: PathBuf,
    /// Where the socket is, if the run's own folder has too long a name.
    folder: Option<tempfile::TempDir>,
}

/// What comes on the link.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// An event.
    Event(Event<'static>),
    /// So many are missing: the kernel could not tell them as fast as they came.
    Missing(u32),
    /// What came was no frame, or no event.
    Damaged,
}

impl Link {
    /// Listens, in the folder of a run.
    pub fn listen(files: &RunFiles) -> Result<Link> {
        const NAME: &str = "link";
        let mut path = files.path().join(NAME);
        let mut folder = None;
        if path.as_os_str().as_bytes().len() >= MOST_PATH {
            let other = tempfile::tempdir().context("cannot make a folder for the link")?;
            path = other.path().join(NAME);
            folder = Some(other);
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Link { listener, path, folder })
    }

    /// Has QEMU connect its next serial port.
    pub fn arguments(&self) -> [OsString; 4] {
        let mut chardev = OsString::from("socket,id=link,path=");
        chardev.push(super::in_option(&self.path));
        ["-chardev".into(), chardev, "-serial".into(), "chardev:link".into()]
    }

    /// Calls `take` for all that comes, in a thread of its own, as long as it returns `true` and
    /// QEMU is there. What is returned is to be called when QEMU is not: it may have ended before
    /// it had connected anything.
    pub fn read(self, mut take: impl FnMut(Told) -> bool + Send + 'static) -> impl FnOnce() + Send + 'static {
        let path = self.path.clone();
        std::thread::spawn(move || {
            // The folder stays until somebody has connected.
            let Link { listener, folder, .. } = self;
            let accepted = listener.accept();
            drop(folder);
            if let Ok((stream, _)) = accepted {
                read_all(stream, &mut take);
            }
        });
        // If QEMU's was there before, that one is the first.
        move || drop(UnixStream::connect(path))
    }
}

fn read_all(mut stream: UnixStream, take: &mut impl FnMut(Told) -> bool) {
    let mut decoder = Decoder::default();
    let mut bytes = [0; 4096];
    // Firmware may use the port as well, until the kernel begins.
    let mut has_begun = false;
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        for frame in bytes[..count].iter().filter_map(|byte| decoder.push(*byte)) {
            let told = match frame {
                Ok(frame) if frame.missing > 0 && !take(Told::Missing(frame.missing)) => return,
                // Other channels are others'.
                Ok(frame) if frame.channel != EVENTS => continue,
                Ok(frame) => Event::read(&frame.payload).map_or(Told::Damaged, Told::Event),
                Err(_) if !has_begun => continue,
                Err(_) => Told::Damaged,
            };
            has_begun = true;
            if !take(told) {
                return;
            }
        }
    }
}
