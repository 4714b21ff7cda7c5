//! When a request is made again, and after which pause.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Error;

/// The longest pause that is waited for.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A request that failed: for a passing reason or for good.
pub(super) enum Attempt {
    /// It is worth another attempt, after `pause` where the hub asks for one.
    Again { error: Error, pause: Option<Duration> },
    /// It is not.
    Stop(Error),
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        Self::Stop(error)
    }
}

/// The pause that a `Retry-After` header asks for at the time `now`: seconds, or a date of HTTP
/// (`Wed, 21 Oct 2015 07:28:00 GMT`). `None` for anything else.
pub(super) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit()) {
        // a number that does not fit is a long time, too
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let until = UNIX_EPOCH + Duration::from_secs(http_date(text)?);
    Some(until.duration_since(now).unwrap_or_default())
}

/// Seconds since 1970 of an HTTP date (RFC 9110, section 5.6.7, the form that is written today).
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok().filter(|part| *part <= 60));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if words.next() != Some("GMT") || !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    // days of the civil calendar, counted from March so that the leap day comes last (Hinnant)
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * years + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1;
    let days_to_1970 = 719_468;
    Some((days - days_to_1970) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_a_number_of_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(1_445_412_480);
        let seconds = |text: &str| retry_after(text, now).map(|pause| pause.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds(" 0 "), Some(0));
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:30 GMT"), Some(30));
        assert_eq!(seconds("Wed, 21 Oct 2015 07:28:00 GMT"), Some(0));
        assert_eq!(seconds("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800 - 1_445_412_480));
        assert_eq!(seconds("Tue, 20 Oct 2015 07:28:00 GMT"), Some(0), "a date that is past");
        assert!(seconds("99999999999999999999999") > Some(LONGEST_PAUSE.as_secs()));
        for nonsense in ["", "soon", "-1", "1.5", "Wed, 21 Oct 2015", "Wed, 99 Oct 2015 07:28:00 GMT", "x, y z"] {
            assert_eq!(seconds(nonsense), None, "{nonsense}");
        }
    }
}
