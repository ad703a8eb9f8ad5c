//! Commands for scripts: they run other commands, wait, or print text; output that goes into a
//! file; and the settings of a boot.

use super::commands::run;
use super::earned::{Kept, is_there, keep, take_from_etc};
use super::files::{about, path_of, read_whole};
use super::settings::{FILE, FOLDER, OfDisk};
use super::{Outcome, let_drivers_return, run_all};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::future::{Future, poll_fn};
use core::sync::atomic::{AtomicUsize, Ordering};
use embassy_time::Timer;
use fs::file::How;
use fs::tree;
use host::ramdisk;
use hw::arch::time;
use hw::{console, println};
use ringfence_core::arguments::Arguments;
use ringfence_core::command_line;

pub async fn repeat(mut arguments: Arguments<'_>) -> Outcome {
    let count: u32 = arguments.number("the count")?;
    let usage = arguments.wrong("the commands are missing");
    let commands = arguments.rest();
    if commands.is_empty() {
        return usage;
    }
    let started = time::uptime_ns();
    for _ in 0..count {
        run_all(commands).await?;
        let_drivers_return().await;
    }
    println!("{count} times in {} ms", (time::uptime_ns() - started) / 1_000_000);
    Ok(())
}

pub async fn fails(arguments: Arguments<'_>) -> Outcome {
    let usage = arguments.wrong("the command is missing");
    match arguments.rest() {
        "" => usage,
        command => match Box::pin(run(command)).await {
            Ok(()) => Err(format!("'{command}' did not fail")),
            Err(reason) => {
                println!("as expected: {reason}");
                Ok(())
            }
        },
    }
}

pub async fn mute(arguments: Arguments<'_>) -> Outcome {
    let usage = arguments.wrong("the command is missing");
    match arguments.rest() {
        "" => usage,
        command => {
            let _muted = console::mute();
            Box::pin(run(command)).await
        }
    }
}

pub async fn sleep(mut arguments: Arguments<'_>) -> Outcome {
    let milliseconds = arguments.milliseconds("the time")?;
    arguments.end()?;
    Timer::after_millis(milliseconds).await;
    Ok(())
}

pub async fn echo(arguments: Arguments<'_>) -> Outcome {
    println!("{}", arguments.rest());
    Ok(())
}

pub async fn clear(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    console::clear();
    Ok(())
}

/// Refuses a command that the shell itself carries out, and only as a line of its own. Such a line
/// never gets here.
pub async fn alone(arguments: Arguments<'_>) -> Outcome {
    arguments.wrong("it takes nothing, and only a line of its own does it; 'reboot' only one that is typed")
}

/// Runs a command whose output goes into a file.
pub async fn into_file(command: &str, path: &str, appends: bool) -> Outcome {
    /// The most bytes of output.
    const MOST: usize = 1 << 20;
    let path = path_of(path)?;
    let file = tree::open_file(&path, if appends { How::Create } else { How::Empty }).await.map_err(about(&path))?;
    let (outcome, output, lost_bytes) = captured(run(command), MOST).await;
    let end = if appends { file.stat().len_bytes } else { 0 };
    file.write(end, output.as_bytes()).await.map_err(about(&path))?;
    match lost_bytes {
        0 => outcome,
        count => Err(format!("{count} bytes of its output are lost: it has more than {MOST}")),
    }
}

/// Runs a command; returns the outcome, up to `most` bytes of the output, and how many bytes it had
/// more.
pub async fn captured(running: impl Future<Output = Outcome>, most: usize) -> (Outcome, String, usize) {
    let (mut output, mut lost_bytes) = (String::new(), 0);
    let mut running = Box::pin(running);
    let outcome = poll_fn(|context| {
        // Only while this command has its turn: others print where they did.
        let capture = console::capture();
        let polled = running.as_mut().poll(context);
        let captured = capture.take();
        lost_bytes += captured.lost_bytes;
        if output.len() + captured.text.len() > most || output.try_reserve(captured.text.len()).is_err() {
            lost_bytes += captured.text.len();
        } else {
            output += &captured.text;
        }
        polled
    })
    .await;
    (outcome, output, lost_bytes)
}

pub async fn source(mut arguments: Arguments<'_>) -> Outcome {
    /// The most files of commands that run others.
    const DEEPEST: usize = 4;
    static DEPTH: AtomicUsize = AtomicUsize::new(0);
    struct Level;
    impl Drop for Level {
        fn drop(&mut self) {
            DEPTH.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let path = arguments.word("the file")?;
    arguments.end()?;
    let depth = DEPTH.fetch_add(1, Ordering::Relaxed);
    let _level = Level;
    if depth >= DEEPEST {
        return Err(format!("more than {DEEPEST} files of commands run one another"));
    }
    for command in commands_in(&read_text(path).await?) {
        Box::pin(run(command)).await.map_err(|error| format!("{path}: {command}: {error}"))?;
    }
    Ok(())
}

/// The most bytes of a file of commands.
const MOST: usize = 64 << 10;

async fn read_text(path: &str) -> Result<String, String> {
    String::from_utf8(read_whole(path, MOST).await?).map_err(|_| format!("{path} is no text"))
}

/// Returns the commands in the text of a file.
fn commands_in(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with('#')).flat_map(command_line::commands)
}

/// Carries out settings. A wrong setting is named, and the others are carried out.
async fn set(text: &str, from: &str) {
    let mut count = 0;
    for command in commands_in(text) {
        let muted = console::mute();
        let outcome = Box::pin(run(command)).await;
        drop(muted);
        match outcome {
            Ok(()) => count += 1,
            Err(error) => println!("{from}: {command}: {error}"),
        }
    }
    println!("{count} settings from {from}");
}

/// Carries out the settings that the ramdisk has, then mounts the disk `etc`, if there is one, and
/// carries out the settings there.
pub async fn at_boot(etc: Option<&str>) {
    if let Some(text) = ramdisk::text("etc/settings") {
        set(text, "the ramdisk").await;
    }
    let Some(disk) = etc else {
        keep(Kept::InMemory);
        return;
    };
    if let Err(error) = Box::pin(run(&format!("mount {disk} {FOLDER}"))).await {
        println!("{FOLDER}: {error}");
        keep(Kept::InMemory);
        return;
    }
    take_from_etc().await;
    let _of_disk = OfDisk::begin();
    match is_there(FILE).await {
        // A new disk has no such file.
        Ok(false) => {}
        Ok(true) => match read_text(FILE).await {
            Ok(text) => set(&text, FILE).await,
            Err(error) => println!("{error}"),
        },
        Err(error) => println!("{error}"),
    }
}
