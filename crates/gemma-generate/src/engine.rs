//! The engine: continuous batching of any number of requests over one model.
//!
//! [`Engine::step`] is one forward pass for all requests in progress. Those in the decode phase take the token that was
//! sampled last; those in the prefill phase share the rest of the token budget, first come first served. A request joins
//! as soon as there is room and leaves as soon as it is over, fails, is cancelled or runs out of time; none of that
//! disturbs the others.
//!
//! [`Generation`](crate::Generation), [`generate_batch`](crate::generate_batch) and [`EngineThread`] are faces of it.
//!
//! | Module | What is in it |
//! |---|---|
//! | `request`, `event`, `options` | [`Request`], [`Event`], [`EngineOptions`]: what goes in, what comes out, limits |
//! | `scheduler` | [`Engine`]: submission, admission, what ends a request |
//! | `forward` | one forward pass: which tokens of which request, and what follows from their logits |
//! | `active` | one request in progress |
//! | `prefix` | the prefix cache |
//! | `thread` | [`EngineThread`]: an engine on a thread of its own |

mod active;
mod event;
mod forward;
mod options;
mod prefix;
mod request;
mod scheduler;
mod thread;

pub(crate) use active::Active;
pub use event::{Event, RequestId, TokenLogprobs};
pub use options::EngineOptions;
pub(crate) use prefix::common_prefix;
pub use request::{Prompt, Request, StopRule, TokenMask};
pub use scheduler::{Engine, EngineStats};
pub use thread::{EngineHandle, EngineThread, RequestEvents};

#[cfg(test)]
mod tests;
