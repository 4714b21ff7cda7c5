//! What a measurement was made on: CPU, memory, kernel, compiler, date.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// One line that describes this machine, for the head of a table of timings.
pub(crate) fn describe() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_string());
    let memory = field(&read("/proc/meminfo"), "MemTotal").and_then(|text| gibibytes(&text));
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.trim();

    let mut parts = vec![cpu, format!("{cores} {}", if cores == 1 { "core" } else { "cores" })];
    parts.extend(memory.map(|gib| format!("{gib:.1} GiB memory")));
    parts.push(if kernel.is_empty() {
        std::env::consts::OS.to_string()
    } else {
        format!("{} {kernel}", std::env::consts::OS)
    });
    parts.extend(compiler());
    parts.push(date(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())));
    parts.join(", ")
}

/// The first value of `name` in a file of `name : value` lines.
fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.split(':').next().map(str::trim) == Some(name))?;
    let (_, value) = line.split_once(':')?;
    Some(value.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// `"24601234 kB"` in GiB.
fn gibibytes(text: &str) -> Option<f64> {
    let kib: f64 = text.strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024.0 / 1024.0)
}

fn compiler() -> Option<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.split(" (").next().map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
}

/// The day of a moment given in seconds since 1970-01-01, in UTC, as `YYYY-MM-DD`.
fn date(seconds: u64) -> String {
    let mut days = seconds / 86_400;
    let mut year = 1970;
    let length = |year: u64| {
        if year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400) { 366 } else { 365 }
    };
    while days >= length(year) {
        days -= length(year);
        year += 1;
    }
    let february = if length(year) == 366 { 29 } else { 28 };
    let mut month = 1;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < len {
            break;
        }
        days -= len;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_over_leap_years() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(951_868_800), "2000-03-01");
        assert_eq!(date(4_107_542_399), "2100-02-28");
        assert_eq!(date(4_107_542_400), "2100-03-01");
        assert_eq!(date(1_735_689_599), "2024-12-31");
    }

    #[test]
    fn fields_of_proc_files_are_found() {
        let text = "processor\t: 0\nmodel name\t: Some  CPU @ 2:1\nmodel name\t: Other\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2:1"));
        assert_eq!(field(text, "model"), None);
        assert_eq!(gibibytes("1048576 kB"), Some(1.0));
    }
}
