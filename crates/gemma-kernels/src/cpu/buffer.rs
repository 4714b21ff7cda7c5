//! Scratch memory that begins on a cache line.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest vector.
const LINE: usize = 64;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "read through the slices")] [u8; LINE]);

/// A number whose every bit pattern, all zeros included, is a value.
///
/// # Safety
/// Implementors are plain numbers no wider than a cache line.
pub(in crate::cpu) unsafe trait Number: Copy {}

// SAFETY: plain numbers.
unsafe impl Number for f32 {}
// SAFETY: plain numbers.
unsafe impl Number for i32 {}
// SAFETY: plain numbers.
unsafe impl Number for i16 {}
// SAFETY: plain numbers.
unsafe impl Number for i8 {}

/// `len` numbers, zero at first, aligned for every vector.
pub(in crate::cpu) struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    number: std::marker::PhantomData<T>,
}

impl<T: Number> Buffer<T> {
    /// `len` zeros.
    pub(in crate::cpu) fn zeroed(len: usize) -> Self {
        let mut buffer = Self::empty();
        buffer.resize(len);
        buffer
    }

    /// No numbers yet.
    pub(in crate::cpu) const fn empty() -> Self {
        Self { lines: Vec::new(), len: 0, number: std::marker::PhantomData }
    }

    /// Makes room for `len` numbers, of which those from earlier uses keep whatever value they had.
    pub(in crate::cpu) fn resize(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(LINE);
        if lines > self.lines.len() {
            // not `resize`, which would copy what nobody needs
            self.lines = vec![Line([0; LINE]); lines];
        }
        self.len = len;
    }
}

impl<T: Number> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the lines hold `len` numbers, initialized, and any bits are one.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
