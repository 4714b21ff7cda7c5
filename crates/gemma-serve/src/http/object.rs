//! Fields that are objects, and not arrays of the fields of one.

/// The fields of an object that are not looked at. Flattened into a struct, it makes serde read that from an object only:
/// a struct is read also from an array of its fields otherwise.
pub(crate) type Others = serde::de::IgnoredAny;
