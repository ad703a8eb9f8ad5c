//! The runner's end of the link, the machine's second serial port: the kernel reports events to
//! programs over it, and takes their requests.
//!
//! QEMU connects that port to a socket. The runner listens on the socket before QEMU starts, so
//! that nothing is lost at the beginning. Other programs connect to a second socket, `session`
//! ([`crate::session`]): each of them gets all events, and its requests go to the kernel.

use super::files::RunFiles;
use crate::gdb::core::Incoming;
use crate::trace::Saved;
use anyhow::{Context, Result};
use ringfence_link::event::Event;
use ringfence_link::frame::{Decoder, Encoder, Frame};
use ringfence_link::{EVENTS, FILES, REQUESTS, TRACES};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Longest path of a socket, its terminating zero included (Linux: `sun_path`).
const MOST_PATH: usize = 108;
/// The name of the socket for other programs, in the folder of a run.
pub const SESSION: &str = "session";
/// How long a program may take no events before it is dropped: the kernel waits for that long.
const SLOW: Duration = Duration::from_millis(200);

/// A socket to which QEMU will connect the link, and one for other programs.
pub struct Link {
    kernel: Socket,
    session: Socket,
    /// The folder of the run.
    folder: PathBuf,
}

/// A socket that is listened on.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// A temporary folder for the socket, if the path of the run's own folder is too long.
    folder: Option<tempfile::TempDir>,
}

impl Socket {
    /// Listens on the socket `name` in the folder of a run. If that path is too long for a socket,
    /// it is a symbolic link to the socket.
    fn listen(folder: &Path, name: &str) -> Result<Socket> {
        let wanted = folder.join(name);
        let (mut path, mut folder) = (wanted.clone(), None);
        if path.as_os_str().as_bytes().len() >= MOST_PATH {
            let other = tempfile::tempdir().context("cannot make a folder for the link")?;
            path = other.path().join(name);
            folder = Some(other);
            std::os::unix::fs::symlink(&path, &wanted)
                .with_context(|| format!("cannot make a link at {}", wanted.display()))?;
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Socket { listener, path, folder })
    }
}

