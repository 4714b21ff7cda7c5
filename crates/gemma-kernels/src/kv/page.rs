//! A page of a KV cache in memory, and the precision of what it holds.

use crate::Format;
use half::f16;
use std::str::FromStr;

/// Positions of a page. A page of position `p` is the one of number `p / PAGE_LEN` of its sequence.
pub const PAGE_LEN: usize = 32;

/// In how many bits the keys and values of a sequence are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CachePrecision {
    /// f32: as they were computed.
    #[default]
    F32,
    /// f16, half the memory: to the nearest value, ties to even, with 65504 for what is larger. The steps are 2⁻¹⁰ of a
    /// value, an eighth of those of bf16.
    F16,
    /// [`Format::Q8_0`], half the memory of f16: blocks of 32 values of a head share a scale in f16, and each value is
    /// one of 255 steps. A step is a 127th of the largest value of the block.
    Q8_0,
}

impl CachePrecision {
    /// All of them, from the largest to the smallest.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Q8_0];

    /// Its name, as [`FromStr`] reads it.
    pub const fn name(self) -> &'static str {
        match self {
            CachePrecision::F32 => "f32",
            CachePrecision::F16 => "f16",
            CachePrecision::Q8_0 => "q8_0",
        }
    }

    /// The format of the values of a head.
    pub const fn format(self) -> Format {
        match self {
            CachePrecision::F32 => Format::F32,
            CachePrecision::F16 => Format::F16,
            CachePrecision::Q8_0 => Format::Q8_0,
        }
    }

    /// Bytes of the keys, or of the values, of one head and one position on a CPU; `None` where heads of that size are
    /// not kept so: f16 values share words in pairs, and q8_0 values a scale in blocks of 32.
    pub fn head_bytes(self, head_dim: usize) -> Option<usize> {
        if self == CachePrecision::F16 && !head_dim.is_multiple_of(2) {
            return None;
        }
        self.format().row_bytes(head_dim)
    }

    /// The same on the device that takes more: a scale of q8_0 has a word of its own on a GPU.
    pub fn most_head_bytes(self, head_dim: usize) -> Option<usize> {
        self.head_bytes(head_dim).map(|bytes| bytes.max(4 * self.words(head_dim)))
    }

    /// 32-bit words of so many values, which are whole heads, on a GPU.
    pub(crate) fn words(self, values: usize) -> usize {
        match self {
            CachePrecision::F32 => values,
            CachePrecision::F16 => values / 2,
            CachePrecision::Q8_0 => values / 32 * 9,
        }
    }

    /// This precision, or the next one above it that heads of that size can be kept in.
    #[must_use]
    pub fn for_heads(self, head_dim: usize) -> Self {
        let from = Self::ALL.iter().position(|precision| *precision == self).unwrap_or(0);
        let possible = |precision: &&Self| precision.head_bytes(head_dim).is_some();
        Self::ALL[..=from].iter().rev().find(possible).copied().unwrap_or_default()
    }
}

/// The name is of no [`CachePrecision`].
#[derive(Debug, thiserror::Error)]
#[error("unknown cache precision `{0}`; it is f32, f16 or q8_0")]
pub struct ParseCachePrecisionError(String);

impl FromStr for CachePrecision {
    type Err = ParseCachePrecisionError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let wanted = name.to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|precision| precision.name() == wanted)
            .ok_or_else(|| ParseCachePrecisionError(name.into()))
    }
}

/// Values of a block of q8_0.
pub(crate) const BLOCK: usize = 32;
/// A block of q8_0: a scale and [`BLOCK`] integers.
pub(crate) type Block = [u8; 34];

/// Keys, then values, `[kv_heads, PAGE_LEN, head_dim]` each.
#[derive(Clone, Debug)]
pub(crate) enum MemoryPage {
    F32([Box<[f32]>; 2]),
    /// As little-endian f16.
    F16([Box<[[u8; 2]]>; 2]),
    /// In blocks of q8_0.
    Q8_0([Box<[Block]>; 2]),
}

