//! Extractors: path, query and body become typed values.

pub mod decode;
pub mod fields;
pub mod params;
pub mod write;
