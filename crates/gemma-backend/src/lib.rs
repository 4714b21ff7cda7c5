//! The one place where a backend feature becomes a device.
