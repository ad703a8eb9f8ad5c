//! The QEMU that is there, and what it can do: its devices gain and lose options from version to
//! version, so it is asked.

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::process::{Command, Output};
use std::sync::Mutex;

/// QEMU's name, unless `RINGFENCE_QEMU` names another one.
const QEMU: &str = "qemu-system-x86_64";

/// The QEMU that is started.
pub fn program() -> OsString {
    std::env::var_os("RINGFENCE_QEMU").unwrap_or_else(|| QEMU.into())
}

/// A QEMU, and what it is asked.
type Question = (OsString, Vec<String>);

/// Asks the QEMU that is there, each question once.
fn ask(arguments: &[&str]) -> Result<String> {
    static ANSWERS: Mutex<Option<HashMap<Question, String>>> = Mutex::new(None);
    let program = program();
    let question = (program.clone(), arguments.iter().map(|argument| argument.to_string()).collect());
    // Nobody panics with it in hand; if somebody did, what is known by then is still true.
    let mut answers = ANSWERS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let answers = answers.get_or_insert_default();
    if let Some(answer) = answers.get(&question) {
        return Ok(answer.clone());
    }
    let name = program.to_string_lossy().into_owned();
    let Output { status, stdout, stderr } = Command::new(&program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {name}: is it installed? 'make setup' installs it"))?;
    if !status.success() {
        bail!("'{name} {}' failed: {}", arguments.join(" "), String::from_utf8_lossy(&stderr).trim());
    }
    let answer = String::from_utf8_lossy(&stdout).into_owned();
    answers.insert(question, answer.clone());
    Ok(answer)
}

/// Its version, as in `10.0.2`.
pub fn version() -> Result<String> {
    let text = ask(&["--version"])?;
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
    Ok(version.with_context(|| format!("QEMU does not say its version: {}", text.trim()))?.to_string())
}

/// Whether it is of version `major.minor` or later.
pub fn is_at_least(major: u32, minor: u32) -> Result<bool> {
    let version = version()?;
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    Ok((numbers.next(), numbers.next()) >= (Some(major), Some(minor)))
}

/// Whether its device `device` has an option `option`. A device that it does not know has none: it
/// says so itself when it is started.
pub fn has_option(device: &str, option: &str) -> bool {
    let is_it = |line: &str| line.trim_start().strip_prefix(option).is_some_and(|rest| rest.starts_with('='));
    ask(&["-device", &format!("{device},help")]).is_ok_and(|text| text.lines().any(is_it))
}

/// How QEMU is told that its time has come when the runner is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// It may put the terminal in order (SIGTERM).
    Terminate,
    /// At once (SIGKILL), whatever it is busy with.
    Kill,
}

/// A QEMU that ends when the thread that starts it does, however that ends: the kernel sees to it
/// (`PR_SET_PDEATHSIG`), by way of util-linux's `setpriv`, which becomes QEMU. Where there is none,
/// QEMU is on its own.
pub fn command(farewell: Farewell) -> Command {
    let signal = match farewell {
        Farewell::Terminate => "TERM",
        Farewell::Kill => "KILL",
    };
    static KNOWS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let knows =
        || Command::new("setpriv").args(["--pdeathsig", "KILL", "true"]).output().is_ok_and(|o| o.status.success());
    if !KNOWS.get_or_init(knows) {
        return Command::new(program());
    }
    let mut command = Command::new("setpriv");
    command.args([OsStr::new("--pdeathsig"), OsStr::new(signal), OsStr::new("--"), &program()]);
    command
}
