//! Where several threads write.

/// A slice that threads write to at places that do not overlap.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Output(pub(in crate::cpu) *mut f32);

// SAFETY: whoever uses a pointer from `at` promises that no other thread has the same.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// # Safety
    /// `index` must lie inside the slice, and no other thread may touch that element.
    pub(in crate::cpu) unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: as required of the caller.
        unsafe { self.0.add(index) }
    }
}
