//! An allocator for programs that compute with large tensors.
//!
//! Every operation allocates its result and frees its operands. The system's allocator gives large blocks back at once,
//! so that the next operation waits while the kernel clears thousands of small pages for it: a fifth of the time of a
//! prompt. This one keeps a few large blocks for the next operation, and asks for pages of 2 MiB, which also spares
//! the CPU most look-ups of addresses.

use memmap2::{MmapMut, MmapOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, MutexGuard};

/// Blocks from this size on are kept, in bytes.
const LARGE: usize = 1 << 20;
/// Size and alignment of a large page, in bytes.
const PAGE: usize = 2 << 20;
/// The most blocks that are managed at a time; more are the system's.
const SLOTS: usize = 256;
/// The most bytes that are kept for later.
const IDLE: usize = 224 << 20;

/// Keeps large blocks for the next tensor, in large pages where the system has them; all else is left to [`System`].
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: gemma_kernels::LargeBlocks = gemma_kernels::LargeBlocks::new();
/// ```
///
/// At most 224 MiB are kept beyond what is in use.
#[derive(Debug)]
pub struct LargeBlocks {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    slots: [Option<Block>; SLOTS],
    /// Counts what is freed, to tell the oldest.
    clock: u64,
}

/// A block of large pages.
#[derive(Debug)]
struct Block {
    /// Owns the memory.
    map: MmapMut,
    /// The first address in it at which a large page can begin.
    start: usize,
    len: usize,
    /// When it was freed; `None` while it is in use.
    freed: Option<u64>,
}

impl Block {
    /// Fresh memory, all zeros. `None` when the system has none.
    fn new(len: usize) -> Option<Self> {
        let map = MmapOptions::new().len(len.checked_add(PAGE)?).map_anon().ok()?;
        #[cfg(target_os = "linux")]
        // a kernel that refuses gives small pages
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = (map.as_ptr() as usize).next_multiple_of(PAGE);
        Some(Self { map, start, len, freed: None })
    }
}

impl Table {
    /// The kept block that fits best, without wasting half of it.
    fn reuse(&mut self, len: usize) -> Option<*mut u8> {
        let fits = |block: &&mut Block| block.freed.is_some() && block.len >= len && block.len / 2 < len;
        let block = self.slots.iter_mut().flatten().filter(fits).min_by_key(|block| block.len)?;
        block.freed = None;
        Some(block.pointer())
    }

    /// Takes a fresh block in; gives it back where there is no room.
    fn insert(&mut self, block: Block) -> Result<(), Block> {
        match self.slots.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(block),
            None => return Err(block),
        }
        Ok(())
    }

    /// Notes that the block at an address is free; whether there is one.
    fn free(&mut self, address: usize) -> bool {
        self.clock += 1;
        let found = self.slots.iter_mut().flatten().find(|block| block.start == address);
        let is_there = found.is_some();
        found.into_iter().for_each(|block| block.freed = Some(self.clock));
        is_there
    }

    /// Takes out a block that is too much to keep: one that is so alone, or else the oldest. To be dropped when the
    /// table is no longer locked.
    fn surplus(&mut self) -> Option<Block> {
        let idle: usize = self.slots.iter().flatten().filter(|b| b.freed.is_some()).map(|b| b.len).sum();
        if idle <= IDLE {
            return None;
        }
        let kept = self.slots.iter_mut().filter(|slot| slot.as_ref().is_some_and(|block| block.freed.is_some()));
        let order = |slot: &&mut Option<Block>| slot.as_ref().map(|block| (block.len <= IDLE, block.freed));
        kept.min_by_key(order)?.take()
    }

    /// How long the block at an address is.
    fn len(&self, address: usize) -> Option<usize> {
        self.slots.iter().flatten().find(|block| block.start == address).map(|block| block.len)
    }
}

impl Block {
    fn pointer(&mut self) -> *mut u8 {
        let offset = self.start - self.map.as_ptr() as usize;
        self.map.as_mut_ptr().wrapping_add(offset)
    }
}

