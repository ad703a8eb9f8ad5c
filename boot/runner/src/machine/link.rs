//! The runner's end of the link: the kernel reports events to programs over its second serial port.
//!
//! QEMU connects that port to a socket. The runner listens on the socket before QEMU starts, so
//! that nothing is lost at the beginning.

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

/// Longest path of a socket, its terminating zero included (Linux: `sun_path`).
const MOST_PATH: usize = 108;

/// A socket to which QEMU will connect the link.
pub struct Link {
    listener: UnixListener,
    path: PathBuf,
    /// A temporary folder for the socket, if the path of the run's own folder is too long.
    folder: Option<tempfile::TempDir>,
}

/// A message from the link.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// An event.
    Event(Event<'static>),
    /// This number of frames is missing: the kernel could not send them as fast as they came.
    Missing(u32),
    /// The bytes received were no valid frame, or the frame held no valid event.
    Damaged,
}

impl Link {
    /// Listens on a socket in the folder of a run.
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

    /// Returns QEMU's arguments that connect its next serial port to the socket.
    pub fn arguments(&self) -> [OsString; 4] {
        let mut chardev = OsString::from("socket,id=link,path=");
        chardev.push(super::in_option(&self.path));
        ["-chardev".into(), chardev, "-serial".into(), "chardev:link".into()]
    }

    /// Starts a thread that calls `take` for each message, until `take` returns `false` or QEMU
    /// closes the connection. The caller must call the returned function once QEMU has ended: QEMU
    /// may have ended before it connected, and the thread would wait for a connection for ever.
    pub fn read(self, mut take: impl FnMut(Told) -> bool + Send + 'static) -> impl FnOnce() + Send + 'static {
        let path = self.path.clone();
        std::thread::spawn(move || {
            // The folder must exist until a connection is accepted.
            let Link { listener, folder, .. } = self;
            let accepted = listener.accept();
            drop(folder);
            if let Ok((stream, _)) = accepted {
                read_all(stream, &mut take);
            }
        });
        // If QEMU connected before, its connection is accepted first, and this one has no effect.
        move || drop(UnixStream::connect(path))
    }
}

fn read_all(mut stream: UnixStream, take: &mut impl FnMut(Told) -> bool) {
    let mut decoder = Decoder::default();
    let mut bytes = [0; 4096];
    // Before the kernel begins, firmware may write to the port as well.
    let mut has_begun = false;
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        for frame in bytes[..count].iter().filter_map(|byte| decoder.push(*byte)) {
            let told = match frame {
                Ok(frame) if frame.missing > 0 && !take(Told::Missing(frame.missing)) => return,
                // Frames of other channels are not for the runner.
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
