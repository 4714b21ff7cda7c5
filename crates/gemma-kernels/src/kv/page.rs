//! A page of a KV cache in memory, and the precision of what it holds.

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
}

impl CachePrecision {
    /// Its name, as [`FromStr`] reads it.
    pub const fn name(self) -> &'static str {
        match self {
            CachePrecision::F32 => "f32",
            CachePrecision::F16 => "f16",
        }
    }

    /// Bytes of a value.
    pub const fn bytes(self) -> usize {
        match self {
            CachePrecision::F32 => 4,
            CachePrecision::F16 => 2,
        }
    }
}

/// The name is of no [`CachePrecision`].
#[derive(Debug, thiserror::Error)]
#[error("unknown cache precision `{0}`; it is f32 or f16")]
pub struct ParseCachePrecisionError(String);

impl FromStr for CachePrecision {
    type Err = ParseCachePrecisionError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let (all, wanted) = ([CachePrecision::F32, CachePrecision::F16], name.to_ascii_lowercase());
        all.into_iter()
            .find(|precision| precision.name() == wanted)
            .ok_or_else(|| ParseCachePrecisionError(name.into()))
    }
}

/// Keys, then values, `[kv_heads, PAGE_LEN, head_dim]` each.
#[derive(Clone, Debug)]
pub(crate) enum MemoryPage {
    F32([Box<[f32]>; 2]),
    /// As little-endian f16.
    F16([Box<[[u8; 2]]>; 2]),
}

impl MemoryPage {
    pub(super) fn zeros(precision: CachePrecision, len: usize) -> Self {
        match precision {
            CachePrecision::F32 => Self::F32([0; 2].map(|_| vec![0.0; len].into())),
            CachePrecision::F16 => Self::F16([0; 2].map(|_| vec![[0; 2]; len].into())),
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
        }
    }

    /// Appends the values of a position to `to`, `[kv_heads, head_dim]`.
    pub(super) fn read(&self, slot: usize, head_dim: usize, to: [&mut Vec<f32>; 2]) {
        for (which, to) in to.into_iter().enumerate() {
            let len = match self {
                Self::F32(pages) => pages[which].len(),
                Self::F16(pages) => pages[which].len(),
            };
            for head in 0..len / (PAGE_LEN * head_dim) {
                let at = (head * PAGE_LEN + slot) * head_dim;
                match self {
                    Self::F32(pages) => to.extend_from_slice(&pages[which][at..at + head_dim]),
                    Self::F16(pages) => {
                        to.extend(
                            pages[which][at..at + head_dim].iter().map(|half| f16::from_le_bytes(*half).to_f32()),
                        );
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
