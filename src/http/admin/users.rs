//! Users: creating one or many.

use axum::extract::State;
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        error::Code,
        extract::{
            decode::{int, optional_prefix, text},
            write::{RequestBody, Write},
        },
        openapi::errors::documented_errors,
        reply::{Answer, Done},
        state::AppState,
    },
    model::{Balance, CreatedUsers, MAX_OPENING_BALANCE, NewUser, NewUsers, UserId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(create_many))
}

/// A long route.
pub const BULK_PATH: &str = "/admin/v1/users/bulk";

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "사용자 생성 요청")]
struct CreateUserRequest {
    /// 사용자 이름
    #[serde(deserialize_with = "text::<_, 100>")]
    #[schema(min_length = 1, max_length = 100, example = "이다은")]
    user_name: String,
    /// 처음 잔액(원)
    #[serde(default, deserialize_with = "int::<_, 0, MAX_OPENING_BALANCE>")]
    #[schema(minimum = 0, maximum = 1000000000000_i64, default = 0, example = 10000)]
    balance: i64,
}

impl RequestBody for CreateUserRequest {
    type Valid = NewUser;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<NewUser> {
        Some(NewUser { name: self.user_name, balance: self.balance })
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "생성된 사용자")]
struct CreatedUserResponse {
    /// 사용자 ID
    user_id: i64,
    /// 사용자 이름
    user_name: String,
    /// 잔액(원)
    balance: i64,
}

impl From<Balance> for CreatedUserResponse {
    fn from(user: Balance) -> Self {
        CreatedUserResponse { user_id: user.user_id.get(), user_name: user.user_name, balance: user.balance }
    }
}

documented_errors! { UserErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
}}

#[utoipa::path(
    post,
    path = "/admin/v1/users",
    operation_id = "createUser",
    tag = "운영",
    summary = "사용자 생성",
    description = "사용자를 생성합니다. 처음 잔액이 있으면 잔액 내역의 첫 항목이 됩니다.",
    request_body(content = CreateUserRequest),
    responses((status = 201, description = "사용자 생성 성공", body = CreatedUserResponse), UserErrors)
)]
async fn create(
    State(app): State<AppState>,
    Write { call, body: user }: Write<CreateUserRequest>,
) -> Done<CreatedUserResponse> {
    let created = app.engine.create_user(&call, user).await?;
    let id = created.value.user_id.get();
    Ok(Answer::created(created.map(CreatedUserResponse::from)).naming("userId", id))
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "사용자 대량 생성 요청")]
struct CreateUsersRequest {
    /// 생성할 사용자 수
    #[serde(deserialize_with = "int::<_, 1, 1_000_000>")]
    #[schema(minimum = 1, maximum = 1000000, example = 1000)]
    count: i64,
    /// 이름의 앞부분: 뒤에 사용자 ID가 붙습니다.
    #[serde(default, deserialize_with = "optional_prefix::<_, 80>")]
    #[schema(max_length = 80, default = "user-", nullable = false)]
    name_prefix: Option<String>,
    /// 처음 잔액(원)
    #[serde(default, deserialize_with = "int::<_, 0, MAX_OPENING_BALANCE>")]
    #[schema(minimum = 0, maximum = 1000000000000_i64, default = 0, example = 10000)]
    balance: i64,
}

impl RequestBody for CreateUsersRequest {
    type Valid = NewUsers;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<NewUsers> {
        let prefix = self.name_prefix.unwrap_or_else(|| "user-".to_owned());
        Some(NewUsers { count: self.count, prefix, balance: self.balance })
    }

    fn user(_: &Self::Valid) -> Option<UserId> {
        None
    }
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "대량 생성된 사용자")]
struct CreatedUsersResponse {
    /// 첫 사용자 ID: 이후 ID는 연속됩니다.
    first_user_id: i64,
    /// 생성된 사용자 수
    count: i64,
}

impl From<CreatedUsers> for CreatedUsersResponse {
    fn from(created: CreatedUsers) -> Self {
        CreatedUsersResponse { first_user_id: created.first.get(), count: created.count }
    }
}

#[utoipa::path(
    post,
    path = "/admin/v1/users/bulk",
    operation_id = "createUsers",
    tag = "운영",
    summary = "사용자 대량 생성",
    description = "연속된 ID의 사용자를 최대 1,000,000명까지 한 번에 생성합니다.",
    request_body(content = CreateUsersRequest),
    responses((status = 201, description = "사용자 대량 생성 성공", body = CreatedUsersResponse), UserErrors)
)]
async fn create_many(
    State(app): State<AppState>,
    Write { call, body: users }: Write<CreateUsersRequest>,
) -> Done<CreatedUsersResponse> {
    let created = app.engine.create_users(&call, users).await?;
    let first = created.value.first.get();
    Ok(Answer::created(created.map(CreatedUsersResponse::from)).naming("firstUserId", first))
}
