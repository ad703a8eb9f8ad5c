//! The life of a driver: it runs, is ended by a fault, and is restarted or not.
//!
//! ```text
//!          end            plan               begin_restart
//! Running ─────► Ended ─────────► Planned ─────────────────► Ended, until `retire`: another one
//!                  ▲  └──► GivenUp ◄── too many              has its place; if that fails
//!                  └──── forgive ──┘                         it is planned again
//! any ── retire ──► Retired
//!
//! Running ── sleep ──► Asleep ── wake ──► Running;  ended as if it ran
//! ```
//!
//! Times are nanoseconds since boot. `F` is the record of the fault that ended the driver.

use alloc::vec::Vec;
use ringfence_abi::manifest::Policy;

/// The most times that the wait before a restart is doubled.
const MOST_DOUBLINGS: u64 = 10;

/// The stage of a driver's life, and its faults.
#[derive(Debug, Clone)]
pub struct Life<F> {
    stage: Stage,
    fault: Option<F>,
    policy: Policy,
    /// The times of the recent faults of this driver and of the drivers that it has replaced.
    faults_at: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The driver can be entered.
    Running,
    /// The driver sleeps in a service, until this time.
    Asleep(u64),
    /// The driver was ended; a restart is not planned yet.
    Ended,
    /// The driver is to be restarted at this time.
    Planned(u64),
    /// The driver was ended too often, or its device does not stop.
    GivenUp,
    /// The driver is being unloaded, or has been replaced.
    Retired,
}

/// How often and how soon a driver is restarted.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Faults are counted over a window of this length.
    pub window_ns: u64,
    /// Restarts within the window before the driver is given up.
    pub restarts: u64,
    /// Wait before the second restart; it doubles with each further restart.
    pub wait_ns: u64,
    /// The driver's debt of CPU time. A restart waits at least so long, except for the first.
    pub rest_ns: u64,
}

/// The driver was ended once too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOften;

/// The state of a driver, for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The driver runs.
    Running,
    /// The driver sleeps in a service.
    Asleep,
    /// The driver was given up.
    GivenUp,
    /// The driver was ended, and stays so.
    Ended,
    /// The driver was ended and will be back, at this time if that is known.
    Back(Option<u64>),
}

impl<F> Life<F> {
    /// Returns the life of a driver that runs.
    pub fn new(policy: Policy) -> Life<F> {
        Life { stage: Stage::Running, fault: None, policy, faults_at: Vec::new() }
    }

    /// Returns whether the driver can be entered.
    #[inline]
    pub fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Returns whether the driver was not ended: it can be entered, or sleeps.
    #[inline]
    pub fn is_alive(&self) -> bool {
        matches!(self.stage, Stage::Running | Stage::Asleep(_))
    }

    /// Returns until when the driver sleeps, if it does.
    #[inline]
    pub fn asleep_until(&self) -> Option<u64> {
        match self.stage {
            Stage::Asleep(until) => Some(until),
            _ => None,
        }
    }

    /// Makes the driver sleep until this time, unless it was ended.
    pub fn sleep(&mut self, until: u64) {
        if self.is_alive() {
            self.stage = Stage::Asleep(until);
        }
    }

    /// Makes the driver run if it sleeps. Returns whether it slept.
    pub fn wake(&mut self) -> bool {
        let sleeps = self.asleep_until().is_some();
        if sleeps {
            self.stage = Stage::Running;
        }
        sleeps
    }

    /// Returns the fault that ended the driver.
    pub fn fault(&self) -> Option<&F> {
        self.fault.as_ref()
    }

    /// Returns the policy: the action that follows when a fault ends the driver.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Changes the policy, and returns the old one. A restart that is planned already stays
    /// planned.
    pub fn set_policy(&mut self, policy: Policy) -> Policy {
        core::mem::replace(&mut self.policy, policy)
    }

    /// Ends the driver. If it was ended before, the first fault stays.
    pub fn end(&mut self, fault: F) {
        if self.is_alive() {
            self.stage = Stage::Ended;
            self.fault = Some(fault);
        }
    }

