//! The [code books](super::code_books) of two and three bits as bytes: the magnitudes of each group, the first value lowest.

use super::code_books as books;

/// The levels in the code books of IQ2_XXS, IQ2_XS and IQ2_S.
const IQ2_LEVELS: [u8; 4] = [0x08, 0x19, 0x2b, 0];
/// The levels in the code book of IQ3_XXS.
const IQ3_XXS_LEVELS: [u8; 8] = [0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3e];
/// The levels in the code book of IQ3_S.
const IQ3_S_LEVELS: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

pub(crate) static IQ2_XXS: [u64; 256] = eights(&books::IQ2_XXS);
pub(crate) static IQ2_XS: [u64; 512] = eights(&books::IQ2_XS);
pub(crate) static IQ2_S: [u64; 1024] = eights(&books::IQ2_S);
pub(crate) static IQ3_XXS: [u32; 256] = fours(&books::IQ3_XXS, IQ3_XXS_LEVELS);
pub(crate) static IQ3_S: [u32; 512] = fours(&books::IQ3_S, IQ3_S_LEVELS);

/// Groups of eight values in two bits.
const fn eights<const N: usize>(codes: &[u16; N]) -> [u64; N] {
    let mut words = [0; N];
    let mut at = 0;
    while at < 8 * N {
        let (group, i) = (at / 8, at % 8);
        words[group] |= (IQ2_LEVELS[(codes[group] >> (2 * i) & 3) as usize] as u64) << (8 * i);
        at += 1;
    }
    words
}

/// Groups of four values in three bits.
const fn fours<const N: usize>(codes: &[u16; N], levels: [u8; 8]) -> [u32; N] {
    let mut words = [0; N];
    let mut at = 0;
    while at < 4 * N {
        let (group, i) = (at / 4, at % 4);
        words[group] |= (levels[(codes[group] >> (3 * i) & 7) as usize] as u32) << (8 * i);
        at += 1;
    }
    words
}
