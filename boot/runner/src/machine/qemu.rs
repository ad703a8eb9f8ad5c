//! The installed QEMU and its abilities. QEMU's devices gain and lose options from version to
//! version, so QEMU itself is asked which options it has.

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::process::{Command, Output};
use std::sync::Mutex;

/// QEMU's name, unless `RINGFENCE_QEMU` names another program.
const QEMU: &str = "qemu-system-x86_64";

/// Returns the name of the QEMU that the runner starts.
pub fn program() -> OsString {
    std::env::var_os("RINGFENCE_QEMU").unwrap_or_else(|| QEMU.into())
}

/// A QEMU program, and the arguments with which it is asked.
type Question = (OsString, Vec<String>);

/// Runs QEMU with `arguments` and returns its output. Each question is asked only once.
fn ask(arguments: &[&str]) -> Result<String> {
    static ANSWERS: Mutex<Option<HashMap<Question, String>>> = Mutex::new(None);
    let program = program();
    let question = (program.clone(), arguments.iter().map(|argument| argument.to_string()).collect());
    // No holder of this lock panics. Even if one did, the answers collected so far would be
    // correct.
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

/// Returns QEMU's version, as in `10.0.2`.
pub fn version() -> Result<String> {
    let text = ask(&["--version"])?;
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
    Ok(version.with_context(|| format!("QEMU does not say its version: {}", text.trim()))?.to_string())
}

/// Returns whether QEMU's version is `major.minor` or later.
pub fn is_at_least(major: u32, minor: u32) -> Result<bool> {
    let version = version()?;
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    Ok((numbers.next(), numbers.next()) >= (Some(major), Some(minor)))
}

/// Returns whether QEMU's device `device` has an option `option`. An unknown device counts as one
/// without options: QEMU itself reports it when it is started.
pub fn has_option(device: &str, option: &str) -> bool {
    let is_it = |line: &str| line.trim_start().strip_prefix(option).is_some_and(|rest| rest.starts_with('='));
    ask(&["-device", &format!("{device},help")]).is_ok_and(|text| text.lines().any(is_it))
}

/// The signal that ends QEMU when the runner ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// SIGTERM, which lets QEMU restore the terminal.
    Terminate,
    /// SIGKILL, which ends QEMU at once, even if it is busy.
    Kill,
}

/// Returns a command that starts QEMU so that it ends when the thread that started it ends, however
/// that happens. The host's kernel sends the signal (`PR_SET_PDEATHSIG`). util-linux's `setpriv`
/// asks for that and then becomes QEMU. Without a working `setpriv`, QEMU is started directly and
/// may outlive the runner.
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
