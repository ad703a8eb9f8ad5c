//! Runs commands, one at a time and in the background (`&`), until they end or are abandoned by
//! Ctrl-C or `kill %N`.

use super::{Outcome, commands, finish, pager, reboot};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll};
use embassy_futures::select::{Either, select};
use embassy_futures::yield_now;
use hw::memory::{has_room, heap_use};
use hw::{console, link, println};
use ringfence_core::command_line;
use ringfence_link::event::Event;

/// The most memory of the kernel's heap that a command takes, besides buffers that it asks for.
const COMMAND_BYTES: usize = 128 << 10;
/// The maximum number of commands in the background.
const MAX_JOBS: usize = 64;

/// A command in the background.
struct Job {
    /// The job's number for a person.
    number: usize,
    line: String,
    future: Pin<Box<dyn Future<Output = Outcome>>>,
}

/// The commands that were started with `&` and still run, and the number of commands that failed.
pub struct Jobs {
    running: Vec<Job>,
    failed: usize,
    /// Whether the commands come from a script, and not from a person.
    scripted: bool,
}

impl Jobs {
    /// Returns the jobs of a shell that runs nothing yet. `scripted` says whether its commands come
    /// from a script.
    pub fn new(scripted: bool) -> Jobs {
        Jobs { running: Vec::new(), failed: 0, scripted }
    }

    /// Returns the number of commands that failed.
    pub fn failed(&self) -> usize {
        self.failed
    }

    /// Runs one command; Ctrl-C ends it. A command that ends with `&` runs beside the commands that
    /// follow.
    pub async fn execute(&mut self, line: &str) {
        let ends = ["shutdown", "exit", "reboot", "wait", "jobs"].contains(&line) || line.starts_with("kill %");
        if !has_room(COMMAND_BYTES) && !ends {
            let free_kib = {
                let (used, size) = heap_use();
                (size - used) / 1024
            };
            let text =
                format!("out of memory: {free_kib} KiB of the kernel's heap are left; 'wait' waits for what runs");
            self.count(line, Err(text));
            return;
        }
        if let Some(line) = command_line::in_background(line) {
            if let Err(reason) = self.start(line) {
                self.count(line, Err(reason));
            }
            return;
        }
        match line {
            // A person has seen the error.
            "shutdown" | "exit" => finish(if self.scripted { self.failed } else { 0 }).await,
            "reboot" if !self.scripted => reboot().await,
            "jobs" => {
                self.running.iter().for_each(|job| println!("[{}] {}", job.number, job.line));
                self.count(line, Ok(()));
            }
            "wait" => {
                let is_done = self.finish_or_interrupted().await;
                if !is_done {
                    self.running.clear();
                }
                self.count(line, is_done.then_some(()).ok_or_else(|| "interrupted".to_string()));
            }
            _ => match line.strip_prefix("kill %") {
                Some(number) => {
                    let killed = self.kill(number.trim());
                    self.count(line, killed);
                }
                None => self.run(line).await,
            },
        }
    }

    async fn run(&mut self, line: &str) {
        let interrupted = poll_fn(|context| match console::take_interrupt(context.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        let (shown, in_pages) = command_line::in_pages(line).map_or((line, false), |shown| (shown, !self.scripted));
        let command = async {
            match in_pages {
                true => pager::run(shown).await,
                false => commands::run(shown).await,
            }
        };
        match self.beside(select(command, interrupted)).await {
            Either::First(outcome) => self.count(line, outcome),
            Either::Second(()) => self.count(line, Err("interrupted".to_string())),
        }
        let_drivers_return().await;
    }

    /// Starts a command in the background.
    fn start(&mut self, line: &str) -> Outcome {
        if self.running.len() >= MAX_JOBS {
            return Err(format!("{MAX_JOBS} commands run already; 'wait' waits for them"));
        }
        if line.split_whitespace().next() == Some("top") && !line.contains("-n") {
            return Err("top reads keys; with -n it runs beside other commands".to_string());
        }
        let number = (1..).find(|number| self.running.iter().all(|job| job.number != *number)).unwrap_or(1);
        let line = line.to_string();
        let shown = line.clone();
        let future = Box::pin(async move {
            let outcome = commands::run(&line).await;
            println!("{line} & {}", if outcome.is_ok() { "is done" } else { "failed" });
            outcome
        });
        self.running.push(Job { number, line: shown, future });
        Ok(())
    }

    /// Abandons a command in the background.
    fn kill(&mut self, number: &str) -> Outcome {
        let place = self.running.iter().position(|job| number.parse() == Ok(job.number));
        let place = place.ok_or_else(|| format!("there is no job %{number}; 'jobs' lists them"))?;
        let job = self.running.remove(place);
        println!("{} & is given up", job.line);
        Ok(())
    }

    /// Waits for all jobs.
    pub async fn finish(&mut self) {
        poll_fn(|context| {
            self.poll(context);
            if self.running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Waits for all jobs. Returns `false` if Ctrl-C came first.
    async fn finish_or_interrupted(&mut self) -> bool {
        poll_fn(|context| {
            self.poll(context);
            match (self.running.is_empty(), console::take_interrupt(context.waker())) {
                (true, _) => Poll::Ready(true),
                (_, true) => Poll::Ready(false),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Waits for `future` while the commands in the background go on.
    pub async fn beside<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = core::pin::pin!(future);
        poll_fn(|context| {
            self.poll(context);
            future.as_mut().poll(context)
        })
        .await
    }

    fn poll(&mut self, context: &mut Context) {
        let mut ended = Vec::new();
        self.running.retain_mut(|job| match job.future.as_mut().poll(context) {
            Poll::Ready(outcome) => {
                ended.push((core::mem::take(&mut job.line), outcome));
                false
            }
            Poll::Pending => true,
        });
        ended.into_iter().for_each(|(line, outcome)| self.count(&line, outcome));
    }

    /// Prints the error of a command, if there is one, and counts it.
    pub fn count(&mut self, line: &str, outcome: Outcome) {
        let error = outcome.as_ref().err().map(|reason| reason.as_str().into());
        link::tell(&Event::Command { line: line.into(), error });
        if let Err(reason) = outcome {
            println!("error: {reason}");
            self.failed += 1;
        }
    }
}

/// Lets a driver that the last command ended come back before the next command. The executor next
/// runs the task that became ready last (embassy-executor's queue), so after one turn this task may
/// run again; yield twice.
pub async fn let_drivers_return() {
    yield_now().await;
    yield_now().await;
}
