//! The coefficients of a gated recurrence in one launch: both gates, which are block-diagonal products, and what follows
//! from them.

use super::math::{sigmoid, softplus, tanh};
use super::{cube_count, floats, is_empty, output};
use crate::ops::recurrence::STRENGTH;
use burn::backend::ops::IntTensorOps;
use burn::tensor::TensorData;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use cubecl::prelude::*;

/// Channels of a cube.
const LANES: usize = 32;
/// Units that share the inputs of a channel.
const PARTS: usize = 8;
const UNITS: usize = LANES * PARTS;
/// Tokens of a cube, for which a weight is read once.
const TOKENS: usize = 4;

/// Factors and addends, `[tokens, channels]` each, of `x` of that shape; `gates`: the weight, `[blocks, in, out]`, and the bias of the
/// input gate, then those of the recurrent gate. Sums do not depend on how many tokens there are.
///
/// # Panics
/// When the shapes contradict each other.
pub(crate) fn gated_decay(
    x: CubeTensor,
    gates: [CubeTensor; 4],
    recurrent_param: CubeTensor,
    begins: &[bool],
    blocks: usize,
) -> (CubeTensor, CubeTensor) {
    let [tokens, channels] = x.meta.shape().dims::<2>();
    assert!(blocks > 0 && channels.is_multiple_of(blocks), "{blocks} equal blocks of {channels} channels");
    let size = channels / blocks;
    let lens = [channels * size, channels, channels * size, channels];
    let found = gates.each_ref().map(|gate| gate.meta.shape().num_elements());
    assert_eq!((found, recurrent_param.meta.shape().dims::<1>(), begins.len()), (lens, [channels], tokens), "gates");
    let (factors, addends) = (output(&x, [tokens, channels]), output(&x, [tokens, channels]));
    if is_empty(&x) {
        return (factors, addends);
    }
    let client = x.client.clone();
    let some_begin = begins.contains(&true);
    let flags: Vec<u32> = if some_begin { begins.iter().map(|begins| u32::from(*begins)).collect() } else { vec![0] };
    let len = flags.len();
    let recurrent_param = floats(recurrent_param);
    // where none begins, any buffer takes the place of the flags, which are not read
    let flags = if some_begin {
        CubeBackend::int_from_data(TensorData::new(flags, [len]), &x.device)
    } else {
        recurrent_param.clone()
    };
    let [input_weight, input_bias, recurrent_weight, recurrent_bias] = gates.map(floats);
    let lines = channels.div_ceil(LANES);
    // SAFETY: channels and tokens past the last repeat it and write nothing; the shapes were asserted above.
    unsafe {
        gate_kernel::launch_unchecked(
            &client,
            cube_count(lines * tokens.div_ceil(TOKENS)),
            CubeDim::new_1d(UNITS as u32),
            floats(x).into_buffer_arg(),
            input_weight.into_buffer_arg(),
            input_bias.into_buffer_arg(),
            recurrent_weight.into_buffer_arg(),
            recurrent_bias.into_buffer_arg(),
            recurrent_param.into_buffer_arg(),
            flags.into_buffer_arg(),
            factors.clone().into_buffer_arg(),
            addends.clone().into_buffer_arg(),
            tokens,
            channels,
            size,
            lines,
            some_begin,
        );
    }
    (factors, addends)
}

/// A cube makes [`LANES`] channels of [`TOKENS`] tokens. Each unit adds up a part of the inputs of a channel, and some add up
/// the parts.
#[cube(launch_unchecked)]
fn gate_kernel(
    x: &[f32],
    input_weight: &[f32],
    input_bias: &[f32],
    recurrent_weight: &[f32],
    recurrent_bias: &[f32],
    recurrent_param: &[f32],
    begins: &[u32],
    factors: &mut [f32],
    addends: &mut [f32],
    tokens: usize,
    channels: usize,
    size: usize,
    lines: usize,
    #[comptime] some_begin: bool,
) {
    let unit = UNIT_POS as usize;
    let lane = unit % LANES;
    let part = unit / LANES;
    let mut input_parts = Shared::<[f32]>::new_slice(comptime!(TOKENS * UNITS));
    let mut recurrent_parts = Shared::<[f32]>::new_slice(comptime!(TOKENS * UNITS));

    let first = CUBE_POS / lines * TOKENS;
    let channel = CUBE_POS % lines * LANES + lane;
    let known = min(channel, channels - 1);
    let block = known / size * size;
    let weights = block * size + known % size;
    let mut inputs = Array::<f32>::new(TOKENS);
    let mut recurrents = Array::<f32>::new(TOKENS);
    let mut rows = Array::<usize>::new(TOKENS);
    #[unroll]
    for t in 0..TOKENS {
        inputs[t] = 0.0f32;
        recurrents[t] = 0.0f32;
        rows[t] = min(first + t, tokens - 1) * channels + block;
    }
    let mut i = part;
    while i < size {
        let input = input_weight[weights + i * size];
        let recurrent = recurrent_weight[weights + i * size];
        #[unroll]
        for t in 0..TOKENS {
            let value = x[rows[t] + i];
            inputs[t] += value * input;
            recurrents[t] += value * recurrent;
        }
        i += PARTS;
    }
    #[unroll]
    for t in 0..TOKENS {
        input_parts[unit + comptime!(t * UNITS)] = inputs[t];
        recurrent_parts[unit + comptime!(t * UNITS)] = recurrents[t];
    }
    sync_cube();

    // one unit for each channel of each token
    let token = first + part;
    if part < TOKENS && token < tokens && channel < channels {
        let mut input = input_bias[channel];
        let mut recurrent = recurrent_bias[channel];
        for other in 0..PARTS {
            input += input_parts[part * UNITS + other * LANES + lane];
            recurrent += recurrent_parts[part * UNITS + other * LANES + lane];
        }
        let at = token * channels + channel;
        let log_a = softplus(recurrent_param[channel]) * sigmoid(recurrent) * comptime!(-STRENGTH);
        let a = log_a.exp();
        // 1 - a² without its cancellation near a = 1
        let mut root = (tanh(-log_a) * (1.0f32 + a * a)).sqrt();
        if comptime!(some_begin) {
            root = select(begins[token] != 0u32, 1.0f32, root);
        }
        factors[at] = a;
        addends[at] = root * (sigmoid(input) * x[at]);
    }
}
