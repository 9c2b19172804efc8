//! Pages of listings.

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// From 0.
    pub page: i64,
    pub size: i64,
    /// Items in all that match.
    pub total: i64,
}
