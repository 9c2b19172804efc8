//! Fields of a body and parameters of a query that the API does not know.
//!
//! The operators' API refuses them and its message names them: a misspelled field must never mean its default. The public API
//! tolerates them, since its clients may send more, and names them in the header [`X_UNKNOWN_FIELDS`] of the reply. The known
//! parameters are those of the operation in the OpenAPI document; the known fields are those that the body's type reads.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{Extensions, HeaderMap, HeaderValue, Method},
    middleware::Next,
    response::{IntoResponse, Response},
};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use utoipa::openapi::{
    OpenApi, RefOr,
    path::{Operation, ParameterIn},
};

use crate::http::{
    auth::operator::Operator,
    error::{ApiError, Code},
    headers::X_UNKNOWN_FIELDS,
};

/// The most names that one request keeps, and the most characters of each.
const MAX_NAMES: usize = 8;
const MAX_NAME_LEN: usize = 64;
/// Characters that would end a name in the header, or the header.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b',').add(b'"').add(b'%').add(b'\\');

/// Unknown names, as the client spelled them; bounded, and without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(Vec<String>);

impl Names {
    /// Adds a name, while there is room. A nested field has its whole path: `orderProducts.0.price`.
    pub fn add(&mut self, name: &str) {
        if self.0.len() < MAX_NAMES {
            let printable = name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
            self.0.push(printable.take(MAX_NAME_LEN).collect());
        }
    }

    /// Refuses the request if there is a name. `what` says in Korean what the names are.
    ///
    /// # Errors
    /// 400 `INVALID_REQUEST`; the message has the names.
    fn refuse(&self, what: &str) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(ApiError::because(Code::InvalidRequest, &format!("알 수 없는 {what}: {}", self.0.join(", "))))
    }

    fn header(&self) -> Option<HeaderValue> {
        let names: Vec<_> = self.0.iter().map(|name| utf8_percent_encode(name, ENCODED).to_string()).collect();
        if names.is_empty() { None } else { HeaderValue::try_from(names.join(", ")).ok() }
    }
}

/// In the extensions of a public request with a body: takes the unknown fields once the body is read.
#[derive(Clone, Default)]
struct BodyFields(Arc<OnceLock<Names>>);

/// Refuses the unknown fields of an operator's body; keeps those of a public body for the reply.
///
/// # Errors
/// 400 `INVALID_REQUEST` if an operator's body has one.
pub fn judge_fields(extensions: &Extensions, names: Names) -> Result<(), ApiError> {
    if extensions.get::<Operator>().is_some() {
        return names.refuse("항목");
    }
    if !names.0.is_empty()
        && let Some(BodyFields(fields)) = extensions.get()
    {
        let _ = fields.set(names);
    }
    Ok(())
}

/// The query parameters of each documented operation, by its route.
#[derive(Debug, Default)]
pub struct Parameters(HashMap<String, Vec<(Method, Vec<String>)>>);

impl Parameters {
    /// The query parameters in the document.
    pub fn of(document: &OpenApi) -> Self {
        let names = |operation: &Operation| -> Vec<String> {
            let parameters = operation.parameters.iter().flatten();
            let ours = parameters.filter_map(|parameter| match parameter {
                RefOr::T(parameter) if matches!(parameter.parameter_in, ParameterIn::Query) => Some(&parameter.name),
                _ => None,
            });
            ours.cloned().collect()
        };
        let routes = document.paths.paths.iter().map(|(path, item)| {
            let operations = [
                (Method::GET, &item.get),
                (Method::HEAD, &item.get),
                (Method::POST, &item.post),
                (Method::PUT, &item.put),
                (Method::PATCH, &item.patch),
                (Method::DELETE, &item.delete),
            ];
            let there =
                operations.into_iter().filter_map(|(method, operation)| Some((method, names(operation.as_ref()?))));
            (path.clone(), there.collect())
        });
        Parameters(routes.collect())
    }

    /// The parameters of a request that are unknown to its operation.
    fn unknown(&self, request: &Request) -> Names {
        let mut names = Names::default();
        let Some(query) = request.uri().query() else { return names };
        let route = request.extensions().get::<MatchedPath>().and_then(|route| self.0.get(route.as_str()));
        let operation = route.and_then(|there| there.iter().find(|(method, _)| method == request.method()));
        let Some((_, known)) = operation else { return names };
        for (name, _) in form_urlencoded::parse(query.as_bytes()) {
            if !known.iter().any(|known| *known == name) {
                names.add(&name);
            }
        }
        names
    }

    /// Collects the unknown names of a public request; `None` for a request that can't have any.
    pub fn watch(&self, request: &mut Request) -> Option<Watched> {
        let has_body = !request.method().is_safe();
        if !has_body && request.uri().query().is_none() {
            return None;
        }
        let watched = Watched { parameters: self.unknown(request), fields: BodyFields::default() };
        if has_body {
            request.extensions_mut().insert(watched.fields.clone());
        }
        Some(watched)
    }
}

/// The unknown names of a request that is under way.
pub struct Watched {
    parameters: Names,
    fields: BodyFields,
}

impl Watched {
    /// Names them in the headers of the reply.
    pub fn set(self, headers: &mut HeaderMap) {
        let mut names = self.fields.0.get().cloned().unwrap_or_default();
        self.parameters.0.iter().for_each(|name| names.add(name));
        if let Some(value) = names.header() {
            headers.insert(X_UNKNOWN_FIELDS, value);
        }
    }
}

/// The layer of the operators' routes: refuses a query with an unknown parameter.
pub async fn known_parameters_only(State(known): State<Arc<Parameters>>, request: Request, next: Next) -> Response {
    match known.unknown(&request).refuse("조회 조건") {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Names {
        let mut all = Names::default();
        names.iter().for_each(|name| all.add(name));
        all
    }

    #[test]
    fn unknown_names_bounded_and_printable() {
        let header = |names: &[&str]| named(names).header().map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(header(&[]), None);
        assert_eq!(header(&["userCouponID", "a.0.b"]).unwrap(), "userCouponID, a.0.b");
        assert_eq!(header(&["a, b\r\nx: \"%"]).unwrap(), "a%2C%20b%EF%BF%BD%EF%BF%BDx:%20%22%25");
        assert_eq!(header(&["쿠폰"]).unwrap(), "%EC%BF%A0%ED%8F%B0");
        assert_eq!(header(&[""]).unwrap(), "");
        let long = "x".repeat(10_000);
        let many = vec![long.as_str(); 100];
        assert_eq!(header(&many).unwrap().len(), MAX_NAMES * (MAX_NAME_LEN + 2) - 2);
        assert!(named(&many).refuse("항목").is_err() && named(&[]).refuse("항목").is_ok());
    }
}
