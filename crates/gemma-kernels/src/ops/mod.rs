//! The operations at the level of tensors: a function each, what a backend must be able to do for it, and a reference
//! implementation in Burn's own operations, which runs on every backend and is differentiable.

pub(crate) mod adapted;
pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod elementwise;
pub(crate) mod feed_forward;
pub(crate) mod frozen;
pub(crate) mod heads;
pub(crate) mod largest;
pub(crate) mod linear;
pub(crate) mod recurrence;
pub(crate) mod residual;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod whole_attention;
