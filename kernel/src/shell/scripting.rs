//! Commands for scripts: they run other commands, wait, or print text.

use super::commands::run;
use super::{Outcome, let_drivers_return, run_all};
use alloc::boxed::Box;
use alloc::format;
use embassy_time::Timer;
use hw::arch::time;
use hw::{console, println};
use ringfence_core::arguments::Arguments;

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
