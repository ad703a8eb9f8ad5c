//! A machine whose drivers are ended while it works.

use super::PATIENCE;
use super::victim::Victim;
use crate::machine::{Running, Said};
use crate::output;
use anyhow::{Context, Result, bail};
use ringfence_link::event::Event;
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Range of the time between two attacks on a driver, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 100..900;
/// How long changed code may wait to be executed before its driver is ended by `kill`.
const ARMED: Duration = Duration::from_millis(300);

/// The work that goes on meanwhile.
pub trait Work {
    /// Takes an event of the machine, and gives it the next thing to do. Returns whether a piece of
    /// the work has ended.
    fn note(&mut self, running: &mut Running, event: &Event) -> Result<bool>;
}

/// How many drivers were ended, and came back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ends {
    /// Number of drivers that were ended.
    pub crashes: u64,
    /// Number of drivers that came back.
    pub restarts: u64,
    /// Median and longest time from the end of a driver until it was back, in microseconds.
    pub restart_us: (u64, u64),
}

impl Ends {
    /// Returns whether each driver came back.
    pub fn all_are_back(&self) -> bool {
        self.crashes == self.restarts
    }

    /// Returns the rows of a summary, each a name and a value.
    pub fn rows(&self) -> [(&'static str, String); 4] {
        [
            ("crashes", self.crashes.to_string()),
            ("restarts", self.restarts.to_string()),
            ("restart, median", format!("{} us", self.restart_us.0)),
            ("restart, longest", format!("{} us", self.restart_us.1)),
        ]
    }
}

/// A machine whose drivers are ended.
pub struct Attacked {
    /// The machine.
    pub running: Running,
    /// Number of drivers that were ended.
    pub crashes: u64,
    /// Number of drivers that came back.
    pub restarts: u64,
    /// The times that this took, in microseconds.
    times: Vec<u64>,
    /// The last lines of the console that concern drivers.
    recent: VecDeque<String>,
    said: Instant,
}

impl Attacked {
    /// Prepares a machine that is at its prompt: drivers come back without limits.
    pub fn new(mut running: Running) -> Result<Attacked> {
        let limits =
            ["restarts 1000", "console-rows 1000000", "restart-wait-ms 0", "command-ms 2000", "transmit-ms 500"];
        for limit in limits {
            running.type_line(&format!("limits {limit}"))?;
        }
        let said = Instant::now();
        Ok(Attacked { running, crashes: 0, restarts: 0, times: Vec::new(), recent: VecDeque::new(), said })
    }

    /// Returns how many drivers were ended, and came back.
    pub fn ends(&self) -> Ends {
        let mut times = self.times.clone();
        times.sort_unstable();
        let last = times.len().saturating_sub(1);
        let at = |index: usize| times.get(index).copied().unwrap_or(0);
        Ends { crashes: self.crashes, restarts: self.restarts, restart_us: (at(last / 2), at(last)) }
    }

    /// Returns an error with the last lines of the console.
    pub fn with_recent(&self, error: &anyhow::Error) -> String {
        let recent: Vec<&str> = self.recent.iter().map(String::as_str).collect();
        format!("{error:#}; the console said last:\n{}", recent.join("\n"))
    }

    /// Ends drivers until `end`, or `crashes` of them, while the work goes on.
    pub fn attack(
        &mut self,
        victims: &[Victim],
        (end, crashes): (Instant, u64),
        random: &mut fastrand::Rng,
        work: &mut impl Work,
    ) -> Result<()> {
        let mut heard = Instant::now();
        let most = self.crashes.saturating_add(crashes);
        while Instant::now() < end && self.crashes < most {
            let next = Instant::now() + Duration::from_millis(random.u64(PAUSE_MS));
            if self.go_on_until(next, work)? {
                heard = Instant::now();
            }
            if heard.elapsed() > PATIENCE {
                bail!("no piece of work has ended for {} s", PATIENCE.as_secs());
            }
            let victim = &victims[random.usize(..victims.len())];
            let before = self.crashes;
            self.running.type_line(&victim.command(random))?;
            // Changed code must not wait too long for the rare event that executes it.
            let until = Instant::now() + ARMED;
            while self.crashes == before {
                let Some(left) = until.checked_duration_since(Instant::now()) else {
                    self.running.type_line(&format!("kill {}", victim.name))?;
                    break;
                };
                if self.next_within(left, work)? {
                    heard = Instant::now();
                }
            }
            self.progress(end);
        }
        Ok(())
    }

    /// Lets the work go on for a time. Returns whether a piece of it ended.
    pub fn go_on_until(&mut self, end: Instant, work: &mut impl Work) -> Result<bool> {
        let mut has_ended = false;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            has_ended |= self.next_within(left, work)?;
        }
        Ok(has_ended)
    }

