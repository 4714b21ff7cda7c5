//! The architectures that this crate opens: one line each.

use std::fmt;

use gemma_backend::Device;
use gemma_model::{LoadOptions, Network, OnLoad, fields};
use gemma_nn::RandomWeights;
use gemma_weights::Checkpoint;
use gemma_weights::catalogue::Shape;

use crate::{Error, FamilyModel, families};

/// Makes the enums [`Architecture`] and [`AutoModel`] and the macros that unpack them. `$d` is `$`, which a macro that
/// writes macros cannot say itself.
macro_rules! architectures {
    ($d:tt $($(#[$doc:meta])* $Name:ident => $module:ident),+ $(,)?) => {
        /// The networks that checkpoints describe. Several families can share one: CodeGemma's is Gemma's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Architecture {
            $($(#[$doc])* $Name,)+
        }

        /// A loaded model of any architecture.
        #[derive(Debug)]
        #[non_exhaustive]
        pub enum AutoModel {
            $($(#[$doc])* $Name(families::$module::Model),)+
        }

        impl Architecture {
            /// Every architecture.
            pub const ALL: &'static [Self] = &[$(Self::$Name,)+];

            /// `model_type` and the classes in `architectures` of the `config.json` files that describe it.
            pub const fn names(self) -> &'static [&'static str] {
                match self {
                    $(Self::$Name => <families::$module::Model as FamilyModel>::NAMES,)+
                }
            }

            /// Whether GGUF has an architecture for it.
            pub const fn in_gguf(self) -> bool {
                match self {
                    $(Self::$Name => <families::$module::Model as FamilyModel>::IN_GGUF,)+
                }
            }
        }

        impl fmt::Display for Architecture {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$Name => stringify!($Name),)+
                })
            }
        }

        impl AutoModel {
            /// Its architecture.
            pub fn architecture(&self) -> Architecture {
                match self {
                    $(Self::$Name(_) => Architecture::$Name,)+
                }
            }
        }

        impl AutoModel {
            /// Loads a checkpoint of a known architecture.
            pub(crate) fn from_checkpoint(
                architecture: Architecture,
                checkpoint: &Checkpoint,
                options: &LoadOptions,
                device: &Device,
                progress: OnLoad<'_>,
            ) -> Result<Self, Error> {
                match architecture {
                    $(Architecture::$Name => {
                        let model = <families::$module::Model as FamilyModel>::open(checkpoint, options, device, progress)?;
                        Ok(Self::$Name(model))
                    })+
                }
            }

            /// A model of random weights in a released shape.
            ///
            /// # Panics
            /// When the shape is of another architecture.
            pub(crate) fn random(
                architecture: Architecture,
                shape: &Shape,
                weights: RandomWeights,
                options: &LoadOptions,
                device: &Device,
            ) -> Self {
                match architecture {
                    $(Architecture::$Name => {
                        type F = families::$module::Model;
                        type N = <F as FamilyModel>::Network;
                        let config = N::config_from_json(shape.config.as_bytes()).expect("every released configuration is read (tested)");
                        let network = N::random_with(&config, weights, options.compute_precision(), 0, device);
                        Self::$Name(<F as FamilyModel>::from_network(network))
                    })+
                }
            }
        }

        /// Evaluates an expression with the [`FamilyModel`] inside an [`AutoModel`].
        macro_rules! each_family {
            ($d auto:expr, $d family:ident => $d body:expr) => {
                match $d auto {
                    $(AutoModel::$Name($d family) => $d body,)+
                }
            };
        }

        /// Evaluates an expression with `F` standing for the [`FamilyModel`](crate::FamilyModel) of an
        /// [`Architecture`](crate::Architecture).
        #[macro_export]
        macro_rules! with_family {
            ($d architecture:expr, $d F:ident => $d body:expr) => {
                match $d architecture {
                    $($crate::Architecture::$Name => {
                        type $d F = $crate::models::$Name;
                        $d body
                    })+
                    #[allow(unreachable_patterns)]
                    _ => unreachable!("every architecture has an arm"),
                }
            };
        }

        /// Evaluates an expression with a name standing for the [`Model`](crate::Model) inside an
        /// [`AutoModel`](crate::AutoModel), whose network is a type that differs from arm to arm.
        #[macro_export]
        macro_rules! with_model {
            ($d auto:expr, $d model:ident => $d body:expr) => {
                match $d auto {
                    $($crate::AutoModel::$Name(family) => {
                        let $d model = $crate::FamilyModel::model(family);
                        $d body
                    })+
                    #[allow(unreachable_patterns)]
                    _ => unreachable!("every architecture has an arm"),
                }
            };
        }

        /// The model of each architecture, by the architecture's name.
        #[doc(hidden)]
        pub mod models {
            $(pub use super::families::$module::Model as $Name;)+
        }
    };
}

architectures! { $
    /// Gemma 1, 1.1, 2 and 3, VaultGemma and CodeGemma.
    Gemma => gemma,
    /// Gemma 3 with images, and ShieldGemma 2.
    Gemma3 => gemma3,
    /// RecurrentGemma.
    RecurrentGemma => recurrentgemma,
    /// PaliGemma and PaliGemma 2.
    PaliGemma => paligemma,
}

impl Architecture {
    /// The architecture that a `config.json` describes.
    ///
    /// # Errors
    /// When the text is not JSON, or names an architecture that no family here has.
    pub fn of_config(config: &[u8]) -> Result<Self, Error> {
        let described = fields::Architecture::from_json(config)?;
        if gemma3::Gemma3Config::describes(config) {
            return Ok(Self::Gemma3);
        }
        let found =
            Self::ALL.iter().copied().find(|known| described.name().is_some_and(|name| known.names().contains(&name)));
        found.ok_or_else(|| described.refuse("an architecture of the Gemma family").into())
    }

    /// The architecture of a released network.
    pub fn of_shape(shape: &Shape) -> Self {
        Self::of_config(shape.config.as_bytes()).expect("every released network has one (tested)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemma_weights::catalogue::SHAPES;

    #[test]
    fn every_released_configuration_is_read() {
        for shape in SHAPES {
            let architecture = Architecture::of_shape(shape);
            let read = with_family!(architecture, F => {
                <F as FamilyModel>::Network::config_from_json(shape.config.as_bytes()).map(|_| ())
            });
            assert!(read.is_ok(), "{}: {read:?}", shape.name);
        }
    }
}
