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
            decode::not_null,
            fields::{Bounded, Prefix, Text},
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
#[schema(description = "사용자 생성 요청", example = json!({ "userName": "이다은", "balance": 10000 }))]
struct CreateUserRequest {
    /// 사용자 이름
    user_name: Text<100>,
    /// 처음 잔액(원)
    #[serde(default)]
    #[schema(default = 0)]
    balance: Bounded<0, { MAX_OPENING_BALANCE }>,
}

impl RequestBody for CreateUserRequest {
    type Valid = NewUser;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<NewUser> {
        Some(NewUser { name: self.user_name.into(), balance: self.balance.get() })
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
#[schema(description = "사용자 대량 생성 요청", example = json!({ "count": 1000, "balance": 10000 }))]
struct CreateUsersRequest {
    /// 생성할 사용자 수
    count: Bounded<1, 1_000_000>,
    /// 이름의 앞부분: 뒤에 사용자 ID가 붙습니다.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(default = "user-", nullable = false)]
    name_prefix: Option<Prefix<80>>,
    /// 처음 잔액(원)
    #[serde(default)]
    #[schema(default = 0)]
    balance: Bounded<0, { MAX_OPENING_BALANCE }>,
}

impl RequestBody for CreateUsersRequest {
    type Valid = NewUsers;

    const INVALID: Code = Code::InvalidRequest;

    fn validate(self, _zone: Tz) -> Option<NewUsers> {
        let prefix = self.name_prefix.map_or_else(|| "user-".to_owned(), String::from);
        Some(NewUsers { count: self.count.get(), prefix, balance: self.balance.get() })
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