    /// Notes the next line or event, if one comes in time. Returns whether it ended a piece of the
    /// work.
    fn next_within(&mut self, left: Duration, work: &mut impl Work) -> Result<bool> {
        let Some(said) = self.running.next_within(left) else { return Ok(false) };
        self.note(&said)?;
        match &said {
            Said::Event(event) => work.note(&mut self.running, event),
            Said::Line(_) => Ok(false),
        }
    }

    /// Waits for the next line or event, and returns it if it is an event. `what` describes the
    /// expected event in the error.
    pub fn next(&mut self, limit: Instant, what: &str) -> Result<Option<Event<'static>>> {
        let left = limit.saturating_duration_since(Instant::now());
        let said = self.running.next_within(left).with_context(|| format!("waited in vain for {what}"))?;
        self.note(&said)?;
        Ok(match said {
            Said::Event(event) => Some(event),
            Said::Line(_) => None,
        })
    }

    /// Waits until `is_so` of the work. `what` describes it in the error.
    pub fn wait<W: Work>(&mut self, work: &mut W, what: &str, is_so: impl Fn(&W) -> bool) -> Result<()> {
        let limit = Instant::now() + PATIENCE;
        while !is_so(work) {
            if let Some(event) = self.next(limit, what)? {
                work.note(&mut self.running, &event)?;
            }
        }
        Ok(())
    }

    /// Counts an event, or keeps a line.
    fn note(&mut self, said: &Said) -> Result<()> {
        match said {
            Said::Line(line) => self.keep(line),
            Said::Event(Event::Fault(_)) => self.crashes += 1,
            Said::Event(Event::Restarted { after_us, .. }) => {
                self.restarts += 1;
                self.times.push(*after_us);
            }
            Said::Event(Event::Panic { message }) => bail!("the kernel panicked: {message}"),
            Said::Event(Event::GivenUp { name, why }) => bail!("{name}: {why}"),
            // A driver that is to be killed may already have been ended by the change made before.
            Said::Event(Event::Command { line, error: Some(error) }) if !line.starts_with("kill ") => {
                bail!("'{line}' failed: {error}")
            }
            Said::Event(_) => {}
        }
        Ok(())
    }

    /// Keeps a line of the console for the analysis of a failure.
    fn keep(&mut self, line: &str) {
        const RECENT: usize = 60;
        // Lines that are printed in every case are of no interest.
        let is_kept = ["[", "    then: "].iter().any(|start| line.starts_with(start))
            || ["error", "poke", "kill"].iter().any(|part| line.contains(part));
        if is_kept {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(line.to_string());
        }
    }

    /// Prints the progress: each time on a terminal, every 30 seconds in a log.
    fn progress(&mut self, end: Instant) {
        const NOW_AND_THEN: Duration = Duration::from_secs(30);
        let left = end.saturating_duration_since(Instant::now()).as_secs();
        if std::io::stderr().is_terminal() {
            output::progress(format_args!("\rsoak: {} crashes, {left} s to go    ", self.crashes));
        } else if self.said.elapsed() > NOW_AND_THEN {
            self.said = Instant::now();
            output::complain(&format!("soak: {} crashes, {left} s to go", self.crashes));
        }
    }

    /// Checks that the drivers have domains of the kind for which they were chosen, while the work
    /// goes on.
    pub fn check_kinds(&mut self, victims: &[Victim], work: &mut impl Work) -> Result<()> {
        self.running.type_line("lsmod")?;
        let limit = Instant::now() + PATIENCE;
        let drivers = loop {
            match self.next(limit, "the list of drivers")? {
                Some(Event::Drivers(drivers)) => break drivers,
                Some(event) => _ = work.note(&mut self.running, &event)?,
                None => {}
            }
        };
        for victim in victims {
            match drivers.iter().find(|driver| driver.name == victim.name) {
                Some(driver) if driver.kind == victim.kind.name() => {}
                found => bail!("{} should be {}, but is {found:?}", victim.name, victim.kind),
            }
        }
        Ok(())
    }

    /// Returns the number of free frames.
    pub fn free_frames(&mut self) -> Result<i64> {
        self.running.type_line("mem")?;
        let limit = Instant::now() + PATIENCE;
        loop {
            if let Some(Event::Memory { free, .. }) = self.next(limit, "the free memory")? {
                return Ok(i64::try_from(free)?);
            }
        }
    }

    /// Replaces all drivers by new instances.
    pub fn settle(&mut self, victims: &[Victim]) -> Result<()> {
        for Victim { name, .. } in victims {
            let wanted = self.crashes + 1;
            self.running.type_line(&format!("kill {name}"))?;
            let limit = Instant::now() + PATIENCE;
            while self.crashes < wanted || self.restarts < self.crashes {
                self.next(limit, &format!("{name} to be back"))?;
            }
        }
        Ok(())
    }
}
