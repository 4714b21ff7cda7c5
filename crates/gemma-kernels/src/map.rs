//! Memory maps: a file as bytes, without reading it.

use bytes::Bytes;
use std::{fs::File, io, path::Path};

/// Maps a file into memory, read-only. Pages are read when they are touched, and slices of the result
/// (`Bytes::slice`) borrow the map for as long as they live.
///
/// The file must not be shortened while it is mapped: touching a page that no longer exists raises SIGBUS, which ends
/// the process. A program can have it say why, see [`report_lost_maps`]. Model files are written once and replaced by
/// renaming, which leaves existing maps intact.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new()); // an empty range cannot be mapped
    }
    // SAFETY: the map is read-only and private. A concurrent truncation raises SIGBUS, as documented above; it
    // cannot make the slice alias Rust memory.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    #[cfg(unix)]
    let map = lost::Noted::new(map, path);
    Ok(Bytes::from_owner(map))
}

/// Has the process end with a message and exit status 2 when a mapped file was shortened, and not by SIGBUS without a
/// word. For the main function of a program: it handles the signal for the whole process. Other causes of the signal are
/// handed on to whoever handled it before. Does nothing where there are no signals.
pub fn report_lost_maps() {
    #[cfg(unix)]
    lost::handle();
}

/// Which address belongs to which file, for a signal handler.
#[cfg(unix)]
mod lost {
    use std::ffi::{c_int, c_void};
    use std::mem::MaybeUninit;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

    /// A mapped file. Never freed, since the handler may read it at any time: a few bytes for each file that is opened.
    struct Entry {
        begin: usize,
        len: usize,
        path: Box<[u8]>,
        /// Cleared when the map is gone, and its addresses are anybody's.
        is_mapped: AtomicBool,
        next: AtomicPtr<Entry>,
    }

    /// The entry that was added last; each knows the one before.
    static LAST: AtomicPtr<Entry> = AtomicPtr::new(std::ptr::null_mut());
    /// What handled the signal before.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
    /// The status with which the process ends, that of an error of the user's.
    const STATUS: c_int = 2;

    /// A map that the handler can find.
    pub(super) struct Noted {
        map: memmap2::Mmap,
        entry: &'static Entry,
    }

    impl Noted {
        pub(super) fn new(map: memmap2::Mmap, path: &Path) -> Self {
            let entry = Box::into_raw(Box::new(Entry {
                begin: map.as_ptr().addr(),
                len: map.len(),
                path: path.as_os_str().as_bytes().into(),
                is_mapped: AtomicBool::new(true),
                next: AtomicPtr::new(std::ptr::null_mut()),
            }));
            let mut last = LAST.load(Ordering::Acquire);
            loop {
                // SAFETY: the entry is valid, and never freed.
                unsafe { (*entry).next.store(last, Ordering::Relaxed) };
                match LAST.compare_exchange_weak(last, entry, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break,
                    Err(now) => last = now,
                }
            }
            // SAFETY: an entry is never freed, and changes by its atomics only once it is in the list.
            Self { map, entry: unsafe { &*entry } }
        }
    }

    impl AsRef<[u8]> for Noted {
        fn as_ref(&self) -> &[u8] {
            &self.map
        }
    }

    impl Drop for Noted {
        fn drop(&mut self) {
            self.entry.is_mapped.store(false, Ordering::Release);
        }
    }

    pub(super) fn handle() {
        BEFORE.get_or_init(|| {
            let mut before = MaybeUninit::zeroed();
            // SAFETY: both structures are valid, and the handler does only what is allowed in one.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&mut action.sa_mask);
                libc::sigaction(libc::SIGBUS, &action, before.as_mut_ptr());
                before.assume_init()
            }
        });
    }

    /// Writes and ends by system calls only, as a handler has to.
    extern "C" fn on_signal(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
        // SAFETY: the system hands a valid structure; entries of the list are never freed.
        unsafe {
            let address = (*info).si_addr().addr();
            let mut entry = LAST.load(Ordering::Acquire).cast_const();
            while !entry.is_null() {
                let Entry { begin, len, path, is_mapped, next } = &*entry;
                if is_mapped.load(Ordering::Acquire) && (*begin..begin + len).contains(&address) {
                    write(b"error: ");
                    write(path);
                    write(b": the file was shortened while it was in use; restore it and start again\n");
                    libc::_exit(STATUS);
                }
                entry = next.load(Ordering::Acquire).cast_const();
            }
            // the instruction is tried again, and whoever came before gets the signal
            match BEFORE.get() {
                Some(before) => libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut()),
                None => libc::signal(libc::SIGBUS, libc::SIG_DFL) as c_int,
            };
        }
    }

    fn write(text: &[u8]) {
        // SAFETY: the slice is readable. That nobody reads the message any more is no reason not to end.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
}
