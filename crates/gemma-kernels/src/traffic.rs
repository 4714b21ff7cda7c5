//! What a computation asks of a GPU: kernel launches, and bytes that go there and come back.
//!
//! CubeCL tells of every launch, Burn's own included. Transfers are noted where this workspace makes them; the few words
//! of parameters that CubeCL hands to each launch are not among them.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread::{self, ThreadId};

/// What the calling thread asked of the device; see [`watch`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Kernels, by the name of their function, and how often each was launched. Empty on a CPU.
    pub launches: BTreeMap<String, usize>,
    /// Transfers to the device.
    pub uploads: usize,
    /// Their bytes.
    pub uploaded: usize,
    /// Transfers back.
    pub downloads: usize,
    /// Their bytes.
    pub downloaded: usize,
}

impl Traffic {
    /// How many kernels were launched.
    pub fn launched(&self) -> usize {
        self.launches.values().sum()
    }
}

thread_local! {
    static TRANSFERS: Cell<[usize; 4]> = const { Cell::new([0; 4]) };
}

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the device.
    Up,
    /// Back to the host.
    Down,
}

/// Counts a transfer of so many bytes.
pub fn note(way: Way, bytes: usize) {
    let place = if way == Way::Up { 0 } else { 2 };
    TRANSFERS.with(|transfers| {
        let mut counts = transfers.get();
        counts[place] += 1;
        counts[place + 1] += bytes;
        transfers.set(counts);
    });
}

/// Runs `work` and tells what it asked of the device, of what the calling thread did.
///
/// CubeCL tells of launches by a hook, which stays once it is installed.
pub fn watch<T>(work: impl FnOnce() -> T) -> (T, Traffic) {
    launches::begin();
    let before = TRANSFERS.get();
    let result = work();
    let after = TRANSFERS.get();
    let [uploads, uploaded, downloads, downloaded] = std::array::from_fn(|place| after[place] - before[place]);
    (result, Traffic { launches: launches::end(), uploads, uploaded, downloads, downloaded })
}

#[cfg(feature = "wgpu")]
mod launches {
    use cubecl::logging::{LaunchObservation, LaunchObserver};
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::sync::{Arc, OnceLock};

    thread_local! {
        static LAUNCHED: RefCell<Option<BTreeMap<&'static str, usize>>> = const { RefCell::new(None) };
    }

    struct OfThisThread;

    impl LaunchObserver for OfThisThread {
        fn launched(&self, kernel: &'static str) {
            LAUNCHED.with_borrow_mut(|launched| {
                if let Some(launched) = launched {
                    *launched.entry(kernel).or_default() += 1;
                }
            });
        }
    }

    pub(super) fn begin() {
        static OBSERVATION: OnceLock<LaunchObservation> = OnceLock::new();
        OBSERVATION.get_or_init(|| LaunchObservation::new(Arc::new(OfThisThread)));
        LAUNCHED.set(Some(BTreeMap::new()));
    }

    pub(super) fn end() -> BTreeMap<String, usize> {
        let mut named = BTreeMap::new();
        for (kernel, count) in LAUNCHED.take().unwrap_or_default() {
            *named.entry(short(kernel)).or_default() += count;
        }
        named
    }

    /// A type's name without its path and parameters: `list_kernel::ListKernel` of `a::b::list_kernel::ListKernel<c::D>`.
    fn short(name: &str) -> String {
        let path = name.split('<').next().unwrap_or(name);
        let mut parts: Vec<&str> = path.rsplit("::").take(2).collect();
        parts.reverse();
        parts.join("::")
    }
}

#[cfg(not(feature = "wgpu"))]
mod launches {
    pub(super) fn begin() {}

    pub(super) fn end() -> std::collections::BTreeMap<String, usize> {
        std::collections::BTreeMap::new()
    }
}