/// Connects to a socket whose path may be a symbolic link to a shorter one.
pub fn connect(path: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(std::fs::read_link(path).unwrap_or_else(|_| path.to_path_buf()))
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

/// One direction of a connection.
struct Sender {
    encoder: Box<Encoder>,
    stream: UnixStream,
}

impl Sender {
    fn new(stream: &UnixStream) -> std::io::Result<Sender> {
        Ok(Sender { encoder: Box::default(), stream: stream.try_clone()? })
    }

    /// Sends a frame. Returns `false` if the other side takes none any more.
    fn send(&mut self, frame: &Frame) -> bool {
        let fill = |room: &mut [u8]| {
            room.get_mut(..frame.payload.len())?.copy_from_slice(&frame.payload);
            Some(frame.payload.len())
        };
        // A frame that was received fits.
        self.encoder.frame(frame.channel, fill).is_none_or(|bytes| self.stream.write_all(bytes).is_ok())
    }

    /// Ends the connection, for both sides.
    fn end(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The state that the threads of a link share.
#[derive(Default)]
struct Hub {
    kernel: Mutex<Option<Sender>>,
    programs: Mutex<Vec<Sender>>,
    /// Whether the machine has ended.
    is_closed: Mutex<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Ends the connections of all programs.
    fn close(&self) {
        *lock(&self.is_closed) = true;
        lock(&self.programs).drain(..).for_each(|program| program.end());
    }

    /// Takes the connections of programs, until the machine has ended.
    fn serve_programs(self: &Arc<Hub>, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            if *lock(&self.is_closed) {
                return;
            }
            let Ok(program) = Sender::new(&stream) else { continue };
            let _ = stream.set_write_timeout(Some(SLOW));
            lock(&self.programs).push(program);
            let hub = self.clone();
            std::thread::spawn(move || {
                let _ = each_frame(stream, |frame| {
                    if let Ok(frame) = frame
                        && frame.channel == REQUESTS
                        && let Some(kernel) = lock(&hub.kernel).as_mut()
                    {
                        // If the kernel is gone, the program gets no answer.
                        kernel.send(&frame);
                    }
                    true
                });
            });
        }
    }
}

impl Link {
    /// Listens on sockets in the folder of a run.
    pub fn listen(files: &RunFiles) -> Result<Link> {
        let folder = files.path();
        let [kernel, session] = [Socket::listen(folder, "link")?, Socket::listen(folder, SESSION)?];
        Ok(Link { kernel, session, folder: folder.to_path_buf() })
    }

    /// Returns QEMU's arguments that connect its next serial port to the socket.
    pub fn arguments(&self) -> [OsString; 4] {
        let mut chardev = OsString::from("socket,id=link,path=");
        chardev.push(super::in_option(&self.kernel.path));
        ["-chardev".into(), chardev, "-serial".into(), "chardev:link".into()]
    }

    /// Starts threads that serve other programs and call `take` for each message, until `take`
    /// returns `false` or QEMU closes the connection. The caller must call the returned function
    /// once QEMU has ended: QEMU may have ended before it connected, and the thread would wait for
    /// a connection for ever.
    pub fn read(self, mut take: impl FnMut(Told) -> bool + Send + 'static) -> impl FnOnce() + Send + 'static {
        let Link { kernel, session, folder: run } = self;
        let hub = Arc::new(Hub::default());
        let paths = [kernel.path.clone(), session.path.clone()];
        std::thread::spawn({
            let hub = hub.clone();
            move || hub.serve_programs(&session.listener)
        });
        std::thread::spawn({
            let hub = hub.clone();
            move || {
                // The folder must exist until a connection is accepted.
                let Socket { listener, folder, .. } = kernel;
                let accepted = listener.accept();
                drop(folder);
                if let Ok((stream, _)) = accepted {
                    *lock(&hub.kernel) = Sender::new(&stream).ok();
                    tell_all(stream, &hub, &run, &mut take);
                }
            }
        });
        move || {
            hub.close();
            // If QEMU connected before, its connection is accepted first, and this one has no
            // effect.
            paths.iter().for_each(|path| drop(UnixStream::connect(path)));
            drop(session.folder);
        }
    }
}

/// Calls `take` for each frame, until it returns `false` or the connection ends.
fn each_frame(
    mut stream: UnixStream,
    mut take: impl FnMut(Result<Frame, ringfence_link::frame::Damaged>) -> bool,
) -> std::io::Result<()> {
    let mut decoder = Decoder::default();
    let mut bytes = [0; 4096];
    loop {
        let count = stream.read(&mut bytes)?;
        if count == 0 || !bytes[..count].iter().filter_map(|byte| decoder.push(*byte)).all(&mut take) {
            return Ok(());
        }
    }
}

/// Passes the kernel's frames on to the programs and to `take`.
fn tell_all(stream: UnixStream, hub: &Hub, run: &Path, take: &mut impl FnMut(Told) -> bool) {
    // Before the kernel begins, firmware may write to the port as well.
    let mut has_begun = false;
    let (mut saved, mut incoming) = (Saved::default(), Incoming::default());
    let _ = each_frame(stream, |frame| {
        let told = match frame {
            Ok(frame) => {
                // A program that takes none any more is told so by the end of its connection.
                lock(&hub.programs).retain_mut(|program| {
                    let is_there = program.send(&frame);
                    if !is_there {
                        program.end();
                    }
                    is_there
                });
                if frame.missing > 0 && !take(Told::Missing(frame.missing)) {
                    return false;
                }
                match frame.channel {
                    EVENTS => Event::read(&frame.payload).map_or(Told::Damaged, Told::Event),
                    TRACES => {
                        saved.take(&frame);
                        return true;
                    }
                    FILES => {
                        incoming.take(&frame, run);
                        return true;
                    }
                    // Frames of other channels are not for the runner.
                    _ => return true,
                }
            }
            Err(_) if !has_begun => return true,
            Err(_) => Told::Damaged,
        };
        if let Told::Event(Event::TraceSaved { name }) = &told {
            saved.save(name);
        }
        has_begun = true;
        take(told)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_at_a_path_of_any_length() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("a".repeat(MOST_PATH));
        std::fs::create_dir(&long).unwrap();
        for folder in [folder.path(), &long] {
            let socket = Socket::listen(folder, SESSION).unwrap();
            let mut program = connect(&folder.join(SESSION)).unwrap();
            let (mut own, _) = socket.listener.accept().unwrap();
            own.write_all(b"x").unwrap();
            let mut came = [0];
            program.read_exact(&mut came).unwrap();
            assert_eq!(came, *b"x");
        }
    }
}