impl LargeBlocks {
    /// Nothing is kept yet.
    pub const fn new() -> Self {
        Self { table: Mutex::new(Table { slots: [const { None }; SLOTS], clock: 0 }) }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A large block, and whether it is fresh; `None` where the system has to serve.
    fn take(&self, layout: Layout) -> Option<(*mut u8, bool)> {
        let len = layout.size().checked_next_multiple_of(PAGE)?;
        if layout.size() < LARGE || layout.align() > PAGE {
            return None;
        }
        if let Some(pointer) = self.table().reuse(len) {
            return Some((pointer, false));
        }
        let mut block = Block::new(len)?;
        let pointer = block.pointer();
        // where there is no room, the block is dropped only after the table is no longer locked
        let inserted = self.table().insert(block);
        inserted.is_ok().then_some((pointer, true))
    }
}

impl Default for LargeBlocks {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: blocks of the table are mapped, aligned, at least as long as asked for and lent once at a time: a block is in
// use from `take` until `dealloc` with its address. The table neither allocates nor panics while it is locked. All else
// is the system's, whose blocks are not in the table.
unsafe impl GlobalAlloc for LargeBlocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some((pointer, _)) => pointer,
            // SAFETY: as required of the caller.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some((pointer, true)) => pointer,
            Some((pointer, false)) => {
                // SAFETY: the block is at least as long.
                unsafe { pointer.write_bytes(0, layout.size()) };
                pointer
            }
            // SAFETY: as required of the caller.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if layout.size() >= LARGE {
            let is_ours = self.table().free(pointer as usize);
            if is_ours {
                // back to the system, one by one, with the table free meanwhile
                while let Some(surplus) = { self.table().surplus() } {
                    drop(surplus);
                }
                return;
            }
        }
        // SAFETY: as required of the caller; the block is not of the table, so it is the system's.
        unsafe { System.dealloc(pointer, layout) };
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let held = if layout.size() >= LARGE { self.table().len(pointer as usize) } else { None };
        match held {
            Some(len) if size >= LARGE && size <= len => return pointer,
            None if size < LARGE => {
                // SAFETY: as required of the caller; the block is the system's.
                return unsafe { System.realloc(pointer, layout, size) };
            }
            _ => {}
        }
        // SAFETY: as required of the caller; both blocks hold as much as is copied.
        unsafe {
            let Ok(new_layout) = Layout::from_size_align(size, layout.align()) else { return std::ptr::null_mut() };
            let to = self.alloc(new_layout);
            if !to.is_null() {
                to.copy_from_nonoverlapping(pointer, layout.size().min(size));
                self.dealloc(pointer, layout);
            }
            to
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 64).unwrap()
    }

    #[test]
    fn a_block_is_used_again_and_zeros_are_zeros() {
        let blocks = LargeBlocks::new();
        // SAFETY: every block is used as long as it is, and freed once.
        unsafe {
            let first = blocks.alloc(layout(3 << 20));
            assert!(first.addr().is_multiple_of(PAGE));
            first.write_bytes(7, 3 << 20);
            blocks.dealloc(first, layout(3 << 20));
            let second = blocks.alloc_zeroed(layout((3 << 20) - 1000));
            assert_eq!(first, second);
            assert!(std::slice::from_raw_parts(second, (3 << 20) - 1000).iter().all(|byte| *byte == 0));
            // in use, and so not lent again
            let third = blocks.alloc_zeroed(layout(3 << 20));
            assert_ne!(second, third);
            // half of it would be wasted
            blocks.dealloc(third, layout(3 << 20));
            let small = blocks.alloc(layout(LARGE));
            assert_ne!(third, small);
            blocks.dealloc(small, layout(LARGE));
            blocks.dealloc(second, layout((3 << 20) - 1000));
        }
    }

    #[test]
    fn no_more_is_kept_than_was_said() {
        let blocks = LargeBlocks::new();
        let idle = || blocks.table().slots.iter().flatten().map(|block| block.len).sum::<usize>();
        // SAFETY: every block is freed once.
        unsafe {
            let each: Vec<*mut u8> = (0..40).map(|i| blocks.alloc(layout((i + 1) << 20))).collect();
            for (i, pointer) in each.into_iter().enumerate() {
                pointer.write(1);
                blocks.dealloc(pointer, layout((i + 1) << 20));
            }
            assert!(idle() <= IDLE && idle() > IDLE / 2, "{}", idle());
            // one that is more than all that may be kept goes back itself
            let before = idle();
            let huge = blocks.alloc(layout(2 * IDLE));
            huge.write(1);
            blocks.dealloc(huge, layout(2 * IDLE));
            assert_eq!(idle(), before);
            // many small ones, then one that needs the room of most of them
            let small: Vec<*mut u8> = (0..60).map(|_| blocks.alloc(layout(PAGE))).collect();
            small.into_iter().for_each(|pointer| blocks.dealloc(pointer, layout(PAGE)));
            let large = blocks.alloc(layout(IDLE - PAGE));
            large.write(1);
            blocks.dealloc(large, layout(IDLE - PAGE));
            assert!(idle() <= IDLE && idle() >= IDLE - PAGE, "{}", idle());
        }
    }

    #[test]
    fn growing_and_shrinking_keep_what_was_written() {
        let blocks = LargeBlocks::new();
        let sizes = [100, 5000, LARGE, LARGE + 1, 5 << 20, 6 << 20, 4 << 20, LARGE - 1, 64, 3 << 20, 1];
        // SAFETY: the block is always as long as the last size.
        unsafe {
            let mut pointer = blocks.alloc(layout(sizes[0]));
            pointer.write_bytes(9, sizes[0]);
            for pair in sizes.windows(2) {
                pointer = blocks.realloc(pointer, layout(pair[0]), pair[1]);
                let kept = std::slice::from_raw_parts(pointer, pair[0].min(pair[1]));
                assert!(kept.iter().all(|byte| *byte == 9), "{pair:?}");
                pointer.write_bytes(9, pair[1]);
            }
            blocks.dealloc(pointer, layout(1));
        }
    }

    /// More blocks than there is room for, from several threads: none is lent twice.
    #[test]
    fn threads_share_the_blocks() {
        let blocks = LargeBlocks::new();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let blocks = &blocks;
                scope.spawn(move || {
                    for round in 0..20 {
                        // SAFETY: every block is as long as asked for, and freed once.
                        unsafe {
                            let size = LARGE + round * 4096;
                            let mine: Vec<*mut u8> = (0..SLOTS / 3).map(|_| blocks.alloc(layout(size))).collect();
                            mine.iter().for_each(|pointer| pointer.write(thread));
                            assert!(mine.iter().all(|pointer| pointer.read() == thread));
                            mine.into_iter().for_each(|pointer| blocks.dealloc(pointer, layout(size)));
                        }
                    }
                });
            }
        });
    }
}
