//! `rf_answer`, `rf_command`: what a driver says to a person who tells it something, and what it
//! can be told.

use super::Answer;
use super::log::read_text;
use crate::domain::Domain;
use crate::domain::memory::Allegation;
use hw::console;
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::{COMMAND, INIT};

/// Longest answer to one command, in bytes.
const MAX_ANSWER: usize = 4096;
/// Most commands of a driver, and the longest with what it is for.
const MAX_COMMANDS: usize = 32;
const MAX_COMMAND: u64 = 160;

/// Adds text to what the command under way answers.
pub fn rf_answer(domain: &mut Domain, text: Allegation) -> Answer {
    if domain.upcall != COMMAND {
        return Err(Refusal::Invalid.into());
    }
    // Before anything is copied: what does not fit is not kept.
    if text.len_bytes() > (MAX_ANSWER - domain.answer.len().min(MAX_ANSWER)) as u64 {
        return Err(Refusal::Full.into());
    }
    let text = read_text(domain, text)?;
    // Bytes that are no UTF-8 take more as what is shown in their place.
    if domain.answer.len() + text.len() > MAX_ANSWER {
        return Err(Refusal::Full.into());
    }
    domain.answer.push_str(&text);
    Ok(0)
}

/// Names a command that the driver understands.
pub fn rf_command(domain: &mut Domain, text: Allegation) -> Answer {
    if domain.upcall != INIT || text.len_bytes() > MAX_COMMAND {
        return Err(Refusal::Invalid.into());
    }
    let text = read_text(domain, text)?;
    let is_printable = |part: &str| !part.is_empty() && console::printable(part) == part;
    let (typed, what) = text.split_once('\t').ok_or(Refusal::Invalid)?;
    // Tab puts the first word into the line that a person types: nothing in it may mean anything.
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
