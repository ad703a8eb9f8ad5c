//! The actions of the page's buttons.

use crate::shell::commands;
use crate::shell::scripting::captured;
use alloc::format;
use alloc::string::{String, ToString};
use host::domain::registry;
use ringfence_abi::manifest::Policy;
use serde::Serialize;

/// The most bytes of a command's output that are sent.
const MOST_OUTPUT: usize = 16 << 10;
/// The attacks that `break` has `rogue` make: each harms a kernel that has no protection.
const ATTACKS: [(&str, &str); 6] = [
    ("write-kernel", "write @kernel-text"),
    ("read-kernel", "read @kernel-data"),
    ("null", "read 0"),
    ("loop", "loop"),
    ("recurse", "recurse"),
    ("panic", "panic"),
];

/// Commands that give drivers work for some seconds.
const WORK: [(&str, &str); 2] =
    [("network", "mute ping 10.0.2.2 -c 1000 -i 0 -s 1000"), ("disk", "mute repeat 100 blkread disk0 0 4096")];

/// The outcome of a button.
#[derive(Serialize)]
struct Outcome {
    /// The command that it has run.
    command: String,
    /// The reason why that failed.
    error: Option<String>,
    /// The output of the command.
    output: String,
}

/// Returns the commands behind a button, or the reason why there are none.
fn commands_of(verb: &str, name: &str) -> Result<String, String> {
    if verb == "break" {
        let (_, attack) = ATTACKS.iter().find(|(known, _)| *known == name).ok_or("there is no such attack")?;
        return Ok(format!("tell rogue {attack}"));
    }
    if verb == "auto" {
        let on = ["on", "off"].into_iter().find(|word| *word == name).ok_or("it is on or off")?;
        return Ok(format!("promote --auto {on}"));
    }
    if verb == "work" {
        let (_, work) = WORK.iter().find(|(known, _)| *known == name).ok_or("there is no such work")?;
        return Ok(work.to_string());
    }
    // The name is that of a driver, and so no other word that a command takes.
    let driver = registry::find(name).ok_or_else(|| format!("there is no driver '{name}'"))?;
    let name = driver.lock().name.clone();
    match verb {
        "promote" | "demote" | "kill" => Ok(format!("{verb} {name}")),
        // Trace the driver's boundary for a moment.
        "trace" => Ok(format!("trace {name} sleep 300")),
        _ => Err(format!("there is no button '{verb}'")),
    }
}

/// Loads `rogue` if it is not loaded. It is restarted when it was ended; its faults stay.
async fn load_rogue() -> crate::shell::Outcome {
    if registry::find("rogue").is_none() {
        captured(commands::run_all("insmod rogue"), MOST_OUTPUT).await.0?;
        if let Some(rogue) = registry::find("rogue") {
            rogue.lock().life.set_policy(Policy::Restart);
        }
    }
    Ok(())
}

/// Carries out the action of a button. Returns the outcome as JSON.
pub async fn carry_out(verb: &str, name: &str) -> String {
    let loaded = if verb == "break" { load_rogue().await } else { Ok(()) };
    let outcome = match loaded.and_then(|()| commands_of(verb, name)) {
        Err(error) => Outcome { command: String::new(), error: Some(error), output: String::new() },
        Ok(command) => {
            let (result, output, lost_bytes) = captured(commands::run_all(&command), MOST_OUTPUT).await;
            let output = match lost_bytes {
                0 => output,
                // The part of a long output that does not fit is of no interest here.
                _ => format!("{output}\n[{lost_bytes} bytes more]"),
            };
            Outcome { error: result.err(), output, command }
        }
    };
    serde_json::to_string(&outcome).unwrap_or_else(|error| error.to_string())
}