impl MemoryPage {
    pub(super) fn zeros(precision: CachePrecision, len: usize) -> Self {
        match precision {
            CachePrecision::F32 => Self::F32([0; 2].map(|_| vec![0.0; len].into())),
            CachePrecision::F16 => Self::F16([0; 2].map(|_| vec![[0; 2]; len].into())),
            CachePrecision::Q8_0 => Self::Q8_0([0; 2].map(|_| vec![[0; 34]; len / BLOCK].into())),
        }
    }

    /// Writes rows `[positions, kv_heads, head_dim]` to the positions of the page from `slot` on.
    pub(super) fn write(&mut self, slot: usize, rows: [&[f32]; 2], head_dim: usize) {
        match self {
            Self::F32(pages) => {
                for (page, rows) in pages.iter_mut().zip(rows) {
                    each_head(rows, page.len() / PAGE_LEN, head_dim, |at, row| {
                        page[at + slot * head_dim..][..head_dim].copy_from_slice(row);
                    });
                }
            }
            Self::F16(pages) => {
                for (page, rows) in pages.iter_mut().zip(rows) {
                    each_head(rows, page.len() / PAGE_LEN, head_dim, |at, row| {
                        let to = &mut page[at + slot * head_dim..][..head_dim];
                        to.iter_mut().zip(row).for_each(|(to, value)| *to = nearest_f16(*value).to_le_bytes());
                    });
                }
            }
            Self::Q8_0(pages) => {
                for (page, rows) in pages.iter_mut().zip(rows) {
                    each_head(rows, page.len() * BLOCK / PAGE_LEN, head_dim, |at, row| {
                        let to = &mut page[(at + slot * head_dim) / BLOCK..][..head_dim / BLOCK];
                        Format::Q8_0.encode_row(row, to.as_flattened_mut());
                    });
                }
            }
        }
    }

    /// Appends the values of a position to `to`, `[kv_heads, head_dim]`.
    pub(super) fn read(&self, slot: usize, head_dim: usize, to: [&mut Vec<f32>; 2]) {
        for (which, to) in to.into_iter().enumerate() {
            let len = match self {
                Self::F32(pages) => pages[which].len(),
                Self::F16(pages) => pages[which].len(),
                Self::Q8_0(pages) => pages[which].len() * BLOCK,
            };
            for head in 0..len / (PAGE_LEN * head_dim) {
                let at = (head * PAGE_LEN + slot) * head_dim;
                let new = to.len();
                to.resize(new + head_dim, 0.0);
                let to = &mut to[new..];
                match self {
                    Self::F32(pages) => to.copy_from_slice(&pages[which][at..at + head_dim]),
                    Self::F16(pages) => {
                        Format::F16.decode_row(pages[which][at..at + head_dim].as_flattened(), to);
                    }
                    Self::Q8_0(pages) => {
                        let blocks = &pages[which][at / BLOCK..(at + head_dim) / BLOCK];
                        Format::Q8_0.decode_row(blocks.as_flattened(), to);
                    }
                }
            }
        }
    }
}

/// Calls `write` with each head of each of some positions, and where that of the first position's page begins; `row`
/// values belong to a position.
fn each_head(rows: &[f32], row: usize, head_dim: usize, mut write: impl FnMut(usize, &[f32])) {
    for (position, row) in rows.chunks_exact(row).enumerate() {
        for (head, values) in row.chunks_exact(head_dim).enumerate() {
            write((head * PAGE_LEN + position) * head_dim, values);
        }
    }
}

/// To the nearest f16, ties to even; larger values become the largest.
pub(crate) fn nearest_f16(value: f32) -> f16 {
    // NaN stays what it is
    f16::from_f32(value.clamp(-f16::MAX.to_f32(), f16::MAX.to_f32()))
}
