//! The log of requests: a line for every request at level debug of the target [`ACCESS`], and a line for every failure whose
//! cause its client is not told.

use std::{net::IpAddr, time::Instant};

use axum::{http::Method, response::Response};

use crate::{
    http::{
        auth::operator::Operator,
        error::{Code, Failure},
        request_id::RequestId,
    },
    telemetry::ACCESS,
};

/// How lines of the log name a request.
pub struct RequestLine<'a> {
    pub id: &'a RequestId,
    pub method: &'a Method,
    /// As registered.
    pub route: &'a str,
}

impl RequestLine<'_> {
    /// Writes the line of a request that is answered. Its fields are read only if the target is enabled.
    pub fn access(&self, client: IpAddr, began: Instant, response: &Response) {
        let &RequestLine { id, method, route } = self;
        let extensions = response.extensions();
        tracing::debug!(
            target: ACCESS,
            request_id = id.as_str(),
            %method,
            route,
            status = response.status().as_u16(),
            error_code = extensions.get::<Failure>().map(|failure| Code::as_str(failure.code)),
            ms = began.elapsed().as_secs_f64() * 1e3,
            %client,
            operator = extensions.get::<Operator>().map(Operator::name),
            "request"
        );
    }

    /// Writes the cause of a failure, if it has one.
    pub fn failure(&self, failure: &Failure) {
        let &RequestLine { id, method, route } = self;
        let Failure { code, cause: Some(cause) } = failure else { return };
        match code {
            Code::Internal => {
                tracing::error!(request_id = id.as_str(), %method, route, error = %cause, "request failed")
            }
            _ => tracing::warn!(request_id = id.as_str(), %method, route, error = %cause, "request turned away"),
        }
    }
}
