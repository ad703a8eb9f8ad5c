//! `rf_null`: does nothing, to measure the cost of a crossing.

use super::Answer;
use crate::domain::Domain;

/// Does nothing.
pub fn rf_null(_domain: &mut Domain) -> Answer {
    Ok(0)
}
