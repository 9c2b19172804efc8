//! Users: creating one or many, bringing one in under the id that it has elsewhere, and forgetting one.

use axum::extract::State;
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::AdminState;
use crate::{
    http::{
        error::{ApiError, Code},
        extract::{
            decode::{not_null, parsed},
            fields::{Bounded, Prefix, Text},
            params::{Params, PathId, QueryParams},
            write::{Bodiless, RequestBody, Write},
        },
        openapi::errors::documented_errors,
        reply::{Answer, Done, NoContent},
        state::AppState,
    },
    model::{Balance, CreatedUsers, MAX_OPENING_BALANCE, NewUser, NewUsers, UserId},
};

/// The documented routes.
pub fn router() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(create_many)).routes(routes!(put, forget))
}

/// A long route.
pub const BULK_PATH: &str = "/admin/v1/users/bulk";

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "사용자 생성 요청", example = json!({ "userName": "이다은", "balance": 10000 }))]
pub struct CreateUserRequest {
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
    const PERSONAL: &[&str] = &["userName"];

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

documented_errors! { PutErrors {
    "잘못된 요청 (입력값 오류, 유효성 검사 실패)" => [InvalidRequest],
    "사용자를 찾을 수 없음 (잘못된 ID, 또는 잊힌 사용자)" => [UserNotFound],
}}

#[utoipa::path(
    put,
    path = "/admin/v1/users/{userId}",
    operation_id = "putUser",
    tag = "운영",
    summary = "사용자 가져오기",
    description = "다른 시스템의 ID 그대로 사용자를 생성하거나 이름을 변경합니다. 처음 잔액은 잔액 내역이 없는 사용자에게만 첫 항목으로 들어갑니다. 같은 \
        요청을 반복해도 결과는 같습니다. 이후 새로 만드는 사용자의 ID는 항상 더 큽니다.",
    params(("userId" = i64, Path, description = "userId")),
    request_body(content = CreateUserRequest),
    responses(
        (status = 200, description = "사용자 변경 성공, 또는 변경 없음", body = CreatedUserResponse),
        (status = 201, description = "사용자 생성 성공", body = CreatedUserResponse),
        PutErrors,
    )
)]
async fn put(
    State(app): State<AppState>,
    user: PathId<UserId>,
    Write { call, body }: Write<CreateUserRequest>,
) -> Done<CreatedUserResponse> {
    Ok(Answer::put(app.engine.put_user(&call, user.valid()?, body).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
struct ForgetParams {
    /// 남은 잔액을 포기하는지 여부
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = bool, required = false, default = false)]
    forfeit: bool,
}

impl QueryParams for ForgetParams {
    fn user(&self) -> Option<UserId> {
        None
    }
}

documented_errors! { ForgetErrors {
    "잘못된 요청 (유효하지 않은 파라미터)" => [InvalidRequest],
    "사용자를 찾을 수 없음" => [UserNotFound],
    "진행 중인 주문이나 남은 잔액이 있음" => [OrdersOpen, BalanceLeft],
}}

#[utoipa::path(
    delete,
    path = "/admin/v1/users/{userId}",
    operation_id = "forgetUser",
    tag = "운영",
    summary = "사용자 잊기",
    description = "사용자의 이름을 Redis와 PostgreSQL에서 지웁니다. 주문과 금액은 사용자 ID로만 남고, 이후 이 사용자는 찾을 수 없습니다. 진행 중인 주문이 \
        있으면 거절되며, 잔액이 남아 있으면 forfeit=true일 때만 잔액을 포기하고 처리합니다. 응답까지 1초 남짓 걸립니다.",
    params(("userId" = i64, Path, description = "userId"), ForgetParams),
    responses((status = 204, description = "사용자 잊기 성공"), ForgetErrors)
)]
async fn forget(
    State(app): State<AppState>,
    user: PathId<UserId>,
    params: Params<ForgetParams>,
    Bodiless(call): Bodiless,
) -> Result<NoContent, ApiError> {
    app.engine.forget_user(&call, user.valid()?, params.valid()?.forfeit).await?;
    Ok(NoContent)
}
