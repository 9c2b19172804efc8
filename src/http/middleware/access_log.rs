//! A line in the log for every request, at level debug of the target [`ACCESS`]: what it was, of whom, and what became of it.
//!
//! Nothing of it is put together where nobody asked for it.

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

/// Writes the line of a request that is answered.
pub fn tell(id: &RequestId, method: &Method, route: &str, client: IpAddr, began: Instant, response: &Response) {
    let extensions = response.extensions();
    // What is named here is only looked up where somebody asked for lines.
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
