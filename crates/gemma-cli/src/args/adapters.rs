//! Which LoRA adapters to compute with.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use gemma_weights::Adapter;

/// Which LoRA adapters to compute with.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct Adapters {
    /// A LoRA adapter to add: a folder that PEFT or `gemma finetune` wrote, or llama.cpp's GGUF file; may be given several
    /// times.
    ///
    /// FOLDER=SCALE adds so much of it (default: 1, all of it).
    #[arg(long, value_name = "FOLDER|FILE[=SCALE]")]
    pub(crate) adapter: Vec<AdapterName>,
}

impl Adapters {
    /// Opens them.
    pub(crate) fn open(&self) -> Result<Vec<Adapter>> {
        self.adapter.iter().map(|name| Ok(Adapter::open(&name.folder)?.with_strength(name.strength))).collect()
    }
}

/// A folder, and how much of the adapter in it is added.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdapterName {
    pub(crate) folder: PathBuf,
    pub(crate) strength: f32,
}

impl FromStr for AdapterName {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // an equals sign in a folder's name is one where no number follows
        let scaled = text.rsplit_once('=').and_then(|(folder, scale)| Some((folder, scale.parse::<f32>().ok()?)));
        match scaled {
            Some((_, scale)) if !scale.is_finite() => Err("the scale must be a finite number".to_owned()),
            Some(("", _)) => Err("a folder must stand before the scale".to_owned()),
            Some((folder, strength)) => Ok(Self { folder: folder.into(), strength }),
            None => Ok(Self { folder: text.into(), strength: 1.0 }),
        }
    }
}

/// An adapter under a name by which requests choose it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NamedAdapter {
    pub(crate) name: String,
    pub(crate) adapter: AdapterName,
}

impl FromStr for NamedAdapter {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once('=') {
            Some((name, adapter)) if !name.is_empty() && !adapter.is_empty() => {
                Ok(Self { name: name.to_owned(), adapter: adapter.parse()? })
            }
            _ => Err("must be a name, an equals sign and a folder, such as poems=poems-lora".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_follows_the_last_equals_sign() {
        let of = |text: &str| text.parse::<AdapterName>();
        assert_eq!(of("a/b"), Ok(AdapterName { folder: "a/b".into(), strength: 1.0 }));
        assert_eq!(of("a=b=0.5"), Ok(AdapterName { folder: "a=b".into(), strength: 0.5 }));
        assert_eq!(of("rank=x"), Ok(AdapterName { folder: "rank=x".into(), strength: 1.0 }));
        assert!(of("=2").is_err() && of("a=nan").is_err());
    }

    #[test]
    fn a_named_adapter_has_its_name_in_front() {
        let of = |text: &str| text.parse::<NamedAdapter>();
        let named = |folder: &str, strength| {
            Ok(NamedAdapter { name: "poems".into(), adapter: AdapterName { folder: folder.into(), strength } })
        };
        assert_eq!(of("poems=a/b"), named("a/b", 1.0));
        assert_eq!(of("poems=a=b=0.5"), named("a=b", 0.5));
        for wrong in ["", "a/b", "=a", "poems=", "poems=a=inf"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
