//! Partitions.

/// The maximum number of partitions of a deployment.
pub const MAX_PARTITIONS: u16 = 256;

/// A partition: the unit of atomicity. An id belongs to the partition whose number is `id mod N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);
