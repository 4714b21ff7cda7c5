//! The date for `strftime_now`, in Coordinated Universal Time: the reference takes the machine's own zone.

use std::time::{SystemTime, UNIX_EPOCH};

/// The present time in the given format.
pub(super) fn now(format: &str) -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    formatted(seconds, format)
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A time in seconds since 1970, formatted as C's `strftime` does in its plain locale.
fn formatted(seconds: u64, format: &str) -> String {
    let (days, second_of_day) = ((seconds / 86_400) as i64, seconds % 86_400);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    // Howard Hinnant's civil_from_days: years begin in March, so that the leap day is the last
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = year_of_era + era * 400 + i64::from(month < 2);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize];
    let of_year = before + day + i64::from(leap && month > 1);
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize];
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let Some(mut letter) = chars.next() else {
            out.push('%');
            break;
        };
        let plain = letter == '-';
        if plain {
            match chars.next() {
                Some(next) => letter = next,
                None => break,
            }
        }
        let two = |value: i64| if plain { value.to_string() } else { format!("{value:02}") };
        out += &match letter {
            'Y' => year.to_string(),
            'y' => two(year % 100),
            'm' => two(month + 1),
            'd' => two(day),
            'e' => format!("{day:2}"),
            'j' => format!("{of_year:03}"),
            'H' => two(hour as i64),
            'I' => two(hour12 as i64),
            'M' => two(minute as i64),
            'S' => two(second as i64),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'F' => format!("{year}-{:02}-{day:02}", month + 1),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'D' => format!("{:02}/{day:02}/{:02}", month + 1, year % 100),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            'n' => "\n".to_owned(),
            '%' => "%".to_owned(),
            other => format!("%{other}"),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::formatted;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %j %-d %I %p %y %%";
        assert_eq!(formatted(0, all), "1970-01-01 00:00:00 Thu Thursday Jan January 001 1 12 AM 70 %");
        assert_eq!(formatted(1_709_210_096, all), "2024-02-29 12:34:56 Thu Thursday Feb February 060 29 12 PM 24 %");
        assert_eq!(formatted(1_735_689_599, "%d %b %Y %j"), "31 Dec 2024 366");
        assert_eq!(formatted(951_868_800, "%F %T"), "2000-03-01 00:00:00");
    }
}