    /// Marks the driver as being unloaded, or as replaced: it is never restarted.
    pub fn retire(&mut self) {
        self.stage = Stage::Retired;
    }

    /// Returns whether the driver is restarted when it is ended.
    pub fn restarts(&self) -> bool {
        self.policy == Policy::Restart && !matches!(self.stage, Stage::Retired | Stage::GivenUp)
    }

    /// Returns whether the driver was ended and will be back.
    pub fn will_be_back(&self) -> bool {
        !self.is_alive() && self.fault.is_some() && self.restarts()
    }

    /// Returns whether the driver was ended, and another one may take its place.
    pub fn can_be_replaced(&self) -> bool {
        matches!(self.stage, Stage::Ended | Stage::Planned(_)) && self.fault.is_some()
    }

    /// Returns the driver's state.
    pub fn state(&self) -> State {
        match self.stage {
            Stage::Running => State::Running,
            Stage::Asleep(_) => State::Asleep,
            Stage::GivenUp => State::GivenUp,
            _ if !self.restarts() => State::Ended,
            Stage::Planned(at) => State::Back(Some(at)),
            Stage::Ended | Stage::Retired => State::Back(None),
        }
    }

    /// Plans a restart at the time `now`, and returns when the driver is to be restarted. The first
    /// restart is due at once; the wait doubles with each further restart. A restart counts from
    /// the time at which it is planned. If there are too many, the driver is given up.
    pub fn plan(&mut self, now: u64, patience: Patience) -> Result<u64, TooOften> {
        if let Stage::Planned(at) = self.stage {
            return Ok(at);
        }
        self.faults_at.retain(|at| now.saturating_sub(*at) < patience.window_ns);
        if self.faults_at.is_empty() {
            // Frees the memory as well; otherwise the memory in use would depend on how many faults
            // there once were.
            self.faults_at = Vec::new();
        }
        self.faults_at.push(now);
        let count = self.faults_at.len() as u64;
        if count > patience.restarts {
            self.give_up();
            return Err(TooOften);
        }
        let wait_ns = match count {
            0 | 1 => 0,
            _ => (patience.wait_ns << (count - 2).min(MOST_DOUBLINGS)).max(patience.rest_ns),
        };
        let at = now + wait_ns;
        self.stage = Stage::Planned(at);
        Ok(at)
    }

    /// Gives the driver up: it is not restarted any more.
    pub fn give_up(&mut self) {
        self.stage = Stage::GivenUp;
    }

    /// Begins the restart whose time has come. Returns how many restarts are within the window,
    /// including this one. If the restart fails, another restart is planned.
    pub fn begin_restart(&mut self) -> usize {
        if let Stage::Planned(_) = self.stage {
            self.stage = Stage::Ended;
        }
        self.faults_at.len()
    }

    /// Forgets the driver's faults. If the driver was given up, or its restart is planned, another
    /// restart can be planned.
    pub fn forgive(&mut self) {
        self.faults_at.clear();
        if matches!(self.stage, Stage::GivenUp | Stage::Planned(_)) {
            self.stage = Stage::Ended;
        }
    }

