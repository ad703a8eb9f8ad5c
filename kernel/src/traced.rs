//! The events of a trace in words, as the shell prints them and the link carries them.

use alloc::format;
use alloc::string::{String, ToString};
use host::domain::calls::{WithText, service_name};
use host::domain::cause::{Cause, UpcallError};
use host::domain::trace::{Kept, KeptContent, What};
use hw::arch::time;
use hw::console;
use ringfence_abi::upcall::{self, COMMAND, Events, POLL, RESTORE, Reply};
use ringfence_core::access::{Access, Direction};
use ringfence_core::passed::Content;
use ringfence_core::trace::Span;
use ringfence_link::trace as told;

/// Returns the noun for the frames or requests that a driver is passed.
pub fn noun(kept: &Kept) -> &'static str {
    kept.class().map_or("request", |class| class.noun())
}

/// Returns an event in words, with the bytes of frames that the trace has kept.
pub fn in_words<'a>(kept: &'a Kept, what: &What) -> told::What<'a> {
    match *what {
        What::Enter(operation, arguments, span) => told::What::Enter {
            upcall: upcall::name(operation).into(),
            words: entered_with(operation, arguments, text(kept, span)).into(),
        },
        What::Leave(operation, result, ticks) => {
            told::What::Leave { words: left_with(operation, result).into(), took_ns: time::nanoseconds(ticks) }
        }
        What::Woken => told::What::Woken,
        What::Call(call, span, ticks) => told::What::Call {
            service: service_name(call.service).into(),
            words: WithText(&call, text(kept, span).as_deref()).to_string().into(),
            took_ns: time::nanoseconds(ticks),
        },
        What::Given { number, len_bytes, content } => {
            let (content, words) = content_in_words(kept, content);
            told::What::Given { number, len_bytes, content, words: words.into() }
        }
        What::Done { number, result, detail } => {
            let detail = kept.bytes.get(detail).unwrap_or_default();
            let words = kept.class().map(|class| class.result_words(result, detail)).unwrap_or_default();
            told::What::Done { number, result, detail: detail.into(), words: words.into() }
        }
        What::Received { number, len_bytes, frame } => {
            let (_, words) = content_in_words(kept, KeptContent::Frame(frame));
            let frame = kept.bytes.get(frame).unwrap_or_default().into();
            told::What::Received { number, len_bytes, frame, words: words.into() }
        }
        What::Ended(kind, cause) => told::What::Ended { kind: kind.into(), words: ended_by(cause).into() },
        What::Replaced => told::What::Replaced,
        What::Access(rip, value) => {
            let value = value.map_or("?".to_string(), |value| format!("{value:#x}"));
            told::What::Note { words: format!("watched memory has {value}, before {rip:#x}").into() }
        }
        What::Register { at, bar, offset, access } => {
            let Access { direction, width_bytes, value, before } = access;
            let register = kept.register(bar, offset);
            let (verb, reads, writes) = match direction {
                Direction::Reads => ("reads", true, false),
                Direction::Writes => ("writes", false, true),
                Direction::Changes => ("changes", true, true),
            };
            let number = match (before, value) {
                (Some(before), Some(value)) => format!(" from {before:#x} to {value:#x}"),
                (_, Some(value)) => format!(" {value:#x}"),
                (_, None) => String::new(),
            };
            let words = format!("{verb} {register}{number}").into();
            let place = kept.place(at).into();
            told::What::Access { register: register.into(), reads, writes, width_bytes, value, words, place }
        }
        What::Sleeps(events) => told::What::Note { words: format!("sleeps; waits for poll({events})").into() },
        What::Rests(events) => {
            let words = format!("rests, as it has had too much of the CPU; waits for poll({events})");
            told::What::Note { words: words.into() }
        }
    }
}

/// Returns whether the trace has kept the text or the content of an event.
pub fn is_whole(kept: &Kept, what: &What) -> bool {
    let span = match *what {
        What::Enter(_, _, span) | What::Call(_, span, _) => span,
        What::Given { content: KeptContent::Frame(span), .. } => span,
        What::Received { frame: span, .. } | What::Done { detail: span, .. } => span,
        _ => return true,
    };
    kept.bytes.get(span).is_some()
}

/// Returns a text that a trace has kept, if it is still there. There is none of a call whose text
/// is empty or is not the driver's own: its address and length tell more.
fn text(kept: &Kept, span: Span) -> Option<String> {
    let text = kept.bytes.get(span).filter(|text| !text.is_empty())?;
    Some(console::printable(&String::from_utf8_lossy(text)).to_string())
}

/// Returns the arguments of an upcall, for a person.
fn entered_with(operation: u64, [a, b, _]: [u64; 3], text: Option<String>) -> String {
    match operation {
        POLL => Events::from_bits_retain(a).to_string(),
        COMMAND if a == 0 => "\"\"".to_string(),
        COMMAND => text.map_or("...".to_string(), |text| format!("{text:?}")),
        RESTORE => format!("{a} bytes, version {b}"),
        _ => String::new(),
    }
}

/// Returns the result with which a driver has left an upcall, for a person.
fn left_with(operation: u64, result: Result<u64, UpcallError>) -> String {
    match result {
        Ok(reply) if operation == POLL => Reply::from_bits_truncate(reply).to_string(),
        Ok(value) => format!("{value:#x}"),
        Err(error) => error.to_string(),
    }
}

/// Returns what a device has done that its driver was ended for, for a person; an empty text if it
/// was ended for something else.
fn ended_by(cause: Cause) -> String {
    match cause {
        Cause::Dma { address, writes, .. } => {
            format!("its device {} {address:#x}", if writes { "writes" } else { "reads" })
        }
        _ => String::new(),
    }
}

/// Returns the content that was passed, and the same in words.
fn content_in_words(kept: &Kept, content: KeptContent) -> (told::Content<'_>, String) {
    let content = match content {
        KeptContent::Frame(span) => Content::Frame(kept.bytes.get(span).unwrap_or_default()),
        KeptContent::Request(request) => Content::Request(request),
    };
    let words = kept.class().map(|class| class.content_words(&content)).unwrap_or_default();
    let told = match content {
        Content::Frame(frame) => told::Content::Frame(frame.into()),
        Content::Request(request) => told::Content::Request(request),
    };
    (told, words)
}
