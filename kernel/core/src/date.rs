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

/// Returns a date's seconds since the beginning of 1970; `None` if it is no date from 1970 to 9999,
/// or `second` is beyond 59.
pub fn unix_of(date: Date, second: u64) -> Option<u64> {
    let Date { year, month, day, hour, minute } = date;
    let is_date = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !is_date || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // As in [`Date::of_unix`], a year begins with March.
    let (year_from_march, month_from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let leap_days = year_from_march / 4 - year_from_march / 100 + year_from_march / 400;
    let days = year_from_march * 365 + leap_days + day_of_year - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    // Not so for the 31st of a month of 30 days.
    (Date::of_unix(seconds) == date).then_some(seconds)
}

/// Returns the seconds since the beginning of 1970 that the real-time clock of a PC shows: its
/// registers for second, minute, hour, day, month, year and century, and status register B
/// (Motorola MC146818A data sheet, "Time, Calendar, and Alarm Locations"). A century that is none
/// is taken for the 21st.
pub fn unix_of_cmos(registers: [u8; 7], status_b: u8) -> Option<u64> {
    const BINARY: u8 = 1 << 2;
    const HOURS_24: u8 = 1 << 1;
    const AFTERNOON: u8 = 1 << 7;
    let number = |register: u8| match status_b & BINARY {
        0 => u64::from(register >> 4) * 10 + u64::from(register & 0xf),
        _ => u64::from(register),
    };
    let [second, minute, hour, day, month, year, century] = registers;
    let hour = match status_b & HOURS_24 {
        0 => number(hour & !AFTERNOON) % 12 + if hour & AFTERNOON == 0 { 0 } else { 12 },
        _ => number(hour),
    };
    let century = if (19..=99).contains(&number(century)) { number(century) } else { 20 };
    let [second, minute, day, month, year] = [second, minute, day, month, year].map(number);
    unix_of(Date { year: century * 100 + year, month, day, hour, minute }, second)
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

    #[test]
    fn dates_come_back_from_their_seconds() {
        for seconds in (0..253_402_300_799).step_by(7_654_321) {
            assert_eq!(unix_of(Date::of_unix(seconds), seconds % 60), Some(seconds));
        }
        let date = |month, day| Date { year: 2026, month, day, hour: 0, minute: 0 };
        for wrong in [date(2, 29), date(4, 31), date(0, 1), date(13, 1), date(1, 0), Date { year: 1969, ..date(1, 1) }]
        {
            assert_eq!(unix_of(wrong, 0), None, "{wrong:?}");
        }
    }

    /// `date -u -d '2026-11-28 19:47:55' +%s`.
    #[test]
    fn the_clock_of_a_pc_has_four_formats() {
        const EXPECTED: Option<u64> = Some(1_795_895_275);
        assert_eq!(unix_of_cmos([0x55, 0x47, 0x19, 0x28, 0x11, 0x26, 0x20], 0b010), EXPECTED);
        assert_eq!(unix_of_cmos([55, 47, 19, 28, 11, 26, 20], 0b110), EXPECTED);
        assert_eq!(unix_of_cmos([0x55, 0x47, 0x87, 0x28, 0x11, 0x26, 0], 0b000), EXPECTED);
        assert_eq!(unix_of_cmos([55, 47, 0x87, 28, 11, 26, 0xff], 0b100), EXPECTED);
        // Nothing is there.
        assert_eq!(unix_of_cmos([0xff; 7], 0xff), None);
    }
}