/// Row numbers on a device, to select rows by.
pub fn indices(rows: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = rows.len();
    note(Way::Up, 4 * count);
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// How many uploads are remembered.
const RECENT: usize = 8;

/// The words that a thread sent to a device.
struct Sent {
    thread: ThreadId,
    device: Device,
    words: Vec<u32>,
    tensor: Tensor<1, Int>,
}

/// Words on a device, for kernels that only read them. The layers of a model ask for the same positions and often for the
/// same page numbers one after the other, so what equals one of the thread's last uploads is not sent again.
pub(crate) fn words(values: Vec<u32>, device: &Device) -> Tensor<1, Int> {
    // never dropped, as a thread's own would be after the runtime
    static SENT: Mutex<Vec<Sent>> = Mutex::new(Vec::new());
    let thread = thread::current().id();
    let mut sent = SENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known = |sent: &Sent| sent.thread == thread && sent.words == values && sent.device == *device;
    if let Some(place) = sent.iter().position(known) {
        let again = sent.remove(place);
        let tensor = again.tensor.clone();
        sent.push(again);
        return tensor;
    }
    note(Way::Up, 4 * values.len());
    let data = TensorData::new(values.clone(), [values.len()]);
    let tensor = Tensor::from_data(data, (device, DType::U32));
    if sent.len() == RECENT {
        sent.remove(0);
    }
    sent.push(Sent { thread, device: device.clone(), words: values, tensor: tensor.clone() });
    tensor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{devices, tensor};
    use crate::{
        NormWeight, RecurrentGates, add_then_norm, causal_conv, gated_decay, geglu, is_apart, largest, reference,
        rms_norm, rotate,
    };

    #[test]
    fn an_operation_takes_one_launch_on_a_gpu() {
        for (backend, device) in devices() {
            let matrix = || tensor([3, 64], 1, &device);
            let [heads, angles] = [[3, 4, 16], [3, 1, 8]].map(|shape| tensor(shape, 2, &device));
            let weight = || tensor([64], 3, &device);
            let square = || tensor([64 * 32], 4, &device);
            let gates = || RecurrentGates {
                input_weight: square(),
                input_bias: weight(),
                recurrent_weight: square(),
                recurrent_bias: weight(),
                blocks: 2,
            };
            let [gates, other_gates] = [gates(), gates()];
            let (x, taps) = (matrix(), tensor([64 * 2], 5, &device));
            let norm = || NormWeight { weight: weight(), eps: 1e-6 };
            type Work<'a> = Box<dyn Fn() + 'a>;
            let pairs: [(&str, Work<'_>, Work<'_>); 7] = [
                (
                    "geglu",
                    Box::new(|| drop(geglu(x.clone(), x.clone()))),
                    Box::new(|| drop(reference::geglu(x.clone(), x.clone()))),
                ),
                (
                    "rms_norm",
                    Box::new(|| drop(rms_norm(x.clone(), weight(), 1e-6))),
                    Box::new(|| drop(reference::rms_norm(x.clone(), weight(), 1e-6))),
                ),
                (
                    "add_then_norm",
                    Box::new(|| drop(add_then_norm(x.clone(), x.clone(), Some(norm()), norm()))),
                    Box::new(|| drop(reference::add_then_norm(x.clone(), x.clone(), Some(norm()), norm()))),
                ),
                (
                    "rotate",
                    Box::new(|| drop(rotate(heads.clone(), angles.clone(), angles.clone()))),
                    Box::new(|| drop(reference::rotate(heads.clone(), angles.clone(), angles.clone()))),
                ),
                (
                    "gated_decay",
                    Box::new(|| drop(gated_decay(x.clone(), gates.clone(), weight(), &[false; 3]))),
                    Box::new(|| drop(reference::gated_decay(x.clone(), other_gates.clone(), weight(), &[false; 3]))),
                ),
                (
                    "causal_conv",
                    Box::new(|| drop(causal_conv(x.clone(), taps.clone(), weight(), vec![0, 1]))),
                    Box::new(|| drop(reference::causal_conv(x.clone(), taps.clone(), weight(), vec![0, 1]))),
                ),
                (
                    "largest",
                    Box::new(|| drop(largest(x.clone(), 5))),
                    Box::new(|| drop(reference::largest(x.clone(), 5))),
                ),
            ];
            for (name, ours, theirs) in pairs {
                let [ours, theirs] = [ours, theirs].map(|work| watch(work).1.launched());
                println!("{backend}, {name}: {ours} launches, {theirs} of the reference");
                let expected = if name == "largest" { 2 } else { 1 };
                assert_eq!(ours, if is_apart(&device) { expected } else { 0 }, "{backend}, {name}");
            }
        }
    }

    #[test]
    fn words_that_were_sent_are_not_sent_again() {
        for (backend, device) in devices() {
            let send = |values: &[u32]| {
                let (tensor, traffic) = watch(|| words(values.to_vec(), &device));
                assert_eq!(tensor.into_data().convert::<u32>().try_into_vec::<u32>().unwrap(), values, "{backend}");
                traffic.uploaded
            };
            assert_eq!([send(&[1, 2, 3]), send(&[4]), send(&[1, 2, 3]), send(&[1, 2])], [12, 4, 0, 8], "{backend}");
            let others: Vec<usize> = (10..10 + RECENT as u32).map(|value| send(&[value])).collect();
            assert_eq!(others, [4; RECENT]);
            assert_eq!(send(&[4]), 4, "{backend}: forgotten");
        }
    }
}
