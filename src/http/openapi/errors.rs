//! Documented failures, whose examples are the rows of the error table.

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, example::ExampleBuilder, response::Response};

use crate::http::error::Code;

/// Defines a unit type for `responses(...)`: descriptions of failures, each with its rows of the table.
macro_rules! documented_errors {
    ($name:ident { $($description:literal => [$($code:ident),+ $(,)?]),+ $(,)? }) => {
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<
                String,
                utoipa::openapi::RefOr<utoipa::openapi::response::Response>,
            > {
                use crate::http::error::Code;
                $crate::http::openapi::errors::failures(&[$(($description, &[$(Code::$code),+])),+])
            }
        }
    };
}
pub(crate) use documented_errors;

/// The responses of rows of the table. The codes of one description share their status.
pub fn failures(rows: &[(&str, &[Code])]) -> BTreeMap<String, RefOr<Response>> {
    let documented = |&(description, codes): &(&str, &[Code])| {
        let status = codes.first().map(|code| code.status().as_str().to_owned())?;
        Some((status, RefOr::T(failure(description, codes))))
    };
    rows.iter().filter_map(documented).collect()
}

/// One code is an example; several are named examples.
fn failure(description: &str, codes: &[Code]) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorResponse")));
    let envelope = |code: &Code| json!({ "errorCode": code.as_str(), "message": code.message() });
    let content = match codes {
        [code] => content.example(Some(envelope(code))),
        codes => content.examples_from_iter(codes.iter().map(|code| {
            let example = ExampleBuilder::new().description(code.as_str()).value(Some(envelope(code)));
            (code.as_str(), example.build())
        })),
    };
    ResponseBuilder::new().description(description).content("application/json", content.build()).build()
}
