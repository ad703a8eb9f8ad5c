//! `rf_answer`, `rf_command`: a driver's answers to a person's commands, and the commands that it
//! understands.

use super::Answer;
use super::log::read_text;
use crate::domain::Domain;
use crate::domain::memory::Allegation;
use hw::console;
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::{COMMAND, INIT};

/// The maximum length of the answer to one command, in bytes.
const MAX_ANSWER: usize = 4096;
/// The maximum number of commands of a driver, and the maximum length of a command with its
/// purpose.
const MAX_COMMANDS: usize = 32;
const MAX_COMMAND: u64 = 160;

/// Adds text to the answer to the command under way.
pub fn rf_answer(domain: &mut Domain, text: Allegation) -> Answer {
    if domain.upcall != COMMAND {
        return Err(Refusal::Invalid.into());
    }
    // Check before anything is copied: text that does not fit is not kept.
    if text.len_bytes() > (MAX_ANSWER - domain.answer.len().min(MAX_ANSWER)) as u64 {
        return Err(Refusal::Full.into());
    }
    let text = read_text(domain, text)?;
    // Invalid UTF-8 is replaced by characters that may take more bytes.
    if domain.answer.len() + text.len() > MAX_ANSWER {
        return Err(Refusal::Full.into());
    }
    domain.answer.push_str(&text);
    Ok(0)
}

/// Registers a command that the driver understands.
pub fn rf_command(domain: &mut Domain, text: Allegation) -> Answer {
    if domain.upcall != INIT || text.len_bytes() > MAX_COMMAND {
        return Err(Refusal::Invalid.into());
    }
    let text = read_text(domain, text)?;
    let is_printable = |part: &str| !part.is_empty() && console::printable(part) == part;
    let (typed, what) = text.split_once('\t').ok_or(Refusal::Invalid)?;
    // Tab completion puts the first word into the line that a person types, so the word must not
    // contain special characters.
    let is_name = |word: &str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let begins_with_name = typed.split(' ').next().is_some_and(|word| !word.is_empty() && is_name(word));
    if !begins_with_name || !is_printable(typed) || !is_printable(what) {
        return Err(Refusal::Invalid.into());
    }
    if domain.commands.len() >= MAX_COMMANDS {
        return Err(Refusal::Full.into());
    }
    domain.commands.push(text);
    Ok(0)
}
