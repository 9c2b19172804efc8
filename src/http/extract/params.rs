//! Path ids and query strings.
//!
//! The extractors always succeed and are asked for their value by the handler, in the order in which a client is told
//! what is wrong: the body, then the path, then the query.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::{FromRef, FromRequestParts, Path, Query},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::decode::{Id, decimal};
use crate::{
    http::{
        auth::user,
        error::{ApiError, Code},
        limits::{Limits, Traffic},
        middleware::edge,
    },
    model::UserId,
};

/// The last page of a listing, whatever its size: a bound of two parameters together could not be said in the document.
pub const LAST_PAGE: i64 = 10_000;

/// The one id in the path.
#[derive(Clone, Copy, Debug)]
pub struct PathId<T>(Result<T, Code>);

impl<T: Id> PathId<T> {
    /// The id; what can't be one names nothing that exists, and another user than the caller's may not be asked about.
    pub fn valid(self) -> Result<T, ApiError> {
        Ok(self.0?)
    }
}

impl<S: Send + Sync, T: Id> FromRequestParts<S> for PathId<T> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let segment = Path::<String>::from_request_parts(parts, state).await.ok();
        let id = segment.and_then(|Path(segment)| decimal(&segment)).and_then(T::new).ok_or(T::UNKNOWN);
        Ok(PathId(id.and_then(|id| user::admit(&parts.extensions, id.user()).map(|()| id))))
    }
}

/// The user in the path, for whom the request acts: within the user's limit.
#[derive(Debug)]
pub struct PathUser(Result<UserId, ApiError>);

impl PathUser {
    /// The user; what can't be one names nobody that exists.
    pub fn valid(self) -> Result<UserId, ApiError> {
        self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathUser
where
    Arc<Limits>: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let PathId(user) = PathId::<UserId>::from_request_parts(parts, state).await?;
        let limits = Arc::<Limits>::from_ref(state);
        let user = user.map_err(ApiError::from);
        Ok(PathUser(user.and_then(|user| limits.admit_user(user, 1).map(|()| user))))
    }
}

/// The parameters of an endpoint.
pub trait QueryParams: DeserializeOwned {
    /// What a query string that can't be read answers.
    const INVALID: Code = Code::InvalidRequest;

    /// The user that a request with these parameters acts for, or shows.
    fn user(&self) -> Option<UserId>;

    /// Tokens that a request with these parameters costs more than others to the same route.
    fn cost(&self) -> u32 {
        0
    }
}

/// The query string.
#[derive(Debug)]
pub struct Params<T>(Result<T, ApiError>);

impl<T: QueryParams> Params<T> {
    /// The parameters; they may not name another user than the caller's.
    pub fn valid(self) -> Result<T, ApiError> {
        self.0
    }
}

impl<S: Send + Sync, T: QueryParams> FromRequestParts<S> for Params<T>
where
    Arc<Limits>: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let admitted = || -> Result<T, ApiError> {
            let Query(params) = Query::<T>::try_from_uri(&parts.uri).map_err(|_| T::INVALID)?;
            user::admit(&parts.extensions, params.user())?;
            let more = params.cost();
            if more > 0 && Traffic::of(parts.uri.path()) == Traffic::Public {
                let limits = Arc::<Limits>::from_ref(state);
                limits.admit_more(edge::client(&limits, &parts.extensions, &parts.headers), more)?;
            }
            Ok(params)
        };
        Ok(Params(admitted()))
    }
}

/// The `size` of a page where none is named.
pub fn default_size() -> i64 {
    20
}