    /// Takes the place of `dead`, with its policy and its recent faults. Returns whether there were
    /// several faults.
    pub fn succeed(&mut self, dead: &mut Life<F>) -> bool {
        self.faults_at = core::mem::take(&mut dead.faults_at);
        self.policy = dead.policy;
        dead.retire();
        self.faults_at.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const PATIENCE: Patience = Patience { window_ns: 60_000 * MS, restarts: 8, wait_ns: 10 * MS, rest_ns: 0 };

    fn ended() -> Life<u32> {
        let mut life = Life::new(Policy::Restart);
        life.end(7);
        life
    }

    #[test]
    fn one_that_sleeps_is_alive_cannot_be_entered_and_can_be_ended() {
        let mut life: Life<&str> = Life::new(Policy::Restart);
        assert!(!life.wake(), "it does not sleep");
        life.sleep(7);
        assert!(life.is_alive() && !life.is_running() && !life.will_be_back());
        assert_eq!((life.asleep_until(), life.state()), (Some(7), State::Asleep));
        life.sleep(9);
        assert_eq!(life.asleep_until(), Some(9));
        assert!(life.wake() && life.is_running());
        life.sleep(11);
        life.end("killed");
        assert!(!life.wake() && !life.is_alive() && life.will_be_back());
        life.sleep(13);
        assert_eq!(life.asleep_until(), None, "one that was ended does not sleep");
    }

    #[test]
    fn the_first_restart_comes_at_once_and_each_further_one_waits_twice_as_long() {
        let mut life = ended();
        let mut waits = Vec::new();
        for now in (1..).map(|second| second * 1000 * MS).take(8) {
            let at = life.plan(now, PATIENCE).unwrap();
            // A restart is planned once, however often `plan` is called.
            assert_eq!(life.plan(now + MS, PATIENCE), Ok(at));
            waits.push((at - now) / MS);
            life.begin_restart();
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 320, 640]);
        assert_eq!(life.plan(9000 * MS, PATIENCE), Err(TooOften));
        assert_eq!(life.state(), State::GivenUp);
        assert!(!life.will_be_back() && !life.restarts());
    }

    #[test]
    fn faults_of_long_ago_do_not_count() {
        let mut life = ended();
        for now in (1..100).map(|minute| minute * 61_000 * MS) {
            assert_eq!(life.plan(now, PATIENCE), Ok(now));
            assert_eq!(life.begin_restart(), 1);
        }
    }

    #[test]
    fn the_wait_ends_somewhere() {
        let mut life = ended();
        let patience = Patience { restarts: 1000, window_ns: u64::MAX, ..PATIENCE };
        let waits = (1..=500).map(|now| {
            let at = life.plan(now, patience).unwrap();
            life.begin_restart();
            at - now
        });
        assert_eq!(waits.max(), Some((10 * MS) << 10));
    }

    #[test]
    fn a_debt_of_the_cpu_is_paid_but_for_the_first_time() {
        let mut life = ended();
        let patience = Patience { rest_ns: 500 * MS, ..PATIENCE };
        assert_eq!(life.plan(MS, patience), Ok(MS));
        life.begin_restart();
        assert_eq!(life.plan(2 * MS, patience), Ok(502 * MS));
    }

    #[test]
    fn a_successor_has_the_count_and_the_policy() {
        let mut dead = ended();
        dead.plan(MS, PATIENCE).unwrap();
        dead.begin_restart();
        let mut fresh = Life::new(Policy::Stop);
        assert!(!fresh.succeed(&mut dead));
        assert_eq!((fresh.policy(), fresh.is_running()), (Policy::Restart, true));
        assert!(!dead.will_be_back(), "it has been replaced");
        fresh.end(8);
        assert_eq!(fresh.plan(2 * MS, PATIENCE), Ok(12 * MS));
        fresh.begin_restart();
        assert!(Life::new(Policy::Stop).succeed(&mut fresh), "there were two");
    }

    #[test]
    fn what_was_ended_stays_ended_by_that() {
        let mut life = ended();
        life.end(8);
        assert_eq!(life.fault(), Some(&7));
        life.retire();
        assert!(!life.is_running() && !life.will_be_back());
        let mut unloaded = Life::<u32>::new(Policy::Restart);
        unloaded.retire();
        unloaded.end(1);
        assert_eq!(unloaded.fault(), None, "it was not running");
    }

    #[test]
    fn a_person_decides_what_becomes_of_it() {
        let mut life = ended();
        life.set_policy(Policy::Stop);
        assert_eq!((life.state(), life.will_be_back()), (State::Ended, false));
        life.set_policy(Policy::Restart);
        assert_eq!((life.state(), life.will_be_back()), (State::Back(None), true));
        life.give_up();
        assert_eq!(life.state(), State::GivenUp);
        life.forgive();
        assert!(life.will_be_back());
        assert_eq!(life.plan(5 * MS, PATIENCE), Ok(5 * MS), "its faults are forgiven");
        assert_eq!(life.state(), State::Back(Some(5 * MS)));
        life.forgive();
        assert_eq!(life.state(), State::Back(None), "it is planned anew");
    }
}
