//! Files that appear complete or not at all: those of the weights crate, under the name that the verbs know.

pub(crate) use gemma_weights::NewFile;
