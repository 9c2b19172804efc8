//! Rows as the records that they bring in, checked as the API checks its requests.

use chrono_tz::Tz;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::columns::{COUPONS, Columns, PRODUCTS, USERS};
use crate::{
    engine::MAX_PUT_ID,
    http::{
        admin::{CreateCampaignRequest, CreateUserRequest, PutProductRequest},
        extract::write::RequestBody,
    },
    model::{CouponId, NewCampaign, NewUser, ProductId, ProductUpsert, UserId},
};

/// What the rows of a file are.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowKind {
    Users,
    Products,
    Coupons,
}

/// A record to bring in.
#[derive(Debug)]
pub(super) enum Row {
    User(UserId, NewUser),
    Product(ProductId, ProductUpsert),
    Campaign(CouponId, NewCampaign),
}

impl Row {
    pub fn id(&self) -> i64 {
        match self {
            Row::User(id, _) => id.get(),
            Row::Product(id, _) => id.get(),
            Row::Campaign(id, _) => id.get(),
        }
    }
}

impl RowKind {
    pub fn name(self) -> &'static str {
        match self {
            RowKind::Users => "users",
            RowKind::Products => "products",
            RowKind::Coupons => "coupons",
        }
    }

    pub fn columns(self) -> &'static Columns {
        match self {
            RowKind::Users => &USERS,
            RowKind::Products => &PRODUCTS,
            RowKind::Coupons => &COUPONS,
        }
    }

    /// # Errors
    /// Why the API would refuse it.
    pub fn row(self, mut fields: Map<String, Value>, zone: Tz) -> Result<Row, String> {
        let name = self.columns().id;
        let id = fields.remove(name).ok_or_else(|| format!("{name} is missing"))?;
        match self {
            RowKind::Users => {
                let (id, new) = (id_of(name, id)?, body::<CreateUserRequest>(fields, zone, "")?);
                room(name, UserId::get(id)).map(|()| Row::User(id, new))
            }
            RowKind::Products => {
                let why = "opensAt is not before closesAt, or a time is none of the zone";
                let (id, new) = (id_of(name, id)?, body::<PutProductRequest>(fields, zone, why)?);
                room(name, ProductId::get(id)).map(|()| Row::Product(id, new))
            }
            RowKind::Coupons => {
                let why = "the window is empty or ends after expiredAt, a PERCENTAGE is above 100, the conditions do not fit the \
                           discount, or a time is none of the zone";
                let (id, new) = (id_of(name, id)?, body::<CreateCampaignRequest>(fields, zone, why)?);
                room(name, CouponId::get(id)).map(|()| Row::Campaign(id, new))
            }
        }
    }
}

fn id_of<T: DeserializeOwned>(name: &str, id: Value) -> Result<T, String> {
    serde_json::from_value(id).map_err(|error| format!("{name}: {error}"))
}

/// New ids must have room above those that are brought in.
fn room(name: &str, id: i64) -> Result<(), String> {
    if id <= MAX_PUT_ID { Ok(()) } else { Err(format!("{name} leaves no room for new ids")) }
}

fn body<T: RequestBody>(fields: Map<String, Value>, zone: Tz, why: &str) -> Result<T::Valid, String> {
    let request: T = serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| match error.path() {
        path if path.iter().len() == 0 => error.inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    })?;
    request.validate(zone).ok_or_else(|| why.to_owned())
}
