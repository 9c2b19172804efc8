//! The class of a request, and the listeners that serve it.

use axum::http::Extensions;

/// Decides which limits a request has. The router attaches it to each route; a path without a route is [`Public`].
///
/// [`Public`]: RequestClass::Public
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestClass {
    /// The public API and its documentation.
    Public,
    /// `/admin` and `/ops`.
    Operators,
    /// `/metrics`.
    Metrics,
    /// `/healthz` and `/readyz`.
    Health,
}

impl RequestClass {
    /// The class of a request with these extensions. Requests of the class [`Public`](RequestClass::Public), which are nearly
    /// all, do not carry it.
    pub fn of(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or(RequestClass::Public)
    }
}

/// The classes that a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// All: there is one listener.
    All,
    /// The public API and health; the rest has a listener of its own.
    Public,
    /// The operators' pages and API, metrics and health.
    Operators,
}

impl Listener {
    /// Whether requests of this class are served here.
    pub fn serves(self, class: RequestClass) -> bool {
        match self {
            Listener::All => true,
            Listener::Public => matches!(class, RequestClass::Public | RequestClass::Health),
            Listener::Operators => class != RequestClass::Public,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listener_serves_its_classes() {
        let all = [RequestClass::Public, RequestClass::Operators, RequestClass::Metrics, RequestClass::Health];
        assert_eq!(all.map(|class| Listener::All.serves(class)), [true; 4]);
        assert_eq!(all.map(|class| Listener::Public.serves(class)), [true, false, false, true]);
        assert_eq!(all.map(|class| Listener::Operators.serves(class)), [false, true, true, true]);
    }
}
