//! Path ids and query strings.
//!
//! These extractors always succeed. The handler asks them for their values in the order in which a client learns what is wrong:
//! the body, then the path, then the query.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::{FromRef, FromRequestParts, Path, Query},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::fields::Id;
use crate::{
    http::{
        auth::user,
        error::{ApiError, Code},
        limits::Limits,
        request_class::RequestClass,
    },
    model::UserId,
};

/// The id in the path.
#[derive(Clone, Copy, Debug)]
pub struct PathId<T>(Result<T, Code>);

impl<T: Id> PathId<T> {
    /// The id.
    ///
    /// # Errors
    /// 404: an invalid id names nothing that exists. 403: it is another user than the token's.
    pub fn valid(self) -> Result<T, ApiError> {
        Ok(self.0?)
    }
}

impl<S: Send + Sync, T: Id> FromRequestParts<S> for PathId<T> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let segment = Path::<String>::from_request_parts(parts, state).await.ok();
        let id = segment.and_then(|Path(segment)| segment.parse::<T>().ok()).ok_or(T::UNKNOWN);
        Ok(PathId(id.and_then(|id| user::admit(&parts.extensions, id.user()).map(|()| id))))
    }
}

/// The user in the path, for whom the request acts, within the user's limit.
#[derive(Debug)]
pub struct PathUser(Result<UserId, ApiError>);

impl PathUser {
    /// The user.
    ///
    /// # Errors
    /// 404: an invalid id names no user. 403: it is another user than the token's. 429: the limit is reached.
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

/// The query parameters of an endpoint.
pub trait QueryParams: DeserializeOwned {
    /// The error of an invalid query string.
    const INVALID: Code = Code::InvalidRequest;

    /// The user for whom a request with these parameters acts.
    fn user(&self) -> Option<UserId>;

    /// The tokens that a request with these parameters costs more than others to the same route.
    fn cost(&self) -> u32 {
        0
    }
}

/// The query string.
#[derive(Debug)]
pub struct Params<T>(Result<T, ApiError>);

impl<T: QueryParams> Params<T> {
    /// The parameters.
    ///
    /// # Errors
    /// The parameters are invalid. 403: they name another user than the token's. 429: the client has too few tokens.
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
            if more > 0 && RequestClass::of(&parts.extensions) == RequestClass::Public {
                let limits = Arc::<Limits>::from_ref(state);
                limits.admit_more(limits.client_of(&parts.extensions, &parts.headers), more)?;
            }
            Ok(params)
        };
        Ok(Params(admitted()))
    }
}
