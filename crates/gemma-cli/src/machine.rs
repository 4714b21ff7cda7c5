//! What this machine has: memory left for a model, and the most this process has used; how long it has run.
//!
//! Read from the files Linux offers; elsewhere the answers are unknown rather than guessed.

use std::{fs, sync::OnceLock, time::Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// To be called first of all.
pub(crate) fn note_start() {
    START.get_or_init(Instant::now);
}

/// Seconds since the program began.
pub(crate) fn seconds_since_start() -> f64 {
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// Bytes a program can still use before the machine swaps or a container is ended.
pub(crate) fn available_memory() -> Option<u64> {
    let free = field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")?;
    Some(container_limit().map_or(free, |limit| limit.min(free)))
}

/// The most memory this process has had at one time, mapped files that were read included.
pub(crate) fn peak_memory() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// Bytes left under the tightest limit of the control groups this process is in.
fn container_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let read = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = |folder: &str, limit: &str, used: &str| {
        let limit = read(&format!("{folder}/{limit}"))?;
        Some(limit.saturating_sub(read(&format!("{folder}/{used}")).unwrap_or(0)))
    };
    folders(&groups)
        .iter()
        .filter_map(|folder| {
            left(folder, "memory.max", "memory.current")
                .or_else(|| left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes"))
        })
        .min()
}

/// The folders of all control groups named in `/proc/self/cgroup`, from each up to its root.
///
/// Lines read `0::/path` (version 2) or `5:memory:/path` (version 1). Inside a container the path may not exist
/// under the mount, where the root itself is the container's group; so every parent is tried.
fn folders(groups: &str) -> Vec<String> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            _ if controllers.split(',').any(|name| name == "memory") => "/sys/fs/cgroup/memory",
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            folders.push(format!("{root}{path}"));
            match path.rfind('/') {
                Some(end) => path = &path[..end],
                None => break,
            }
        }
    }
    folders
}

/// The value of a line such as `MemAvailable:   123 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "MemFree:  1 kB\nMemAvailable:   22903412 kB\nMem: 3 kB\n";
        assert_eq!(field(text, "MemAvailable"), Some(22_903_412 * 1024));
        assert_eq!(field(text, "Mem"), Some(3 * 1024));
        assert_eq!(field(text, "Swap"), None);
        assert_eq!(field("MemAvailable: many kB", "MemAvailable"), None);
    }

    #[test]
    fn both_versions_of_control_groups_are_followed_to_the_root() {
        assert_eq!(folders("0::/a/b\n"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
        assert_eq!(folders("5:cpu,memory:/x\n4:cpu:/x\n"), ["/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/memory"]);
        assert_eq!(folders("0::/\n"), ["/sys/fs/cgroup"]);
        assert!(folders("nonsense").is_empty());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_answers() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
        assert!(peak_memory().is_some_and(|bytes| bytes > 1 << 16));
    }
}
