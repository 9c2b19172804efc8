//! Partitions.

use std::collections::BTreeSet;

/// The maximum number of partitions of a deployment.
pub const MAX_PARTITIONS: u16 = 256;

/// A partition: the unit of atomicity. An id belongs to the partition whose number is `id mod N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

/// A selection of a deployment's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    selected: BTreeSet<Partition>,
    /// The number of all partitions.
    partitions: u16,
}

impl Scope {
    /// Every partition of a deployment that has this number of them.
    pub fn all(partitions: u16) -> Self {
        Scope { selected: (0..partitions).map(Partition).collect(), partitions }
    }

    /// These of a deployment's partitions; others are ignored.
    pub fn of(selected: impl IntoIterator<Item = Partition>, partitions: u16) -> Self {
        Scope { selected: selected.into_iter().filter(|here| here.0 < partitions).collect(), partitions }
    }

    pub fn contains(&self, here: Partition) -> bool {
        self.selected.contains(&here)
    }

    /// The owner partition of an id.
    pub fn owner(&self, id: i64) -> Partition {
        Partition((id % i64::from(self.partitions)) as u16)
    }

    /// The selected partitions, in order.
    pub fn iter(&self) -> impl Iterator<Item = Partition> + '_ {
        self.selected.iter().copied()
    }

    /// The partitions that are not selected, in order.
    pub fn others(&self) -> impl Iterator<Item = Partition> + '_ {
        (0..self.partitions).map(Partition).filter(|here| !self.contains(*here))
    }

    pub fn is_all(&self) -> bool {
        self.len() == self.partitions
    }

    pub fn is_empty(&self) -> bool {
        self.selected.is_empty()
    }

    /// The number of selected partitions.
    pub fn len(&self) -> u16 {
        self.selected.len() as u16
    }

    /// The number of all partitions.
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// The numbers of the selected partitions, as a parameter of a query; `None` if all are selected.
    pub fn selected(&self) -> Option<Vec<i64>> {
        (!self.is_all()).then(|| self.iter().map(|here| here.0.into()).collect())
    }
}

impl Extend<Partition> for Scope {
    fn extend<T: IntoIterator<Item = Partition>>(&mut self, more: T) {
        self.selected.extend(more);
    }
}
