//! What a request is doing with the rows of a call.

/// What a request is doing with its rows: reading a prompt, or making tokens one by one. The arithmetic that a row gets
/// follows from this alone, and not from how many other rows happen to be in the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Few tokens of a request, whose time is that of reading the weights: f32, or 16-bit integers where weights are
    /// quantized.
    Decode,
    /// Many tokens of a request: bf16, where the CPU multiplies that faster and exactness was not asked for.
    Prefill,
}

impl Phase {
    /// The most tokens that a request forwards at a time and that are still decoded: some draft tokens.
    pub const MOST_DECODED: usize = 8;

    /// The phase of a request that forwards `tokens` tokens at once. Whoever cuts a prompt into chunks says
    /// [`Phase::Prefill`] for all of them instead.
    pub const fn of_len(tokens: usize) -> Self {
        if tokens > Self::MOST_DECODED { Self::Prefill } else { Self::Decode }
    }
}
