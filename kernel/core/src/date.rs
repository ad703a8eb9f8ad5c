//! Seconds since 1970 as a date.

use core::fmt;

/// A date and a time of day, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    /// The year.
    pub year: u64,
    /// The month, from 1 on.
    pub month: u64,
    /// The day of the month, from 1 on.
    pub day: u64,
    /// The hour.
    pub hour: u64,
    /// The minute.
    pub minute: u64,
}

impl Date {
    /// Returns the date of a number of seconds since the beginning of 1970. Seconds after the year
    /// 9999 are taken for its end.
    pub fn of_unix(seconds: u64) -> Date {
        const LAST: u64 = 253_402_300_799;
        let seconds = seconds.min(LAST);
        let (days, second) = (seconds / 86400, seconds % 86400);
        // Days are counted from the first of March of the year 0, so that a leap day ends a year.
        // An era is 400 years, after which the calendar repeats itself.
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Date { year, month, day, hour: second / 3600, minute: second / 60 % 60 }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Date { year, month, day, hour, minute } = self;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `date -u -d @SECONDS`.
    #[test]
    fn known_dates() {
        let known = [
            (0, "1970-01-01 00:00"),
            (951_782_340, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (1_709_164_800, "2024-02-29 00:00"),
            (4_107_542_400, "2100-03-01 00:00"),
            (1_795_867_445, "2026-11-28 12:04"),
            (u64::MAX, "9999-12-31 23:59"),
        ];
        for (seconds, text) in known {
            assert_eq!(Date::of_unix(seconds).to_string(), text);
        }
    }

    #[test]
    fn days_follow_each_other() {
        let mut before = Date::of_unix(0);
        for day in 1..200_000 {
            let date = Date::of_unix(day * 86400);
            let is_next = (date.year, date.month, date.day) == (before.year, before.month, before.day + 1)
                || date.day == 1 && (date.year, date.month) == (before.year, before.month + 1)
                || (date.month, date.day, before.month, before.day) == (1, 1, 12, 31) && date.year == before.year + 1;
            assert!(is_next, "{before} {date}");
            before = date;
        }
    }
}
